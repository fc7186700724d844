/* Every kernel written as its formula: plain loops, one thread, sums in double. Start to read here. The fast kernels beside
 * this file compute the same; PYLLMC_ISA=reference trains with these. */
#include <math.h>
#include <string.h>
#include "base/philox.h"
#include "isa.h"
#include "memory.h"
#include "reference_numbers.h"

static int supported(void) { return 1; }

/* The gradients of a head, which has at most C channels; or less: a row of attention scores. And a row of weights, 4 C. */
static int64_t workspace_bytes(int B, int T, int C, int NH, int Vp, int threads) {
    (void)B, (void)NH, (void)Vp, (void)threads;
    return (T > 1 ? (int64_t)T * 3 : 4) * C * (int64_t)sizeof(float);
}

/* ---- numbers ---- */

static void compress(Context *ctx, floatX *stored, const void *param, int format, int64_t rows, int C) {
    float *x = ctx->workspace;
    for (int64_t r = 0; r < rows; r++) {
        float largest = 0;
        for (int c = 0; c < C; c++) x[c] = get_master(ctx, param, stored, r * C + c);
        for (int c = 0; c < C; c++) largest = fmaxf(largest, fabsf(x[c]));
        const float scale = largest / 127;
        signed char *start = (signed char *)stored + r * (C + 4);
        if (format == LLMC_INT8) memcpy(start, &scale, 4);
        for (int c = 0; c < C; c++)
            if (format == LLMC_INT8) start[4 + c] = (signed char)(scale > 0 ? rint(x[c] / scale) : 0);
            else if (format == LLMC_BF16) ((uint16_t *)stored)[r * C + c] = bf16_of(x[c]);
    }
}

/* ---- layers ---- */

static void encoder_forward(Context *ctx, floatX *out, const int *tokens, const floatX *wte, const floatX *wpe,
                            const int *pos, const int *offsets, int B, int T, int C) {
    for (int b = 0; b < B; b++)
        for (int t = 0; t < T; t++) {
            const int64_t at = (pos ? pos[b] : 0) + (offsets ? offsets[b * T + t] : t);
            for (int c = 0; c < C; c++)
                put(out++, 0, (double)weight_at(ctx, wte, tokens[b * T + t], C, c) + get(wpe, at * C + c));
        }
}

static void encoder_backward(Context *ctx, float *dwte, float *dwpe, const floatX *dout, const int *tokens,
                             const int *offsets, int B, int T, int C) {
    (void)ctx;
    for (int64_t bt = 0; bt < (int64_t)B * T; bt++)
        for (int c = 0; c < C; c++) {
            if (dwte) dwte[(int64_t)tokens[bt] * C + c] += get(dout, bt * C + c);
            if (dwpe) dwpe[(offsets ? offsets[bt] : bt % T) * C + c] += get(dout, bt * C + c);
        }
}

static void layernorm_forward(Context *ctx, floatX *out, float *mean, float *rstd, const floatX *inp,
                              const floatX *weight, const floatX *bias, int B, int T, int C) {
    (void)ctx;
    for (int64_t bt = 0; bt < (int64_t)B * T; bt++) {
        const floatX *x = inp + bt * C;
        double m = 0, v = 0;
        for (int c = 0; c < C; c++) m += get(x, c);
        m /= C;
        for (int c = 0; c < C; c++) v += (get(x, c) - m) * (get(x, c) - m);
        const double s = 1 / sqrt(v / C + 1e-5);
        for (int c = 0; c < C; c++) put(out, bt * C + c, (get(x, c) - m) * s * get(weight, c) + get(bias, c));
        mean[bt] = (float)m, rstd[bt] = (float)s;
    }
}

static double factor(const Dropout *d, int64_t row, int column) {
    return d ? dropout_factor(d, dropout_words(d, (uint32_t)row, (uint32_t)column / 8), column % 8) : 1;
}

static void dropout(Context *ctx, floatX *out, const floatX *inp, const Dropout *d, int B, int T, int C) {
    (void)ctx;
    for (int64_t i = 0; i < (int64_t)B * T * C; i++) put(out, i, get(inp, i) * factor(d, i / C, (int)(i % C)));
}

static void residual_layernorm_forward(Context *ctx, floatX *residual, floatX *out, float *mean, float *rstd,
                                       const floatX *inp1, const floatX *inp2, const floatX *weight, const floatX *bias,
                                       const Dropout *d, int B, int T, int C) {
    for (int64_t i = 0; i < (int64_t)B * T * C; i++)
        put(residual, i, (double)get(inp1, i) + get(inp2, i) * factor(d, i / C, (int)(i % C)));
    layernorm_forward(ctx, out, mean, rstd, residual, weight, bias, B, T, C);
}

/* with norm = (inp - mean) rstd and dnorm = dout weight:  dinp = rstd (dnorm - mean(dnorm) - norm mean(dnorm norm)) */
static void layernorm_backward(Context *ctx, floatX *dresidual, float *dweight, float *dbias, const floatX *dout,
                               const floatX *inp, const floatX *weight, const float *mean, const float *rstd, int B,
                               int T, int C) {
    (void)ctx;
    for (int64_t bt = 0; bt < (int64_t)B * T; bt++) {
        const floatX *x = inp + bt * C, *d = dout + bt * C;
        double sum = 0, sum_norm = 0;
        for (int c = 0; c < C; c++) {
            sum += (double)get(d, c) * get(weight, c);
            sum_norm += (double)get(d, c) * get(weight, c) * (get(x, c) - mean[bt]) * rstd[bt];
        }
        for (int c = 0; c < C; c++) {
            const double norm = ((double)get(x, c) - mean[bt]) * rstd[bt], dnorm = (double)get(d, c) * get(weight, c);
            if (dbias) dbias[c] += get(d, c);
            if (dweight) dweight[c] += (float)(norm * get(d, c));
            put(dresidual, bt * C + c,
                get(dresidual, bt * C + c) + (float)((dnorm - sum / C - norm * sum_norm / C) * rstd[bt]));
        }
    }
}

static void matmul_forward(Context *ctx, floatX *out, const floatX *inp, const floatX *weight, const floatX *bias,
                           int B, int T, int C, int OC) {
    for (int64_t i = 0; i < (int64_t)B * T * OC; i++) {
        double sum = bias ? get(bias, i % OC) : 0;
        for (int c = 0; c < C; c++) sum += (double)get(inp, i / OC * C + c) * weight_at(ctx, weight, i % OC, C, c);
        put(out, i, sum);
    }
}

static const double GELU_SCALE = 0.79788456080286535588; /* sqrt(2/pi) */

static void gelu_forward(Context *ctx, floatX *out, const floatX *pre, int64_t N) {
    (void)ctx;
    for (int64_t i = 0; i < N; i++) {
        const double x = get(pre, i);
        put(out, i, 0.5 * x * (1 + tanh(GELU_SCALE * (x + 0.044715 * x * x * x))));
    }
}

static void matmul_gelu_forward(Context *ctx, floatX *out, floatX *pre, const floatX *inp, const floatX *weight,
                                const floatX *bias, int B, int T, int C, int OC) {
    matmul_forward(ctx, pre, inp, weight, bias, B, T, C, OC);
    gelu_forward(ctx, out, pre, (int64_t)B * T * OC);
}

/* dout(OC) times column c of weight(OC,C) */
static float times_column(const floatX *dout, const floatX *weight, int c, int C, int OC) {
    double sum = 0;
    for (int o = 0; o < OC; o++) sum += (double)get(dout, o) * get(weight, (int64_t)o * C + c);
    return (float)sum;
}

static void matmul_backward_input(Context *ctx, floatX *dinp, const floatX *dout, const floatX *weight, int B, int T,
                                  int C, int OC) {
    (void)ctx;
    for (int64_t i = 0; i < (int64_t)B * T * C; i++)
        put(dinp, i, times_column(dout + i / C * OC, weight, (int)(i % C), C, OC));
}

/* far from 0 flat is 0, and 0 * inf must be 0, too */
static double gelu_slope(double x) {
    const double t = tanh(GELU_SCALE * (x + 0.044715 * x * x * x)), flat = 1 - t * t;
    return 1 + t + (flat == 0 ? 0 : flat * GELU_SCALE * (1 + 3 * 0.044715 * x * x) * x);
}

static void matmul_gelu_backward_input(Context *ctx, floatX *dpre, const floatX *dout, const floatX *weight,
                                       const floatX *pre, int B, int T, int C, int OC) {
    (void)ctx;
    for (int64_t i = 0; i < (int64_t)B * T * C; i++)
        put(dpre, i, times_column(dout + i / C * OC, weight, (int)(i % C), C, OC) * 0.5 * gelu_slope(get(pre, i)));
}

static void matmul_backward_weight(Context *ctx, float *dweight, float *dbias, const floatX *dout, const floatX *inp,
                                   int accumulate, int B, int T, int C, int OC) {
    (void)ctx;
    for (int64_t o = 0; o < OC; o++) {
        double sum = 0;
        for (int64_t bt = 0; bt < (int64_t)B * T; bt++) sum += get(dout, bt * OC + o);
        if (dbias) dbias[o] += (float)sum;
        for (int c = 0; dweight && c < C; c++) {
            double dot = 0;
            for (int64_t bt = 0; bt < (int64_t)B * T; bt++)
                dot += (double)get(dout, bt * OC + o) * get(inp, bt * C + c);
            dweight[o * C + c] = (float)dot + (accumulate ? dweight[o * C + c] : 0);
        }
    }
}

static double dot_of(const floatX *a, const floatX *b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)get(a, i) * get(b, i);
    return sum;
}

static void lora_forward(Context *ctx, floatX *out, floatX *gelu, floatX *hidden, const floatX *inp,
                         const floatX *weight, const floatX *bias, const floatX *A, const floatX *Bw, const Dropout *d,
                         float scale, int B, int T, int C, int OC, int r) {
    matmul_forward(ctx, out, inp, weight, bias, B, T, C, OC);
    for (int64_t i = 0; i < (int64_t)B * T * r; i++) {
        double sum = 0;
        for (int c = 0; c < C; c++)
            sum += operand(get(inp, i / r * C + c) * factor(d, i / r, c)) * get(A, i % r * C + c);
        put(hidden, i, scale * sum);
    }
    for (int64_t i = 0; i < (int64_t)B * T * OC; i++)
        put(out, i, get(out, i) + dot_of(hidden + i / OC * r, Bw + i % OC * r, r));
    if (gelu) gelu_forward(ctx, gelu, out, (int64_t)B * T * OC);
}

static void lora_backward_hidden(Context *ctx, floatX *dhidden, const floatX *dout, const floatX *Bw, float scale,
                                 int B, int T, int OC, int r) {
    (void)ctx;
    for (int64_t i = 0; i < (int64_t)B * T * r; i++)
        put(dhidden, i, scale * times_column(dout + i / r * OC, Bw, (int)(i % r), r, OC));
}

static void lora_backward_input(Context *ctx, floatX *dinp, const floatX *dout, const floatX *weight,
                                const floatX *dhidden, const floatX *A, const floatX *pre, const Dropout *d, int B,
                                int T, int C, int OC, int r) {
    (void)ctx;
    for (int64_t i = 0; i < (int64_t)B * T * C; i++)
        put(dinp, i,
            ((double)times_column(dout + i / C * OC, weight, (int)(i % C), C, OC) +
             times_column(dhidden + i / C * r, A, (int)(i % C), C, r) * factor(d, i / C, (int)(i % C))) *
                (pre ? 0.5 * gelu_slope(get(pre, i)) : 1));
}

static int first_key(int i, int window) { return window > 0 && i >= window ? i - window + 1 : 0; }
/* The first key that query i of sequence b sees. */
static int first_seen(const int *offsets, int b, int T, int i, int window) {
    const int first = first_key(i, window), begin = offsets ? i - offsets[(int64_t)b * T + i] : 0;
    return first > begin ? first : begin;
}

/* One query with the keys and values first..last, rows `stride` apart: out = (softmax(scores) factors) v. `row` is the
 * query's number among those of all heads. Returns lse. */
static double attend(double *p, floatX *out, const floatX *q, const floatX *k, const floatX *v, int64_t stride,
                     int first, int last, int hs, const Dropout *d, int64_t row) {
    double max = -INFINITY, sum = 0;
    for (int j = first; j <= last; j++) {
        p[j] = dot_of(q, k + j * stride, hs) / sqrt(hs);
        if (p[j] > max) max = p[j];
    }
    for (int j = first; j <= last; j++) sum += p[j] = exp(p[j] - max);
    for (int j = first; j <= last; j++) p[j] = operand(p[j] * factor(d, row, j));
    for (int c = 0; c < hs; c++) {
        double y = 0;
        for (int j = first; j <= last; j++) y += p[j] * get(v, j * stride + c);
        put(out, c, y / sum);
    }
    return max + log(sum);
}

static void attention_forward(Context *ctx, floatX *out, float *lse, const floatX *qkv, const int *offsets,
                              const Dropout *d, int B, int T, int C, int NH, int window) {
    const int hs = C / NH;
    for (int b = 0; b < B; b++)
        for (int h = 0; h < NH; h++)
            for (int i = 0; i < T; i++) {
                const floatX *base = qkv + (int64_t)b * T * 3 * C + h * hs;
                const int64_t row = ((int64_t)b * NH + h) * T + i;
                lse[row] =
                    (float)attend(ctx->workspace, out + ((int64_t)b * T + i) * C + h * hs, base + (int64_t)i * 3 * C,
                                  base + C, base + 2 * C, 3 * C, first_seen(offsets, b, T, i, window), i, hs, d, row);
            }
}

static void copy_row(floatX *to, int64_t i, const floatX *from, int64_t j, int C) {
    memcpy(to + i * C, from + j * C, (size_t)C * sizeof *to);
}

static void attention_cached(Context *ctx, floatX *out, floatX *cache, floatX *whole, const floatX *qkv, const int *pos,
                             int B, int n, int R, int T, int C, int NH, int window) {
    const int hs = C / NH;
    for (int b = 0; b < B; b++) {
        floatX *ring = cache + (int64_t)b * R * 3 * C, *rows = R < T ? whole + (int64_t)b * T * 3 * C : ring;
        for (int p = first_key(pos[b], window); R < T && p < pos[b]; p++) copy_row(rows, p, ring, p % R, 3 * C);
        for (int i = 0; i < n; i++) copy_row(rows, pos[b] + i, qkv, (int64_t)b * n + i, 3 * C);
        for (int i = 0; R < T && i < n; i++) copy_row(ring, (pos[b] + i) % R, qkv, (int64_t)b * n + i, 3 * C);
        for (int i = 0; i < n; i++)
            for (int h = 0; h < NH; h++) {
                const int at = pos[b] + i;
                attend(ctx->workspace, out + ((int64_t)b * n + i) * C + h * hs, rows + (int64_t)at * 3 * C + h * hs,
                       rows + C + h * hs, rows + 2 * C + h * hs, 3 * C, first_key(at, window), at, hs, NULL, 0);
            }
    }
}

/* One query, whose gradients are added to dqkv (T,3,hs). With p = softmax, dp = dout.v factor and D = dout.out:
 * ds = p (dp - D), divided by sqrt(hs) in dk and dq. A query that sees one key has a weight of 1, whatever the score. */
static void attend_backward(float *dqkv, const floatX *dout, const floatX *out, float lse, const floatX *qkv, int64_t C,
                            int first, int i, int hs, const Dropout *drop, int64_t row) {
    const floatX *q = qkv + i * 3 * C;
    const double scale = 1 / sqrt(hs), D = dot_of(dout, out, hs);
    float *dq = dqkv + (int64_t)i * 3 * hs;
    for (int j = first; j <= i; j++) {
        const floatX *k = qkv + j * 3 * C + C, *v = k + C;
        float *dk = dqkv + (int64_t)j * 3 * hs + hs, *dv = dk + hs;
        const double p = exp(dot_of(q, k, hs) * scale - lse), kept = factor(drop, row, j);
        const double ds = drop && first == i ? 0 : p * (dot_of(dout, v, hs) * kept - D);
        const double p_operand = operand(p * kept), ds_operand = operand(ds) * scale;
        for (int d = 0; d < hs; d++) {
            dv[d] += (float)(p_operand * get(dout, d));
            dk[d] += (float)(ds_operand * get(q, d));
            dq[d] += (float)(ds_operand * get(k, d));
        }
    }
}

/* One head after another: the gradients of a head are summed as floats before they are stored. */
static void attention_backward(Context *ctx, floatX *dqkv, const floatX *dout, const floatX *out, const float *lse,
                               const floatX *qkv, const int *offsets, const Dropout *d, int B, int T, int C, int NH,
                               int window) {
    const int hs = C / NH;
    float *sums = ctx->workspace;
    for (int b = 0; b < B; b++)
        for (int h = 0; h < NH; h++) {
            const int64_t head = (int64_t)b * T * 3 * C + h * hs;
            memset(sums, 0, (size_t)T * 3 * hs * sizeof *sums);
            for (int i = 0; i < T; i++) {
                const int64_t at = ((int64_t)b * T + i) * C + h * hs, row = ((int64_t)b * NH + h) * T + i;
                attend_backward(sums, dout + at, out + at, lse[row], qkv + head, C,
                                first_seen(offsets, b, T, i, window), i, hs, d, row);
            }
            for (int64_t row = 0; row < (int64_t)T * 3; row++)
                for (int c = 0; c < hs; c++) put(dqkv, head + row * C + c, sums[row * hs + c]);
        }
}

static void classifier_forward(Context *ctx, float *losses, float *lse, const floatX *logits, const int *targets, int B,
                               int T, int V, int Vp) {
    (void)ctx;
    for (int64_t bt = 0; bt < (int64_t)B * T; bt++) {
        const floatX *x = logits + bt * Vp;
        double max = get(x, 0), sum = 0;
        for (int i = 1; i < V; i++) max = get(x, i) > max ? get(x, i) : max;
        for (int i = 0; i < V; i++) sum += exp(get(x, i) - max);
        lse[bt] = (float)(max + log(sum));
        losses[bt] = targets[bt] < 0 ? 0 : (float)(max + log(sum) - get(x, targets[bt]));
    }
}

static void loss_mean(Context *ctx, float *loss, const float *losses, const int *targets, const float *loss_weights,
                      int64_t N) {
    double sum = 0, weight = 0;
    (void)ctx;
    for (int64_t i = 0; i < N; i++)
        if (targets[i] >= 0) {
            sum += (double)loss_weights[i] * losses[i];
            weight += loss_weights[i];
        }
    loss[0] = weight > 0 ? (float)(sum / weight) : 0;
    loss[1] = weight > 0 ? (float)(1 / weight) : 0;
}

static void classifier_backward(Context *ctx, floatX *logits, const float *lse, const int *targets,
                                const float *loss_weights, const float *loss, float scale, int B, int T, int V,
                                int Vp) {
    (void)ctx;
    for (int64_t bt = 0; bt < (int64_t)B * T; bt++) {
        floatX *x = logits + bt * Vp;
        const double factor = targets[bt] < 0 ? 0 : (double)loss_weights[bt] * scale * loss[1];
        double sum = 0; /* becomes 1, except for the rounding of lse */
        for (int i = 0; i < V; i++) sum += exp((double)get(x, i) - lse[bt]);
        for (int i = 0; i < V; i++) put(x, i, (exp((double)get(x, i) - lse[bt]) / sum - (i == targets[bt])) * factor);
        for (int i = V; i < Vp; i++) put(x, i, 0);
    }
}

static void global_norm(Context *ctx, float *norm, const float *grads, float max_norm, int64_t N) {
    double sum = 0;
    (void)ctx;
    for (int64_t i = 0; i < N; i++) sum += (double)grads[i] * grads[i];
    norm[0] = (float)sqrt(sum);
    norm[1] = max_norm > 0 && norm[0] + 1e-6f > max_norm ? max_norm / (norm[0] + 1e-6f) : 1;
}

static void scale(Context *ctx, float *x, const float *factor, int64_t N) {
    (void)ctx;
    for (int64_t i = 0; i < N; i++) x[i] *= factor[0];
}

static void adamw(Context *ctx, void *param, floatX *stored, float *m, float *v, const float *grad,
                  const float *grad_scale, const AdamW *step, int decayed, int64_t N) {
    for (int64_t i = 0; i < N; i++) {
        const double g = (double)grad[i] * (grad_scale ? grad_scale[0] : 1);
        m[i] = (float)((double)step->beta1 * m[i] + step->gain1 * g);
        v[i] = (float)((double)step->beta2 * v[i] + step->gain2 * g * g);
        const float x = get_master(ctx, param, stored, i);
        const double decay = decayed ? (double)step->decay * x : 0;
        const float moved = (float)(decay + step->rate * (double)m[i] / (sqrt(v[i]) * step->unbias + step->eps));
        put_master(ctx, param, stored, i, x - moved);
    }
}

static void store(Context *ctx, floatX *stored, const float *param, int64_t N) {
    (void)ctx;
    for (int64_t i = 0; i < N; i++) put(stored, i, param[i]);
}

#define ENTRY(name) .name = name,
const Kernels K(kernels) = {.name = ISA_TEXT(ISA),
                            .supported = supported,
                            .element = sizeof(floatX) == sizeof(float) ? LLMC_FP32 : LLMC_BF16,
                            .splits = sizeof(floatX) != sizeof(float),
                            .workspace_bytes = workspace_bytes,
                            CPU_MEMORY,
                            EACH_KERNEL(ENTRY)};
