/* Causal attention: the common part of its implementations. The formulas are in csrc/kernels.h.
 *
 * There is no T x T matrix: a block takes a tile of queries through tiles of keys and keeps the softmax up to date (online
 * softmax, Milakov & Gimelshein 2018; FlashAttention, Dao et al. 2022). A score is q.k, a weight e^(scale score - lse) with
 * scale = 1/sqrt(hs), computed as a power of 2 with to_log2 = scale log2(e).
 * Grids have one dimension. The blocks of a head are neighbours, so that they find its keys in the cache; the block with
 * most work comes first. */
#pragma once
#include <math.h>
#include "common.cuh"

struct Attention {
    const floatX *q, *k, *v; /* rows 3C apart; a sequence has n rows of q, and T of k and v */
    float *lse;              /* (B,NH,n), or NULL */
    const int *pos;          /* (B): the position of the first query; NULL: 0 */
    int n, T, C, NH, hs;
    int seen; /* the most keys that a query sees, 1..T */
    float scale, to_log2;
    const Dropout *dropout; /* NULL: none */
    const int *offsets;     /* (B,T): how many rows of its own document stand before a row; NULL: all rows are of one */
};
constexpr float LOG2_E = 1.44269504088896341f;

/* The gradient of qkv, for n = T and pos = NULL. D (B,NH,T) = sum over hs of dout * out. */
struct AttentionGradient {
    Attention a;
    const floatX *dout; /* (B,T,C) */
    floatX *dq, *dk, *dv;
    const float *D;
};

/* ---- who computes what ---- */

/* One head of one sequence. */
struct Head {
    const floatX *q, *k, *v;
    int64_t index, out, stride; /* out: the index of its first element in (B,n,C) */
    int pos, keys;              /* the position of the first query; the number of keys */
};
__device__ inline Head head_at(const Attention &a, int64_t index) {
    const int64_t b = index / a.NH, first = index % a.NH * a.hs, stride = 3 * (int64_t)a.C;
    const int64_t queries = b * a.n * stride + first, keys = b * a.T * stride + first;
    const int pos = a.pos ? a.pos[b] : 0;
    return {a.q + queries, a.k + keys, a.v + keys, index, b * a.n * a.C + first, stride, pos, pos + a.n};
}

struct Span { /* first..last, both included */
    int first, last;
};
__device__ __forceinline__ Span span_of(int first, int count, int end) { return {first, min(first + count, end) - 1}; }

/* What hides keys from a query, besides the future: they are too long ago, or of another document. DOCS is false in kernels for
 * windows that are one document each, which know nothing of offsets. */
template <bool DOCS> struct Sight {
    int seen;           /* the most keys that a query sees */
    int T;              /* the rows of a sequence */
    const int *offsets; /* (T), if DOCS */

    /* The first row of a query's document. Rows behind the last one do not exist, and count as that. */
    __device__ __forceinline__ int begin(int query) const {
        const int row = min(query, T - 1);
        return DOCS ? row - offsets[row] : 0;
    }
    __device__ __forceinline__ bool visible(int query, int key) const {
        return key <= query && key > query - seen && (!DOCS || key >= begin(query));
    }
    /* Whether the query sees one key only. Then its weight is 1, whatever the score, and the score has no gradient. */
    __device__ __forceinline__ bool alone(int query) const { return query == begin(query) || seen == 1; }

    /* Whether no query sees any of the keys; and whether every query sees all of them. Both spans are positions. */
    __device__ __forceinline__ bool all_hidden(Span queries, Span keys) const {
        return queries.first > queries.last || keys.first > queries.last || keys.last <= queries.first - seen ||
               (DOCS && keys.last < begin(queries.first));
    }
    __device__ __forceinline__ bool all_visible(Span queries, Span keys) const {
        return keys.last <= queries.first && keys.first > queries.last - seen &&
               (!DOCS || keys.first >= begin(queries.last));
    }
    /* The keys that some of the queries see, and the queries that see some of the keys; each begins at a multiple of tile. */
    __device__ __forceinline__ Span keys_seen(Span queries, int tile) const {
        return {max(queries.first - seen + 1, begin(queries.first)) / tile * tile, queries.last};
    }
    __device__ __forceinline__ Span queries_seeing(Span keys, int tile) const {
        int last = min(keys.last + seen - 1, T - 1);
        if (DOCS) /* the last query whose document has begun by the last key */
            for (int low = keys.last, middle; low < last; begin(middle) <= keys.last ? low = middle : last = middle - 1)
                middle = low + (last - low + 1) / 2;
        return {keys.first / tile * tile, last};
    }
};
template <bool DOCS> __device__ __forceinline__ Sight<DOCS> sight_of(const Attention &a, int64_t head) {
    return {a.seen, a.T, DOCS ? a.offsets + head / a.NH * a.T : nullptr};
}

/* ---- online softmax ---- */

/* One query's softmax so far. top is its largest score; sum adds up the weights e^(scale (score - top)). */
struct Softmax {
    float top, sum;
};
__device__ __forceinline__ Softmax no_keys() { return {-INFINITY, 0.0f}; }
/* The number to subtract from scores. A query that sees nothing must get only weights of e^-infinity = 0. */
__device__ __forceinline__ float offset_of(float top) { return top == -INFINITY ? 0.0f : top; }
/* Takes the largest score of some more keys. All that was added up so far must be multiplied by the result. */
__device__ __forceinline__ float raise(Softmax &x, float top, float to_log2) {
    const float before = x.top;
    x.top = fmaxf(before, top);
    const float shrink = exp2f((before - offset_of(x.top)) * to_log2);
    x.sum *= shrink;
    return shrink;
}
__device__ __forceinline__ float lse_of(Softmax x, float scale) { return fmaf(x.top, scale, logf(x.sum)); }

/* ---- D ---- */

/* One thread adds up a row of a head, in the order of d. If one key has all the weight, out is its v, and D must be exactly
 * the number that dout.v is, because only their difference counts. N: the elements that may be read at once, or 1. */
template <int N>
static __global__ void attention_dot(float *D, const floatX *dout, const floatX *out, int64_t rows, int T, int NH,
                                     int hs) {
    const int64_t row = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; /* in (B,T,NH) */
    if (row >= rows) return;
    float sum = 0;
    for (int d = 0; d < hs; d += N) {
        Vec<floatX> a, b;
        if (N == 1) a.v[0] = dout[row * hs + d], b.v[0] = out[row * hs + d];
        else a = load16(dout + row * hs + d), b = load16(out + row * hs + d);
        for (int i = 0; i < N; i++) sum = fmaf(to_float(a.v[i]), to_float(b.v[i]), sum);
    }
    const int64_t bt = row / NH, b = bt / T, t = bt % T;
    D[(b * NH + row % NH) * T + t] = sum;
}
