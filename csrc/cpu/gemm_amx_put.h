/* What happens to a square of C, 32 x 32 sums, when they are whole: scales, what was summed before, bias, GELU or its slope. */
#ifndef GEMM_AMX_PUT_H
#define GEMM_AMX_PUT_H
#include "gemm_amx_pack.h"

enum { SQUARE = PANEL * PANEL, VECTORS = PANEL / VL };

/* What a product does with its sums; constants in the functions below, so that each kind gets its own loop. Floats are stored
 * where C consists of them, or where sums wait because they are not whole. */
enum { WITH_GELU = 1, WITH_SLOPE = 2, ADDS = 4, STREAMS = 8, SCALES = 16, FLOATS = 32, KINDS = 64 };

static inline int kind_of(const Gemm *g, int adds, int floats) {
    return (g->gelu ? WITH_GELU : 0) | (g->slope ? WITH_SLOPE : 0) | (adds ? ADDS : 0) | (g->stream ? STREAMS : 0) |
           (g->b.format == LLMC_INT8 ? SCALES : 0) | (floats ? FLOATS : 0);
}

/* The sums of row i from column j on. A square consists of four tiles: upper left, upper right, lower left, lower right. */
INLINE vf sums_at(const float *sums, int i, int j) {
    return vf_load(sums + (i / TILE * 2 + j / TILE) * TILE * TILE + i % TILE * TILE + j % TILE);
}

/* A row of a square as it is stored: vectors of floats, or of bf16 two by two, which is a whole line. */
INLINE void store_floats(float *to, const vf x[VECTORS], int cols, const int streams) {
    for (int v = 0; v * VL < cols; v++)
        if (streams) stream(to + v * VL, x[v]);
        else vf_store_n(to + v * VL, x[v], LANES(v * VL, cols));
}
INLINE void store_bf16(floatX *to, const vf x[VECTORS], int cols, const int streams) {
    if (cols == PANEL)
        for (int v = 0; v < VECTORS; v += 2) {
            const vf words = (vf)bf16_in_order(x[v], x[v + 1]);
            if (streams) stream((float *)(to + v * VL), words);
            else vf_store((float *)(to + v * VL), words);
        }
    else
        for (int v = 0; v * VL < cols; v++) fx_store_n(to + v * VL, x[v], LANES(v * VL, cols));
}

/* Row m and columns n..n+cols of C get their sums x. */
INLINE void put_row(const Gemm *g, vf x[VECTORS], const vf bias[VECTORS], const vf scale[VECTORS], int64_t m, int64_t n,
                    int cols, const int kind) {
    const int64_t at = m * g->N + n;
    vf y[VECTORS];
    for (int v = 0; v * VL < cols; v++) {
        const int lanes = LANES(v * VL, cols);
        if (kind & SCALES) x[v] *= scale[v];
        if (kind & ADDS) x[v] += vf_load_n(sum_at(g, m, n + v * VL), lanes);
        x[v] += bias[v];
        if (kind & WITH_GELU) x[v] = fx_rounded(x[v]), y[v] = gelu(x[v]);
        if (kind & WITH_SLOPE) x[v] *= gelu_slope(fx_load_n(g->slope + at + v * VL, lanes));
    }
    if (kind & WITH_GELU) store_bf16(g->gelu + at, y, cols, kind & STREAMS);
    if (kind & FLOATS) store_floats(sum_at(g, m, n), x, cols, kind & STREAMS);
    else store_bf16((floatX *)g->c + at, x, cols, kind & STREAMS);
}

/* Rows m..m+rows and columns n..n+cols of C get their sums. */
INLINE void put_sums_of(const Gemm *g, const float *sums, int64_t m, int64_t n, int rows, int cols, const int kind) {
    vf bias[VECTORS], scale[VECTORS];
    for (int v = 0; v * VL < cols; v++) {
        const int lanes = LANES(v * VL, cols);
        bias[v] = g->bias ? fx_load_n(g->bias + n + v * VL, lanes) : (vf){0};
        if (kind & SCALES) scale[v] = weight_scales(g->b.at, LLMC_INT8, g->b.ld, n + v * VL, lanes);
    }
    for (int i = 0; i < rows; i++) {
        vf x[VECTORS];
        for (int v = 0; v < VECTORS; v++) x[v] = sums_at(sums, i, v * VL);
        put_row(g, x, bias, scale, m + i, n, cols, kind);
    }
}

#define PUT(kind)                                                                   \
    APART void put_##kind(const Gemm *g, const float *sums, int64_t m, int64_t n) { \
        put_sums_of(g, sums, m, n, PANEL, PANEL, kind);                             \
    }
#define EACH_KIND(X) X(0) X(1) X(2) X(4) X(8) X(9) X(10) X(16) X(17) X(24) X(25) X(32) X(36) X(40)
/* clang-format off */
EACH_KIND(PUT)
#define ENTRY(kind) [kind] = put_##kind,
static void (*const whole_squares[KINDS])(const Gemm *, const float *, int64_t, int64_t) = {EACH_KIND(ENTRY)};
/* clang-format on */
#undef PUT
#undef ENTRY

APART void put_part(const Gemm *g, const float *sums, int64_t m, int64_t n, int rows, int cols, int kind) {
    put_sums_of(g, sums, m, n, rows, cols, kind);
}

static inline void put_sums(const Gemm *g, const float *sums, int64_t m, int64_t n, int kind) {
    const int rows = (int)smaller(PANEL, g->M - m), cols = (int)smaller(PANEL, g->N - n);
    if (rows == PANEL && cols == PANEL && whole_squares[kind]) whole_squares[kind](g, sums, m, n);
    else put_part(g, sums, m, n, rows, cols, kind);
}
#endif
