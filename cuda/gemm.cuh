/* Matrix products: C(M,N) = A(M,K) B(K,N), behind one interface.
 *
 *   gemm_cublas.cu   NVIDIA's library, if the machine has it
 *   gemm_mma.cu      tensor cores, by hand: bfloat16 whose rows can be read 16 bytes at a time
 *   gemm_plain.cu    any shape and type, in fp32 arithmetic
 *
 * They are tried in this order; the first that accepts a product computes it. */
#pragma once
#include "common.cuh"

struct Operand {
    const floatX *at;
    int64_t ld;
    bool transposed; /* element (i,j) is at[i*ld + j], or at[j*ld + i] if transposed */
};

struct Gemm {
    int64_t M, N, K;
    Operand a, b;
    floatX *c = nullptr;           /* (M,N) = the product, or NULL */
    float *sum = nullptr;          /* (M,N) = the product in float, or NULL */
    bool accumulate = false;       /* sum += it */
    const floatX *bias = nullptr;  /* (N), added to every row of C, or NULL */
    floatX *gelu = nullptr;        /* (M,N) = gelu(C), or NULL */
    const floatX *slope = nullptr; /* (M,N): C is multiplied by gelu'(slope), or NULL */
    float *row_sums = nullptr;     /* (M) = sums of A's rows, or NULL; gemm_cublas sets NULL if it left them out */
};

void gemm_cublas_open(Context *ctx);
void gemm_cublas_close(Device *d);
bool gemm_cublas(Context *ctx, Gemm *g);
bool gemm_mma(Context *ctx, const Gemm *g);
bool gemm_plain(Context *ctx, const Gemm *g);

#include "gelu.cuh"

/* Finishes one element of the product. gelu takes C as it is stored, so that a later gelu_forward gives the same bits. */
__device__ __forceinline__ void finish(const Gemm &g, int64_t m, int64_t n, float x) {
    const int64_t at = m * g.N + n;
    if (g.sum) {
        g.sum[at] = g.accumulate ? g.sum[at] + x : x;
        return;
    }
    if (g.bias) x += to_float(g.bias[n]);
    if (g.slope) x *= gelu_slope(to_float(g.slope[at]));
    const floatX stored = from_float<floatX>(x);
    g.c[at] = stored;
    if (g.gelu) g.gelu[at] = from_float<floatX>(gelu(to_float(stored)));
}
