/* Vectors of masters: the floats that AdamW moves. They lie whole beside what is stored of them, or are split in two halves
 * (bf16_split in base/bf16.h), of which the upper one is what is stored. */
#ifndef MASTER_H
#define MASTER_H
#include "element.h"

typedef struct Master {
    void *param; /* floats; if they are split, the lower halves */
    floatX *stored;
} Master;

#if defined(FLOATX_BF16)
static inline vu words_from_lower(vh v) { /* -32768..32767 */
#if defined(__AVX512F__)
    return (vu)_mm512_cvtepi16_epi32((__m256i)v);
#elif defined(__AVX2__)
    return (vu)_mm256_cvtepi16_epi32((__m128i)v);
#else
    return (vu)((vi)(__builtin_convertvector(v, vu) << 16) >> 16);
#endif
}

static inline vf split_load(const Master *a, int64_t i, int n) {
    const vh upper = vh_load_n(a->stored + i, n), lower = vh_load_n((const uint16_t *)a->param + i, n);
    return (vf)((vu)vf_from_bf16(upper) + words_from_lower(lower));
}

static inline void split_store(const Master *a, int64_t i, vf v, int n) {
    const vu bits = (vu)vf_pick(v == v, v, vf_set(__builtin_nanf("")));
    vh_store_n(a->stored + i, vh_from_words((bits + 0x8000u) >> 16), n);
    vh_store_n((uint16_t *)a->param + i, vh_from_words(bits & 0xffffu), n);
}
#endif

/* Load and store the first n lanes of those that begin at i. split is a constant where this is inlined. */
INLINE vf master_load(const Master *a, int64_t i, int n, const int split) {
#if defined(FLOATX_BF16)
    if (split) return split_load(a, i, n);
#endif
    (void)split;
    return vf_load_n((const float *)a->param + i, n);
}

INLINE void master_store(const Master *a, int64_t i, vf v, int n, const int split) {
#if defined(FLOATX_BF16)
    if (split) {
        split_store(a, i, v, n);
        return;
    }
    fx_store_n(a->stored + i, v, n);
#endif
    (void)split;
    vf_store_n((float *)a->param + i, v, n);
}
#endif
