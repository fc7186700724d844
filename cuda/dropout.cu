/* Dropout of rows, alone. */
#include "rows.cuh"
#include "dropout.cuh"

constexpr int THREADS = 256;

template <int W>
__global__ void __launch_bounds__(THREADS)
    dropout_kernel(floatX *out, const floatX *inp, const Dropout *dropout, int64_t N, int C) {
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * W;
    if (i >= N) return;
    float x[W];
    load_floats(x, inp + i);
    drop(x, *dropout, i / C, (int)(i % C));
    store_floats(out + i, x);
}

void gpu_dropout(Context *ctx, floatX *out, const floatX *inp, const Dropout *dropout, int B, int T, int C) {
    const int64_t N = (int64_t)B * T * C;
    by_width(in_vectors(out, C) && in_vectors(inp, C), [&](auto W) {
        LAUNCH(dropout_kernel<W>, blocks_for(N, THREADS * W), THREADS, 0, stream_of(ctx))(out, inp, dropout, N, C);
    });
}
