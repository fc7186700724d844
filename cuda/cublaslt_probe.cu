/* Tests whether epilogues do what their documentation says. When the device is opened, one small product with each is
 * compared with ours. An epilogue that differs by more than rounding, or that the library lacks, stays off, and our own
 * kernels do its work. */
#include "cublaslt.cuh"

constexpr int SIDE = 64, COUNT = SIDE * SIDE, LANES = 32;

/* Fills x with numbers between -1 and 1 from a multiplicative hash. */
static __global__ void numbers_kernel(floatX *x, int seed) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < COUNT) x[i] = from_float<floatX>((float)(int)((unsigned)(i + seed * COUNT) * 2654435761u) / 2147483648.0f);
}
static __global__ void ones_kernel(floatX *x) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < COUNT) x[i] = from_float<floatX>(1.0f);
}

/* One warp compares; NaN counts as different. */
template <class T> static __global__ void differ_kernel(int *differ, const T *x, const T *y, int n, float allowed) {
    bool far = false;
    for (int i = threadIdx.x; i < n; i += LANES) {
        const float a = to_float(x[i]), b = to_float(y[i]);
        far = far || !(fabsf(a - b) <= allowed * fmaxf(1.0f, fabsf(b)));
    }
    far = __any_sync(0xffffffffu, far);
    if (threadIdx.x == 0 && far) *differ = 1;
}

struct Room { /* arrays of COUNT elements; in a pair the library's result comes first, then ours */
    floatX *a, *b, *bias, *slope, *c[2], *gelu[2];
    float *sum[2], *row_sums[2];
    int *differ;
};

static Room parts_of(char *memory) {
    const auto part = [&](int i) { return memory + (size_t)i * COUNT * sizeof(float); };
    const auto stored = [&](int i) { return (floatX *)part(i); };
    return {stored(0),
            stored(1),
            stored(2),
            stored(3),
            {stored(4), stored(5)},
            {stored(6), stored(7)},
            {(float *)part(8), (float *)part(9)},
            {(float *)part(10), (float *)part(11)},
            (int *)part(12)};
}
constexpr size_t PARTS = 13;

template <class T> static void compare(const Room &r, T *const (&pair)[2], int n, float allowed, cudaStream_t stream) {
    LAUNCH(differ_kernel<T>, 1, LANES, 0, stream)(r.differ, pair[0], pair[1], n, allowed);
}

static bool all_near(const Room &r, cudaStream_t stream) {
    int differ = 1;
    cudaMemcpyAsync(&differ, r.differ, sizeof differ, cudaMemcpyDeviceToHost, stream);
    return cudaStreamSynchronize(stream) == cudaSuccess && !differ;
}

static Gemm product(const Room &r, bool a_transposed) {
    return {SIDE, SIDE, SIDE, {r.a, SIDE, a_transposed}, {r.b, SIDE, !a_transposed}};
}

constexpr float STORED = sizeof(floatX) == 4 ? 1e-4f : 0x1p-6f, SUMMED = 1e-4f; /* 0x1p-6: two roundings to bfloat16 */

static bool gelu_is_right(Context *ctx, Handle *h, Room r) {
    Gemm g[2];
    for (int i = 0; i < 2; i++) g[i] = product(r, false), g[i].bias = r.bias, g[i].c = r.c[i], g[i].gelu = r.gelu[i];
    if (!cublaslt_run(ctx, h, &g[0], EPILOGUE_GELU_AUX_BIAS)) return false;
    gemm_plain(ctx, &g[1]);
    compare(r, r.c, COUNT, STORED, stream_of(ctx));
    compare(r, r.gelu, COUNT, STORED, stream_of(ctx));
    return all_near(r, stream_of(ctx));
}

static bool dgelu_is_right(Context *ctx, Handle *h, Room r) {
    Gemm g[2];
    for (int i = 0; i < 2; i++) g[i] = product(r, false), g[i].slope = r.slope, g[i].c = r.c[i];
    if (!cublaslt_run(ctx, h, &g[0], EPILOGUE_DGELU)) return false;
    gemm_plain(ctx, &g[1]);
    compare(r, r.c, COUNT, STORED, stream_of(ctx));
    return all_near(r, stream_of(ctx));
}

/* Compares the sums of a's rows, beside a product that accumulates, with the product of a and ones. */
static bool row_sums_are_right(Context *ctx, Handle *h, Room r) {
    Gemm g[2];
    for (int i = 0; i < 2; i++) g[i] = product(r, true), g[i].sum = r.sum[i], g[i].accumulate = true;
    g[0].row_sums = r.row_sums[0];
    if (!cublaslt_run(ctx, h, &g[0], EPILOGUE_BGRADB)) return false;
    gemm_plain(ctx, &g[1]);
    LAUNCH(ones_kernel, COUNT / 256, 256, 0, stream_of(ctx))(r.b);
    Gemm sums = {SIDE, 1, SIDE, g[1].a, {r.b, 1, false}};
    sums.sum = r.row_sums[1];
    gemm_plain(ctx, &sums);
    compare(r, r.sum, COUNT, SUMMED, stream_of(ctx));
    compare(r, r.row_sums, SIDE, SUMMED, stream_of(ctx));
    return all_near(r, stream_of(ctx));
}

/* Memory that is only written begins as NaN. */
static void prepare(const Room &r, char *memory, cudaStream_t stream) {
    cudaMemsetAsync(memory, 0xff, PARTS * COUNT * sizeof(float), stream);
    cudaMemsetAsync(r.differ, 0, sizeof *r.differ, stream);
    for (float *sum : r.sum) cudaMemsetAsync(sum, 0, COUNT * sizeof(float), stream);
    int seed = 0;
    for (floatX *x : {r.a, r.b, r.bias, r.slope}) LAUNCH(numbers_kernel, COUNT / 256, 256, 0, stream)(x, seed++);
}

static bool wanted(void) {
    const char *setting = getenv("PYLLMC_EPILOGUES");
    return !setting || strcmp(setting, "0");
}

void cublaslt_probe(Context *ctx, Handle *h) {
    void *memory = NULL;
    if (!wanted() || cudaMalloc(&memory, PARTS * COUNT * sizeof(float)) != cudaSuccess) {
        cudaGetLastError(); /* without room all epilogues stay off */
        return;
    }
    const Room r = parts_of((char *)memory);
    const auto right = [&](bool (*test)(Context *, Handle *, Room)) {
        prepare(r, (char *)memory, stream_of(ctx));
        return test(ctx, h, r);
    };
    h->gelu = right(gelu_is_right);
    h->dgelu = right(dgelu_is_right);
    h->row_sums = right(row_sums_are_right);
    cudaFree(memory);
}
