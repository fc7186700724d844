/* A vector of VL floats and what the kernels need of it, over GCC's vector extensions: the same source becomes SSE2, AVX2,
 * AVX-512 or NEON. a*b + c becomes one fused multiply-add where the CPU has it. */
#ifndef SIMD_H
#define SIMD_H
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#define VL 16
#define VREGS 32
#define SIMD_SUPPORTED (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && \
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
#elif defined(__AVX2__)
#include <immintrin.h>
#define VL 8
#define VREGS 16
#define SIMD_SUPPORTED (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#elif defined(__SSE2__)
#include <emmintrin.h>
#define VL 4
#define VREGS 16
#define SIMD_SUPPORTED 1
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#define VL 4
#define VREGS 32
#define SIMD_SUPPORTED 1
#else
#define VL 4
#define VREGS 16
#define SIMD_SUPPORTED 1
#endif

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int vi __attribute__((vector_size(VL * 4)));

static inline vf vf_set(float x) { return x - (vf){0}; } /* minus: x + 0 would lose the sign of -0 */
static inline vf vf_load(const float *p) { vf v; memcpy(&v, p, sizeof v); return v; }
static inline void vf_store(float *p, vf v) { memcpy(p, &v, sizeof v); }

/* the first n lanes (0 < n <= VL); the others read as 0 and are not written */
static inline vf vf_load_n(const float *p, int n) {
#if defined(__AVX512F__)
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
    vf v = {0};
    if (n == VL) return vf_load(p); /* copying an unknown length costs ten times as much */
    memcpy(&v, p, (size_t)n * sizeof *p);
    return v;
#endif
}
static inline void vf_store_n(float *p, vf v, int n) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), v);
#else
    if (n == VL) vf_store(p, v);
    else memcpy(p, &v, (size_t)n * sizeof *p);
#endif
}

static inline vf vf_pick(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
static inline vf vf_max(vf a, vf b) { return vf_pick(a > b, a, b); }
static inline vf vf_min(vf a, vf b) { return vf_pick(a < b, a, b); }

/* always in the same order: halves are added to halves */
static inline float vf_sum(vf v) {
    float x[VL];
    memcpy(x, &v, sizeof v);
    for (int half = VL / 2; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
}
static inline float vf_max_of(vf v) {
    float x[VL], max;
    memcpy(x, &v, sizeof v);
    max = x[0];
    for (int i = 1; i < VL; i++) max = x[i] > max ? x[i] : max;
    return max;
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

/* e^x to 1 ulp or so: x = n ln2 + f, a polynomial for e^f (Cephes), n into the exponent. 0 below -87.3, inf above 88.7,
 * NaN stays NaN. */
static inline vf vf_exp(vf x) {
    const vf low = vf_set(-87.33654f), high = vf_set(88.72283f), shift = vf_set(12582912.f); /* 1.5 * 2^23 rounds */
    const vf y = vf_pick(x < low, low, vf_pick(x > high, high, x));
    const vf z = y * 1.44269504f + shift, n = z - shift;
    const vf f = (y - n * 0.693359375f) - n * -2.12194440e-4f;
    vf p = f * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * (f * f) + f + 1.f;
    const vi e = (vi)z - (vi)shift, half = e >> 1; /* 2^n in two factors: n = 128 has no float of its own */
    const vf result = p * (vf)((half + 127) << 23) * (vf)((e - half + 127) << 23);
    return vf_pick(x < low, vf_set(0), vf_pick(x > high, vf_set(__builtin_inff()), result));
}

/* tanh(x) = 1 - 2 / (e^2x + 1); near 0, where that cancels, its series */
static inline vf vf_tanh(vf x) {
    const vf t = 1 - 2 / (vf_exp(2 * x) + 1), xx = x * x;
    const vf series = x + x * xx * (-0.33333333f + xx * (0.13333333f + xx * (-0.05396825f + xx * 0.02186949f)));
    return vf_pick(xx < 0.0625f, series, t);
}

/* loops over C elements: for (i...) STEP lanes at a time; n is what is left, at most VL */
#define LANES(i, end) ((end) - (i) < VL ? (int)((end) - (i)) : VL)
#endif
