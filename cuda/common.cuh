/* The common part of all layers: the entries of struct Kernels, the device, 16-byte accesses, sums over warps and blocks.
 *
 * Element   floatX is the stored element (kernels.h): float or bfloat16. All arithmetic is in float.
 * Order     Everything runs on one stream, in the order of the calls. No entry waits for the device or allocates; but cuBLASLt's
 *           product does both when it meets a shape for the first time (cublaslt_choose.cu).
 * Results   are the same bits on every run: no sum depends on which block or warp comes first. */
#pragma once
#include "ptx.cuh"
#include <type_traits>
#include "../csrc/kernels.h"

/* ---- entries: gpu_layernorm_forward and so on, held to the types of struct Kernels ---- */

#define EACH_KERNEL(X) EACH_LAYER(X) X(store)
#define GPU_DECLARE(entry) extern std::remove_pointer_t<decltype(Kernels::entry)> gpu_##entry;
EACH_KERNEL(GPU_DECLARE)

/* The bytes of ctx->workspace that each layer may use. The layers use it one after the other. */
int64_t gpu_encoder_workspace(int B, int T, int C, int Vp);
int64_t gpu_layernorm_workspace(int B, int T, int C);
int64_t gpu_matmul_workspace(int B, int T, int C, int Vp);
int64_t gpu_attention_workspace(int B, int T, int C, int NH);
int64_t gpu_adamw_workspace(void);

/* ---- the device ---- */

struct Device {
    cudaStream_t stream;
    struct Staging *staging; /* device.cu */
    struct Graphs *graphs;   /* graph.cu */
    cudaError_t failed;      /* the first error that sync must report */
    int multiprocessors;
    void *gemm; /* gemm_cublas.cu's handle; NULL without cuBLASLt */
};
static inline Device *device_of(const Context *ctx) { return (Device *)ctx->device; }
static inline cudaStream_t stream_of(const Context *ctx) { return device_of(ctx)->stream; }

constexpr int WARP = 32;
template <class A, class B> __host__ __device__ constexpr A divide_up(A a, B b) { return (A)((a + b - 1) / b); }

/* ---- elements: 16 bytes at a time where a row allows it ---- */

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
template <class T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

template <class T> struct alignas(16) Vec {
    static constexpr int n = 16 / sizeof(T);
    T v[n];
};

/* p must be 16-byte aligned. */
template <class T> __device__ __forceinline__ Vec<T> load16(const T *p) {
    const uint4 bits = *reinterpret_cast<const uint4 *>(p);
    Vec<T> x;
    memcpy(&x, &bits, 16);
    return x;
}
template <class T> __device__ __forceinline__ void store16(T *p, const Vec<T> &x) {
    uint4 bits;
    memcpy(&bits, &x, 16);
    *reinterpret_cast<uint4 *>(p) = bits;
}

/* Whether rows of C elements at p may be read 16 bytes at a time. */
template <class T> static inline bool in_vectors(const T *p, int64_t C) {
    return (uintptr_t)p % 16 == 0 && C % Vec<T>::n == 0;
}

/* ---- sums ---- */

template <class T> __device__ __forceinline__ T warp_sum(T x) { /* T: float or double */
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

/* The sum over a block, whose size is a multiple of 32; every thread gets it. part: 32 elements of shared memory, which the
 * caller must not touch until the next barrier. */
template <class T> __device__ __forceinline__ T block_sum(T x, T *part) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_sum(x);
    if (lane == 0) part[warp] = x;
    __syncthreads();
    x = warp_sum(lane < warps ? part[lane] : T(0));
    __syncthreads(); /* the next sum may use `part` again */
    return x;
}
