/* Attention for any head size, alignment and element, with sums and products in float. The fp32 library uses it, and the
 * other for the head sizes that attention_mma.cuh cannot take.
 *
 * Every product is 64 x 64; thread (x, y) of 16 x 16 has its 4 rows from 4y on, and 4 columns of them.
 *   dots      rows of two matrices with each other, 32 columns at a time: columns x, x+16, ...
 *   products  weights, which lie in shared memory, times rows of a matrix: columns 4x..
 * A head wider than 64 gets a block for every 64 columns of the result; each of them computes the weights anew. */
#pragma once
#include "attention.cuh"
#include "dropout.cuh"

namespace plain {
constexpr int TILE = 64, SIDE = 16, EACH = TILE / SIDE, THREADS = SIDE * SIDE, DEPTH = 32;
constexpr int DOT_STRIDE = DEPTH + 4, STRIDE = TILE + 4; /* so that no two of 8 rows begin in the same banks */

struct Shared {
    float operands[2 * TILE * DOT_STRIDE]; /* two operands of 64 x 32, or one of 64 x 64 */
    float weights[TILE * STRIDE];
};
typedef float Part[EACH][EACH]; /* a thread's part of a product */

struct Rows { /* first..end of a matrix */
    const floatX *p;
    int64_t stride;
    int first, end;
};
__device__ inline Rows rows_at(const floatX *p, int64_t stride, int first, int end) { return {p, stride, first, end}; }

/* Loads the columns from `at` on. What lies past the last row or column becomes 0. */
template <int COLUMNS, int WIDTH> __device__ void load(float *tile, const Rows &m, int at, int end) {
#pragma unroll 2 /* more would leave no room for a second block */
    for (int i = threadIdx.x; i < TILE * COLUMNS; i += THREADS) {
        const int row = i / COLUMNS, column = i % COLUMNS;
        const bool there = m.first + row < m.end && at + column < end;
        tile[row * WIDTH + column] = there ? to_float(m.p[(m.first + row) * m.stride + at + column]) : 0.0f;
    }
}

__device__ __forceinline__ float4 four(const float *p) { return *reinterpret_cast<const float4 *>(p); }
__device__ __forceinline__ float element(const float4 &x, int i) {
    return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w;
}

__device__ __forceinline__ void add_dots(Part sum, const float *a, const float *b, int depth) {
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
#pragma unroll 1
    for (int d = 0; d < depth; d += 4) {
        float4 rows[EACH], columns[EACH];
        for (int i = 0; i < EACH; i++) rows[i] = four(a + (EACH * y + i) * DOT_STRIDE + d);
        for (int i = 0; i < EACH; i++) columns[i] = four(b + (x + SIDE * i) * DOT_STRIDE + d);
        for (int e = 0; e < 4; e++)
            for (int i = 0; i < EACH; i++)
                for (int j = 0; j < EACH; j++) sum[i][j] = fmaf(element(rows[i], e), element(columns[j], e), sum[i][j]);
    }
}

/* sum = a b', over all hs columns. */
__device__ void dots(Part sum, const Rows &a, const Rows &b, int hs, Shared &s) {
    for (int i = 0; i < EACH; i++)
        for (int j = 0; j < EACH; j++) sum[i][j] = 0;
    for (int at = 0; at < hs; at += DEPTH) {
        __syncthreads(); /* the earlier operands are not needed any more */
        load<DEPTH, DOT_STRIDE>(s.operands, a, at, hs);
        load<DEPTH, DOT_STRIDE>(s.operands + TILE * DOT_STRIDE, b, at, hs);
        __syncthreads();
        add_dots(sum, s.operands, s.operands + TILE * DOT_STRIDE, min(DEPTH, hs - at));
    }
}

/* Must follow dots, after whose barrier the earlier weights are not needed any more. */
__device__ __forceinline__ void keep_weights(Shared &s, const Part p) {
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    for (int i = 0; i < EACH; i++)
        for (int j = 0; j < EACH; j++) s.weights[(EACH * y + i) * STRIDE + x + SIDE * j] = p[i][j];
}

/* sum += weights m, for the columns of m from `at` on. */
__device__ void add_products(Part sum, const Rows &m, int at, int hs, Shared &s) {
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    __syncthreads(); /* the operands are not needed any more */
    load<TILE, STRIDE>(s.operands, m, at, hs);
    __syncthreads(); /* and the weights are complete */
#pragma unroll 1
    for (int k = 0; k < TILE; k += 4) {
        float4 w[EACH];
        for (int i = 0; i < EACH; i++) w[i] = four(s.weights + (EACH * y + i) * STRIDE + k);
        for (int e = 0; e < 4; e++) {
            const float4 columns = four(s.operands + (k + e) * STRIDE + EACH * x);
            for (int i = 0; i < EACH; i++)
                for (int j = 0; j < EACH; j++) sum[i][j] = fmaf(element(w[i], e), element(columns, j), sum[i][j]);
        }
    }
}

/* Stores to the rows from `first` on of a (., stride) matrix, columns from `at` on. */
__device__ void store(floatX *p, int64_t stride, const Part x, const float factor[EACH], int first, int end, int at,
                      int hs) {
    const int row = first + EACH * (int)(threadIdx.x / SIDE), column = at + EACH * (int)(threadIdx.x % SIDE);
    for (int i = 0; i < EACH && row + i < end; i++)
        for (int j = 0; j < EACH && column + j < hs; j++)
            p[(row + i) * stride + column + j] = from_float<floatX>(x[i][j] * factor[i]);
}

/* The part of a head that a block computes: rows from `first` on, columns from `at` on. */
struct Work {
    int64_t head;
    int first, at;
};
/* early: whether the first rows have most work. */
__device__ inline Work work_of_block(int rows, int hs, bool early) {
    const int tiles = divide_up(rows, TILE), parts = divide_up(hs, TILE);
    const int tile = (int)(blockIdx.x / parts) % tiles, part = (int)(blockIdx.x % parts);
    return {blockIdx.x / parts / tiles, TILE * (early ? tile : tiles - 1 - tile), TILE * part};
}
static int64_t blocks_of(const Attention &a, int64_t heads, int rows) {
    return heads * divide_up(rows, TILE) * divide_up(a.hs, TILE);
}

/* ---- forward ---- */

/* Combines the 16 threads that share 4 rows. */
template <class F> __device__ __forceinline__ float over_row(float x, F combine) {
    for (int step = SIDE / 2; step > 0; step /= 2) x = combine(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ float plus(float a, float b) { return a + b; }

/* Scores become weights, times dropout's factors if DROPS, and out is scaled to match. first: the number of the first query
 * among those of all heads. */
template <bool DROPS, bool DOCS>
__device__ void softmax(Part p, Part out, Softmax row[EACH], const Attention &a, const Sight<DOCS> &sight, int query,
                        int key, int64_t first) {
    for (int i = 0; i < EACH; i++) {
        float top = -INFINITY;
        for (int j = 0; j < EACH; j++) {
            if (!sight.visible(query + i, key + SIDE * j)) p[i][j] = -INFINITY;
            top = fmaxf(top, p[i][j]);
        }
        const float shrink = raise(row[i], over_row(top, larger), a.to_log2), offset = offset_of(row[i].top);
        for (int j = 0; j < EACH; j++) {
            p[i][j] = exp2f((p[i][j] - offset) * a.to_log2);
            row[i].sum += p[i][j];
            if (DROPS) p[i][j] *= factor_at(*a.dropout, first + i, key + SIDE * j);
            out[i][j] *= shrink;
        }
    }
}

template <bool DROPS, bool DOCS> __global__ void __launch_bounds__(THREADS) forward(Attention a, floatX *out) {
    __shared__ __align__(16) Shared s;
    const Work work = work_of_block(a.n, a.hs, false);
    const Head h = head_at(a, work.head);
    const Sight<DOCS> sight = sight_of<DOCS>(a, work.head);
    const Span keys = sight.keys_seen(span_of(h.pos + work.first, TILE, h.keys), TILE);
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE, row = work.first + EACH * y;
    const Rows q = rows_at(h.q, h.stride, work.first, a.n);
    Part sum = {}, p;
    Softmax softmaxes[EACH];
    for (int i = 0; i < EACH; i++) softmaxes[i] = no_keys();
    for (int key = keys.first; key <= keys.last; key += TILE) {
        dots(p, q, rows_at(h.k, h.stride, key, h.keys), a.hs, s);
        softmax<DROPS>(p, sum, softmaxes, a, sight, h.pos + row, key + x, h.index * a.n + row);
        keep_weights(s, p);
        add_products(sum, rows_at(h.v, h.stride, key, h.keys), work.at, a.hs, s);
    }
    float factor[EACH];
    for (int i = 0; i < EACH; i++) {
        softmaxes[i].sum = over_row(softmaxes[i].sum, plus);
        factor[i] = 1.0f / softmaxes[i].sum;
        if (a.lse && x == 0 && work.at == 0 && row + i < a.n)
            a.lse[h.index * a.n + row + i] = lse_of(softmaxes[i], a.scale);
    }
    store(out + h.out, a.C, sum, factor, work.first, a.n, work.at, a.hs);
}

/* ---- backward: two kernels, see attention_mma_backward.cuh; p = weights, ds = p (dp - D), dp = dout.v ---- */

/* The scores p become weights, times dropout's factors if DROPS, and dp becomes ds. KEYS: rows are keys and columns are
 * queries, else the other way round. first: the number of the head's first query among those of all heads. */
template <bool KEYS, bool DROPS, bool DOCS>
__device__ void weights(Part p, Part dp, const AttentionGradient &g, const Sight<DOCS> &sight, const float *lse,
                        const float *D, int row, int column, int64_t first) {
    for (int i = 0; i < EACH; i++)
        for (int j = 0; j < EACH; j++) {
            const int query = KEYS ? column + SIDE * j : row + i, key = KEYS ? row + i : column + SIDE * j;
            const bool shown = query < g.a.T && sight.visible(query, key);
            p[i][j] = shown ? exp2f(fmaf(p[i][j], g.a.scale, -lse[query]) * LOG2_E) : 0.0f;
            const float factor = DROPS ? factor_at(*g.a.dropout, first + query, key) : 1.0f;
            dp[i][j] = shown && !sight.alone(query) ? p[i][j] * (dp[i][j] * factor - D[query]) : 0.0f;
            p[i][j] *= factor;
        }
}

/* Computes dk and dv of 64 keys (KEYS), or dq of 64 queries. */
template <bool KEYS, bool DROPS, bool DOCS>
__global__ void __launch_bounds__(THREADS, 2) backward(AttentionGradient g) {
    __shared__ __align__(16) Shared s;
    const Attention &a = g.a;
    const Work work = work_of_block(a.T, a.hs, KEYS);
    const Head h = head_at(a, work.head);
    const Span mine = span_of(work.first, TILE, a.T);
    const Sight<DOCS> sight = sight_of<DOCS>(a, work.head);
    const Span others = KEYS ? sight.queries_seeing(mine, TILE) : sight.keys_seen(mine, TILE);
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    const float *lse = a.lse + h.index * a.T, *D = g.D + h.index * a.T;
    Part p, ds, sum = {}, dv = {};
    for (int other = others.first; other <= others.last; other += TILE) {
        const int query = KEYS ? other : work.first, key = KEYS ? work.first : other;
        const Rows q = rows_at(h.q, h.stride, query, a.T), dout = rows_at(g.dout + h.out, a.C, query, a.T);
        const Rows k = rows_at(h.k, h.stride, key, a.T), v = rows_at(h.v, h.stride, key, a.T);
        dots(p, KEYS ? k : q, KEYS ? q : k, a.hs, s);
        dots(ds, KEYS ? v : dout, KEYS ? dout : v, a.hs, s);
        weights<KEYS, DROPS>(p, ds, g, sight, lse, D, work.first + EACH * y, other + x, h.index * a.T);
        if (KEYS) {
            keep_weights(s, p);
            add_products(dv, dout, work.at, a.hs, s);
            __syncthreads(); /* the weights are not needed any more */
        }
        keep_weights(s, ds);
        add_products(sum, KEYS ? q : k, work.at, a.hs, s);
    }
    const float scale[EACH] = {a.scale, a.scale, a.scale, a.scale}, one[EACH] = {1, 1, 1, 1};
    const int64_t offset = h.k - a.k;
    store((KEYS ? g.dk : g.dq) + offset, h.stride, sum, scale, work.first, a.T, work.at, a.hs);
    if (KEYS) store(g.dv + offset, h.stride, dv, one, work.first, a.T, work.at, a.hs);
}
} // namespace plain
