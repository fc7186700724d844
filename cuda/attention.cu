/* attention_forward, attention_backward and attention_cached: which of the implementations runs. */
#include "attention_cached.cuh"
#include "attention_plain.cuh"
#ifdef FLOATX_BF16
#include "attention_mma.cuh"
#endif

static Attention attention_of(const floatX *q, const floatX *k, int n, int T, int C, int NH, int window) {
    Attention a = {};
    a.q = q, a.k = k + C, a.v = k + 2 * (int64_t)C;
    a.n = n, a.T = T, a.C = C, a.NH = NH, a.hs = C / NH;
    a.seen = window > 0 && window < T ? window : T;
    a.scale = (float)(1 / sqrt((double)a.hs));
    a.to_log2 = (float)(1.4426950408889634 / sqrt((double)a.hs));
    return a;
}

int64_t gpu_attention_workspace(int B, int T, int C, int NH) {
    const int64_t D = (int64_t)B * NH * T * (int64_t)sizeof(float), splits = decode::workspace((int64_t)B * NH, T, C / NH);
    return D > splits ? D : splits;
}

#ifdef FLOATX_BF16
static bool on_tensor_cores(const Attention &a, const floatX *out) {
    return a.hs <= 128 && in_vectors(a.q, a.hs) && in_vectors(a.k, a.hs) && in_vectors(out, a.hs);
}
template <int HP> static void forward_mma(const Context *ctx, const Attention &a, floatX *out, int64_t heads) {
    using F = mma::Forward<HP>;
    static const cudaError_t allowed =
        cudaFuncSetAttribute(mma::forward<HP>, cudaFuncAttributeMaxDynamicSharedMemorySize, F::bytes);
    (void)allowed; /* if not, the launch fails, which sync tells */
    LAUNCH(mma::forward<HP>, (unsigned)(heads * divide_up(a.n, F::ROWS)), mma::THREADS, F::bytes, stream_of(ctx))(a, out);
}
#endif

static void forward(const Context *ctx, const Attention &a, floatX *out, int B) {
    const int64_t heads = (int64_t)B * a.NH;
#ifdef FLOATX_BF16
    if (on_tensor_cores(a, out)) {
        if (a.hs <= 16) forward_mma<16>(ctx, a, out, heads);
        else if (a.hs <= 32) forward_mma<32>(ctx, a, out, heads);
        else if (a.hs <= 64) forward_mma<64>(ctx, a, out, heads);
        else if (a.hs <= 96) forward_mma<96>(ctx, a, out, heads);
        else forward_mma<128>(ctx, a, out, heads);
        return;
    }
#endif
    LAUNCH(plain::forward, (unsigned)plain::blocks_of(a, heads, a.n), plain::THREADS, 0, stream_of(ctx))(a, out);
}

void gpu_attention_forward(Context *ctx, floatX *out, float *lse, const floatX *qkv, int B, int T, int C, int NH,
                           int window) {
    Attention a = attention_of(qkv, qkv, T, T, C, NH, window);
    a.lse = lse;
    forward(ctx, a, out, B);
}

void gpu_attention_backward(Context *ctx, floatX *dqkv, const floatX *dout, const floatX *out, const float *lse,
                            const floatX *qkv, int B, int T, int C, int NH, int window) {
    const cudaStream_t stream = stream_of(ctx);
    const int64_t heads = (int64_t)B * NH, rows = heads * T;
    float *D = (float *)ctx->workspace;
    AttentionGradient g = {attention_of(qkv, qkv, T, T, C, NH, window), dout, dqkv, dqkv + C, dqkv + 2 * (int64_t)C, D};
    g.a.lse = const_cast<float *>(lse);
    const bool vectors = in_vectors(dout, g.a.hs) && in_vectors(out, g.a.hs);
    LAUNCH((vectors ? attention_dot<Vec<floatX>::n> : attention_dot<1>), (unsigned)divide_up(rows, (int64_t)128), 128, 0, stream)
    (D, dout, out, rows, T, NH, g.a.hs);
    const unsigned blocks = (unsigned)plain::blocks_of(g.a, heads, T);
    LAUNCH(plain::backward<true>, blocks, plain::THREADS, 0, stream)(g);
    LAUNCH(plain::backward<false>, blocks, plain::THREADS, 0, stream)(g);
}

template <class Unit> static void append(const Context *ctx, void *cache, const void *qkv, const int *pos, const Attention &a, int B) {
    const int count = 3 * a.C / (int)(sizeof(Unit) / sizeof(floatX));
    const int64_t total = (int64_t)B * a.n * count;
    LAUNCH(attention_append<Unit>, (unsigned)divide_up(total, (int64_t)256), 256, 0, stream_of(ctx))
    ((Unit *)cache, (const Unit *)qkv, pos, a.n, a.T, count, total);
}

void gpu_attention_cached(Context *ctx, floatX *out, floatX *cache, const floatX *qkv, const int *pos, int B, int n,
                          int T, int C, int NH, int window) {
    Attention a = attention_of(qkv, cache, n, T, C, NH, window);
    a.pos = pos;
    if (decode::fits(a, cache, qkv)) return decode::run(ctx, a, out, cache, B);
    if (in_vectors(cache, C) && in_vectors(qkv, C)) append<uint4>(ctx, cache, qkv, pos, a, B);
    else append<floatX>(ctx, cache, qkv, pos, a, B);
    forward(ctx, a, out, B);
}
