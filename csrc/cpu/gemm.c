/* Matrix product, blocked as in BLIS (Van Zee & van de Geijn 2015).
 *
 *   tile    mr rows x up to nr columns of C. Its sums stay in registers over a part of K.
 *   panel   Up to nr columns of a block. Its part of B is copied, so that every tile reads it in a straight line.
 *           Meanwhile the second cache is asked for the next panel's part.
 *   block   A part of C that one thread computes, panel by panel, for one part of K after another. The block's part of
 *           A stays in the second cache: as a copy, or where it lies (floats, not transposed, rows not in one another's way).
 *   amx     The way of bf16 where the CPU has AMX: gemm_amx.c.
 *   thin    The way of gradients with few rows or columns on AMX: gemm_thin.c.
 *   dots    The way for few rows: every row of B^T is read once, where it lies.
 *
 * Sums are floats until they are whole. Between two parts of K they wait in C if that has floats, else in a buffer. The
 * sizes are those of struct Tiles (gemm_block.h). The shape of the product alone decides in which order an element is summed
 * over K, so threads may share out C freely. */
#include "gemm_plan.h"
#include "gemm_thin.h"
#include "threads.h"

enum {
    LOW = 16,             /* the most tiles of a panel for which a copy of B does not pay */
    OPS_PER_ELEMENT = 40, /* multiply-adds that take as long as one element of threads.h */
};

int64_t K(matmul_workspace)(int64_t largest, int threads) {
    return (threads * own_floats() + K(gemm_amx_shared_floats)(largest, threads)) * (int64_t)sizeof(float);
}

#if defined(FLOATX_FP32)
void K(gemm_finish)(const Gemm *g, int64_t m, int64_t n, int rows, int cols) {
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j += VL) {
            const int64_t at = (m + i) * g->N + n + j;
            const int lanes = LANES(j, cols);
            const vf y = with_gelu(g, at, vf_load_n((const float *)g->c + at, lanes), lanes);
            if (g->slope) c_store_n(g, at, y, lanes);
        }
}
#endif

#if !HAS_AMX
/* ---- the block ---- */

/* Whether sums wait in the thread's buffer between two parts of K. */
static int sums_wait(const Gemm *g) { return !has_floats(g) && g->K > K(gemm_tiles).kc; }

static void block(Gemm g, Block *s, float *waiting) {
    const Tiles *t = &K(gemm_tiles);
    const int64_t parts = (g.K + t->kc - 1) / t->kc;
    const int64_t kc = up((g.K + parts - 1) / parts, t->k_unit); /* the parts are equal */
    if (sums_wait(&g)) g.sums = (Sums){waiting, s->m, s->n, WAITING_COLS};
    for (s->k = 0; s->k < g.K; s->k += kc) {
        s->kc = smaller(kc, g.K - s->k);
        t->copy_a(&g, s);
        for (int64_t n = s->n; n < s->n_end; n += t->size.nr) t->panel(&g, s, n);
    }
    if (g.stream) end_streams();
}

/* ---- sharing C out ---- */

typedef struct Shared {
    const Gemm *g;
    const Plan *plan;
    float *workspace;
} Shared;
static void blocks_of(const void *given, Part p) {
    const Shared a = *(const Shared *)given;
    const Tiles *t = &K(gemm_tiles);
    for (int64_t i = p.from; i < p.to; i++) {
        Block s = nth_block(a.g, a.plan, i);
        s.a = a.workspace + p.thread * own_floats();
        s.b = s.a + t->a_floats;
        s.in_place = t->in_place && !a.g->b.transposed && s.m_end - s.m <= LOW * t->size.mr;
        block(*a.g, &s, s.b + t->b_floats);
    }
}

static void blocks(Context *ctx, const Gemm *g, int threads) {
    Sizes size = K(gemm_tiles).size;
    if (sums_wait(g)) size.nc = WAITING_COLS / size.nr * size.nr;
    const Plan p = best_plan(g, &size, threads);
    parallel_dynamic(threads, p.count, blocks_of, &(Shared){g, &p, ctx->workspace});
}

/* Whether C bypasses the caches. A gradient of weights does if the second cache cannot hold it, because nobody reads it
 * before the update. C does not if sums are added to it: to earlier ones, or part of K by part of K. */
static int is_streamed(const Gemm *g) {
    return g->a.transposed && !g->accumulate && g->K <= K(gemm_tiles).kc && can_stream(g);
}
#endif

void K(gemm)(Context *ctx, const Gemm *given) {
    Gemm g = *given;
    const int few = K(gemm_is_few)(&g);
    const int64_t reads = g.N * g.K, ops = g.M * reads / OPS_PER_ELEMENT;
#if defined(BLAS_SGEMM) && defined(FLOATX_FP32)
    if (!few && K(gemm_blas)(ctx, &g)) return;
#endif
    if (few) {
        K(gemm_dots)(&g, ctx->workspace, threads_for(ctx, reads > ops ? reads : ops));
        return;
    }
#if HAS_AMX
    if (K(gemm_is_thin)(&g)) K(gemm_thin)(ctx, &g);
    else K(gemm_amx)(&g, ctx->workspace, threads_for(ctx, ops));
#else
    g.stream = is_streamed(&g);
    blocks(ctx, &g, threads_for(ctx, ops));
#endif
}
