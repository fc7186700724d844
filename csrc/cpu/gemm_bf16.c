/* The matrix product's tiles in bf16: operands are rounded to bf16 (to nearest, ties to even) while they are copied, two
 * that follow each other along K in one word; products are added up in float. */
#include "gemm_tile.h"
#include "weights.h"
#if HAS_BF16
typedef int32_t Pair; /* the even k in the low half; an odd K ends with a pair whose high half is 0 */

enum { A_PAIRS = KC }; /* words from one copied row of A to the next */

/* nv and columns are constants where this is inlined. A's copy: (pairs, MR) if columns, else (MR, A_PAIRS);
 * b: (pairs, nv*VL) */
INLINE void tile(const Piece *p, int64_t pairs, const Pair *a, const int columns, const Pair *b, const int nv) {
    vf acc[MR][NV];
    UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < nv; j++) acc[i][j] = (vf){0};
    prefetch_tile(p);
    UNROLL_2 for (int64_t k = 0; k < pairs; k++) {
        vi v[NV];
        UNROLL for (int j = 0; j < nv; j++) v[j] = vi_load(b + j * VL);
        UNROLL for (int i = 0; i < MR; i++) {
            const vi x = vi_set(columns ? a[k * MR + i] : a[i * A_PAIRS + k]);
            UNROLL for (int j = 0; j < nv; j++) acc[i][j] = bf16_dot(acc[i][j], x, v[j]);
        }
        b += nv * VL;
    }
    store_tile(p, acc, nv);
    if (p->last) finish(p->g, p->m, p->n, p->rows, p->cols);
}

#define TILE(name, columns, nv) \
    APART void name(const Piece *p, int64_t pairs, const Pair *a, const Pair *b) { tile(p, pairs, a, columns, b, nv); }
typedef void (*Tile)(const Piece *, int64_t, const Pair *, const Pair *);
/* clang-format off */
TILE(rows_1, 0, 1)
TILE(rows_2, 0, 2)
TILE(rows_3, 0, 3)
TILE(columns_1, 1, 1)
TILE(columns_2, 1, 2)
TILE(columns_3, 1, 3)
/* clang-format on */
static const Tile tiles[2][NV] = {{rows_1, rows_2, rows_3}, {columns_1, columns_2, columns_3}};

/* ---- copies ---- */

/* two rows of src, k and k + 1, become one of pairs; beyond the last row is 0 */
INLINE void store_pairs(Pair *dst, const float *src, int64_t ld, int has_odd, int lanes, int stored) {
    const vf even = vf_load_n(src, lanes), odd = has_odd ? vf_load_n(src + ld, lanes) : (vf){0};
    vi_store_n(dst, bf16_interleave(even, odd), stored);
}

static void copy_rows(Pair *dst, int64_t width, const float *src, int64_t ld, int lanes, int64_t kc) {
    for (int64_t k = 0; k < kc; k += 2, dst += width, src += 2 * ld)
        store_pairs(dst, src, ld, k + 1 < kc, lanes, (int)smaller(width, VL));
}

static void copy_a(Pair *dst, const float *src, int64_t ld, int rows, int64_t kc) {
    for (int i = 0; i < MR; i++, dst += A_PAIRS) {
        const float *row = src + (i < rows ? i : rows - 1) * ld; /* the last again rather than past the end */
        for (int64_t k = 0; k < kc; k += 2 * VL) vi_store(dst + k / 2, weight_pairs(row, k, kc, LLMC_FP32));
    }
}

/* numbers k..k+kc of VL rows become VL columns of pairs */
INLINE void copy_transposed(Pair *dst, int64_t width, const Gemm *g, int64_t n, int rows, int64_t from, int64_t kc,
                            const int format) {
    const int64_t pairs = (kc + 1) / 2;
    for (int64_t k = 0; k < kc; k += 2 * VL) {
        vf r[VL];
        UNROLL for (int i = 0; i < VL; i++) {
            const void *row = weight_row(g->b.at, format, g->b.ld, n + (i < rows ? i : rows - 1));
            r[i] = (vf)weight_pairs(row, from + k, from + kc, format);
        }
        vf_transpose(r);
        for (int64_t i = 0; i < smaller(VL, pairs - k / 2); i++) vi_store(dst + (k / 2 + i) * width, (vi)r[i]);
    }
}

static void copy_weights(Pair *dst, int64_t width, const Gemm *g, const Block *s, int64_t n) {
    const int rows = LANES(n, s->n_end);
    FOR_FORMAT(g->b.format, copy_transposed(dst, width, g, n, rows, s->k, s->kc, F));
}

/* ---- what gemm.c calls ---- */

void K(gemm_pack_bf16)(const Gemm *g, const Block *s) {
    const int64_t nc = s->n_end - s->n, pairs = (s->kc + 1) / 2;
    for (int64_t n = 0; n < nc; n += VL) {
        const int64_t panel = n / NR * NR, width = up(smaller(NR, nc - panel), VL);
        Pair *dst = (Pair *)s->b + panel * pairs + (n - panel);
        if (g->b.transposed) copy_weights(dst, width, g, s, s->n + n);
        else copy_rows(dst, width, element(&g->b, s->k, s->n + n), g->b.ld, LANES(n, nc), s->kc);
    }
}

void K(gemm_row_bf16)(const Gemm *g, const Block *s, int64_t m) {
    const int rows = (int)smaller(MR, s->m_end - m);
    const int64_t pairs = (s->kc + 1) / 2;
    Pair *a = (Pair *)s->a, *b = (Pair *)s->b;
    if (g->a.transposed) copy_rows(a, MR, element(&g->a, m, s->k), g->a.ld, rows, s->kc);
    else copy_a(a, element(&g->a, m, s->k), g->a.ld, rows, s->kc);
    for (int64_t n = s->n; n < s->n_end; n += NR) {
        const int cols = (int)smaller(NR, s->n_end - n), nv = (cols + VL - 1) / VL;
        const Piece p = {g, m, n, rows, cols, g->accumulate || s->k > 0, s->k + s->kc == g->K};
        tiles[g->a.transposed][nv - 1](&p, pairs, a, b + (n - s->n) * pairs);
    }
}
#endif
