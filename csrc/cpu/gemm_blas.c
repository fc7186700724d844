/* The matrix product by a BLAS library, for CPUs whose vectors simd.h does not know: make BLAS=openblas, or any other
 * library with cblas_sgemm. The library decides in which order a sum is added up, so results may depend on its threads. */
#if defined(BLAS_SGEMM) && defined(FLOATX_FP32)
#include <limits.h>
#include "gemm_block.h"
#include "threads.h"

enum { ROW_MAJOR = 101, AS_IT_IS = 111, TRANSPOSED = 112 }; /* the constants of cblas.h */
void BLAS_SGEMM(int order, int trans_a, int trans_b, int M, int N, int K, float alpha, const float *a, int lda,
                const float *b, int ldb, float beta, float *c, int ldc);
void openblas_set_num_threads(int threads) __attribute__((weak));

static void add_bias(float *c, const float *bias, int64_t N) {
    for (int64_t n = 0; n < N; n += VL) {
        const int lanes = LANES(n, N);
        vf_store_n(c + n, vf_load_n(c + n, lanes) + vf_load_n(bias + n, lanes), lanes);
    }
}

static void finish_rows(const void *given, Part rows) {
    const Gemm *g = given;
    for (int64_t m = rows.from; m < rows.to; m++) {
        if (g->bias) add_bias((float *)g->c + m * g->N, g->bias, g->N);
        finish(g, m, 0, 1, (int)g->N);
    }
}

int K(gemm_blas)(Context *ctx, const Gemm *g) {
    const int fits = g->M <= INT_MAX && g->N <= INT_MAX && g->K <= INT_MAX;
    if (!fits || g->b.format != LLMC_FP32) return 0;
    if (openblas_set_num_threads) openblas_set_num_threads(ctx->threads);
    BLAS_SGEMM(ROW_MAJOR, g->a.transposed ? TRANSPOSED : AS_IT_IS, g->b.transposed ? TRANSPOSED : AS_IT_IS, (int)g->M,
               (int)g->N, (int)g->K, 1, g->a.at, (int)g->a.ld, g->b.at, (int)g->b.ld, g->accumulate ? 1 : 0, g->c,
               (int)g->N);
    if (!g->bias && !g->gelu && !g->slope) return 1;
    parallel_static(threads_among(ctx, g->M, g->M * g->N), g->M, finish_rows, g);
    return 1;
}
#endif
