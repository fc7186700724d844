/* LayerNorm (Ba et al. 2016), alone and fused with the residual addition before it. A row fits the first cache, so several
 * sweeps over it cost one pass over memory. */
#include <math.h>
#include <string.h>
#include "dropout.h"
#include "isa.h"
#include "threads.h"

enum { SUMS = 4 }; /* the sums side by side, so that no addition waits for another and rounding errors stay small */

static inline vf sum_of(const vf s[SUMS]) { return (s[0] + s[1]) + (s[2] + s[3]); }

static float row_sum(const floatX *x, int C) {
    vf s[SUMS] = {{0}};
    int c = 0;
    for (; c + SUMS * VL <= C; c += SUMS * VL)
        for (int j = 0; j < SUMS; j++) s[j] += fx_load(x + c + j * VL);
    for (; c < C; c += VL) s[0] += fx_load_n(x + c, LANES(c, C));
    return vf_sum(sum_of(s));
}

/* The sum of (x - mean)^2. */
static float row_squares(const floatX *x, float mean, int C) {
    vf s[SUMS] = {{0}};
    int c = 0;
    for (; c + SUMS * VL <= C; c += SUMS * VL)
        for (int j = 0; j < SUMS; j++) {
            const vf d = fx_load(x + c + j * VL) - mean;
            s[j] += d * d;
        }
    for (; c < C; c += VL) {
        const int n = LANES(c, C);
        const vf d = vf_keep_n(fx_load_n(x + c, n) - mean, n);
        s[0] += d * d;
    }
    return vf_sum(sum_of(s));
}

APART void row_forward(floatX *out, float *mean, float *rstd, const floatX *x, const floatX *weight, const floatX *bias,
                       int C) {
    const float m = row_sum(x, C) / (float)C, s = 1 / sqrtf(row_squares(x, m, C) / (float)C + 1e-5f);
    for (int c = 0; c < C; c += VL) {
        const int n = LANES(c, C);
        const vf norm = (fx_load_n(x + c, n) - m) * s;
        fx_store_n(out + c, norm * fx_load_n(weight + c, n) + fx_load_n(bias + c, n), n);
    }
    *mean = m;
    *rstd = s;
}

typedef struct Forward {
    floatX *residual, *out; /* residual is NULL if there is only inp1 */
    float *mean, *rstd;
    const floatX *inp1, *inp2, *weight, *bias;
    const Dropout *dropout;
    int C;
} Forward;

static inline void add_row(floatX *sum, const floatX *a, const floatX *b, int C) {
    for (int c = 0; c < C; c += VL) {
        const int n = LANES(c, C);
        fx_store_n(sum + c, fx_load_n(a + c, n) + fx_load_n(b + c, n), n);
    }
}

static void add_dropped_row(floatX *sum, const floatX *a, const floatX *b, const Dropout *d, uint32_t row, int C) {
    float factors[COLUMNS];
    for (int c = 0; c < C; c += VL) {
        if (c % COLUMNS == 0) factors_of_row(d, row, (uint32_t)c / 8, factors);
        const int n = LANES(c, C);
        fx_store_n(sum + c, fx_load_n(a + c, n) + fx_load_n(b + c, n) * vf_load(factors + c % COLUMNS), n);
    }
}

static void forward_rows(const void *given, Part rows) {
    const Forward a = *(const Forward *)given;
    for (int64_t bt = rows.from, at = bt * a.C; bt < rows.to; bt++, at += a.C) {
        if (a.dropout) add_dropped_row(a.residual + at, a.inp1 + at, a.inp2 + at, a.dropout, (uint32_t)bt, a.C);
        else if (a.residual) add_row(a.residual + at, a.inp1 + at, a.inp2 + at, a.C);
        row_forward(a.out + at, a.mean + bt, a.rstd + bt, (a.residual ? a.residual : a.inp1) + at, a.weight, a.bias,
                    a.C);
    }
}

void K(layernorm_forward)(Context *ctx, floatX *out, float *mean, float *rstd, const floatX *inp, const floatX *weight,
                          const floatX *bias, int B, int T, int C) {
    const int64_t rows = (int64_t)B * T;
    parallel_static(threads_among(ctx, rows, rows * C), rows, forward_rows,
                    &(Forward){NULL, out, mean, rstd, inp, NULL, weight, bias, NULL, C});
}

void K(residual_layernorm_forward)(Context *ctx, floatX *residual, floatX *out, float *mean, float *rstd,
                                   const floatX *inp1, const floatX *inp2, const floatX *weight, const floatX *bias,
                                   const Dropout *dropout, int B, int T, int C) {
    const int64_t rows = (int64_t)B * T;
    parallel_static(threads_among(ctx, rows, rows * C), rows, forward_rows,
                    &(Forward){residual, out, mean, rstd, inp1, inp2, weight, bias, dropout, C});
}

/* ---- backward: with norm = (inp - mean) rstd and dnorm = dout weight
 *      dresidual += rstd (dnorm - mean(dnorm) - norm mean(dnorm norm)), dweight += dout norm, dbias += dout ---- */

/* dweight NULL: there are no sums over rows. */
INLINE void row_backward(floatX *dresidual, float *dweight, float *dbias, const floatX *dout, const floatX *x,
                         const floatX *weight, float mean, float rstd, int C) {
    vf sum = {0}, sum_norm = {0};
    for (int c = 0; c < C; c += VL) {
        const int n = LANES(c, C);
        const vf d = fx_load_n(dout + c, n), dnorm = d * fx_load_n(weight + c, n);
        const vf norm = (fx_load_n(x + c, n) - mean) * rstd;
        sum += dnorm;
        sum_norm += dnorm * norm;
        if (!dweight) continue;
        vf_store_n(dweight + c, vf_load_n(dweight + c, n) + d * norm, n);
        vf_store_n(dbias + c, vf_load_n(dbias + c, n) + d, n);
    }
    const float mean_dnorm = vf_sum(sum) / (float)C, mean_both = vf_sum(sum_norm) / (float)C;
    for (int c = 0; c < C; c += VL) {
        const int n = LANES(c, C);
        const vf dnorm = fx_load_n(dout + c, n) * fx_load_n(weight + c, n);
        const vf norm = (fx_load_n(x + c, n) - mean) * rstd;
        const vf dx = rstd * (dnorm - mean_dnorm - norm * mean_both);
        fx_store_n(dresidual + c, fx_load_n(dresidual + c, n) + dx, n);
    }
}

/* Adds the chunks' partial sums to the vector at c of dst(C). `partial` is the first chunk's, the next is 2C further. */
static void add_partials(float *dst, const float *partial, int chunks, int C, int c) {
    const int n = LANES(c, C);
    vf sum = {0};
    for (int64_t k = 0; k < chunks; k++) sum += vf_load_n(partial + k * 2 * C + c, n);
    vf_store_n(dst + c, vf_load_n(dst + c, n) + sum, n);
}

/* The number of chunks of rows does not depend on the number of threads. Each chunk sums its own dweight and dbias in the
 * workspace, and these sums are added in order. */
enum { CHUNKS = 64, CHUNK_ROWS = 8 };
typedef struct Backward {
    floatX *dresidual;
    float *dweight, *dbias, *partials;
    const floatX *dout, *inp, *weight;
    const float *mean, *rstd;
    int64_t rows, each;
    int C, chunks;
} Backward;

/* The rows of frozen gains and biases. */
static void backward_rows(const void *given, Part rows) {
    const Backward a = *(const Backward *)given;
    for (int64_t bt = rows.from; bt < rows.to; bt++)
        row_backward(a.dresidual + bt * a.C, NULL, NULL, a.dout + bt * a.C, a.inp + bt * a.C, a.weight, a.mean[bt],
                     a.rstd[bt], a.C);
}

static void backward_chunks(const void *given, Part chunks) {
    const Backward a = *(const Backward *)given;
    const int C = a.C;
    for (int64_t k = chunks.from; k < chunks.to; k++) {
        float *partial = a.partials + k * 2 * C;
        memset(partial, 0, (size_t)C * 2 * sizeof *partial);
        for (int64_t bt = k * a.each; bt < (k + 1) * a.each && bt < a.rows; bt++)
            row_backward(a.dresidual + bt * C, partial, partial + C, a.dout + bt * C, a.inp + bt * C, a.weight,
                         a.mean[bt], a.rstd[bt], C);
    }
}

static void add_chunks(const void *given, Part vectors) {
    const Backward a = *(const Backward *)given;
    for (int c = (int)vectors.from * VL; c < vectors.to * VL; c += VL) {
        if (a.dweight) add_partials(a.dweight, a.partials, a.chunks, a.C, c);
        if (a.dbias) add_partials(a.dbias, a.partials + a.C, a.chunks, a.C, c);
    }
}

int64_t K(layernorm_workspace)(int C) { return (int64_t)CHUNKS * 2 * C * (int64_t)sizeof(float); }

void K(layernorm_backward)(Context *ctx, floatX *dresidual, float *dweight, float *dbias, const floatX *dout,
                           const floatX *inp, const floatX *weight, const float *mean, const float *rstd, int B, int T,
                           int C) {
    const int64_t rows = (int64_t)B * T, fair = (rows + CHUNKS - 1) / CHUNKS;
    const int64_t each = fair > CHUNK_ROWS ? fair : CHUNK_ROWS;
    const int chunks = (int)((rows + each - 1) / each);
    const Backward given = {dresidual, dweight, dbias, ctx->workspace, dout, inp,   weight,
                            mean,      rstd,    rows,  each,           C,    chunks};
    if (!dweight && !dbias) {
        parallel_static(threads_among(ctx, rows, rows * C), rows, backward_rows, &given);
        return;
    }
    parallel_static(threads_among(ctx, chunks, rows * C), chunks, backward_chunks, &given);
    parallel_static(threads_among(ctx, C / VL + 1, (int64_t)chunks * 2 * C), ceil_div(C, VL), add_chunks, &given);
}
