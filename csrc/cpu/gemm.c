/* Matrix product, blocked as in BLIS (Van Zee & van de Geijn 2015), over the vectors of simd.h.
 *
 *   tile    MR rows x up to NV vectors of C: its sums stay in registers over a block of K
 *   block   a piece of C that one thread computes, tile by tile. For each block of K in turn it copies its
 *           columns of B so that a tile reads them in a straight line from the second cache. A is read in
 *           place, as a rule: a tile takes single numbers from it, out of the first cache.
 *   dots    few rows: every row of B^T is read once, where it lies
 *
 * The shape alone decides in which order an element is summed over K, so threads may share out C freely. */
#include "gemm.h"
#include "gelu.h"
#include "threads.h"

#if VREGS == 32
#define MR 8
#define NV 3
enum { DOT_ROWS = 4, FEW = 64 };
#else
#define MR 6
#define NV 2
enum { DOT_ROWS = 2, FEW = 16 };
#endif
enum {
    NR = NV * VL,
    KC = 192, /* products in a row, at most, before their sum joins the others: the fewer, the more exact */
    NC = (VL == 16 ? 768 : 384) / NR * NR, /* KC x NC floats of B: within the second cache */
    LOW = 16,
    WIDE = 16,            /* tiles: B pays its copy in higher blocks, a column of A in wider ones */
    OPS_PER_ELEMENT = 64, /* multiply-adds that take as long as one element of threads.h */
    A_FLOATS = (MR * KC + 15) / 16 * 16,
    B_FLOATS = NC * KC,
};
/* DOT_ROWS x 4 sums of a vector each fill the registers in dots, which is faster than to copy B up to FEW rows;
 * but in the end the lanes of each sum must be added, so K has to be FEW_K times as large */
enum { FEW_K = 8 };

#define APART static __attribute__((noinline)) /* keeps its registers to itself */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#define UNROLL_2 _Pragma("clang loop unroll_count(2)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#define UNROLL_2 _Pragma("GCC unroll 2")
#endif

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

int64_t K(matmul_workspace)(int threads) { return (int64_t)threads * (A_FLOATS + B_FLOATS) * (int64_t)sizeof(float); }

/* ---- what happens to C ---- */

/* a tile, or less at the edges */
typedef struct Piece {
    const Gemm *g;
    int64_t m, n;
    int rows, cols;
    int add, last; /* C already holds a part of the sum; the sum is whole now */
} Piece;

/* sum holds elements (m, n..n+lanes) */
INLINE void put(const Gemm *g, int64_t m, int64_t n, int lanes, vf sum, int add, int last) {
    float *c = g->c + m * g->N + n;
    if (add) sum += vf_load_n(c, lanes);
    if (last && g->bias) sum += vf_load_n(g->bias + n, lanes);
    vf_store_n(c, sum, lanes);
}

APART void finish(const Gemm *g, int64_t m, int64_t n, int rows, int cols) {
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j += VL) {
            const int64_t at = (m + i) * g->N + n + j;
            const int lanes = LANES(j, cols);
            const vf c = vf_load_n(g->c + at, lanes);
            if (g->gelu) vf_store_n(g->gelu + at, gelu(c), lanes);
            if (g->slope) vf_store_n(g->c + at, c * gelu_slope(vf_load_n(g->slope + at, lanes)), lanes);
        }
}

/* ---- the tile ---- */

APART void store_edge(const Piece *p, const float *sums) {
    for (int i = 0; i < p->rows; i++)
        for (int j = 0; j < p->cols; j += VL)
            put(p->g, p->m + i, p->n + j, LANES(j, p->cols), vf_load(sums + i * NR + j), p->add, p->last);
}

INLINE void store_tile(const Piece *p, vf acc[MR][NV], const int nv) {
    const int64_t ld = p->g->N;
    float *c = p->g->c + p->m * ld + p->n;
    if (p->rows < MR || p->cols < nv * VL) {
        float sums[MR * NR];
        UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < nv; j++)
            vf_store(sums + i * NR + j * VL, acc[i][j]);
        store_edge(p, sums);
        return;
    }
    if (p->add)
        UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < nv; j++) acc[i][j] +=
            vf_load(c + i * ld + j * VL);
    if (p->last && p->g->bias) {
        vf bias[NV];
        UNROLL for (int j = 0; j < nv; j++) bias[j] = vf_load(p->g->bias + p->n + j * VL);
        UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < nv; j++) acc[i][j] += bias[j];
    }
    UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < nv; j++) vf_store(c + i * ld + j * VL, acc[i][j]);
}

/* nv and columns are constants where this is inlined. A's piece lies in `columns`, of which MR elements may be
 * read, or in rows, lda apart; b: (kc, nv*VL), rows ldb apart */
INLINE void tile(const Piece *p, int64_t kc, const float *a, int64_t lda, const int columns, const float *b,
                 int64_t ldb, const int nv) {
    vf acc[MR][NV];
    const float *row[MR];
    const float *c = p->g->c + p->m * p->g->N + p->n;
    if (p->add)
        for (int i = 0; i < p->rows; i++, c += p->g->N)
            for (int j = 0; j < p->cols; j += 16) __builtin_prefetch(c + j, 1);
    UNROLL for (int i = 0; i < MR; i++) {
        row[i] = a + (i < p->rows ? i : p->rows - 1) * lda; /* the last again rather than past the end */
        UNROLL for (int j = 0; j < nv; j++) acc[i][j] = (vf){0};
    }
    UNROLL_2 for (int64_t k = 0; k < kc; k++) {
        vf v[NV];
        UNROLL for (int j = 0; j < nv; j++) v[j] = vf_load(b + j * VL);
        UNROLL for (int i = 0; i < MR; i++) {
            const vf x = vf_set(columns ? a[i] : row[i][k]);
            UNROLL for (int j = 0; j < nv; j++) acc[i][j] += x * v[j];
        }
        a += lda;
        b += ldb;
    }
    store_tile(p, acc, nv);
    if (p->last && (p->g->gelu || p->g->slope)) finish(p->g, p->m, p->n, p->rows, p->cols);
}

#define TILE(name, columns, nv)                                                                             \
    APART void name(const Piece *p, int64_t kc, const float *a, int64_t lda, const float *b, int64_t ldb) { \
        tile(p, kc, a, lda, columns, b, ldb, nv);                                                           \
    }
typedef void (*Tile)(const Piece *, int64_t, const float *, int64_t, const float *, int64_t);
/* clang-format off */
TILE(rows_1, 0, 1)
TILE(rows_2, 0, 2)
TILE(columns_1, 1, 1)
TILE(columns_2, 1, 2)
#if NV == 3
TILE(rows_3, 0, 3)
TILE(columns_3, 1, 3)
static const Tile tiles[2][NV] = {{rows_1, rows_2, rows_3}, {columns_1, columns_2, columns_3}};
#else
static const Tile tiles[2][NV] = {{rows_1, rows_2}, {columns_1, columns_2}};
#endif
/* clang-format on */

/* ---- copies of B: panels of NR columns one after another, each (kc, NR); the last may be narrower ---- */

static void pack_a_columns(float *dst, const float *src, int64_t ld, int mc, int64_t kc) {
    for (int64_t k = 0; k < kc; k++, src += ld, dst += MR)
        if (mc == MR) memcpy(dst, src, MR * sizeof *dst);
        else
            for (int i = 0; i < MR; i++) dst[i] = i < mc ? src[i] : 0;
}

static void pack_b_rows(float *dst, const float *src, int64_t ld, int64_t nc, int64_t kc) {
    for (int64_t k = 0; k < kc; k++, src += ld)
        for (int64_t n = 0; n < nc; n += NR) {
            const int64_t cols = smaller(NR, nc - n);
            float *to = dst + n * kc + k * up(cols, VL);
            for (int64_t j = 0; j < cols; j += VL) vf_store(to + j, vf_load_n(src + n + j, LANES(j, cols)));
        }
}

#if VL == 16
#define LOWS 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGHS 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif VL == 8
#define LOWS 0, 8, 1, 9, 2, 10, 3, 11
#define HIGHS 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LOWS 0, 4, 1, 5
#define HIGHS 2, 6, 3, 7
#endif
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

/* VL vectors as a matrix, transposed: log2(VL) times, riffle the upper half of the rows into the lower */
INLINE void transpose(vf r[VL]) {
    UNROLL for (int round = 1; round < VL; round *= 2) {
        vf t[VL];
        UNROLL for (int i = 0; i < VL; i++) t[i] = r[i];
        UNROLL for (int i = 0; i < VL / 2; i++) {
            r[2 * i] = SHUFFLE(t[i], t[i + VL / 2], LOWS);
            r[2 * i + 1] = SHUFFLE(t[i], t[i + VL / 2], HIGHS);
        }
    }
}

/* VL rows of src become VL columns of dst, whose rows are `width` apart */
static void pack_vector(float *dst, int64_t width, const float *src, int64_t ld, int rows, int64_t kc) {
    vf r[VL];
    int64_t k = 0;
    for (; k + VL <= kc && rows == VL; k += VL) {
        UNROLL for (int i = 0; i < VL; i++) r[i] = vf_load(src + i * ld + k);
        transpose(r);
        UNROLL for (int i = 0; i < VL; i++) vf_store(dst + (k + i) * width, r[i]);
    }
    for (; k < kc; k += VL) {
        const int lanes = LANES(k, kc);
        UNROLL for (int i = 0; i < VL; i++) r[i] = i < rows ? vf_load_n(src + i * ld + k, lanes) : (vf){0};
        transpose(r);
        UNROLL for (int i = 0; i < VL; i++) if (k + i < kc) vf_store(dst + (k + i) * width, r[i]);
    }
}

static void pack_b_columns(float *dst, const float *src, int64_t ld, int64_t nc, int64_t kc) {
    for (int64_t n = 0; n < nc; n += VL) {
        const int64_t panel = n / NR * NR, width = up(smaller(NR, nc - panel), VL);
        pack_vector(dst + panel * kc + (n - panel), width, src + n * ld, ld, LANES(n, nc), kc);
    }
}

static const float *element(const Operand *x, int64_t i, int64_t j) {
    return x->transposed ? x->at + j * x->ld + i : x->at + i * x->ld + j;
}

/* ---- the block ---- */

typedef struct Block {
    int64_t m, m_end, n, n_end, k, kc;
    float *a, *b; /* this thread's copies */
    int in_place; /* B is read where it lies, but for a last vector that is not whole */
} Block;

static void pack_b(const Gemm *g, const Block *s) {
    const float *src = element(&g->b, s->k, s->n);
    const int64_t nc = s->n_end - s->n, whole = s->in_place ? nc / NR * NR : 0;
    if (s->in_place && (nc - whole) % VL == 0) return;
    if (g->b.transposed) pack_b_columns(s->b, src, g->b.ld, nc, s->kc);
    else pack_b_rows(s->b + whole * s->kc, src + whole, g->b.ld, nc - whole, s->kc);
}

static void row_of_tiles(const Gemm *g, const Block *s, int64_t m) {
    const int rows = (int)smaller(MR, s->m_end - m);
    const int copied = g->a.transposed && (rows < MR || s->n_end - s->n > WIDE * NR);
    const float *a = element(&g->a, m, s->k);
    if (copied) pack_a_columns(s->a, a, g->a.ld, rows, s->kc);
    for (int64_t n = s->n; n < s->n_end; n += NR) {
        const int cols = (int)smaller(NR, s->n_end - n), nv = (cols + VL - 1) / VL;
        const int in_place = s->in_place && cols % VL == 0;
        const Piece p = {g, m, n, rows, cols, g->accumulate || s->k > 0, s->k + s->kc == g->K};
        tiles[g->a.transposed][nv - 1](&p, s->kc, copied ? s->a : a, copied ? MR : g->a.ld,
                                       in_place ? element(&g->b, s->k, n) : s->b + (n - s->n) * s->kc,
                                       in_place ? g->b.ld : nv * VL);
    }
}

static void block(const Gemm *g, Block *s) {
    const int64_t parts = (g->K + KC - 1) / KC, kc = (g->K + parts - 1) / parts; /* equal parts */
    for (s->k = 0; s->k < g->K; s->k += kc) {
        s->kc = smaller(kc, g->K - s->k);
        pack_b(g, s);
        for (int64_t m = s->m; m < s->m_end; m += MR) row_of_tiles(g, s, m);
    }
}

/* ---- sharing C out ---- */

typedef struct Plan {
    int64_t mt, nt, across, count; /* blocks of mt x nt, `across` of them side by side */
} Plan;

/* time of the busiest thread, in multiply-adds: a row costs as much as 8 more columns, a column as 24 more
 * rows. The last of several threads is a quarter of a block late: no two cores are equally fast, or free. */
static double plan_time(const Gemm *g, Plan *p, int64_t down, int64_t across, int threads) {
    p->mt = up((g->M + down - 1) / down, MR);
    p->nt = up((g->N + across - 1) / across, NR);
    p->across = (g->N + p->nt - 1) / p->nt;
    p->count = p->across * ((g->M + p->mt - 1) / p->mt);
    const int64_t rounds = (p->count + threads - 1) / threads;
    const int64_t one = p->mt * p->nt + 8 * p->mt + 24 * p->nt;
    return ((double)rounds + (threads > 1 ? 0.25 : 0)) * (double)one;
}

static Plan best_plan(const Gemm *g, int threads) {
    const int64_t least_down = (g->M + 2047) / 2048, least_across = (g->N + NC - 1) / NC;
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
                   .in_place = !g->b.transposed && m_end - m <= LOW * MR};
}

#if defined(_OPENMP)
#include <omp.h>
#define THREAD omp_get_thread_num()
#else
#define THREAD 0
#endif

static void blocks(Context *ctx, const Gemm *g, int threads) {
    const Plan p = best_plan(g, threads);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < p.count; i++) {
        Block s = nth_block(g, &p, i, (float *)ctx->workspace + (int64_t)THREAD * (A_FLOATS + B_FLOATS));
        block(g, &s);
    }
}

/* ---- few rows ---- */

INLINE void dot_step(vf acc[][8], const float *const a[], const float *const b[], const int rows, const int cols,
                     int64_t k, int lanes) {
    vf x[DOT_ROWS];
    UNROLL for (int i = 0; i < rows; i++) x[i] = vf_load_n(a[i] + k, lanes);
    UNROLL for (int j = 0; j < cols; j++) {
        const vf y = vf_load_n(b[j] + k, lanes);
        UNROLL for (int i = 0; i < rows; i++) acc[i][j] += x[i] * y;
    }
}

/* sums[i][at + j] = the products of a[i] and b[j], rows of A and of B^T, lane by lane */
INLINE void dot(int64_t K, const float *const a[], const float *const b[], const int rows, const int cols,
                vf sums[][VL], int at) {
    vf acc[DOT_ROWS][8];
    int64_t k = 0;
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < cols; j++) acc[i][j] = (vf){0};
    for (; k + VL <= K; k += VL) dot_step(acc, a, b, rows, cols, k, VL);
    if (k < K) dot_step(acc, a, b, rows, cols, k, (int)(K - k));
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < cols; j++) sums[i][at + j] = acc[i][j];
}

/* lane j = the sum of r[j]: a transposition in which what meets is added at once */
INLINE vf sums_of(vf r[VL]) {
    UNROLL for (int half = VL / 2; half; half /= 2) UNROLL for (int i = 0; i < half; i++) r[i] =
        SHUFFLE(r[i], r[i + half], LOWS) + SHUFFLE(r[i], r[i + half], HIGHS);
    return r[0];
}

/* C's columns n..n+VL */
INLINE void dots_strip(const Gemm *g, int64_t n, const int rows, const int cols) {
    const int lanes = LANES(n, g->N);
    const float *b[VL], *a[DOT_ROWS];
    for (int j = 0; j < VL; j++) b[j] = g->b.at + (n + (j < lanes ? j : lanes - 1)) * g->b.ld;
    for (int64_t m = 0; m < g->M; m += rows) {
        vf sums[DOT_ROWS][VL];
        for (int i = 0; i < rows; i++) a[i] = g->a.at + smaller(m + i, g->M - 1) * g->a.ld;
        for (int j = 0; j < VL; j += cols) dot(g->K, a, b + j, rows, cols, sums, j);
        for (int i = 0; i < rows && m + i < g->M; i++) {
            put(g, m + i, n, lanes, sums_of(sums[i]), g->accumulate, 1);
            if (g->gelu || g->slope) finish(g, m + i, n, 1, lanes);
        }
    }
}
APART void strip_of_one(const Gemm *g, int64_t n) { dots_strip(g, n, 1, VL < 8 ? VL : 8); }
APART void strip_of_more(const Gemm *g, int64_t n) { dots_strip(g, n, DOT_ROWS, 4); }

static void dots(const Gemm *g, int threads) {
    (void)threads; /* unused without OpenMP */
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t n = 0; n < g->N; n += VL) (g->M == 1 ? strip_of_one : strip_of_more)(g, n);
}

void K(gemm)(Context *ctx, const Gemm *g) {
    const int few = g->M <= smaller(FEW, g->K / FEW_K) && g->b.transposed && !g->a.transposed;
    const int64_t reads = g->N * g->K, ops = g->M * reads / OPS_PER_ELEMENT;
    if (few) dots(g, threads_for(ctx, reads > ops ? reads : ops));
    else blocks(ctx, g, threads_for(ctx, ops));
}
