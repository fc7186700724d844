/* Matrix product, blocked as in BLIS (Van Zee & van de Geijn 2015).
 *
 *   tile    mr rows x up to nr columns of C. Its sums stay in registers over a part of K.
 *   panel   Up to nr columns of a block. Its part of B is copied, so that every tile reads it in a straight line.
 *           Meanwhile the second cache is asked for the next panel's part.
 *   block   A part of C that one thread computes, panel by panel, for one part of K after another. The block's part of
 *           A stays in the second cache: as a copy in panels of mr rows, or where it lies (fp32, not transposed).
 *   dots    The way for few rows: every row of B^T is read once, where it lies.
 *
 * The sizes are those of struct Tiles (gemm_block.h). The shape of the product alone decides in which order an element is
 * summed over K, so threads may share out C freely. */
#include "gelu.h"
#include "gemm_block.h"
#include "threads.h"

enum {
    WIDEST = 3072,        /* the most columns of a block */
    LOW = 16,             /* the most tiles of a panel for which a copy of B does not pay */
    OPS_PER_ELEMENT = 40, /* multiply-adds that take as long as one element of threads.h */
    LARGE = 1 << 19,      /* elements of C that the second cache cannot hold */
};

int64_t K(matmul_workspace)(int threads) { return threads * own_floats() * (int64_t)sizeof(float); }

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

static const Tiles *tiles_of(const Gemm *g) {
#if HAS_BF16
    if (g->bf16) return &K(gemm_tiles_bf16);
#endif
    (void)g;
    return &K(gemm_tiles_fp32);
}

static void end_streams(void) { /* makes what was stored past the caches visible to other threads */
#if VL >= 8
    _mm_sfence();
#endif
}

static void block(const Gemm *g, const Tiles *t, Block *s) {
    const int64_t parts = (g->K + t->kc - 1) / t->kc;
    const int64_t kc = up((g->K + parts - 1) / parts, t->k_unit); /* the parts are equal */
    for (s->k = 0; s->k < g->K; s->k += kc) {
        s->kc = smaller(kc, g->K - s->k);
        t->copy_a(g, s);
        for (int64_t n = s->n; n < s->n_end; n += t->nr) t->panel(g, s, n);
    }
    if (g->stream) end_streams();
}

/* ---- sharing C out ---- */

typedef struct Plan {
    int64_t mt, nt, across, count; /* `count` blocks of mt x nt, `across` of them side by side */
} Plan;

/* Fills in the plan of `down` x `across` blocks and returns the time of its busiest thread, in multiply-adds. The copy of a
 * row costs as much as 40 more columns, that of a column as 40 more rows. The last of several threads is a quarter of a
 * block late, because no two cores are equally fast, or free. */
static double plan_time(const Gemm *g, const Tiles *t, Plan *p, int64_t down, int64_t across, int threads) {
    p->mt = up((g->M + down - 1) / down, t->mr);
    p->nt = up((g->N + across - 1) / across, t->nr);
    p->across = (g->N + p->nt - 1) / p->nt;
    p->count = p->across * ((g->M + p->mt - 1) / p->mt);
    const int64_t rounds = (p->count + threads - 1) / threads;
    const int64_t one = p->mt * p->nt + 40 * (p->mt + p->nt);
    return ((double)rounds + (threads > 1 ? 0.25 : 0)) * (double)one;
}

static Plan best_plan(const Gemm *g, const Tiles *t, int threads) {
    const int64_t least_down = (g->M + t->mc - 1) / t->mc, least_across = 1 + (g->N - 1) / WIDEST;
    Plan best, p;
    double least = plan_time(g, t, &best, least_down, least_across, threads);
    for (int64_t down = least_down; down <= 4 * (least_down + threads); down += 1 + down / 4)
        for (int64_t across = least_across; across <= 4 * (least_across + threads); across += 1 + across / 4) {
            const double time = plan_time(g, t, &p, down, across, threads);
            if (time < least) least = time, best = p;
        }
    return best;
}

/* Blocks that share a part of the larger operand follow one another, so that it is read from memory once. */
static Block nth_block(const Gemm *g, const Tiles *t, const Plan *p, int64_t i, float *scratch) {
    const int64_t down = p->count / p->across;
    const int64_t m = (g->M > g->N ? i / p->across : i % down) * p->mt;
    const int64_t n = (g->M > g->N ? i % p->across : i / down) * p->nt;
    const int64_t m_end = smaller(g->M, m + p->mt);
    return (Block){.m = m,
                   .m_end = m_end,
                   .n = n,
                   .n_end = smaller(g->N, n + p->nt),
                   .a = scratch,
                   .b = scratch + t->a_floats,
                   .in_place = t->in_place && !g->b.transposed && m_end - m <= LOW * t->mr};
}

typedef struct Shared {
    const Gemm *g;
    const Tiles *tiles;
    const Plan *plan;
    float *workspace;
} Shared;
static void blocks_of(const void *given, Part p) {
    const Shared a = *(const Shared *)given;
    for (int64_t i = p.from; i < p.to; i++) {
        Block s = nth_block(a.g, a.tiles, a.plan, i, a.workspace + p.thread * own_floats());
        block(a.g, a.tiles, &s);
    }
}

static void blocks(Context *ctx, const Gemm *g, int threads) {
    const Tiles *t = tiles_of(g);
    const Plan p = best_plan(g, t, threads);
    parallel_dynamic(threads, p.count, blocks_of, &(Shared){g, t, &p, ctx->workspace});
}

/* Whether C bypasses the caches. A gradient of weights does if the second cache cannot hold it, because nobody reads it
 * before the update. C does not if sums are added to it: to earlier ones, or part of K by part of K. */
static int is_streamed(const Gemm *g) {
    const int aligned = (uintptr_t)g->c % (VL * sizeof(float)) == 0 && g->N % VL == 0;
    return g->a.transposed && !g->accumulate && g->K <= tiles_of(g)->kc && g->M * g->N >= LARGE && aligned;
}

/* Whether the operands are rounded to bf16. For a single token they are not: it reads each weight once, as fast as memory
 * brings it, so rounding would only take time. */
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
