/* The factors of dropout (kernels.h, base/philox.h), for many elements at once.
 *
 * A vector of VL floats holds VL/2 counters: each word has 64 bits, whose low half counts. So a product of two words needs
 * no shuffle, and what it leaves in the high half never matters. */
#ifndef DROPOUT_H
#define DROPOUT_H
#include "element.h"
#include "base/philox.h"

typedef uint64_t vq __attribute__((vector_size(VL * 4)));
enum { COUNTERS = VL / 2 }; /* in a vector */

/* The 64 bits of the low half of each word times m. */
static inline vq vq_multiply(vq words, uint32_t m) {
#if defined(__AVX512F__)
    return (vq)_mm512_mul_epu32((__m512i)words, _mm512_set1_epi64((long long)m));
#elif defined(__AVX2__)
    return (vq)_mm256_mul_epu32((__m256i)words, _mm256_set1_epi64x((long long)m));
#elif defined(__SSE2__)
    return (vq)_mm_mul_epu32((__m128i)words, _mm_set1_epi64x((long long)m));
#elif defined(__ARM_NEON)
    return (vq)vmull_u32(vmovn_u64((uint64x2_t)words), vdup_n_u32(m));
#else
    return (words & 0xffffffffu) * m;
#endif
}

/* The words of the counters (groups, rows, d->step, d->place), as dropout_words() computes them. */
INLINE void philox_words(const Dropout *d, vq groups, vq rows, vq words[4]) {
    const vq zero = {0};
    vq a = groups, b = rows, c = zero + d->step, e = zero + d->place;
    uint32_t key0 = d->key[0], key1 = d->key[1];
#pragma GCC unroll 7
    for (int round = 0; round < PHILOX_ROUNDS; round++, key0 += PHILOX_W0, key1 += PHILOX_W1) {
        const vq left = vq_multiply(a, PHILOX_M0), right = vq_multiply(c, PHILOX_M1);
        a = (right >> 32) ^ b ^ (zero + key0), c = (left >> 32) ^ e ^ (zero + key1);
        b = right, e = left;
    }
    words[0] = a, words[1] = b, words[2] = c, words[3] = e;
}

/* The factors for numbers of 16 bits. */
static inline vf factors_of(vi numbers, const Dropout *d) {
    return (vf)((vi)vf_set(d->scale) & (numbers >= (int)d->threshold));
}

/* factors[i][l] = the factor of row `row` + l and column 8 group + i. */
INLINE void factors_of_rows(const Dropout *d, uint32_t row, uint32_t group, vf factors[8]) {
    const vq zero = {0};
    vq rows, even[4], odd[4];
    for (int l = 0; l < COUNTERS; l++) rows[l] = 2 * (uint64_t)l;
    philox_words(d, zero + group, rows + row, even);
    philox_words(d, zero + group, rows + (row + 1), odd);
#pragma GCC unroll 4
    for (int w = 0; w < 4; w++) {
        const vu words = (vu)((even[w] & 0xffffffffu) | odd[w] << 32);
        factors[2 * w] = factors_of((vi)(words & 0xffffu), d);
        factors[2 * w + 1] = factors_of((vi)(words >> 16), d);
    }
}

/* Word l of a or b: words 2k and 2k + 1 of a and of b take turns, from a half of each; s: which half. */
#define LANE_PAIRS(l, s) (((l) / 2 % 2 ? VL : 0) + 2 * ((l) / 4 + (s) * VL / 4) + (l) % 2)

/* The 4 VL factors that a vector of counters makes, for the columns from 8 group on. */
enum { FACTORS = 4 * VL };
INLINE void factors_of_columns(const Dropout *d, uint32_t row, uint32_t group, float factors[FACTORS]) {
    const vq zero = {0};
    vq groups, words[4];
    for (int l = 0; l < COUNTERS; l++) groups[l] = (uint64_t)l;
    philox_words(d, groups + group, zero + row, words);
    const vf first = (vf)((words[0] & 0xffffffffu) | words[1] << 32);
    const vf second = (vf)((words[2] & 0xffffffffu) | words[3] << 32);
    const vf in_order[2] = {VF_SHUFFLE(first, second, LANE_PAIRS, 0), VF_SHUFFLE(first, second, LANE_PAIRS, 1)};
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const vf widened = vf_from_bf16(vh_load_n((const unsigned short *)in_order + i * VL, VL));
        vf_store(factors + i * VL, factors_of((vi)((vu)widened >> 16), d));
    }
}

/* The factors of 64 columns of a row, from column 8 group on. */
enum { COLUMNS = 64 };
INLINE void factors_of_row(const Dropout *d, uint32_t row, uint32_t group, float factors[COLUMNS]) {
    for (int c = 0; c < COLUMNS; c += FACTORS) factors_of_columns(d, row, group + (uint32_t)c / 8, factors + c);
}

/* out = inp times its factors, for n columns of a row from column `first` on, a multiple of 8. out may be inp. */
INLINE void drop_columns(floatX *out, const floatX *inp, const Dropout *d, uint32_t row, int first, int n) {
    float factors[COLUMNS];
    for (int c = 0; c < n; c += VL) {
        if (c % COLUMNS == 0) factors_of_row(d, row, (uint32_t)(first + c) / 8, factors);
        fx_store_n(out + c, fx_load_n(inp + c, LANES(c, n)) * vf_load(factors + c % COLUMNS), LANES(c, n));
    }
}
#endif
