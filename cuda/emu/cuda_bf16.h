/* bfloat16: the upper half of a float, rounded to nearest, ties to even. */
#pragma once
#include "emu_math.h"
#include "emu_atomic.h"

struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(float x) {
        uint32_t u = emu::bits_as<uint32_t>(x);
        bool nan = (u & 0x7fffffffu) > 0x7f800000u;
        bits = nan ? 0x7fff : (uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
    }
    operator float() const { return emu::bits_as<float>((uint32_t)bits << 16); }
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;

#include "emu_half.h"
EMU_SHORT_FLOAT(__nv_bfloat16, __nv_bfloat162, bfloat16, bfloat162)
