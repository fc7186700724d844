/* The rules of the checked build. Kernels are compiled with gcc's hooks for -fsanitize=thread, which call us before each
 * access (emu_check_hooks.cpp). For every two bytes we remember the last write and the last reads, and report
 *   a read of memory that nobody wrote, or of the target of a cp.async that nobody waited for,
 *   a race: two accesses, not both reads and not both atomic, with nothing between them that orders them,
 *   an access outside every allocation and shared variable (a fault, as the kernel cannot go on).
 * Accesses are ordered by __syncthreads within a block; by __syncwarp within its lanes (not by shuffles and votes, says
 * the CUDA guide); by the end of a kernel; and between blocks by __threadfence, an atomic, and a later atomic there. */
#include <unordered_map>
#include "emu_shadow.h"

namespace emu {

/* ---- time ---- */

struct Release { /* a thread fenced, then did an atomic */
    uint32_t block;
    uint16_t epoch, thread;
};
struct Clocks {
    uint32_t block = 1, first_of_launch = 2;
    uint16_t epoch = 0;
    uint16_t ticks[max_threads / warp_size]; /* __syncwarps of a warp */
    uint16_t since[max_threads];             /* the tick of a lane's latest __syncwarp */
    uint16_t known[max_threads][warp_size];  /* for each thread, the latest tick that joined it with that lane */
    bool fenced[max_threads];                /* since its last write to device memory */
    std::unordered_map<const void *, std::vector<Release>> released; /* in this launch, by the atomic's address */
    std::unordered_map<uint32_t, Release> acquired;                  /* by this block */
};
static Clocks clocks;

void check_launch(const Launch &) {
    clocks.first_of_launch = clocks.block + 1;
    clocks.released.clear();
}
void check_block(Worker &w) {
    clocks.block++;
    clocks.epoch = 0;
    memset(clocks.ticks, 0, sizeof clocks.ticks);
    memset(clocks.since, 0, sizeof clocks.since);
    memset(clocks.known, 0, sizeof clocks.known);
    memset(clocks.fenced, 0, sizeof clocks.fenced);
    clocks.acquired.clear();
    watch_shared(w);
}
void check_barrier(Worker &) { clocks.epoch++; }
void check_fence(Worker &w) { clocks.fenced[w.self->number] = true; }

/* Every participant now knows what any of them knew. */
void check_warp_sync(Worker &, unsigned warp, unsigned lanes) {
    uint16_t tick = ++clocks.ticks[warp], all[warp_size] = {};
    for (unsigned lane = 0; lane < warp_size; lane++) {
        if (!(lanes >> lane & 1)) continue;
        for (unsigned i = 0; i < warp_size; i++) all[i] = std::max(all[i], clocks.known[warp * warp_size + lane][i]);
    }
    for (unsigned lane = 0; lane < warp_size; lane++)
        if (lanes >> lane & 1) all[lane] = tick;
    for (unsigned lane = 0; lane < warp_size; lane++) {
        if (!(lanes >> lane & 1)) continue;
        memcpy(clocks.known[warp * warp_size + lane], all, sizeof all);
        clocks.since[warp * warp_size + lane] = tick;
    }
}

static void acquire_and_release(const void *address, const Thread &me) {
    std::vector<Release> &here = clocks.released[address];
    for (const Release &r : here)
        if (r.block != clocks.block) clocks.acquired[r.block] = r;
    if (clocks.fenced[me.number]) here.push_back({clocks.block, clocks.epoch, (uint16_t)me.number});
}

/* ---- does a mark come before what this thread does now? ---- */

static bool before_in_warp(const Mark &m, const Thread &me) {
    const uint16_t *known = clocks.known[me.number];
    unsigned lanes = m.others == Others::lanes ? m.lanes : 1u << m.thread % warp_size;
    for (lanes &= ~(1u << me.lane); lanes; lanes &= lanes - 1)
        if (known[__builtin_ctz(lanes)] <= m.clock) return false;
    return true;
}
static bool before_from_block(const Mark &m) {
    auto it = clocks.acquired.find(m.block);
    if (it == clocks.acquired.end() || m.others == Others::blocks) return false;
    return m.epoch < it->second.epoch || m.thread == it->second.thread;
}
static bool is_before(const Mark &m, const Thread &me, bool shared) {
    if (m.block != clocks.block) return shared || m.block < clocks.first_of_launch || before_from_block(m);
    if (m.epoch < clocks.epoch && m.others != Others::blocks) return true;
    if (m.others >= Others::warps || m.thread / warp_size != me.warp) return false;
    return before_in_warp(m, me);
}

static Mark mark_of(const Thread &me, Kind kind, Where where) {
    Mark m;
    m.block = clocks.block;
    m.where = where;
    m.lanes = 1u << me.lane;
    m.epoch = clocks.epoch;
    m.clock = clocks.since[me.number];
    m.thread = (uint16_t)me.number;
    m.kind = kind;
    return m;
}
/* Returns the new mark, which also stands for an old one if nothing orders that before it. */
static Mark joined(const Mark &old, Mark m) {
    if (old.block != m.block) m.others = Others::blocks;
    else if (old.others != Others::nobody || old.thread != m.thread) {
        bool same_warp = old.thread / warp_size == m.thread / warp_size;
        m.others = std::max(old.others, same_warp ? Others::lanes : Others::warps);
        m.lanes |= old.lanes;
        m.clock = std::max(m.clock, old.clock);
    }
    return m;
}

/* ---- what is reported ---- */

static std::string thread_name(unsigned number) {
    dim3 d = blockDim;
    return "(" + std::to_string(number % d.x) + "," + std::to_string(number / d.x % d.y) + "," +
           std::to_string(number / (d.x * d.y)) + ")";
}
static std::string place_in(const Region &r, const void *p) {
    return r.name + ", byte " + std::to_string(r.offset(p)) + " of " + std::to_string(r.bytes);
}

struct Visit { /* one access, while its cells are looked at */
    const Worker &w;
    const Region &region;
    const void *address;
    Access access;
    Where where;
    bool told = false;
};
static const char *verb(Access a) {
    return a == Access::read ? "read" : a == Access::write ? "write" : "atomic update";
}

static void tell(Visit &v, const char *kind, Where there, const std::string &text) {
    if (!v.told && is_new_report(kind, v.where, there))
        add_report(who_runs(v.w) + ": " + kind + ": " + verb(v.access) + " at " + describe(v.where) + " of " +
                   place_in(v.region, v.address) + text);
    v.told = true;
}
static void tell_race(Visit &v, const Mark &m, const char *earlier) {
    std::string text = std::string("; ") + earlier + " at " + describe(m.where) + " by thread " + thread_name(m.thread);
    if (m.block != clocks.block) text += " of another block";
    if (m.others != Others::nobody) text += " and others";
    tell(v, "race", m.where, text + " is not ordered before it");
}

/* ---- one cell ---- */

static void look_at_content(Visit &v, const Cell &c) {
    bool here = !v.region.shared || c.write.block == clocks.block; /* shared memory begins anew in each block */
    if (c.write.kind == Kind::none || !here) tell(v, "uninitialised", 0, ", which nothing has written");
    else if (c.write.kind == Kind::pending)
        tell(v, "cp.async not waited for", c.write.where, "; the copy is at " + describe(c.write.where));
}

/* Whether a mark stands for every thread that could be added to it. Most reads of much-read memory end here. */
static bool says_all(const Mark &m) {
    if (m.others == Others::blocks) return m.block >= clocks.first_of_launch;
    return m.others == Others::warps && m.block == clocks.block && m.epoch == clocks.epoch;
}

static void visit_read(Visit &v, Cell &c, const Thread &me) {
    look_at_content(v, c);
    bool shared = v.region.shared;
    if (c.write.kind != Kind::none && !is_before(c.write, me, shared)) tell_race(v, c.write, "the write");
    if (says_all(c.read)) return;
    Mark mine = mark_of(me, Kind::plain, v.where);
    bool alone = c.read.kind == Kind::none || is_before(c.read, me, shared);
    c.read = alone ? mine : joined(c.read, mine);
}

static void visit_write(Visit &v, Cell &c, const Thread &me) {
    bool shared = v.region.shared, atomic = v.access == Access::atomic;
    if (atomic) look_at_content(v, c);
    bool after_write = c.write.kind == Kind::none || is_before(c.write, me, shared);
    bool both_atomic = atomic && c.write.kind == Kind::atomic;
    if (!after_write && !both_atomic) tell_race(v, c.write, "the write");
    if (c.read.kind != Kind::none && !is_before(c.read, me, shared)) tell_race(v, c.read, "the read");
    Mark mine = mark_of(me, atomic ? Kind::atomic : Kind::plain, v.where);
    c.write = both_atomic && !after_write ? joined(c.write, mine) : mine;
    c.read = Mark();
}

/* ---- one access ---- */

[[noreturn]] static void outside(const void *p, unsigned bytes, Access access, Where where) {
    std::string text = std::string(verb(access)) + " of " + std::to_string(bytes) + " bytes";
    Region *before = region_before(p);
    if (before && (size_t)(static_cast<const char *>(p) - before->end()) < 4096)
        text += ", " + std::to_string(static_cast<const char *>(p) - before->end()) + " bytes past the end of " +
                before->name + " (" + std::to_string(before->bytes) + " bytes)";
    else text += p ? ": not device memory (a pointer of the host?)" : " through a null pointer";
    text = "out of bounds: " + describe(where) + ": " + text;
    add_report(who_runs(*worker) + ": " + text);
    fault({nullptr, 0}, "%s", text.c_str());
}

static void watch(const void *p, unsigned bytes, Access access, Where where) {
    Worker &w = *worker;
    Region *r = find_region(p);
    if (!r && is_unwatched(w, p)) return;
    if (!r) outside(p, bytes, access, where);
    size_t first = r->offset(p), last = first + bytes - 1;
    if (last >= r->bytes) outside(r->end(), (unsigned)(last + 1 - r->bytes), access, where);
    Thread &me = *w.self;
    if (!r->shared && access == Access::atomic) acquire_and_release(p, me);
    if (!r->shared && access == Access::write) clocks.fenced[me.number] = false;
    Visit v{w, *r, p, access, where};
    for (size_t i = first / cell_bytes; i <= last / cell_bytes; i++)
        if (access == Access::read) visit_read(v, r->cells[i], me);
        else visit_write(v, r->cells[i], me);
}

void note_access(const void *p, unsigned bytes, Access access, const void *pc) {
    if (!worker || !worker->self) return; /* the host's own code */
    watch(p, bytes, access, where_is(pc));
}
void note_at(const void *p, unsigned bytes, Access access, Place at) { watch(p, bytes, access, where_is(at)); }

static void mark_all(void *p, size_t bytes, Kind kind) {
    Region *r = find_region(p);
    if (!r || !bytes) return;
    for (size_t i = r->offset(p) / cell_bytes; i <= (r->offset(p) + bytes - 1) / cell_bytes; i++) {
        if (kind == Kind::pending) {
            r->cells[i].write.kind = kind; /* its owner stays */
            continue;
        }
        r->cells[i] = Cell();
        r->cells[i].write.block = 1;
        r->cells[i].write.kind = kind;
    }
}
void check_written(void *p, size_t bytes) { mark_all(p, bytes, Kind::plain); }
void check_pending(void *p, size_t bytes) { mark_all(p, bytes, Kind::pending); }
void check_allocated(void *p, size_t bytes) { add_region(static_cast<char *>(p), bytes, false, "device memory"); }
void check_freed(void *p) { remove_region(static_cast<char *>(p)); }
} // namespace emu
