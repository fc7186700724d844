/* The matrix product for few rows of A: every row of B^T is read once, where it lies. */
#include "gemm_block.h"
#include "threads.h"

enum {
    /* The most rows of A for which this is faster than a copy of B. K must be FEW_K times as large, because the lanes of
     * each sum must be added in the end. */
    FEW = VREGS == 32 ? 64 : 16,
    FEW_ON_AMX = 8, /* the same where AMX multiplies */
    FEW_K = 8,
    FIRST_CACHE = 1 << 13,        /* words that any CPU's first cache holds */
    MANY = VREGS == 32 ? 12 : 20, /* rows of A for which a copy of B's pays even if it lies in the second cache */
    /* The rows of A and of B^T in a tile, so that its sums, a vector each, fill the registers. */
    ROWS = VREGS == 32 ? 4 : 2,
    COLS = 4,
    COLS_OF_ONE = VL < 8 ? VL : 8,
    PAIRS = 4, /* is added to the format of rows if pairs of bf16 are multiplied, instead of floats */
    /* How several rows are multiplied: as pairs where the CPU can. A single row is not: it reads each weight once, as fast as it
     * comes. Rows of another format than READY are brought into it once for all rows of the other operand. */
    HOW = HAS_BF16 ? PAIRS : 0,
    READY = HAS_BF16 ? LLMC_BF16 : LLMC_FP32,
    COPIES_A = (int)READY != (int)ELEMENT_FORMAT,
};

/* The words of a row that is ready. */
static int64_t ready_words(int64_t K) { return HAS_BF16 ? up(K, 2 * VL) / 2 : up(K, VL); }

/* True if so many rows multiply each row of B^T that a copy of it pays: more than a tile's if it stays in the first cache. */
static int is_reused(const Gemm *g) { return g->M >= MANY || (g->M > ROWS && COLS * ready_words(g->K) <= FIRST_CACHE); }

/* Whether the workspace has room: copies of A lie at the start of each thread's part, rows of B at its end. */
static int fits(const Gemm *g) {
    return (COLS + (COPIES_A && is_reused(g) ? g->M : 0)) * ready_words(g->K) <= own_floats();
}

int K(gemm_is_few)(const Gemm *g) {
    const int64_t few = HAS_AMX ? FEW_ON_AMX : FEW;
    return g->M <= smaller(few, g->K / FEW_K) && g->b.transposed && !g->a.transposed && fits(g);
}

/* ---- a tile ---- */

/* The next VL numbers of a row, or 2 VL of them in pairs. */
INLINE vf dot_operand(const void *row, int64_t k, int64_t K, const int how) {
    if (how & PAIRS) return (vf)weight_pairs(row, k, K, how & ~PAIRS);
    return weights_at(row, k, LANES(k, K), how);
}

/* Asks the second cache for the rows that lie `ahead` bytes further, because the speed of memory decides here. */
INLINE void ask_for(const void *row, int64_t k, int64_t ahead, const int how) {
    const int each = number_bytes(how & ~PAIRS), bytes = each * (how & PAIRS ? 2 * VL : VL);
    if (ahead)
        for (int line = 0; line < bytes; line += 64)
            __builtin_prefetch((const char *)row + ahead + k * each + line, 0, 2);
}

INLINE void dot_step(vf acc[][COLS_OF_ONE], const void *const a[], const void *const b[], const int rows,
                     const int cols, int64_t k, int64_t K, int64_t ahead, const int a_how, const int how,
                     int32_t *const copy[]) {
    vf x[ROWS];
    UNROLL for (int j = 0; j < cols; j++) ask_for(b[j], k, ahead, how);
    UNROLL for (int i = 0; i < rows; i++) x[i] = dot_operand(a[i], k, K, a_how);
    UNROLL for (int j = 0; j < cols; j++) {
        const vf y = dot_operand(b[j], k, K, how);
        if (copy) vi_store(copy[j] + (how & PAIRS ? k / 2 : k), (vi)y);
        UNROLL for (int i = 0; i < rows; i++) acc[i][j] = multiply_add(acc[i][j], x[i], y, how & PAIRS);
    }
}

/* sums[i * cols + j] = the products of a[i] and b[j], rows of A and of B^T, summed lane by lane. copy, unless NULL, gets b
 * in the form in which it is multiplied. */
INLINE void dot(int64_t K, const void *const a[], const void *const b[], const int rows, const int cols, int64_t ahead,
                const int a_how, const int how, int32_t *const copy[], vf *sums) {
    const int step = how & PAIRS ? 2 * VL : VL;
    int64_t k = 0;
    vf acc[ROWS][COLS_OF_ONE];
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < cols; j++) acc[i][j] = (vf){0};
    for (; k + step <= K; k += step) dot_step(acc, a, b, rows, cols, k, k + step, ahead, a_how, how, copy);
    if (k < K) dot_step(acc, a, b, rows, cols, k, K, ahead, a_how, how, copy);
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < cols; j++) sums[i * cols + j] = acc[i][j];
}

/* Lane j becomes the sum of r[j]. This is a transposition that adds the two halves as soon as they meet. */
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

/* ---- a strip: C's columns n..n+VL ---- */

/* Row n + j of B^T; instead of a row beyond the last, the last again. */
static inline const void *row_of_strip(const Gemm *g, int64_t n, int j, const int format) {
    return weight_row(g->b.at, format, g->b.ld, smaller(n + j, g->N - 1));
}

INLINE void put_strip(const Gemm *g, int64_t n, float sums[][VL], const int format) {
    const int lanes = LANES(n, g->N);
    vf scale = vf_set(1);
    if (format == LLMC_INT8) scale = weight_scales(g->b.at, format, g->b.ld, n, lanes);
    for (int64_t m = 0; m < g->M; m++) {
        put(g, m, n, lanes, vf_load(sums[m]) * scale, g->accumulate, 1);
        finish(g, m, n, 1, lanes);
    }
}

/* The rows of A, `stride` bytes apart, and memory for COLS rows of B^T. */
typedef struct Few {
    const Gemm *g;
    const char *a;
    int64_t stride;
    int32_t *copies;
} Few;

INLINE void strip_of_one(const Few *f, int64_t n, const int format) {
    const Gemm *g = f->g;
    const void *b[VL], *a = g->a.at;
    vf r[VL];
    float sums[1][VL];
    for (int j = 0; j < VL; j++) b[j] = row_of_strip(g, n, j, format);
    for (int j = 0; j < VL; j += COLS_OF_ONE)
        dot(g->K, &a, b + j, 1, COLS_OF_ONE, VL * row_bytes(format, g->b.ld), ELEMENT_FORMAT, format, NULL, r + j);
    vf_store(sums[0], sums_of(r));
    put_strip(g, n, sums, format);
}

/* Stores a tile's sums to their rows and columns. */
INLINE void store_sums(float (*sums)[VL], int j, vf r[ROWS * COLS]) {
    for (int i = 0; i < ROWS; i += VL / COLS) {
        float x[VL / COLS][COLS];
        vf_store(x[0], sums_of(r + i * COLS));
        for (int at = 0; at < VL / COLS; at++) memcpy(sums[i + at] + j, x[at], sizeof x[at]);
    }
}

/* COLS rows of B^T stay in the first cache until all rows of A were multiplied with them. If they are copied, the first rows of A
 * bring them into READY for the others, and ask for the next strip; else the last rows of A do, which need not wait for this one. */
INLINE void strip_in(const Few *f, int64_t n, const int a_format, const int format, const int copied) {
    const Gemm *g = f->g;
    const int64_t next = VL * row_bytes(format, g->b.ld);
    float sums[FEW][VL];
    for (int j = 0; j < VL; j += COLS) {
        const void *b[COLS], *a[ROWS];
        int32_t *copies[COLS];
        for (int at = 0; at < COLS; at++) {
            b[at] = row_of_strip(g, n, j + at, format);
            copies[at] = f->copies + at * ready_words(g->K);
        }
        for (int64_t m = 0; m < g->M; m += ROWS) {
            vf r[ROWS * COLS];
            const int64_t ahead = copied || m + ROWS < g->M ? 0 : next;
            for (int i = 0; i < ROWS; i++) a[i] = f->a + smaller(m + i, g->M - 1) * f->stride;
            if (copied && m == 0) {
                dot(g->K, a, b, ROWS, COLS, next, a_format + HOW, format + HOW, copies, r);
                memcpy(b, copies, sizeof b);
            } else dot(g->K, a, b, ROWS, COLS, ahead, a_format + HOW, (copied ? READY : format) + HOW, NULL, r);
            store_sums(sums + m, j, r);
        }
    }
    put_strip(g, n, sums, format);
}

INLINE void strip_of_more(const Few *f, int64_t n, const int format) {
    if (is_reused(f->g)) strip_in(f, n, READY, format, format != (int)READY);
    else strip_in(f, n, ELEMENT_FORMAT, format, 0);
}

typedef void (*Strip)(const Few *, int64_t);
#define STRIP(name, strip, format) \
    APART void name(const Few *f, int64_t n) { strip(f, n, format); }
#if defined(FLOATX_FP32)
STRIP(one_fp32, strip_of_one, LLMC_FP32)
STRIP(more_fp32, strip_of_more, LLMC_FP32)
#endif
STRIP(one_bf16, strip_of_one, LLMC_BF16)
STRIP(one_int8, strip_of_one, LLMC_INT8)
STRIP(more_bf16, strip_of_more, LLMC_BF16)
STRIP(more_int8, strip_of_more, LLMC_INT8)
/* The strip for one row and the strip for more, by the format of B. */
static const Strip of_format[][2] = {
#if defined(FLOATX_FP32)
    [LLMC_FP32] = {one_fp32, more_fp32},
#endif
    [LLMC_BF16] = {one_bf16, more_bf16},
    [LLMC_INT8] = {one_int8, more_int8},
};

typedef struct Dots {
    const Gemm *g;
    float *workspace;
} Dots;

static void strips(const void *dots, Part p) {
    const Dots d = *(const Dots *)dots;
    const Strip strip = of_format[d.g->b.format][d.g->M > 1];
    const int64_t words = ready_words(d.g->K);
    float *own = d.workspace + p.thread * own_floats();
    Few f = {d.g, (const char *)d.g->a.at, row_bytes(ELEMENT_FORMAT, d.g->a.ld),
             (int32_t *)(own + own_floats() - COLS * words)};
    if (COPIES_A && is_reused(d.g)) {
        for (int64_t m = 0; m < d.g->M; m++) fx_widen(own + m * words, d.g->a.at + m * d.g->a.ld, d.g->K);
        f.a = (const char *)own, f.stride = words * (int64_t)sizeof *own;
    }
    for (int64_t n = p.from * VL; n < p.to * VL; n += VL) strip(&f, n);
}

void K(gemm_dots)(const Gemm *g, float *workspace, int threads) {
    parallel_static(threads, ceil_div(g->N, VL), strips, &(Dots){g, workspace});
}
