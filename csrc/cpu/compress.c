/* Weights in fewer bytes, because generation reads every weight for every token, and little else. */
#include <math.h>
#include "weights.h"

static uint16_t to_bf16(float x) { /* rounds to nearest, ties to even; NaN stays NaN */
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* dst may overlap x: each number is read before its place is written. */
static void row_to_bf16(char *dst, const float *x, int C) {
    for (int c = 0; c < C; c++) {
        const uint16_t v = to_bf16(x[c]);
        memcpy(dst + 2 * c, &v, sizeof v);
    }
}

static void row_to_int8(char *dst, const float *x, int C) {
    float largest = 0;
    for (int c = 0; c < C; c++) largest = fabsf(x[c]) > largest ? fabsf(x[c]) : largest;
    const float scale = largest / 127, inverse = scale > 0 ? 1 / scale : 0;
    memcpy(dst, &scale, sizeof scale);
    for (int c = 0; c < C; c++) dst[sizeof scale + (size_t)c] = (char)(signed char)lrintf(x[c] * inverse);
}

void K(compress)(Context *ctx, floatX *weight, int format, int64_t rows, int C) {
    float *row = ctx->workspace;
    for (int64_t r = 0; r < rows && format != LLMC_FP32; r++) {
        char *dst = (char *)weight + r * row_bytes(format, C);
        memcpy(row, weight + r * C, (size_t)C * sizeof *row);
        (format == LLMC_BF16 ? row_to_bf16 : row_to_int8)(dst, row, C);
    }
}
