/* bfloat16, the upper half of a float's bits. */
#ifndef BF16_H
#define BF16_H
#include <stdint.h>
#include <string.h>

/* The nearest number with 8 significant bits, ties to even. Infinity and NaN stay. */
static inline uint16_t bf16_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* A float in two halves of 16 bits, from which it comes back exactly. `upper` is the nearest bf16, of two that are equally near the
 * one farther from 0; `lower` is the lower half of the float's bits. NaN comes back as NaN, with other bits. */
static inline void bf16_split(float x, uint16_t *upper, uint16_t *lower) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x) bits = 0x7fc00000; /* the carry of others could reach the sign */
    *upper = (uint16_t)((bits + 0x8000) >> 16), *lower = (uint16_t)bits;
}

/* The bits (upper << 16) + lower, where lower counts as -32768..32767. */
static inline float bf16_join(uint16_t upper, uint16_t lower) {
    const uint32_t bits = ((uint32_t)upper << 16) + lower - ((uint32_t)(lower >> 15) << 16);
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
#endif
