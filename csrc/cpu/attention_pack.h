/* The operands of attention's products: n rows of qkv, each hs numbers, `stride` apart. They are copied without gaps and
 * padded with zeros to whole vectors (for AMX to whole tiles, pairs in both directions), as floats or as words of two bf16.
 *
 *             floats                       words, where HAS_BF16
 *   rows      (n, hp)                      (n, words), a word = two neighbours of a row
 *   pairs     (n, hp), the same            (n/2, hp), a word = the same number of two neighbouring rows
 *   columns   (hs, ld), lanes are rows     (hs/2, ld), lanes are rows, a word = two neighbours of a row */
#ifndef ATTENTION_PACK_H
#define ATTENTION_PACK_H
#include "ahead.h"
#include "attention.h"

typedef struct {
    const floatX *at;
    int64_t stride;
    int n, hs;
} Rows;

enum { SHARE = 4 }; /* the lines asked for with each strip */
/* Prepares to ask for rows before they are packed. */
static inline Ahead rows_ahead(Rows r) {
    const int64_t each = sizeof(floatX);
    return (Ahead){
        .row = (const char *)r.at, .bytes = r.hs * each, .stride = r.stride * each, .left = r.n, .share = SHARE};
}

/* The VL numbers of row i from d on, as floats; 0 past the last row and past the end of a row. */
static inline vf vector_of(const Rows *r, int i, int d) {
    if (i >= r->n || d >= r->hs) return vf_set(0);
    return fx_load_n(r->at + i * r->stride + d, LANES(d, r->hs));
}
/* The VL steps of row i from step k on: numbers, or words of two neighbours as they are stored. */
static inline vf steps_of(const Rows *r, int i, int k) {
    if (!HAS_BF16) return vector_of(r, i, k);
    if (i >= r->n || 2 * k >= r->hs) return vf_set(0);
    return (vf)vh_words_n(r->at + i * r->stride + 2 * k, min(r->hs - 2 * k, 2 * VL));
}
/* The words of the numbers d, d + 1, ... of rows i and i + 1: fx_load_n has put a bf16 into the upper half of a float. */
static inline vf pairs_of(const Rows *r, int i, int d) {
    return (vf)((vu)vector_of(r, i, d) >> 16 | (vu)vector_of(r, i + 1, d));
}
/* The first and the second numbers of words. */
static inline vf lower(vf words) { return (vf)((vu)words << 16); }
static inline vf upper(vf words) { return (vf)((vu)words & 0xffff0000u); }
/* The length of a row of `rows`: hp, or its words. */
static inline int row_length(int hs) { return padded(steps(hs)); }

static inline void pack_rows(float *dst, Rows r) {
    const int length = row_length(r.hs);
    for (int i = 0; i < r.n; i++, dst += length)
        for (int k = 0; k < length; k += VL) vf_store(dst + k, steps_of(&r, i, k));
}
static inline void pack_pairs(float *dst, Rows r) {
    const int hp = padded(r.hs);
    if (!HAS_BF16) {
        pack_rows(dst, r);
        return;
    }
    for (int i = 0; i < summed(r.n); i += 2, dst += hp)
        for (int d = 0; d < hp; d += VL) vf_store(dst + d, pairs_of(&r, i, d));
}
static inline void pack_columns(float *dst, int64_t ld, Rows r) {
    for (int i = 0; i < r.n; i += VL)
        for (int k = 0; k < row_length(r.hs); k += VL) {
            vf square[VL];
            for (int l = 0; l < VL; l++) square[l] = steps_of(&r, i + l, k);
            vf_transpose(square);
            for (int l = 0; l < VL; l++) vf_store(dst + (k + l) * ld + i, square[l]);
        }
}

/* D of VL queries, summed in the order in which dP is, so that dP - D is exactly 0 for a query that sees one key. A tile
 * adds up the products of a row's even and of its odd numbers apart. */
static inline vf dot_of_rows(const Rows *dout, const Rows *out, int i) {
    vf D = vf_set(0), even = D, odd = D;
    for (int k = 0; k < row_length(out->hs); k += VL) {
        vf x[VL], y[VL];
        for (int l = 0; l < VL; l++) x[l] = steps_of(dout, i + l, k), y[l] = steps_of(out, i + l, k);
        vf_transpose(x), vf_transpose(y);
        if (!HAS_AMX) {
            for (int l = 0; l < VL; l++) D = multiply_add(D, x[l], y[l], HAS_BF16);
            continue;
        }
        for (int l = 0; l < VL; l++) even += lower(x[l]) * lower(y[l]), odd += upper(x[l]) * upper(y[l]);
        if ((k + VL) % PAD == 0) D += even + odd, even = odd = vf_set(0);
    }
    return D;
}

/* dst = src * scale. Rows of src are padded. */
static inline void store_rows(floatX *dst, int64_t stride, const float *src, int rows, int hs, float scale) {
    const int hp = padded(hs);
    for (int i = 0; i < rows; i++, src += hp, dst += stride)
        for (int d = 0; d < hs; d += VL) fx_store_n(dst + d, vf_load(src + d) * scale, LANES(d, hs));
}
#endif
