/* The names of one instruction set's functions. The files of this folder that include isa.h are compiled once per row of
 * isas.def, with -DISA=avx2 and so on; K(name) is the function or the constant of the set that is being compiled. */
#ifndef ISA_H
#define ISA_H
#include "../kernels.h"
#define ISA_JOIN2(name, isa) name##_##isa
#define ISA_JOIN(name, isa) ISA_JOIN2(name, isa)
#define K(name) ISA_JOIN(name, ISA)
/* A set without bf16 products (HAS_BF16, simd.h) multiplies in fp32; a model that asks for bf16 is refused there. */
#define USES_BF16(ctx) (HAS_BF16 && (ctx)->precision == LLMC_BF16)
#define ISA_TEXT2(isa) #isa
#define ISA_TEXT(isa) ISA_TEXT2(isa)

/* may_run_avx2() is the condition of a row; isa_vl_avx2, isa_mr_avx2 and isa_nr_avx2 are its sizes. */
#define SET(name, machines, flags, vl, mr, nr, condition) \
    int may_run_##name(void);                             \
    enum { isa_vl_##name = vl, isa_mr_##name = mr, isa_nr_##name = nr };
#include "isas.def"

/* The entries of struct Kernels that every set fills. The declarations below hold each definition to its entry's type. */
#define EACH_KERNEL(X) EACH_LAYER(X) X(compress)

#ifdef ISA
#define ISA_DECLARE(entry) extern __typeof__(*((Kernels *)0)->entry) K(entry);
EACH_KERNEL(ISA_DECLARE)
int64_t K(matmul_workspace)(int64_t largest, int threads); /* bytes; largest: of M, N and K */
int64_t K(attention_workspace)(int B, int T, int C, int NH, int threads);
int64_t K(layernorm_workspace)(int C);
#endif
#endif
