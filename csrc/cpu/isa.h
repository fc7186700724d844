/* The files of this folder that include isa.h are compiled once per instruction set, with -DISA=avx2 and so on; K(name)
 * is the name of one copy's function. EACH_KERNEL lists the entries of struct Kernels that a set fills; the
 * declarations below hold every definition to its entry's type. */
#ifndef ISA_H
#define ISA_H
#include "../kernels.h"
#define ISA_JOIN2(name, isa) name##_##isa
#define ISA_JOIN(name, isa) ISA_JOIN2(name, isa)
#define K(name) ISA_JOIN(name, ISA)
/* a set without them (HAS_BF16, simd.h) multiplies in fp32; a model that asks for more is not made */
#define USES_BF16(ctx) (HAS_BF16 && (ctx)->precision == LLMC_BF16)
#define ISA_TEXT2(isa) #isa
#define ISA_TEXT(isa) ISA_TEXT2(isa)

#define EACH_KERNEL(X) EACH_LAYER(X) X(compress)

#ifdef ISA
#define ISA_DECLARE(entry) extern __typeof__(*((Kernels *)0)->entry) K(entry);
EACH_KERNEL(ISA_DECLARE)
int64_t K(matmul_workspace)(int threads); /* bytes */
int64_t K(attention_workspace)(int B, int T, int C, int NH, int threads);
int64_t K(layernorm_workspace)(int C);
#endif
#endif
