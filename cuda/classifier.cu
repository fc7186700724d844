/* Softmax and cross-entropy over the V real logits of each row, by one block a row. Logits past V never count. */
#include "rows.cuh"
#include <float.h>

constexpr int MAX_THREADS = 512;

/* e^x for x <= 0. In bfloat16 the fast function serves: its error is far smaller than the rounding of the logits. It returns
 * 0 below -87. */
static __device__ __forceinline__ float exp_of(float x) {
    return std::is_same_v<floatX, float> ? expf(x) : exp2_approx(x * 1.44269504f);
}

/* x holds the logits of a row from c on; those past V become `value`. */
template <int W> static __device__ __forceinline__ void pad(float (&x)[W], int c, int V, float value) {
    if (c + W > V)
        for (int j = 0; j < W; j++) x[j] = c + j < V ? x[j] : value;
}

/* Calls f(x) for this thread's share of the row's V logits. Logits past V are -inf. */
template <int W, class F> static __device__ __forceinline__ void each_logit(const floatX *row, int V, F f) {
    for (int c = (int)threadIdx.x * W; c < V; c += (int)blockDim.x * W) {
        float x[W];
        load_floats(x, row + c);
        pad(x, c, V, -INFINITY);
        f(x);
    }
}

/* ---- forward: log sum exp in one pass (Milakov & Gimelshein 2018); the sum is relative to the largest logit so far, and is
 *      scaled down when a larger one comes ---- */

struct LogSum { /* log sum exp = max + log(sum) */
    float max, sum;
};

static __device__ __forceinline__ LogSum merge(LogSum a, LogSum b) {
    const float max = fmaxf(a.max, b.max);
    return {max, a.sum * exp_of(a.max - max) + b.sum * exp_of(b.max - max)};
}

static __device__ __forceinline__ LogSum warp_merge(LogSum x) {
    for (int step = WARP / 2; step > 0; step /= 2) {
        const float max = __shfl_xor_sync(0xffffffffu, x.max, step), sum = __shfl_xor_sync(0xffffffffu, x.sum, step);
        x = merge(x, {max, sum});
    }
    return x;
}

/* The first thread gets the result. */
static __device__ __forceinline__ LogSum block_merge(LogSum x, LogSum *part) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_merge(x);
    if (lane == 0) part[warp] = x;
    __syncthreads();
    return warp_merge(lane < warps ? part[lane] : LogSum{-FLT_MAX, 0});
}

template <int W>
__global__ void __launch_bounds__(MAX_THREADS)
    classifier_forward_kernel(float *losses, float *lse, const floatX *logits, const int *targets, int V, int Vp) {
    __shared__ LogSum part[WARP];
    const int64_t bt = blockIdx.x;
    const floatX *row = logits + bt * Vp;
    LogSum log_sum = {-FLT_MAX, 0};
    each_logit<W>(row, V, [&](const float (&x)[W]) {
        float max = log_sum.max, sum = 0;
        for (int j = 0; j < W; j++) max = fmaxf(max, x[j]);
        for (int j = 0; j < W; j++) sum += exp_of(x[j] - max);
        log_sum = {max, (max > log_sum.max ? log_sum.sum * exp_of(log_sum.max - max) : log_sum.sum) + sum};
    });
    log_sum = block_merge(log_sum, part);
    if (threadIdx.x > 0) return;
    const float log_of_sum = logf(log_sum.sum);
    lse[bt] = log_sum.max + log_of_sum;
    losses[bt] = targets[bt] < 0 ? 0 : log_of_sum + (log_sum.max - to_float(row[targets[bt]])); /* nothing cancels */
}

/* Whether rows may be read W at a time. Then W also divides Vp, so that a read past V stays in the row. */
static bool wide_rows(const floatX *logits, int Vp) { return in_vectors(logits, Vp); }

static unsigned row_threads(int V, int W) {
    const int needed = divide_up(divide_up(V, W), WARP) * WARP;
    return needed < MAX_THREADS ? needed : MAX_THREADS;
}

void gpu_classifier_forward(Context *ctx, float *losses, float *lse, const floatX *logits, const int *targets, int B,
                            int T, int V, int Vp) {
    by_width(wide_rows(logits, Vp), [&](auto W) {
        LAUNCH(classifier_forward_kernel<W>, blocks_for((int64_t)B * T, 1), row_threads(V, W), 0, stream_of(ctx))
        (losses, lse, logits, targets, V, Vp);
    });
}

/* ---- mean loss, by one block, as the numbers are few ---- */

constexpr int MEAN_THREADS = 1024;

__global__ void __launch_bounds__(MEAN_THREADS)
    loss_mean_kernel(float *loss, const float *losses, const int *targets, const float *weights, int64_t N) {
    __shared__ double part[WARP];
    double sum = 0, weight = 0;
    for (int64_t i = threadIdx.x; i < N; i += MEAN_THREADS) {
        const float w = weights[i], l = losses[i]; /* read in any case, so that no read waits for the target */
        const bool counts = targets[i] >= 0;
        sum += (double)(counts ? w : 0) * (counts ? l : 0);
        weight += counts ? w : 0;
    }
    sum = block_sum(sum, part);
    weight = block_sum(weight, part);
    if (threadIdx.x > 0) return;
    loss[0] = weight > 0 ? (float)(sum / weight) : 0;
    loss[1] = weight > 0 ? (float)(1 / weight) : 0;
}

void gpu_loss_mean(Context *ctx, float *loss, const float *losses, const int *targets, const float *weights,
                   int64_t N) {
    LAUNCH(loss_mean_kernel, 1, MEAN_THREADS, 0, stream_of(ctx))(loss, losses, targets, weights, N);
}

/* ---- backward ---- */

/* exp(x - lse) sums to 1 up to the rounding of lse. If floats are stored that rounding shows, so the result is divided by
 * the sum. In bfloat16 the rounding of the logits themselves is 2^16 times as large. */
template <int W> static __device__ __forceinline__ float row_sum(const floatX *row, float lse, int V, float *part) {
    if constexpr (!std::is_same_v<floatX, float>) return 1;
    float sum = 0;
    each_logit<W>(row, V, [&](const float (&x)[W]) {
        for (int j = 0; j < W; j++) sum += exp_of(x[j] - lse);
    });
    return block_sum(sum, part);
}

/* x holds exp(logit - lse) from c on and becomes (x / sum - onehot(target)) * factor. */
template <int W>
static __device__ __forceinline__ void set_gradient(float (&x)[W], int c, int target, float sum, double factor) {
    const float gain = (float)(factor / sum);
    for (int j = 0; j < W; j++)
        if (c + j == target) x[j] = (float)((x[j] / sum - 1) * factor);
        else x[j] *= gain;
}

template <int W>
__global__ void __launch_bounds__(MAX_THREADS)
    classifier_backward_kernel(floatX *logits, const float *lse, const int *targets, const float *weights,
                               const float *loss, float scale, int V, int Vp) {
    __shared__ float part[WARP];
    const int64_t bt = blockIdx.x;
    const int target = targets[bt];
    const double factor = target < 0 ? 0 : (double)weights[bt] * scale * loss[1];
    const int real = factor == 0 ? 0 : V; /* the columns with a gradient: none if the target is ignored */
    floatX *row = logits + bt * Vp;
    const float shift = lse[bt], sum = row_sum<W>(row, shift, real, part);
    for (int c = (int)threadIdx.x * W; c < Vp; c += (int)blockDim.x * W) {
        float x[W] = {};
        if (c < real) {
            load_floats(x, row + c);
            for (int j = 0; j < W; j++) x[j] = exp_of(x[j] - shift);
            set_gradient(x, c, target, sum, factor);
            pad(x, c, V, 0);
        }
        store_floats(row + c, x);
    }
}

void gpu_classifier_backward(Context *ctx, floatX *logits, const float *lse, const int *targets, const float *weights,
                             const float *loss, float scale, int B, int T, int V, int Vp) {
    by_width(wide_rows(logits, Vp), [&](auto W) {
        LAUNCH(classifier_backward_kernel<W>, blocks_for((int64_t)B * T, 1), row_threads(V, W), 0, stream_of(ctx))
        (logits, lse, targets, weights, loss, scale, V, Vp);
    });
}
