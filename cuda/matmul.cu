/* The linear layer: out = inp @ weight^T + bias, and its gradients. */
#include "gemm.cuh"

static Operand rows_of(const floatX *at, int64_t ld) { return {at, ld, false}; }
static Operand transposed(const floatX *at, int64_t ld) { return {at, ld, true}; }

static void gemm(Context *ctx, Gemm &g) {
    if (g.M == 0 || g.N == 0) return;
    if (gemm_cublas(ctx, &g)) return;
    g.row_sums = nullptr;
    if (!gemm_mma(ctx, &g)) gemm_plain(ctx, &g);
}

void gpu_matmul_forward(Context *ctx, floatX *out, const floatX *inp, const floatX *weight, const floatX *bias, int B,
                        int T, int C, int OC) {
    Gemm g = {(int64_t)B * T, OC, C, rows_of(inp, C), transposed(weight, C)};
    g.c = out, g.bias = bias;
    gemm(ctx, g);
}

void gpu_matmul_gelu_forward(Context *ctx, floatX *out, floatX *pre, const floatX *inp, const floatX *weight,
                             const floatX *bias, int B, int T, int C, int OC) {
    Gemm g = {(int64_t)B * T, OC, C, rows_of(inp, C), transposed(weight, C)};
    g.c = pre, g.bias = bias, g.gelu = out;
    gemm(ctx, g);
}

void gpu_matmul_backward_input(Context *ctx, floatX *dinp, const floatX *dout, const floatX *weight, int B, int T,
                               int C, int OC) {
    Gemm g = {(int64_t)B * T, C, OC, rows_of(dout, OC), rows_of(weight, C)};
    g.c = dinp;
    gemm(ctx, g);
}

void gpu_matmul_gelu_backward_input(Context *ctx, floatX *dpre, const floatX *dout, const floatX *weight,
                                    const floatX *pre, int B, int T, int C, int OC) {
    Gemm g = {(int64_t)B * T, C, OC, rows_of(dout, OC), rows_of(weight, C)};
    g.c = dpre, g.slope = pre;
    gemm(ctx, g);
}

/* ---- the bias gradient: pieces of rows are summed, then the sums of the pieces, always in the same order ---- */

constexpr int COLUMNS = 32, ROWS = 8, PIECES = 64; /* a block sums COLUMNS columns; at most PIECES pieces of rows */

/* Sums each column over the block's ROWS rows of threads; row 0 gets the sums. */
static __device__ float sum_of_rows(float x, float part[ROWS][COLUMNS]) {
    const int c = threadIdx.x % COLUMNS, r = threadIdx.x / COLUMNS;
    part[r][c] = x;
    __syncthreads();
    float sum = 0;
    for (int i = 0; r == 0 && i < ROWS; i++) sum += part[i][c];
    return sum;
}

/* Sums the rows of piece p, column o. A thread adds up sums of 16 rows, so that rounding errors stay small. */
static __global__ void bias_pieces_kernel(float *pieces, const floatX *dout, int64_t rows, int64_t each, int OC) {
    __shared__ float part[ROWS][COLUMNS];
    const int o = blockIdx.x * COLUMNS + threadIdx.x % COLUMNS;
    const int64_t first = blockIdx.y * each, end = min(first + each, rows);
    float total = 0;
    for (int64_t r = first + threadIdx.x / COLUMNS; o < OC && r < end;) {
        float sum = 0;
        for (int i = 0; i < 16 && r < end; i++, r += ROWS) sum += to_float(dout[r * OC + o]);
        total += sum;
    }
    total = sum_of_rows(total, part);
    if (o < OC && threadIdx.x < COLUMNS) pieces[(int64_t)blockIdx.y * OC + o] = total;
}

static __global__ void bias_sum_kernel(float *dbias, const float *pieces, int n, int OC) {
    const int o = blockIdx.x * blockDim.x + threadIdx.x;
    if (o >= OC) return;
    double sum = 0;
    for (int i = 0; i < n; i++) sum += pieces[(int64_t)i * OC + o];
    dbias[o] += (float)sum;
}

static void add_pieces(Context *ctx, float *dbias, const float *pieces, int n, int OC) {
    LAUNCH(bias_sum_kernel, divide_up(OC, 256), 256, 0, stream_of(ctx))(dbias, pieces, n, OC);
}

static void bias_gradient(Context *ctx, float *dbias, const floatX *dout, int64_t rows, int OC) {
    float *pieces = (float *)ctx->workspace;
    const int64_t each = divide_up(divide_up(rows, (int64_t)PIECES), (int64_t)ROWS) * ROWS;
    const int n = (int)divide_up(rows, each);
    const dim3 grid(divide_up(OC, COLUMNS), n);
    LAUNCH(bias_pieces_kernel, grid, COLUMNS * ROWS, 0, stream_of(ctx))(pieces, dout, rows, each, OC);
    add_pieces(ctx, dbias, pieces, n, OC);
}

int64_t gpu_matmul_workspace(int B, int T, int C, int Vp) {
    (void)B, (void)T, (void)Vp; /* wte has no bias */
    return (int64_t)PIECES * 4 * C * (int64_t)sizeof(float);
}

void gpu_matmul_backward_weight(Context *ctx, float *dweight, float *dbias, const floatX *dout, const floatX *inp,
                                int accumulate, int B, int T, int C, int OC) {
    if (!dweight) {
        if (dbias) bias_gradient(ctx, dbias, dout, (int64_t)B * T, OC);
        return;
    }
    Gemm g = {OC, C, (int64_t)B * T, transposed(dout, OC), rows_of(inp, C)};
    g.sum = dweight, g.accumulate = accumulate, g.row_sums = dbias ? (float *)ctx->workspace : nullptr;
    gemm(ctx, g);
    if (g.row_sums) add_pieces(ctx, dbias, g.row_sums, 1, OC);
    else if (dbias) bias_gradient(ctx, dbias, dout, (int64_t)B * T, OC);
}
