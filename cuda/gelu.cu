/* GELU alone, for a backward pass that computes it again instead of keeping it. */
#include "rows.cuh"
#include "gelu.cuh"

constexpr int THREADS = 256;

template <int W> static __device__ __forceinline__ void gelu_at(floatX *out, const floatX *pre) {
    float x[W];
    load_floats(x, pre);
    for (int j = 0; j < W; j++) x[j] = gelu(x[j]);
    store_floats(out, x);
}

template <int W> __global__ void __launch_bounds__(THREADS) gelu_kernel(floatX *out, const floatX *pre, int64_t N) {
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * W;
    if (i + W <= N) gelu_at<W>(out + i, pre + i);
    else
        for (int64_t k = i; k < N; k++) gelu_at<1>(out + k, pre + k);
}

void gpu_gelu_forward(Context *ctx, floatX *out, const floatX *pre, int64_t N) {
    by_width(in_vectors(out, 0) && in_vectors(pre, 0), [&](auto W) {
        LAUNCH(gelu_kernel<W>, blocks_for(N, THREADS * W), THREADS, 0, stream_of(ctx))(out, pre, N);
    });
}
