/* The matrix product of few rows: every row of B^T is read once, where it lies. */
#include "gemm_tile.h"

/* DOT_ROWS x 4 sums of a vector each fill the registers */
enum { DOT_ROWS = VREGS == 32 ? 4 : 2 };

INLINE void dot_step(vf acc[][8], const float *const a[], const float *const b[], const int rows, const int cols,
                     int64_t k, int lanes) {
    vf x[DOT_ROWS];
    UNROLL for (int i = 0; i < rows; i++) x[i] = vf_load_n(a[i] + k, lanes);
    UNROLL for (int j = 0; j < cols; j++) {
        const vf y = vf_load_n(b[j] + k, lanes);
        UNROLL for (int i = 0; i < rows; i++) acc[i][j] += x[i] * y;
    }
}

/* sums[i][at + j] = the products of a[i] and b[j], rows of A and of B^T, lane by lane */
INLINE void dot(int64_t K, const float *const a[], const float *const b[], const int rows, const int cols,
                vf sums[][VL], int at) {
    vf acc[DOT_ROWS][8];
    int64_t k = 0;
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < cols; j++) acc[i][j] = (vf){0};
    for (; k + VL <= K; k += VL) dot_step(acc, a, b, rows, cols, k, VL);
    if (k < K) dot_step(acc, a, b, rows, cols, k, (int)(K - k));
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < cols; j++) sums[i][at + j] = acc[i][j];
}

/* lane j = the sum of r[j]: a transposition in which what meets is added at once */
INLINE vf sums_of(vf r[VL]) {
#define ADD_HALVES(s)             \
    for (int i = 0; i < (s); i++) \
        r[i] = VF_SHUFFLE(r[i], r[i + (s)], LANE_UPPER, s) + VF_SHUFFLE(r[i], r[i + (s)], LANE_LOWER, s);
#if VL >= 16
    ADD_HALVES(8)
#endif
#if VL >= 8
    ADD_HALVES(4)
#endif
    ADD_HALVES(2)
    ADD_HALVES(1)
    return r[0];
}

/* C's columns n..n+VL */
INLINE void dots_strip(const Gemm *g, int64_t n, const int rows, const int cols) {
    const int lanes = LANES(n, g->N);
    const float *b[VL], *a[DOT_ROWS];
    for (int j = 0; j < VL; j++) b[j] = g->b.at + (n + (j < lanes ? j : lanes - 1)) * g->b.ld;
    for (int64_t m = 0; m < g->M; m += rows) {
        vf sums[DOT_ROWS][VL];
        for (int i = 0; i < rows; i++) a[i] = g->a.at + smaller(m + i, g->M - 1) * g->a.ld;
        for (int j = 0; j < VL; j += cols) dot(g->K, a, b + j, rows, cols, sums, j);
        for (int i = 0; i < rows && m + i < g->M; i++) {
            put(g, m + i, n, lanes, sums_of(sums[i]), g->accumulate, 1);
            if (g->gelu || g->slope) K(gemm_finish)(g, m + i, n, 1, lanes);
        }
    }
}
APART void strip_of_one(const Gemm *g, int64_t n) { dots_strip(g, n, 1, VL < 8 ? VL : 8); }
APART void strip_of_more(const Gemm *g, int64_t n) { dots_strip(g, n, DOT_ROWS, 4); }

void K(gemm_dots)(const Gemm *g, int threads) {
    (void)threads; /* unused without OpenMP */
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t n = 0; n < g->N; n += VL) (g->M == 1 ? strip_of_one : strip_of_more)(g, n);
}
