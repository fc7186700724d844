/* Fills struct Kernels for one instruction set. */
#include <string.h>
#include "isa.h"
#include "memory.h"
#include "simd.h"

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int supported(void) { return SIMD_SUPPORTED; }
static int64_t workspace_bytes(int B, int T, int C, int NH, int Vp, int threads) {
    (void)B, (void)Vp;
    return larger(K(matmul_workspace)(threads),
                  larger(K(attention_workspace)(T, C, NH, threads), K(layernorm_workspace)(C)));
}
static int sync(Context *ctx) {
    (void)ctx; /* every kernel has finished when it returns */
    return 0;
}
static void copy(Context *ctx, void *dst, const void *src, int64_t bytes) {
    (void)ctx;
    memcpy(dst, src, (size_t)bytes);
}

/* in pieces, so that each thread touches the pages it will mostly use */
static void fill(Context *ctx, void *dst, int byte, int64_t bytes) {
    enum { PIECE = 1 << 20 };
    (void)ctx;
#pragma omp parallel for num_threads(bytes > PIECE ? ctx->threads : 1)
    for (int64_t at = 0; at < bytes; at += PIECE)
        memset((char *)dst + at, byte, (size_t)(bytes - at < PIECE ? bytes - at : PIECE));
}

#define ENTRY(name) .name = K(name),
const Kernels K(kernels) = {.name = ISA_TEXT(ISA),
                            .supported = supported,
                            .memory_available = cpu_memory_available,
                            .alloc = cpu_alloc,
                            .free = cpu_free,
                            .workspace_bytes = workspace_bytes,
                            .sync = sync,
                            .fill = fill,
                            .copy_in = copy,
                            .copy_out = copy,
                            EACH_KERNEL(ENTRY)};
