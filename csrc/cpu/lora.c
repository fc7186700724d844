/* LoRA's products, of which one size is the rank. That is small, so memory bounds them: each makes one pass over the rows.
 *
 *   down   hidden(rows,r) = rows of numbers @ a matrix with r rows, or r columns
 *   up     out(rows,N) += hidden @ a matrix (r,N), or the transpose of one (N,r)
 *
 * Where the CPU multiplies tiles, gemm_thin.c computes `down`, and `up` is a part of the matrix' own product (Gemm.more_K).
 *
 * A thread takes some rows at a time, and works in tiles, whose sums stay in registers. Each row is computed by itself, so no
 * result depends on how rows are shared out. */
#include "dropout.h"
#include "gelu.h"
#include "gemm_thin.h"
#include "threads.h"

enum {
    MOST_RANK = 256,
    ROWS = 256,            /* the most rows that a strip of a transposed matrix serves */
    TILE = 4,              /* rows of a tile */
    NV = VL == 16 ? 4 : 2, /* vectors in a row of it: all registers are in use */
    PART = 256,            /* numbers of one sum: sums of sums lose less than one long sum */
};

static inline int smaller(int a, int b) { return a < b ? a : b; }

typedef struct Product {
    floatX *out, *gelu, *hidden;
    const floatX *inp, *down, *up, *slope;
    const Dropout *dropout; /* drops inp on its way down, or what comes up */
    float scale;
    int64_t rows;
    int C, N, r;      /* columns of inp and of out */
    int each;         /* the rows of a block */
    int down_columns; /* down is (C,r), else (r,C) */
    int up_columns;   /* up is (N,r), else (r,N) */
} Product;

/* ---- down ---- */

/* Row i of a tile that has `rows` of them. Rows that are missing repeat the last, and nobody stores their sums. */
static inline int64_t tile_row(int i, int rows) { return i < rows ? i : rows - 1; }

/* sums[i][k] += inp[i][c] . down[k][c] over n numbers, for TILE rows of both; those of inp lie ld apart, those of down C. */
INLINE void add_dots(float sums[TILE][TILE], const floatX *inp, int rows, int64_t ld, const floatX *down, int ranks,
                     int C, int n) {
    vf acc[TILE][TILE] = {{{0}}};
    for (int c = 0; c < n; c += VL) {
        const int lanes = LANES(c, n);
        vf x[TILE];
        for (int i = 0; i < TILE; i++) x[i] = fx_load_n(inp + tile_row(i, rows) * ld + c, lanes);
        for (int k = 0; k < TILE; k++) {
            const vf w = fx_load_n(down + tile_row(k, ranks) * C + c, lanes);
            for (int i = 0; i < TILE; i++) acc[i][k] += x[i] * w;
        }
    }
    for (int i = 0; i < TILE; i++)
        for (int k = 0; k < TILE; k++) sums[i][k] += vf_sum(acc[i][k]);
}

/* hidden[i][k] of a tile, for down (r,C). */
static void dots(const Product *p, float *hidden, const floatX *inp, int rows, int k) {
    const int ranks = smaller(TILE, p->r - k);
    float sums[TILE][TILE] = {{0}};
    for (int c = 0; c < p->C; c += PART)
        add_dots(sums, inp + c, rows, p->C, p->down + (int64_t)k * p->C + c, ranks, p->C, smaller(PART, p->C - c));
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < ranks; j++) hidden[i * p->r + k + j] = sums[i][j];
}

/* All of hidden of a tile, for down (r,C) and rows of inp that are dropped, which is done once for all ranks. */
APART void dropped_dots(const Product *p, float *hidden, int64_t row, int rows) {
    const Dropout d = *p->dropout;
    floatX x[TILE * PART];
    float sums[MOST_RANK / TILE][TILE][TILE] = {{{0}}};
    for (int c = 0; c < p->C; c += PART) {
        const int n = smaller(PART, p->C - c);
        for (int i = 0; i < rows; i++)
            drop_columns(x + i * PART, p->inp + (row + i) * p->C + c, &d, (uint32_t)(row + i), c, n);
        for (int k = 0; k < p->r; k += TILE)
            add_dots(sums[k / TILE], x, rows, PART, p->down + (int64_t)k * p->C + c, smaller(TILE, p->r - k), p->C, n);
    }
    for (int i = 0; i < rows; i++)
        for (int k = 0; k < p->r; k++) hidden[i * p->r + k] = sums[k / TILE][i][k % TILE];
}

/* The same for down (C,r): VL ranks at a time. */
static void columns(const Product *p, float *hidden, const floatX *inp, int rows, int k) {
    const int lanes = LANES(k, p->r);
    vf total[TILE] = {{0}};
    for (int first = 0; first < p->C; first += PART) {
        const int n = smaller(PART, p->C - first);
        float x[TILE][PART];
        vf acc[TILE] = {{0}};
        for (int i = 0; i < TILE; i++) fx_widen(x[i], inp + tile_row(i, rows) * p->C + first, n);
        for (int c = 0; c < n; c++) {
            const vf w = fx_load_n(p->down + (int64_t)(first + c) * p->r + k, lanes);
            for (int i = 0; i < TILE; i++) acc[i] += x[i][c] * w;
        }
        for (int i = 0; i < TILE; i++) total[i] += acc[i];
    }
    for (int i = 0; i < rows; i++) vf_store_n(hidden + i * p->r + k, total[i], lanes);
}

/* Stores what a block of rows has hidden, and leaves it in `hidden` as it will be read back. */
static void store_hidden(const Product *p, float *hidden, int64_t row, int rows) {
    const int n = rows * p->r;
    for (int i = 0; i < n; i += VL) {
        const int lanes = LANES(i, n);
        const vf x = vf_load_n(hidden + i, lanes) * p->scale;
        fx_store_n(p->hidden + row * p->r + i, x, lanes);
        vf_store_n(hidden + i, fx_rounded(x), lanes);
    }
}

static void go_down(const Product *p, float *hidden, int64_t row, int rows) {
    for (int i = 0; i < rows && p->dropout; i += TILE)
        dropped_dots(p, hidden + i * p->r, row + i, smaller(TILE, rows - i));
    for (int i = 0; i < rows && !p->dropout; i += TILE)
        for (int k = 0; k < p->r; k += p->down_columns ? VL : TILE)
            (p->down_columns ? columns : dots)(p, hidden + i * p->r, p->inp + (row + i) * p->C, smaller(TILE, rows - i),
                                               k);
    store_hidden(p, hidden, row, rows);
}

/* ---- up ---- */

typedef vf Strip[MOST_RANK][NV];

/* Columns j .. j + NV VL of `up` (r,N), as floats. Lanes beyond N are 0. */
static void load_strip(const Product *p, Strip strip, int j) {
    for (int k = 0; k < p->r; k++)
        for (int v = 0; v < NV; v++) {
            const int from = j + v * VL;
            strip[k][v] = from < p->N ? fx_load_n(p->up + (int64_t)k * p->N + from, LANES(from, p->N)) : vf_set(0);
        }
}

/* The same where `up` is (N,r). */
static void load_transposed(const Product *p, Strip strip, int j) {
    for (int k = 0; k < p->r; k++)
        for (int v = 0; v < NV; v++)
            for (int i = 0; i < VL; i++) {
                const int n = j + v * VL + i;
                strip[k][v][i] = n < p->N ? fx_load_one(p->up + (int64_t)n * p->r + k) : 0;
            }
}

/* Adds a vector of sums to out, and makes of it what comes next. */
INLINE void finish(const Product *p, int64_t at, vf sum, int lanes) {
    if (p->slope) sum *= gelu_slope(fx_load_n(p->slope + at, lanes));
    const vf y = fx_load_n(p->out + at, lanes) + sum;
    fx_store_n(p->out + at, y, lanes);
    if (p->gelu) fx_store_n(p->gelu + at, gelu(fx_rounded(y)), lanes);
}

/* Multiplies the sums of columns j .. j + NV VL of a row by dropout's factors. */
static void drop_sums(const Dropout *d, uint32_t row, int j, vf sums[NV]) {
    float factors[COLUMNS];
    factors_of_row(d, row, (uint32_t)j / 8, factors);
    for (int v = 0; v < NV; v++) sums[v] *= vf_load(factors + v * VL);
}

static void up_tile(const Product *p, const float *hidden, Strip strip, int64_t row, int rows, int j) {
    vf acc[TILE][NV] = {{{0}}};
    for (int k = 0; k < p->r; k++)
        for (int i = 0; i < TILE; i++) {
            const float h = hidden[tile_row(i, rows) * p->r + k];
            for (int v = 0; v < NV; v++) acc[i][v] += h * strip[k][v];
        }
    for (int i = 0; i < rows; i++) {
        if (p->dropout && !p->down) drop_sums(p->dropout, (uint32_t)(row + i), j, acc[i]);
        for (int v = 0; v < NV; v++) {
            const int from = j + v * VL;
            if (from < p->N) finish(p, (row + i) * p->N + from, acc[i][v], LANES(from, p->N));
        }
    }
}

static void go_up(const Product *p, const float *hidden, int64_t row, int rows) {
    Strip strip;
    for (int j = 0; j < p->N; j += NV * VL) {
        (p->up_columns ? load_transposed : load_strip)(p, strip, j);
        for (int i = 0; i < rows; i += TILE) up_tile(p, hidden + i * p->r, strip, row + i, smaller(TILE, rows - i), j);
    }
}

/* ---- the entries ---- */

static void load_hidden(const Product *p, float *hidden, int64_t row, int rows) {
    const int n = rows * p->r;
    for (int i = 0; i < n; i += VL)
        vf_store_n(hidden + i, fx_load_n(p->hidden + row * p->r + i, LANES(i, n)), LANES(i, n));
}

static void blocks_of(const void *given, Part blocks) {
    const Product *p = given;
    float hidden[ROWS * MOST_RANK];
    for (int64_t row = blocks.from * p->each; row < blocks.to * p->each && row < p->rows; row += p->each) {
        const int rows = p->rows - row < p->each ? (int)(p->rows - row) : p->each;
        if (p->down) go_down(p, hidden, row, rows);
        else load_hidden(p, hidden, row, rows);
        if (p->up) go_up(p, hidden, row, rows);
    }
}

static void run(Context *ctx, const Product *given) {
    Product p = *given;
    const int64_t fair = ceil_div(ceil_div(p.rows, ctx->threads), TILE) * TILE;
    p.each = fair < ROWS ? (int)fair : ROWS;
    const int64_t blocks = ceil_div(p.rows, p.each), elements = p.rows * (p.C + p.N);
    parallel_static(threads_among(ctx, blocks, elements), blocks, blocks_of, &p);
}

void K(lora_forward)(Context *ctx, floatX *out, floatX *gelu, floatX *hidden, const floatX *inp, const floatX *weight,
                     const floatX *bias, const floatX *A, const floatX *Bw, const Dropout *dropout, float scale, int B,
                     int T, int C, int OC, int r) {
    const int64_t rows = (int64_t)B * T;
#if HAS_AMX
    const Narrow narrow = {
        .c = hidden, .a = inp, .b = transposed(A, C), .M = rows, .N = r, .K = C, .scale = scale, .dropout = dropout};
    const Gemm g = {.M = rows,
                    .N = OC,
                    .K = C,
                    .a = rows_of(inp, C),
                    .b = transposed(weight, C),
                    .c = out,
                    .bias = bias,
                    .gelu = gelu,
                    .more_a = rows_of(hidden, r),
                    .more_b = transposed(Bw, r),
                    .more_K = r};
    if (!K(gemm_is_few)(&g) && K(gemm_is_narrow)(&narrow)) {
        K(gemm_narrow)(ctx, &narrow);
        K(gemm)(ctx, &g);
        return;
    }
#endif
    K(matmul_forward)(ctx, out, inp, weight, bias, B, T, C, OC);
    run(ctx, &(Product){.out = out,
                        .gelu = gelu,
                        .hidden = hidden,
                        .inp = inp,
                        .down = A,
                        .up = Bw,
                        .dropout = dropout,
                        .scale = scale,
                        .rows = rows,
                        .C = C,
                        .N = OC,
                        .r = r,
                        .up_columns = 1});
}

void K(lora_backward_hidden)(Context *ctx, floatX *dhidden, const floatX *dout, const floatX *Bw, float scale, int B,
                             int T, int OC, int r) {
#if HAS_AMX
    const Narrow narrow = {
        .c = dhidden, .a = dout, .b = rows_of(Bw, r), .M = (int64_t)B * T, .N = r, .K = OC, .scale = scale};
    if (K(gemm_is_narrow)(&narrow)) {
        K(gemm_narrow)(ctx, &narrow);
        return;
    }
#endif
    run(ctx, &(Product){.hidden = dhidden,
                        .inp = dout,
                        .down = Bw,
                        .scale = scale,
                        .rows = (int64_t)B * T,
                        .C = OC,
                        .r = r,
                        .down_columns = 1});
}

void K(lora_backward_input)(Context *ctx, floatX *dinp, const floatX *dout, const floatX *weight, const floatX *dhidden,
                            const floatX *A, const floatX *pre, const Dropout *dropout, int B, int T, int C, int OC,
                            int r) {
    const int64_t rows = (int64_t)B * T;
    if (HAS_AMX && !dropout) {
        K(gemm)(ctx, &(Gemm){.M = rows,
                             .N = C,
                             .K = OC,
                             .a = rows_of(dout, OC),
                             .b = rows_of(weight, C),
                             .c = dinp,
                             .slope = pre,
                             .more_a = rows_of(dhidden, r),
                             .more_b = rows_of(A, C),
                             .more_K = r});
        return;
    }
    if (pre) K(matmul_gelu_backward_input)(ctx, dinp, dout, weight, pre, B, T, C, OC);
    else K(matmul_backward_input)(ctx, dinp, dout, weight, B, T, C, OC);
    run(ctx, &(Product){.out = dinp,
                        .hidden = (floatX *)dhidden,
                        .slope = pre,
                        .up = A,
                        .dropout = dropout,
                        .rows = rows,
                        .N = C,
                        .r = r});
}
