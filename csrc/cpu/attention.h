/* The common part of attention's forward and backward: which query sees which key, and the product that both consist of.
 *
 * All is done in blocks of up to QB queries and KB keys. Each of the seven products is a sum of (one number) x (vectors),
 * and strip() keeps up to MR x NR vectors of the result in registers. Where HAS_BF16 (simd.h), each number and each lane is
 * a word of two bf16 that follow each other along the sum. A sum then has half as many steps, and the same strip serves.
 * attention_pack.h brings the operands into either form. */
#ifndef ATTENTION_H
#define ATTENTION_H
#include <math.h>
#include "element.h"
#include "isa.h"
#include "threads.h"

enum { QB = 64, KB = 64, NR = VREGS / 8, MR = NR == 4 ? 4 : 6 };
enum {
    PAD = HAS_AMX ? 16 : VL,
    SUMMED = HAS_AMX ? 32 : 2
}; /* the lengths that rows, and sums of bf16, are padded to */

static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline int padded(int hs) { return (hs + PAD - 1) / PAD * PAD; }

/* Query i sees the keys j <= i, j > i - window. */
static inline int effective(int window, int T) { return window > 0 && window < T ? window : T; }
static inline int first_key(int i, int window) { return max(0, i - window + 1); }

/* A block of queries and keys. shift = position of the first query - position of the first key. Query i sees key j if
 * 0 <= shift + i - j < window. */
typedef struct {
    int shift, queries, keys, window;
} Block;
typedef struct {
    int from, to;
} Range;

/* A last key without a partner, in its word or its tile, makes the block count as one with an invisible key. */
static inline int all_visible(Block b) {
    return b.shift >= b.keys - 1 && b.shift + b.queries <= b.window && b.keys % SUMMED == 0;
}
static inline int none_visible(Block b) { return b.shift + b.queries <= 0 || b.shift - b.keys + 1 >= b.window; }
static inline Range keys_of(Block b, int i, int end) {
    return (Range){min(b.keys, max(0, b.shift + i - b.window + 1)), min(b.keys, b.shift + end)};
}
static inline Range queries_of(Block b, int j, int end) {
    return (Range){max(0, j - b.shift), min(b.queries, end - 1 + b.window - b.shift)};
}
/* A mask of VL queries from i on: those that see key j. And a mask of VL keys from j on: those that query i sees. */
static inline vi visible_to_queries(Block b, int i, int j) {
    const vi ago = vi_lanes(0) + (b.shift + i - j); /* lanes of 0 are a constant */
    return (ago >= 0) & (ago < b.window);
}
static inline vi visible_keys(Block b, int i, int j) {
    const vi ago = (b.shift + i - j) - vi_lanes(0);
    return (ago >= 0) & (ago < b.window);
}

/* ---- documents: `own` are the offsets (kernels.h) of a block's queries; NULL: the window is one document ---- */

static inline const int *offsets_at(const int *offsets, int64_t at) { return offsets ? offsets + at : NULL; }
/* The first key that query i sees. */
static inline int first_seen(const int *offsets, int i, int window) {
    return offsets ? max(first_key(i, window), i - offsets[i]) : first_key(i, window);
}
/* The most keys that one of n queries sees: a window for their block, so that what is too far away for all is left out. */
static inline int most_seen(const int *own, int n, int window) {
    int most = own ? 1 : window;
    for (int i = 0; own && i < n; i++) most = max(most, min(window, own[i] + 1));
    return most;
}
/* Whether the documents of all queries begin behind the block's keys; and whether that of some begins behind the first of them. */
static inline int is_of_others(const int *own, Block b) { return own && own[0] <= b.shift - b.keys; }
static inline int has_boundary(const int *own, Block b) { return own && own[b.queries - 1] < b.shift + b.queries - 1; }

/* The steps of a sum over n numbers, the range of steps that covers a range of numbers, and its range in whole vectors. */
static inline int steps(int n) { return HAS_BF16 ? (n + 1) / 2 : n; }
static inline Range in_steps(Range r) { return HAS_BF16 ? (Range){r.from / 2, (r.to + 1) / 2} : r; }
static inline Range in_vectors(Range r) { return (Range){r.from / VL * VL, (max(r.to, 0) + VL - 1) / VL * VL}; }

/* The numbers that a sum over n numbers of bf16 goes through; those past n must be zeros. */
static inline int summed(int n) { return HAS_AMX ? (n + SUMMED - 1) / SUMMED * SUMMED : n; }

/* The work of an attention in elements of threads_for. To pack and store a query costs as much as 64 more keys. */
static inline int64_t elements(int64_t queries, int keys, int C) { return queries * (keys + 64) * C / 16; }

int64_t K(attention_backward_workspace)(int64_t heads, int T, int hs, int threads); /* bytes */

static inline float *take(float *base, int64_t *used, int64_t floats) {
    float *at = base ? base + *used : base;
    *used += (floats + 15) / 16 * 16; /* 64 bytes */
    return at;
}

/* The factor that turns scores into exponents of 2. It is the sum of two floats, because an exponent's rounding error is
 * the largest of all. */
typedef struct {
    float high, low;
} Log2;
static inline Log2 log2_of(double x) { return (Log2){(float)x, (float)(x - (double)(float)x)}; }
/* log2(e) / sqrt(hs) */
static inline Log2 log2_of_score(int hs) { return log2_of(1.4426950408889634 / sqrt(hs)); }
/* exp(x / sqrt(hs)) of a difference x of scores, by a polynomial of so many terms. Only 6 are so exact that the factor's lower part
 * shows. */
INLINE vf weight_of(vf x, Log2 to_log2, const int terms) {
    return vf_exp2(terms == 6 ? x * to_log2.high + x * to_log2.low : x * to_log2.high, terms);
}

/* Number (or word) (i, k) is at[i*row + k*step]. A Factor is passed by pointer, because 24 bytes by value would go through
 * the stack, which stalls. */
typedef struct {
    const float *at;
    int64_t row, step;
} Factor;

/* c(m, n VL) = or += a(m, depth) b(depth, n VL). The m x n vectors of c stay in registers. */
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
            for (int j = 0; j < n; j++) sum[i][j] = multiply_add(sum[i][j], x, row[j], HAS_BF16);
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
#if VREGS < 32
    case 4: tile(4, n, c, c_row, a, b, b_row, depth, add); break;
    case 5: tile(5, n, c, c_row, a, b, b_row, depth, add); break;
#endif
    default: tile(MR, n, c, c_row, a, b, b_row, depth, add);
    }
}

/* The same for m <= MR and for any n (in vectors) and depth, even 0. */
APART void strip(float *c, int64_t c_row, const Factor *a, const float *b, int64_t b_row, int m, int n, int depth,
                 int add) {
    for (; n > 0; n -= NR, c += NR * VL, b += NR * VL) switch (min(n, NR)) {
        case 1: tile_rows(m, 1, c, c_row, a, b, b_row, depth, add); break;
        case 2: tile_rows(m, 2, c, c_row, a, b, b_row, depth, add); break;
#if VREGS >= 32
        case 3: tile_rows(m, 3, c, c_row, a, b, b_row, depth, add); break;
        case 4: tile_rows(m, 4, c, c_row, a, b, b_row, depth, add); break;
#endif
        }
}
#endif
