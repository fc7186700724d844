/* A block of the matrix product, and what every kind of tile must supply to compute it. gemm.c cuts C into blocks and asks
 * one kind of tile for each; it takes the sizes from struct Tiles and knows nothing else of them. An instruction set gets
 * tiles of another shape from one more file with a struct Tiles. (Tiles that are not registers of vectors, as AMX's, have
 * blocks of their own: gemm_amx.c.) */
#ifndef GEMM_BLOCK_H
#define GEMM_BLOCK_H
#include "ahead.h"
#include "gemm.h"
#include "simd.h"
#include "weights.h"

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

/* A part of C that one thread computes, and the part k..k+kc of its sums that is at work. */
typedef struct Block {
    int64_t m, m_end, n, n_end, k, kc;
    float *a, *b; /* this thread's copies: of A's rows of the block, and of B's columns of a panel */
    int in_place; /* B is read where it lies, except in a last panel that does not consist of whole vectors */
} Block;

typedef struct Sizes {
    int mr, nr; /* rows of C in a tile, columns in a panel */
    int mc, nc; /* rows and columns of a block, at most; mc is a multiple of mr */
    int copy;   /* to copy a row or a column of a block costs as much as so many more of the other */
} Sizes;

typedef struct Tiles {
    Sizes size;
    int kc, k_unit;             /* products in a block's sums: at most kc, a multiple of k_unit unless K ends there */
    int64_t a_floats, b_floats; /* the sizes of Block's copies, multiples of 16 */
    int in_place;               /* whether the tiles can read B where it lies */
    void (*copy_a)(const Gemm *g, const Block *s);           /* copies the block's rows of A */
    void (*panel)(const Gemm *g, const Block *s, int64_t n); /* computes up to nr columns of C from n on */
} Tiles;
extern const Tiles K(gemm_tiles_fp32);
#if HAS_BF16 && !HAS_AMX
extern const Tiles K(gemm_tiles_bf16);
#endif

void K(gemm_finish)(const Gemm *g, int64_t m, int64_t n, int rows, int cols); /* GELU or its slope */
#ifdef BLAS_SGEMM
int K(gemm_blas)(Context *ctx, const Gemm *g); /* 0 if it left the product to us */
#endif
void K(gemm_amx)(const Gemm *g, float *workspace, int threads); /* bf16 where HAS_AMX */
int64_t K(gemm_amx_own_floats)(void);
int64_t K(gemm_amx_shared_floats)(int64_t largest, int threads); /* they lie behind the threads' own parts */
int K(gemm_is_few)(const Gemm *g);                               /* A has so few rows that dots are faster */
void K(gemm_dots)(const Gemm *g, float *workspace, int threads);

/* The floats of the workspace that belong to one thread. */
static inline int64_t own_floats(void) {
    const int64_t fp32 = K(gemm_tiles_fp32).a_floats + K(gemm_tiles_fp32).b_floats;
#if HAS_AMX
    const int64_t bf16 = K(gemm_amx_own_floats)();
#elif HAS_BF16
    const int64_t bf16 = K(gemm_tiles_bf16).a_floats + K(gemm_tiles_bf16).b_floats;
#else
    const int64_t bf16 = 0;
#endif
    return bf16 > fp32 ? bf16 : fp32;
}

/* ---- asking the second cache for what is copied next, a share of it in each step of a tile ---- */

enum { STEP = 16 }; /* products between two shares */

/* The elements i..i+rows, j..j+cols of an operand, asked for in `steps` shares. */
static inline Ahead ahead(const Operand *x, int64_t i, int64_t rows, int64_t j, int64_t cols, int64_t steps) {
    const int64_t each = number_bytes(x->format), stride = row_bytes(x->format, x->ld);
    if (x->transposed) return ahead(&(Operand){x->at, x->ld, 0, x->format}, j, cols, i, rows, steps);
    return (Ahead){.row = (const char *)x->at + i * stride + j * each,
                   .bytes = cols * each,
                   .stride = stride,
                   .left = rows,
                   .share = (rows * ((cols * each + 63) / 64) + steps - 1) / steps};
}

/* What follows the panel at n, whose tiles add up `depth` products: B's next panel, or after the last panel the next part
 * of K, of both operands. */
static inline void look_ahead(Ahead next[2], const Tiles *t, const Gemm *g, const Block *s, int64_t n, int64_t depth) {
    const int last = n + t->size.nr >= s->n_end;
    const int64_t k = s->k + (last ? s->kc : 0), kc = smaller(s->kc, g->K - k);
    const int64_t at = last ? s->n : n + t->size.nr, tiles = (s->m_end - s->m + t->size.mr - 1) / t->size.mr;
    const int64_t steps = tiles * ((depth + STEP - 1) / STEP);
    next[0] = next[1] = (Ahead){0};
    if (kc > 0) next[0] = ahead(&g->b, k, kc, at, smaller(t->size.nr, s->n_end - at), steps);
    if (kc > 0 && last) next[1] = ahead(&g->a, s->m, s->m_end - s->m, k, kc, steps);
}

/* ---- what happens to C ---- */

/* The part of C that a tile computes: a whole tile, or less at the edges of a block. */
typedef struct Piece {
    const Gemm *g;
    int64_t m, n;
    int rows, cols;
    int add, last;       /* C holds a part of the sum already; the sum is whole now */
    Ahead *next;         /* two of them */
    const float *scales; /* (cols) factors of the tile's sums, or NULL */
} Piece;

static inline Piece piece(const Tiles *t, const Gemm *g, const Block *s, int64_t m, int64_t n, int cols, Ahead *next) {
    const int rows = (int)smaller(t->size.mr, s->m_end - m);
    return (Piece){g, m, n, rows, cols, g->accumulate || s->k > 0, s->k + s->kc == g->K, next, NULL};
}

/* C(m, n..n+lanes) gets the sum. */
INLINE void put(const Gemm *g, int64_t m, int64_t n, int lanes, vf sum, int add, int last) {
    float *c = g->c + m * g->N + n;
    if (add) sum += vf_load_n(c, lanes);
    if (last && g->bias) sum += vf_load_n(g->bias + n, lanes);
    vf_store_n(c, sum, lanes);
}

/* The piece gets a tile's sums from memory, rows of them ld apart. */
APART void __attribute__((unused)) store_piece(const Piece *p, const float *sums, int64_t ld) {
    for (int i = 0; i < p->rows; i++)
        for (int j = 0; j < p->cols; j += VL)
            put(p->g, p->m + i, p->n + j, LANES(j, p->cols), vf_load(sums + i * ld + j), p->add, p->last);
}

enum { LARGE = 1 << 19 }; /* elements of C that the second cache cannot hold */
/* Whether C is large and can be stored past the caches, by whole vectors. */
static inline int can_stream(const Gemm *g) {
    const uintptr_t addresses = (uintptr_t)g->c | (uintptr_t)g->gelu;
    return addresses % (VL * sizeof(float)) == 0 && g->N % VL == 0 && g->M * g->N >= LARGE;
}

INLINE void finish(const Gemm *g, int64_t m, int64_t n, int rows, int cols) {
    if (g->gelu || g->slope) K(gemm_finish)(g, m, n, rows, cols);
}
#endif
