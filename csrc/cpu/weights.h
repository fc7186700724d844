/* Rows of weights in the format in which they are stored: as floatX, or as K(compress) left them. */
#ifndef WEIGHTS_H
#define WEIGHTS_H
#include "element.h"
#include "isa.h"

typedef signed char vb __attribute__((vector_size(VL)));

static inline int number_bytes(int format) { return format == LLMC_INT8 ? 1 : format == LLMC_BF16 ? 2 : 4; }
static inline int64_t row_bytes(int format, int64_t C) {
    return C * number_bytes(format) + (format == LLMC_INT8 ? (int64_t)sizeof(float) : 0);
}

/* Executes the statement with a constant F that is the format. */
#define FOR_FORMAT(format, statement)                                   \
    do {                                                                \
        if (sizeof(floatX) == sizeof(float) && (format) == LLMC_FP32) { \
            enum { F = LLMC_FP32 };                                     \
            statement;                                                  \
        } else if ((format) == LLMC_BF16) {                             \
            enum { F = LLMC_BF16 };                                     \
            statement;                                                  \
        } else {                                                        \
            enum { F = LLMC_INT8 };                                     \
            statement;                                                  \
        }                                                               \
    } while (0)

static inline const void *weight_row(const void *weight, int format, int64_t C, int64_t row) {
    return (const char *)weight + row * row_bytes(format, C);
}

/* The factor by which the numbers of a row must be multiplied. */
static inline float weight_scale(const void *row, int format) {
    float scale = 1;
    if (format == LLMC_INT8) memcpy(&scale, row, sizeof scale);
    return scale;
}

static inline vf vf_from_int8(vb v) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)v));
#elif defined(__AVX2__)
    __m128i low = {0};
    memcpy(&low, &v, sizeof v);
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low));
#else
    return __builtin_convertvector(v, vf);
#endif
}

/* The numbers k..k+lanes of a row, without the scale. format is a constant where this is inlined. */
INLINE vf weights_at(const void *row, int64_t k, int lanes, const int format) {
    if (format == LLMC_BF16) return vf_from_bf16(vh_load_n((const char *)row + 2 * k, lanes));
    if (format == LLMC_INT8) {
        const char *at = (const char *)row + sizeof(float) + k;
        vb v = {0};
        if (lanes == VL) memcpy(&v, at, sizeof v);
        else
            memcpy(&v, at,
                   lanes < VL ? (size_t)lanes : sizeof v); /* the bound is for GCC 12, which else warns with -O1 */
        return vf_from_int8(v);
    }
    return vf_load_n((const float *)row + k, lanes);
}

/* The scales of rows row..row+lanes, 0 in the other lanes. */
INLINE vf weight_scales(const void *weight, const int format, int64_t C, int64_t row, int lanes) {
    vf scale = {0};
    for (int i = 0; i < lanes; i++) scale[i] = weight_scale(weight_row(weight, format, C, row + i), format);
    return scale;
}

/* The numbers k..k+2VL of a row as pairs of bf16, zeros from K on. The scale is left out, so that int8 is exact. */
INLINE vi weight_pairs(const void *row, int64_t k, int64_t K, const int format) {
    if (format == LLMC_BF16) return vh_words_n((const char *)row + 2 * k, K - k < 2 * VL ? (int)(K - k) : 2 * VL);
    const vf low = weights_at(row, k, LANES(k, K), format);
    const vf high = k + VL < K ? weights_at(row, k + VL, LANES(k + VL, K), format) : (vf){0};
    return bf16_in_order(low, high);
}
#endif
