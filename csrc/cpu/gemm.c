/* Matrix product, blocked as in BLIS (Van Zee & van de Geijn 2015), over the vectors of simd.h.
 *
 *   tile    MR rows x up to NV vectors of C: its sums stay in registers over a block of K
 *   panel   up to NR columns of a block: its part of B is copied, so that every tile reads it in a straight line;
 *           meanwhile the second cache is asked for the next panel's part
 *   block   a piece of C that one thread computes, panel by panel, for one block of K after another. What it needs of
 *           A stays in the second cache: a copy in panels of MR rows, or in place (fp32, not transposed)
 *   dots    few rows: every row of B^T is read once, where it lies
 *
 * The shape alone decides in which order an element is summed over K, so threads may share out C freely. */
#include "gelu.h"
#include "gemm_tile.h"
#include "threads.h"

enum {
    WIDEST = 3072,        /* columns of a block */
    LOW = 16,             /* tiles of a panel: B pays its copy in higher blocks */
    OPS_PER_ELEMENT = 40, /* multiply-adds that take as long as one element of threads.h */
    LARGE = 1 << 19,      /* elements of C: more than the second cache holds */
};

int64_t K(matmul_workspace)(int threads) { return (int64_t)threads * OWN_FLOATS * (int64_t)sizeof(float); }

void K(gemm_finish)(const Gemm *g, int64_t m, int64_t n, int rows, int cols) {
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j += VL) {
            const int64_t at = (m + i) * g->N + n + j;
            const int lanes = LANES(j, cols);
            const vf c = vf_load_n(g->c + at, lanes);
            if (g->gelu) vf_store_n(g->gelu + at, gelu(c), lanes);
            if (g->slope) vf_store_n(g->c + at, c * gelu_slope(vf_load_n(g->slope + at, lanes)), lanes);
        }
}

/* ---- the block ---- */

typedef struct Tiles {
    int64_t most; /* of K in a block */
    void (*copy)(const Gemm *g, const Block *s);
    void (*panel)(const Gemm *g, const Block *s, int64_t n);
} Tiles;
static const Tiles fp32 = {KC, K(gemm_copy_fp32), K(gemm_panel_fp32)};
#if HAS_BF16
static const Tiles bf16 = {2 * KC, K(gemm_copy_bf16), K(gemm_panel_bf16)};
#endif

static const Tiles *tiles_of(const Gemm *g) {
#if HAS_BF16
    if (g->bf16) return &bf16;
#endif
    (void)g;
    return &fp32;
}

static void block(const Gemm *g, Block *s) {
    const Tiles *tiles = tiles_of(g);
    const int64_t parts = (g->K + tiles->most - 1) / tiles->most;
    const int64_t kc = up((g->K + parts - 1) / parts, tiles->most / KC); /* equal parts of whole pairs */
    for (s->k = 0; s->k < g->K; s->k += kc) {
        s->kc = smaller(kc, g->K - s->k);
        tiles->copy(g, s);
        for (int64_t n = s->n; n < s->n_end; n += NR) tiles->panel(g, s, n);
    }
    if (g->stream) end_streams();
}

/* ---- sharing C out ---- */

typedef struct Plan {
    int64_t mt, nt, across, count; /* blocks of mt x nt, `across` of them side by side */
} Plan;

/* time of the busiest thread, in multiply-adds: to copy a row costs as much as 40 more columns, a column as 40 more
 * rows. The last of several threads is a quarter of a block late: no two cores are equally fast, or free. */
static double plan_time(const Gemm *g, Plan *p, int64_t down, int64_t across, int threads) {
    p->mt = up((g->M + down - 1) / down, MR);
    p->nt = up((g->N + across - 1) / across, NR);
    p->across = (g->N + p->nt - 1) / p->nt;
    p->count = p->across * ((g->M + p->mt - 1) / p->mt);
    const int64_t rounds = (p->count + threads - 1) / threads;
    const int64_t one = p->mt * p->nt + 40 * (p->mt + p->nt);
    return ((double)rounds + (threads > 1 ? 0.25 : 0)) * (double)one;
}

static Plan best_plan(const Gemm *g, int threads) {
    const int64_t least_down = (g->M + MC - 1) / MC, least_across = 1 + (g->N - 1) / WIDEST;
    Plan best, p;
    double least = plan_time(g, &best, least_down, least_across, threads);
    for (int64_t down = least_down; down <= 4 * (least_down + threads); down += 1 + down / 4)
        for (int64_t across = least_across; across <= 4 * (least_across + threads); across += 1 + across / 4) {
            const double t = plan_time(g, &p, down, across, threads);
            if (t < least) least = t, best = p;
        }
    return best;
}

/* the larger operand is read once: the blocks that share a piece of it follow one another */
static Block nth_block(const Gemm *g, const Plan *p, int64_t i, float *scratch) {
    const int64_t down = p->count / p->across;
    const int64_t m = (g->M > g->N ? i / p->across : i % down) * p->mt;
    const int64_t n = (g->M > g->N ? i % p->across : i / down) * p->nt;
    const int64_t m_end = smaller(g->M, m + p->mt);
    return (Block){.m = m,
                   .m_end = m_end,
                   .n = n,
                   .n_end = smaller(g->N, n + p->nt),
                   .a = scratch,
                   .b = scratch + A_FLOATS,
                   .in_place = !g->b.transposed && !g->bf16 && m_end - m <= LOW * MR};
}

typedef struct Shared {
    const Gemm *g;
    const Plan *plan;
    float *workspace;
} Shared;
static void blocks_of(const void *given, Part p) {
    const Shared a = *(const Shared *)given;
    for (int64_t i = p.from; i < p.to; i++) {
        Block s = nth_block(a.g, a.plan, i, a.workspace + p.thread * (int64_t)OWN_FLOATS);
        block(a.g, &s);
    }
}

static void blocks(Context *ctx, const Gemm *g, int threads) {
    const Plan p = best_plan(g, threads);
    parallel_dynamic(threads, p.count, blocks_of, &(Shared){g, &p, ctx->workspace});
}

/* a gradient of weights, which is read next when all others are there: not if it may still be in a cache then, or if a
 * part of the sum is read before */
static int is_streamed(const Gemm *g) {
    const int aligned = (uintptr_t)g->c % (VL * sizeof(float)) == 0 && g->N % VL == 0;
    return g->a.transposed && !g->accumulate && g->K <= tiles_of(g)->most && g->M * g->N >= LARGE && aligned;
}

/* one token reads each weight once, as fast as memory brings it: to round it would only take time */
static int rounds(const Context *ctx, const Gemm *g) { return USES_BF16(ctx) && !(g->M == 1 && g->b.transposed); }

void K(gemm)(Context *ctx, const Gemm *given) {
    Gemm g = *given;
    g.bf16 = rounds(ctx, &g);
    g.stream = is_streamed(&g);
    const int few = K(gemm_is_few)(&g);
    const int64_t reads = g.N * g.K, ops = g.M * reads / OPS_PER_ELEMENT;
#ifdef BLAS_SGEMM
    if (!few && K(gemm_blas)(ctx, &g)) return;
#endif
    if (few) K(gemm_dots)(&g, ctx->workspace, threads_for(ctx, reads > ops ? reads : ops));
    else blocks(ctx, &g, threads_for(ctx, ops));
}
