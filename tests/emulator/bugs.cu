/* A gallery of bugs, one for each kind that the emulator detects. Each kernel has a correct twin: bug = false. */
#include "ptx.cuh"

/* The sum of a block, through shared memory. */
template <bool bug> __global__ void missing_syncthreads(float *out, const float *in, int n) {
    __shared__ float part[64];
    part[threadIdx.x] = in[threadIdx.x];
    if (!bug) __syncthreads();
    float sum = 0;
    for (int i = 0; i < n; i++) sum += part[i];
    out[threadIdx.x] = sum;
}

/* `part` is used twice: all must have read it before it is written again. */
template <bool bug> __global__ void missing_second_syncthreads(float *out, const float *in, int n) {
    __shared__ float part[64];
    float sum = 0;
    for (int repeat = 0; repeat < 2; repeat++) {
        part[threadIdx.x] = in[threadIdx.x] + (float)repeat;
        __syncthreads();
        sum += part[n - 1 - threadIdx.x];
        if (!bug) __syncthreads();
    }
    out[threadIdx.x] = sum;
}

template <bool bug> __global__ void missing_syncwarp(float *out, const float *in, int) {
    __shared__ float row[64];
    int lane = threadIdx.x % 32, first = threadIdx.x - lane;
    row[threadIdx.x] = in[threadIdx.x];
    if (!bug) __syncwarp();
    out[threadIdx.x] = row[first + 31 - lane];
}

/* Two halves of a warp meet separately, so each half alone is in order. */
template <bool bug> __global__ void half_syncwarp(float *out, const float *in, int) {
    __shared__ float row[64];
    unsigned half = threadIdx.x % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
    row[threadIdx.x] = in[threadIdx.x];
    __syncwarp(half);
    out[threadIdx.x] = row[threadIdx.x ^ (bug ? 16 : 15)];
}

template <bool bug> __global__ void barrier_not_by_all(float *out, const float *in, int) {
    if (!bug || threadIdx.x < 40) __syncthreads();
    out[threadIdx.x] = in[threadIdx.x];
}

template <bool bug> __global__ void two_barriers_at_once(float *out, const float *in, int) {
    if (bug && threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
    out[threadIdx.x] = in[threadIdx.x];
}

template <bool bug> __global__ void shuffle_with_absent_lane(float *out, const float *in, int) {
    float v = in[threadIdx.x];
    unsigned lane = threadIdx.x % 32;
    if (bug && lane >= 24) return;
    out[threadIdx.x] = v + __shfl_xor_sync(0xffffffffu, v, 8);
}

template <bool bug> __global__ void lane_outside_its_mask(float *out, const float *in, int) {
    out[threadIdx.x] = __shfl_xor_sync(bug ? 0x0000ffffu : 0xffffffffu, in[threadIdx.x], 1);
}

template <bool bug> __global__ void two_shuffles_at_once(float *out, const float *in, int) {
    float v = in[threadIdx.x];
    out[threadIdx.x] = bug && threadIdx.x % 32 < 16 ? __shfl_down_sync(0xffffffffu, v, 1, 16)
                                                    : __shfl_xor_sync(0xffffffffu, v, 1);
}

template <bool bug> __global__ void race_between_blocks(float *out, const float *in, int) {
    if (threadIdx.x) return;
    if (bug)
        out[0] += in[blockIdx.x];
    else
        atomicAdd(out, in[blockIdx.x]);
}

/* The last block adds up the results of the others. */
template <bool bug> __global__ void missing_threadfence(float *out, const float *in, int n) {
    unsigned *arrived = reinterpret_cast<unsigned *>(out + n - 1);
    if (threadIdx.x) return;
    out[1 + blockIdx.x] = in[blockIdx.x];
    if (!bug) __threadfence();
    if (atomicAdd(arrived, 1u) + 1 < gridDim.x) return;
    float sum = 0;
    for (unsigned i = 0; i < gridDim.x; i++) sum += out[1 + i];
    out[0] = sum;
}

template <bool bug> __global__ void global_out_of_bounds(float *out, const float *in, int n) {
    out[threadIdx.x] = in[bug ? threadIdx.x + n / 64 : threadIdx.x];
}

/* Reads past one array into its neighbour. */
template <bool bug> __global__ void shared_out_of_bounds(float *out, const float *in, int n) {
    __shared__ float a[64], b[64];
    float *p = n > 1000000 ? b : a;
    b[threadIdx.x] = 0;
    p[threadIdx.x + bug] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = a[threadIdx.x] + b[threadIdx.x];
}

template <bool bug> __global__ void dynamic_shared_out_of_bounds(float *out, const float *in, int) {
    DYNAMIC_SHARED(float, tile);
    tile[threadIdx.x + bug] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x];
}

template <bool bug> __global__ void index_out_of_bounds(float *out, const float *in, int n) {
    float local[4] = {in[0], in[1], in[2], in[3]};
    int last = n / 16 - 1;
    out[threadIdx.x] = local[last + bug];
}

template <bool bug> __global__ void uninitialised_shared(float *out, const float *in, int) {
    __shared__ float tile[64];
    if (!bug || threadIdx.x != 5) tile[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x ^ 1];
}

/* `out` is fresh from cudaMalloc. */
template <bool bug> __global__ void uninitialised_global(float *out, const float *in, int) {
    out[threadIdx.x] = bug ? out[threadIdx.x] + 1 : in[threadIdx.x];
}

template <bool bug> __global__ void host_pointer(float *out, const float *in, int) { out[threadIdx.x] = in[threadIdx.x]; }

template <bool bug> __global__ void null_pointer(float *out, const float *in, int) {
    out[threadIdx.x] = bug ? *reinterpret_cast<const float *>((uintptr_t)gridDim.y - 1) : in[threadIdx.x];
}

template <bool bug> __global__ void misaligned_float4(float *out, const float *in, int) {
    float4 v = *reinterpret_cast<const float4 *>(in + (bug ? 1 : 4) * (threadIdx.x % 8));
    out[threadIdx.x] = v.x + v.w;
}

/* The kernel needs the second copy, but waits for the first. */
template <bool bug> __global__ void cp_async_wait_too_weak(float *out, const float *in, int) {
    __shared__ __align__(16) float tile[2][256];
    for (int i = 0; i < 2; i++) {
        cp_async_16(&tile[i][4 * threadIdx.x], in);
        cp_async_commit();
    }
    cp_async_wait<bug ? 1 : 0>();
    __syncthreads();
    out[threadIdx.x] = tile[1][threadIdx.x];
    cp_async_wait<0>();
}

template <bool bug> __global__ void cp_async_without_barrier(float *out, const float *in, int) {
    __shared__ __align__(16) float tile[256];
    cp_async_16(&tile[4 * threadIdx.x], in);
    cp_async_commit();
    cp_async_wait<0>();
    if (!bug) __syncthreads();
    out[threadIdx.x] = tile[4 * threadIdx.x ^ 4];
}

template <bool bug> __global__ void cp_async_never_waited_for(float *out, const float *in, int) {
    __shared__ __align__(16) float tile[256];
    cp_async_16(&tile[4 * threadIdx.x], in);
    cp_async_commit();
    if (!bug) cp_async_wait<0>();
    out[threadIdx.x] = in[threadIdx.x];
}

template <bool bug> __global__ void cp_async_misaligned(float *out, const float *in, int) {
    __shared__ __align__(16) float tile[256];
    cp_async_16(&tile[4 * threadIdx.x], in + bug);
    cp_async_wait<0>();
    cp_async_commit();
    cp_async_wait<0>();
    out[threadIdx.x] = in[threadIdx.x];
}

template <bool bug> __global__ void ldmatrix_misaligned(float *out, const float *in, int) {
    __shared__ __align__(16) float tile[64 * 4 + 4];
    for (int i = 0; i < 5; i++)
        if (64 * i + threadIdx.x < 260) tile[64 * i + threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    uint32_t r[4];
    ldmatrix_x4(r, tile + 4 * threadIdx.x + bug);
    out[threadIdx.x] = in[threadIdx.x] + (float)(r[0] & 0);
}

template <bool bug> __global__ void mma_without_all_lanes(float *out, const float *in, int) {
    out[threadIdx.x] = in[threadIdx.x];
    if (bug && threadIdx.x % 32 == 7) return;
    uint32_t a[4] = {}, b[2] = {};
    float d[4] = {};
    mma_bf16_16816(d, a, b);
    out[threadIdx.x] += d[0];
}

template <bool bug> __global__ void launched_too_large(float *out, const float *in, int n) {
    if ((int)threadIdx.x < n) out[threadIdx.x] = in[threadIdx.x];
}

template <bool bug> __global__ void too_much_shared_memory(float *out, const float *in, int) {
    DYNAMIC_SHARED(float, tile);
    tile[threadIdx.x] = in[threadIdx.x];
    out[threadIdx.x] = tile[threadIdx.x];
}

/* blocks, threads, dynamic shared memory of the right and of the wrong launch */
#define GALLERY(X)                                                                    \
    X(missing_syncthreads, 1, 64, 0)                                                  \
    X(missing_second_syncthreads, 1, 64, 0)                                           \
    X(missing_syncwarp, 1, 64, 0)                                                     \
    X(half_syncwarp, 1, 64, 0)                                                        \
    X(barrier_not_by_all, 1, 64, 0)                                                   \
    X(two_barriers_at_once, 1, 64, 0)                                                 \
    X(shuffle_with_absent_lane, 1, 64, 0)                                             \
    X(lane_outside_its_mask, 1, 64, 0)                                                \
    X(two_shuffles_at_once, 1, 64, 0)                                                 \
    X(race_between_blocks, 8, 64, 0)                                                  \
    X(missing_threadfence, 8, 64, 0)                                                  \
    X(global_out_of_bounds, 1, 64, 0)                                                 \
    X(shared_out_of_bounds, 1, 64, 0)                                                 \
    X(dynamic_shared_out_of_bounds, 1, 64, 256)                                       \
    X(index_out_of_bounds, 1, 64, 0)                                                  \
    X(uninitialised_shared, 1, 64, 0)                                                 \
    X(uninitialised_global, 1, 64, 0)                                                 \
    X(host_pointer, 1, 64, 0)                                                         \
    X(null_pointer, 1, 64, 0)                                                         \
    X(misaligned_float4, 1, 64, 0)                                                    \
    X(cp_async_wait_too_weak, 1, 64, 0)                                               \
    X(cp_async_without_barrier, 1, 64, 0)                                             \
    X(cp_async_never_waited_for, 1, 64, 0)                                            \
    X(cp_async_misaligned, 1, 64, 0)                                                  \
    X(ldmatrix_misaligned, 1, 64, 0)                                                  \
    X(mma_without_all_lanes, 1, 64, 0)                                                \
    X(launched_too_large, 1, bug ? 2048 : 64, 0)                                      \
    X(too_much_shared_memory, 1, 64, bug ? 50000 : 256)

#define LAUNCHER(name, blocks, threads, bytes)                                                \
    extern "C" __attribute__((visibility("default"))) int name(int bug, float *out, const float *in, int n) { \
        if (bug)                                                                              \
            LAUNCH(name<true>, blocks, threads, bytes, 0)(out, in, n);                        \
        else                                                                                  \
            LAUNCH(name<false>, blocks, threads, bytes, 0)(out, in, n);                       \
        return cudaGetLastError();                                                            \
    }
GALLERY(LAUNCHER)
