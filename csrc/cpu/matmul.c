/* The linear layer: out = inp @ weight^T + bias, and its gradients. */
#include <string.h>
#include "element.h"
#include "gemm.h"
#include "threads.h"

static Operand stored(const Context *ctx, const floatX *weight, int64_t C) { /* the columns of B are rows of weights */
    return (Operand){.at = weight, .ld = C, .transposed = 1, .format = ctx->weight_format};
}

void K(matmul_forward)(Context *ctx, floatX *out, const floatX *inp, const floatX *weight, const floatX *bias, int B,
                       int T, int C, int OC) {
    K(gemm)(ctx, &(Gemm){.M = (int64_t)B * T,
                         .N = OC,
                         .K = C,
                         .a = rows_of(inp, C),
                         .b = stored(ctx, weight, C),
                         .c = out,
                         .bias = bias});
}

void K(matmul_gelu_forward)(Context *ctx, floatX *out, floatX *pre, const floatX *inp, const floatX *weight,
                            const floatX *bias, int B, int T, int C, int OC) {
    K(gemm)(ctx, &(Gemm){.M = (int64_t)B * T,
                         .N = OC,
                         .K = C,
                         .a = rows_of(inp, C),
                         .b = stored(ctx, weight, C),
                         .c = pre,
                         .bias = bias,
                         .gelu = out});
}

void K(matmul_backward_input)(Context *ctx, floatX *dinp, const floatX *dout, const floatX *weight, int B, int T, int C,
                              int OC) {
    K(gemm)(ctx,
            &(Gemm){.M = (int64_t)B * T, .N = C, .K = OC, .a = rows_of(dout, OC), .b = rows_of(weight, C), .c = dinp});
}

void K(matmul_gelu_backward_input)(Context *ctx, floatX *dpre, const floatX *dout, const floatX *weight,
                                   const floatX *pre, int B, int T, int C, int OC) {
    K(gemm)(ctx, &(Gemm){.M = (int64_t)B * T,
                         .N = C,
                         .K = OC,
                         .a = rows_of(dout, OC),
                         .b = rows_of(weight, C),
                         .c = dpre,
                         .slope = pre});
}

/* ---- the bias' gradient ---- */

enum {
    STRIP = 1024, /* the columns summed side by side */
    GROUP = 16,   /* the rows summed before the sum moves up a level */
    AHEAD = 4,    /* the rows that are asked for before they are read */
};

static inline void add_floats(float *sum, const float *x, int n) {
    for (int i = 0; i < n; i += VL) vf_store(sum + i, vf_load(sum + i) + vf_load(x + i));
}

/* The levels' sums of up to STRIP columns. Each level sums GROUP sums of the level below, so that the rounding error grows
 * far slower than the number of rows. */
typedef struct Levels {
    float sum[3][STRIP];
} Levels;

/* Adds a row to the lowest level. */
static inline void add_row(Levels *level, const floatX *x, int64_t ld, int cols) {
    for (int i = 0; i < cols; i += VL) {
        const int lanes = LANES(i, cols);
        __builtin_prefetch(x + AHEAD * ld + i);
        vf_store(level->sum[0] + i, vf_load(level->sum[0] + i) + fx_load_n(x + i, lanes));
    }
}

/* After group number `groups` the sums move up. */
static void move_up(Levels *level, int64_t groups, int cols) {
    for (int l = 0; l < 2 && (l == 0 || groups % GROUP == 0); l++) {
        add_floats(level->sum[l + 1], level->sum[l], cols);
        memset(level->sum[l], 0, (size_t)cols * sizeof(float));
    }
}

/* sum[j] += sum over the rows i of x[i][j]. */
APART void sum_columns(float *sum, const floatX *x, int64_t rows, int64_t ld, int cols) {
    Levels level;
    memset(&level, 0, sizeof level);
    for (int64_t i = 0; i < rows; i++) {
        add_row(&level, x + i * ld, ld, cols);
        if ((i + 1) % GROUP == 0 || i + 1 == rows) move_up(&level, i / GROUP + 1, cols);
    }
    for (int j = 0; j < cols; j += VL) {
        const int lanes = LANES(j, cols);
        const vf total = vf_load(level.sum[2] + j) + (vf_load(level.sum[1] + j) + vf_load(level.sum[0] + j));
        vf_store_n(sum + j, vf_load_n(sum + j, lanes) + total, lanes);
    }
}

typedef struct Columns {
    float *dbias;
    const floatX *dout;
    int64_t rows;
    int OC;
} Columns;
static void columns_of(const void *given, Part vectors) {
    const Columns a = *(const Columns *)given;
    const int end = (int)(vectors.to * VL < a.OC ? vectors.to * VL : a.OC);
    for (int o = (int)vectors.from * VL; o < end; o += STRIP)
        sum_columns(a.dbias + o, a.dout + o, a.rows, a.OC, end - o < STRIP ? end - o : STRIP);
}

static void bias_gradient(Context *ctx, float *dbias, const floatX *dout, int64_t rows, int OC) {
    parallel_static(threads_for(ctx, rows * OC), ceil_div(OC, VL), columns_of, &(Columns){dbias, dout, rows, OC});
}

void K(matmul_backward_weight)(Context *ctx, float *dweight, float *dbias, const floatX *dout, const floatX *inp,
                               int accumulate, int B, int T, int C, int OC) {
    const int64_t BT = (int64_t)B * T;
    if (dbias) bias_gradient(ctx, dbias, dout, BT, OC);
    if (!dweight) return;
    K(gemm)(ctx, &(Gemm){.M = OC,
                         .N = C,
                         .K = BT,
                         .a = transposed(dout, OC),
                         .b = rows_of(inp, C),
                         .c = dweight,
                         .is_float = 1,
                         .accumulate = accumulate});
}
