/* D = A B + C by the tensor core, or by its emulation, one warp a case. The results are kept bit for bit. */
#include "ptx.cuh"
#define EXPORT extern "C" __attribute__((visibility("default")))

/* in: per case and lane a[4], b[2], d[4] (ptx.cuh); out: d[4] */
__global__ void mma_kernel(uint32_t *out, const uint32_t *in) {
    const unsigned lane = blockIdx.x * blockDim.x + threadIdx.x;
    const uint32_t *mine = in + 10 * (size_t)lane;
    uint32_t a[4], b[2];
    float d[4];
    for (int i = 0; i < 4; i++) a[i] = mine[i];
    for (int i = 0; i < 2; i++) b[i] = mine[4 + i];
    for (int i = 0; i < 4; i++) d[i] = __uint_as_float(mine[6 + i]);
    mma_bf16_16816(d, a, b);
    for (int i = 0; i < 4; i++) out[4 * (size_t)lane + i] = __float_as_uint(d[i]);
}

/* Computes `cases` cases: out (cases,32,4), in (cases,32,10), both on the host. Returns CUDA's error, 0 for none. */
EXPORT int mma_cases(uint32_t *out, const uint32_t *in, int cases) {
    const size_t lanes = 32 * (size_t)cases;
    uint32_t *from = NULL, *to = NULL;
    int error = cudaMalloc(&from, 40 * lanes);
    if (!error) error = cudaMalloc(&to, 16 * lanes);
    if (!error) error = cudaMemcpy(from, in, 40 * lanes, cudaMemcpyHostToDevice);
    if (!error) LAUNCH(mma_kernel, cases, 32, 0, 0)(to, from);
    if (!error) error = cudaGetLastError();
    if (!error) error = cudaMemcpy(out, to, 16 * lanes, cudaMemcpyDeviceToHost);
    cudaFree(from);
    cudaFree(to);
    return error;
}
