/* NVIDIA's cuBLASLt, found at run time: the part of its interface that is used, and the data that is kept for it. Nothing is
 * linked, and its header is not needed. Names, numbers and meanings come from its documentation
 * (docs.nvidia.com/cuda/cublas); tests/cuda/test_gemm_cublas.py compares the numbers with NVIDIA's header if that is installed.
 *
 *   cublaslt.cu          finds the library
 *   cublaslt_choose.cu   chooses an algorithm for each shape
 *   cublaslt_probe.cu    tests which epilogues are right
 *   gemm_cublas.cu       computes products
 *
 * It sees column-major matrices: our row-major C = A B is its C^T = B^T A^T, so B comes first. */
#pragma once
#include <cstdlib>
#include <cstring>
#include <cstdio>
#include <initializer_list>
#include "gemm.cuh"

enum { STATUS_SUCCESS = 0, R_32F = 0, R_16BF = 14, COMPUTE_32F = 68, OP_N = 0, OP_T = 1 };
enum { DESC_TRANSA = 3, DESC_TRANSB = 4, DESC_EPILOGUE = 7, DESC_BIAS_POINTER = 8 };
enum { DESC_EPILOGUE_AUX_POINTER = 11, DESC_EPILOGUE_AUX_LD = 12 };
enum { PREF_MAX_WORKSPACE_BYTES = 1, PREF_REDUCTION_SCHEME_MASK = 3 };
enum { PREF_MIN_ALIGNMENT_A_BYTES = 5, PREF_MIN_ALIGNMENT_D_BYTES = 8 }; /* those of B and C lie between */
enum { REDUCTION_SCHEME_COMPUTE_TYPE = 2 };
/* Epilogues: operations on a product before it is stored. DGELU_BGRAD is not used, because the sums that it adds to DGELU
 * have the type of the stored result, and ours are float. The result of BGRADB is a parameter's gradient, so its sums are
 * float. */
enum {
    EPILOGUE_DEFAULT = 1,
    EPILOGUE_BIAS = 4,
    EPILOGUE_GELU_AUX_BIAS = 164, /* GELU(product + bias); GELU's argument goes to the auxiliary matrix */
    EPILOGUE_DGELU = 192,         /* the product times GELU's slope at the auxiliary matrix */
    EPILOGUE_BGRADB = 512,        /* also the sums of the second operand along K */
    HAS_VECTOR = 4 | 512,         /* uses the bias pointer */
    HAS_AUX = 128
};

typedef void *Opaque;
struct Heuristic { /* cublasLtMatmulHeuristicResult_t */
    uint64_t algorithm[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

#define EACH_FUNCTION(X)                                                                                       \
    X(size_t, GetVersion, (void))                                                                              \
    X(int, Create, (Opaque *))                                                                                 \
    X(int, Destroy, (Opaque))                                                                                  \
    X(int, MatmulDescCreate, (Opaque *, int compute, int scale))                                               \
    X(int, MatmulDescDestroy, (Opaque))                                                                        \
    X(int, MatmulDescSetAttribute, (Opaque, int, const void *, size_t))                                        \
    X(int, MatrixLayoutCreate, (Opaque *, int type, uint64_t rows, uint64_t cols, int64_t ld))                 \
    X(int, MatrixLayoutDestroy, (Opaque))                                                                      \
    X(int, MatmulPreferenceCreate, (Opaque *))                                                                 \
    X(int, MatmulPreferenceDestroy, (Opaque))                                                                  \
    X(int, MatmulPreferenceSetAttribute, (Opaque, int, const void *, size_t))                                  \
    X(int, MatmulAlgoGetHeuristic,                                                                             \
      (Opaque, Opaque desc, Opaque a, Opaque b, Opaque c, Opaque d, Opaque preference, int asked, Heuristic *, \
       int *found))                                                                                            \
    X(int, MatmulAlgoCheck,                                                                                    \
      (Opaque, Opaque desc, Opaque a, Opaque b, Opaque c, Opaque d, const uint64_t *algorithm, Heuristic *))   \
    X(int, Matmul,                                                                                             \
      (Opaque, Opaque desc, const void *alpha, const void *a, Opaque, const void *b, Opaque, const void *beta, \
       const void *c, Opaque, void *d, Opaque, const uint64_t *algorithm, void *workspace, size_t, cudaStream_t))

struct Library {
    void *file;
#define FUNCTION(result, name, arguments) result(*name) arguments;
    EACH_FUNCTION(FUNCTION)
#undef FUNCTION
};
const Library *cublaslt(void); /* NULL if the machine has none */

/* ---- products already seen: a description is made once per shape ---- */

struct Key { /* compared as bytes */
    int64_t M, N, K, lda, ldb;
    int ta, tb, sum, epilogue;
    int align; /* bytes: every matrix has this alignment */
    int unused;
};

struct Plan {
    Key key;
    bool usable; /* whether there is an algorithm for it */
    Opaque desc, a, b, c;
    uint64_t algorithm[8];
    Plan *next;
};

constexpr size_t WORKSPACE = 32 << 20; /* NVIDIA recommends this size for Hopper */

struct Handle {
    Opaque cublas;
    void *workspace;
    Plan *plans;
    char system[128];           /* GPU, library and element, for which alone an algorithm is valid */
    bool choosing;              /* whether algorithms may be timed */
    bool gelu, dgelu, row_sums; /* the epilogues that are right */
};

/* The memory that a product with this epilogue is stored to. */
inline void *result_of(const Gemm *g, int epilogue) {
    if (g->sum) return g->sum;
    return epilogue == EPILOGUE_GELU_AUX_BIAS ? g->gelu : g->c;
}
/* Computes g by plan p; the result goes to c. */
int cublaslt_multiply(const Handle *h, const Plan *p, const Gemm *g, void *c, const uint64_t *algorithm,
                      cudaStream_t stream);
/* Computes g with this epilogue; false if the library cannot. */
bool cublaslt_run(Context *ctx, Handle *h, const Gemm *g, int epilogue);
/* Finds an algorithm for p, whose first product is g; false if there is none. */
bool cublaslt_choose(Context *ctx, const Handle *h, Plan *p, const Gemm *g);
/* Tests the epilogues and notes in h which are right. */
void cublaslt_probe(Context *ctx, Handle *h);
