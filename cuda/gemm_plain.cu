/* Matrix products of any shape in fp32 arithmetic: tiles of 64 x 64, of which each thread computes 4 x 4. The fp32 library
 * uses them, and the bfloat16 library for the products that gemm_mma.cu cannot take. */
#include "gemm.cuh"

constexpr int TILE = 64, DEPTH = 16, SIDE = 16, EACH = TILE / SIDE; /* SIDE x SIDE threads */

/* Loads TILE rows of A, or columns of B, by DEPTH numbers along K, into tile[k][row]; 0 outside the matrix. */
static __device__ void load_tile(float tile[DEPTH][TILE + 1], const floatX *at, int64_t row_step, int64_t k_step,
                                 int64_t row, int64_t rows, int64_t k, int64_t K) {
    /* Neighbouring threads read neighbouring numbers, whichever way the matrix lies. */
    const bool along_k = k_step == 1;
    for (int i = threadIdx.x; i < TILE * DEPTH; i += SIDE * SIDE) {
        const int r = along_k ? i / DEPTH : i % TILE, d = along_k ? i % DEPTH : i / TILE;
        const bool inside = row + r < rows && k + d < K;
        tile[d][r] = inside ? to_float(at[(row + r) * row_step + (k + d) * k_step]) : 0.0f;
    }
}

static __global__ void gemm_plain_kernel(Gemm g) {
    __shared__ float a[DEPTH][TILE + 1], b[DEPTH][TILE + 1];
    const unsigned across = (unsigned)divide_up(g.N, (int64_t)TILE);
    const int64_t m0 = (int64_t)(blockIdx.x / across) * TILE, n0 = (int64_t)(blockIdx.x % across) * TILE;
    const int tm = threadIdx.x / SIDE, tn = threadIdx.x % SIDE;
    float total[EACH][EACH] = {};
    for (int64_t k = 0; k < g.K; k += DEPTH) {
        load_tile(a, g.a.at, g.a.transposed ? 1 : g.a.ld, g.a.transposed ? g.a.ld : 1, m0, g.M, k, g.K);
        load_tile(b, g.b.at, g.b.transposed ? g.b.ld : 1, g.b.transposed ? 1 : g.b.ld, n0, g.N, k, g.K);
        __syncthreads();
        float sum[EACH][EACH] = {}; /* the sum of this depth alone: sums of sums lose less than one long sum */
        for (int d = 0; d < DEPTH; d++)
            for (int i = 0; i < EACH; i++)
                for (int j = 0; j < EACH; j++) sum[i][j] += a[d][tm + i * SIDE] * b[d][tn + j * SIDE];
        for (int i = 0; i < EACH; i++)
            for (int j = 0; j < EACH; j++) total[i][j] += sum[i][j];
        __syncthreads();
    }
    for (int i = 0; i < EACH; i++)
        for (int j = 0; j < EACH; j++) {
            const int64_t m = m0 + tm + i * SIDE, n = n0 + tn + j * SIDE;
            if (m < g.M && n < g.N) finish(g, m, n, total[i][j]);
        }
}

bool gemm_plain(Context *ctx, const Gemm *g) {
    const int64_t blocks = divide_up(g->M, (int64_t)TILE) * divide_up(g->N, (int64_t)TILE);
    LAUNCH(gemm_plain_kernel, (unsigned)blocks, SIDE * SIDE, 0, stream_of(ctx))(*g);
    return true;
}
