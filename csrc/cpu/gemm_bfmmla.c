/* The matrix product's tiles of bf16 by BFMMLA of 64-bit Arm. It multiplies two rows of A by two columns of B, four numbers
 * of each along K, and adds the products to four floats. So both operands are copied in the same form: as quads, four numbers
 * that follow each other along K, with the quads of a panel's rows (of B: columns) side by side. */
#include "gemm_tile.h"
#if HAS_BFMMLA
typedef uint64_t Quad; /* zeros past the end of K */

enum {
    DEEP = 4,      /* numbers in a quad */
    HALF = VL / 2, /* quads in a vector; rows, and columns, of the sums in one */
};
_Static_assert(NV == 3 && MR % VL == 0, "tiles of up to three vectors; A's columns are copied in vectors");

INLINE bfloat16x8_t quads_load(const Quad *p) { return (bfloat16x8_t)vi_load((const int32_t *)p); }

/* Computes the piece p of C over `quads` quads of products. The copy of A is (quads, MR), that of B (quads, nv*VL). nv is a
 * constant where this is inlined. */
INLINE void tile(const Piece *p, int64_t quads, const Quad *a, const Quad *b, const int nv) {
    vf acc[MR / HALF][NV * HALF], rows[MR][NV]; /* 2 x 2 sums in a vector become parts of two rows */
    UNROLL for (int i = 0; i < MR / HALF; i++) UNROLL for (int j = 0; j < nv * HALF; j++) acc[i][j] = (vf){0};
    for (int64_t from = 0; from < quads; from += STEP) {
        const int64_t to = smaller(from + STEP, quads);
        ask(&p->next[0]), ask(&p->next[1]);
        ask_for_c(p, quads - from);
        for (int64_t k = from; k < to; k++, a += MR, b += nv * VL) {
            bfloat16x8_t y[NV * HALF];
            UNROLL for (int j = 0; j < nv * HALF; j++) y[j] = quads_load(b + j * HALF);
            UNROLL for (int i = 0; i < MR / HALF; i++) {
                const bfloat16x8_t x = quads_load(a + i * HALF);
                __asm__ volatile("" ::: "memory"); /* if gcc moved all loads to the front, 32 registers would not do */
                UNROLL for (int j = 0; j < nv * HALF; j++) acc[i][j] = vbfmmlaq_f32(acc[i][j], x, y[j]);
            }
        }
    }
    UNROLL for (int i = 0; i < MR / HALF; i++) UNROLL for (int j = 0; j < nv; j++) {
        const float32x4_t left = acc[i][j * HALF], right = acc[i][j * HALF + 1];
        rows[i * HALF][j] = vcombine_f32(vget_low_f32(left), vget_low_f32(right));
        rows[i * HALF + 1][j] = vcombine_f32(vget_high_f32(left), vget_high_f32(right));
    }
    scale_tile(p, rows, nv);
    store_tile(p, rows, nv);
    if (p->last) finish(p->g, p->m, p->n, p->rows, p->cols);
}

#define TILE(name, nv) \
    APART void name(const Piece *p, int64_t quads, const Quad *a, const Quad *b) { tile(p, quads, a, b, nv); }
typedef void (*Tile)(const Piece *, int64_t, const Quad *, const Quad *);
/* clang-format off */
TILE(tile_1, 1)
TILE(tile_2, 2)
TILE(tile_3, 3)
/* clang-format on */
static const Tile tiles[NV] = {tile_1, tile_2, tile_3};

static int64_t quads_of(const Block *s) { return (s->kc + DEEP - 1) / DEEP; }

/* ---- copies: panels of A's rows, (quads, MR) each; a panel of B's columns, (quads, nv*VL) ---- */

/* Copies numbers of the block's part of K from rows of x, which lie along K, to a panel for `width` rows. After the last of
 * the n rows from `first` on comes the same again. */
INLINE void pack_rows(Quad *dst, int64_t width, const Operand *x, int64_t first, int64_t n, const Block *s,
                      const int format) {
    for (int64_t i = 0; i < width; i++) {
        const void *row = weight_row(x->at, format, x->ld, first + smaller(i, n - 1));
        Quad *to = dst + i;
        for (int64_t k = 0; k < s->kc; k += 2 * DEEP, to += 2 * width) {
            Quad quads[2];
            vi_store((int32_t *)quads, weight_pairs(row, s->k + k, s->k + s->kc, format));
            to[0] = quads[0];
            if (k + DEEP < s->kc) to[width] = quads[1];
        }
    }
}

/* Copies VL columns of up to DEEP rows that lie ld apart. Zeros stand for rows and columns that do not exist. */
INLINE void pack_quads(Quad *dst, const floatX *src, int64_t ld, int64_t rows, int64_t columns) {
    vh r[DEEP];
    UNROLL for (int i = 0; i < DEEP; i++) {
        r[i] = (vh){0};
        if (i < rows && columns > 0) r[i] = vh_load_n(src + i * ld, LANES(0, columns));
    }
    const int32x4_t first = vh_interleave(r[0], r[1]), second = vh_interleave(r[2], r[3]);
    vi_store((int32_t *)dst, vzip1q_s32(first, second));
    vi_store((int32_t *)(dst + HALF), vzip2q_s32(first, second));
}

/* The columns copied side by side, so that whole lines are read: the rows of a transposed A may lie far apart. */
enum { GROUP = 4 * MR };

static void copy_a_columns(const Gemm *g, const Block *s) {
    for (int64_t group = s->m; group < s->m_end; group += GROUP)
        for (int64_t k = 0; k < s->kc; k += DEEP) {
            Quad *dst = (Quad *)s->a + (group - s->m) * quads_of(s) + k / DEEP * MR;
            for (int64_t m = group; m < smaller(group + GROUP, s->m_end); m += MR, dst += quads_of(s) * MR)
                for (int i = 0; i < MR; i += VL)
                    pack_quads(dst + i, element(&g->a, m + i, s->k + k), g->a.ld, s->kc - k, s->m_end - m - i);
        }
}

static void copy_a(const Gemm *g, const Block *s) {
    if (g->a.transposed) copy_a_columns(g, s);
    else
        for (int64_t m = s->m; m < s->m_end; m += MR)
            pack_rows((Quad *)s->a + (m - s->m) * quads_of(s), MR, &g->a, m, s->m_end - m, s, LLMC_BF16);
}

static void copy_b(const Gemm *g, const Block *s, int64_t n, int64_t cols) {
    const int64_t width = up(cols, VL);
    Quad *dst = (Quad *)s->b;
    if (g->b.transposed) {
        FOR_FORMAT(g->b.format, pack_rows(dst, width, &g->b, n, cols, s, F));
        return;
    }
    for (int64_t k = 0; k < s->kc; k += DEEP, dst += width)
        for (int64_t j = 0; j < cols; j += VL)
            pack_quads(dst + j, element(&g->b, s->k + k, n + j), g->b.ld, s->kc - k, cols - j);
}

/* ---- a panel of C ---- */

static void panel(const Gemm *g, const Block *s, int64_t n) {
    const int cols = (int)smaller(NR, s->n_end - n), nv = (cols + VL - 1) / VL;
    copy_b(g, s, n, cols);
    Ahead next[2];
    float room[NR];
    const float *scales = scales_of(g, n, cols, room);
    look_ahead(next, &K(gemm_tiles), g, s, n, quads_of(s));
    for (int64_t m = s->m; m < s->m_end; m += MR) {
        Piece p = piece(g, s, m, n, cols, next);
        p.scales = scales;
        tiles[nv - 1](&p, quads_of(s), (Quad *)s->a + (m - s->m) * quads_of(s), (Quad *)s->b);
    }
}

const Tiles K(gemm_tiles) = {.size = {MR, NR, MC, NC, COPY},
                             .kc = 2 * KC,
                             .k_unit = DEEP,
                             .a_floats = A_FLOATS,
                             .b_floats = B_FLOATS,
                             .copy_a = copy_a,
                             .panel = panel};
#endif
