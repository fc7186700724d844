/* C(M,N) = A(M,K) B(K,N), on several threads; C is row-major without gaps. */
#ifndef GEMM_H
#define GEMM_H
#include "isa.h"

typedef struct Operand {
    const float *at;
    int64_t ld;
    int transposed; /* element (i,j) is at[i*ld + j], or at[j*ld + i] if transposed */
    int format;     /* the format of a transposed B's rows, see weights.h; else LLMC_FP32 */
} Operand;

typedef struct Gemm {
    int64_t M, N, K;
    Operand a, b;
    float *c;           /* (M,N); the fields below apply to a piece of C that is still in the first cache */
    int accumulate;     /* C += instead of = */
    const float *bias;  /* (N), added to every row, or NULL */
    float *gelu;        /* (M,N) = gelu(C), or NULL */
    const float *slope; /* (M,N): C is multiplied by gelu'(slope), or NULL */
    /* gemm fills these in: */
    int bf16;   /* whether the operands are rounded */
    int stream; /* whether C is written once, past the caches */
} Gemm;

/* No element of C depends on the number of threads. Nothing outside A and B is read. */
void K(gemm)(Context *ctx, const Gemm *g);
#endif
