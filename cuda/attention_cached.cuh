/* Attention in generation. One new query of each sequence (n = 1) reads every key once. There is nothing to multiply in
 * tiles, only bytes to fetch. So the keys are shared out: to lanes that hold 16 bytes of a row each, to warps, and to blocks
 * of at least 256 keys. Their results are joined in the order of the keys' owners, never in the order of arrival. */
#pragma once
#include "attention.cuh"

/* Copies the last R of each sequence's n rows (B,n,3C), position p to row p % R of (B,R,3C). count: the units of a row. */
template <class Unit>
__global__ void attention_append(Unit *cache, const Unit *rows, const int *pos, int n, int R, int count,
                                 int64_t total) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= total) return;
    const int64_t row = i / count, b = row / n;
    const int t = (int)(row % n);
    if (t + R >= n) cache[(b * R + (pos[b] + t) % R) * count + i % count] = rows[i];
}

/* Copies the positions before pos[b] that position pos[b] sees from the rows p % R of (B,R,3C) to the rows p of (B,T,3C). A kernel
 * reads whole tiles of keys: rows that no query sees become those that have their place, because they must be finite. */
constexpr int LARGEST_TILE = 64;
template <class Unit>
__global__ void attention_unroll(Unit *whole, const Unit *cache, const int *pos, int R, int T, int seen, int count,
                                 int64_t total) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= total) return;
    const int span = seen + LARGEST_TILE;
    const int64_t row = i / count, b = row / span;
    const int p = max(pos[b] - seen + 1, 0) / LARGEST_TILE * LARGEST_TILE + (int)(row % span);
    if (p < pos[b]) whole[(b * T + p) * count + i % count] = cache[(b * R + p % R) * count + i % count];
}

namespace decode {
constexpr int THREADS = 256, WARPS = THREADS / WARP, WIDTH = Vec<floatX>::n, AHEAD = 4, KEYS = 256;

/* The result of a group of LANES lanes for some keys of one head: each lane holds 16 bytes of the sum of weighted values. */
struct Found {
    Softmax softmax;
    float out[WIDTH];
};

__device__ __forceinline__ float dot(const Vec<floatX> &a, const Vec<floatX> &b) {
    float sum = 0;
    for (int i = 0; i < WIDTH; i++) sum += to_float(a.v[i]) * to_float(b.v[i]);
    return sum;
}
template <int LANES> __device__ __forceinline__ float over_lanes(float x) {
    for (int step = LANES / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

/* Takes the keys at, at + step, ... and their values. AHEAD rows are fetched at a time. Key 0 is in row `start` of the cache, which
 * goes on at row 0 after R rows. */
template <int LANES>
__device__ __forceinline__ void add_keys(Found &f, const Head &h, const Vec<floatX> &q, int at, int step, int last,
                                         int start, int R, int column, int hs, float to_log2) {
    Vec<floatX> k[AHEAD] = {}, v[AHEAD] = {};
    float p[AHEAD], top = -INFINITY;
    for (int i = 0; i < AHEAD; i++)
        if (at + i * step <= last && column < hs) {
            const int place = start + at + i * step, row = place < R ? place : place - R;
            k[i] = load16(h.k + row * h.stride + column);
            v[i] = load16(h.v + row * h.stride + column);
        }
    for (int i = 0; i < AHEAD; i++) {
        p[i] = over_lanes<LANES>(dot(q, k[i]));
        if (at + i * step > last) p[i] = -INFINITY;
        top = fmaxf(top, p[i]);
    }
    const float shrink = raise(f.softmax, top, to_log2), offset = offset_of(f.softmax.top);
    for (int e = 0; e < WIDTH; e++) f.out[e] *= shrink;
    for (int i = 0; i < AHEAD; i++) {
        p[i] = exp2f((p[i] - offset) * to_log2);
        f.softmax.sum += p[i];
        for (int e = 0; e < WIDTH; e++) f.out[e] += p[i] * to_float(v[i].v[e]);
    }
}

/* Joins the groups of a warp: each of them gets the result of all. */
template <int LANES> __device__ __forceinline__ void join_groups(Found &f, float to_log2) {
    for (int step = WARP / 2; step >= LANES; step /= 2) {
        const float shrink = raise(f.softmax, __shfl_xor_sync(0xffffffffu, f.softmax.top, step), to_log2);
        f.softmax.sum += __shfl_xor_sync(0xffffffffu, f.softmax.sum, step);
        for (int e = 0; e < WIDTH; e++) {
            f.out[e] *= shrink;
            f.out[e] += __shfl_xor_sync(0xffffffffu, f.out[e], step);
        }
    }
}

/* Several results, each with its own top. Their `out` lie stride apart. */
struct Parts {
    const Softmax *softmax;
    const float *out;
    int count, stride;
};
struct Joined {
    Softmax softmax;
    float out;
};
__device__ inline Joined join(const Parts &parts, int d, float to_log2) {
    Joined all = {no_keys(), 0};
    for (int i = 0; i < parts.count; i++) all.softmax.top = fmaxf(all.softmax.top, parts.softmax[i].top);
    for (int i = 0; i < parts.count; i++) {
        const float share = exp2f((parts.softmax[i].top - offset_of(all.softmax.top)) * to_log2);
        all.softmax.sum += share * parts.softmax[i].sum;
        all.out += share * parts.out[i * parts.stride + d];
    }
    return all;
}

/* The results of blocks: softmax (B NH, splits), out (B NH, splits, hs); and the number of keys of a split. */
struct Splits {
    Softmax *softmax;
    float *out;
    int count, keys;
};

/* Stores the new row of one head: q, k and v. */
__device__ inline void append(const Attention &a, const Head &h, floatX *cache_q) {
    const int units = a.hs / WIDTH;
    const int row = h.pos % a.T;
    for (int i = threadIdx.x; i < 3 * units; i += THREADS) {
        const int64_t at = (int64_t)(i / units) * a.C + i % units * WIDTH;
        store16(cache_q + row * h.stride + at, load16(h.q + at));
    }
}

/* The keys are counted from the first one that is seen, which is position `base`. The block that owns the newest key stores it
 * in the cache, and with it the new q and v. */
template <int LANES>
__global__ void __launch_bounds__(THREADS, 2) attend(Attention a, floatX *out, floatX *cache, Splits s) {
    __shared__ Softmax softmax[WARPS];
    __shared__ float sums[WARPS * LANES * WIDTH];
    const int split = (int)(blockIdx.x % s.count), warp = threadIdx.x / WARP, column = threadIdx.x % LANES * WIDTH;
    const Head h = head_at(a, blockIdx.x / s.count);
    const int base = max(h.pos - a.seen + 1, 0), newest = h.pos - base, start = base % a.T;
    const int first = split * s.keys, last = min(newest, (split + 1) * s.keys - 1);
    if (first > last) return;
    if (last == newest) {
        append(a, h, cache + (h.k - a.k));
        __syncthreads();
    }
    constexpr int groups = THREADS / LANES;
    Found f = {no_keys(), {}};
    const Vec<floatX> q = column < a.hs ? load16(h.q + column) : Vec<floatX>{};
    for (int at = first; at <= last; at += groups * AHEAD)
        add_keys<LANES>(f, h, q, at + (int)threadIdx.x / LANES, groups, last, start, a.T, column, a.hs, a.to_log2);
    join_groups<LANES>(f, a.to_log2);
    if (threadIdx.x % WARP == 0) softmax[warp] = f.softmax;
    if (threadIdx.x % WARP < LANES)
        for (int e = 0; e < WIDTH; e++) sums[warp * LANES * WIDTH + column + e] = f.out[e];
    __syncthreads();
    for (int d = threadIdx.x; d < a.hs; d += THREADS) {
        const Joined all = join({softmax, sums, WARPS, LANES * WIDTH}, d, a.to_log2);
        if (s.count == 1) out[h.out + d] = from_float<floatX>(all.out / all.softmax.sum);
        else s.out[(int64_t)blockIdx.x * a.hs + d] = all.out;
        if (s.count > 1 && d == 0) s.softmax[blockIdx.x] = all.softmax;
    }
}

/* A block joins the splits of one head. */
__global__ void __launch_bounds__(WARP * 2) join_splits(Attention a, floatX *out, Splits s) {
    const Head h = head_at(a, blockIdx.x);
    const int last = min(h.pos, a.seen - 1) / s.keys;
    const int64_t at = (int64_t)blockIdx.x * s.count;
    for (int d = threadIdx.x; d < a.hs; d += blockDim.x) {
        const Joined all = join({s.softmax + at, s.out + at * a.hs, last + 1, a.hs}, d, a.to_log2);
        out[h.out + d] = from_float<floatX>(all.out / all.softmax.sum);
    }
}

/* Splits are longer if there are heads enough. So results depend on the size of the GPU, but are the same on every run. */
static int keys_of_split(int64_t heads, int T, int multiprocessors) {
    int keys = KEYS;
    while (heads * divide_up(T, keys) > 4 * (int64_t)multiprocessors && keys < T) keys *= 2;
    return keys;
}
static int64_t workspace(int64_t heads, int T, int hs) {
    return heads * divide_up(T, KEYS) * ((int64_t)sizeof(Softmax) + hs * (int64_t)sizeof(float));
}

typedef void Kernel(Attention, floatX *, floatX *, Splits);
static Kernel *kernel_for(int hs) {
    const int units = hs / WIDTH;
    return units <= 2    ? attend<2>
           : units <= 4  ? attend<4>
           : units <= 8  ? attend<8>
           : units <= 16 ? attend<16>
                         : attend<32>;
}
static bool fits(const Attention &a, const floatX *cache, const floatX *qkv) {
    return a.n == 1 && a.hs <= WARP * WIDTH && in_vectors(cache, a.hs) && in_vectors(qkv, a.hs);
}

static void run(const Context *ctx, const Attention &a, floatX *out, floatX *cache, int B) {
    const int64_t heads = (int64_t)B * a.NH;
    Splits s;
    s.keys = keys_of_split(heads, a.seen, device_of(ctx)->multiprocessors);
    s.count = divide_up(a.seen, s.keys);
    s.softmax = (Softmax *)ctx->workspace;
    s.out = (float *)(s.softmax + heads * s.count);
    LAUNCH(kernel_for(a.hs), (unsigned)(heads * s.count), THREADS, 0, stream_of(ctx))(a, out, cache, s);
    if (s.count > 1) LAUNCH(join_splits, (unsigned)heads, WARP * 2, 0, stream_of(ctx))(a, out, s);
}
} // namespace decode
