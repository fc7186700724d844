/* The gradients' norm, their scaling, and AdamW. Memory bounds each of them, so each makes one pass over it, 16 bytes at a
 * time. The last few elements, or all of an unaligned array, are taken one at a time. */
#include "rows.cuh"
#include <math.h>

constexpr int THREADS = 256, FLOATS = Vec<float>::n;

/* ---- norm: every block sums squares, then one block adds up their sums; in double, as a float's square may overflow ---- */

constexpr int NORM_BLOCKS = 1024; /* the same on every GPU, so that the bits are, too */

int64_t gpu_adamw_workspace(void) { return NORM_BLOCKS * (int64_t)sizeof(double); }

template <int W> static __device__ __forceinline__ double sum_of_squares(const float *p) {
    float x[W];
    double sum = 0;
    load_floats(x, p);
    for (int j = 0; j < W; j++) sum += (double)x[j] * x[j];
    return sum;
}

template <int W>
__global__ void __launch_bounds__(THREADS) norm_parts_kernel(double *parts, const float *grads, int64_t N) {
    __shared__ double part[WARP];
    double sum = 0;
    int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * W;
    for (; i + W <= N; i += (int64_t)gridDim.x * THREADS * W) sum += sum_of_squares<W>(grads + i);
    for (; i < N; i++) sum += sum_of_squares<1>(grads + i); /* the last ones, fewer than W, are one thread's */
    sum = block_sum(sum, part);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(THREADS) norm_kernel(float *norm, const double *parts, int count, float max_norm) {
    __shared__ double part[WARP];
    double sum = 0;
    for (int k = threadIdx.x; k < count; k += THREADS) sum += parts[k];
    sum = block_sum(sum, part);
    if (threadIdx.x > 0) return;
    const float length = (float)sqrt(sum);
    norm[0] = length;
    norm[1] = max_norm > 0 && length + 1e-6f > max_norm ? max_norm / (length + 1e-6f) : 1;
}

void gpu_global_norm(Context *ctx, float *norm, const float *grads, float max_norm, int64_t N) {
    double *parts = (double *)ctx->workspace;
    const unsigned fair = blocks_for(N, THREADS * FLOATS), blocks = fair < NORM_BLOCKS ? fair : NORM_BLOCKS;
    by_width<FLOATS>(in_vectors(grads, 0), [&](auto W) {
        LAUNCH(norm_parts_kernel<W>, blocks, THREADS, 0, stream_of(ctx))(parts, grads, N);
    });
    LAUNCH(norm_kernel, 1, THREADS, 0, stream_of(ctx))(norm, parts, (int)blocks, max_norm);
}

/* ---- scale ---- */

template <int W> static __device__ __forceinline__ void scale_at(float *p, float factor) {
    float x[W];
    load_floats(x, p);
    for (int j = 0; j < W; j++) x[j] *= factor;
    store_floats(p, x);
}

template <int W> __global__ void __launch_bounds__(THREADS) scale_kernel(float *x, const float *factor, int64_t N) {
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * W;
    const float by = factor[0];
    if (by == 1) return;
    if (i + W <= N) scale_at<W>(x + i, by);
    else
        for (int64_t k = i; k < N; k++) scale_at<1>(x + k, by);
}

void gpu_scale(Context *ctx, float *x, const float *factor, int64_t N) {
    by_width<FLOATS>(in_vectors(x, 0), [&](auto W) {
        LAUNCH(scale_kernel<W>, blocks_for(N, THREADS * W), THREADS, 0, stream_of(ctx))(x, factor, N);
    });
}

/* ---- AdamW ---- */

template <int W> static __device__ __forceinline__ void store_rounded(floatX *stored, const float (&param)[W]) {
    if constexpr (!std::is_same_v<floatX, float>) store_floats(stored, param); /* a float param is stored already */
}

template <int W>
static __device__ __forceinline__ void adamw_at(float *param, floatX *stored, float *m, float *v, const float *grad,
                                                const AdamW &step, float grad_scale, float decay) {
    float p[W], m1[W], v1[W], g[W];
    load_floats(g, grad);
    load_floats(p, param);
    load_floats(m1, m);
    load_floats(v1, v);
    for (int j = 0; j < W; j++) {
        g[j] *= grad_scale;
        m1[j] = step.beta1 * m1[j] + step.gain1 * g[j];
        v1[j] = step.beta2 * v1[j] + step.gain2 * (g[j] * g[j]);
        p[j] -= decay * p[j] + step.rate * m1[j] / (sqrtf(v1[j]) * step.unbias + step.eps);
    }
    store_floats(m, m1);
    store_floats(v, v1);
    store_floats(param, p);
    store_rounded(stored, p);
}

template <int W>
__global__ void __launch_bounds__(THREADS)
    adamw_kernel(float *param, floatX *stored, float *m, float *v, const float *grad, const float *grad_scale,
                 const AdamW *numbers, bool decayed, int64_t N) {
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * W;
    const AdamW step = *numbers;
    const float by = grad_scale ? grad_scale[0] : 1, decay = decayed ? step.decay : 0;
    if (i + W <= N) adamw_at<W>(param + i, stored + i, m + i, v + i, grad + i, step, by, decay);
    else
        for (int64_t k = i; k < N; k++) adamw_at<1>(param + k, stored + k, m + k, v + k, grad + k, step, by, decay);
}

void gpu_adamw(Context *ctx, void *masters, floatX *stored, float *m, float *v, const float *grad,
               const float *grad_scale, const AdamW *step, int decayed, int64_t N) {
    float *const param = static_cast<float *>(masters);
    const bool wide =
        in_vectors(param, 0) && in_vectors(stored, 0) && in_vectors(m, 0) && in_vectors(v, 0) && in_vectors(grad, 0);
    by_width<FLOATS>(wide, [&](auto W) {
        LAUNCH(adamw_kernel<W>, blocks_for(N, THREADS * W), THREADS, 0, stream_of(ctx))
        (param, stored, m, v, grad, grad_scale, step, decayed != 0, N);
    });
}

/* ---- store ---- */

template <int W>
__global__ void __launch_bounds__(THREADS) store_kernel(floatX *stored, const float *param, int64_t N) {
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * W;
    float x[W];
    if (i + W <= N) {
        load_floats(x, param + i);
        store_floats(stored + i, x);
    } else
        for (int64_t k = i; k < N; k++) stored[k] = from_float<floatX>(param[k]);
}

void gpu_store(Context *ctx, floatX *stored, const float *param, int64_t N) {
    if ((const void *)stored == (const void *)param) return;
    by_width<FLOATS>(in_vectors(stored, 0) && in_vectors(param, 0), [&](auto W) {
        LAUNCH(store_kernel<W>, blocks_for(N, THREADS * W), THREADS, 0, stream_of(ctx))(stored, param, N);
    });
}
