/* Causal attention: what its implementations share. Formulas in csrc/kernels.h.
 *
 * No T x T matrix: a block takes a tile of queries through tiles of keys, with the softmax kept up to date (online softmax,
 * Milakov & Gimelshein 2018; FlashAttention, Dao et al. 2022). A score is q.k, a weight e^(scale score - lse) with
 * scale = 1/sqrt(hs), computed as a power of 2 with to_log2 = scale log2(e).
 * Grids have one dimension: the blocks of a head lie side by side, so that they find its keys in the cache, the one with
 * most work first. */
#pragma once
#include <math.h>
#include "common.cuh"

struct Attention {
    const floatX *q, *k, *v; /* rows 3C apart; n of q and T of k and v in a sequence */
    float *lse;              /* (B,NH,n); NULL: not asked for */
    const int *pos;          /* (B): of the first query; NULL: 0 */
    int n, T, C, NH, hs;
    int seen; /* keys that a query sees at most, 1..T */
    float scale, to_log2;
};
constexpr float LOG2_E = 1.44269504088896341f;

/* gradients: of qkv, with n = T and pos = NULL; D (B,NH,T) = sum over hs of dout * out */
struct AttentionGradient {
    Attention a;
    const floatX *dout; /* (B,T,C) */
    floatX *dq, *dk, *dv;
    const float *D;
};

/* ---- who computes what ---- */

/* one head of one sequence */
struct Head {
    const floatX *q, *k, *v;
    int64_t index, out, stride; /* out: of its first element in (B,n,C) */
    int pos, keys;              /* of the first query; that exist */
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

/* positions of queries and of keys: does no query, if there is one, see any of the keys? does every query see all? */
__device__ __forceinline__ bool all_hidden(Span queries, Span keys, int seen) {
    return queries.first > queries.last || keys.first > queries.last || keys.last <= queries.first - seen;
}
__device__ __forceinline__ bool all_visible(Span queries, Span keys, int seen) {
    return keys.last <= queries.first && keys.first > queries.last - seen;
}
__device__ __forceinline__ bool visible(int query, int key, int seen) { return key <= query && key > query - seen; }
/* does the query see one key only? Then its weight is 1 whatever the score, and the score has no gradient */
__device__ __forceinline__ bool alone(int query, int seen) { return query == 0 || seen == 1; }

/* what some of the queries see, and who sees some of the keys; it begins at a multiple of tile */
__device__ __forceinline__ Span keys_seen(Span queries, int seen, int tile) {
    return {max(queries.first - seen + 1, 0) / tile * tile, queries.last};
}
__device__ __forceinline__ Span queries_seeing(Span keys, int seen, int tile, int T) {
    return {keys.first / tile * tile, min(keys.last + seen - 1, T - 1)};
}

/* ---- online softmax ---- */

/* of one query: weights so far are e^(scale (score - top)), sum is theirs; top = the largest score */
struct Softmax {
    float top, sum;
};
__device__ __forceinline__ Softmax no_keys() { return {-INFINITY, 0.0f}; }
/* what to take off scores: where nothing is seen all weights shall be e^-infinity = 0 */
__device__ __forceinline__ float offset_of(float top) { return top == -INFINITY ? 0.0f : top; }
/* The largest score of some more keys; what has been added up must be multiplied by the result. */
__device__ __forceinline__ float raise(Softmax &x, float top, float to_log2) {
    const float before = x.top;
    x.top = fmaxf(before, top);
    const float shrink = exp2f((before - offset_of(x.top)) * to_log2);
    x.sum *= shrink;
    return shrink;
}
__device__ __forceinline__ float lse_of(Softmax x, float scale) { return fmaf(x.top, scale, logf(x.sum)); }

/* ---- D ---- */

/* One thread for each row of each head, in the order of d: where one key has all the weight, out is its v, and D must be the
 * very number that dout.v is, for only their difference counts. N: 1, or elements that may be read at once. */
template <int N>
static __global__ void attention_dot(float *D, const floatX *dout, const floatX *out, int64_t rows, int T, int NH,
                                     int hs) {
    const int64_t row = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; /* of (B,T,NH) */
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
