/* Launches: the options, the order of the blocks of a grid, and the CPU threads that share them. */
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <numeric>
#include <thread>
#include <unistd.h>
#include "emu_check.h"

namespace emu {

/* ---- options ---- */

static bool set_schedule(Options &o, const char *name) {
    static const char *const names[] = {"in_order", "reversed", "random"};
    for (int i = 0; i < 3; i++)
        if (name && !strcmp(name, names[i])) {
            o.schedule = (Schedule)i;
            return true;
        }
    return false;
}

static void set_seed(Options &o, uint64_t seed) {
    o.seed = seed;
    o.streams.seed(seed, 0, 0);
}

static Options from_environment() {
    Options o;
    auto number = [](const char *name, long unless) {
        const char *text = getenv(name);
        return text ? strtol(text, nullptr, 10) : unless;
    };
    const char *schedule = getenv("PYLLMC_EMU_SCHEDULE");
    if (schedule && !set_schedule(o, schedule))
        o.problem = std::string("PYLLMC_EMU_SCHEDULE=") + schedule + ": use in_order, reversed or random";
    set_seed(o, (uint64_t)number("PYLLMC_EMU_SEED", 1));
    o.defer = number("PYLLMC_EMU_DEFER", 0) != 0;
    o.protect = number("PYLLMC_EMU_PROTECT", 0) != 0;
    o.workers = (int)number("PYLLMC_EMU_WORKERS", 0);
    return o;
}
Options &options() {
    static Options o = from_environment();
    return o;
}

/* ---- random numbers, so that a run can be repeated: they depend on seed, launch and block only ---- */

void Random::seed(uint64_t a, uint64_t b, uint64_t c) {
    state = (a * 0x9E3779B97F4A7C15ull + b) * 0xD1342543DE82EF95ull + c * 0xBF58476D1CE4E5B9ull;
    if (!state) state = 1;
    for (int i = 0; i < 4; i++) next();
}
uint32_t Random::next() {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32);
}

/* ---- workers ---- */

static std::atomic<uint64_t> launches, blocks, threads, switches;
std::atomic<uint64_t> synchronisations;
std::atomic<uint64_t> graphs;

void count_block(Worker &w, unsigned n) {
    blocks += 1;
    threads += n;
    switches += w.switches;
    w.switches = 0;
}

Worker &this_worker() {
    if (!worker) {
        worker = new Worker; /* lives as long as its thread, which is as long as the process or nearly so */
        worker->static_shared = thread_local_memory();
        worker->dynamic = static_cast<unsigned char *>(aligned_alloc(1024, shared_most));
    }
    return *worker;
}

/* CPU threads that wait for a job and do it together with the caller. */
class Pool {
  public:
    void run(unsigned helpers, const std::function<void()> &work) {
        if (owner != getpid()) forget(); /* a fork takes the threads away */
        while (size < helpers) {
            std::thread(&Pool::serve, this, size++).detach();
        }
        {
            std::lock_guard<std::mutex> lock(mutex);
            job = &work;
            wanted = busy = helpers;
            turn++;
        }
        begin.notify_all();
        work();
        std::unique_lock<std::mutex> lock(mutex);
        end.wait(lock, [&] { return busy == 0; });
        job = nullptr;
    }

  private:
    void serve(unsigned number) {
        uint64_t seen = 0;
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            begin.wait(lock, [&] { return turn != seen; });
            seen = turn;
            if (number >= wanted) continue;
            const std::function<void()> *mine = job;
            lock.unlock();
            (*mine)();
            lock.lock();
            if (--busy == 0) end.notify_one();
        }
    }
    void forget() {
        owner = getpid();
        size = 0;
        turn = 0;
    }
    std::mutex mutex;
    std::condition_variable begin, end;
    const std::function<void()> *job = nullptr;
    unsigned size = 0, wanted = 0, busy = 0;
    uint64_t turn = 0;
    pid_t owner = 0;
};

static unsigned helpers_for(uint64_t block_count) {
#ifdef EMU_CHECK
    (void)block_count;
    return 0; /* the checker follows one block after the other */
#else
    unsigned cores = options().workers > 0 ? (unsigned)options().workers : std::thread::hardware_concurrency();
    return (unsigned)std::min<uint64_t>(cores ? cores : 1, block_count) - 1;
#endif
}

/* ---- a grid ---- */

/* Block number i in the order is first + i * step, modulo the number of blocks; coprime step and number permute them. */
struct BlockOrder {
    uint64_t first = 0, step = 1, count;
    explicit BlockOrder(const Launch &launch) : count(launch.blocks()) {
        if (options().schedule == Schedule::reversed) first = step = count - 1;
        if (options().schedule != Schedule::random || count == 1) return;
        Random random;
        random.seed(options().seed, launch.number, ~0ull);
        first = random.next() % count;
        do step = random.next() % count;
        while (std::gcd(step, count) != 1);
    }
    uint64_t operator()(uint64_t i) const { return (uint64_t)((first + (unsigned __int128)i * step) % count); }
};

void run_grid(const Launch &launch) {
    launches += 1;
    if (sticky_error()) return;
    OpenMemory open;
    check_launch(launch);
    BlockOrder order(launch);
    std::atomic<uint64_t> next{0};
    std::atomic<bool> stop{false};
    auto work = [&] {
        Worker &w = this_worker();
        for (uint64_t i; !stop && (i = next++) < order.count;)
            if (!run_block(w, launch, order(i))) stop = true;
    };
    static Pool *pool = new Pool; /* never destroyed: its threads wait in it until the process ends */
    unsigned helpers = helpers_for(order.count);
    if (helpers) pool->run(helpers, work);
    else work();
}

static std::mutex limits_lock;
static std::vector<std::pair<const void *, size_t>> limits; /* kernels that asked for more shared memory */

static size_t shared_limit(const void *kernel) {
    std::lock_guard<std::mutex> lock(limits_lock);
    for (auto &[k, bytes] : limits)
        if (k == kernel) return bytes;
    return shared_default;
}

cudaError_t set_function_attribute(const void *kernel, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || (size_t)value > shared_most)
        return set_error(cudaErrorInvalidValue, std::to_string(value) +
                                                    " bytes of dynamic shared memory; a block of "
                                                    "this device has at most " +
                                                    std::to_string(shared_most));
    std::lock_guard<std::mutex> lock(limits_lock);
    limits.insert(limits.begin(), {kernel, std::max((size_t)value, shared_default)});
    return cudaSuccess;
}

static std::atomic<uint64_t> launch_number; /* since emu_options, so that a seed means the same order again */

/* Why a launch is impossible, or "". */
static std::string refusal(const Launch &l) {
    const dim3 g = l.shape.grid, b = l.shape.block;
    uint64_t n = (uint64_t)b.x * b.y * b.z;
    if (!options().problem.empty()) return options().problem;
    if (!g.x || !g.y || !g.z) return "an empty grid";
    if (!n) return "an empty block";
    if (n > max_threads) return std::to_string(n) + " threads in a block, at most 1024";
    if (b.z > 64) return "a block of depth " + std::to_string(b.z) + ", at most 64";
    if (g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535) return "a grid over (2147483647, 65535, 65535) blocks";
    size_t limit = shared_limit(l.kernel);
    if (l.shape.shared_bytes > limit)
        return std::to_string(l.shape.shared_bytes) + " bytes of dynamic shared memory, at most " +
               std::to_string(limit) + " (cudaFuncSetAttribute allows more)";
    return "";
}

void launch(const char *name, const void *kernel, const Shape &shape, void (*call)(const void *), const void *arguments,
            size_t bytes) {
    const unsigned char *first = static_cast<const unsigned char *>(arguments);
    Launch l{name, kernel, shape, call, {first, first + bytes}, ++launch_number};
    std::string why = refusal(l);
    if (!why.empty()) set_error(cudaErrorInvalidConfiguration, "kernel " + l.name + ": " + why);
    else submit(shape.stream, [l] { run_grid(l); });
}
} // namespace emu

/* ---- for tests ---- */

int emu_options(const char *schedule, uint64_t seed, int defer) {
    emu::Locked lock(emu::runtime_lock());
    emu::Options &o = emu::options();
    if (!emu::set_schedule(o, schedule)) return -1;
    emu::set_seed(o, seed);
    emu::launch_number = 0;
    o.defer = defer != 0;
    o.problem.clear();
    return 0;
}
void emu_workers(int workers) { emu::options().workers = workers; }
void emu_skip_barrier(const char *file_line) {
    std::string text = file_line ? file_line : "";
    size_t colon = text.rfind(':');
    bool given = colon != std::string::npos;
    emu::options().skip_file = given ? text.substr(0, colon) : "";
    emu::options().skip_line = given ? atoi(text.c_str() + colon + 1) : 0;
}
void emu_statistics(uint64_t counts[6]) {
    counts[0] = emu::launches;
    counts[1] = emu::blocks;
    counts[2] = emu::threads;
    counts[3] = emu::switches;
    counts[4] = emu::synchronisations;
    counts[5] = emu::graphs;
}
#ifndef EMU_CHECK
int emu_report(char *, size_t) { return -1; }
#endif
