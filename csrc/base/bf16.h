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
#endif
