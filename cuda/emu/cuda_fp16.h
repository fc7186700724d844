/* IEEE binary16, rounded to nearest, ties to even. */
#pragma once
#include "emu_math.h"
#include "emu_atomic.h"

namespace emu {
inline uint16_t half_bits(float x) {
    uint32_t u = bits_as<uint32_t>(x), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7fff;
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00); /* 65520 and above are infinite */
    if (magnitude < 0x38800000u) {                                  /* subnormal: let the float unit round at 2^-24 */
        float shifted = bits_as<float>(magnitude) + 0.5f;
        return (uint16_t)(sign | (bits_as<uint32_t>(shifted) - 0x3f000000u));
    }
    return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13));
}
inline float half_value(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, rest = bits & 0x7fff;
    if (rest >= 0x7c00) return bits_as<float>(sign | 0x7f800000u | (rest & 0x3ff) << 13);
    if (rest < 0x400) return bits_as<float>(sign | bits_as<uint32_t>((float)rest * 0x1p-24f));
    return bits_as<float>(sign | ((rest << 13) + 0x38000000u));
}
} // namespace emu

struct __half {
    uint16_t bits;
    __half() = default;
    __half(float x) : bits(emu::half_bits(x)) {}
    operator float() const { return emu::half_value(bits); }
};
struct alignas(4) __half2 {
    __half x, y;
};
typedef __half half;
typedef __half2 half2;

#include "emu_half.h"
EMU_SHORT_FLOAT(__half, __half2, half, half2)
