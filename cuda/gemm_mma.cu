/* Matrix products of bfloat16 on the tensor cores, by hand. The GPU build computes with them if there is no cuBLASLt.
 *
 *   block   128 x 128 of C, eight warps, each 64 x 32. K is taken in steps of 32; three of them are always on their way
 *           from global to shared memory (cp.async).
 *   tile    Lies in shared memory as in global memory, so that 16 bytes move at once; ldmatrix transposes it if the
 *           tensor core needs that. Rows are 16 bytes longer than needed, so that the eight rows that ldmatrix reads lie
 *           in different banks.
 *
 * An element is summed over K in one order, whatever the grid, so results do not depend on the GPU. */
#include "gemm.cuh"

#ifndef FLOATX_BF16
bool gemm_mma(Context *, const Gemm *) { return false; }
#else
constexpr int BM = 128, BN = 128, BK = 32, STAGES = 4, WARPS = 8, PAD = 8;
constexpr int WM = 64, WN = 32;               /* a warp's part of C */
constexpr int MT = WM / 16, NT = WN / 8;      /* the number of mma tiles in it */
constexpr int PER_COPY = 16 / sizeof(floatX); /* elements */
constexpr int GROUP = 8;                      /* the block rows that run side by side, to share the second cache */

/* A tile as it is stored: R rows of W elements. */
template <int R, int W> struct Tile {
    static constexpr int stride = W + PAD, elements = R * stride;
    static __device__ void load(floatX *tile, const Operand &o, int64_t row, int64_t rows, int64_t col, int64_t cols) {
        for (int i = threadIdx.x; i < R * W / PER_COPY; i += WARPS * WARP) {
            const int r = i / (W / PER_COPY), c = i % (W / PER_COPY) * PER_COPY;
            const bool inside = row + r < rows && col + c < cols;
            cp_async_16(tile + r * stride + c, inside ? o.at + (row + r) * o.ld + col + c : o.at, inside ? 16 : 0);
        }
    }
};

/* A's 16 x 16 at (m, k), or B's 16 (k) x 16 (n), in the form that mma takes (ptx.cuh). FLIPPED: the tile is transposed. */
template <bool FLIPPED> struct FragmentA {
    using T = std::conditional_t<FLIPPED, Tile<BK, BM>, Tile<BM, BK>>;
    static __device__ void load(uint32_t a[4], const floatX *tile, int m, int k) {
        const int lane = threadIdx.x % WARP;
        if (FLIPPED) ldmatrix_x4_trans(a, tile + (k + lane % 8 + lane / 16 * 8) * T::stride + m + lane / 8 % 2 * 8);
        else ldmatrix_x4(a, tile + (m + lane % 16) * T::stride + k + lane / 16 * 8);
    }
};
template <bool FLIPPED> struct FragmentB { /* b[0..1]: columns n..n+7, b[2..3]: the next eight */
    using T = std::conditional_t<FLIPPED, Tile<BN, BK>, Tile<BK, BN>>;
    static __device__ void load(uint32_t b[4], const floatX *tile, int k, int n) {
        const int lane = threadIdx.x % WARP;
        if (FLIPPED) ldmatrix_x4(b, tile + (n + lane % 8 + lane / 16 * 8) * T::stride + k + lane / 8 % 2 * 8);
        else ldmatrix_x4_trans(b, tile + (k + lane % 16) * T::stride + n + lane / 16 * 8);
    }
};

template <bool TA, bool TB> struct Product {
    using A = FragmentA<TA>;
    using B = FragmentB<TB>;
    static constexpr int stage = A::T::elements + B::T::elements;
    static constexpr int bytes = STAGES * stage * (int)sizeof(floatX);

    static __device__ void load(floatX *shared, const Gemm &g, int64_t m, int64_t n, int64_t k) {
        floatX *a = shared, *b = shared + A::T::elements;
        if (k < g.K) {
            if (TA) A::T::load(a, g.a, k, g.K, m, g.M);
            else A::T::load(a, g.a, m, g.M, k, g.K);
            if (TB) B::T::load(b, g.b, n, g.N, k, g.K);
            else B::T::load(b, g.b, k, g.K, n, g.N);
        }
        cp_async_commit(); /* at the end the group is empty, so that the number of groups stays the same */
    }

    static __device__ void multiply(float acc[MT][NT][4], const floatX *shared, int m, int n) {
        const floatX *tile_a = shared, *tile_b = shared + A::T::elements;
        for (int k = 0; k < BK; k += 16) {
            uint32_t a[MT][4], b[NT / 2][4];
#pragma unroll
            for (int i = 0; i < MT; i++) A::load(a[i], tile_a, m + i * 16, k);
#pragma unroll
            for (int j = 0; j < NT / 2; j++) B::load(b[j], tile_b, k, n + j * 16);
#pragma unroll
            for (int i = 0; i < MT; i++)
#pragma unroll
                for (int j = 0; j < NT; j++) mma_bf16_16816(acc[i][j], a[i], &b[j / 2][j % 2 * 2]);
        }
    }
};

/* Finishes two neighbours in a row; N is even. */
static __device__ void finish_pair(const Gemm &g, int64_t m, int64_t n, float x, float y) {
    if (m >= g.M || n >= g.N) return;
    const int64_t at = m * g.N + n;
    if (g.sum) {
        float2 *sum = (float2 *)(g.sum + at);
        *sum = g.accumulate ? make_float2(sum->x + x, sum->y + y) : make_float2(x, y);
        return;
    }
    if (g.bias) x += to_float(g.bias[n]), y += to_float(g.bias[n + 1]);
    if (g.slope) {
        const float2 pre = __bfloat1622float2(*(const __nv_bfloat162 *)(g.slope + at));
        x *= gelu_slope(pre.x), y *= gelu_slope(pre.y);
    }
    const __nv_bfloat162 stored = __floats2bfloat162_rn(x, y);
    *(__nv_bfloat162 *)(g.c + at) = stored;
    if (!g.gelu) return;
    const float2 pre = __bfloat1622float2(stored);
    *(__nv_bfloat162 *)(g.gelu + at) = __floats2bfloat162_rn(gelu(pre.x), gelu(pre.y));
}

/* The place of a block: GROUP block rows go along N together. */
static __device__ void place_of_block(const Gemm &g, int64_t *m, int64_t *n) {
    const int64_t down = divide_up(g.M, (int64_t)BM), across = divide_up(g.N, (int64_t)BN), i = blockIdx.x;
    const int64_t group = i / (GROUP * across), first = group * GROUP;
    const int64_t high = min((int64_t)GROUP, down - first), within = i - group * GROUP * across;
    *m = (first + within % high) * BM;
    *n = within / high * BN;
}

template <bool TA, bool TB> __global__ void __launch_bounds__(WARPS *WARP) gemm_mma_kernel(Gemm g) {
    using P = Product<TA, TB>;
    DYNAMIC_SHARED(floatX, shared);
    int64_t m, n;
    place_of_block(g, &m, &n);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int wm = warp % (BM / WM) * WM, wn = warp / (BM / WM) * WN;
    float acc[MT][NT][4] = {};
    for (int s = 0; s < STAGES - 1; s++) P::load(shared + s * P::stage, g, m, n, (int64_t)s * BK);
    const int steps = (int)divide_up(g.K, (int64_t)BK);
    for (int s = 0; s < steps; s++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads(); /* step s is complete, and no thread uses the place that is filled next */
        P::load(shared + (s + STAGES - 1) % STAGES * P::stage, g, m, n, (int64_t)(s + STAGES - 1) * BK);
        P::multiply(acc, shared + s % STAGES * P::stage, wm, wn);
    }
    cp_async_wait<0>();
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                finish_pair(g, m + wm + i * 16 + h * 8 + lane / 4, n + wn + j * 8 + lane % 4 * 2, acc[i][j][2 * h],
                            acc[i][j][2 * h + 1]);
}

/* Whether its rows can be read 16 bytes at a time. */
static bool readable(const Operand &o, int64_t length) {
    return (uintptr_t)o.at % 16 == 0 && o.ld % PER_COPY == 0 && length % PER_COPY == 0;
}
static bool pairs(const void *p) { return (uintptr_t)p % 8 == 0; }

template <bool TA, bool TB> static void launch(Context *ctx, const Gemm *g) {
    static const cudaError_t allowed = cudaFuncSetAttribute(
        gemm_mma_kernel<TA, TB>, cudaFuncAttributeMaxDynamicSharedMemorySize, Product<TA, TB>::bytes);
    (void)allowed; /* if not, the launch fails, and sync reports it */
    const int64_t blocks = divide_up(g->M, (int64_t)BM) * divide_up(g->N, (int64_t)BN);
    LAUNCH((gemm_mma_kernel<TA, TB>), (unsigned)blocks, WARPS * WARP, (Product<TA, TB>::bytes), stream_of(ctx))(*g);
}

bool gemm_mma(Context *ctx, const Gemm *g) {
    const bool TA = g->a.transposed, TB = g->b.transposed;
    if (!readable(g->a, TA ? g->M : g->K) || !readable(g->b, TB ? g->K : g->N) || g->N % 2) return false;
    if (!pairs(g->c) || !pairs(g->sum) || !pairs(g->gelu) || !pairs(g->slope)) return false;
    if (TA && TB) return false; /* no layer asks for it */
    if (TA) launch<true, false>(ctx, g);
    else if (TB) launch<false, true>(ctx, g);
    else launch<false, false>(ctx, g);
    return true;
}
#endif
