/* LoRA's products, of which one size is the rank: hidden(rows,r) = rows of numbers @ a matrix, and out(rows,N) += hidden @ a
 * matrix. Plain kernels, because so few operations per number are bound by memory. A matrix may be transposed: element (k,n) is
 * at[k * rank_step + n * step]. */
#include "rows.cuh"
#include "dropout.cuh"
#include "gelu.cuh"

constexpr int WARPS = 8, THREADS = WARPS * WARP,
              DEEP = 16; /* DEEP: the products of one sum, for sums of sums lose less */

struct Matrix {
    const floatX *at;
    int64_t rank_step, step;
};
static Matrix by_rank(const floatX *at, int n) { return {at, n, 1}; }    /* (r,N) */
static Matrix transposed(const floatX *at, int r) { return {at, 1, r}; } /* (N,r) */

/* x times dropout's factor for its place, rounded as it would be stored. */
template <bool DROPS> static __device__ float dropped(floatX x, const Dropout *dropout, int64_t row, int c) {
    return DROPS ? to_float(from_float<floatX>(to_float(x) * factor_at(*dropout, row, c))) : to_float(x);
}

/* A warp per row computes its r numbers one after the other. */
template <bool DROPS>
static __global__ void __launch_bounds__(THREADS)
    lora_down_kernel(floatX *hidden, const floatX *inp, Matrix w, const Dropout *dropout, float scale, int64_t rows,
                     int C, int r) {
    const int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP;
    const int lane = threadIdx.x % WARP;
    if (row >= rows) return;
    for (int k = 0; k < r; k++) {
        float total = 0;
        for (int first = lane; first < C; first += WARP * DEEP) {
            float sum = 0;
            for (int c = first; c < C && c < first + WARP * DEEP; c += WARP)
                sum += dropped<DROPS>(inp[row * C + c], dropout, row, c) * to_float(w.at[k * w.rank_step + c * w.step]);
            total += sum;
        }
        total = warp_sum(total);
        if (lane == 0) hidden[row * r + k] = from_float<floatX>(scale * total);
    }
}

/* A thread per element of out. */
template <bool DROPS>
static __global__ void __launch_bounds__(THREADS)
    lora_up_kernel(floatX *out, floatX *activated, const floatX *hidden, Matrix w, const floatX *slope,
                   const Dropout *dropout, int64_t elements, int N, int r) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, row = i / N, n = i % N;
    if (i >= elements) return;
    float sum = 0;
    for (int k = 0; k < r; k++) sum += to_float(hidden[row * r + k]) * to_float(w.at[k * w.rank_step + n * w.step]);
    if (DROPS) sum *= factor_at(*dropout, row, (int)n);
    if (slope) sum *= gelu_slope(to_float(slope[i]));
    const floatX stored = from_float<floatX>(to_float(out[i]) + sum);
    out[i] = stored;
    if (activated) activated[i] = from_float<floatX>(gelu(to_float(stored)));
}

static void down(Context *ctx, floatX *hidden, const floatX *inp, const Matrix &w, const Dropout *dropout, float scale,
                 int64_t rows, int C, int r) {
    const auto kernel = dropout ? lora_down_kernel<true> : lora_down_kernel<false>;
    LAUNCH(kernel, blocks_for(rows, WARPS), THREADS, 0, stream_of(ctx))(hidden, inp, w, dropout, scale, rows, C, r);
}

static void up(Context *ctx, floatX *out, floatX *activated, const floatX *hidden, const Matrix &w, const floatX *slope,
               const Dropout *dropout, int64_t rows, int N, int r) {
    const auto kernel = dropout ? lora_up_kernel<true> : lora_up_kernel<false>;
    LAUNCH(kernel, blocks_for(rows * N, THREADS), THREADS, 0, stream_of(ctx))
    (out, activated, hidden, w, slope, dropout, rows * N, N, r);
}

void gpu_lora_forward(Context *ctx, floatX *out, floatX *gelu, floatX *hidden, const floatX *inp, const floatX *weight,
                      const floatX *bias, const floatX *A, const floatX *Bw, const Dropout *dropout, float scale, int B,
                      int T, int C, int OC, int r) {
    gpu_matmul_forward(ctx, out, inp, weight, bias, B, T, C, OC);
    down(ctx, hidden, inp, by_rank(A, C), dropout, scale, (int64_t)B * T, C, r);
    up(ctx, out, gelu, hidden, transposed(Bw, r), nullptr, nullptr, (int64_t)B * T, OC, r);
}

void gpu_lora_backward_hidden(Context *ctx, floatX *dhidden, const floatX *dout, const floatX *Bw, float scale, int B,
                              int T, int OC, int r) {
    down(ctx, dhidden, dout, transposed(Bw, r), nullptr, scale, (int64_t)B * T, OC, r);
}

void gpu_lora_backward_input(Context *ctx, floatX *dinp, const floatX *dout, const floatX *weight,
                             const floatX *dhidden, const floatX *A, const floatX *pre, const Dropout *dropout, int B,
                             int T, int C, int OC, int r) {
    if (pre) gpu_matmul_gelu_backward_input(ctx, dinp, dout, weight, pre, B, T, C, OC);
    else gpu_matmul_backward_input(ctx, dinp, dout, weight, B, T, C, OC);
    up(ctx, dinp, nullptr, dhidden, by_rank(A, C), pre, dropout, (int64_t)B * T, C, r);
}
