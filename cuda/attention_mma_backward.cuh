/* Attention of bfloat16 on the tensor cores, backward. With p the weights, dp = dout v' and ds = p (dp - D),
 *
 *     dv = p' dout     dk = scale ds' q     dq = scale ds k
 *
 * Sums for dk and dv run over queries, sums for dq over keys. So there are two kernels, and both compute p and ds: 7
 * products instead of FlashAttention-2's 5. FlashAttention-2 adds up parts of dq in memory by atomics, in the order in which
 * blocks come. Here no bit depends on an order, no float copy of dq is kept or converted, and no block waits for another.
 *
 * One template makes both kernels, because the rows of the one are the columns of the other:
 *     KEYS    a warp's rows are keys, k and v, and go through queries, q and dout: p' and ds' give dk and dv
 *     else    its rows are queries, q and dout, and go through keys, k and v: ds gives dq */
#pragma once
#include "attention_mma.cuh"

namespace mma {

/* MT: a warp has 16 MT rows. OWN: the rows of a block. ROWS: the rows of a tile, as many as registers allow. */
template <int HP, bool KEYS> struct Backward {
    static constexpr int MT = HP <= 64 ? 2 : 1, OWN = 16 * MT * WARPS, ROWS = 32, NT = ROWS / 8;
    static constexpr int own = OWN * STRIDE<HP>, tile = ROWS * STRIDE<HP>;
    /* A place holds two tiles and, if they are queries, lse and D of each. Two floats are four elements. */
    static constexpr int place = 2 * tile + (KEYS ? 4 * ROWS : 0);
    static constexpr int bytes = (2 * own + 2 * place) * (int)sizeof(bf16);
    /* The place, 0 or 1, of the tile that begins at `first`. It is computed, because one more variable would spill. */
    static __device__ __forceinline__ int place_of(int first) { return first / ROWS % 2 * place; }
};

/* Loads lse and D of queries. */
template <int HP, bool KEYS>
__device__ __forceinline__ void fetch_queries(float *lse, const AttentionGradient &g, const Head &h, int query) {
    constexpr int ROWS = Backward<HP, KEYS>::ROWS;
    for (int i = threadIdx.x; i < 2 * ROWS; i += THREADS) {
        const float *from = (i < ROWS ? g.a.lse : g.D) + h.index * g.a.T;
        const bool there = query + i % ROWS < g.a.T;
        cp_async_4(lse + i, there ? from + query + i % ROWS : from, there ? 4 : 0);
    }
}

template <int HP, bool KEYS>
__device__ __forceinline__ void fetch_others(bf16 *place, const AttentionGradient &g, const Head &h, int first) {
    using S = Backward<HP, KEYS>;
    const Attention &a = g.a;
    fetch<HP, S::ROWS>(place, KEYS ? h.q : h.k, h.stride, first, a.T, a.hs);
    fetch<HP, S::ROWS>(place + S::tile, KEYS ? g.dout + h.out : h.v, KEYS ? a.C : h.stride, first, a.T, a.hs);
    if (KEYS) fetch_queries<HP, KEYS>(reinterpret_cast<float *>(place + 2 * S::tile), g, h, first);
    cp_async_commit();
}

/* A score p becomes a weight, times dropout's factor, and dp becomes ds. log2 = lse log2(e). */
template <bool DROPS>
__device__ __forceinline__ void weigh(float &p, float &dp, float log2, float D, float to_log2, float factor) {
    p = exp2_approx(fmaf(p, to_log2, -log2)); /* 2 ulp, before a rounding to 8 bits */
    dp = p * ((DROPS ? dp * factor : dp) - D);
    if (DROPS) p *= factor;
}

/* The keys that dropout keeps, among 8, of the 8 queries of a lane's columns: bit 8 (2 n + j) + i is key i of the group, and column
 * lane_column() + 8 n + j, whose query has the number row + 8 n + j. The eight lanes of a column share the queries out. */
__device__ __forceinline__ uint64_t kept_of_queries(const Dropout &d, uint32_t row, uint32_t group) {
    const uint32_t lane = threadIdx.x % WARP / 4;
    uint64_t bits = (uint64_t)kept_bits(d, row + 8 * (lane / 2) + lane % 2, group) << 8 * lane;
    for (int step = 4; step < WARP; step *= 2) bits |= __shfl_xor_sync(0xffffffffu, bits, step);
    return bits;
}

/* A warp's rows. sums[0] is dk or dq; for KEYS, sums[1] is dv. */
template <int HP, bool KEYS> struct Rows {
    using S = Backward<HP, KEYS>;
    static constexpr int MT = S::MT, NT = S::NT;
    Left<HP, MT, false> left, left_v; /* k and v, or q and dout */
    float sums[KEYS ? 2 : 1][MT][HP / 8][4];
    float log2[KEYS ? 1 : MT][2], D[KEYS ? 1 : MT][2]; /* a row's, if the rows are queries */

    __device__ __forceinline__ void start(const AttentionGradient &g, const Head &h, int row) {
        for (int i = 0; i < (KEYS ? 2 : 1); i++)
            for (int m = 0; m < MT; m++)
                for (int n = 0; n < HP / 8; n++)
                    for (int e = 0; e < 4; e++) sums[i][m][n][e] = 0;
        for (int m = 0; m < MT && !KEYS; m++)
            for (int i = 0; i < 2; i++) {
                const int query = row + lane_row() + 16 * m + 8 * i;
                const int64_t at = h.index * g.a.T + query;
                log2[m][i] = query < g.a.T ? g.a.lse[at] * LOG2_E : 0.0f;
                D[m][i] = query < g.a.T ? g.D[at] : 0.0f;
            }
    }

    /* What dropout keeps, for each of the lane's rows. query, key: the numbers of the lane's first among all heads, and of the
     * first key of its rows or columns. */
    static __device__ __forceinline__ void keep(uint64_t (&kept)[MT][2], const Dropout &d, uint32_t query, int key) {
        static_assert(NT == 4, "a tile has 4 groups of 8 columns");
        for (int m = 0; m < MT; m++)
            for (int i = 0; i < 2; i++) {
                const uint32_t rows = 16 * m + 8 * i;
                kept[m][i] = KEYS ? kept_of_queries(d, query, ((uint32_t)key + rows) / 8)
                                  : kept_of_query(d, query + rows, (uint32_t)key / 8);
            }
    }
    /* The place in `kept` of column 8 n + j. */
    static __device__ __forceinline__ int bit_of(int n, int j) {
        return KEYS ? 8 * (2 * n + j) + lane_row() : 8 * n + lane_column() + j;
    }

    /* Scores become weights, and dp becomes ds. queries: lse and D of the tile's rows, if they are queries. */
    template <bool DROPS>
    __device__ __forceinline__ void weights(float (&p)[MT][NT][4], float (&ds)[MT][NT][4], const float *queries,
                                            float to_log2, const uint64_t (&kept)[MT][2], float scale) {
        for (int n = 0; n < NT; n++)
            for (int j = 0; j < 2; j++) {
                const int column = lane_column() + 8 * n + j;
                const float column_log2 = KEYS ? queries[column] * LOG2_E : 0,
                            column_D = KEYS ? queries[S::ROWS + column] : 0;
                for (int m = 0; m < MT; m++)
                    for (int i = 0; i < 2; i++)
                        weigh<DROPS>(p[m][n][2 * i + j], ds[m][n][2 * i + j],
                                     KEYS ? column_log2 : log2[KEYS ? 0 : m][i], KEYS ? column_D : D[KEYS ? 0 : m][i],
                                     to_log2, DROPS && kept[m][i] >> bit_of(n, j) & 1 ? scale : 0.0f);
            }
    }

    /* row and column are those of the lane's first element. */
    template <class F>
    static __device__ __forceinline__ void where(float (&x)[MT][NT][4], int row, int column, float value, F hidden) {
        for (int m = 0; m < MT; m++)
            for (int n = 0; n < NT; n++)
                for (int e = 0; e < 4; e++) {
                    const int r = row + 16 * m + e / 2 * 8, c = column + 8 * n + e % 2;
                    if (hidden(KEYS ? c : r, KEYS ? r : c)) x[m][n][e] = value;
                }
    }

    /* Takes the tile at position `at`. row: the position of the warp's first row; query: the number of the head's first query
     * among those of all heads. */
    template <bool DROPS, bool DOCS>
    __device__ __forceinline__ void see(const bf16 *place, int row, int at, bool all, const Attention &a,
                                        const Sight<DOCS> &sight, uint32_t query) {
        float p[MT][NT][4], ds[MT][NT][4];
        uint64_t kept[MT][2];
        if constexpr (DROPS)
            keep(kept, *a.dropout, query + (uint32_t)(KEYS ? at + lane_column() : row + lane_row()), KEYS ? row : at);
        dots(p, left, place);
        dots(ds, left_v, place + S::tile);
        row += lane_row(), at += lane_column();
        if (!all) where(p, row, at, -INFINITY, [&](int query, int key) { return !sight.visible(query, key); });
        weights<DROPS>(p, ds, reinterpret_cast<const float *>(place + 2 * S::tile), a.to_log2, kept,
                       DROPS ? a.dropout->scale : 1.0f);
        if (!all) where(ds, row, at, 0.0f, [&](int query, int) { return sight.alone(query); });
        if (KEYS) add_products<HP>(sums[KEYS ? 1 : 0], p, place + S::tile);
        add_products<HP>(sums[0], ds, place);
    }
};

template <int HP, bool KEYS, bool DROPS, bool DOCS>
__global__ void __launch_bounds__(THREADS) backward(AttentionGradient g) {
    using S = Backward<HP, KEYS>;
    DYNAMIC_SHARED(bf16, shared);
    bf16 *places = shared + 2 * S::own;
    const Attention &a = g.a;
    const int tiles = divide_up(a.T, S::OWN), block = (int)(blockIdx.x % tiles);
    /* The first keys and the last queries have most work. */
    const int first = (KEYS ? block : tiles - 1 - block) * S::OWN;
    const Head h = head_at(a, blockIdx.x / tiles);
    const int own = (int)(threadIdx.x / WARP) * 16 * S::MT, row = first + own;
    const Span block_rows = span_of(first, S::OWN, a.T), mine = span_of(row, 16 * S::MT, a.T);
    const Sight<DOCS> sight = sight_of<DOCS>(a, h.index);
    const Span others = KEYS ? sight.queries_seeing(block_rows, S::ROWS) : sight.keys_seen(block_rows, S::ROWS);
    Rows<HP, KEYS> rows;
    rows.left.tile = shared + own * STRIDE<HP>, rows.left_v.tile = rows.left.tile + S::own;
    rows.start(g, h, row);
    fetch<HP, S::OWN>(shared, KEYS ? h.k : h.q, h.stride, first, a.T, a.hs);
    fetch<HP, S::OWN>(shared + S::own, KEYS ? h.v : g.dout + h.out, KEYS ? h.stride : a.C, first, a.T, a.hs);
    fetch_others<HP, KEYS>(places + S::place_of(others.first), g, h, others.first);
    for (int at = others.first; at <= others.last; at += S::ROWS) {
        cp_async_wait<0>();
        __syncthreads(); /* this tile is complete, and no thread uses the place of the next any more */
        const int next = at + S::ROWS;
        if (next <= others.last) fetch_others<HP, KEYS>(places + S::place_of(next), g, h, next);
        const Span tile = {at, at + S::ROWS - 1}, &queries = KEYS ? tile : mine, &keys = KEYS ? mine : tile;
        if (!sight.all_hidden(queries, keys))
            rows.template see<DROPS>(places + S::place_of(at), row, at, sight.all_visible(queries, keys), a, sight,
                                     (uint32_t)(h.index * a.T));
    }
    float scale[S::MT][2], one[S::MT][2];
    for (int m = 0; m < S::MT; m++)
        for (int i = 0; i < 2; i++) scale[m][i] = a.scale, one[m][i] = 1;
    const int64_t offset = h.k - a.k + row * h.stride;
    store<HP>((KEYS ? g.dk : g.dq) + offset, h.stride, shared + own * STRIDE<HP>, rows.sums[0], scale, a.T - row, a.hs);
    if (KEYS)
        store<HP>(g.dv + offset, h.stride, shared + S::own + own * STRIDE<HP>, rows.sums[KEYS ? 1 : 0], one, a.T - row,
                  a.hs);
}
} // namespace mma
