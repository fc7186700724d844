/* GELU with the tanh of GPT-2 (Hendrycks & Gimpel 2016): gelu(x) = x/2 (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x^3).
 * The matrix product applies it to a tile that is still in the first cache. */
#ifndef GELU_H
#define GELU_H
#include "simd.h"

#if defined(FLOATX_BF16)
enum { GELU_ROUGH = 1 }; /* bf16 rounds the result by up to 2^-9 of it, and this adds 2^-18 */
#else
enum { GELU_ROUGH = 0 };
#endif

/* gelu(x) = x s with s = (1 + tanh(u)) / 2 = 1 / (1 + e^-2u): nothing cancels, also far below 0. e^-2u is computed as
 * 2^(-2u log2(e)). It is 0 if x^3 overflows; below x = -10, where nobody uses it, it may be anything. */
static inline vf gelu_exp(vf x) { return vf_exp2(x * (-2.3022082f - 0.10294324f * (x * x)), TERMS); }
/* numerator / denominator */
static inline vf gelu_ratio(vf numerator, vf denominator) {
    return GELU_ROUGH ? numerator * vf_rough_reciprocal(denominator) : numerator / denominator;
}

static inline vf gelu(vf x) {
    return vf_pick(x < -10.f, vf_set(0), gelu_ratio(x, 1 + gelu_exp(x))); /* -inf / inf would be NaN */
}

/* d gelu / dx = s + x s' = s + x s (1 - s) 2 u', where 1 - s = e^-2u s and u' = sqrt(2/pi) (1 + 3*0.044715 x^2) */
static inline vf gelu_slope(vf x) {
    const vf e = gelu_exp(x), s = gelu_ratio(vf_set(1), 1 + e);
    const vf y = s + x * (e * s) * s * 1.5957691f * (1 + 0.134145f * (x * x));
    return vf_pick(x < -10.f, vf_set(0), vf_pick(x > 10.f, vf_set(1), y));
}
#endif
