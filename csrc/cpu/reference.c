/* Every kernel written as its formula: plain loops, one thread, sums in double. Start to read here. The fast kernels beside
 * this file compute the same; PYLLMC_ISA=reference trains with these. */
#include <math.h>
#include <string.h>
#include "isa.h"
#include "memory.h"

static int supported(void) { return 1; }
static int64_t workspace_bytes(int B, int T, int C, int NH, int Vp, int threads) {
    (void)B, (void)NH, (void)Vp, (void)threads;
    return (2 * (int64_t)T + C) *
           (int64_t)sizeof(double); /* a row of attention scores and its gradient, or of weights */
}
static float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

/* The nearest number with 8 significant bits, ties to even. Infinity and NaN stay. */
static float to_bf16(float x) {
    const uint32_t bits = bits_of(x);
    return x - x == 0 ? float_of((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u) : x;
}

/* Number c of a row of weights, in the format in which compress stored it. */
static float weight_at(const Context *ctx, const floatX *weight, int64_t row, int C, int c) {
    if (ctx->weight_format == LLMC_BF16) return float_of((uint32_t)((const uint16_t *)weight)[row * C + c] << 16);
    if (ctx->weight_format == LLMC_INT8) {
        const char *start = (const char *)weight + row * (C + 4);
        float scale;
        memcpy(&scale, start, 4);
        return scale * (float)((const signed char *)start)[4 + c];
    }
    return weight[row * C + c];
}

static void compress(Context *ctx, floatX *weight, int format, int64_t rows, int C) {
    float *x = ctx->workspace;
    for (int64_t r = 0; r < rows; r++) {
        float largest = 0;
        memcpy(x, weight + r * C, (size_t)C * 4);
        for (int c = 0; c < C; c++) largest = fmaxf(largest, fabsf(x[c]));
        const float scale = largest / 127;
        signed char *start = (signed char *)weight + r * (C + 4);
        if (format == LLMC_INT8) memcpy(start, &scale, 4);
        for (int c = 0; c < C; c++)
            if (format == LLMC_INT8) start[4 + c] = (signed char)(scale > 0 ? rint(x[c] / scale) : 0);
            else if (format == LLMC_BF16) ((uint16_t *)weight)[r * C + c] = (uint16_t)(bits_of(to_bf16(x[c])) >> 16);
    }
}

static void encoder_forward(Context *ctx, floatX *out, const int *tokens, const floatX *wte, const floatX *wpe,
                            const int *pos, int B, int T, int C) {
    for (int b = 0; b < B; b++)
        for (int t = 0; t < T; t++)
            for (int c = 0; c < C; c++)
                *out++ = weight_at(ctx, wte, tokens[b * T + t], C, c) + wpe[((int64_t)(pos ? pos[b] : 0) + t) * C + c];
}

static void encoder_backward(Context *ctx, float *dwte, float *dwpe, const floatX *dout, const int *tokens, int B,
                             int T, int C) {
    (void)ctx;
    for (int64_t bt = 0; bt < (int64_t)B * T; bt++)
        for (int c = 0; c < C; c++) {
            dwte[(int64_t)tokens[bt] * C + c] += dout[bt * C + c];
            dwpe[bt % T * C + c] += dout[bt * C + c];
        }
}

static void layernorm_forward(Context *ctx, floatX *out, float *mean, float *rstd, const floatX *inp,
                              const floatX *weight, const floatX *bias, int B, int T, int C) {
    (void)ctx;
    for (int64_t bt = 0; bt < (int64_t)B * T; bt++) {
        const floatX *x = inp + bt * C;
        double m = 0, v = 0;
        for (int c = 0; c < C; c++) m += x[c];
        m /= C;
        for (int c = 0; c < C; c++) v += (x[c] - m) * (x[c] - m);
        const double s = 1 / sqrt(v / C + 1e-5);
        for (int c = 0; c < C; c++) out[bt * C + c] = (floatX)((x[c] - m) * s * weight[c] + bias[c]);
        mean[bt] = (float)m;
        rstd[bt] = (float)s;
    }
}

static void residual_layernorm_forward(Context *ctx, floatX *residual, floatX *out, float *mean, float *rstd,
                                       const floatX *inp1, const floatX *inp2, const floatX *weight, const floatX *bias,
                                       int B, int T, int C) {
    for (int64_t i = 0; i < (int64_t)B * T * C; i++) residual[i] = inp1[i] + inp2[i];
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
            sum += (double)d[c] * weight[c];
            sum_norm += (double)d[c] * weight[c] * (x[c] - mean[bt]) * rstd[bt];
        }
        for (int c = 0; c < C; c++) {
            const double norm = ((double)x[c] - mean[bt]) * rstd[bt];
            dbias[c] += d[c];
            dweight[c] += (float)(norm * d[c]);
            dresidual[bt * C + c] += (floatX)(((double)d[c] * weight[c] - sum / C - norm * sum_norm / C) * rstd[bt]);
        }
    }
}

static double operand(const Context *ctx, float x) { return ctx->precision == LLMC_BF16 ? to_bf16(x) : x; }

static void matmul_forward(Context *ctx, floatX *out, const floatX *inp, const floatX *weight, const floatX *bias,
                           int B, int T, int C, int OC) {
    Context exact = *ctx;
    exact.precision = LLMC_FP32;
    const Context *how = (int64_t)B * T == 1 ? &exact : ctx, *stored = ctx->weight_format == LLMC_FP32 ? how : &exact;
    for (int64_t bt = 0; bt < (int64_t)B * T; bt++)
        for (int o = 0; o < OC; o++) {
            double sum = bias ? bias[o] : 0;
            for (int c = 0; c < C; c++)
                sum += operand(how, inp[bt * C + c]) * operand(stored, weight_at(ctx, weight, o, C, c));
            out[bt * OC + o] = (floatX)sum;
        }
}

static const double GELU_SCALE = 0.79788456080286535588; /* sqrt(2/pi) */

static void gelu_forward(Context *ctx, floatX *out, const floatX *pre, int64_t N) {
    (void)ctx;
    for (int64_t i = 0; i < N; i++) {
        const double x = pre[i];
        out[i] = (floatX)(0.5 * x * (1 + tanh(GELU_SCALE * (x + 0.044715 * x * x * x))));
    }
}

static void matmul_gelu_forward(Context *ctx, floatX *out, floatX *pre, const floatX *inp, const floatX *weight,
                                const floatX *bias, int B, int T, int C, int OC) {
    matmul_forward(ctx, pre, inp, weight, bias, B, T, C, OC);
    gelu_forward(ctx, out, pre, (int64_t)B * T * OC);
}

static void matmul_backward_input(Context *ctx, floatX *dinp, const floatX *dout, const floatX *weight, int B, int T,
                                  int C, int OC) {
    for (int64_t bt = 0; bt < (int64_t)B * T; bt++)
        for (int c = 0; c < C; c++) {
            double sum = 0;
            for (int o = 0; o < OC; o++)
                sum += operand(ctx, dout[bt * OC + o]) * operand(ctx, weight[(int64_t)o * C + c]);
            dinp[bt * C + c] = (floatX)sum;
        }
}

static void matmul_gelu_backward_input(Context *ctx, floatX *dpre, const floatX *dout, const floatX *weight,
                                       const floatX *pre, int B, int T, int C, int OC) {
    matmul_backward_input(ctx, dpre, dout, weight, B, T, C, OC);
    for (int64_t i = 0; i < (int64_t)B * T * C; i++) {
        const double x = pre[i], t = tanh(GELU_SCALE * (x + 0.044715 * x * x * x));
        const double flat = 1 - t * t, slope = flat == 0 ? 0 : flat * GELU_SCALE * (1 + 3 * 0.044715 * x * x) * x;
        dpre[i] = (floatX)(dpre[i] * 0.5 * (1 + t + slope)); /* far from 0 flat is 0, and 0 * inf must be 0, too */
    }
}

static void matmul_backward_weight(Context *ctx, float *dweight, float *dbias, const floatX *dout, const floatX *inp,
                                   int accumulate, int B, int T, int C, int OC) {
    for (int o = 0; o < OC; o++) {
        double sum = 0;
        for (int64_t bt = 0; bt < (int64_t)B * T; bt++) sum += dout[bt * OC + o];
        if (dbias) dbias[o] += (float)sum;
        for (int c = 0; c < C; c++) {
            double dot = 0;
            for (int64_t bt = 0; bt < (int64_t)B * T; bt++)
                dot += operand(ctx, dout[bt * OC + o]) * operand(ctx, inp[bt * C + c]);
            dweight[(int64_t)o * C + c] = (float)dot + (accumulate ? dweight[(int64_t)o * C + c] : 0);
        }
    }
}

static double dot(const Context *ctx, const floatX *a, const floatX *b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += operand(ctx, a[i]) * operand(ctx, b[i]);
    return sum;
}

static int first_key(int i, int window) { return window > 0 && i >= window ? i - window + 1 : 0; }

/* One query with the keys and values first..last, rows `stride` apart: out = softmax(scores) v. Returns lse. */
static double attend(const Context *ctx, floatX *out, const floatX *q, const floatX *k, const floatX *v, int64_t stride,
                     int first, int last, int hs) {
    double max = -INFINITY, sum = 0, *p = ctx->workspace;
    for (int j = first; j <= last; j++) {
        p[j] = dot(ctx, q, k + j * stride, hs) / sqrt(hs);
        if (p[j] > max) max = p[j];
    }
    for (int j = first; j <= last; j++) sum += p[j] = exp(p[j] - max);
    for (int d = 0; d < hs; d++) {
        double y = 0;
        for (int j = first; j <= last; j++) y += operand(ctx, (float)p[j]) * operand(ctx, v[j * stride + d]);
        out[d] = (floatX)(y / sum);
    }
    return max + log(sum);
}

static void attention_forward(Context *ctx, floatX *out, float *lse, const floatX *qkv, int B, int T, int C, int NH,
                              int window) {
    const int hs = C / NH;
    for (int b = 0; b < B; b++)
        for (int h = 0; h < NH; h++)
            for (int i = 0; i < T; i++) {
                const floatX *base = qkv + (int64_t)b * T * 3 * C + h * hs;
                lse[((int64_t)b * NH + h) * T + i] =
                    (float)attend(ctx, out + ((int64_t)b * T + i) * C + h * hs, base + (int64_t)i * 3 * C, base + C,
                                  base + 2 * C, 3 * C, first_key(i, window), i, hs);
            }
}

static void attention_cached(Context *ctx, floatX *out, floatX *cache, const floatX *qkv, const int *pos, int B, int n,
                             int T, int C, int NH, int window) {
    const int hs = C / NH;
    for (int b = 0; b < B; b++) {
        floatX *rows = cache + (int64_t)b * T * 3 * C;
        memcpy(rows + (int64_t)pos[b] * 3 * C, qkv + (int64_t)b * n * 3 * C, (size_t)n * 3 * C * sizeof *rows);
        for (int i = 0; i < n; i++)
            for (int h = 0; h < NH; h++) {
                const int at = pos[b] + i;
                attend(ctx, out + ((int64_t)b * n + i) * C + h * hs, rows + (int64_t)at * 3 * C + h * hs,
                       rows + C + h * hs, rows + 2 * C + h * hs, 3 * C, first_key(at, window), at, hs);
            }
    }
}

/* One query. With p = softmax, dp = dout.v and D = dout.out:  ds = p (dp - D), divided by sqrt(hs) in dk and dq. */
static void attend_backward(const Context *ctx, floatX *dqkv, const floatX *dout, const floatX *out, float lse,
                            const floatX *qkv, int64_t C, int first, int i, int hs) {
    const floatX *q = qkv + i * 3 * C;
    const double scale = 1 / sqrt(hs);
    double D = 0;
    for (int d = 0; d < hs; d++) D += operand(ctx, dout[d]) * out[d];
    for (int j = first; j <= i; j++) {
        const floatX *k = qkv + j * 3 * C + C, *v = k + C;
        floatX *dk = dqkv + j * 3 * C + C, *dv = dk + C, *dq = dqkv + i * 3 * C;
        const double p = exp(dot(ctx, q, k, hs) * scale - lse), ds = p * (dot(ctx, dout, v, hs) - D);
        const double p_operand = operand(ctx, (float)p), ds_operand = operand(ctx, (float)ds) * scale;
        for (int d = 0; d < hs; d++) {
            dv[d] += (floatX)(p_operand * operand(ctx, dout[d]));
            dk[d] += (floatX)(ds_operand * operand(ctx, q[d]));
            dq[d] += (floatX)(ds_operand * operand(ctx, k[d]));
        }
    }
}

static void attention_backward(Context *ctx, floatX *dqkv, const floatX *dout, const floatX *out, const float *lse,
                               const floatX *qkv, int B, int T, int C, int NH, int window) {
    const int hs = C / NH;
    memset(dqkv, 0, (size_t)B * T * 3 * C * sizeof *dqkv);
    for (int b = 0; b < B; b++)
        for (int h = 0; h < NH; h++)
            for (int i = 0; i < T; i++) {
                const int64_t at = ((int64_t)b * T + i) * C + h * hs, base = (int64_t)b * T * 3 * C + h * hs;
                attend_backward(ctx, dqkv + base, dout + at, out + at, lse[((int64_t)b * NH + h) * T + i], qkv + base,
                                C, first_key(i, window), i, hs);
            }
}

static void classifier_forward(Context *ctx, float *losses, float *lse, const floatX *logits, const int *targets, int B,
                               int T, int V, int Vp) {
    (void)ctx;
    for (int64_t bt = 0; bt < (int64_t)B * T; bt++) {
        const floatX *x = logits + bt * Vp;
        double max = x[0], sum = 0;
        for (int i = 1; i < V; i++) max = x[i] > max ? x[i] : max;
        for (int i = 0; i < V; i++) sum += exp(x[i] - max);
        lse[bt] = (float)(max + log(sum));
        losses[bt] = targets[bt] < 0 ? 0 : (float)(max + log(sum) - x[targets[bt]]);
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
        for (int i = 0; i < V; i++) sum += exp((double)x[i] - lse[bt]);
        for (int i = 0; i < V; i++) x[i] = (floatX)((exp((double)x[i] - lse[bt]) / sum - (i == targets[bt])) * factor);
        for (int i = V; i < Vp; i++) x[i] = 0;
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

static void adamw(Context *ctx, float *param, floatX *stored, float *m, float *v, const float *grad,
                  const float *grad_scale, const AdamW *step, int decayed, int64_t N) {
    (void)ctx, (void)stored; /* stored is the same memory as param */
    for (int64_t i = 0; i < N; i++) {
        const double g = (double)grad[i] * (grad_scale ? grad_scale[0] : 1);
        m[i] = (float)((double)step->beta1 * m[i] + step->gain1 * g);
        v[i] = (float)((double)step->beta2 * v[i] + step->gain2 * g * g);
        const double decay = decayed ? (double)step->decay * param[i] : 0;
        param[i] -= (float)(decay + step->rate * (double)m[i] / (sqrt(v[i]) * step->unbias + step->eps));
    }
}

#define ENTRY(name) .name = name,
const Kernels kernels_reference = {.name = "reference",
                                   .supported = supported,
                                   .fp32 = 1,
                                   .bf16 = 1,
                                   .workspace_bytes = workspace_bytes,
                                   CPU_MEMORY,
                                   EACH_KERNEL(ENTRY)};
