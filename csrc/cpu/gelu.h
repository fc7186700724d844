/* GELU with the tanh of GPT-2 (Hendrycks & Gimpel 2016): gelu(x) = x/2 (1 + tanh(u)),
 * u = sqrt(2/pi) (x + 0.044715 x^3). As (1 + tanh(u)) / 2 = 1 / (1 + e^-2u), no digit is lost where tanh nears -1.
 * matmul's epilogues apply it while a tile is still in the first cache. */
#ifndef GELU_H
#define GELU_H
#include "simd.h"

/* e^-2u, u cut off at +-40, where the gate is 0 or 1 in float: x^3 overflows beyond, and inf * 0 is NaN */
static inline vf gelu_exp(vf x) {
    const vf y = -1.59576912f * x * (1 + 0.044715f * (x * x));
    return vf_exp(vf_pick(y > 80.f, vf_set(80), vf_pick(y < -80.f, vf_set(-80), y)));
}
static inline vf gelu(vf x) {
    const vf y = x / (1 + gelu_exp(x));
    return vf_pick(x < -10.f, vf_set(0), y); /* -inf * 0 would be NaN */
}

/* d gelu / dx = s + x s (1 - s) 2 du/dx, s = 1/(1 + e), 1 - s = e s, du/dx = sqrt(2/pi) (1 + 0.134145 x^2) */
static inline vf gelu_slope(vf x) {
    const vf e = gelu_exp(x), s = 1 / (1 + e);
    const vf y = s + x * s * (e * s) * (1.59576912f + 0.21406444f * (x * x));
    return vf_pick(x < -10.f, vf_set(0), vf_pick(x > 10.f, vf_set(1), y));
}
#endif
