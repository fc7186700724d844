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
} Piece;

static inline Piece piece(const Gemm *g, const Block *s, int64_t m, int64_t n, int cols, Ahead *next) {
    const int rows = (int)smaller(MR, s->m_end - m);
    return (Piece){g, m, n, rows, cols, g->accumulate || s->k > 0, s->k + s->kc == g->K, next, NULL};
}

/* Asks for a row of C in each of a tile's last steps, because a row that is asked for earlier leaves the first cache again.
 * A tile with fewer steps than rows does not ask for all of them; it needs so little room that C stays in the caches. */
INLINE void ask_for_c(const Piece *p, int64_t products_left) {
    const int64_t i = MR - (products_left + STEP - 1) / STEP;
    if (p->g->stream || i < 0 || i >= p->rows) return;
    const Gemm *g = p->g;
    const int64_t each = has_floats(g) ? sizeof(float) : sizeof(floatX);
    const char *at = (const char *)g->c + ((p->m + i) * g->N + p->n) * each;
    for (int64_t j = 0; j < p->cols * each; j += 64) __builtin_prefetch(at + j, 1);
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

/* Ends a tile: its nv vectors of sums in each row go to C. */
INLINE void store_tile(const Piece *p, vf acc[MR][NV], const int nv) {
    const int64_t ld = p->g->N;
    float *c = (float *)p->g->c + p->m * ld + p->n;
    if (!has_floats(p->g) || p->rows < MR || p->cols < nv * VL) {
        float sums[MR * NR];
        UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < nv; j++)
            vf_store(sums + i * NR + j * VL, acc[i][j]);
        store_piece(p, sums);
        return;
    }
    if (p->add)
        UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < nv; j++) acc[i][j] +=
            vf_load(c + i * ld + j * VL);
    if (p->last && p->g->bias) {
        vf bias[NV];
        UNROLL for (int j = 0; j < nv; j++) bias[j] = fx_load(p->g->bias + p->n + j * VL);
        UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < nv; j++) acc[i][j] += bias[j];
    }
    if (p->g->stream) {
        UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < nv; j++) stream(c + i * ld + j * VL, acc[i][j]);
        return;
    }
    UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < nv; j++) vf_store(c + i * ld + j * VL, acc[i][j]);
}
#endif
