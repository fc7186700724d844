/* A tile of MR rows and up to NV vectors of C, whose sums stay in registers. gemm_fp32.c and gemm_bf16.c compute such tiles;
 * this file has their sizes and stores their sums. */
#ifndef GEMM_TILE_H
#define GEMM_TILE_H
#include "gemm_block.h"

enum {
    MR = K(isa_mr),
    NR = K(isa_nr),
    NV = NR / VL,
    KC = 192,           /* the most words of A and of B for one sum: the fewer, the more exact the result */
    MC = 512 / MR * MR, /* MC x KC words of A fill half of the second cache */
    NC = 3072,          /* see struct Sizes */
    COPY = 40,
    A_FLOATS = (MC * KC + 15) / 16 * 16,
    B_FLOATS = NR * KC,
};

/* Asks for a row of C in each of a tile's last steps, because a row that is asked for earlier leaves the first cache again.
 * A tile with fewer steps than rows does not ask for all of them; it needs so little room that C stays in the caches. */
INLINE void ask_for_c(const Piece *p, int64_t products_left) {
    const int64_t i = MR - (products_left + STEP - 1) / STEP;
    if (p->g->stream || i < 0 || i >= p->rows) return;
    for (int j = 0; j < p->cols; j += 16) __builtin_prefetch(p->g->c + (p->m + i) * p->g->N + p->n + j, 1);
}

/* Ends a tile: its nv vectors of sums in each row go to C. */
INLINE void store_tile(const Piece *p, vf acc[MR][NV], const int nv) {
    const int64_t ld = p->g->N;
    float *c = p->g->c + p->m * ld + p->n;
    if (p->rows < MR || p->cols < nv * VL) {
        float sums[MR * NR];
        UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < nv; j++)
            vf_store(sums + i * NR + j * VL, acc[i][j]);
        store_piece(p, sums, NR);
        return;
    }
    if (p->add)
        UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < nv; j++) acc[i][j] +=
            vf_load(c + i * ld + j * VL);
    if (p->last && p->g->bias) {
        vf bias[NV];
        UNROLL for (int j = 0; j < nv; j++) bias[j] = vf_load(p->g->bias + p->n + j * VL);
        UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < nv; j++) acc[i][j] += bias[j];
    }
    if (p->g->stream) {
        UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < nv; j++) stream(c + i * ld + j * VL, acc[i][j]);
        return;
    }
    UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < nv; j++) vf_store(c + i * ld + j * VL, acc[i][j]);
}
#endif
