/* Rows as floats, W elements at a time. W is WIDE, the number of stored elements in 16 bytes, if the addresses allow it, else
 * 1. */
#pragma once
#include "common.cuh"

constexpr int WIDE = Vec<floatX>::n;

/* Unpacks 16 bytes of floats or of bfloat16s. */
__device__ __forceinline__ void unpack(float (&x)[4], const uint4 &packed) {
    x[0] = __uint_as_float(packed.x), x[1] = __uint_as_float(packed.y);
    x[2] = __uint_as_float(packed.z), x[3] = __uint_as_float(packed.w);
}
__device__ __forceinline__ void unpack(float (&x)[8], const uint4 &packed) {
    const uint32_t pairs[4] = {packed.x, packed.y, packed.z, packed.w};
    for (int i = 0; i < 4; i++) {
        x[2 * i] = __uint_as_float(pairs[i] << 16);
        x[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
    }
}
__device__ __forceinline__ void unpack(float (&x)[1], floatX packed) { x[0] = to_float(packed); }

template <int W, class T> __device__ __forceinline__ void load_floats(float (&x)[W], const T *p) {
    if constexpr (W == 1) x[0] = to_float(*p);
    else
        for (int k = 0; k < W; k += Vec<T>::n)
            unpack(reinterpret_cast<float (&)[Vec<T>::n]>(x[k]), *reinterpret_cast<const uint4 *>(p + k));
}

/* The form in which a thread keeps W elements between two uses. It takes as few registers as their stored form. */
template <int W> using Packed = std::conditional_t<W == 1, floatX, uint4>;
template <int W> __device__ __forceinline__ Packed<W> load_packed(const floatX *p) {
    return *reinterpret_cast<const Packed<W> *>(p);
}
/* 0 if p must not be read. */
template <int W> __device__ __forceinline__ Packed<W> load_live(const floatX *p, bool live) {
    return live ? load_packed<W>(p) : Packed<W>{};
}

template <int W, class T> __device__ __forceinline__ void store_floats(T *p, const float (&x)[W]) {
    if constexpr (W == 1) *p = from_float<T>(x[0]);
    else if constexpr (W * sizeof(T) == 8) { /* four bfloat16 beside four floats */ T v[W];
        uint2 bits;
        for (int j = 0; j < W; j++) v[j] = from_float<T>(x[j]);
        memcpy(&bits, v, 8);
        *reinterpret_cast<uint2 *>(p) = bits;
    } else
        for (int k = 0; k < W; k += Vec<T>::n) {
            Vec<T> v;
            for (int j = 0; j < Vec<T>::n; j++) v.v[j] = from_float<T>(x[k + j]);
            store16(p + k, v);
        }
}

/* p[0..W) += x. */
template <int W, class T> __device__ __forceinline__ void add_floats(T *p, const float (&x)[W]) {
    float sum[W];
    load_floats(sum, p);
    for (int j = 0; j < W; j++) sum[j] += x[j];
    store_floats(p, sum);
}

/* Calls launch(W). W is N or 1, as a type whose value the compiler knows. */
template <int N = WIDE, class F> static inline void by_width(bool wide, F launch) {
    if (wide) launch(std::integral_constant<int, N>());
    else launch(std::integral_constant<int, 1>());
}

/* The number of blocks if each takes `each` of n. It is at least one, because CUDA refuses an empty grid. */
static inline unsigned blocks_for(int64_t n, int64_t each) { return n > 0 ? (unsigned)divide_up(n, each) : 1; }
