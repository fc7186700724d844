/* Weights in fewer bytes, because generation reads every weight for every token, and little else. */
#include <math.h>
#include "master.h"
#include "weights.h"

static void row_to_bf16(char *dst, const float *x, int C) {
    for (int c = 0; c < C; c += VL) {
        const int n = LANES(c, C);
        vh_store_n(dst + 2 * c, vf_to_bf16(vf_load_n(x + c, n)), n);
    }
}

static void row_to_int8(char *dst, const float *x, int C) {
    float largest = 0;
    for (int c = 0; c < C; c++) largest = fabsf(x[c]) > largest ? fabsf(x[c]) : largest;
    const float scale = largest / 127, inverse = scale > 0 ? 1 / scale : 0;
    memcpy(dst, &scale, sizeof scale);
    for (int c = 0; c < C; c++) dst[sizeof scale + (size_t)c] = (char)(signed char)lrintf(x[c] * inverse);
}

/* The stored row may lie over its floats, which are therefore copied first. */
void K(compress)(Context *ctx, floatX *stored, const void *param, int format, int64_t rows, int C) {
    float *row = ctx->workspace;
    const Master master = {(void *)param, stored};
    for (int64_t r = 0; r < rows; r++) {
        char *dst = (char *)stored + r * row_bytes(format, C);
        for (int c = 0; c < C; c += VL) {
            const int n = LANES(c, C);
            vf_store_n(row + c, master_load(&master, r * C + c, n, ctx->split), n);
        }
        (format == LLMC_BF16 ? row_to_bf16 : row_to_int8)(dst, row, C);
    }
}
