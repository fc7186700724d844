/* The matrix product's tiles of bf16: a word holds two numbers that follow each other along K. Products are added up in
 * float. */
#include "gemm_tile.h"
#if HAS_BF16 && !HAS_AMX && !HAS_BFMMLA
typedef int32_t Pair; /* the even k is in the low half; an odd K ends with a pair whose high half is 0 */

enum { A_PAIRS = KC }; /* words from one copied row of A to the next */
_Static_assert(NV == 3 && MR <= VL && VL <= 2 * MR, "the tiles and copy_a_columns below are written for AVX-512");

/* Computes the piece p of C over `pairs` pairs of products. The copy of A is (pairs, MR) if columns, else (MR, A_PAIRS);
 * b is (pairs, nv*VL). nv and columns are constants where this is inlined. */
INLINE void tile(const Piece *p, int64_t pairs, const Pair *a, const int columns, const Pair *b, const int nv) {
    vf acc[MR][NV];
    UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < nv; j++) acc[i][j] = (vf){0};
    for (int64_t from = 0; from < pairs; from += STEP) {
        const int64_t to = smaller(from + STEP, pairs);
        ask(&p->next[0]), ask(&p->next[1]);
        ask_for_c(p, pairs - from);
        UNROLL_2 for (int64_t k = from; k < to; k++) {
            vi v[NV];
            UNROLL for (int j = 0; j < nv; j++) v[j] = vi_load(b + j * VL);
            UNROLL for (int i = 0; i < MR; i++) {
                const vi x = vi_set(columns ? a[k * MR + i] : a[i * A_PAIRS + k]);
                UNROLL for (int j = 0; j < nv; j++) acc[i][j] = bf16_dot(acc[i][j], x, v[j]);
            }
            b += nv * VL;
        }
    }
    scale_tile(p, acc, nv);
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

/* ---- copies of A: panels of MR rows ---- */

/* The rows k and k + 1 at src as one row of pairs. An odd last row is paired with zeros. */
INLINE vi pairs_at(const floatX *src, int64_t ld, int has_odd, int lanes) {
    return vh_interleave(vh_load_n(src, lanes), has_odd ? vh_load_n(src + ld, lanes) : (vh){0});
}

/* The rows copied side by side, so that whole lines are read: the numbers of a row may lie far apart. */
enum { GROUP = 4 * VL };

static void copy_a_columns(const Gemm *g, const Block *s) {
    const int64_t pairs = (s->kc + 1) / 2;
    for (int64_t m = s->m; m < s->m_end; m += GROUP)
        for (int64_t k = 0; k < s->kc; k += 2) {
            const floatX *src = element(&g->a, m, s->k + k);
            Pair *dst = (Pair *)s->a + (m - s->m) * pairs + k / 2 * MR;
            const int64_t end = smaller(GROUP, s->m_end - m);
            for (int64_t i = 0; i < end; i += VL, dst += VL * pairs) {
                const vi v = pairs_at(src + i, g->a.ld, k + 1 < s->kc, LANES(i, end));
                Pair words[VL];
                vi_store(words, v);
                memcpy(dst, words, MR * sizeof *dst);
                if (end - i > MR) memcpy(dst + MR * pairs, words + MR, MR * sizeof *dst);
            }
        }
}

static void copy_a_rows(const Gemm *g, const Block *s) {
    Pair *dst = (Pair *)s->a;
    for (int64_t m = s->m; m < s->m + up(s->m_end - s->m, MR); m++, dst += A_PAIRS) {
        const floatX *row = element(&g->a, smaller(m, s->m_end - 1), s->k); /* again the last, not one past the end */
        for (int64_t k = 0; k < s->kc; k += 2 * VL) vi_store(dst + k / 2, weight_pairs(row, k, s->kc, LLMC_BF16));
    }
}

static void copy_a(const Gemm *g, const Block *s) {
    if (g->a.transposed) copy_a_columns(g, s);
    else copy_a_rows(g, s);
}

/* ---- copies of B: a panel ---- */

/* Copies a panel of a B that is not transposed. */
static void pack_b_rows(Pair *dst, const floatX *src, int64_t ld, int64_t cols, int64_t kc) {
    for (int64_t k = 0; k < kc; k += 2, dst += up(cols, VL), src += 2 * ld)
        for (int64_t j = 0; j < cols; j += VL) vi_store(dst + j, pairs_at(src + j, ld, k + 1 < kc, LANES(j, cols)));
}

/* Copies numbers k..k+kc of VL rows of weights to VL columns of pairs. */
INLINE void pack_b_vector(Pair *dst, int64_t width, const Gemm *g, int64_t n, int rows, int64_t from, int64_t kc,
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

/* Copies a panel of a transposed B, whose columns are rows of weights. */
static void pack_b_columns(const Gemm *g, const Block *s, int64_t n, int64_t cols) {
    for (int64_t j = 0; j < cols; j += VL)
        FOR_FORMAT(g->b.format,
                   pack_b_vector((Pair *)s->b + j, up(cols, VL), g, n + j, LANES(j, cols), s->k, s->kc, F));
}

/* ---- a panel of C ---- */

static void panel(const Gemm *g, const Block *s, int64_t n) {
    const int cols = (int)smaller(NR, s->n_end - n), nv = (cols + VL - 1) / VL, columns = g->a.transposed;
    const int64_t pairs = (s->kc + 1) / 2;
    if (g->b.transposed) pack_b_columns(g, s, n, cols);
    else pack_b_rows((Pair *)s->b, element(&g->b, s->k, n), g->b.ld, cols, s->kc);
    Ahead next[2];
    float room[NR];
    const float *scales = scales_of(g, n, cols, room);
    look_ahead(next, &K(gemm_tiles), g, s, n, pairs);
    for (int64_t m = s->m; m < s->m_end; m += MR) {
        Piece p = piece(g, s, m, n, cols, next);
        p.scales = scales;
        tiles[columns][nv - 1](&p, pairs, (Pair *)s->a + (m - s->m) * (columns ? pairs : A_PAIRS), (Pair *)s->b);
    }
}

const Tiles K(gemm_tiles) = {.size = {MR, NR, MC, NC, COPY},
                             .kc = 2 * KC,
                             .k_unit = 2,
                             .a_floats = A_FLOATS,
                             .b_floats = B_FLOATS,
                             .copy_a = copy_a,
                             .panel = panel};
#endif
