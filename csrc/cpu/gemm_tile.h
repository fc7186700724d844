/* What the two kinds of tile share, in fp32 (gemm_fp32.c) and in bf16 (gemm_bf16.c): sizes, and what happens to C. */
#ifndef GEMM_TILE_H
#define GEMM_TILE_H
#include "ahead.h"
#include "gemm.h"
#include "simd.h"
#include "weights.h"

#if VREGS == 32
#define MR 8
#define NV 3
#else
#define MR 6
#define NV 2
#endif
enum {
    NR = NV * VL,
    KC = 192,           /* products in a row, at most, before their sum joins the others: the fewer, the more exact */
    MC = 512 / MR * MR, /* MC x KC words of A: half of the second cache */
    A_FLOATS = (MC * KC + 15) / 16 * 16,
    B_FLOATS = NR * KC,
    OWN_FLOATS = A_FLOATS + B_FLOATS, /* of the workspace, for each thread */
};

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#define UNROLL_2 _Pragma("clang loop unroll_count(2)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#define UNROLL_2 _Pragma("GCC unroll 2")
#endif

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static inline const float *element(const Operand *x, int64_t i, int64_t j) {
    return x->transposed ? x->at + j * x->ld + i : x->at + i * x->ld + j;
}

/* a piece of C that one thread computes, and the block k..k+kc of the sums at work */
typedef struct Block {
    int64_t m, m_end, n, n_end, k, kc;
    float *a, *b; /* this thread's copies: of A's block in panels of MR rows, of B's panel */
    int in_place; /* B is read where it lies, but for a last panel that is not of whole vectors */
} Block;

void K(gemm_copy_fp32)(const Gemm *g, const Block *s);             /* copies the block's rows of A */
void K(gemm_panel_fp32)(const Gemm *g, const Block *s, int64_t n); /* up to NR columns of C from n on */
#if HAS_BF16
void K(gemm_copy_bf16)(const Gemm *g, const Block *s);
void K(gemm_panel_bf16)(const Gemm *g, const Block *s, int64_t n);
#endif
void K(gemm_finish)(const Gemm *g, int64_t m, int64_t n, int rows, int cols); /* GELU or its slope */
#ifdef BLAS_SGEMM
int K(gemm_blas)(Context *ctx, const Gemm *g); /* 0 if it left that to us */
#endif
int K(gemm_is_few)(const Gemm *g); /* A has so few rows that dots are faster */
void K(gemm_dots)(const Gemm *g, float *workspace, int threads);

/* ---- asking the second cache for what is copied next, a share of it in each step of a tile ---- */

enum { STEP = 16 }; /* products from one share to the next */

/* elements i..i+rows, j..j+cols of an operand */
static inline Ahead ahead(const Operand *x, int64_t i, int64_t rows, int64_t j, int64_t cols, int64_t steps) {
    const int64_t each = number_bytes(x->format), stride = row_bytes(x->format, x->ld);
    if (x->transposed) return ahead(&(Operand){x->at, x->ld, 0, x->format}, j, cols, i, rows, steps);
    return (Ahead){.row = (const char *)x->at + i * stride + j * each,
                   .bytes = cols * each,
                   .stride = stride,
                   .left = rows,
                   .share = (rows * ((cols * each + 63) / 64) + steps - 1) / steps};
}

/* after the panel at n, whose tiles add up `depth` products: the next of B; after the last, the next block of K of both */
static inline void look_ahead(Ahead next[2], const Gemm *g, const Block *s, int64_t n, int64_t depth) {
    const int last = n + NR >= s->n_end;
    const int64_t k = s->k + (last ? s->kc : 0), kc = smaller(s->kc, g->K - k);
    const int64_t at = last ? s->n : n + NR, tiles = (s->m_end - s->m + MR - 1) / MR;
    const int64_t steps = tiles * ((depth + STEP - 1) / STEP);
    next[0] = next[1] = (Ahead){0};
    if (kc > 0) next[0] = ahead(&g->b, k, kc, at, smaller(NR, s->n_end - at), steps);
    if (kc > 0 && last) next[1] = ahead(&g->a, s->m, s->m_end - s->m, k, kc, steps);
}

/* ---- what happens to C ---- */

/* a tile, or less at the edges */
typedef struct Piece {
    const Gemm *g;
    int64_t m, n;
    int rows, cols;
    int add, last;       /* C already holds a part of the sum; the sum is whole now */
    Ahead *next;         /* two */
    const float *scales; /* (cols), or NULL: what the tile's sums are multiplied by */
} Piece;

static inline Piece piece(const Gemm *g, const Block *s, int64_t m, int64_t n, int cols, Ahead *next) {
    const int rows = (int)smaller(MR, s->m_end - m);
    return (Piece){g, m, n, rows, cols, g->accumulate || s->k > 0, s->k + s->kc == g->K, next, NULL};
}

/* sum holds elements (m, n..n+lanes) */
INLINE void put(const Gemm *g, int64_t m, int64_t n, int lanes, vf sum, int add, int last) {
    float *c = g->c + m * g->N + n;
    if (add) sum += vf_load_n(c, lanes);
    if (last && g->bias) sum += vf_load_n(g->bias + n, lanes);
    vf_store_n(c, sum, lanes);
}

APART void store_edge(const Piece *p, const float *sums) {
    for (int i = 0; i < p->rows; i++)
        for (int j = 0; j < p->cols; j += VL)
            put(p->g, p->m + i, p->n + j, LANES(j, p->cols), vf_load(sums + i * NR + j), p->add, p->last);
}

INLINE void finish(const Gemm *g, int64_t m, int64_t n, int rows, int cols) {
    if (g->gelu || g->slope) K(gemm_finish)(g, m, n, rows, cols);
}

/* A row of C in each of a tile's last steps: asked for earlier, it would have left the first cache again. With fewer steps
 * than rows some are not asked for: so few products leave room in the caches for C. */
INLINE void ask_for_c(const Piece *p, int64_t products_left) {
    const int64_t i = MR - (products_left + STEP - 1) / STEP;
    if (p->g->stream || i < 0 || i >= p->rows) return;
    for (int j = 0; j < p->cols; j += 16) __builtin_prefetch(p->g->c + (p->m + i) * p->g->N + p->n + j, 1);
}

/* past the caches, whose lines need not be read first */
INLINE void stream(float *aligned, vf v) {
#if defined(__AVX512F__)
    _mm512_stream_ps(aligned, v);
#elif defined(__AVX2__)
    _mm256_stream_ps(aligned, v);
#else
    vf_store(aligned, v);
#endif
}

static inline void end_streams(void) { /* before another thread reads */
#if VL >= 8
    _mm_sfence();
#endif
}

INLINE void store_tile(const Piece *p, vf acc[MR][NV], const int nv) {
    const int64_t ld = p->g->N;
    float *c = p->g->c + p->m * ld + p->n;
    if (p->rows < MR || p->cols < nv * VL) {
        float sums[MR * NR];
        UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < nv; j++)
            vf_store(sums + i * NR + j * VL, acc[i][j]);
        store_edge(p, sums);
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
