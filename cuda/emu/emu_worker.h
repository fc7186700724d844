/* Inside the emulator: a CPU thread that runs blocks (a worker), its CUDA threads, and the data that all workers share. */
#pragma once
#include <atomic>
#include <functional>
#include <mutex>
#include <string>
#include <vector>
#include "cuda_runtime.h"
#include "emu_ptx.h"

namespace emu {

/* ---- fibers: a stack each, switched by hand (emu_fiber.cpp) ---- */

struct Fiber {
    void *stack_pointer = nullptr;
    char *stack = nullptr; /* stack_bytes long; the host's own fiber has none here */
};
constexpr size_t stack_bytes = 128 << 10;
/* Makes a fiber that begins in entry, or returns nullptr. number spreads the stacks over the cache. */
Fiber *new_fiber(void (*entry)(), unsigned number);
/* Makes a fiber begin in entry again, whatever it was doing. */
void restart_fiber(Fiber *fiber, void (*entry)(), unsigned number);
void switch_fiber(Fiber *from, Fiber *to);

/* ---- one block ---- */

constexpr unsigned max_threads = 1024, warp_size = 32, all_lanes = 0xffffffffu;

struct Copy { /* a copy of cp.async that is on its way */
    void *to;
    const void *from;
    int size, bytes, group;
    Place at;
};
struct Thread { /* a CUDA thread */
    uint3 index;
    unsigned number, lane, warp;
    Fiber *fiber = nullptr; /* where it waits; null before it starts */
    bool returned = false;
    const char *waits_in = nullptr;
    Place waits_at{};
    std::vector<Copy> copies;
    int copy_group = 0;
};

struct Group { /* the lanes of a warp that one mask names */
    unsigned mask, arrived, turn;
    const char *name;
    Place at;
    unsigned waiting_count;
    Thread *waiting[warp_size];
    /* Two turns, because a fast lane may bring its next value before a slow one has read this one. */
    unsigned present[2];
    alignas(64) unsigned char slots[2][warp_size][Meeting::slot_bytes];
};
struct Warp {
    unsigned exists, returned, used; /* used: how many of groups */
    std::vector<Group *> groups;     /* kept from block to block */
};

struct Barrier {
    unsigned arrived, turn;
    const char *name;
    Place at;
    Thread *waiting[max_threads];
    Votes votes[2];
};

enum class Schedule { in_order, reversed, random };

struct Random { /* xorshift */
    uint64_t state;
    void seed(uint64_t a, uint64_t b, uint64_t c);
    uint32_t next();
    unsigned below(unsigned n) { return next() % n; }
};

struct Launch {
    std::string name;
    const void *kernel;
    Shape shape;
    void (*call)(const void *);
    std::vector<unsigned char> arguments;
    uint64_t number; /* counts launches */
    unsigned threads() const { return shape.block.x * shape.block.y * shape.block.z; }
    uint64_t blocks() const { return (uint64_t)shape.grid.x * shape.grid.y * shape.grid.z; }
};

struct Ready { /* the threads that can run, in a ring */
    Thread *threads[2 * max_threads];
    unsigned first = 0, end = 0;
    void push(Thread *t) { threads[end++ % (2 * max_threads)] = t; }
    Thread *&at(unsigned i) { return threads[i % (2 * max_threads)]; }
    unsigned count() const { return end - first; }
};

struct Worker {
    const Launch *launch = nullptr;
    uint64_t block = 0; /* its number in the grid */
    Thread *self = nullptr;
    Fiber host, *current = &host;
    Thread *handed = nullptr; /* the thread that a fiber starts with */
    std::vector<Fiber *> free_fibers, fibers;
    unsigned returned = 0, newest_first = 0;
    bool faulted = false;
    Schedule schedule = Schedule::in_order;
    Ready ready;
    Barrier barrier;
    Random random;
    unsigned char *dynamic = nullptr;
    char *static_shared = nullptr; /* this CPU thread's copy of the library's thread-local memory */
    uint64_t switches = 0;
    Thread threads[max_threads];
    Warp warps[max_threads / warp_size];
};
/* This CPU thread's worker; null until it runs a block. */
extern __thread Worker *worker;
Worker &this_worker();
/* Runs a block; false after a fault. */
bool run_block(Worker &w, const Launch &launch, uint64_t block);

/* ---- shared by all workers ---- */

struct Options {
    Schedule schedule = Schedule::in_order;
    uint64_t seed = 1;
    Random streams{1}; /* chooses the next stream */
    bool defer = false, protect = false;
    int workers = 0;
    std::string skip_file;
    int skip_line = 0;
    std::string problem; /* a setting that makes no sense */
};
Options &options(); /* the environment's at first */

void run_grid(const Launch &launch);
void count_block(Worker &w, unsigned threads);
extern std::atomic<uint64_t> synchronisations; /* times the host waited for the device */
extern std::atomic<uint64_t> graphs;           /* those that were started */

/* The largest dynamic shared memory, without a request for more and with one. */
constexpr size_t shared_default = 48 << 10, shared_most = 227 << 10;

/* Sets an error. A fault is sticky, others are reported once; detail is added to CUDA's text. */
cudaError_t set_error(cudaError_t error, const std::string &detail);
cudaError_t sticky_error();
void forget_errors();
std::string location(Place at);
std::string who_runs(const Worker &w);

/* The place of static __shared__ variables, relative to the thread-local memory of a CPU thread. */
struct Range {
    size_t begin, end;
};
const std::vector<Range> &shared_variables();
char *thread_local_memory();

/* Work goes to a stream: run now, or later if streams are deferred, or into a graph that is being captured. */
typedef std::function<void()> Work;
cudaError_t submit(cudaStream_t stream, Work work);
/* Holds the runtime for one host thread at a time. */
std::recursive_mutex &runtime_lock();
typedef std::lock_guard<std::recursive_mutex> Locked;
void finish_stream(cudaStream_t stream);
void finish_all();
bool is_capturing(cudaStream_t stream);
/* cudaErrorStreamCaptureUnsupported during a capture, because calls that wait for the device cannot be captured. */
cudaError_t forbidden_in_capture(const char *function);

bool is_shared(const Worker &w, const void *p, size_t bytes);
bool is_device(const void *p, size_t bytes);
bool is_pinned(const void *p, size_t bytes);

/* Device memory is open to the CPU while one of these lives; see emu_memory.cpp. */
struct OpenMemory {
    OpenMemory();
    ~OpenMemory();
};

} // namespace emu
