/* Matrix product, blocked as in BLIS (Van Zee & van de Geijn 2015).
 *
 *   tile    mr rows x up to nr columns of C. Its sums stay in registers over a part of K.
 *   panel   Up to nr columns of a block. Its part of B is copied, so that every tile reads it in a straight line.
 *           Meanwhile the second cache is asked for the next panel's part.
 *   block   A part of C that one thread computes, panel by panel, for one part of K after another. The block's part of
 *           A stays in the second cache: as a copy in panels of mr rows, or where it lies (fp32, not transposed).
 *   amx     The way of bf16 where the CPU has AMX: gemm_amx.c.
 *   dots    The way for few rows: every row of B^T is read once, where it lies.
 *
 * The sizes are those of struct Tiles (gemm_block.h). The shape of the product alone decides in which order an element is
 * summed over K, so threads may share out C freely. */
#include "gelu.h"
#include "gemm_plan.h"
#include "threads.h"

enum {
    LOW = 16,             /* the most tiles of a panel for which a copy of B does not pay */
    OPS_PER_ELEMENT = 40, /* multiply-adds that take as long as one element of threads.h */
};

int64_t K(matmul_workspace)(int64_t largest, int threads) {
    return (threads * own_floats() + K(gemm_amx_shared_floats)(largest, threads)) * (int64_t)sizeof(float);
}

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
#if HAS_BF16 && !HAS_AMX
    if (g->bf16) return &K(gemm_tiles_bf16);
#endif
    (void)g;
    return &K(gemm_tiles_fp32);
}

static void block(const Gemm *g, const Tiles *t, Block *s) {
    const int64_t parts = (g->K + t->kc - 1) / t->kc;
    const int64_t kc = up((g->K + parts - 1) / parts, t->k_unit); /* the parts are equal */
    for (s->k = 0; s->k < g->K; s->k += kc) {
        s->kc = smaller(kc, g->K - s->k);
        t->copy_a(g, s);
        for (int64_t n = s->n; n < s->n_end; n += t->size.nr) t->panel(g, s, n);
    }
    if (g->stream) end_streams();
}

/* ---- sharing C out ---- */

typedef struct Shared {
    const Gemm *g;
    const Tiles *tiles;
    const Plan *plan;
    float *workspace;
} Shared;
static void blocks_of(const void *given, Part p) {
    const Shared a = *(const Shared *)given;
    for (int64_t i = p.from; i < p.to; i++) {
        Block s = nth_block(a.g, a.plan, i);
        s.a = a.workspace + p.thread * own_floats();
        s.b = s.a + a.tiles->a_floats;
        s.in_place = a.tiles->in_place && !a.g->b.transposed && s.m_end - s.m <= LOW * a.tiles->size.mr;
        block(a.g, a.tiles, &s);
    }
}

static void blocks(Context *ctx, const Gemm *g, int threads) {
    const Tiles *t = tiles_of(g);
    const Plan p = best_plan(g, &t->size, threads);
    parallel_dynamic(threads, p.count, blocks_of, &(Shared){g, t, &p, ctx->workspace});
}

/* Whether C bypasses the caches. A gradient of weights does if the second cache cannot hold it, because nobody reads it
 * before the update. C does not if sums are added to it: to earlier ones, or part of K by part of K. */
static int is_streamed(const Gemm *g) {
    return g->a.transposed && !g->accumulate && g->K <= tiles_of(g)->kc && can_stream(g);
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
    else if (HAS_AMX && g.bf16) K(gemm_amx)(&g, ctx->workspace, threads_for(ctx, ops));
    else blocks(ctx, &g, threads_for(ctx, ops));
}
