/* A vector of VL floats and its operations, by GCC's vector extensions. The same source becomes SSE2, AVX2, AVX-512 or
 * NEON code. a*b + c becomes one fused multiply-add if the CPU has it. */
#ifndef SIMD_H
#define SIMD_H
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#define VL 16
#define VREGS 32
#elif defined(__AVX2__)
#include <immintrin.h>
#define VL 8
#define VREGS 16
#elif defined(__SSE2__)
#include <emmintrin.h>
#define VL 4
#define VREGS 16
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#define VL 4
#define VREGS 32
#else
#define VL 4
#define VREGS 16
#endif

#if defined(FLOATX_BF16) && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC) /* see gemm_bfmmla.c */
#define HAS_BFMMLA 1
#else
#define HAS_BFMMLA 0
#endif
/* Whether words of two bf16 are multiplied; where they are not, operands become floats first. */
#if defined(FLOATX_BF16) && (defined(__AVX512BF16__) || HAS_BFMMLA || defined(AMX_EMULATED))
#define HAS_BF16 1
#else
#define HAS_BF16 0
#endif
#if defined(FLOATX_BF16) && (defined(__AMX_BF16__) || defined(AMX_EMULATED)) /* see amx.h */
#define HAS_AMX 1
#else
#define HAS_AMX 0
#endif

#define INLINE static inline __attribute__((always_inline))
#define APART static __attribute__((noinline)) /* for a function that needs all registers for itself */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#define UNROLL_2 _Pragma("clang loop unroll_count(2)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#define UNROLL_2 _Pragma("GCC unroll 2")
#endif
typedef float vf __attribute__((vector_size(VL * 4)));
typedef int vi __attribute__((vector_size(VL * 4)));
typedef unsigned vu __attribute__((vector_size(VL * 4))); /* for bits that may wrap, as those of a NaN do */

static inline vf vf_set(float x) { return x - (vf){0}; } /* not x + 0, which would lose the sign of -0 */
static inline vf vf_load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline void vf_store(float *p, vf v) { memcpy(p, &v, sizeof v); }

static inline vi vi_lanes(int first) { /* first, first + 1, ... : fast where `first` is a constant */
    vi v;
    for (int i = 0; i < VL; i++) v[i] = first + i;
    return v;
}

/* Load and store the first n lanes (0 < n <= VL). The others read as 0 and are not written. If the compiler sees that
 * n == VL, this costs nothing extra; so one loop body serves whole vectors and the tail. */
static inline vf vf_load_n(const float *p, int n) {
    if (n == VL) return vf_load(p);
#if defined(__AVX512F__)
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#elif defined(__AVX2__)
    return _mm256_maskload_ps(p, (__m256i)(vi_lanes(0) < n));
#else
    vf v = {0};
    for (int i = 0; i < n; i++) v[i] = p[i];
    return v;
#endif
}
static inline void vf_store_n(float *p, vf v, int n) {
    if (n == VL) {
        vf_store(p, v);
        return;
    }
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), v);
#elif defined(__AVX2__)
    _mm256_maskstore_ps(p, (__m256i)(vi_lanes(0) < n), v);
#else
    for (int i = 0; i < n; i++) p[i] = v[i];
#endif
}

/* Stores past the caches, so that the line need not be read first. */
INLINE void stream(float *aligned, vf v) {
#if defined(__AVX512F__)
    _mm512_stream_ps(aligned, v);
#elif defined(__AVX2__)
    _mm256_stream_ps(aligned, v);
#else
    vf_store(aligned, v);
#endif
}

/* Makes what was stored past the caches visible to other threads. */
static inline void end_streams(void) {
#if VL >= 8
    _mm_sfence();
#endif
}

static inline vf vf_pick(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
/* Keeps the first n lanes of v and sets the others to 0. */
static inline vf vf_keep_n(vf v, int n) { return n == VL ? v : (vf)((vi_lanes(0) < n) & (vi)v); }

/* a > b ? a : b and a < b ? a : b as on x86: if either is NaN, the result is b. */
static inline vf vf_max(vf a, vf b) {
#if defined(__AVX512F__)
    return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
    return _mm256_max_ps(a, b);
#elif defined(__SSE2__)
    return _mm_max_ps(a, b);
#else
    return vf_pick(a > b, a, b);
#endif
}
static inline vf vf_min(vf a, vf b) {
#if defined(__AVX512F__)
    return _mm512_min_ps(a, b);
#elif defined(__AVX2__)
    return _mm256_min_ps(a, b);
#elif defined(__SSE2__)
    return _mm_min_ps(a, b);
#else
    return vf_pick(a < b, a, b);
#endif
}

/* The lanes are added (or compared) always in the same order: half of them to the other half. */
static inline float vf_sum(vf v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(v);
#else
    float x[VL];
    memcpy(x, &v, sizeof v);
    for (int half = VL / 2; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
#endif
}
static inline float vf_max_of(vf v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps(v);
#else
    float x[VL];
    memcpy(x, &v, sizeof v);
    for (int half = VL / 2; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] = x[i] > x[i + half] ? x[i] : x[i + half];
    return x[0];
#endif
}

static inline vf vf_sqrt(vf v) {
#if defined(__AVX512F__)
    return _mm512_sqrt_ps(v);
#elif defined(__AVX2__)
    return _mm256_sqrt_ps(v);
#elif defined(__SSE2__)
    return _mm_sqrt_ps(v);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    return vsqrtq_f32(v);
#else
    for (int i = 0; i < VL; i++) v[i] = __builtin_sqrtf(v[i]);
    return v;
#endif
}

/* 1 / x for 1 <= x < 2^126 with a relative error up to 2^-18, for what is rounded to bf16. The difference of bits is within 1/8
 * of it, and each of the two steps takes a power of the error: the third, then the second. x86 has an estimate, too, but
 * its bits are not the same on every CPU. */
static inline vf vf_rough_reciprocal(vf x) {
    const vf y = (vf)(0x7ef311c7u - (vu)x), error = 1 - x * y, z = y + y * (error + error * error);
    return z + z * (1 - x * z);
}

/* e^x to about 1 ulp: x = n ln2 + f with |f| <= ln2 / 2, and a polynomial for e^f (Cephes). The result is 0 below -87.3,
 * where numbers would be denormal and slow, and inf above 88.7. NaN stays NaN. */
static inline vf vf_exp(vf x) {
    const vf low = vf_set(-87.33654f), high = vf_set(89); /* e^89 overflows below, as it should */
    const vf shift = vf_set(12582912.f); /* 1.5 * 2^23: adding it rounds to a whole number, which the low bits are */
    const vf inside = vf_min(high, vf_max(low, x)), z = inside * 1.44269504f + shift, whole = z - shift;
    const vf f = (inside - whole * 0.693359375f) - whole * -2.12194440e-4f;
    vf p = f * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * (f * f) + f + 1.f;
    const vi n = (vi)((vu)z - (vu)shift), half = n >> 1; /* 2^n in two factors: 2^128 is no float */
    p = p * (vf)(((vu)half + 127u) << 23) * (vf)(((vu)n - (vu)half + 127u) << 23);
    return vf_pick(x < low, vf_set(0), p);
}

/* The terms of a power of 2 whose sums stay floats, and of one that is rounded to floatX, or makes what is. */
#if defined(FLOATX_BF16)
enum { TERMS_OF_SUMS = 5, TERMS = 4 };
#else
enum { TERMS_OF_SUMS = 6, TERMS = 6 };
#endif
/* 2^x for x < 127; 0 below 2^-126; NaN stays NaN. The fraction has a minimax polynomial on [-1/2, 1/2], which is 1 at 0. With
 * 6 terms its error is 2e-9; with 5 it is 9e-8, about a float's rounding; with 4 it is 3e-6, while bf16 rounds by 2e-3. */
INLINE vf vf_exp2(vf x, const int terms) {
#if defined(__AVX512F__)
    const vf n = _mm512_roundscale_ps(x, 8), f = x - n;
#else
    const vf low = vf_set(-126), shift = vf_set(12582912.f);
    const vf inside = vf_max(low, x), z = inside + shift, n = z - shift, f = inside - n;
#endif
    vf p;
    if (terms == 4) {
        p = f * 9.582855315e-3f + 5.590643044e-2f;
        p = p * f + 2.402409861e-1f;
        p = p * f + 6.931241927e-1f;
    } else if (terms == 5) {
        p = f * 1.326472491e-3f + 9.671512775e-3f;
        p = p * f + 5.550733755e-2f;
        p = p * f + 2.402224208e-1f;
        p = p * f + 6.931469776e-1f;
    } else {
        p = f * 1.535336206e-4f + 1.339887459e-3f;
        p = p * f + 9.618437359e-3f;
        p = p * f + 5.550332471e-2f;
        p = p * f + 2.402264791e-1f;
        p = p * f + 6.931472029e-1f;
    }
    p = p * f + 1.f;
#if defined(__AVX512F__)
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, vf_set(-126), _CMP_NLT_UQ), p, n);
#else
    p = p * (vf)(((vu)z << 23) + (127u << 23));
    return (vf)((vi)p & ~(x < low));
#endif
}

/* Transposes VL vectors, rows[i][j] <-> rows[j][i]: exchanges the off-diagonal quarters at distance 1, 2, 4, ... */
#if VL == 16
#define EACH_LANE(X, s)                                                                                           \
    X(0, s), X(1, s), X(2, s), X(3, s), X(4, s), X(5, s), X(6, s), X(7, s), X(8, s), X(9, s), X(10, s), X(11, s), \
        X(12, s), X(13, s), X(14, s), X(15, s)
#elif VL == 8
#define EACH_LANE(X, s) X(0, s), X(1, s), X(2, s), X(3, s), X(4, s), X(5, s), X(6, s), X(7, s)
#else
#define EACH_LANE(X, s) X(0, s), X(1, s), X(2, s), X(3, s)
#endif
#define LANE_UPPER(l, s) ((l) & (s) ? VL + (l) - (s) : (l))
#define LANE_LOWER(l, s) ((l) & (s) ? VL + (l) : (l) + (s))
#if defined(__clang__) || __GNUC__ >= 12
#define VF_SHUFFLE(a, b, LANE, s) __builtin_shufflevector(a, b, EACH_LANE(LANE, s))
#else
#define VF_SHUFFLE(a, b, LANE, s) __builtin_shuffle(a, b, (vi){EACH_LANE(LANE, s)})
#endif
#define VF_EXCHANGE(s)                                       \
    for (int i = 0; i < VL; i++)                             \
        if (!(i & (s))) {                                    \
            const vf a = rows[i], b = rows[i + (s)];         \
            rows[i] = VF_SHUFFLE(a, b, LANE_UPPER, s);       \
            rows[i + (s)] = VF_SHUFFLE(a, b, LANE_LOWER, s); \
        }
static inline void vf_transpose(vf rows[VL]) {
    VF_EXCHANGE(1)
    VF_EXCHANGE(2)
#if VL >= 8
    VF_EXCHANGE(4)
#endif
#if VL >= 16
    VF_EXCHANGE(8)
#endif
}

/* bf16: a word holds two numbers, the first in the low half, rounded to nearest, ties to even. */
static inline vi vi_set(int x) { return x - (vi){0}; }
static inline vi vi_load(const int32_t *p) { return (vi)vf_load((const float *)p); }
static inline void vi_store(int32_t *p, vi v) { vf_store((float *)p, (vf)v); }
#if defined(__AVX512BF16__)
/* The words (first[0], first[1]), (first[2], first[3]), ... (second[VL-2], second[VL-1]). */
static inline vi bf16_in_order(vf first, vf second) { return (vi)_mm512_cvtne2ps_pbh(second, first); }
/* The words (even[0], odd[0]), (even[1], odd[1]), ... */
static inline vi bf16_interleave(vf even, vf odd) {
    typedef short words __attribute__((vector_size(VL * 4)));
    const words riffle = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                          8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return (vi)_mm512_permutexvar_epi16((__m512i)riffle, (__m512i)bf16_in_order(even, odd));
}
/* sum[i] += a[i].low b[i].low + a[i].high b[i].high */
static inline vf bf16_dot(vf sum, vi a, vi b) { return (vf)_mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
/* The same on 64-bit Arm. BFCVTN keeps denormal numbers; BFDOT reads them as zeros. BFDOT adds up the two products, then adds
 * these to the sum; it rounds each time to the odd one of the two nearest floats, unless the result is exact. */
static inline vi bf16_in_order(vf first, vf second) {
    return (vi)vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(first), second);
}
static inline vi bf16_interleave(vf even, vf odd) {
    return (vi)vzip1q_u16((uint16x8_t)vcvtq_low_bf16_f32(even), (uint16x8_t)vcvtq_low_bf16_f32(odd));
}
static inline vf bf16_dot(vf sum, vi a, vi b) { return vbfdotq_f32(sum, (bfloat16x8_t)a, (bfloat16x8_t)b); }
#else
/* The same where no instruction does it. Each number is rounded in the upper half of a word. A NaN stays NaN; a denormal
 * number becomes 0, as it does in AVX-512's instruction. */
static inline vu bf16_upper(vf v) {
    const vu u = (vu)v, rounded = u + 0x7fffu + (u >> 16 & 1u);
    const vf number = vf_pick((vi)(u & 0x7f800000u) == 0, (vf)(u & 0x80000000u), (vf)rounded);
    return (vu)vf_pick(v != v, (vf)(u | 0x400000u), number) & 0xffff0000u;
}
static inline vi bf16_interleave(vf even, vf odd) { return (vi)(bf16_upper(even) >> 16 | bf16_upper(odd)); }
static inline vi bf16_in_order(vf first, vf second) {
    float x[2 * VL], even[VL], odd[VL];
    vf_store(x, first), vf_store(x + VL, second);
    for (int i = 0; i < VL; i++) even[i] = x[2 * i], odd[i] = x[2 * i + 1];
    return bf16_interleave(vf_load(even), vf_load(odd));
}
static inline vf bf16_dot(vf sum, vi a, vi b) { /* rounded twice, and in another order than by the instruction */
    sum += (vf)((vu)a << 16) * (vf)((vu)b << 16);
    return sum + (vf)((vu)a & 0xffff0000u) * (vf)((vu)b & 0xffff0000u);
}
#endif
/* sum + a b, for numbers or for words of two bf16. */
INLINE vf multiply_add(vf sum, vf a, vf b, const int bf16) { return bf16 ? bf16_dot(sum, (vi)a, (vi)b) : sum + a * b; }

/* The number of lanes from i on: those that are left before end, at most VL. */
#define LANES(i, end) ((end) - (i) < VL ? (int)((end) - (i)) : VL)
#endif
