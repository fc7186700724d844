/* Fills struct Kernels for one instruction set and one element. */
#include "isa.h"
#include "memory.h"
#include "simd.h"

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
_Static_assert(VL == OF_ISA(isa_vl), "the vectors of simd.h have the length that isas.def says");

static int64_t workspace_bytes(int B, int T, int C, int NH, int Vp, int threads) {
    const int64_t largest = larger((int64_t)B * T, larger((int64_t)4 * C, Vp));
    return larger(K(matmul_workspace)(largest, threads),
                  larger(K(attention_workspace)(B, T, C, NH, threads), K(layernorm_workspace)(C)));
}
#define ENTRY(name) .name = K(name),
const Kernels K(kernels) = {.name = ISA_TEXT(ISA),
                            .supported = OF_ISA(may_run),
                            .element = sizeof(floatX) == sizeof(float) ? LLMC_FP32 : LLMC_BF16,
                            .splits = sizeof(floatX) != sizeof(float),
                            .workspace_bytes = workspace_bytes,
                            CPU_MEMORY,
                            EACH_KERNEL(ENTRY)};
