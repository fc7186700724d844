/* The matrix product on Intel's tiles (amx.h).
 *
 *   square   32 x 32 sums, in four tiles. A step of it takes four loads and four multiplications.
 *   strip    8 steps of a panel of B. They stay in the first cache while a group of two panels of A passes, and so do the
 *            sums of the group.
 *   block    A part of C that one thread computes. Its part of B stays in the second cache, A streams by. If K is long, it
 *            is cut into parts, between which the sums wait in the second cache.
 *   slab     A part of C whose operands are packed as a whole, by all threads, before blocks of it are shared out; so each
 *            number is placed once for all blocks. If one block has all rows of C, each packs its own part of B instead.
 *   slice    A part of K, if that is longer than a slab may be. Between slices the sums wait in C if that has floats; else
 *            C is cut into regions, for each of which there is a buffer.
 *
 * The tiles of a pass are stored between the first multiplications of the next, and a finished square is put between passes:
 * the tile unit works meanwhile. The shape of the product alone decides how K is cut, which is what the bits depend on. */
#include "gemm_plan.h"
#include "threads.h"
#if HAS_AMX
#include "gemm_amx_put.h"

enum {
    STRIP = 8,
    GROUP = 2,
    LONG = 1024 / DEPTH, /* the most steps whose sums need not wait */
    PART = 768 / DEPTH,  /* the most steps of a part if they must */
    SLICE = 4096,        /* the most of K in a slab */
    REGION = 1024,       /* the rows and columns of a region */
    B_BYTES = 864 << 10, /* the most bytes of B in a block */
    MANY = 1 << 20,      /* rows of a block without a limit */
    OWN_FLOATS = B_BYTES / 4 + WAITING,
    SLAB_BYTES = 8 << 20,     /* the most of each operand in a slab */
    SLAB_OF_THREAD = 1 << 20, /* for each thread, if that is more */
};

static int64_t slab_bytes(int threads) {
    const int64_t many = (int64_t)threads * SLAB_OF_THREAD;
    return many > SLAB_BYTES ? many : SLAB_BYTES;
}
int64_t K(gemm_amx_own_floats)(void) { return OWN_FLOATS; }
int64_t K(gemm_amx_shared_floats)(int64_t largest, int threads) {
    const int64_t whole = up(largest, PANEL) * smaller(up(largest, DEPTH), SLICE) * 2;
    const int64_t region = largest > SLICE ? REGION * REGION : 0;
    return 2 * smaller(slab_bytes(threads), whole) / (int64_t)sizeof(float) + region;
}

/* Rows m..m_end and columns n..n_end of C, of the products k..K. The panels of A and B begin at m and n. */
typedef struct Slab {
    Gemm g;
    int64_t m, m_end, n, n_end, k, K;
    Panels a, b; /* b.at is NULL if each block packs its own part */
    int kind;    /* Its bits say what happens to the sums (put_sums_of). */
} Slab;

static int64_t panels_in(int64_t n) { return ceil_div(n, PANEL); }
static int64_t more_steps(const Slab *s) { return ceil_div(s->g.more_K, DEPTH); }
static int64_t steps_in(const Slab *s) { return ceil_div(s->K - s->k, DEPTH) + more_steps(s); }

/* Packs a step of a panel of A, or of B; the last steps are those of more_a and more_b. */
static void place(const Slab *s, int columns, char *dst, int64_t panel, int64_t step) {
    const Gemm *g = &s->g;
    const int64_t count = columns ? g->N : g->M, more = step - (steps_in(s) - more_steps(s));
    if (more < 0) pack_step(dst, columns ? &g->b : &g->a, columns, panel, count, s->k + step * DEPTH, s->K);
    else pack_step(dst, columns ? &g->more_b : &g->more_a, columns, panel, count, more * DEPTH, g->more_K);
}

/* Whether the sums are cut, and wait. More products do not count, because they are few. */
static int sums_wait(const Slab *s) { return steps_in(s) - more_steps(s) > LONG; }

/* ---- a pass: a square over some steps ---- */

/* Adds `steps` steps to the sums of a square. The tiles still hold the square before, which is stored meanwhile. The lines
 * of new sums are asked for, because a store that misses the first cache holds up those after it. */
INLINE void pass(const char *a, const char *b, float *sums, float **before, int64_t steps, const int first) {
    float *const last = *before;
    const char *line = (const char *)sums;
#define SUM(t)                          \
    AMX_STORE(t, last + (t) * 256, 64); \
    if (first) AMX_ZERO(t);             \
    else AMX_LOAD(t, sums + (t) * 256, 64)
    AMX_LOAD(6, b, 64);
    AMX_LOAD(4, a, 64);
    SUM(0);
    AMX_DOT(0, 4, 6);
    AMX_LOAD(7, b + TILE_BYTES, 64);
    SUM(1);
    AMX_DOT(1, 4, 7);
    AMX_LOAD(5, a + TILE_BYTES, 64);
    SUM(2);
    AMX_DOT(2, 5, 6);
    SUM(3);
    AMX_DOT(3, 5, 7);
#undef SUM
    for (int64_t s = 1; s < steps; s++) {
        a += STEP_BYTES, b += STEP_BYTES;
        AMX_LOAD(6, b, 64);
        AMX_LOAD(4, a, 64);
        AMX_DOT(0, 4, 6);
        AMX_LOAD(7, b + TILE_BYTES, 64);
        AMX_DOT(1, 4, 7);
        AMX_LOAD(5, a + TILE_BYTES, 64);
        AMX_DOT(2, 5, 6);
        AMX_DOT(3, 5, 7);
        if (first)
            for (int i = 0; i < 10; i++, line += 64) __builtin_prefetch(line, 1);
    }
    *before = sums;
}

static void store_last(float *before) {
    AMX_STORE(0, before, 64);
    AMX_STORE(1, before + 256, 64);
    AMX_STORE(2, before + 512, 64);
    AMX_STORE(3, before + 768, 64);
}

/* ---- a block ---- */

/* Squares one below the other whose sums are whole; `count` of them are not yet in C. */
typedef struct Whole {
    const float *sums;
    int64_t m, n, count;
} Whole;

static inline void put_one(const Slab *s, Whole *w) {
    if (!w->count) return;
    put_sums(&s->g, w->sums, w->m, w->n, s->kind);
    w->sums += SQUARE, w->m += PANEL, w->count--;
}

/* What a block carries from pass to pass. */
typedef struct State {
    const Slab *s;
    const Block *b;
    Panels at_b;   /* B's part, from the block's first column on */
    float *sums;   /* two groups by turns, or all of the block if they wait */
    float *before; /* where the sums in the tiles belong */
    Whole whole;
    Ahead next;          /* A's next group */
    int64_t from, steps; /* the part of K */
    int turn;
} State;

/* Prepares to ask for what put_sums reads at m and n besides the sums: the inputs of GELU's slope, or earlier sums. */
static Ahead put_reads(const Slab *s, int64_t m, int64_t n, int64_t rows, int64_t passes) {
    const Gemm *g = &s->g;
    if (!g->slope && !(s->kind & ADDS)) return (Ahead){0};
    const int64_t left = smaller(rows, g->M - m), cols = smaller(PANEL, g->N - n);
    Ahead read = {.left = left};
    if (s->kind & ADDS)
        read.row = (const char *)sum_at(g, m, n), read.bytes = cols * 4,
        read.stride = (g->sums.at ? g->sums.ld : g->N) * 4;
    else read.row = (const char *)(g->slope + m * g->N + n), read.bytes = cols * 2, read.stride = g->N * 2;
    read.share = ceil_div(left * ceil_div(read.bytes, 64), passes);
    return read;
}

/* The group's squares in the panel of B at column n. */
static void group_of_panel(State *x, int64_t m, int64_t n, int waits) {
    const int64_t count = smaller(GROUP, panels_in(x->b->m_end - m)), total = steps_in(x->s);
    const int64_t rows = panels_in(x->b->m_end - x->b->m);
    float *sums =
        x->sums + (waits ? ((n - x->b->n) / PANEL * rows + (m - x->b->m) / PANEL) : (x->turn ^= 1) * GROUP) * SQUARE;
    const int last = x->from + x->steps == total;
    Ahead read = {0};
    if (last) read = put_reads(x->s, m, n, count * PANEL, count * ceil_div(x->steps, STRIP));
    for (int64_t at = 0; at < x->steps; at += STRIP) {
        const int64_t steps = smaller(STRIP, x->steps - at);
        const char *b = step_of(x->at_b, (n - x->b->n) / PANEL, at);
        for (int64_t i = 0; i < count; i++) {
            const char *a = step_of(x->s->a, (m - x->s->m) / PANEL + i, x->from + at);
            if (x->from + at == 0) pass(a, b, sums + i * SQUARE, &x->before, steps, 1);
            else pass(a, b, sums + i * SQUARE, &x->before, steps, 0);
            put_one(x->s, &x->whole);
            ask(&x->next), ask(&read);
        }
    }
    while (x->whole.count) put_one(x->s, &x->whole);
    if (last) x->whole = (Whole){sums, m, n, count};
}

/* Prepares to ask for the group of A after the one at m, while the panels of B pass. */
static Ahead next_group(const State *x, int64_t m) {
    const int64_t next = m + GROUP * PANEL, left = smaller(GROUP, panels_in(x->b->m_end - next));
    if (next >= x->b->m_end) return (Ahead){0};
    const int64_t passes = panels_in(x->b->n_end - x->b->n) * ceil_div(x->steps, STRIP) * GROUP;
    return (Ahead){.row = step_of(x->s->a, (next - x->s->m) / PANEL, x->from),
                   .bytes = x->steps * STEP_BYTES,
                   .stride = x->s->a.stride,
                   .left = left,
                   .share = ceil_div(left * x->steps * STEP_BYTES / 64, passes)};
}

/* Packs the block's own part of B, along the rows in which B lies in memory. */
static void pack_own(State *x, char *own) {
    const Slab *s = x->s;
    const int64_t panels = panels_in(x->b->n_end - x->b->n), count = panels * x->steps;
    x->at_b = (Panels){own, x->steps * STEP_BYTES};
    for (int64_t at = 0; at < count; at++) {
        const int64_t panel = s->g.b.transposed ? at / x->steps : at % panels;
        const int64_t step = s->g.b.transposed ? at % x->steps : at / panels;
        place(s, 1, step_of(x->at_b, panel, step), x->b->n / PANEL + panel, x->from + step);
    }
}

static void block(const Slab *s, const Block *b, float *scratch) {
    const int64_t total = steps_in(s), parts = sums_wait(s) ? ceil_div(total, PART) : 1;
    const int64_t part = ceil_div(total, parts);
    char *own = (char *)scratch;
    State x = {.s = s, .b = b, .sums = scratch + OWN_FLOATS - WAITING};
    x.before = x.sums; /* takes what the tiles hold now, before any square needs the place */
    for (x.from = 0; x.from < total; x.from += part) {
        x.steps = smaller(part, total - x.from);
        if (!s->b.at) pack_own(&x, own);
        else x.at_b = (Panels){step_of(s->b, (b->n - s->n) / PANEL, x.from), s->b.stride};
        for (int64_t m = b->m; m < b->m_end; m += GROUP * PANEL) {
            x.next = next_group(&x, m);
            for (int64_t n = b->n; n < b->n_end; n += PANEL) group_of_panel(&x, m, n, parts > 1);
        }
    }
    store_last(x.before);
    while (x.whole.count) put_one(s, &x.whole);
    if (s->g.stream) end_streams();
}

/* ---- a slab ---- */

typedef struct Packing {
    const Slab *s;
    int columns; /* it is B that is packed */
} Packing;

/* Packs 32 rows of the operand as they lie in memory: one panel, or one step of all panels. */
static void pack_some(const void *given, Part p) {
    const Packing a = *(const Packing *)given;
    const Slab *s = a.s;
    const Operand *x = a.columns ? &s->g.b : &s->g.a;
    const Panels to = a.columns ? s->b : s->a;
    const int64_t first = (a.columns ? s->n : s->m) / PANEL;
    const int64_t panels = panels_in((a.columns ? s->n_end : s->m_end) - first * PANEL), steps = steps_in(s);
    const int by_panel = x->transposed == a.columns;
    for (int64_t i = p.from; i < p.to; i++)
        for (int64_t j = 0; j < (by_panel ? steps : panels); j++) {
            const int64_t panel = by_panel ? i : j, step = by_panel ? j : i;
            place(s, a.columns, step_of(to, panel, step), first + panel, step);
        }
}

static void pack(const Slab *s, int columns, int threads) {
    const Operand *x = columns ? &s->g.b : &s->g.a;
    const int64_t panels = panels_in(columns ? s->n_end - s->n : s->m_end - s->m);
    parallel_static(threads, x->transposed == columns ? panels : steps_in(s), pack_some, &(Packing){s, columns});
}

typedef struct Blocks {
    const Slab *s;
    const Plan *plan;
    float *workspace;
} Blocks;

static void blocks_of(const void *given, Part p) {
    const Blocks a = *(const Blocks *)given;
    const Gemm size = {.M = a.s->m_end - a.s->m, .N = a.s->n_end - a.s->n};
    amx_begin();
    for (int64_t i = p.from; i < p.to; i++) {
        Block b = nth_block(&size, a.plan, i);
        b.m += a.s->m, b.m_end += a.s->m, b.n += a.s->n, b.n_end += a.s->n;
        block(a.s, &b, a.workspace + p.thread * own_floats());
    }
    amx_end();
}

static void multiply(const Slab *s, float *workspace, int threads) {
    const int64_t steps = steps_in(s);
    const int waits = sums_wait(s), columns = (int)(smaller(B_BYTES / (steps * STEP_BYTES), 1152 / PANEL) * PANEL);
    const Gemm size = {.M = s->m_end - s->m, .N = s->n_end - s->n};
    const Sizes t = {PANEL, PANEL, waits ? WAITING_ROWS : MANY, waits ? WAITING_COLS : columns, 64};
    const Plan p = best_plan(&size, &t, threads);
    parallel_dynamic(threads, p.count, blocks_of, &(Blocks){s, &p, workspace});
}

/* A part of C: rows m..m_end, columns n..n_end. */
typedef struct Region {
    int64_t m, m_end, n, n_end;
} Region;

/* The products k..K of a region. */
static void slice(Slab s, Region r, float *workspace, int threads) {
    float *const shared = workspace + threads * own_floats() + (s.g.sums.at ? REGION * REGION : 0);
    const int64_t stride = steps_in(&s) * STEP_BYTES, most = slab_bytes(threads) / stride * PANEL;
    const int own_b = r.m_end - r.m <= smaller(most, 512);
    s.a = (Panels){(char *)shared, stride};
    s.b = (Panels){own_b ? NULL : (char *)shared + panels_in(smaller(r.m_end - r.m, most)) * stride, stride};
    for (s.m = r.m; s.m < r.m_end; s.m = s.m_end) {
        s.m_end = smaller(s.m + most, r.m_end);
        pack(&s, 0, threads);
        const int64_t most_n = own_b ? r.n_end - r.n : most;
        for (s.n = r.n; s.n < r.n_end; s.n = s.n_end) {
            s.n_end = smaller(s.n + most_n, r.n_end);
            if (!own_b && (s.m == r.m || r.n_end - r.n > most_n)) pack(&s, 1, threads);
            multiply(&s, workspace, threads);
        }
    }
}

/* The slices of a region, one after the other. */
static void slices(const Gemm *g, Region r, float *workspace, int threads) {
    const int64_t count = ceil_div(g->K, SLICE), each = up(ceil_div(g->K, count), DEPTH);
    for (int64_t k = 0; k < g->K; k += each) {
        const int last = k + each >= g->K;
        Slab s = {.g = *g, .k = k, .K = smaller(g->K, k + each)};
        if (!last) s.g.bias = NULL, s.g.gelu = NULL, s.g.slope = NULL, s.g.more_K = 0;
        s.g.stream = count == 1 && !g->accumulate && can_stream(g);
        s.kind = kind_of(&s.g, g->accumulate || k > 0, !last || g->is_float);
        slice(s, r, workspace, threads);
    }
}

void K(gemm_amx)(const Gemm *given, float *workspace, int threads) {
    const int64_t M = given->M, N = given->N;
    Gemm g = *given;
    if (g.K <= SLICE || g.is_float) {
        slices(&g, (Region){0, M, 0, N}, workspace, threads);
        return;
    }
    g.sums = (Sums){.at = workspace + threads * own_floats(), .ld = REGION};
    for (int64_t m = 0; m < M; m += REGION)
        for (int64_t n = 0; n < N; n += REGION) {
            g.sums.m = m, g.sums.n = n;
            slices(&g, (Region){m, smaller(M, m + REGION), n, smaller(N, n + REGION)}, workspace, threads);
        }
}
#else
int64_t K(gemm_amx_shared_floats)(int64_t largest, int threads) { return (void)largest, (void)threads, 0; }
#endif
