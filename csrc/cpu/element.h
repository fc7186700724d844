/* Vectors of floatX, the element in which weights and activations are stored. Kernels compute with floats; where floatX is
 * bfloat16, a load widens and a store rounds to nearest, ties to even. Denormals become zeros, except on Arm's BFCVTN. */
#ifndef ELEMENT_H
#define ELEMENT_H
#include "../kernels.h"
#include "simd.h"

typedef unsigned short vh __attribute__((vector_size(VL * 2)));

static inline vf vf_from_bf16(vh v) { /* by instruction, because the compiler's own conversions go through halves */
#if defined(__AVX512F__)
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)v), 16);
#elif defined(__AVX2__)
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)v), 16);
#else
    return (vf)(__builtin_convertvector(v, vu) << 16);
#endif
}

/* The lower halves of words whose upper halves are 0. */
static inline vh vh_from_words(vu words) {
#if defined(__AVX512F__)
    return (vh)_mm512_cvtepi32_epi16((__m512i)words);
#elif defined(__AVX2__)
    const __m128i low = _mm256_castsi256_si128((__m256i)words), high = _mm256_extracti128_si256((__m256i)words, 1);
    return (vh)_mm_packus_epi32(low, high);
#else
    return __builtin_convertvector(words, vh);
#endif
}

static inline vh vf_to_bf16(vf v) {
#if defined(__AVX512BF16__)
    return (vh)_mm512_cvtneps_pbh(v);
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    return (vh)vcvt_bf16_f32(v);
#else
    return vh_from_words(bf16_upper(v) >> 16);
#endif
}

/* Load and store the first n lanes, as vf_load_n and vf_store_n do. */
static inline vh vh_load_n(const void *p, int n) {
    vh v = {0};
    if (n == VL) {
        memcpy(&v, p, sizeof v);
        return v;
    }
#if defined(__AVX512F__)
    return (vh)_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
#else
    for (int i = 0; i < n; i++) v[i] = ((const unsigned short *)p)[i];
    return v;
#endif
}
/* The first n (0 < n <= 2 VL) numbers as words of two neighbours; the others are zeros. */
static inline vi vh_words_n(const void *p, int n) {
    vi words;
    if (n == 2 * VL) {
        memcpy(&words, p, sizeof words);
        return words;
    }
#if defined(__AVX512F__)
    return (vi)_mm512_maskz_loadu_epi16(~0u >> (2 * VL - n), p);
#else
    vh halves[2] = {vh_load_n(p, n < VL ? n : VL)};
    if (n > VL) halves[1] = vh_load_n((const char *)p + sizeof(vh), n - VL);
    memcpy(&words, halves, sizeof words);
    return words;
#endif
}
static inline void vh_store_n(void *p, vh v, int n) {
    if (n == VL) {
        memcpy(p, &v, sizeof v);
        return;
    }
#if defined(__AVX512F__)
    _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), (__m256i)v);
#else
    for (int i = 0; i < n; i++) ((unsigned short *)p)[i] = v[i];
#endif
}

/* The words (even[0], odd[0]), (even[1], odd[1]), ... */
static inline vi vh_interleave(vh even, vh odd) {
#if defined(__AVX512F__)
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)even), high = _mm512_cvtepu16_epi32((__m256i)odd);
    return (vi)_mm512_or_si512(low, _mm512_slli_epi32(high, 16));
#elif defined(__AVX2__)
    const __m256i low = _mm256_cvtepu16_epi32((__m128i)even), high = _mm256_cvtepu16_epi32((__m128i)odd);
    return (vi)_mm256_or_si256(low, _mm256_slli_epi32(high, 16));
#else
    return (vi)(__builtin_convertvector(even, vu) | __builtin_convertvector(odd, vu) << 16);
#endif
}

/* The format of a row of floatX. */
enum { ELEMENT_FORMAT = sizeof(floatX) == sizeof(float) ? LLMC_FP32 : LLMC_BF16 };

#if defined(FLOATX_BF16)
static inline vf fx_load_n(const floatX *p, int n) { return vf_from_bf16(vh_load_n(p, n)); }
static inline void fx_store_n(floatX *p, vf v, int n) { vh_store_n(p, vf_to_bf16(v), n); }
/* v as it will be read back. */
static inline vf fx_rounded(vf v) { return vf_from_bf16(vf_to_bf16(v)); }
static inline float fx_load_one(const floatX *p) {
    const uint32_t bits = (uint32_t)p->bits << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static inline void fx_store_one(floatX *p, float x) { fx_store_n(p, vf_set(x), 1); }
#else
static inline vf fx_load_n(const floatX *p, int n) { return vf_load_n(p, n); }
static inline void fx_store_n(floatX *p, vf v, int n) { vf_store_n(p, v, n); }
static inline vf fx_rounded(vf v) { return v; }
static inline float fx_load_one(const floatX *p) { return *p; }
static inline void fx_store_one(floatX *p, float x) { *p = x; }
#endif
static inline vf fx_load(const floatX *p) { return fx_load_n(p, VL); }
/* to[n] = from[n] as floats, and zeros up to a whole vector. */
static inline void fx_widen(float *to, const floatX *from, int64_t n) {
    for (int64_t i = 0; i < n; i += VL) vf_store(to + i, fx_load_n(from + i, LANES(i, n)));
}
#endif
