/* NVIDIA's cuBLASLt, found at run time: the fastest products where the machine has it. Nothing is linked, and no header of
 * it is needed: what follows of its interface is from its documentation (docs.nvidia.com/cuda/cublas).
 *
 * It sees column-major matrices: our row-major C = A B is its C^T = B^T A^T, so B comes first. */
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <initializer_list>
#include "gemm.cuh"

/* ---- the part of its interface that is used ---- */

enum { SUCCESS = 0, FLOAT32 = 0, BFLOAT16 = 14, COMPUTE_FLOAT32 = 68, AS_IT_IS = 0, TRANSPOSED = 1 };
enum { DESC_TRANSA = 3, DESC_TRANSB = 4, DESC_EPILOGUE = 7, DESC_BIAS_POINTER = 8, EPILOGUE_BIAS = 4 };
enum { PREFERENCE_MAX_WORKSPACE_BYTES = 1 };

typedef void *Opaque;
struct Heuristic { /* cublasLtMatmulHeuristicResult_t */
    uint64_t algorithm[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

#define EACH_FUNCTION(X)                                                                                       \
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
    X(int, Matmul,                                                                                             \
      (Opaque, Opaque desc, const void *alpha, const void *a, Opaque, const void *b, Opaque, const void *beta, \
       const void *c, Opaque, void *d, Opaque, const uint64_t *algorithm, void *workspace, size_t, cudaStream_t))

struct Library {
    void *file;
#define FUNCTION(result, name, arguments) result(*name) arguments;
    EACH_FUNCTION(FUNCTION)
};

/* $PYLLMC_CUBLASLT is a path, as Python finds it in NVIDIA's packages; empty: do without */
static void *open_file(void) {
    const char *path = getenv("PYLLMC_CUBLASLT"),
               *names[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"};
    if (path) return *path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    for (const char *name : names)
        if (void *file = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return file;
    return NULL;
}

static Library open_library(void) {
    Library lib = {};
    lib.file = open_file();
    bool whole = lib.file;
#define FIND(result, name, arguments)                                             \
    if (whole) lib.name = (result(*) arguments)dlsym(lib.file, "cublasLt" #name); \
    whole = whole && lib.name;
    EACH_FUNCTION(FIND)
    if (!whole) lib.file = NULL;
    return lib;
}

/* once per process */
static const Library *library(void) {
    static const Library lib = open_library();
    return lib.file ? &lib : NULL;
}

/* ---- products already seen: a description is made once per shape ---- */

struct Key { /* compared as bytes */
    int64_t M, N, K, lda, ldb;
    int ta, tb, sum, bias;
};

struct Plan {
    Key key;
    bool usable; /* there is an algorithm for it */
    Opaque desc, a, b, c;
    Heuristic best;
    Plan *next;
};

constexpr size_t WORKSPACE = 32 << 20; /* what NVIDIA recommends for Hopper */

struct Handle {
    Opaque cublas;
    void *workspace;
    Plan *plans;
};

static Key key_of(const Gemm *g) {
    Key key;
    memset(&key, 0, sizeof key);
    key.M = g->M, key.N = g->N, key.K = g->K, key.lda = g->a.ld, key.ldb = g->b.ld;
    key.ta = g->a.transposed, key.tb = g->b.transposed, key.sum = g->sum != NULL, key.bias = g->bias != NULL;
    return key;
}

static bool make_matrix(const Library *lib, Opaque *layout, int type, int64_t rows, int64_t cols, int64_t ld) {
    return lib->MatrixLayoutCreate(layout, type, (uint64_t)rows, (uint64_t)cols, ld) == SUCCESS;
}

/* our stored rows are its columns: B (K,N) is its first operand, N x K, as it lies if B is not transposed */
static bool describe(const Library *lib, Plan *p) {
    const Key &k = p->key;
    const int stored = std::is_same<floatX, float>::value ? FLOAT32 : BFLOAT16, out = k.sum ? FLOAT32 : stored;
    const int first = k.tb ? TRANSPOSED : AS_IT_IS, second = k.ta ? TRANSPOSED : AS_IT_IS, bias = EPILOGUE_BIAS;
    bool good = lib->MatmulDescCreate(&p->desc, COMPUTE_FLOAT32, FLOAT32) == SUCCESS;
    good = good && lib->MatmulDescSetAttribute(p->desc, DESC_TRANSA, &first, sizeof first) == SUCCESS;
    good = good && lib->MatmulDescSetAttribute(p->desc, DESC_TRANSB, &second, sizeof second) == SUCCESS;
    if (k.bias) good = good && lib->MatmulDescSetAttribute(p->desc, DESC_EPILOGUE, &bias, sizeof bias) == SUCCESS;
    good = good && make_matrix(lib, &p->a, stored, k.tb ? k.K : k.N, k.tb ? k.N : k.K, k.ldb);
    good = good && make_matrix(lib, &p->b, stored, k.ta ? k.M : k.K, k.ta ? k.K : k.M, k.lda);
    return good && make_matrix(lib, &p->c, out, k.N, k.M, k.N);
}

static bool choose(const Library *lib, const Handle *h, Plan *p) {
    Opaque preference = NULL;
    int found = 0;
    bool good = lib->MatmulPreferenceCreate(&preference) == SUCCESS;
    good = good && lib->MatmulPreferenceSetAttribute(preference, PREFERENCE_MAX_WORKSPACE_BYTES, &WORKSPACE,
                                                     sizeof WORKSPACE) == SUCCESS;
    good = good && lib->MatmulAlgoGetHeuristic(h->cublas, p->desc, p->a, p->b, p->c, p->c, preference, 1, &p->best,
                                               &found) == SUCCESS;
    if (preference) lib->MatmulPreferenceDestroy(preference);
    return good && found > 0 && p->best.state == SUCCESS;
}

static Plan *plan_of(const Library *lib, Handle *h, const Gemm *g) {
    const Key key = key_of(g);
    for (Plan *p = h->plans; p; p = p->next)
        if (!memcmp(&p->key, &key, sizeof key)) return p;
    Plan *p = (Plan *)calloc(1, sizeof *p);
    if (!p) return NULL;
    p->key = key, p->next = h->plans, h->plans = p;
    p->usable = describe(lib, p) && choose(lib, h, p);
    return p;
}

/* ---- the device's handle ---- */

void gemm_cublas_close(Device *d) {
    const Library *lib = library();
    Handle *h = (Handle *)d->gemm;
    if (!h) return;
    for (Plan *p = h->plans, *next; p; p = next) {
        next = p->next;
        for (Opaque layout : {p->a, p->b, p->c})
            if (layout) lib->MatrixLayoutDestroy(layout);
        if (p->desc) lib->MatmulDescDestroy(p->desc);
        free(p);
    }
    if (h->workspace) cudaFree(h->workspace);
    if (h->cublas) lib->Destroy(h->cublas);
    free(h);
    d->gemm = NULL;
}

void gemm_cublas_open(Device *d) {
    const Library *lib = library();
    Handle *h = lib ? (Handle *)calloc(1, sizeof *h) : NULL;
    d->gemm = h;
    if (!h) return;
    if (lib->Create(&h->cublas) == SUCCESS && cudaMalloc(&h->workspace, WORKSPACE) == cudaSuccess) return;
    cudaGetLastError(); /* no room for it: the products by hand need none */
    gemm_cublas_close(d);
}

/* ---- what its epilogues leave over: GELU is ours, so that gelu_forward makes the same bits ---- */

static __global__ void finish_kernel(Gemm g) {
    const int64_t at = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (at >= g.M * g.N) return;
    if (g.slope) g.c[at] = from_float<floatX>(to_float(g.c[at]) * gelu_slope(to_float(g.slope[at])));
    if (g.gelu) g.gelu[at] = from_float<floatX>(gelu(to_float(g.c[at])));
}

bool gemm_cublas(Context *ctx, const Gemm *g) {
    Handle *h = (Handle *)device_of(ctx)->gemm;
    if (!h) return false;
    const Library *lib = library();
    Plan *p = plan_of(lib, h, g);
    if (!p || !p->usable) return false;
    const float one = 1, zero = 0;
    void *c = g->sum ? (void *)g->sum : (void *)g->c;
    if (g->bias && lib->MatmulDescSetAttribute(p->desc, DESC_BIAS_POINTER, &g->bias, sizeof g->bias) != SUCCESS)
        return false;
    if (lib->Matmul(h->cublas, p->desc, &one, g->b.at, p->a, g->a.at, p->b, g->accumulate ? &one : &zero, c, p->c, c,
                    p->c, p->best.algorithm, h->workspace, WORKSPACE, stream_of(ctx)) != SUCCESS)
        return false;
    const int64_t n = g->M * g->N;
    if (g->gelu || g->slope) LAUNCH(finish_kernel, (unsigned)divide_up(n, (int64_t)256), 256, 0, stream_of(ctx))(*g);
    return true;
}
