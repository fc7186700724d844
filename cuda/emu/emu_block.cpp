/* Runs one block. Its threads take turns on this CPU thread: one runs until it must wait for others, then the next that
 * can run, in the order of the schedule. A thread that never waits is a plain function call; only one that waits keeps
 * the stack (fiber) it is on, and the next thread starts on another. */
#include <cstdarg>
#include <cstdio>
#include <map>
#include "emu_check.h"

__thread uint3 threadIdx, blockIdx;
__thread dim3 blockDim, gridDim;

namespace emu {
__thread Worker *worker;

/* ---- whose turn it is ---- */

/* Takes a thread that can run, or nullptr. Random sometimes prefers the newest, so that a few threads run far ahead. */
static Thread *take(Worker &w) {
    Ready &r = w.ready;
    if (r.first == r.end) return nullptr;
    if (w.schedule == Schedule::reversed) return r.at(--r.end);
    if (w.schedule == Schedule::random) {
        if (w.random.below(16) < w.newest_first) return r.at(--r.end);
        std::swap(r.at(r.first), r.at(r.first + w.random.below(r.count())));
    }
    return r.at(r.first++);
}

static void become(Worker &w, Thread *t) {
    w.self = t;
    threadIdx = t->index;
}
static void go(Worker &w, Fiber *to) {
    Fiber *from = w.current;
    w.current = to;
    w.switches++;
    switch_fiber(from, to);
}

static void release(Worker &w, Group &g);

static void thread_returns(Worker &w, Thread *t) {
    if (!t->copies.empty()) fault({nullptr, 0}, "returned before its cp.async copies were waited for");
    t->returned = true;
    w.returned++;
    Warp &warp = w.warps[t->warp];
    warp.returned |= 1u << t->lane;
    for (unsigned i = 0; i < warp.used; i++) {
        Group &g = *warp.groups[i];
        if (g.arrived && g.arrived == (g.mask & warp.exists & ~warp.returned)) release(w, g);
    }
}

/* A fiber's function. It starts threads as long as there are new ones, then makes way for one that waited elsewhere. */
static void fiber_main() {
    for (;;) {
        Worker &w = *worker;
        Thread *t = w.handed ? w.handed : take(w);
        w.handed = nullptr;
        if (t) become(w, t);
        if (t && !t->fiber) {
            w.launch->call(w.launch->arguments.data());
            thread_returns(w, t);
        } else {
            w.free_fibers.push_back(w.current);
            go(w, t ? t->fiber : &w.host);
        }
    }
}

static Fiber *free_fiber(Worker &w) {
    if (w.free_fibers.empty()) {
        Fiber *fiber = new_fiber(fiber_main, (unsigned)w.fibers.size());
        if (!fiber) return nullptr;
        w.fibers.push_back(fiber);
        return fiber;
    }
    Fiber *fiber = w.free_fibers.back();
    w.free_fibers.pop_back();
    return fiber;
}

/* The running thread stops here until it is taken again. */
static void wait(Worker &w, const char *name, Place at) {
    Thread *me = w.self;
    me->waits_in = name;
    me->waits_at = at;
    me->fiber = w.current;
    Thread *t = take(w);
    if (t != me) {
        if (t) become(w, t);
        Fiber *to = !t ? &w.host : t->fiber; /* the host reports that nobody can run */
        if (!to) {
            to = free_fiber(w);
            if (!to) fault(at, "no memory for the stack of another thread");
            w.handed = t;
        }
        go(w, to);
    }
    me->waits_in = nullptr;
}

/* The last to arrive goes on at once in order; otherwise it queues like the others. */
static void wait_turn(Worker &w, const char *name, Place at) {
    if (w.schedule == Schedule::in_order) return;
    w.ready.push(w.self);
    wait(w, name, at);
}

/* ---- faults ---- */

std::string location(Place at) {
    if (!at.file) return "";
    const char *slash = strrchr(at.file, '/');
    return std::string(slash ? slash + 1 : at.file) + ":" + std::to_string(at.line);
}

static std::string triple(uint3 v) {
    return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}
std::string who_runs(const Worker &w) {
    std::string text = "kernel " + w.launch->name + ", block " + triple(blockIdx);
    return w.self ? text + ", thread " + triple(w.self->index) : text;
}

void fault(Place at, const char *format, ...) {
    char what[512];
    va_list list;
    va_start(list, format);
    vsnprintf(what, sizeof what, format, list);
    va_end(list);
    Worker &w = *worker;
    std::string where = at.file ? ", " + location(at) : "";
    set_error(cudaErrorLaunchFailure, who_runs(w) + where + ": " + what);
    w.faulted = true;
    go(w, &w.host);
    __builtin_unreachable();
}

/* Nobody can run, but not all have returned. */
static void deadlock(Worker &w, unsigned threads) {
    std::map<std::string, unsigned> waiting;
    for (unsigned i = 0; i < threads; i++) {
        const Thread &t = w.threads[i];
        if (!t.returned) waiting[std::string(t.waits_in) + " at " + location(t.waits_at)]++;
    }
    std::string text;
    for (auto &[where, count] : waiting) text += std::to_string(count) + " wait in " + where + ", ";
    text += std::to_string(w.returned) + " have returned";
    w.self = nullptr;
    set_error(cudaErrorLaunchFailure, who_runs(w) + ": its threads wait for each other for ever: " + text);
    w.faulted = true;
}

/* ---- meeting ---- */

static bool skipped(Place at) {
    const Options &o = options();
    return o.skip_line == at.line && o.skip_line && location(at) == o.skip_file + ":" + std::to_string(o.skip_line);
}

Votes barrier(bool vote, const char *name, Place at) {
    Worker &w = *worker;
    if (skipped(at)) return {vote, vote};
    Barrier &b = w.barrier;
    if (!b.arrived) b.name = name, b.at = at;
    if (b.at.line != at.line || b.name != name)
        fault(at, "%s, while others of the block wait in %s at %s", name, b.name, location(b.at).c_str());
    unsigned turn = b.turn;
    Votes &votes = b.votes[turn & 1];
    votes.count += vote;
    votes.all &= vote;
    b.waiting[b.arrived++] = w.self;
    if (b.arrived < w.launch->threads()) {
        wait(w, name, at);
        return b.votes[turn & 1];
    }
    for (unsigned i = 0; i + 1 < b.arrived; i++) w.ready.push(b.waiting[i]);
    b.arrived = 0;
    b.turn++;
    b.votes[b.turn & 1] = {0, 1};
    check_barrier(w);
    wait_turn(w, name, at);
    return b.votes[turn & 1];
}

static Group &group_of(Warp &warp, unsigned mask) {
    for (unsigned i = 0; i < warp.used; i++)
        if (warp.groups[i]->mask == mask) return *warp.groups[i];
    if (warp.used == warp.groups.size()) warp.groups.push_back(new Group);
    Group &g = *warp.groups[warp.used++];
    g.mask = mask;
    g.arrived = g.turn = g.waiting_count = 0;
    return g;
}

static void release(Worker &w, Group &g) {
    g.present[g.turn & 1] = g.arrived;
    if (!strcmp(g.name, "__syncwarp")) check_warp_sync(w, g.waiting[0]->warp, g.arrived);
    g.arrived = 0;
    g.turn++;
    for (unsigned i = 0; i < g.waiting_count; i++) w.ready.push(g.waiting[i]);
    g.waiting_count = 0;
}

static void bring(unsigned char *slot, const void *brought, unsigned bytes) {
    if (bytes == 4) memcpy(slot, brought, 4); /* nearly always */
    else memcpy(slot, brought, bytes);
}
static void arrive(Group &g, Thread *me, const char *name, const void *brought, unsigned bytes, Place at) {
    if (!(g.mask >> me->lane & 1)) fault(at, "%s: lane %u is not in its mask %08x", name, me->lane, g.mask);
    if (!g.arrived) g.name = name, g.at = at;
    if (g.name != name && strcmp(g.name, name))
        fault(at, "%s, while its warp is in %s at %s", name, g.name, location(g.at).c_str());
    bring(g.slots[g.turn & 1][me->lane], brought, bytes);
    g.arrived |= 1u << me->lane;
    g.waiting[g.waiting_count++] = me;
}

Meeting meet(unsigned mask, const char *name, const void *brought, unsigned bytes, Place at, Combine combine) {
    Worker &w = *worker;
    Thread *me = w.self;
    Warp &warp = w.warps[me->warp];
    Group &g = group_of(warp, mask);
    unsigned turn = g.turn & 1;
    arrive(g, me, name, brought, bytes, at);
    if (g.arrived == (mask & warp.exists & ~warp.returned)) {
        Meeting all{g.slots[turn], g.arrived, me->lane};
        if (combine) combine(all);
        g.waiting_count--; /* this thread */
        release(w, g);
        wait_turn(w, name, at);
    } else wait(w, name, at);
    return {g.slots[turn], g.present[turn], me->lane};
}

unsigned lane_id() { return worker->self->lane; }
void absent(const char *name, unsigned lane, Place at) {
    fault(at, "%s reads lane %u, which is not there: it has returned or never was", name, lane);
}
void *dynamic_shared(Place at) {
    Worker &w = *worker;
    if (!w.launch->shape.shared_bytes) fault(at, "it uses dynamic shared memory but was launched with 0 bytes of it");
    return w.dynamic;
}
void fence() {
    check_fence(*worker);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* ---- a block ---- */

static void prepare_threads(Worker &w, const Launch &launch) {
    unsigned n = launch.threads();
    dim3 d = launch.shape.block;
    for (unsigned i = 0; i < n; i++) {
        Thread &t = w.threads[i];
        t.index = {i % d.x, i / d.x % d.y, i / (d.x * d.y)};
        t.number = i, t.lane = i % warp_size, t.warp = i / warp_size;
        t.fiber = nullptr;
        t.returned = false;
        t.copies.clear();
        t.copy_group = 0;
        w.ready.push(&t);
    }
    for (unsigned i = 0; i * warp_size < n; i++) {
        unsigned lanes = n - i * warp_size;
        w.warps[i].exists = lanes >= warp_size ? all_lanes : (1u << lanes) - 1;
        w.warps[i].returned = w.warps[i].used = 0;
    }
}

/* Shared memory begins as NaN, so that a place that a kernel forgot to write shows. */
static void poison_shared(Worker &w, const Launch &launch) {
    for (const Range &r : shared_variables()) memset(w.static_shared + r.begin, 0xFF, r.end - r.begin);
    memset(w.dynamic, 0xFF, launch.shape.shared_bytes);
}

static void prepare(Worker &w, const Launch &launch, uint64_t block) {
    const dim3 g = launch.shape.grid;
    blockIdx = {(unsigned)(block % g.x), (unsigned)(block / g.x % g.y), (unsigned)(block / g.x / g.y)};
    gridDim = g;
    blockDim = launch.shape.block;
    w.launch = &launch;
    w.block = block;
    w.returned = 0;
    w.faulted = false;
    w.schedule = options().schedule;
    w.ready.first = w.ready.end = 0;
    w.barrier.arrived = w.barrier.turn = 0;
    w.barrier.votes[0] = {0, 1};
    w.random.seed(options().seed, launch.number, block);
    static const unsigned eagerness[] = {0, 8, 15};
    w.newest_first = eagerness[w.random.below(3)];
    prepare_threads(w, launch);
    poison_shared(w, launch);
}

bool run_block(Worker &w, const Launch &launch, uint64_t block) {
    prepare(w, launch, block);
    check_block(w);
    Fiber *fiber = free_fiber(w);
    if (!fiber) {
        set_error(cudaErrorMemoryAllocation, "no memory for the stack of a thread");
        return false;
    }
    go(w, fiber);
    unsigned threads = launch.threads();
    if (!w.faulted && w.returned < threads) deadlock(w, threads);
    w.self = nullptr;
    if (w.faulted) { /* its threads will never go on: forget them and their stacks */
        w.free_fibers = w.fibers;
        for (unsigned i = 0; i < w.fibers.size(); i++) restart_fiber(w.fibers[i], fiber_main, i);
    }
    count_block(w, threads);
    return !w.faulted;
}

} // namespace emu
