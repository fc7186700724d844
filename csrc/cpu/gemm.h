/* C(M,N) = A(M,K) B(K,N), on several threads; C is row-major without gaps. */
#ifndef GEMM_H
#define GEMM_H
#include "element.h"
#include "isa.h"

typedef struct Operand {
    const floatX *at;
    int64_t ld;
    int transposed; /* element (i,j) is at[i*ld + j], or at[j*ld + i] if transposed */
    int format;     /* the format of its rows, see weights.h; only a transposed B may have another than floatX's */
} Operand;

static inline Operand rows_of(const floatX *at, int64_t ld) {
    return (Operand){.at = at, .ld = ld, .format = ELEMENT_FORMAT};
}
static inline Operand transposed(const floatX *at, int64_t ld) {
    return (Operand){.at = at, .ld = ld, .transposed = 1, .format = ELEMENT_FORMAT};
}

/* Sums of a part of C that are not whole yet, from its row m and column n on; rows of them lie ld apart. */
typedef struct Sums {
    float *at;
    int64_t m, n, ld;
} Sums;

typedef struct Gemm {
    int64_t M, N, K;
    Operand a, b;
    void *c;        /* (M,N) */
    int is_float;   /* C consists of floats, whatever floatX is */
    int accumulate; /* C += instead of =; only for floats */
    /* The fields below apply to a piece of C that is still in the first cache. */
    const floatX *bias;  /* (N), added to every row, or NULL */
    floatX *gelu;        /* (M,N) = gelu(C), or NULL */
    const floatX *slope; /* (M,N): C is multiplied by gelu'(slope), or NULL */
    /* C += more_a(M,more_K) more_b(more_K,N) before all that; 0: there is none. Only where HAS_AMX, and not for few rows. */
    Operand more_a, more_b;
    int64_t more_K;
    /* gemm fills these in: */
    int stream; /* whether C is written once, past the caches */
    Sums sums;  /* where sums wait that must not be rounded yet; if its `at` is NULL, in C */
} Gemm;

/* No element of C depends on the number of threads. Nothing outside A and B is read. */
void K(gemm)(Context *ctx, const Gemm *g);
int K(gemm_is_few)(const Gemm *g); /* A has so few rows that dots are faster */
#endif
