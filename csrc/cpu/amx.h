/* Intel's AMX: eight tiles of 16 rows of 64 bytes, and one instruction that multiplies two of them. A set whose flags contain
 * -mamx-tile has the instructions; one with -DAMX_EMULATED has the same in plain C (amx_emulated.h), to the same bits.
 * A tile's number must be a constant.
 *
 *   AMX_ZERO(t), AMX_LOAD(t, from, stride), AMX_STORE(t, to, stride)      the stride is in bytes
 *   AMX_DOT(c, a, b)    c[m][n] += sum over k of a[m][k] b[k][n], of floats c and of words of two bf16 a and b
 *
 * A thread calls amx_begin() before its first and amx_end() after its last such line, because other libraries in the
 * process set the tiles up in their own way. */
#ifndef AMX_H
#define AMX_H
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
/* Asks Linux for the permission that tiles need, because they enlarge what it saves of a thread. It is given to a whole
 * process, threads of before included. Returns 0, or -1 with errno ENOSPC if a thread's stack for signals is too small. */
static inline int amx_request(void) {
    enum { REQUEST = 0x1023, TILE_DATA = 18 }; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
    return (int)syscall(SYS_arch_prctl, REQUEST, TILE_DATA);
}
#else
static inline int amx_request(void) { return -1; }
#endif

enum {
    TILE = 16, /* rows of a tile, and words of a row */
    TILE_BYTES = TILE * 64,
    DEPTH = 32, /* bf16 in a row: products in a sum of one AMX_DOT */
};

#if defined(AMX_EMULATED)
#include "amx_emulated.h"
static inline void amx_begin(void) {}
static inline void amx_end(void) {}
#define AMX_ZERO(t) memset(emulated[t], 0, sizeof emulated[t])
#define AMX_LOAD(t, from, stride) emulated_load(emulated[t], from, stride)
#define AMX_STORE(t, to, stride) emulated_store(emulated[t], to, stride)
#define AMX_DOT(c, a, b) emulated_dot(emulated[c], emulated[a], emulated[b])
#elif defined(__AMX_BF16__)
#include <immintrin.h>
/* GCC 12 does not know that a tile instruction reads memory: without this it drops or delays the stores before it. */
#define AMX_SEES_MEMORY __asm__ volatile("" ::: "memory")

/* The operand of LDTILECFG: palette 1, all eight tiles at their full size. */
static inline void amx_begin(void) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } __attribute__((aligned(64))) shapes = {.palette = 1};
    for (int t = 0; t < 8; t++) shapes.bytes[t] = 64, shapes.rows[t] = TILE;
    AMX_SEES_MEMORY;
    _tile_loadconfig(&shapes);
}
static inline void amx_end(void) { _tile_release(); }
#define AMX_ZERO(t) _tile_zero(t)
#define AMX_LOAD(t, from, stride)     \
    do {                              \
        AMX_SEES_MEMORY;              \
        _tile_loadd(t, from, stride); \
    } while (0)
#define AMX_STORE(t, to, stride)     \
    do {                             \
        _tile_stored(t, to, stride); \
        AMX_SEES_MEMORY;             \
    } while (0)
#define AMX_DOT(c, a, b) _tile_dpbf16ps(c, a, b)
#endif
#endif
