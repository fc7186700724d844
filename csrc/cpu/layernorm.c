/* LayerNorm (Ba et al. 2016), alone and fused with the residual addition before it. A row fits the first-level
 * cache, so its few sweeps cost one pass over memory. */
#include <math.h>
#include <string.h>
#include "isa.h"
#include "simd.h"
#include "threads.h"

enum { UNROLL = 4 }; /* sums side by side: no addition waits for the one before, and errors stay small */

static inline vf sum_of(const vf s[UNROLL]) { return (s[0] + s[1]) + (s[2] + s[3]); }

static float row_sum(const float *x, int C) {
    vf s[UNROLL] = {{0}};
    int c = 0;
    for (; c + UNROLL * VL <= C; c += UNROLL * VL)
        for (int j = 0; j < UNROLL; j++) s[j] += vf_load(x + c + j * VL);
    for (; c < C; c += VL) s[0] += vf_load_n(x + c, LANES(c, C));
    return vf_sum(sum_of(s));
}

/* sum of (x - mean)^2 */
static float row_squares(const float *x, float mean, int C) {
    vf s[UNROLL] = {{0}};
    int c = 0;
    for (; c + UNROLL * VL <= C; c += UNROLL * VL)
        for (int j = 0; j < UNROLL; j++) {
            const vf d = vf_load(x + c + j * VL) - mean;
            s[j] += d * d;
        }
    for (; c < C; c += VL) {
        const int n = LANES(c, C);
        const vf d = vf_keep_n(vf_load_n(x + c, n) - mean, n);
        s[0] += d * d;
    }
    return vf_sum(sum_of(s));
}

static void row_forward(float *out, float *mean, float *rstd, const float *x, const float *weight, const float *bias,
                        int C) {
    const float m = row_sum(x, C) / (float)C, s = 1 / sqrtf(row_squares(x, m, C) / (float)C + 1e-5f);
    for (int c = 0; c < C; c += VL) {
        const int n = LANES(c, C);
        const vf norm = (vf_load_n(x + c, n) - m) * s;
        vf_store_n(out + c, norm * vf_load_n(weight + c, n) + vf_load_n(bias + c, n), n);
    }
    *mean = m;
    *rstd = s;
}

void K(layernorm_forward)(Context *ctx, floatX *out, float *mean, float *rstd, const floatX *inp, const floatX *weight,
                          const floatX *bias, int B, int T, int C) {
    const int64_t rows = (int64_t)B * T;
#pragma omp parallel for num_threads(threads_among(ctx, rows, rows *C))
    for (int64_t bt = 0; bt < rows; bt++)
        row_forward(out + bt * C, mean + bt, rstd + bt, inp + bt * C, weight, bias, C);
}

static inline void add_row(float *sum, const float *a, const float *b, int C) {
    for (int c = 0; c < C; c += VL) {
        const int n = LANES(c, C);
        vf_store_n(sum + c, vf_load_n(a + c, n) + vf_load_n(b + c, n), n);
    }
}

void K(residual_layernorm_forward)(Context *ctx, floatX *residual, floatX *out, float *mean, float *rstd,
                                   const floatX *inp1, const floatX *inp2, const floatX *weight, const floatX *bias,
                                   int B, int T, int C) {
    const int64_t rows = (int64_t)B * T;
#pragma omp parallel for num_threads(threads_among(ctx, rows, rows *C))
    for (int64_t bt = 0; bt < rows; bt++) {
        add_row(residual + bt * C, inp1 + bt * C, inp2 + bt * C, C);
        row_forward(out + bt * C, mean + bt, rstd + bt, residual + bt * C, weight, bias, C);
    }
}

/* ---- backward: with norm = (inp - mean) rstd and dnorm = dout weight
 *      dresidual += rstd (dnorm - mean(dnorm) - norm mean(dnorm norm)), dweight += dout norm, dbias += dout ---- */

static void row_backward(float *dresidual, float *dweight, float *dbias, const float *dout, const float *x,
                         const float *weight, float mean, float rstd, int C) {
    vf sum = {0}, sum_norm = {0};
    for (int c = 0; c < C; c += VL) {
        const int n = LANES(c, C);
        const vf d = vf_load_n(dout + c, n), dnorm = d * vf_load_n(weight + c, n);
        const vf norm = (vf_load_n(x + c, n) - mean) * rstd;
        sum += dnorm;
        sum_norm += dnorm * norm;
        vf_store_n(dweight + c, vf_load_n(dweight + c, n) + d * norm, n);
        vf_store_n(dbias + c, vf_load_n(dbias + c, n) + d, n);
    }
    const float mean_dnorm = vf_sum(sum) / (float)C, mean_both = vf_sum(sum_norm) / (float)C;
    for (int c = 0; c < C; c += VL) {
        const int n = LANES(c, C);
        const vf dnorm = vf_load_n(dout + c, n) * vf_load_n(weight + c, n);
        const vf norm = (vf_load_n(x + c, n) - mean) * rstd;
        const vf dx = rstd * (dnorm - mean_dnorm - norm * mean_both);
        vf_store_n(dresidual + c, vf_load_n(dresidual + c, n) + dx, n);
    }
}

/* a vector at c of dst(C) += the sum of the chunks' partial sums; `partial` is the first's, the next is 2C on */
static void add_partials(float *dst, const float *partial, int chunks, int C, int c) {
    const int n = LANES(c, C);
    vf sum = {0};
    for (int64_t k = 0; k < chunks; k++) sum += vf_load_n(partial + k * 2 * C + c, n);
    vf_store_n(dst + c, vf_load_n(dst + c, n) + sum, n);
}

/* The rows are cut into chunks, as many however many threads there are: each sums its own dweight and dbias in the
 * workspace, and these are added in order. */
enum { CHUNKS = 64, CHUNK_ROWS = 8 };

int64_t K(layernorm_workspace)(int C) { return (int64_t)CHUNKS * 2 * C * (int64_t)sizeof(float); }

void K(layernorm_backward)(Context *ctx, floatX *dresidual, float *dweight, float *dbias, const floatX *dout,
                           const floatX *inp, const floatX *weight, const float *mean, const float *rstd, int B, int T,
                           int C) {
    const int64_t rows = (int64_t)B * T, fair = (rows + CHUNKS - 1) / CHUNKS;
    const int64_t each = fair > CHUNK_ROWS ? fair : CHUNK_ROWS;
    const int chunks = (int)((rows + each - 1) / each);
    float *partials = ctx->workspace;
#pragma omp parallel for num_threads(threads_among(ctx, chunks, rows *C))
    for (int k = 0; k < chunks; k++) {
        float *partial = partials + (int64_t)k * 2 * C;
        memset(partial, 0, (size_t)C * 2 * sizeof *partial);
        for (int64_t bt = k * each; bt < (k + 1) * each && bt < rows; bt++)
            row_backward(dresidual + bt * C, partial, partial + C, dout + bt * C, inp + bt * C, weight, mean[bt],
                         rstd[bt], C);
    }
#pragma omp parallel for num_threads(threads_among(ctx, C / VL + 1, (int64_t)chunks * 2 * C))
    for (int c = 0; c < C; c += VL) {
        add_partials(dweight, partials, chunks, C, c);
        add_partials(dbias, partials + C, chunks, C, c);
    }
}
