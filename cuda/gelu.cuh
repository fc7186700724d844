/* GELU with the tanh of GPT-2 (Hendrycks & Gimpel 2016): gelu(x) = x/2 (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x^3).
 * gelu.cu and the epilogues of matmul call the same functions, so that they give the same bits. */
#pragma once
#include "ptx.cuh"

/* gelu(x) = x s with s = (1 + tanh(u)) / 2 = 1 / (1 + e^-2u): nothing cancels, also far below 0. If x^3 overflows, e^-2u is
 * 0 or inf, as it should be. */
__device__ __forceinline__ float gelu_exp(float x) { return expf(-1.5957691f * x * (1 + 0.044715f * (x * x))); }

__device__ __forceinline__ float gelu(float x) {
    return x < -10.0f ? 0.0f : x / (1 + gelu_exp(x)); /* -inf / inf would be NaN */
}

/* d gelu / dx = s + x s' = s + x s (1 - s) 2 u', where 1 - s = e^-2u s and u' = sqrt(2/pi) (1 + 3*0.044715 x^2) */
__device__ __forceinline__ float gelu_slope(float x) {
    const float e = gelu_exp(x), s = 1 / (1 + e);
    const float y = s + x * (e * s) * s * 1.5957691f * (1 + 0.134145f * (x * x));
    return x < -10.0f ? 0.0f : x > 10.0f ? 1.0f : y;
}
