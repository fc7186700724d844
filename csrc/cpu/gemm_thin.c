/* Products on Intel's tiles (amx.h) of which one size is as small as the rank of LoRA's adapters. Memory bounds them, so the large
 * operand is read once, where it lies, and not packed before.
 *
 *   narrow    C(M,N) = scale (A(M,K) factor) B(K,N) with few columns. All of B is packed once; then rows of A meet all of it.
 *   thin      C(M,N) = A(M,K) B(K,N), or +=, in floats, with M or N <= 16: gradients of weights. The operand with few rows or
 *             columns is packed, and the other passes by, some of its columns at a time. If N is the small one, C is computed
 *             transposed.
 *
 * The order of an element's sum is that of gemm_amx.c. */
#include "gemm_thin.h"
#include "dropout.h"
#include "threads.h"
#if HAS_AMX
#include "gemm_amx_pack.h"

enum {
    SLICE = 4096, /* the most of K in a sum that floats do not cut, as in gemm_amx.c */
    PANELS = 3,   /* panels of columns side by side, whose sums are six tiles */
    GROUP = PANELS * PANEL,
    DROPPED = 256,         /* numbers of a row that are dropped at a time */
    MOST_PACKED = 8 << 20, /* the most bytes of a narrow B, which the workspace always has */
};

/* ---- narrow ---- */

static int64_t panels_in(int64_t n) { return ceil_div(n, PANEL); }

int K(gemm_is_narrow)(const Narrow *p) { return up(p->N, PANEL) * up(p->K, DEPTH) * 2 <= MOST_PACKED; }

typedef struct Packed {
    const Narrow *p;
    Panels b;
} Packed;

static void pack_b(const void *given, Part some) {
    const Packed x = *(const Packed *)given;
    const int64_t steps = ceil_div(x.p->K, DEPTH);
    for (int64_t i = some.from; i < some.to; i++)
        pack_step(step_of(x.b, i / steps, i % steps), &x.p->b, 1, i / steps, x.p->N, i % steps * DEPTH, x.p->K);
}

/* Two tiles of A, of rows m.. and the numbers k..: where they lie, or in `packed` if they lie at an edge. The second begins 16
 * strides behind the first. */
INLINE const char *tiles_of_a(const Narrow *p, int64_t m, int64_t k, char *packed, int64_t *stride) {
    if (m + PANEL <= p->M && k + DEPTH <= p->K) {
        *stride = p->K * (int64_t)sizeof(floatX);
        return (const char *)(p->a + m * p->K + k);
    }
    const Operand a = {.at = p->a, .ld = p->K, .format = ELEMENT_FORMAT};
    pack_step(packed, &a, 0, m / PANEL, p->M, k, p->K);
    *stride = 64;
    return packed;
}

/* The same with the numbers dropped: DROPPED of each row at a time, in `dropped`. */
static const char *dropped_tiles(const Narrow *p, int64_t m, int64_t k, floatX dropped[PANEL * DROPPED]) {
    const int rows = (int)smaller(PANEL, p->M - m), n = (int)smaller(DROPPED, p->K - k);
    if (k % DROPPED) return (const char *)(dropped + k % DROPPED);
    if (rows < PANEL || n < DROPPED) memset(dropped, 0, PANEL * DROPPED * sizeof *dropped);
    for (int i = 0; i < rows; i++)
        drop_columns(dropped + i * DROPPED, p->a + (m + i) * p->K + k, p->dropout, (uint32_t)(m + i), (int)k, n);
    return (const char *)dropped;
}

/* The sums of 32 rows and of a panel of B, or of its left 16 columns unless both. */
INLINE void square_of(const Narrow *p, const char *b, int64_t m, float *sums, const int both) {
    floatX packed[PANEL * DROPPED] __attribute__((aligned(64)));
    int64_t stride = DROPPED * (int64_t)sizeof(floatX);
    AMX_ZERO(0);
    AMX_ZERO(1);
    AMX_ZERO(2);
    AMX_ZERO(3);
    for (int64_t k = 0; k < p->K; k += DEPTH, b += STEP_BYTES) {
        const char *a = p->dropout ? dropped_tiles(p, m, k, packed) : tiles_of_a(p, m, k, (char *)packed, &stride);
        AMX_LOAD(4, a, stride);
        AMX_LOAD(5, a + TILE * stride, stride);
        AMX_LOAD(6, b, 64);
        AMX_DOT(0, 4, 6);
        AMX_DOT(2, 5, 6);
        if (both) AMX_LOAD(7, b + TILE_BYTES, 64);
        if (both) AMX_DOT(1, 4, 7);
        if (both) AMX_DOT(3, 5, 7);
    }
    AMX_STORE(0, sums, 64);
    AMX_STORE(1, sums + 256, 64);
    AMX_STORE(2, sums + 512, 64);
    AMX_STORE(3, sums + 768, 64);
}

static void put_narrow(const Narrow *p, const float *sums, int64_t m, int64_t n) {
    const int rows = (int)smaller(PANEL, p->M - m), cols = (int)smaller(PANEL, p->N - n);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j += VL) {
            const vf x = vf_load(sums + (i / TILE * 2 + j / TILE) * 256 + i % TILE * TILE + j % TILE);
            fx_store_n(p->c + (m + i) * p->N + n + j, x * p->scale, LANES(j, cols));
        }
}

static void rows_of_narrow(const void *given, Part panels) {
    const Packed x = *(const Packed *)given;
    float sums[PANEL * PANEL] __attribute__((aligned(64)));
    amx_begin();
    for (int64_t m = panels.from * PANEL; m < panels.to * PANEL; m += PANEL)
        for (int64_t n = 0; n < x.p->N; n += PANEL) {
            if (x.p->N - n > TILE) square_of(x.p, step_of(x.b, n / PANEL, 0), m, sums, 1);
            else square_of(x.p, step_of(x.b, n / PANEL, 0), m, sums, 0);
            put_narrow(x.p, sums, m, n);
        }
    amx_end();
}

void K(gemm_narrow)(Context *ctx, const Narrow *p) {
    const int64_t steps = ceil_div(p->K, DEPTH), panels = panels_in(p->M), packed = panels_in(p->N) * steps;
    const Packed x = {
        p, {(char *)ctx->workspace + ctx->threads * own_floats() * (int64_t)sizeof(float), steps * STEP_BYTES}};
    parallel_static(threads_among(ctx, packed, packed * PANEL * DEPTH), packed, pack_b, &x);
    parallel_static(threads_among(ctx, panels, p->M * p->K), panels, rows_of_narrow, &x);
}

/* ---- thin ---- */

int K(gemm_is_thin)(const Gemm *g) {
    return g->is_float && g->a.transposed && !g->b.transposed && (g->M <= TILE || g->N <= TILE);
}

/* The products k..K of C, or of its transpose, which has few rows. */
typedef struct Thin {
    const Gemm *g;
    Operand few, many;
    int64_t rows, N, k, K;
    int turned, adds;
    float *workspace;
} Thin;

static inline Operand turned(Operand x) { return x.transposed = !x.transposed, x; }

/* Asks for the rows of `many` that the next step of a group reads. */
static inline void ask_for(const Thin *t, int64_t k, int64_t n) {
    for (int64_t row = k; row < smaller(k + DEPTH, t->K); row++)
        for (int64_t col = n; col < smaller(n + GROUP, t->N); col += 32)
            __builtin_prefetch(t->many.at + row * t->many.ld + col, 0, 3);
}

/* The sums of the columns from n on: six tiles, of which those past the last column are zeros. */
static void group_of_thin(const Thin *t, const char *few, int64_t n, float sums[2 * PANELS][TILE * TILE]) {
    char many[PANELS][STEP_BYTES] __attribute__((aligned(64)));
    const int64_t panels = smaller(PANELS, panels_in(t->N - n));
    memset(many, 0, sizeof many);
    AMX_ZERO(0);
    AMX_ZERO(1);
    AMX_ZERO(2);
    AMX_ZERO(3);
    AMX_ZERO(4);
    AMX_ZERO(5);
    for (int64_t k = t->k; k < t->K; k += DEPTH, few += STEP_BYTES) {
        ask_for(t, k + DEPTH, n);
        for (int64_t i = 0; i < panels; i++) pack_step(many[i], &t->many, 1, n / PANEL + i, t->N, k, t->K);
        AMX_LOAD(6, few, 64);
#define COLUMNS(tile)                                            \
    AMX_LOAD(7, many[(tile) / 2] + (tile) % 2 * TILE_BYTES, 64); \
    AMX_DOT(tile, 6, 7)
        COLUMNS(0);
        COLUMNS(1);
        COLUMNS(2);
        COLUMNS(3);
        COLUMNS(4);
        COLUMNS(5);
#undef COLUMNS
    }
    AMX_STORE(0, sums[0], 64);
    AMX_STORE(1, sums[1], 64);
    AMX_STORE(2, sums[2], 64);
    AMX_STORE(3, sums[3], 64);
    AMX_STORE(4, sums[4], 64);
    AMX_STORE(5, sums[5], 64);
}

static void put_thin(const Thin *t, float sums[2 * PANELS][TILE * TILE], int64_t n) {
    float *c = t->g->c;
    const int64_t cols = smaller(GROUP, t->N - n);
    for (int64_t i = 0; i < t->rows; i++)
        for (int64_t j = 0; j < cols; j++) {
            float *to = t->turned ? c + (n + j) * t->rows + i : c + i * t->N + n + j;
            *to = sums[j / TILE][i * TILE + j % TILE] + (t->adds ? *to : 0);
        }
}

static void columns_of_thin(const void *given, Part groups) {
    const Thin t = *(const Thin *)given;
    char *few = (char *)(t.workspace + groups.thread * own_floats());
    float sums[2 * PANELS][TILE * TILE] __attribute__((aligned(64)));
    for (int64_t k = t.k; k < t.K; k += DEPTH)
        pack_step(few + (k - t.k) / DEPTH * STEP_BYTES, &t.few, 0, 0, t.rows, k, t.K);
    amx_begin();
    for (int64_t n = groups.from * GROUP; n < groups.to * GROUP && n < t.N; n += GROUP) {
        group_of_thin(&t, few, n, sums);
        put_thin(&t, sums, n);
    }
    amx_end();
}

void K(gemm_thin)(Context *ctx, const Gemm *g) {
    const int64_t count = ceil_div(g->K, SLICE), each = up(ceil_div(g->K, count), DEPTH);
    const int turns = g->M > TILE;
    Thin t = {.g = g, .few = g->a, .many = g->b, .rows = g->M, .N = g->N, .turned = turns, .workspace = ctx->workspace};
    if (turns) t.few = turned(g->b), t.many = turned(g->a), t.rows = g->N, t.N = g->M;
    const int64_t groups = ceil_div(t.N, GROUP);
    for (t.k = 0; t.k < g->K; t.k = t.K) {
        t.K = smaller(g->K, t.k + each), t.adds = g->accumulate || t.k;
        parallel_static(threads_among(ctx, groups, (t.K - t.k) * t.N), groups, columns_of_thin, &t);
    }
}
#endif
