/* Products on Intel's tiles of which one size is small. They exist where HAS_AMX. */
#ifndef GEMM_THIN_H
#define GEMM_THIN_H
#include "gemm.h"

/* C(M,N) = scale (A(M,K) factor) B(K,N) for few columns, with dropout's factors, 1 if it is NULL; A and C are row-major without gaps. */
typedef struct Narrow {
    floatX *c;
    const floatX *a;
    Operand b;
    int64_t M, N, K;
    float scale;
    const Dropout *dropout;
} Narrow;

int K(gemm_is_narrow)(const Narrow *p); /* whether the workspace has room for B */
void K(gemm_narrow)(Context *ctx, const Narrow *p);
int K(gemm_is_thin)(const Gemm *g); /* M or N is small, and g is a gradient of weights */
void K(gemm_thin)(Context *ctx, const Gemm *g);
#endif
