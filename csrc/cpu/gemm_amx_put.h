/* What happens to a square of C, 32 x 32 sums, when they are whole: scales, what C held before, bias, GELU or its slope. */
#ifndef GEMM_AMX_PUT_H
#define GEMM_AMX_PUT_H
#include "gelu.h"
#include "gemm_amx_pack.h"

enum { SQUARE = PANEL * PANEL, VECTORS = PANEL / VL };

/* What a product does with its sums; constants in the functions below, so that each kind gets its own loop. */
enum { WITH_GELU = 1, WITH_SLOPE = 2, ADDS = 4, STREAMS = 8, SCALES = 16, KINDS = 32 };

static inline int kind_of(const Gemm *g) {
    return (g->gelu ? WITH_GELU : 0) | (g->slope ? WITH_SLOPE : 0) | (g->accumulate ? ADDS : 0) |
           (g->stream ? STREAMS : 0) | (g->b.format == LLMC_INT8 ? SCALES : 0);
}

/* The sums of row i from column j on. A square consists of four tiles: upper left, upper right, lower left, lower right. */
INLINE vf sums_at(const float *sums, int i, int j) {
    return vf_load(sums + (i / TILE * 2 + j / TILE) * TILE * TILE + i % TILE * TILE + j % TILE);
}

INLINE void put_vector(float *to, vf v, int lanes, const int streams) {
    if (streams) stream(to, v);
    else vf_store_n(to, v, lanes);
}

/* Rows m..m+rows and columns n..n+cols of C get their sums. */
INLINE void put_sums_of(const Gemm *g, const float *sums, int64_t m, int64_t n, int rows, int cols, const int kind) {
    vf bias[VECTORS], scale[VECTORS];
    for (int v = 0; v * VL < cols; v++) {
        const int lanes = LANES(v * VL, cols);
        bias[v] = g->bias ? vf_load_n(g->bias + n + v * VL, lanes) : (vf){0};
        if (kind & SCALES) scale[v] = weight_scales(g->b.at, LLMC_INT8, g->b.ld, n + v * VL, lanes);
    }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v * VL < cols; v++) {
            const int64_t at = (m + i) * g->N + n + v * VL;
            const int lanes = LANES(v * VL, cols);
            vf x = sums_at(sums, i, v * VL);
            if (kind & SCALES) x *= scale[v];
            if (kind & ADDS) x += vf_load_n(g->c + at, lanes);
            x += bias[v];
            if (kind & WITH_GELU) put_vector(g->gelu + at, gelu(x), lanes, kind & STREAMS);
            if (kind & WITH_SLOPE) x *= gelu_slope(vf_load_n(g->slope + at, lanes));
            put_vector(g->c + at, x, lanes, kind & STREAMS);
        }
}

#define PUT(kind)                                                                   \
    APART void put_##kind(const Gemm *g, const float *sums, int64_t m, int64_t n) { \
        put_sums_of(g, sums, m, n, PANEL, PANEL, kind);                             \
    }
#define EACH_KIND(X) X(0) X(1) X(2) X(4) X(8) X(9) X(10) X(16) X(17)
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

static inline void put_sums(const Gemm *g, const float *sums, int64_t m, int64_t n) {
    const int kind = kind_of(g), rows = (int)smaller(PANEL, g->M - m), cols = (int)smaller(PANEL, g->N - n);
    if (rows == PANEL && cols == PANEL && whole_squares[kind]) whole_squares[kind](g, sums, m, n);
    else put_part(g, sums, m, n, rows, cols, kind);
}
#endif
