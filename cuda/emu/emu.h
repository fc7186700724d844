/* CUDA C++ on the CPU: the names that a kernel uses. The CUDA threads of a block run on one CPU thread; each runs until it
 * must wait for the others, in the order of emu_block.cpp. The blocks of a grid run on several CPU threads. An emulation
 * cannot show speed, real streams, or how a tensor core rounds its sums. */
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include "emu_vector.h"

#define __host__
#define __device__
#define __global__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __restrict__ __restrict
/* A block stays on one CPU thread, so its shared variables are thread-local; emu_symbols.cpp finds them by their type. */
#define __shared__ static thread_local
#define DYNAMIC_SHARED(type, name) type *name = static_cast<type *>(::emu::dynamic_shared())
#define LAUNCH(kernel, grid, block, smem_bytes, stream) \
    ::emu::launcher(#kernel, kernel, grid, block, smem_bytes, stream)

typedef struct CUstream_st *cudaStream_t;

extern __thread uint3 threadIdx, blockIdx;
extern __thread dim3 blockDim, gridDim;
static constexpr int warpSize = 32;

namespace emu {
/* A line of a kernel's source. As the default of a function's last argument it is the line of the call. */
struct Place {
    const char *file;
    int line;
};
#define EMU_AT ::emu::Place at = {__builtin_FILE(), __builtin_LINE()}

void *dynamic_shared(EMU_AT);
/* Ends the kernel with cudaErrorLaunchFailure. Its text begins with the running thread and its place. */
[[noreturn]] void fault(Place at, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- waiting for others ---- */

struct Votes { /* the votes of the threads that met at a barrier */
    int count, all;
};
Votes barrier(bool vote, const char *name, Place at);

/* The values that the lanes of a warp brought to a collective operation. */
struct Meeting {
    static constexpr unsigned slot_bytes = 64;
    unsigned char (*slots)[slot_bytes];
    unsigned present; /* the lanes that brought something */
    unsigned lane;    /* the lane that asks */
};
/* Runs once per meeting, by the lane that came last: may replace what is in the slots. */
typedef void (*Combine)(Meeting &);
/* Waits for every lane of mask that has not returned. Valid until this lane's next meeting. */
Meeting meet(unsigned mask, const char *name, const void *brought, unsigned bytes, Place at, Combine combine = nullptr);
unsigned lane_id();
void absent(const char *name, unsigned lane, Place at);

/* ---- launching ---- */

struct Shape {
    dim3 grid, block;
    size_t shared_bytes;
    cudaStream_t stream;
};
/* Launches a kernel. call(arguments) runs one thread of it; the arguments are copied. */
void launch(const char *name, const void *kernel, const Shape &shape, void (*call)(const void *), const void *arguments,
            size_t bytes);

template <class... P> struct Launcher {
    const char *name;
    void (*kernel)(P...);
    Shape shape;
    struct Call {
        void (*kernel)(P...);
        std::tuple<std::decay_t<P>...> arguments;
    };
    static void call(const void *memory) {
        const Call *c = static_cast<const Call *>(memory);
        std::apply(c->kernel, c->arguments);
    }
    void operator()(P... arguments) const {
        static_assert((std::is_trivially_copyable_v<std::decay_t<P>> && ...), "a launch copies its arguments as bytes");
        static_assert(sizeof(Call) <= 4096, "kernel arguments over 4 KB");
        Call c{kernel, {arguments...}};
        launch(name, reinterpret_cast<const void *>(kernel), shape, call, &c, sizeof c);
    }
};
template <class... P>
Launcher<P...> launcher(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t smem, cudaStream_t s) {
    return {name, kernel, {grid, block, smem, s}};
}

/* ---- the checked build (emu_check.cpp); without it these do nothing ---- */

enum class Access { read, write, atomic };
void note_access(const void *address, unsigned bytes, Access kind, const void *return_address);
#ifdef EMU_CHECK
#define EMU_NOTE(address, bytes, kind) \
    ::emu::note_access(address, bytes, ::emu::Access::kind, __builtin_return_address(0))
/* For a function that reports its accesses itself, as those of its caller. */
#define EMU_UNSEEN __attribute__((noinline, no_sanitize("thread")))
#else
#define EMU_NOTE(address, bytes, kind) ((void)0)
#define EMU_UNSEEN
#endif
} // namespace emu

/* ---- what the emulator offers to tests, exported from the library ---- */
#pragma GCC visibility push(default)
extern "C" {
/* The order in which threads and blocks run: "in_order", "reversed" or "random" (by seed). defer: work waits in its
 * stream until a synchronisation, in a random order between streams. 0, or -1 for an unknown schedule. */
int emu_options(const char *schedule, uint64_t seed, int defer);
/* The number of CPU threads that share the blocks of a grid; 0: one per core. */
void emu_workers(int workers);
/* "file.cu:12": the __syncthreads there does nothing (is every one needed?); NULL or "": all do */
void emu_skip_barrier(const char *file_line);
/* The number of errors that the checked build found since the last call, with a line each in text. -1: no checked build. */
int emu_report(char *text, size_t size);
/* The counts so far: launches, blocks, threads, switches, how often the host waited for the device, and started graphs. */
void emu_statistics(uint64_t counts[6]);
}
#pragma GCC visibility pop
