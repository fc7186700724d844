/* The names of one build's functions. The files of this folder that include isa.h are compiled once for each row of isas.def
 * and each of its elements, with -DISA=avx2 -DELEMENT=fp32 and so on; K(name) is the function of the build that is being
 * compiled, OF_ISA(name) a constant of its instruction set. */
#ifndef ISA_H
#define ISA_H
#include "../kernels.h"
#define ISA_JOIN2(name, isa) name##_##isa
#define ISA_JOIN(name, isa) ISA_JOIN2(name, isa)
#define OF_ISA(name) ISA_JOIN(name, ISA)
#define K(name) ISA_JOIN(OF_ISA(name), ELEMENT)
#define ISA_TEXT2(isa) #isa
#define ISA_TEXT(isa) ISA_TEXT2(isa)

/* may_run_avx2() is the condition of a row; isa_vl_avx2, isa_mr_avx2 and isa_nr_avx2 are its sizes. */
#define SET(name, machines, elements, flags, vl, mr, nr, condition) \
    int may_run_##name(void);                                       \
    enum { isa_vl_##name = vl, isa_mr_##name = mr, isa_nr_##name = nr };
#include "isas.def"

/* The entries of struct Kernels that every set fills. The declarations below hold each definition to its entry's type. */
#define EACH_KERNEL(X) EACH_LAYER(X) X(compress) X(store)

#ifdef ISA
#define ISA_DECLARE(entry) extern __typeof__(*((Kernels *)0)->entry) K(entry);
EACH_KERNEL(ISA_DECLARE)
int64_t K(matmul_workspace)(int64_t largest, int threads); /* bytes; largest: of M, N and K */
int64_t K(attention_workspace)(int B, int T, int C, int NH, int threads);
int64_t K(layernorm_workspace)(int C);
#endif
#endif
