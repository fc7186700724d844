/* The operands of attention's products: n rows of qkv, each hs numbers, `stride` apart. They are copied without gaps and
 * padded with zeros to whole vectors (for AMX to whole tiles, pairs in both directions), in fp32 or as words of two bf16.
 *
 *             fp32                         bf16
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

/* The VL numbers of row i from d on; 0 past the last row and past the end of a row. */
static inline vf vector_of(const Rows *r, int i, int d) {
    if (i >= r->n || d >= r->hs) return vf_set(0);
    return vf_load_n(r->at + i * r->stride + d, LANES(d, r->hs));
}
/* The length of a row of `rows`: hp, or its words. */
static inline int row_length(int hs, int bf16) { return padded(steps(hs, bf16)); }

static inline void fp32_rows(float *dst, const Rows *r) {
    const int hp = padded(r->hs);
    for (int i = 0; i < r->n; i++, dst += hp)
        for (int d = 0; d < hp; d += VL) vf_store(dst + d, vector_of(r, i, d));
}
static inline void fp32_columns(float *dst, int64_t ld, const Rows *r) {
    for (int i = 0; i < r->n; i += VL)
        for (int d = 0; d < r->hs; d += VL) {
            vf square[VL];
            for (int l = 0; l < VL; l++) square[l] = vector_of(r, i + l, d);
            vf_transpose(square);
            for (int l = 0; l < VL; l++) vf_store(dst + (d + l) * ld + i, square[l]);
        }
}

static inline vf words_of(const Rows *r, int i, int d) {
    return (vf)bf16_in_order(vector_of(r, i, d), vector_of(r, i, d + VL));
}
static inline void bf16_rows(float *dst, const Rows *r) {
    const int length = row_length(r->hs, 1);
    for (int i = 0; i < r->n; i++, dst += length)
        for (int w = 0; w < length; w += VL) vf_store(dst + w, words_of(r, i, 2 * w));
}
static inline void bf16_pairs(float *dst, const Rows *r) {
    const int hp = padded(r->hs);
    for (int i = 0; i < summed(r->n); i += 2, dst += hp)
        for (int d = 0; d < hp; d += VL)
            vf_store(dst + d, (vf)bf16_interleave(vector_of(r, i, d), vector_of(r, i + 1, d)));
}
static inline void bf16_columns(float *dst, int64_t ld, const Rows *r) {
    for (int i = 0; i < r->n; i += VL)
        for (int w = 0; w < row_length(r->hs, 1); w += VL) {
            vf square[VL];
            for (int l = 0; l < VL; l++) square[l] = words_of(r, i + l, 2 * w);
            vf_transpose(square);
            for (int l = 0; l < VL; l++) vf_store(dst + (w + l) * ld + i, square[l]);
        }
}
/* x rounded to bf16. */
static inline vf bf16_rounded(vf x) { return (vf)(bf16_interleave(x, x) << 16); }

static inline void pack_rows(float *dst, Rows r, int bf16) { (bf16 ? bf16_rows : fp32_rows)(dst, &r); }
static inline void pack_pairs(float *dst, Rows r, int bf16) { (bf16 ? bf16_pairs : fp32_rows)(dst, &r); }
static inline void pack_columns(float *dst, int64_t ld, Rows r, int bf16) {
    (bf16 ? bf16_columns : fp32_columns)(dst, ld, &r);
}

/* dst = src * scale. Rows of src are padded. */
static inline void store_rows(floatX *dst, int64_t stride, const float *src, int rows, int hs, float scale) {
    const int hp = padded(hs);
    for (int i = 0; i < rows; i++, src += hp, dst += stride)
        for (int d = 0; d < hs; d += VL) vf_store_n(dst + d, vf_load(src + d) * scale, LANES(d, hs));
}
#endif
