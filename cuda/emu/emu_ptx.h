/* cuda/ptx.cuh on the CPU: the same names, the same meaning (described there). */
#pragma once
#include "emu.h"
#include "emu_math.h"

namespace emu {
enum class Operands { bf16, f16, tf32 };
/* d += a b on the fragments of a whole warp; pairs: registers of A */
void mma(Operands kind, float *d, const uint32_t *a, const uint32_t *b, const char *name, Place at);
void ldmatrix(uint32_t *r, const void *row, unsigned matrices, bool transposed, const char *name, Place at);
void cp_async(void *smem, const void *global, int size, int bytes, Place at);
void cp_async_close();
void cp_async_finish(int groups_left);
} // namespace emu

inline void mma_bf16_16816(float d[4], const uint32_t a[4], const uint32_t b[2], EMU_AT) {
    emu::mma(emu::Operands::bf16, d, a, b, "mma_bf16_16816", at);
}
inline void mma_f16_16816(float d[4], const uint32_t a[4], const uint32_t b[2], EMU_AT) {
    emu::mma(emu::Operands::f16, d, a, b, "mma_f16_16816", at);
}
inline void mma_tf32_1688(float d[4], const uint32_t a[4], const uint32_t b[2], EMU_AT) {
    emu::mma(emu::Operands::tf32, d, a, b, "mma_tf32_1688", at);
}
inline uint32_t to_tf32(float x) {
    uint32_t u = __float_as_uint(x);
    return (u & 0x7f800000u) == 0x7f800000u ? u : (u + 0x1000u) & 0xffffe000u;
}
inline float exp2_approx(float x) {
    float y = exp2f(x);
    return y < 0x1p-126f ? 0 : y;
}

inline void ldmatrix_x4(uint32_t r[4], const void *smem, EMU_AT) { emu::ldmatrix(r, smem, 4, 0, "ldmatrix_x4", at); }
inline void ldmatrix_x2(uint32_t r[2], const void *smem, EMU_AT) { emu::ldmatrix(r, smem, 2, 0, "ldmatrix_x2", at); }
inline void ldmatrix_x1(uint32_t r[1], const void *smem, EMU_AT) { emu::ldmatrix(r, smem, 1, 0, "ldmatrix_x1", at); }
inline void ldmatrix_x4_trans(uint32_t r[4], const void *smem, EMU_AT) {
    emu::ldmatrix(r, smem, 4, true, "ldmatrix_x4_trans", at);
}
inline void ldmatrix_x2_trans(uint32_t r[2], const void *smem, EMU_AT) {
    emu::ldmatrix(r, smem, 2, true, "ldmatrix_x2_trans", at);
}

inline void cp_async_16(void *smem, const void *global, int bytes = 16, EMU_AT) {
    emu::cp_async(smem, global, 16, bytes, at);
}
inline void cp_async_8(void *smem, const void *global, int bytes = 8, EMU_AT) {
    emu::cp_async(smem, global, 8, bytes, at);
}
inline void cp_async_4(void *smem, const void *global, int bytes = 4, EMU_AT) {
    emu::cp_async(smem, global, 4, bytes, at);
}
inline void cp_async_commit() { emu::cp_async_close(); }
template <int N> inline void cp_async_wait() { emu::cp_async_finish(N); }
