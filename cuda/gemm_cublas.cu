/* Matrix products by cuBLASLt, which are the fastest if the machine has it. */
#include "cublaslt.cuh"

/* ---- describing a product ---- */

/* The largest power of two, up to 16, that divides every address of g. No algorithm asks for more than 16. */
static int alignment_of(const Gemm *g) {
    uintptr_t bits = 16;
    for (const void *p : {(const void *)g->a.at, (const void *)g->b.at, (const void *)g->c, (const void *)g->sum,
                          (const void *)g->bias, (const void *)g->gelu, (const void *)g->slope})
        bits |= (uintptr_t)p;
    return (int)(bits & -bits);
}

static Key key_of(const Gemm *g, int epilogue) {
    Key key;
    memset(&key, 0, sizeof key);
    key.M = g->M, key.N = g->N, key.K = g->K, key.lda = g->a.ld, key.ldb = g->b.ld;
    key.ta = g->a.transposed, key.tb = g->b.transposed, key.sum = g->sum != NULL;
    key.epilogue = epilogue, key.align = alignment_of(g);
    return key;
}

/* Sets the pointers that the epilogue has, and leaves the others alone. The bias pointer is the bias, or takes sums. */
static bool point(const Plan *p, const void *vector, const void *aux) {
    const Library *lib = cublaslt();
    bool good = true;
    if (p->key.epilogue & HAS_VECTOR)
        good = lib->MatmulDescSetAttribute(p->desc, DESC_BIAS_POINTER, &vector, sizeof vector) == STATUS_SUCCESS;
    if (p->key.epilogue & HAS_AUX)
        good =
            good && lib->MatmulDescSetAttribute(p->desc, DESC_EPILOGUE_AUX_POINTER, &aux, sizeof aux) == STATUS_SUCCESS;
    return good;
}

static bool make_matrix(Opaque *layout, int type, int64_t rows, int64_t cols, int64_t ld) {
    return cublaslt()->MatrixLayoutCreate(layout, type, (uint64_t)rows, (uint64_t)cols, ld) == STATUS_SUCCESS;
}

/* Our rows are its columns. B (K,N) is its first operand, N x K, and needs no transposition if ours is not transposed. */
static bool describe(Plan *p) {
    const Library *lib = cublaslt();
    const Key &k = p->key;
    const int stored = std::is_same<floatX, float>::value ? R_32F : R_16BF, out = k.sum ? R_32F : stored;
    const int first = k.tb ? OP_T : OP_N, second = k.ta ? OP_T : OP_N;
    const void *somewhere = (const void *)(uintptr_t)k.align; /* the heuristic only looks at a pointer's alignment */
    const auto set = [&](int attribute, const void *value, size_t size) {
        return lib->MatmulDescSetAttribute(p->desc, attribute, value, size) == STATUS_SUCCESS;
    };
    bool good = lib->MatmulDescCreate(&p->desc, COMPUTE_32F, R_32F) == STATUS_SUCCESS;
    good = good && set(DESC_TRANSA, &first, sizeof first) && set(DESC_TRANSB, &second, sizeof second);
    good = good && set(DESC_EPILOGUE, &k.epilogue, sizeof k.epilogue);
    if (k.epilogue & HAS_AUX) good = good && set(DESC_EPILOGUE_AUX_LD, &k.N, sizeof k.N);
    good = good && point(p, somewhere, somewhere);
    good = good && make_matrix(&p->a, stored, k.tb ? k.K : k.N, k.tb ? k.N : k.K, k.ldb);
    good = good && make_matrix(&p->b, stored, k.ta ? k.M : k.K, k.ta ? k.K : k.M, k.lda);
    return good && make_matrix(&p->c, out, k.N, k.M, k.N);
}

static Plan *plan_of(Context *ctx, Handle *h, const Gemm *g, int epilogue) {
    const Key key = key_of(g, epilogue);
    for (Plan *p = h->plans; p; p = p->next)
        if (!memcmp(&p->key, &key, sizeof key)) return p;
    Plan *p = (Plan *)calloc(1, sizeof *p);
    if (!p) return NULL;
    p->key = key, p->next = h->plans, h->plans = p;
    p->usable = describe(p) && cublaslt_choose(ctx, h, p, g);
    return p;
}

/* ---- computing it ---- */

int cublaslt_multiply(const Handle *h, const Plan *p, const Gemm *g, void *c, const uint64_t *algorithm,
                      cudaStream_t stream) {
    const float one = 1, zero = 0;
    const void *vector = g->bias;
    if (p->key.epilogue == EPILOGUE_BGRADB) vector = g->row_sums;
    if (!point(p, vector, p->key.epilogue == EPILOGUE_DGELU ? g->slope : g->c)) return -1;
    return cublaslt()->Matmul(h->cublas, p->desc, &one, g->b.at, p->a, g->a.at, p->b, g->accumulate ? &one : &zero, c,
                              p->c, c, p->c, algorithm, h->workspace, WORKSPACE, stream);
}

bool cublaslt_run(Context *ctx, Handle *h, const Gemm *g, int epilogue) {
    const Plan *p = plan_of(ctx, h, g, epilogue);
    return p && p->usable &&
           cublaslt_multiply(h, p, g, result_of(g, epilogue), p->algorithm, stream_of(ctx)) == STATUS_SUCCESS;
}

/* Whether p may be the auxiliary matrix of a product with N columns. */
static bool is_aux(const floatX *p, int64_t N) { return (uintptr_t)p % 16 == 0 && N % 8 == 0; }

/* The epilogue that does all of g at once, if the library can. Its GELU takes numbers before they are rounded, ours takes
 * them as they are stored. */
static int epilogue_of(const Context *ctx, const Handle *h, const Gemm *g) {
    if (g->gelu && g->bias && h->gelu && !ctx->gelu_again && is_aux(g->c, g->N)) return EPILOGUE_GELU_AUX_BIAS;
    if (g->slope && h->dgelu && is_aux(g->slope, g->N)) return EPILOGUE_DGELU;
    if (g->row_sums && h->row_sums) return EPILOGUE_BGRADB;
    return g->bias ? EPILOGUE_BIAS : EPILOGUE_DEFAULT;
}

static __global__ void finish_kernel(Gemm g) {
    const int64_t at = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (at >= g.M * g.N) return;
    if (g.slope) g.c[at] = from_float<floatX>(to_float(g.c[at]) * gelu_slope(to_float(g.slope[at])));
    if (g.gelu) g.gelu[at] = from_float<floatX>(gelu(to_float(g.c[at])));
}

bool gemm_cublas(Context *ctx, Gemm *g) {
    Handle *h = (Handle *)device_of(ctx)->gemm;
    if (!h) return false;
    const int plain = g->bias ? EPILOGUE_BIAS : EPILOGUE_DEFAULT, most = epilogue_of(ctx, h, g);
    if (most != plain && cublaslt_run(ctx, h, g, most)) return true;
    g->row_sums = nullptr;
    if (!cublaslt_run(ctx, h, g, plain)) return false;
    const int64_t n = g->M * g->N;
    if (g->gelu || g->slope) LAUNCH(finish_kernel, (unsigned)divide_up(n, (int64_t)256), 256, 0, stream_of(ctx))(*g);
    return true;
}

/* ---- the device's handle ---- */

void gemm_cublas_close(Device *d) {
    const Library *lib = cublaslt();
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

/* "NVIDIA-H200 130100 bf16" */
static void name_system(Handle *h) {
    cudaDeviceProp device = {};
    const char *element = std::is_same<floatX, float>::value ? "fp32" : "bf16";
    if (cudaGetDeviceProperties(&device, 0) != cudaSuccess) cudaGetLastError();
    for (char *c = device.name; *c; c++)
        if (*c <= ' ') *c = '-';
    snprintf(h->system, sizeof h->system, "%.80s %zu %s", device.name, cublaslt()->GetVersion(), element);
}

void gemm_cublas_open(Context *ctx) {
    Device *d = device_of(ctx);
    const Library *lib = cublaslt();
    Handle *h = lib ? (Handle *)calloc(1, sizeof *h) : NULL;
    d->gemm = h;
    if (!h) return;
    if (lib->Create(&h->cublas) != STATUS_SUCCESS || cudaMalloc(&h->workspace, WORKSPACE) != cudaSuccess) {
        cudaGetLastError(); /* without room for its workspace, our own products serve */
        gemm_cublas_close(d);
        return;
    }
    name_system(h);
    cublaslt_probe(ctx, h);
    h->choosing = true;
}
