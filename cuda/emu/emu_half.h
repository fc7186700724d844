/* The common part of __nv_bfloat16 and __half: arithmetic (in float, rounded once), conversions, pairs and atomics. */
#pragma once

#define EMU_OPERATOR(T, T2, op)                                            \
    inline T operator op(T a, T b) { return T((float)a op(float) b); }     \
    inline T2 operator op(T2 a, T2 b) { return {a.x op b.x, a.y op b.y}; } \
    inline T &operator op## = (T & a, T b) { return a = a op b; }

#define EMU_SHORT_FLOAT(T, T2, name, name2)                                                        \
    EMU_OPERATOR(T, T2, +)                                                                         \
    EMU_OPERATOR(T, T2, -) EMU_OPERATOR(T, T2, *) EMU_OPERATOR(T, T2, /) inline T operator-(T a) { \
        a.bits ^= 0x8000;                                                                          \
        return a;                                                                                  \
    }                                                                                              \
    inline bool operator<(T a, T b) { return (float)a < (float)b; }                                \
    inline bool operator>(T a, T b) { return (float)a > (float)b; }                                \
    inline bool operator==(T a, T b) { return (float)a == (float)b; }                              \
    inline bool operator!=(T a, T b) { return (float)a != (float)b; }                              \
    inline T __hadd(T a, T b) { return a + b; }                                                    \
    inline T __hsub(T a, T b) { return a - b; }                                                    \
    inline T __hmul(T a, T b) { return a * b; }                                                    \
    inline T __hfma(T a, T b, T c) { return T(fmaf(a, b, c)); }                                    \
    inline T2 __hadd2(T2 a, T2 b) { return a + b; }                                                \
    inline T2 __hsub2(T2 a, T2 b) { return a - b; }                                                \
    inline T2 __hmul2(T2 a, T2 b) { return a * b; }                                                \
    inline T2 __hfma2(T2 a, T2 b, T2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; } \
    inline T __float2##name(float x) { return T(x); }                                              \
    inline T __float2##name##_rn(float x) { return T(x); }                                         \
    inline float __##name##2float(T x) { return (float)x; }                                        \
    inline T2 __float2##name2##_rn(float x) { return {T(x), T(x)}; }                               \
    inline T2 __floats2##name2##_rn(float x, float y) { return {T(x), T(y)}; }                     \
    inline T2 __float22##name2##_rn(float2 v) { return {T(v.x), T(v.y)}; }                         \
    inline float2 __##name2##2float2(T2 v) { return {(float)v.x, (float)v.y}; }                    \
    inline float __low2float(T2 v) { return (float)v.x; }                                          \
    inline float __high2float(T2 v) { return (float)v.y; }                                         \
    inline T2 __##name##2##name2(T x) { return {x, x}; }                                           \
    inline T2 __halves2##name2(T x, T y) { return {x, y}; }                                        \
    inline T __low2##name(T2 v) { return v.x; }                                                    \
    inline T __high2##name(T2 v) { return v.y; }                                                   \
    inline unsigned short __##name##_as_ushort(T x) { return x.bits; }                             \
    inline T __ushort_as_##name(unsigned short bits) {                                             \
        T x;                                                                                       \
        x.bits = bits;                                                                             \
        return x;                                                                                  \
    }                                                                                              \
    inline T atomicAdd(T *p, T v) {                                                                \
        return emu::update(p, [&](T old) { return old + v; });                                     \
    }                                                                                              \
    inline T2 atomicAdd(T2 *p, T2 v) {                                                             \
        return emu::update(p, [&](T2 old) { return old + v; });                                    \
    }
