/* The functions that translated PTX (ptx.py) calls. Registers hold bits; an instruction names the type of its operands. */
#pragma once
#include <atomic>
#include <cfenv>
#include <cmath>
#include "cuda_runtime.h"
#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "emu_ptx.h"

namespace ptx {
/* The lower bits of a register as T. */
template <class T, class R> inline T as(R bits) {
    static_assert(sizeof(T) <= sizeof(R));
    T value;
    memcpy(&value, &bits, sizeof value); /* little-endian */
    return value;
}
/* Stores to a register at least as wide. Integers are extended as their type says, floats are stored as bits. */
template <class R, class T> inline void put(R &reg, T value) {
    static_assert(sizeof(T) <= sizeof(R) || std::is_same_v<R, bool>);
    if constexpr (std::is_floating_point_v<T>) memcpy(&reg, &value, sizeof value);
    else if constexpr (std::is_same_v<R, bool>) reg = value != 0;
    else reg = (R)value;
}

template <class T, int n> struct alignas(sizeof(T) * n) Vector {
    T at[n];
};
template <class T, int n> inline Vector<T, n> load(const void *p) { return *static_cast<const Vector<T, n> *>(p); }
template <class T, int n> inline void store(void *p, Vector<T, n> v) { *static_cast<Vector<T, n> *>(p) = v; }

inline float fma(float a, float b, float c) { return fmaf(a, b, c); }
inline double fma(double a, double b, double c) { return std::fma(a, b, c); }
/* Rounds towards minus infinity, as the exponential function requires. */
inline float fma_down(float a, float b, float c) {
    volatile float x = a, y = b, z = c; /* volatile, because the compiler assumes that the rounding is fixed */
    const int was = fegetround();
    fesetround(FE_DOWNWARD);
    volatile float down = fmaf(x, y, z);
    fesetround(was);
    return down;
}
inline float saturate(float x) { return x > 0 ? x < 1 ? x : 1 : 0; } /* NaN becomes 0 */
inline int32_t mul_hi(int32_t a, int32_t b) { return (int32_t)((int64_t)a * b >> 32); }
inline uint32_t mul_hi(uint32_t a, uint32_t b) { return (uint32_t)((uint64_t)a * b >> 32); }
/* A shift by the width or more leaves nothing, or only the sign. */
template <class T> inline T shl(T a, unsigned by) { return by < 8 * sizeof(T) ? (T)(a << by) : 0; }
template <class T> inline T shr(T a, unsigned by) {
    unsigned most = 8 * sizeof(T) - 1;
    return by <= most ? (T)(a >> by) : (T)(std::is_signed_v<T> ? a >> most : 0);
}

inline uint16_t bf16(float x) { return __nv_bfloat16(x).bits; }
inline uint16_t f16(float x) { return __half(x).bits; }
inline float from_bf16(uint16_t bits) { return __ushort_as_bfloat16(bits); }
inline float from_f16(uint16_t bits) { return __ushort_as_half(bits); }
inline uint32_t bf16x2(float high, float low) { return (uint32_t)bf16(high) << 16 | bf16(low); }
inline uint32_t f16x2(float high, float low) { return (uint32_t)f16(high) << 16 | f16(low); }
template <class T2> inline uint32_t fma_pairs(uint32_t a, uint32_t b, uint32_t c) {
    return emu::bits_as<uint32_t>(__hfma2(emu::bits_as<T2>(a), emu::bits_as<T2>(b), emu::bits_as<T2>(c)));
}
inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) { return fma_pairs<__nv_bfloat162>(a, b, c); }
inline uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) { return fma_pairs<__half2>(a, b, c); }
/* Puts the lower `length` bits of a into b at `at`. */
inline uint32_t bfi(uint32_t a, uint32_t b, uint32_t at, uint32_t length) {
    uint32_t mask = (length < 32 ? (1u << length) - 1 : ~0u) << at;
    return (b & ~mask) | (a << at & mask);
}

/* A struct that is a kernel's parameter. */
template <int n, int align> struct alignas(align) Bytes {
    char at[n];
};

} // namespace ptx

/* The number of CUDA threads that have run such a kernel in place of another (ptx_instead.py). */
extern "C" {
__attribute__((visibility("default"), weak)) std::atomic<uint64_t> ptx_threads{0};
}
