/* Intel's tile instructions in plain C, so that kernels for them run and are tested on every CPU. The bits are those of the
 * hardware: TDPBF16PS adds up the even and the odd products of a row apart, in the order of k, by fused multiply-add from +0;
 * then even + odd; then c + that. Each of these steps rounds to nearest even, reads denormals as zeros of their sign, and
 * turns a result that is tiny after rounding into a zero of its sign. */
#ifndef AMX_EMULATED_H
#define AMX_EMULATED_H
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { SIGN = INT32_MIN, INFINITE = 0x7f800000, SMALLEST = 0x00800000, QUIET = 0x00400000 };

/* The tiles of a thread, as rows of 32-bit words. */
static _Thread_local uint32_t emulated[8][16][16] __attribute__((aligned(64)));

static inline void emulated_load(uint32_t tile[16][16], const void *from, int64_t stride) {
    for (int i = 0; i < 16; i++) memcpy(tile[i], (const char *)from + i * stride, sizeof tile[i]);
}
static inline void emulated_store(uint32_t tile[16][16], void *to, int64_t stride) {
    for (int i = 0; i < 16; i++) memcpy((char *)to + i * stride, tile[i], sizeof tile[i]);
}

static inline uint32_t bits_of(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}
static inline float float_of(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}
static inline uint32_t magnitude(uint32_t u) { return u & ~(uint32_t)SIGN; }
static inline int is_nan(float x) { return magnitude(bits_of(x)) > INFINITE; }
/* A denormal number becomes a zero of its sign. */
static inline uint32_t flushed(uint32_t u) { return u & INFINITE ? u : u & (uint32_t)SIGN; }

/* The first of n numbers that is NaN, made quiet; if none is, the NaN that an invalid operation yields. */
static inline float nan_of(const float *x, int n) {
    for (int i = 0; i < n; i++)
        if (is_nan(x[i])) return float_of(bits_of(x[i]) | QUIET);
    return float_of((uint32_t)SIGN | INFINITE | QUIET);
}

/* a b + c where C's fmaf may yield other bits: NaN, and results that only rounding made normal. */
static inline float special_multiply_add(float a, float b, float c) {
    const float r = fmaf(a, b, c);
    if (is_nan(r)) return nan_of((float[]){a, b, c}, 3);
    if (magnitude(bits_of(r)) == SMALLEST && fabsf(fmaf(a * 0x1p64f, b, c * 0x1p64f)) < 0x1p-62f)
        return float_of(bits_of(r) & (uint32_t)SIGN);
    return float_of(flushed(bits_of(r)));
}

/* sums += x y for 16 numbers. */
static inline void multiply_add_row(float sums[16], float x, const float y[16]) {
    uint32_t r[16], special = 0;
    for (int n = 0; n < 16; n++) {
        r[n] = bits_of(fmaf(x, y[n], sums[n]));
        special |= (uint32_t)(magnitude(r[n]) > INFINITE) | (uint32_t)(magnitude(r[n]) == SMALLEST);
        r[n] = flushed(r[n]);
    }
    for (int n = 0; n < 16 && special; n++) r[n] = bits_of(special_multiply_add(x, y[n], sums[n]));
    memcpy(sums, r, sizeof r);
}

static inline float flushed_sum(float a, float b) { /* exact where it is tiny */
    const float r = a + b;
    return is_nan(r) ? nan_of((float[]){a, b}, 2) : float_of(flushed(bits_of(r)));
}

/* The two bf16 of a word, the even one first. */
static inline float half_of(uint32_t word, int odd) { return float_of(flushed(odd ? word & 0xffff0000u : word << 16)); }

static inline void emulated_dot(uint32_t c[16][16], uint32_t a[16][16], uint32_t b[16][16]) {
    float y[2][16][16];
    for (int odd = 0; odd < 2; odd++)
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 16; n++) y[odd][k][n] = half_of(b[k][n], odd);
    for (int m = 0; m < 16; m++) {
        float sums[2][16] = {{0}};
        for (int k = 0; k < 16; k++)
            for (int odd = 0; odd < 2; odd++) multiply_add_row(sums[odd], half_of(a[m][k], odd), y[odd][k]);
        for (int n = 0; n < 16; n++)
            c[m][n] = bits_of(flushed_sum(float_of(flushed(c[m][n])), flushed_sum(sums[0][n], sums[1][n])));
    }
}
#endif
