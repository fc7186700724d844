/* How C is cut into blocks that threads share out: the sizes that keep all threads busy with the least copying. */
#ifndef GEMM_PLAN_H
#define GEMM_PLAN_H
#include "gemm_block.h"

typedef struct Plan {
    int64_t mt, nt, across, count; /* `count` blocks of mt x nt, `across` of them side by side */
} Plan;

/* Fills in the plan of `down` x `across` blocks and returns the time of its busiest thread, in multiply-adds. A row, or a
 * column, costs as much as t->copy more of the other. The last of several threads is a quarter of a block late, because no
 * two cores are equally fast, or free. */
static inline double plan_time(const Gemm *g, const Sizes *t, Plan *p, int64_t down, int64_t across, int threads) {
    p->mt = up((g->M + down - 1) / down, t->mr);
    p->nt = up((g->N + across - 1) / across, t->nr);
    p->across = (g->N + p->nt - 1) / p->nt;
    p->count = p->across * ((g->M + p->mt - 1) / p->mt);
    const int64_t rounds = (p->count + threads - 1) / threads;
    const int64_t one = p->mt * p->nt + t->copy * (p->mt + p->nt);
    return ((double)rounds + (threads > 1 ? 0.25 : 0)) * (double)one;
}

static inline Plan best_plan(const Gemm *g, const Sizes *t, int threads) {
    const int64_t least_down = (g->M + t->mc - 1) / t->mc, least_across = (g->N + t->nc - 1) / t->nc;
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
static inline Block nth_block(const Gemm *g, const Plan *p, int64_t i) {
    const int64_t down = p->count / p->across;
    const int64_t m = (g->M > g->N ? i / p->across : i % down) * p->mt;
    const int64_t n = (g->M > g->N ? i % p->across : i / down) * p->nt;
    return (Block){.m = m, .m_end = smaller(g->M, m + p->mt), .n = n, .n_end = smaller(g->N, n + p->nt)};
}
#endif
