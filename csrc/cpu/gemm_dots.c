/* The matrix product of few rows: every row of B^T is read once, where it lies. */
#include "gemm_tile.h"
#include "weights.h"

/* DOT_ROWS x 4 sums of a vector each fill the registers */
enum { DOT_ROWS = VREGS == 32 ? 4 : 2 };

enum { ROUNDED = 4 }; /* joins the format of B's rows where products are those of bf16 operands */

/* VL numbers of a row, or 2 VL in pairs */
INLINE vf dot_operand(const void *row, int64_t k, int64_t K, const int how) {
    if (how & ROUNDED) return (vf)weight_pairs(row, k, K, how & ~ROUNDED);
    return weights_at(row, k, LANES(k, K), how);
}

INLINE void dot_step(vf acc[][8], const void *const a[], const void *const b[], const int rows, const int cols,
                     int64_t k, int64_t K, int64_t ahead, const int how) {
    vf x[DOT_ROWS];
    if (ahead) /* ask the second cache for rows that come later: memory's speed is what counts */
        UNROLL for (int j = 0; j < cols; j++)
            __builtin_prefetch((const char *)b[j] + ahead + k * number_bytes(how & ~ROUNDED), 0, 2);
    UNROLL for (int i = 0; i < rows; i++) x[i] =
        dot_operand(a[i], k, K, how & ROUNDED ? LLMC_BF16 + ROUNDED : LLMC_FP32);
    UNROLL for (int j = 0; j < cols; j++) {
        const vf y = dot_operand(b[j], k, K, how);
        UNROLL for (int i = 0; i < rows; i++) acc[i][j] = multiply_add(acc[i][j], x[i], y, how & ROUNDED);
    }
}

/* sums[i][at + j] = the products of a[i] and b[j], rows of A and of B^T, lane by lane */
INLINE void dot(int64_t K, const void *const a[], const void *const b[], const int rows, const int cols, int64_t ahead,
                const int how, vf sums[][VL], int at) {
    const int step = how & ROUNDED ? 2 * VL : VL;
    vf acc[DOT_ROWS][8];
    int64_t k = 0;
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < cols; j++) acc[i][j] = (vf){0};
    for (; k + step <= K; k += step) dot_step(acc, a, b, rows, cols, k, k + step, ahead, how);
    if (k < K) dot_step(acc, a, b, rows, cols, k, K, ahead, how);
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
INLINE void dots_strip(const Gemm *g, int64_t n, const int rows, const int cols, const int how) {
    const int lanes = LANES(n, g->N), format = how & ~ROUNDED;
    const void *b[VL];
    const void *a[DOT_ROWS];
    const int64_t groups =
        how & ROUNDED ? (g->M + rows - 1) / rows : 1; /* slower products have time for it in the first */
    vf scale;
    for (int j = 0; j < VL; j++) {
        b[j] = weight_row(g->b.at, format, g->b.ld, n + (j < lanes ? j : lanes - 1));
        scale[j] = weight_scale(b[j], format);
    }
    for (int64_t m = 0; m < g->M; m += rows) {
        vf sums[DOT_ROWS][VL];
        for (int i = 0; i < rows; i++)
            a[i] = weight_row(g->a.at, how & ROUNDED ? LLMC_BF16 : LLMC_FP32, g->a.ld, smaller(m + i, g->M - 1));
        for (int j = 0; j < VL; j += cols) {
            const int asks = j / cols % groups == m / rows; /* each for a part of the next strip */
            dot(g->K, a, b + j, rows, cols, asks ? VL * row_bytes(format, g->b.ld) : 0, how, sums, j);
        }
        for (int i = 0; i < rows && m + i < g->M; i++) {
            const vf sum = sums_of(sums[i]);
            put(g, m + i, n, lanes, format == LLMC_INT8 && !(how & ROUNDED) ? sum * scale : sum, g->accumulate, 1);
            finish(g, m + i, n, 1, lanes);
        }
    }
}

#define STRIPS(name, how)                                                                             \
    APART void name##_of_one(const Gemm *g, int64_t n) { dots_strip(g, n, 1, VL < 8 ? VL : 8, how); } \
    APART void name##_of_more(const Gemm *g, int64_t n) { dots_strip(g, n, DOT_ROWS, 4, how); }
STRIPS(fp32, LLMC_FP32)
STRIPS(bf16, LLMC_BF16)
STRIPS(int8, LLMC_INT8)
typedef void (*Strip)(const Gemm *, int64_t);
static const Strip plain[][2] = {{fp32_of_one, fp32_of_more}, {bf16_of_one, bf16_of_more}, {int8_of_one, int8_of_more}};
#if HAS_BF16
STRIPS(rounded_fp32, LLMC_FP32 + ROUNDED)
STRIPS(rounded_bf16, LLMC_BF16 + ROUNDED)
STRIPS(rounded_int8, LLMC_INT8 + ROUNDED)
static const Strip rounded[][2] = {{rounded_fp32_of_one, rounded_fp32_of_more},
                                   {rounded_bf16_of_one, rounded_bf16_of_more},
                                   {rounded_int8_of_one, rounded_int8_of_more}};
#else
#define rounded plain
#endif

/* A's rows as they are multiplied */
static Operand rounded_rows(const Gemm *g, float *scratch) {
    const int64_t ld = up(g->K, 2 * VL);
    int32_t *dst = (int32_t *)scratch;
    for (int64_t m = 0; m < g->M; m++)
        for (int64_t k = 0; k < ld; k += 2 * VL, dst += VL)
            vi_store(dst, weight_pairs(g->a.at + m * g->a.ld, k, g->K, LLMC_FP32));
    return (Operand){.at = scratch, .ld = ld};
}

void K(gemm_dots)(const Gemm *given, float *scratch, int threads) {
    Gemm with_a = *given;
    const Gemm *g = &with_a;
    if (g->bf16) with_a.a = rounded_rows(given, scratch);
    const Strip strip = (g->bf16 ? rounded : plain)[g->b.format][g->M > 1];
    (void)threads; /* unused without OpenMP */
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t n = 0; n < g->N; n += VL) strip(g, n);
}
