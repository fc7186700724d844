/* Attention of bfloat16 on the tensor cores, in the manner of FlashAttention-2 (Dao 2023): the common part of both
 * directions, and forward. Head sizes are multiples of 8 up to 128; zeros fill them up to HP, the next of 16, 32, 64, 96,
 * 128.
 *
 * A block is four warps. Each takes 16 MT rows of its own through tiles of other rows; forward, queries through keys. While
 * one tile is used the next is fetched (cp.async, two places). All of a warp's products are
 *   dots        its rows with the tile's rows       (16 MT, 8 NT) = left right'
 *   products    weights with the tile               (16 MT, HP) += weights right
 * The elements that mma returns in dots lie exactly where mma expects its left operand in products. So weights are rounded to
 * bfloat16 and never leave the registers. */
#pragma once
#include "attention.cuh"
#include "dropout.cuh"

namespace mma {
typedef __nv_bfloat16 bf16;
constexpr int WARPS = 4, THREADS = WARPS * WARP;

/* ---- tiles in shared memory; rows are 16 bytes too long, so that the 8 that ldmatrix reads lie in different banks ---- */

template <int HP> constexpr int STRIDE = HP + 8;

/* Loads ROWS rows from `first` on. Rows from `end` on do not exist and become 0. */
template <int HP, int ROWS>
__device__ __forceinline__ void fetch(bf16 *tile, const bf16 *p, int64_t stride, int first, int end, int hs) {
    constexpr int COPIES = HP / 8;
    for (int i = threadIdx.x; i < ROWS * COPIES; i += THREADS) {
        const int row = i / COPIES, column = i % COPIES * 8;
        const bool there = first + row < end && column < hs;
        cp_async_16(tile + row * STRIDE<HP> + column, there ? p + (first + row) * stride + column : p, there ? 16 : 0);
    }
}

/* This lane's row of 16 x 16 elements for ldmatrix: a left operand or, transposed, two right operands of 8 columns. */
template <int HP> __device__ __forceinline__ const bf16 *by_rows(const bf16 *tile, int row, int column) {
    const int lane = threadIdx.x % WARP;
    return tile + (row + lane % 16) * STRIDE<HP> + column + lane / 16 * 8;
}
/* The same for two right operands whose columns are the tile's rows. */
template <int HP> __device__ __forceinline__ const bf16 *by_columns(const bf16 *tile, int row, int column) {
    const int lane = threadIdx.x % WARP;
    return tile + (row + lane / 16 * 8 + lane % 8) * STRIDE<HP> + column + lane / 8 % 2 * 8;
}

/* ---- products ---- */

/* The rows of a warp as left operands. They are read from the tile once (KEEP), or at each use, to save registers. */
template <int HP, int MT, bool KEEP> struct Left {
    const bf16 *tile;
    uint32_t kept[KEEP ? HP / 16 : 1][MT][4];

    __device__ __forceinline__ void read(int k, int to) {
        for (int m = 0; m < MT; m++) ldmatrix_x4(kept[to][m], by_rows<HP>(tile, 16 * m, 16 * k));
    }
    __device__ __forceinline__ void keep() {
        if (KEEP)
            for (int k = 0; k < HP / 16; k++) read(k, k);
    }
    __device__ __forceinline__ const uint32_t (*at(int k))[4] {
        if (!KEEP) read(k, 0);
        return kept[KEEP ? k : 0];
    }
};

/* sum = left right'. */
template <int HP, int MT, int NT, bool KEEP>
__device__ __forceinline__ void dots(float (&sum)[MT][NT][4], Left<HP, MT, KEEP> &left, const bf16 *right) {
    for (int m = 0; m < MT; m++)
        for (int n = 0; n < NT; n++)
            for (int e = 0; e < 4; e++) sum[m][n][e] = 0;
    for (int k = 0; k < HP / 16; k++) {
        const uint32_t (*a)[4] = left.at(k);
        for (int n = 0; n < NT; n += 2) {
            uint32_t b[4];
            ldmatrix_x4(b, by_columns<HP>(right, 8 * n, 16 * k));
            for (int m = 0; m < MT; m++)
                for (int i = 0; i < 2; i++) mma_bf16_16816(sum[m][n + i], a[m], b + 2 * i);
        }
    }
}

__device__ __forceinline__ uint32_t pair(float x, float y) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(x, y);
    uint32_t bits;
    memcpy(&bits, &both, 4);
    return bits;
}

/* sum += weights right. */
template <int HP, int MT, int NT>
__device__ __forceinline__ void add_products(float (&sum)[MT][HP / 8][4], const float (&weights)[MT][NT][4],
                                             const bf16 *right) {
    for (int k = 0; k < NT; k += 2) {
        uint32_t a[MT][4];
        for (int m = 0; m < MT; m++)
            for (int i = 0; i < 4; i++)
                a[m][i] = pair(weights[m][k + i / 2][i % 2 * 2], weights[m][k + i / 2][i % 2 * 2 + 1]);
        for (int n = 0; n < HP / 8; n += 2) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, by_rows<HP>(right, 8 * k, 8 * n));
            for (int m = 0; m < MT; m++)
                for (int i = 0; i < 2; i++) mma_bf16_16816(sum[m][n + i], a[m], b + 2 * i);
        }
    }
}

/* The first row and column of this lane in a warp's part of a product. Its elements are in rows row + 16 m + 8 (e / 2),
 * columns column + 8 n + e % 2. */
__device__ __forceinline__ int lane_row() { return threadIdx.x % WARP / 4; }
__device__ __forceinline__ int lane_column() { return threadIdx.x % 4 * 2; }

/* Stores factor * sum to `rows` rows of p. It goes through the warp's own rows of a tile, which are overwritten, so that 16
 * bytes are written at a time. */
template <int HP, int MT>
__device__ __forceinline__ void store(bf16 *p, int64_t stride, bf16 *tile, const float (&sum)[MT][HP / 8][4],
                                      const float (&factor)[MT][2], int rows, int hs) {
    const int lane = threadIdx.x % WARP;
    __syncwarp(); /* all lanes have read the tile */
    for (int m = 0; m < MT; m++)
        for (int n = 0; n < HP / 8; n++)
            for (int i = 0; i < 2; i++) {
                bf16 *at = tile + (16 * m + 8 * i + lane_row()) * STRIDE<HP> + 8 * n + lane_column();
                const float x = sum[m][n][2 * i] * factor[m][i], y = sum[m][n][2 * i + 1] * factor[m][i];
                *reinterpret_cast<__nv_bfloat162 *>(at) = __floats2bfloat162_rn(x, y);
            }
    __syncwarp();
    for (int i = lane; i < 16 * MT * HP / 8; i += WARP) {
        const int row = i / (HP / 8), column = i % (HP / 8) * 8;
        if (row < rows && column < hs) /* not store16, of which nvcc 13.0 made four stores in backward<HP, false> */
            *reinterpret_cast<uint4 *>(p + row * stride + column) =
                *reinterpret_cast<const uint4 *>(tile + row * STRIDE<HP> + column);
    }
}

/* ---- forward ---- */

/* MT is as large as registers allow: ldmatrix is less of a limit if more rows share what it reads. */
template <int HP> struct Forward {
    static constexpr int MT = HP <= 64 ? 2 : 1, ROWS = 16 * MT * WARPS, KEYS = HP <= 96 ? 64 : 32;
    static constexpr int tile = KEYS * STRIDE<HP>, elements = ROWS * STRIDE<HP> + 4 * tile;
    static constexpr int bytes = elements * (int)sizeof(bf16);

    static __device__ __forceinline__ void fetch_keys(bf16 *place, const Head &h, int key, int hs) {
        fetch<HP, KEYS>(place, h.k, h.stride, key, h.keys, hs);
        fetch<HP, KEYS>(place + tile, h.v, h.stride, key, h.keys, hs);
        cp_async_commit();
    }
};

/* Hides scores. query and key are those of the lane's first element. */
template <int MT, int NT, bool DOCS>
__device__ __forceinline__ void hide(float (&s)[MT][NT][4], int query, int key, const Sight<DOCS> &sight) {
    for (int m = 0; m < MT; m++)
        for (int n = 0; n < NT; n++)
            for (int e = 0; e < 4; e++)
                if (!sight.visible(query + 16 * m + e / 2 * 8, key + 8 * n + e % 2)) s[m][n][e] = -INFINITY;
}

/* The scores of one row, half h of tile m, become weights. Each of a row's four lanes keeps a sum of its own. */
template <int HP, int MT, int NT>
__device__ __forceinline__ void softmax(float (&s)[MT][NT][4], float (&out)[MT][HP / 8][4], Softmax &row, int m, int h,
                                        float to_log2) {
    float top = -INFINITY;
    for (int n = 0; n < NT; n++) top = fmaxf(top, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    const float shrink = raise(row, top, to_log2), offset = offset_of(row.top) * to_log2;
    for (int n = 0; n < NT; n++)
        for (int e = 2 * h; e < 2 * h + 2; e++) {
            s[m][n][e] = exp2_approx(fmaf(s[m][n][e], to_log2, -offset)); /* 2 ulp, before a rounding to 8 bits */
            row.sum += s[m][n][e];
        }
    for (int n = 0; n < HP / 8; n++)
        for (int e = 2 * h; e < 2 * h + 2; e++) out[m][n][e] *= shrink;
}

/* The keys that dropout keeps of a query, among 32: bit 8 g + i is key i of the group of 8 that is g groups behind `group`. The four
 * lanes of a row of a product share the groups out. */
__device__ __forceinline__ uint32_t kept_of_query(const Dropout &d, uint32_t row, uint32_t group) {
    const uint32_t lane = threadIdx.x % 4;
    uint32_t bits = kept_bits(d, row, group + lane) << 8 * lane;
    bits |= __shfl_xor_sync(0xffffffffu, bits, 1);
    return bits | __shfl_xor_sync(0xffffffffu, bits, 2);
}

/* Multiplies weights by dropout's factors. row: the number of the lane's first query among those of all heads; key: the tile's
 * first. */
template <int MT, int NT>
__device__ __forceinline__ void drop_rows(float (&s)[MT][NT][4], const Dropout &d, uint32_t row, int key) {
    for (int m = 0; m < MT; m++)
        for (int i = 0; i < 2; i++)
            for (int n = 0; n < NT; n += 4) {
                const uint32_t bits = kept_of_query(d, row + 16 * m + 8 * i, (uint32_t)(key / 8 + n));
                for (int g = 0; g < 4; g++)
                    for (int j = 0; j < 2; j++)
                        s[m][n + g][2 * i + j] *= bits >> (8 * g + lane_column() + j) & 1 ? d.scale : 0.0f;
            }
}

/* A warp's queries. at: the position of the first. */
template <int HP> struct Queries {
    using F = Forward<HP>;
    static constexpr int MT = F::MT, NT = F::KEYS / 8;
    float out[MT][HP / 8][4];
    Softmax rows[MT][2];

    __device__ __forceinline__ void start() {
        for (int m = 0; m < MT; m++)
            for (int i = 0; i < 2; i++) rows[m][i] = no_keys();
        for (int m = 0; m < MT; m++)
            for (int n = 0; n < HP / 8; n++)
                for (int e = 0; e < 4; e++) out[m][n][e] = 0;
    }
    /* row: the number of the lane's first query among those of all heads. */
    template <bool DROPS, bool DOCS>
    __device__ __forceinline__ void see(Left<HP, MT, true> &q, const bf16 *place, Span mine, Span keys,
                                        const Attention &a, const Sight<DOCS> &sight, uint32_t row) {
        float s[MT][NT][4];
        dots(s, q, place);
        if (!sight.all_visible(mine, keys)) hide(s, mine.first + lane_row(), keys.first + lane_column(), sight);
        for (int m = 0; m < MT; m++)
            for (int h = 0; h < 2; h++) softmax<HP>(s, out, rows[m][h], m, h, a.to_log2);
        if constexpr (DROPS) drop_rows(s, *a.dropout, row, keys.first);
        add_products<HP>(out, s, place + F::tile);
    }
    /* Stores rows of p, and of lse unless it is NULL, through the warp's own rows of a tile. */
    __device__ __forceinline__ void finish(bf16 *p, float *lse, bf16 *tile, int count, const Attention &a) {
        float factor[MT][2];
        for (int m = 0; m < MT; m++)
            for (int i = 0; i < 2; i++) {
                float &sum = rows[m][i].sum;
                sum += __shfl_xor_sync(0xffffffffu, sum, 1);
                sum += __shfl_xor_sync(0xffffffffu, sum, 2);
                factor[m][i] = 1.0f / sum;
                const int row = 16 * m + 8 * i + lane_row();
                if (lse && lane_column() == 0 && row < count) lse[row] = lse_of(rows[m][i], a.scale);
            }
        store<HP>(p, a.C, tile, out, factor, count, a.hs);
    }
};

template <int HP, bool DROPS, bool DOCS> __global__ void __launch_bounds__(THREADS) forward(Attention a, floatX *out) {
    using F = Forward<HP>;
    DYNAMIC_SHARED(bf16, q_tile);
    bf16 *places = q_tile + F::ROWS * STRIDE<HP>;
    const int tiles = divide_up(a.n, F::ROWS), first = (tiles - 1 - (int)(blockIdx.x % tiles)) * F::ROWS;
    const Head h = head_at(a, blockIdx.x / tiles);
    const int own = (int)(threadIdx.x / WARP) * 16 * F::MT, row = first + own;
    const Sight<DOCS> sight = sight_of<DOCS>(a, h.index);
    const Span keys = sight.keys_seen(span_of(h.pos + first, F::ROWS, h.keys), F::KEYS);
    const Span mine = span_of(h.pos + row, 16 * F::MT, h.keys);
    Left<HP, F::MT, true> q = {q_tile + own * STRIDE<HP>, {}};
    Queries<HP> queries;
    queries.start();
    fetch<HP, F::ROWS>(q_tile, h.q, h.stride, first, a.n, a.hs);
    F::fetch_keys(places, h, keys.first, a.hs);
    for (int key = keys.first, place = 0; key <= keys.last; key += F::KEYS, place ^= 1) {
        cp_async_wait<0>();
        __syncthreads(); /* this tile is complete, and no thread uses the place of the next any more */
        if (key + F::KEYS <= keys.last) F::fetch_keys(places + (place ^ 1) * 2 * F::tile, h, key + F::KEYS, a.hs);
        if (key == keys.first) q.keep();
        const Span tile = {key, key + F::KEYS - 1};
        if (!sight.all_hidden(mine, tile))
            queries.template see<DROPS>(q, places + place * 2 * F::tile, mine, tile, a, sight,
                                        (uint32_t)(h.index * a.n + row + lane_row()));
    }
    float *lse = a.lse ? a.lse + h.index * a.n + row : nullptr;
    queries.finish(out + h.out + (int64_t)row * a.C, lse, q_tile + own * STRIDE<HP>, a.n - row, a);
}
} // namespace mma
