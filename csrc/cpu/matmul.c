/* The linear layer: out = inp @ weight^T + bias, and its gradients. */
#include "gemm.h"
#include "simd.h"
#include "threads.h"

static Operand rows_of(const floatX *at, int64_t ld) { return (Operand){.at = at, .ld = ld}; }
static Operand transposed(const floatX *at, int64_t ld) { return (Operand){.at = at, .ld = ld, .transposed = 1}; }
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

enum { STRIP = 4, GROUP = 16 }; /* the vectors summed side by side; the rows summed before the sum moves up a level */

/* sum[j] += sum over the rows i of x[i][j]. Each level sums GROUP sums of the level below, so that the rounding error grows
 * far slower than the number of rows. */
static inline __attribute__((always_inline)) void sum_columns(float *sum, const float *x, int64_t rows, int64_t ld,
                                                              const int cols) {
    vf level[3][STRIP] = {{{0}}};
    for (int64_t i = 0; i < rows; i += GROUP) {
        for (int64_t r = i; r < i + GROUP && r < rows; r++)
            for (int v = 0; v < STRIP; v++)
                if (v * VL < cols) level[0][v] += vf_load_n(x + r * ld + v * VL, LANES(v * VL, cols));
        for (int l = 0, groups = (int)(i / GROUP) + 1; l < 2 && (l == 0 || groups % GROUP == 0); l++)
            for (int v = 0; v < STRIP; v++) level[l + 1][v] += level[l][v], level[l][v] = (vf){0};
    }
    for (int v = 0; v * VL < cols; v++) {
        const int lanes = LANES(v * VL, cols);
        const vf total = level[2][v] + (level[1][v] + level[0][v]);
        vf_store_n(sum + v * VL, vf_load_n(sum + v * VL, lanes) + total, lanes);
    }
}

static void strip_gradient(float *dbias, const floatX *dout, int64_t rows, int OC, int o) {
    if (o + STRIP * VL <= OC) sum_columns(dbias + o, dout + o, rows, OC, STRIP * VL);
    else sum_columns(dbias + o, dout + o, rows, OC, OC - o);
}

typedef struct Columns {
    float *dbias;
    const float *dout;
    int64_t rows;
    int OC;
} Columns;
static void strips(const void *given, Part p) {
    const Columns a = *(const Columns *)given;
    for (int64_t i = p.from; i < p.to; i++) strip_gradient(a.dbias, a.dout, a.rows, a.OC, (int)i * STRIP * VL);
}

static void bias_gradient(Context *ctx, float *dbias, const floatX *dout, int64_t rows, int OC) {
    parallel_static(threads_for(ctx, rows * OC), ceil_div(OC, STRIP * VL), strips, &(Columns){dbias, dout, rows, OC});
}

void K(matmul_backward_weight)(Context *ctx, float *dweight, float *dbias, const floatX *dout, const floatX *inp,
                               int accumulate, int B, int T, int C, int OC) {
    const int64_t BT = (int64_t)B * T;
    if (dbias) bias_gradient(ctx, dbias, dout, BT, OC);
    K(gemm)(ctx, &(Gemm){.M = OC,
                         .N = C,
                         .K = BT,
                         .a = transposed(dout, OC),
                         .b = rows_of(inp, C),
                         .c = dweight,
                         .accumulate = accumulate});
}
