/* Dropout's factors (csrc/kernels.h) in the kernels that apply them. */
#pragma once
#include "common.cuh"
#define PHILOX static __device__ __forceinline__
#include "../csrc/base/philox.h"

/* Multiplies W elements of a row, from column c on, by their factors; c is a multiple of W, which is 8, 4 or 1. */
template <int W> static __device__ __forceinline__ void drop(float (&x)[W], const Dropout &d, int64_t row, int c) {
    const Philox words = dropout_words(&d, (uint32_t)row, (uint32_t)c / 8);
    for (int j = 0; j < W; j++) x[j] *= dropout_factor(&d, words, c % 8 + j);
}

/* The factor of one element. */
static __device__ __forceinline__ float factor_at(const Dropout &d, int64_t row, int column) {
    return dropout_factor(&d, dropout_words(&d, (uint32_t)row, (uint32_t)column / 8), column % 8);
}

/* Bit i is set if column 8 group + i is kept. */
static __device__ __forceinline__ uint32_t kept_bits(const Dropout &d, uint32_t row, uint32_t group) {
    const Philox words = dropout_words(&d, row, group);
    uint32_t bits = 0;
    for (int i = 0; i < 8; i++) bits |= (uint32_t)(dropout_factor(&d, words, i) != 0) << i;
    return bits;
}
