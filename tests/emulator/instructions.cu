/* One warp, one instruction of cuda/ptx.cuh: its inputs and outputs, lane by lane. */
#include "ptx.cuh"
#define EXPORT extern "C" __attribute__((visibility("default")))

/* in: per lane a[4], b[2], d[4]; out: d[4] */
template <void (*multiply)(float *, const uint32_t *, const uint32_t *)>
__global__ void mma_kernel(float *out, const uint32_t *in) {
    uint32_t a[4], b[2];
    float d[4];
    const uint32_t *mine = in + 10 * threadIdx.x;
    for (int i = 0; i < 4; i++) a[i] = mine[i];
    for (int i = 0; i < 2; i++) b[i] = mine[4 + i];
    for (int i = 0; i < 4; i++) d[i] = __uint_as_float(mine[6 + i]);
    multiply(d, a, b);
    for (int i = 0; i < 4; i++) out[4 * threadIdx.x + i] = d[i];
}
__device__ void bf16(float *d, const uint32_t *a, const uint32_t *b) { mma_bf16_16816(d, a, b); }
__device__ void f16(float *d, const uint32_t *a, const uint32_t *b) { mma_f16_16816(d, a, b); }
__device__ void tf32(float *d, const uint32_t *a, const uint32_t *b) { mma_tf32_1688(d, a, b); }

EXPORT int mma(float *out, const uint32_t *in, int kind) {
    if (kind == 0) LAUNCH(mma_kernel<bf16>, 1, 32, 0, 0)(out, in);
    if (kind == 1) LAUNCH(mma_kernel<f16>, 1, 32, 0, 0)(out, in);
    if (kind == 2) LAUNCH(mma_kernel<tf32>, 1, 32, 0, 0)(out, in);
    return cudaGetLastError();
}

/* in: 4 matrices of 8 x 8, 2 bytes each; out: per lane 4 registers */
__global__ void ldmatrix_kernel(uint32_t *out, const uint4 *in, int matrices, int trans) {
    __shared__ uint4 rows[32];
    rows[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    uint32_t r[4] = {};
    const uint4 *row = &rows[threadIdx.x];
    if (matrices == 4 && trans)
        ldmatrix_x4_trans(r, row);
    else if (matrices == 4)
        ldmatrix_x4(r, row);
    else if (matrices == 2 && trans)
        ldmatrix_x2_trans(r, row);
    else if (matrices == 2)
        ldmatrix_x2(r, row);
    else
        ldmatrix_x1(r, row);
    for (int i = 0; i < 4; i++) out[4 * threadIdx.x + i] = r[i];
}
EXPORT int ldmatrix(uint32_t *out, const uint4 *in, int matrices, int trans) {
    LAUNCH(ldmatrix_kernel, 1, 32, 0, 0)(out, in, matrices, trans);
    return cudaGetLastError();
}

/* out: 64 bytes a thread, the shared memory after copies of 16, 8 and 4 bytes of which `bytes` are read */
__global__ void cp_async_kernel(unsigned char *out, const unsigned char *in, int bytes, int groups) {
    __shared__ __align__(16) unsigned char tile[32][64];
    unsigned char *mine = tile[threadIdx.x];
    const unsigned char *from = in + 64 * threadIdx.x;
    for (int i = 0; i < 64; i++) mine[i] = 7;
    cp_async_16(mine, from, bytes);
    cp_async_commit();
    cp_async_8(mine + 16, from + 16, bytes < 8 ? bytes : 8);
    cp_async_commit();
    cp_async_4(mine + 24, from + 24, bytes < 4 ? bytes : 4);
    cp_async_16(mine + 32, from + 32);
    cp_async_commit();
    if (groups == 3) cp_async_wait<0>();
    if (groups == 2) cp_async_wait<1>();
    if (groups == 1) cp_async_wait<2>();
    int arrived = groups == 3 ? 64 : groups == 2 ? 24 : 16;
    for (int i = 0; i < arrived; i++) out[64 * threadIdx.x + i] = mine[i];
    cp_async_wait<0>();
}
EXPORT int copy_async(unsigned char *out, const unsigned char *in, int bytes, int groups) {
    LAUNCH(cp_async_kernel, 1, 32, 0, 0)(out, in, bytes, groups);
    return cudaGetLastError();
}

__global__ void conversions_kernel(uint32_t *out, const float *in) {
    float x = in[threadIdx.x];
    uint32_t *mine = out + 4 * threadIdx.x;
    mine[0] = to_tf32(x);
    mine[1] = __bfloat16_as_ushort(__float2bfloat16(x));
    mine[2] = __half_as_ushort(__float2half(x));
    mine[3] = __float_as_uint(exp2_approx(x));
}
__global__ void back_kernel(float *out, const uint16_t *in) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    out[2 * i] = __bfloat162float(__ushort_as_bfloat16(in[i]));
    out[2 * i + 1] = __half2float(__ushort_as_half(in[i]));
}
EXPORT int conversions(uint32_t *out, const float *in, int n) {
    LAUNCH(conversions_kernel, 1, n, 0, 0)(out, in);
    return cudaGetLastError();
}
EXPORT int conversions_back(float *out, const uint16_t *in, int n) {
    LAUNCH(back_kernel, n / 256, 256, 0, 0)(out, in);
    return cudaGetLastError();
}

/* per lane: shuffles, votes, reductions */
__global__ void warp_kernel(int *out, const int *in) {
    int v = in[threadIdx.x], *mine = out + 16 * threadIdx.x;
    unsigned all = 0xffffffffu;
    mine[0] = __shfl_sync(all, v, 5);
    mine[1] = __shfl_sync(all, v, 3, 8);
    mine[2] = __shfl_xor_sync(all, v, 16);
    mine[3] = __shfl_xor_sync(all, v, 3, 8);
    mine[4] = __shfl_down_sync(all, v, 2);
    mine[5] = __shfl_down_sync(all, v, 3, 8);
    mine[6] = __shfl_up_sync(all, v, 1);
    mine[7] = __shfl_up_sync(all, v, 5, 16);
    mine[8] = (int)__ballot_sync(all, v > 0);
    mine[9] = __any_sync(all, v == in[31]) + 2 * __all_sync(all, v == in[31]);
    mine[10] = __reduce_add_sync(all, v);
    mine[11] = __reduce_max_sync(all, v);
    mine[12] = (int)__shfl_xor_sync(all, (float)v, 1);
    mine[13] = __syncthreads_count(v > 0);
    mine[14] = __syncthreads_or(v == in[31]) + 2 * __syncthreads_and(v == in[31]);
    mine[15] = __shfl_xor_sync(threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u, v, 1);
}
EXPORT int warp(int *out, const int *in) {
    LAUNCH(warp_kernel, 1, 32, 0, 0)(out, in);
    return cudaGetLastError();
}

/* Every thread of every block updates the same few numbers; all sums are exact. */
struct Counters {
    float f;
    int i, most, least;
    unsigned u, bits, wrapped;
    unsigned long long l;
    __nv_bfloat162 b;
    __half2 h;
};
__global__ void atomic_kernel(Counters *c) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    atomicAdd(&c->f, 1.0f);
    atomicAdd(&c->i, i);
    atomicMax(&c->most, i);
    atomicMin(&c->least, -i);
    atomicAdd(&c->u, 2u);
    atomicOr(&c->bits, 1u << i % 32);
    atomicInc(&c->wrapped, 99u);
    atomicAdd(&c->l, 1ull << 33);
    if (i < 100) atomicAdd(&c->b, __floats2bfloat162_rn(1.f, 2.f));
    if (i < 100) atomicAdd(&c->h, __floats2half2_rn(1.f, 2.f));
}
EXPORT int atomics(Counters *c, int blocks) {
    LAUNCH(atomic_kernel, blocks, 64, 0, 0)(c);
    return cudaGetLastError();
}

/* The blocks and threads that ran, numbered in the order of their start. */
__global__ void order_kernel(int *out) {
    int at = atomicAdd(&out[0], 1);
    out[1 + at] = (int)(blockIdx.x * blockDim.x + threadIdx.x);
}
EXPORT int order(int *out, int blocks, int threads) {
    LAUNCH(order_kernel, blocks, threads, 0, 0)(out);
    return cudaGetLastError();
}

/* The coordinates of a thread in a launch of three dimensions. */
__global__ void index_kernel(int *out) {
    int block = (int)((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x);
    int thread = (int)((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x);
    int size = (int)(blockDim.x * blockDim.y * blockDim.z);
    int lane = __shfl_sync(0xffffffffu, thread % 32, thread % 32);
    out[block * size + thread] = (int)(threadIdx.x + 10 * threadIdx.y + 100 * threadIdx.z + 1000 * blockIdx.x +
                                       10000 * blockIdx.y + 100000 * blockIdx.z) +
                                 (lane - thread % 32);
}
EXPORT int indices(int *out) {
    LAUNCH(index_kernel, dim3(2, 3, 4), dim3(4, 2, 5), 0, 0)(out);
    return cudaGetLastError();
}
