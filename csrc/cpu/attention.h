/* What attention's forward and backward share. A task is a block of up to QB queries of one head; it walks the keys they
 * see in blocks of up to KB. Scores are kept transposed, p[key][query]: each lane is a query, so that the softmax needs
 * no sum across lanes and keys and values are read as they lie. Only the queries (and dout) are transposed, once.
 *
 *   p   = K  q_t       p[j][i]   = sum over d of k[j][d] q_t[d][i]          (the same for dp = V dout_t)
 *   out = p' V         out[i][d] = sum over j of p[j][i] v[j][d]            (the same for dq = ds' K)
 *   dv  = p  dout      dv[j][d]  = sum over i of p[j][i] dout[i][d]         (the same for dk = ds q)
 *
 * Each is a sum of (one element) x (vectors): strip() keeps up to MR x NR vectors of the result in registers. Its Factor
 * goes by pointer: a struct of 24 bytes by value is copied through the stack, which stalls. */
#ifndef ATTENTION_H
#define ATTENTION_H
#include "isa.h"
#include "simd.h"
#include "threads.h"
#if defined(_OPENMP)
#include <omp.h>
#endif

enum { QB = 64, KB = 64, MR = 6, NR = VREGS / 8 };

static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline int padded(int hs) { return (hs + VL - 1) / VL * VL; }

/* every query sees the keys j <= i, j > i - window */
static inline int effective(int window, int T) { return window > 0 && window < T ? window : T; }
static inline int first_key(int i, int window) { return max(0, i - window + 1); }

/* Queries against keys; shift = position of the first query - position of the first key. Query i sees key j where
 * 0 <= shift + i - j < window. */
typedef struct {
    int shift, queries, keys, window;
} Block;
typedef struct {
    int from, to;
} Range;

static inline int all_visible(Block b) { return b.shift >= b.keys - 1 && b.shift + b.queries <= b.window; }
static inline Range keys_of(Block b, int i, int end) {
    return (Range){min(b.keys, max(0, b.shift + i - b.window + 1)), min(b.keys, b.shift + end)};
}
static inline Range queries_of(Block b, int j, int end) {
    return (Range){max(0, j - b.shift), min(b.queries, end - 1 + b.window - b.shift)};
}
/* which of the VL queries from i on see key j */
static inline vi visible(Block b, int i, int j) {
    const vi ago = vi_lanes(0) + (b.shift + i - j); /* lanes of 0 are a constant */
    return (ago >= 0) & (ago < b.window);
}

/* Scratch of one thread; rows are hp = padded(hs) floats, the transposed ones QB. */
typedef struct {
    float *q, *q_t, *dout, *dout_t; /* (QB, hp), (hp, QB): the block's queries, zero-padded */
    float *acc;                     /* (QB, hp): out or dq */
    float *p, *ds;                  /* (KB, QB) */
    float *lse, *sum;               /* (QB): forward: largest score, sum of exp; backward: lse, D */
    float *k, *v, *dk, *dv;         /* (T, hp) in the backward pass; the forward pass uses KB rows */
} Scratch;

static inline float *take(float *base, int64_t *used, int64_t floats) {
    float *at = base ? base + *used : base;
    *used += (floats + 15) / 16 * 16; /* 64 bytes */
    return at;
}
/* returns its size in floats; base may be NULL */
static inline int64_t scratch_at(Scratch *s, float *base, int T, int hs) {
    const int64_t hp = padded(hs), block = QB * hp, whole = max(T, KB) * hp;
    int64_t used = 0;
    s->q = take(base, &used, block), s->q_t = take(base, &used, block);
    s->dout = take(base, &used, block), s->dout_t = take(base, &used, block);
    s->acc = take(base, &used, block);
    s->p = take(base, &used, KB * QB), s->ds = take(base, &used, KB * QB);
    s->lse = take(base, &used, QB), s->sum = take(base, &used, QB);
    s->k = take(base, &used, whole), s->v = take(base, &used, whole);
    s->dk = take(base, &used, whole), s->dv = take(base, &used, whole);
    return used;
}
/* this thread's part of the workspace; T the same for all threads of one call */
static inline Scratch thread_scratch(const Context *ctx, int T, int hs) {
    Scratch s;
    int thread = 0;
#if defined(_OPENMP)
    thread = omp_get_thread_num();
#endif
    const int64_t size = scratch_at(&s, NULL, T, hs);
    scratch_at(&s, (float *)ctx->workspace + thread * size, T, hs);
    return s;
}

/* dst(rows, hp) = src * scale, zero in the padding */
static inline void load_rows(float *dst, const floatX *src, int64_t stride, int rows, int hs, float scale) {
    const int hp = padded(hs);
    for (int i = 0; i < rows; i++, dst += hp, src += stride)
        for (int d = 0; d < hs; d += VL) vf_store(dst + d, vf_load_n(src + d, LANES(d, hs)) * scale);
}
static inline void store_rows(floatX *dst, int64_t stride, const float *src, int rows, int hs, float scale) {
    const int hp = padded(hs);
    for (int i = 0; i < rows; i++, src += hp, dst += stride)
        for (int d = 0; d < hs; d += VL) vf_store_n(dst + d, vf_load(src + d) * scale, LANES(d, hs));
}
/* rows(QB, hp) and its transpose (hp, QB) of up to QB rows of src; the missing ones are zero */
static inline void load_transposed(float *rows, float *transposed, const floatX *src, int64_t stride, int n, int hs,
                                   float scale) {
    const int hp = padded(hs), end = (n + VL - 1) / VL * VL;
    load_rows(rows, src, stride, n, hs, scale);
    memset(rows + (int64_t)n * hp, 0, (size_t)(end - n) * hp * sizeof *rows);
    for (int i = 0; i < end; i += VL)
        for (int d = 0; d < hp; d += VL) {
            vf square[VL];
            for (int l = 0; l < VL; l++) square[l] = vf_load(rows + (int64_t)(i + l) * hp + d);
            vf_transpose(square);
            for (int l = 0; l < VL; l++) vf_store(transposed + (d + l) * QB + i, square[l]);
        }
}

/* what an attention is worth in threads_for's elements */
static inline int64_t elements(int64_t queries, int keys, int C) { return queries * keys * C / 16; }

/* element (i, k) is at[i*row + k*step] */
typedef struct {
    const float *at;
    int64_t row, step;
} Factor;

/* c(m, n VL) = or += a(m, depth) b(depth, n VL); everything fits the registers */
INLINE void tile(const int m, const int n, float *c, int64_t c_row, const Factor *a, const float *b, int64_t b_row,
                 int depth, int add) {
    vf sum[MR][NR];
#pragma GCC unroll 8
    for (int i = 0; i < m; i++)
#pragma GCC unroll 8
        for (int j = 0; j < n; j++) sum[i][j] = add ? vf_load(c + i * c_row + j * VL) : vf_set(0);
    const float *at = a->at;
    for (int k = 0; k < depth; k++, at += a->step, b += b_row) {
        vf row[NR];
#pragma GCC unroll 8
        for (int j = 0; j < n; j++) row[j] = vf_load(b + j * VL);
#pragma GCC unroll 8
        for (int i = 0; i < m; i++) {
            const vf x = vf_set(at[i * a->row]);
#pragma GCC unroll 8
            for (int j = 0; j < n; j++) sum[i][j] += x * row[j];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < m; i++)
#pragma GCC unroll 8
        for (int j = 0; j < n; j++) vf_store(c + i * c_row + j * VL, sum[i][j]);
}

INLINE void tile_rows(int m, const int n, float *c, int64_t c_row, const Factor *a, const float *b, int64_t b_row,
                      int depth, int add) {
    switch (m) {
    case 1: tile(1, n, c, c_row, a, b, b_row, depth, add); break;
    case 2: tile(2, n, c, c_row, a, b, b_row, depth, add); break;
    case 3: tile(3, n, c, c_row, a, b, b_row, depth, add); break;
    case 4: tile(4, n, c, c_row, a, b, b_row, depth, add); break;
    case 5: tile(5, n, c, c_row, a, b, b_row, depth, add); break;
    default: tile(MR, n, c, c_row, a, b, b_row, depth, add);
    }
}

/* the same for m <= MR and any n (in vectors) and depth, also none */
static __attribute__((noinline)) void strip(float *c, int64_t c_row, const Factor *a, const float *b, int64_t b_row,
                                            int m, int n, int depth, int add) {
    for (; n > 0; n -= NR, c += NR * VL, b += NR * VL) switch (min(n, NR)) {
        case 1: tile_rows(m, 1, c, c_row, a, b, b_row, depth, add); break;
        case 2: tile_rows(m, 2, c, c_row, a, b, b_row, depth, add); break;
#if VREGS >= 32
        case 3: tile_rows(m, 3, c, c_row, a, b, b_row, depth, add); break;
        case 4: tile_rows(m, 4, c, c_row, a, b, b_row, depth, add); break;
#endif
        }
}

/* The products of a block. Each leaves out what no query of the strip sees. */

/* p[j][i] = x[j] . y_t[.][i], rows of x `stride` apart */
static inline void products_of_rows(Block b, float *p, const float *x, int64_t stride, const float *y_t, int hs) {
    for (int j = 0; j < b.keys; j += MR) {
        const int m = min(MR, b.keys - j);
        const Range r = queries_of(b, j, j + m);
        const int i = r.from / VL * VL, vectors = (r.to - i + VL - 1) / VL;
        strip(p + j * QB + i, QB, &(Factor){x + j * stride, stride, 1}, y_t + i, QB, m, vectors, hs, 0);
    }
}
/* acc[i] += sum over j of p[j][i] x[j] */
static inline void sums_over_keys(Block b, float *acc, const float *p, const float *x, int hp) {
    for (int i = 0; i < b.queries; i += MR) {
        const int m = min(MR, b.queries - i);
        const Range r = keys_of(b, i, i + m);
        strip(acc + i * hp, hp, &(Factor){p + r.from * QB + i, 1, QB}, x + r.from * hp, hp, m, hp / VL, r.to - r.from,
              1);
    }
}
/* acc[j] += sum over i of p[j][i] x[i] */
static inline void sums_over_queries(Block b, float *acc, const float *p, const float *x, int hp) {
    for (int j = 0; j < b.keys; j += MR) {
        const int m = min(MR, b.keys - j);
        const Range r = queries_of(b, j, j + m);
        strip(acc + j * hp, hp, &(Factor){p + j * QB + r.from, QB, 1}, x + r.from * hp, hp, m, hp / VL, r.to - r.from,
              1);
    }
}
#endif
