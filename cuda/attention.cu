/* attention_forward, attention_backward and attention_cached: they choose the implementation that runs. */
#include "attention_cached.cuh"
#include "attention_plain.cuh"
#ifdef FLOATX_BF16
#include "attention_mma_backward.cuh"
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
    const int64_t D = (int64_t)B * NH * T * (int64_t)sizeof(float),
                  splits = decode::workspace((int64_t)B * NH, T, C / NH);
    return D > splits ? D : splits;
}

/* ---- on tensor cores ---- */

#ifdef FLOATX_BF16
static bool on_tensor_cores(const Attention &a, const floatX *out) {
    return a.hs <= 128 && in_vectors(a.q, a.hs) && in_vectors(a.k, a.hs) && in_vectors(out, a.hs);
}

/* Allows more than the 48 KB of shared memory that every kernel may have. If that is refused, the launch fails, and sync
 * reports it. */
template <class F> static void allow(F *kernel, int bytes) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

struct ForwardCall {
    const Context *ctx;
    const Attention &a;
    floatX *out;
    int64_t heads;
    template <int HP, bool DROPS, bool DOCS> void run_one() const {
        using F = mma::Forward<HP>;
        static const bool once = (allow(mma::forward<HP, DROPS, DOCS>, F::bytes), true);
        (void)once;
        const unsigned blocks = (unsigned)(heads * divide_up(a.n, F::ROWS));
        LAUNCH((mma::forward<HP, DROPS, DOCS>), blocks, mma::THREADS, F::bytes, stream_of(ctx))(a, out);
    }
    template <int HP, bool DOCS> void run_documents() const {
        a.dropout ? run_one<HP, true, DOCS>() : run_one<HP, false, DOCS>();
    }
    template <int HP> void run() const { a.offsets ? run_documents<HP, true>() : run_documents<HP, false>(); }
};
struct BackwardCall {
    const Context *ctx;
    const AttentionGradient &g;
    int64_t heads;
    template <int HP, bool KEYS, bool DROPS, bool DOCS> void run_one() const {
        using S = mma::Backward<HP, KEYS>;
        static const bool once = (allow(mma::backward<HP, KEYS, DROPS, DOCS>, S::bytes), true);
        (void)once;
        const unsigned blocks = (unsigned)(heads * divide_up(g.a.T, S::OWN));
        LAUNCH((mma::backward<HP, KEYS, DROPS, DOCS>), blocks, mma::THREADS, (S::bytes), stream_of(ctx))(g);
    }
    template <int HP, bool DROPS, bool DOCS> void run_both() const {
        run_one<HP, true, DROPS, DOCS>(), run_one<HP, false, DROPS, DOCS>();
    }
    template <int HP, bool DOCS> void run_documents() const {
        g.a.dropout ? run_both<HP, true, DOCS>() : run_both<HP, false, DOCS>();
    }
    template <int HP> void run() const { g.a.offsets ? run_documents<HP, true>() : run_documents<HP, false>(); }
};
/* Calls it with the head size of its tiles as a constant. */
template <class Call> static void run_padded(const Call &call, int hs) {
    if (hs <= 16) call.template run<16>();
    else if (hs <= 32) call.template run<32>();
    else if (hs <= 64) call.template run<64>();
    else if (hs <= 96) call.template run<96>();
    else call.template run<128>();
}
static bool forward_on_tensor_cores(const Context *ctx, const Attention &a, floatX *out, int64_t heads) {
    if (!on_tensor_cores(a, out)) return false;
    run_padded(ForwardCall{ctx, a, out, heads}, a.hs);
    return true;
}
static bool backward_on_tensor_cores(const Context *ctx, const AttentionGradient &g, int64_t heads) {
    if (!on_tensor_cores(g.a, g.dout) || !in_vectors(g.dq, g.a.hs)) return false;
    run_padded(BackwardCall{ctx, g, heads}, g.a.hs);
    return true;
}
#else
static bool forward_on_tensor_cores(const Context *, const Attention &, floatX *, int64_t) { return false; }
static bool backward_on_tensor_cores(const Context *, const AttentionGradient &, int64_t) { return false; }
#endif

/* ---- the entries ---- */

template <bool DOCS> static void plain_forward(const Context *ctx, const Attention &a, floatX *out, int64_t heads) {
    LAUNCH((a.dropout ? plain::forward<true, DOCS> : plain::forward<false, DOCS>),
           (unsigned)plain::blocks_of(a, heads, a.n), plain::THREADS, 0, stream_of(ctx))
    (a, out);
}
static void forward(const Context *ctx, const Attention &a, floatX *out, int64_t heads) {
    if (forward_on_tensor_cores(ctx, a, out, heads)) return;
    (a.offsets ? plain_forward<true> : plain_forward<false>)(ctx, a, out, heads);
}

void gpu_attention_forward(Context *ctx, floatX *out, float *lse, const floatX *qkv, const int *offsets,
                           const Dropout *dropout, int B, int T, int C, int NH, int window) {
    Attention a = attention_of(qkv, qkv, T, T, C, NH, window);
    a.lse = lse, a.dropout = dropout, a.offsets = offsets;
    forward(ctx, a, out, (int64_t)B * NH);
}

template <bool DOCS> static void plain_backward(const Context *ctx, const AttentionGradient &g, int64_t heads) {
    const unsigned blocks = (unsigned)plain::blocks_of(g.a, heads, g.a.T);
    const bool drops = g.a.dropout;
    LAUNCH((drops ? plain::backward<true, true, DOCS> : plain::backward<true, false, DOCS>), blocks, plain::THREADS, 0,
           stream_of(ctx))
    (g);
    LAUNCH((drops ? plain::backward<false, true, DOCS> : plain::backward<false, false, DOCS>), blocks, plain::THREADS,
           0, stream_of(ctx))
    (g);
}
static void backward(const Context *ctx, const AttentionGradient &g, int64_t heads) {
    if (backward_on_tensor_cores(ctx, g, heads)) return;
    (g.a.offsets ? plain_backward<true> : plain_backward<false>)(ctx, g, heads);
}

void gpu_attention_backward(Context *ctx, floatX *dqkv, const floatX *dout, const floatX *out, const float *lse,
                            const floatX *qkv, const int *offsets, const Dropout *dropout, int B, int T, int C, int NH,
                            int window) {
    const int64_t heads = (int64_t)B * NH, rows = heads * T;
    float *D = (float *)ctx->workspace;
    AttentionGradient g = {attention_of(qkv, qkv, T, T, C, NH, window), dout, dqkv, dqkv + C, dqkv + 2 * (int64_t)C, D};
    g.a.lse = const_cast<float *>(lse), g.a.dropout = dropout, g.a.offsets = offsets;
    const bool vectors = in_vectors(dout, g.a.hs) && in_vectors(out, g.a.hs);
    const unsigned blocks = (unsigned)divide_up(rows, (int64_t)128);
    LAUNCH((vectors ? attention_dot<Vec<floatX>::n> : attention_dot<1>), blocks, 128, 0, stream_of(ctx))
    (D, dout, out, rows, T, NH, g.a.hs);
    backward(ctx, g, heads);
}

template <class Unit>
static void append(const Context *ctx, void *cache, const void *qkv, const int *pos, const Attention &a, int B) {
    const int count = 3 * a.C / (int)(sizeof(Unit) / sizeof(floatX));
    const int64_t total = (int64_t)B * a.n * count;
    LAUNCH(attention_append<Unit>, (unsigned)divide_up(total, (int64_t)256), 256, 0, stream_of(ctx))
    ((Unit *)cache, (const Unit *)qkv, pos, a.n, a.T, count, total);
}

/* Stores the new rows in the cache. Of a ring, the rows that they see are also brought to `whole`, with them. */
template <class Unit>
static void store_new(const Context *ctx, void *cache, void *whole, const void *qkv, const Attention &ring,
                      const Attention &a, int B) {
    const int count = 3 * a.C / (int)(sizeof(Unit) / sizeof(floatX));
    const int64_t total = (int64_t)B * (a.seen + LARGEST_TILE) * count;
    if (ring.T < a.T) {
        LAUNCH(attention_unroll<Unit>, (unsigned)divide_up(total, (int64_t)256), 256, 0, stream_of(ctx))
        ((Unit *)whole, (const Unit *)cache, a.pos, ring.T, a.T, a.seen, count, total);
        append<Unit>(ctx, whole, qkv, a.pos, a, B);
    }
    append<Unit>(ctx, cache, qkv, a.pos, ring, B);
}

void gpu_attention_cached(Context *ctx, floatX *out, floatX *cache, floatX *whole, const floatX *qkv, const int *pos,
                          int B, int n, int R, int T, int C, int NH, int window) {
    Attention ring = attention_of(qkv, cache, n, R, C, NH, window);
    Attention a = attention_of(qkv, R < T ? whole : cache, n, T, C, NH, window);
    ring.pos = a.pos = pos;
    if (decode::fits(ring, cache, qkv)) return decode::run(ctx, ring, out, cache, B);
    if (in_vectors(cache, C) && in_vectors(qkv, C) && (R == T || in_vectors(whole, C)))
        store_new<uint4>(ctx, cache, whole, qkv, ring, a, B);
    else store_new<floatX>(ctx, cache, whole, qkv, ring, a, B);
    forward(ctx, a, out, (int64_t)B * NH);
}
