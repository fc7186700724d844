/* GELU with the tanh of GPT-2 (Hendrycks & Gimpel 2016): gelu(x) = x/2 (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x^3).
 * matmul's epilogues apply it while a tile is still in registers. */
#ifndef GELU_H
#define GELU_H
#include "simd.h"

/* u is cut off at +-12, where tanh is 1 in float: x^3 overflows beyond, and inf * 0 is NaN */
static inline vf gelu_tanh(vf x) {
    const vf u = 0.79788456f * x * (1 + 0.044715f * (x * x));
    return vf_tanh(vf_pick(u > 12.f, vf_set(12), vf_pick(u < -12.f, vf_set(-12), u)));
}
static inline vf gelu(vf x) {
    const vf y = 0.5f * x * (1 + gelu_tanh(x));
    return vf_pick(x < -10.f, vf_set(0), y); /* -inf * 0 would be NaN */
}

/* d gelu / dx = (1 + t)/2 + x/2 (1 - t^2) sqrt(2/pi) (1 + 3*0.044715 x^2), t = tanh(u) */
static inline vf gelu_slope(vf x) {
    const vf t = gelu_tanh(x);
    const vf y = 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * 0.79788456f * (1 + 0.134145f * (x * x));
    return vf_pick(x < -10.f, vf_set(0), vf_pick(x > 10.f, vf_set(1), y));
}
#endif
