/* The numbers of reference.c as memory holds them, in fp32 or bf16. */
#ifndef REFERENCE_NUMBERS_H
#define REFERENCE_NUMBERS_H
#include <string.h>
#include "base/bf16.h"
#include "isa.h"

static inline float float_of(uint32_t bits) {
    float x;
    return memcpy(&x, &bits, 4), x;
}

#if defined(FLOATX_BF16)
static inline float get(const floatX *x, int64_t i) { return float_of((uint32_t)x[i].bits << 16); }
static inline void put(floatX *x, int64_t i, double value) { x[i].bits = bf16_of((float)value); }
#else
static inline float get(const floatX *x, int64_t i) { return x[i]; }
static inline void put(floatX *x, int64_t i, double value) { x[i] = (float)value; }
#endif

/* The masters of weights, the floats that AdamW moves: whole, or split (bf16_split). */
static inline float get_master(const Context *ctx, const void *param, const floatX *stored, int64_t i) {
    if (!ctx->split) return ((const float *)param)[i];
    return bf16_join(((const uint16_t *)stored)[i], ((const uint16_t *)param)[i]);
}
static inline void put_master(const Context *ctx, void *param, floatX *stored, int64_t i, float x) {
    if (ctx->split) {
        bf16_split(x, (uint16_t *)stored + i, (uint16_t *)param + i);
        return;
    }
    ((float *)param)[i] = x;
    put(stored, i, x);
}

/* x as an operand of a product: what would be stored of it. */
static inline float operand(double x) {
    floatX stored;
    put(&stored, 0, x);
    return get(&stored, 0);
}

/* Number c of a row of weights, in the format in which compress stored it. */
static inline float weight_at(const Context *ctx, const floatX *weight, int64_t row, int C, int c) {
    if (ctx->weight_format == LLMC_BF16) return float_of((uint32_t)((const uint16_t *)weight)[row * C + c] << 16);
    if (ctx->weight_format == LLMC_INT8) {
        const char *start = (const char *)weight + row * (C + 4);
        float scale;
        memcpy(&scale, start, 4);
        return scale * (float)((const signed char *)start)[4 + c];
    }
    return get(weight, row * C + c);
}

#endif
