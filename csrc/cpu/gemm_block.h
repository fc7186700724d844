/* A block of the matrix product, and what every kind of tile must supply to compute it. gemm.c cuts C into blocks and asks
 * one kind of tile for each; it takes the sizes from struct Tiles and knows nothing else of them. An instruction set gets
 * tiles of another shape from one more file with a struct Tiles. (Tiles that are not registers of vectors, as AMX's, have
 * blocks of their own: gemm_amx.c.) */
#ifndef GEMM_BLOCK_H
#define GEMM_BLOCK_H
#include "ahead.h"
#include "gelu.h"
#include "gemm.h"
#include "weights.h"

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static inline const floatX *element(const Operand *x, int64_t i, int64_t j) {
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
#if !HAS_AMX
extern const Tiles K(
    gemm_tiles); /* gemm_bfmmla.c where HAS_BFMMLA, else gemm_bf16.c where HAS_BF16, else gemm_fp32.c */
#endif

#if defined(FLOATX_FP32)
void K(gemm_finish)(const Gemm *g, int64_t m, int64_t n, int rows, int cols); /* GELU or its slope, of C */
#endif
#if defined(BLAS_SGEMM) && defined(FLOATX_FP32)
int K(gemm_blas)(Context *ctx, const Gemm *g); /* 0 if it left the product to us */
#endif
/* The next two exist where HAS_AMX. */
void K(gemm_amx)(const Gemm *g, float *workspace, int threads);
int64_t K(gemm_amx_own_floats)(void);
int64_t K(gemm_amx_shared_floats)(int64_t largest, int threads); /* they lie behind the threads' own parts */
void K(gemm_dots)(const Gemm *g, float *workspace, int threads);

/* The rows and columns of a block whose sums wait in a buffer of its thread, because C has bf16 and K more than one part. */
enum { WAITING_ROWS = 512, WAITING_COLS = 384 };
enum { WAITING = sizeof(floatX) == sizeof(float) ? 0 : WAITING_ROWS * WAITING_COLS };

/* The floats of the workspace that belong to one thread. */
static inline int64_t own_floats(void) {
#if HAS_AMX
    return K(gemm_amx_own_floats)();
#else
    return K(gemm_tiles).a_floats + K(gemm_tiles).b_floats + WAITING;
#endif
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

#if !HAS_AMX
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
#endif

/* ---- what happens to C ---- */

static inline int has_floats(const Gemm *g) { return sizeof(floatX) == sizeof(float) || g->is_float; }

/* Stores n lanes of C from element `at` on. */
INLINE void c_store_n(const Gemm *g, int64_t at, vf v, int n) {
    if (has_floats(g)) vf_store_n((float *)g->c + at, v, n);
    else fx_store_n((floatX *)g->c + at, v, n);
}

/* Where the sum of C(m, n) is if it is not whole yet. */
static inline float *sum_at(const Gemm *g, int64_t m, int64_t n) {
    const Sums s = g->sums;
    return s.at ? s.at + (m - s.m) * s.ld + (n - s.n) : (float *)g->c + m * g->N + n;
}

static inline int64_t sums_ld(const Gemm *g) { return g->sums.at ? g->sums.ld : g->N; }

/* x, which becomes the lanes of C from `at` on, after GELU's slope; GELU gets what C will hold. */
INLINE vf with_gelu(const Gemm *g, int64_t at, vf x, int lanes) {
    if (g->gelu) x = fx_rounded(x), fx_store_n(g->gelu + at, gelu(x), lanes);
    return g->slope ? x * gelu_slope(fx_load_n(g->slope + at, lanes)) : x;
}

/* C(m, n..n+lanes) gets the sum. */
INLINE void put(const Gemm *g, int64_t m, int64_t n, int lanes, vf sum, int add, int last) {
    const int64_t at = m * g->N + n;
    if (add) sum += vf_load_n(sum_at(g, m, n), lanes);
    if (!last) {
        vf_store_n(sum_at(g, m, n), sum, lanes);
        return;
    }
    if (g->bias) sum += fx_load_n(g->bias + n, lanes);
    c_store_n(g, at, has_floats(g) ? sum : with_gelu(g, at, sum, lanes), lanes);
}

/* Where C has floats, a stored piece of it gets GELU or its slope; bf16 got it from `put`, before it was rounded. */
INLINE void finish(const Gemm *g, int64_t m, int64_t n, int rows, int cols) {
#if defined(FLOATX_FP32)
    if (g->gelu || g->slope) K(gemm_finish)(g, m, n, rows, cols);
#else
    (void)g, (void)m, (void)n, (void)rows, (void)cols;
#endif
}

enum { LARGE_BYTES = 1 << 21 }; /* more than the second cache holds */
/* Whether C is large and can be stored past the caches, by whole registers. */
static inline int can_stream(const Gemm *g) {
    const int64_t each = has_floats(g) ? sizeof(float) : sizeof(floatX), whole = VL * (int64_t)sizeof(float);
    const uintptr_t addresses = (uintptr_t)g->c | (uintptr_t)g->gelu;
    return addresses % (uintptr_t)whole == 0 && g->N * each % whole == 0 && g->M * g->N * each >= LARGE_BYTES;
}
#endif
