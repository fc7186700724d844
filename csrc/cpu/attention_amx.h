/* Attention's products on Intel's tiles, of words of two bf16. Lanes are queries forward and keys backward, and words of
 * lanes are what a tile needs as the right operand; so a product whose result has a row for each lane is computed transposed:
 *
 *     scores (key, query) = K q_t                       dv, dk (d, key) = dout', q' times P, dS
 *     out (d, query) = V' P                             dq (query, d)   = dS K
 *
 * All sizes are padded to whole tiles. Numbers past the last key or query are zeros wherever they are summed over. */
#ifndef ATTENTION_AMX_H
#define ATTENTION_AMX_H
#include "attention_pack.h"
#if HAS_AMX
#include "amx.h"

/* c = or += a b, for rows x cols tiles of c, each 1 or 2, over `depth` tiles. A row of x has x_row words. */
INLINE void square(float *c, int64_t c_row, const float *a, int64_t a_row, const float *b, int64_t b_row, int depth,
                   const int add, const int rows, const int cols) {
    float *const low = c + TILE * c_row;
    if (add) {
        AMX_LOAD(0, c, c_row * 4);
        if (cols > 1) AMX_LOAD(1, c + TILE, c_row * 4);
        if (rows > 1) AMX_LOAD(2, low, c_row * 4);
        if (rows > 1 && cols > 1) AMX_LOAD(3, low + TILE, c_row * 4);
    } else {
        AMX_ZERO(0);
        if (cols > 1) AMX_ZERO(1);
        if (rows > 1) AMX_ZERO(2);
        if (rows > 1 && cols > 1) AMX_ZERO(3);
    }
    for (int k = 0; k < depth; k++, a += TILE, b += TILE * b_row) {
        AMX_LOAD(6, b, b_row * 4);
        AMX_LOAD(4, a, a_row * 4);
        AMX_DOT(0, 4, 6);
        if (cols > 1) AMX_LOAD(7, b + TILE, b_row * 4);
        if (cols > 1) AMX_DOT(1, 4, 7);
        if (rows > 1) AMX_LOAD(5, a + TILE * a_row, a_row * 4);
        if (rows > 1) AMX_DOT(2, 5, 6);
        if (rows > 1 && cols > 1) AMX_DOT(3, 5, 7);
    }
    AMX_STORE(0, c, c_row * 4);
    if (cols > 1) AMX_STORE(1, c + TILE, c_row * 4);
    if (rows > 1) AMX_STORE(2, low, c_row * 4);
    if (rows > 1 && cols > 1) AMX_STORE(3, low + TILE, c_row * 4);
}

#define SQUARE(name, add, rows, cols)                                                                      \
    APART void name(float *c, int64_t c_row, const float *a, int64_t a_row, const float *b, int64_t b_row, \
                    int depth) {                                                                           \
        square(c, c_row, a, a_row, b, b_row, depth, add, rows, cols);                                      \
    }
/* clang-format off */
SQUARE(new_1_1, 0, 1, 1)
SQUARE(new_1_2, 0, 1, 2)
SQUARE(new_2_1, 0, 2, 1)
SQUARE(new_2_2, 0, 2, 2)
SQUARE(add_1_1, 1, 1, 1)
SQUARE(add_1_2, 1, 1, 2)
SQUARE(add_2_1, 1, 2, 1)
SQUARE(add_2_2, 1, 2, 2)
/* clang-format on */
typedef void (*Square)(float *, int64_t, const float *, int64_t, const float *, int64_t, int);
static const Square squares[2][2][2] = {{{new_1_1, new_1_2}, {new_2_1, new_2_2}},
                                        {{add_1_1, add_1_2}, {add_2_1, add_2_2}}};

static inline int in_tiles(int n) { return (int)ceil_div(n, TILE); }

/* c(rows, cols) = or += a b over the tiles `depth` of the sum. */
static inline void amx_product(float *c, int64_t c_row, const float *a, int64_t a_row, const float *b, int64_t b_row,
                               int rows, int cols, Range depth, int add) {
    const int m = in_tiles(rows), n = in_tiles(cols);
    for (int j = 0; j < n; j += 2)
        for (int i = 0; i < m; i += 2)
            squares[add][i + 1 < m][j + 1 < n](c + (i * c_row + j) * TILE, c_row, a + (i * a_row + depth.from) * TILE,
                                               a_row, b + (depth.from * b_row + j) * TILE, b_row,
                                               depth.to - depth.from);
}

/* The tiles of words that cover a range of numbers. */
static inline Range in_depth(Range r) {
    return (Range){r.from / DEPTH, max(r.from / DEPTH, (r.to + DEPTH - 1) / DEPTH)};
}
#else
static inline void amx_product(float *c, int64_t c_row, const float *a, int64_t a_row, const float *b, int64_t b_row,
                               int rows, int cols, Range depth, int add) {
    (void)c, (void)c_row, (void)a, (void)a_row, (void)b, (void)b_row, (void)rows, (void)cols, (void)depth, (void)add;
}
static inline Range in_depth(Range r) { return r; }
static inline void amx_begin(void) {}
static inline void amx_end(void) {}
#endif

/* A task that multiplies on tiles begins with amx_begin() and ends with this. */
static inline void end_products(void) {
    if (HAS_AMX) amx_end(), end_streams();
}

_Static_assert(QB == KB, "a row of p and of what is transposed has KB numbers, whether its lanes are keys or queries");
enum { BLOCK = 32 }; /* lanes of a product that is left out as a whole if nothing in it is visible */

/* Asks for as many lines as the eight strips that a square of tiles replaces. */
static inline void ask_often(Ahead *next) {
    for (int i = 0; i < 8; i++) ask(next);
}

typedef Range Seen(Block, int, int); /* keys_of or queries_of */

/* p(rows, lanes) = x y_t. Squares of which nothing is visible are left out; `seen` tells the lanes that some rows see. */
static inline void amx_scores(float *p, const float *x, const float *y_t, Block b, int rows, Seen *seen, int hs,
                              Ahead *next) {
    const int length = row_length(hs);
    for (int i = 0; i < rows; i += BLOCK) {
        const int m = min(BLOCK, rows - i);
        const Range r = seen(b, i, i + m);
        const int from = r.from / BLOCK * BLOCK;
        ask_often(next);
        if (r.to > r.from)
            amx_product(p + i * KB + from, KB, x + i * length, length, y_t + from, KB, m, r.to - from,
                        in_depth((Range){0, hs}), 0);
    }
}

/* sums(d, lanes) += x(d, rows) p(rows, lanes); `seen` tells the rows that some lanes see. */
static inline void amx_sums(float *sums, const float *x, const float *p, Block b, int lanes, Seen *seen, int hs,
                            Ahead *next) {
    for (int j = 0; j < lanes; j += BLOCK) {
        const int n = min(BLOCK, lanes - j);
        if (next) ask_often(next);
        amx_product(sums + j, KB, x, KB / 2, p + j, KB, hs, n, in_depth(seen(b, j, j + n)), 1);
    }
}

/* dq(queries, d) += ds(queries, keys) k(keys, d). */
static inline void amx_sums_of_keys(float *dq, const float *ds, const float *k, Block b, int hs, Ahead *next) {
    const int hp = padded(hs);
    for (int i = 0; i < b.queries; i += BLOCK) {
        const int m = min(BLOCK, b.queries - i);
        ask_often(next);
        amx_product(dq + i * hp, hp, ds + i * (KB / 2), KB / 2, k, hp, m, hs, in_depth(keys_of(b, i, i + m)), 1);
    }
}

/* Words of p that belong to no row become zeros, up to a whole tile: p has two rows in a word, `rows` of them. */
static inline void clear_words(float *p, int rows) {
    const int64_t from = steps(rows), end = summed(rows) / 2;
    memset(p + from * KB, 0, (size_t)((end - from) * KB) * sizeof *p);
}

/* The columns of out (hp, QB) times their factors. */
static inline void scale_columns(float *out, int hp, const float *factors, int columns) {
    for (int i = 0; i < columns; i += VL) {
        int scales = 0;
        for (int l = i; l < i + VL; l++) scales |= factors[l] != 1;
        for (int d = 0; scales && d < hp; d++)
            vf_store(out + d * QB + i, vf_load(out + d * QB + i) * vf_load(factors + i));
    }
}

/* (hp, KB/2): word j of row d holds the numbers d of the rows 2j and 2j + 1; zeros past the last row. Words of two rows give
 * a word of their even numbers and one of their odd numbers, which are then transposed. */
static inline void pack_pair_columns(float *dst, Rows x) {
    for (int j = 0; j < KB / 2; j += VL)
        for (int k = 0; k < row_length(x.hs); k += VL)
            for (int odd = 0; odd < 2; odd++) {
                vf r[VL];
                for (int l = 0; l < VL; l++) {
                    const vu a = (vu)steps_of(&x, 2 * (j + l), k), b = (vu)steps_of(&x, 2 * (j + l) + 1, k);
                    r[l] = (vf)(odd ? a >> 16 | (b & 0xffff0000u) : (a & 0xffffu) | b << 16);
                }
                vf_transpose(r);
#pragma GCC unroll 16
                for (int l = 0; l < VL; l++) {
                    const int d = 2 * (k + l) + odd;
                    if (d < padded(x.hs)) vf_store(dst + d * (KB / 2) + j, r[l]);
                }
            }
}

/* VL columns of src (VL, KB), times their factors, become rows. */
static inline void rows_of_columns(vf r[VL], const float *src, const float *scale) {
    for (int l = 0; l < VL; l++) r[l] = vf_load(src + l * KB) * vf_load(scale);
    vf_transpose(r);
}

/* Row i of dst = column i of src (hs, KB), times scale[i] (KB). */
static inline void store_columns(floatX *dst, int64_t stride, const float *src, int rows, int hs, const float *scale) {
    const int streams = hs % (2 * VL) == 0 && stride % (2 * VL) == 0 && (uintptr_t)dst % sizeof(vf) == 0;
    for (int i = 0; i < rows; i += VL)
        for (int d = 0; d < hs; d += 2 * VL) {
            vf first[VL], second[VL];
            rows_of_columns(first, src + d * KB + i, scale + i);
            if (hs > d + VL) rows_of_columns(second, src + (d + VL) * KB + i, scale + i);
            for (int l = 0; l < VL && i + l < rows; l++) {
                floatX *const at = dst + (i + l) * stride + d;
                if (streams) stream((float *)at, (vf)bf16_in_order(first[l], second[l]));
                else fx_store_n(at, first[l], LANES(d, hs));
                if (!streams && hs > d + VL) fx_store_n(at + VL, second[l], LANES(d + VL, hs));
            }
        }
}

/* Stores a segment's sums dk or dv, times scale. */
static inline void store_sums(floatX *dst, int stride, const float *sums, int keys, int hs, float scale) {
    float scales[KB];
    for (int j = 0; j < KB; j++) scales[j] = scale;
    if (!HAS_AMX) store_rows(dst, stride, sums, keys, hs, scale);
    for (int key = 0; HAS_AMX && key < keys; key += KB)
        store_columns(dst + key * stride, stride, sums + key * padded(hs), min(KB, keys - key), hs, scales);
}
#endif
