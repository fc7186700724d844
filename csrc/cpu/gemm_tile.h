/* A tile of MR rows and up to NV vectors of C, whose sums stay in registers. gemm_fp32.c, gemm_bf16.c and
 * gemm_bfmmla.c compute such tiles; this file has their sizes and stores their sums. */
#ifndef GEMM_TILE_H
#define GEMM_TILE_H
#include "gemm_block.h"

enum {
    MR = OF_ISA(isa_mr),
    NR = OF_ISA(isa_nr),
    NV = NR / VL,
    KC = 192,                    /* the most words of A and of B for one sum: the fewer, the more exact the result */
    MC = WAITING_ROWS / MR * MR, /* MC x KC words of A fill half of the second cache */
    NC = 3072,                   /* see struct Sizes */
    COPY = 40,
    A_FLOATS = (MC * KC + 15) / 16 * 16,
    B_FLOATS = NR * KC,
};

/* The part of C that a tile computes: a whole tile, or less at the edges of a block. */
typedef struct Piece {
    const Gemm *g;
    int64_t m, n;
    int rows, cols;
    int add, last;       /* there is a part of the sum already; the sum is whole now */
    Ahead *next;         /* two of them */
    const float *scales; /* (cols) factors of the tile's sums, or NULL */
    const char *ask;     /* the rows to ask for, of C or of the sums that wait: `asked` of them, ask_ld bytes apart */
    int64_t ask_ld, ask_bytes;
    int asked;
} Piece;

static inline Piece piece(const Gemm *g, const Block *s, int64_t m, int64_t n, int cols, Ahead *next) {
    const int rows = (int)smaller(MR, s->m_end - m), waits = g->sums.at != NULL;
    const int64_t each = waits || has_floats(g) ? sizeof(float) : sizeof(floatX);
    return (Piece){.g = g,
                   .m = m,
                   .n = n,
                   .rows = rows,
                   .cols = cols,
                   .add = g->accumulate || s->k > 0,
                   .last = s->k + s->kc == g->K,
                   .next = next,
                   .ask = waits ? (const char *)sum_at(g, m, n) : (const char *)g->c + (m * g->N + n) * each,
                   .ask_ld = sums_ld(g) * each,
                   .ask_bytes = cols * each,
                   .asked = g->stream ? 0 : rows};
}

/* Asks for a row of C, or of the sums that wait, in each of a tile's last steps, because a row that is asked for earlier leaves the
 * first cache again. A tile with fewer steps than rows does not ask for all of them; it needs so little room that they stay in the
 * caches. */
INLINE void ask_for_c(const Piece *p, int64_t products_left) {
    const int64_t i = MR - (products_left + STEP - 1) / STEP;
    if (i < 0 || i >= p->asked) return;
    const char *at = p->ask + i * p->ask_ld;
    for (int64_t j = 0; j < p->ask_bytes; j += 64) __builtin_prefetch(at + j, 1);
}

/* The scales of int8 columns, or NULL for other formats. The sums are multiplied by them, not the numbers. */
static inline const float *scales_of(const Gemm *g, int64_t n, int cols, float room[NR]) {
    for (int j = 0; j < cols && g->b.format == LLMC_INT8; j += VL)
        vf_store(room + j, weight_scales(g->b.at, LLMC_INT8, g->b.ld, n + j, LANES(j, cols)));
    return g->b.format == LLMC_INT8 ? room : NULL;
}

/* Multiplies a tile's sums by their columns' scales, if there are any. */
INLINE void scale_tile(const Piece *p, vf acc[MR][NV], const int nv) {
    if (p->scales)
        UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < nv; j++) acc[i][j] *=
            vf_load(p->scales + j * VL);
}

/* The piece gets a tile's sums from memory, rows of them NR apart. */
APART void store_piece(const Piece *p, const float *sums) {
    for (int i = 0; i < p->rows; i++)
        for (int j = 0; j < p->cols; j += VL)
            put(p->g, p->m + i, p->n + j, LANES(j, p->cols), vf_load(sums + i * NR + j), p->add, p->last);
}

/* Whether a tile has lanes behind C's edge, or GELU to compute before it is rounded. */
INLINE int is_special(const Piece *p, const int nv) {
    const int gelu = !has_floats(p->g) && p->last && (p->g->gelu || p->g->slope);
    return gelu || p->rows < MR || p->cols < nv * VL;
}

/* Stores a tile of whole sums, in C. */
INLINE void store_whole(const Piece *p, vf acc[MR][NV], const int nv) {
    const Gemm *g = p->g;
    const int64_t at = p->m * g->N + p->n;
    if (g->bias) {
        vf bias[NV];
        UNROLL for (int j = 0; j < nv; j++) bias[j] = fx_load(g->bias + p->n + j * VL);
        UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < nv; j++) acc[i][j] += bias[j];
    }
    if (!has_floats(g))
        UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < nv; j++)
            fx_store_n((floatX *)g->c + at + i * g->N + j * VL, acc[i][j], VL);
    else if (g->stream)
        UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < nv; j++)
            stream((float *)g->c + at + i * g->N + j * VL, acc[i][j]);
    else
        UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < nv; j++)
            vf_store((float *)g->c + at + i * g->N + j * VL, acc[i][j]);
}

/* Ends a tile: its nv vectors of sums in each row go to C, or to where they wait for the next part of K. */
INLINE void store_tile(const Piece *p, vf acc[MR][NV], const int nv) {
    if (is_special(p, nv)) {
        float sums[MR * NR];
        UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < nv; j++)
            vf_store(sums + i * NR + j * VL, acc[i][j]);
        store_piece(p, sums);
        return;
    }
    float *part = p->add || !p->last ? sum_at(p->g, p->m, p->n) : NULL;
    const int64_t ld = sums_ld(p->g);
    if (p->add)
        UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < nv; j++) acc[i][j] +=
            vf_load(part + i * ld + j * VL);
    if (p->last) store_whole(p, acc, nv);
    else
        UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < nv; j++)
            vf_store(part + i * ld + j * VL, acc[i][j]);
}
#endif
