/* The matrix product's tiles of floats. If bf16 is stored and nothing multiplies it, the copies of operands widen it. */
#include "gemm_tile.h"
#if !HAS_BF16

enum { WIDENS = sizeof(floatX) != sizeof(float) };

/* Computes the piece p of C over kc products. `columns` says how A lies: in columns of MR elements, or in rows lda apart.
 * b is (kc, nv*VL) with rows ldb apart. nv and columns are constants where this is inlined. */
INLINE void tile(const Piece *p, int64_t kc, const float *a, int64_t lda, const int columns, const float *b,
                 int64_t ldb, const int nv) {
    vf acc[MR][NV];
    const float *row[MR];
    UNROLL for (int i = 0; i < MR; i++) {
        row[i] = a + (i < p->rows ? i : p->rows - 1) * lda; /* the last row again, not one past the end */
        UNROLL for (int j = 0; j < nv; j++) acc[i][j] = (vf){0};
    }
    for (int64_t from = 0; from < kc; from += STEP) {
        const int64_t to = smaller(from + STEP, kc);
        ask(&p->next[0]), ask(&p->next[1]);
        ask_for_c(p, kc - from);
        UNROLL_2 for (int64_t k = from; k < to; k++) {
            vf v[NV];
            UNROLL for (int j = 0; j < nv; j++) v[j] = vf_load(b + j * VL);
            UNROLL for (int i = 0; i < MR; i++) {
                const vf x = vf_set(columns ? a[i] : row[i][k]);
                UNROLL for (int j = 0; j < nv; j++) acc[i][j] += x * v[j];
            }
            a += lda;
            b += ldb;
        }
    }
    store_tile(p, acc, nv);
    if (p->last) finish(p->g, p->m, p->n, p->rows, p->cols);
}

#define TILE(name, columns, nv)                                                                             \
    APART void name(const Piece *p, int64_t kc, const float *a, int64_t lda, const float *b, int64_t ldb) { \
        tile(p, kc, a, lda, columns, b, ldb, nv);                                                           \
    }
typedef void (*Tile)(const Piece *, int64_t, const float *, int64_t, const float *, int64_t);
/* clang-format off */
TILE(rows_1, 0, 1)
TILE(rows_2, 0, 2)
TILE(columns_1, 1, 1)
TILE(columns_2, 1, 2)
#if VREGS == 32
TILE(rows_3, 0, 3)
TILE(columns_3, 1, 3)
static const Tile tiles[2][NV] = {{rows_1, rows_2, rows_3}, {columns_1, columns_2, columns_3}};
#else
static const Tile tiles[2][NV] = {{rows_1, rows_2}, {columns_1, columns_2}};
#endif
/* clang-format on */

/* ---- copies: A's rows in panels of MR columns, (kc, MR) each; B's panel, (kc, nv*VL) ---- */

/* The panels copied side by side, so that whole lines are read: rows of a transposed A may lie far apart. */
enum { GROUP = 8, ROOM = (GROUP * MR + VL - 1) / VL * VL };

/* The n numbers at src as floats: where they lie, or widened in `room`, which holds n rounded up to whole vectors. */
static inline const float *as_floats(const floatX *src, int64_t n, float *room) {
    if (!WIDENS) return (const float *)src;
    fx_widen(room, src, n);
    return room;
}

static void copy_a_columns(const Gemm *g, const Block *s) {
    for (int64_t m = s->m; m < s->m_end; m += GROUP * MR)
        for (int64_t k = 0; k < s->kc; k++) {
            int64_t left = smaller(GROUP * MR, s->m_end - m);
            float room[ROOM], *dst = s->a + (m - s->m) * s->kc + k * MR;
            const float *src = as_floats(element(&g->a, m, s->k + k), left, room);
            for (; left > 0; left -= MR, src += MR, dst += MR * s->kc)
                if (left >= MR) memcpy(dst, src, MR * sizeof *dst);
                else
                    for (int i = 0; i < MR; i++) dst[i] = i < left ? src[i] : 0;
        }
}

/* Whether rows of A are copied, KC floats apart, rather than read where they lie. Rows a multiple of 4 KiB apart have the same sets of
 * the first cache, so that those of a tile would drive each other and the panel of B out of it. */
static int copies_rows(const Gemm *g) { return WIDENS || g->a.ld * (int64_t)sizeof(float) % 4096 == 0; }

static void copy_a(const Gemm *g, const Block *s) {
    if (g->a.transposed) copy_a_columns(g, s);
    else if (copies_rows(g))
        for (int64_t m = s->m; m < s->m_end; m++) fx_widen(s->a + (m - s->m) * KC, element(&g->a, m, s->k), s->kc);
}

/* Copies a panel of a B that is not transposed. */
static void pack_b_rows(float *dst, const floatX *src, int64_t ld, int64_t cols, int64_t kc) {
    for (int64_t k = 0; k < kc; k++, src += ld, dst += up(cols, VL)) fx_widen(dst, src, cols);
}

/* Copies numbers k..k+kc of VL rows of weights to VL columns of dst, whose rows are `width` apart. */
INLINE void pack_b_vector(float *dst, int64_t width, const Gemm *g, int64_t n, int rows, int64_t from, int64_t kc,
                          const int format) {
    const void *row[VL];
    vf r[VL];
    for (int i = 0; i < VL; i++) row[i] = weight_row(g->b.at, format, g->b.ld, n + (i < rows ? i : rows - 1));
    for (int64_t k = 0; k < kc; k += VL) {
        const int lanes = LANES(k, kc);
        UNROLL for (int i = 0; i < VL; i++) {
            r[i] = weights_at(row[i], from + k, lanes, format);
            if (format == LLMC_INT8) r[i] *= weight_scale(row[i], format);
        }
        vf_transpose(r);
        if (lanes == VL) UNROLL for (int i = 0; i < VL; i++) vf_store(dst + (k + i) * width, r[i]);
        else
            for (int i = 0; i < lanes; i++) vf_store(dst + (k + i) * width, r[i]);
    }
}

/* Copies a panel of a transposed B, whose columns are rows of weights. */
static void pack_b_columns(const Gemm *g, const Block *s, int64_t n, int64_t cols) {
    for (int64_t j = 0; j < cols; j += VL)
        FOR_FORMAT(g->b.format, pack_b_vector(s->b + j, up(cols, VL), g, n + j, LANES(j, cols), s->k, s->kc, F));
}

/* ---- a panel of C ---- */

/* Where the tiles find the rows of A from m on, and how far apart these lie. */
static const float *rows_of_a(const Gemm *g, const Block *s, int64_t m, int64_t *ld) {
    const int copied = copies_rows(g);
    *ld = g->a.transposed ? MR : copied ? KC : g->a.ld;
    if (g->a.transposed) return s->a + (m - s->m) * s->kc;
    return copied ? s->a + (m - s->m) * KC : (const float *)element(&g->a, m, s->k);
}

static void panel(const Gemm *g, const Block *s, int64_t n) {
    const int cols = (int)smaller(NR, s->n_end - n), nv = (cols + VL - 1) / VL;
    const int in_place = s->in_place && cols % VL == 0, columns = g->a.transposed;
    const float *b = in_place ? (const float *)element(&g->b, s->k, n) : s->b;
    if (g->b.transposed) pack_b_columns(g, s, n, cols);
    else if (!in_place) pack_b_rows(s->b, element(&g->b, s->k, n), g->b.ld, cols, s->kc);
    Ahead next[2];
    look_ahead(next, &K(gemm_tiles), g, s, n, s->kc);
    for (int64_t m = s->m; m < s->m_end; m += MR) {
        const Piece p = piece(g, s, m, n, cols, next);
        int64_t lda;
        const float *a = rows_of_a(g, s, m, &lda);
        tiles[columns][nv - 1](&p, s->kc, a, lda, b, in_place ? g->b.ld : nv * VL);
    }
}

const Tiles K(gemm_tiles) = {.size = {MR, NR, MC, NC, COPY},
                             .kc = KC,
                             .k_unit = 1,
                             .a_floats = A_FLOATS,
                             .b_floats = B_FLOATS,
                             .in_place = !WIDENS,
                             .copy_a = copy_a,
                             .panel = panel};
#endif
