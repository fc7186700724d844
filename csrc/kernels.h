/* struct Kernels: what a device must supply. gpt2.c calls these in order and never names a device.
 *
 * Sizes    B batch, T time, C channels, NH heads, hs = C/NH, OC output channels, L layers,
 *          V vocabulary, Vp = V padded to a multiple of 128 (padded rows of wte are zero), N elements.
 * Order    context, outputs, inputs, sizes. Every matrix is row-major; a weight is (OC, C) as in nn.Linear.
 * Gradient Gradients are "d" + name. Parameter gradients accumulate (+=), activation gradients are
 *          written (=), except dresidual, the residual stream's, to which layernorm_backward adds.
 * Results  do not depend on the number of threads. Nothing is allocated: scratch is ctx->workspace.
 * This header is plain C that cffi reads as it is. */
#ifndef KERNELS_H
#define KERNELS_H
#include <stdint.h>

/* The stored element of weights and activations, one per library: float on the CPU; -DFLOATX_BF16 makes it bfloat16.
 * Statistics, losses, gradients of parameters, their masters and moments are always float. */
#ifndef FLOATX_BF16
typedef float floatX;
#elif defined(__cplusplus)
typedef __nv_bfloat16 floatX; /* of cuda_bf16.h, included before */
#else
typedef struct floatX {
    uint16_t bits;
} floatX; /* no arithmetic: only kernels compute */
#endif

/* cffi: begin */
/* How matrix products multiply: bf16 rounds the operands (to nearest, ties to even) and adds up in float. On the CPU what
 * is stored, and all else, is float either way; what compress left is multiplied as it is; and a single row times weights
 * is not rounded (one token, whose time is that of reading them). Where floatX is bfloat16 there is nothing to choose. */
enum { LLMC_FP32, LLMC_BF16, LLMC_INT8 };

typedef struct Context {
    int threads;
    int precision;
    int weights;    /* how matmul_forward, matmul_gelu_forward and encoder_forward find the rows of weight and wte: see
                  * compress */
    int gelu_again; /* gelu_forward will compute again what matmul_gelu_forward has, and to the same bits */
    void *workspace;
    void *device; /* what open made: streams, handles; NULL on the CPU */
} Context;

/* One AdamW step's numbers, the same for every parameter. They lie in the device's memory: a step that is started again
 * finds new ones there. */
typedef struct AdamW {
    float beta1, gain1, beta2, gain2; /* b1, 1 - b1, b2, 1 - b2 */
    float rate, unbias, eps, decay;   /* lr / (1 - b1^t), 1 / sqrt(1 - b2^t), eps, lr times the weight decay */
} AdamW;

typedef struct Kernels {
    const char *name;
    int (*supported)(void);            /* can this machine run them? */
    int fp32, bf16;                    /* are there products in LLMC_FP32, in LLMC_BF16? */
    int host;                          /* may the host look at what alloc gives? */
    int64_t (*memory_available)(void); /* bytes that may be allocated now; -1 if unknown */
    int (*open)(Context *ctx);         /* before all that follows; 0, or a status with its message */
    void (*close)(Context *ctx);
    void *(*alloc)(int64_t bytes); /* 64-byte aligned; NULL if there is no room */
    void (*free)(void *memory, int64_t bytes);
    /* Bytes of scratch that any kernel below may use at these sizes or smaller ones. */
    int64_t (*workspace_bytes)(int B, int T, int C, int NH, int Vp, int threads);
    int (*sync)(Context *ctx); /* wait for the device; 0, or the status of what failed before */
    /* The device does what follows in order; what copy_out fetches is there after sync. A host buffer given to copy_in
     * may be used again at once. */
    /* Calls that come again with the same arguments. replay: 1 if those that were recorded under these four numbers have
     * been started again, so that they need not be made; else 0, and they are recorded until `recorded`. */
    int (*replay)(Context *ctx, const int64_t key[4]);
    void (*recorded)(Context *ctx);
    void (*fill)(Context *ctx, void *dst, int byte, int64_t bytes);
    void (*copy_in)(Context *ctx, void *dst, const void *host, int64_t bytes);
    void (*copy_out)(Context *ctx, void *host, const void *src, int64_t bytes);

    /* out(B,T,C) = wte[tokens] + wpe[pos[b] + t]; tokens (B,T) in [0,V); pos (B), NULL: all sequences start at 0 */
    void (*encoder_forward)(Context *ctx, floatX *out, const int *tokens, const floatX *wte, const floatX *wpe,
                            const int *pos, int B, int T, int C);
    void (*encoder_backward)(Context *ctx, float *dwte, float *dwpe, const floatX *dout, const int *tokens, int B,
                             int T, int C);

    /* out = weight * (inp - mean) * rstd + bias over the last axis, rstd = 1/sqrt(var + 1e-5); inp, out (B,T,C);
     * mean, rstd (B,T); weight, bias (C) */
    void (*layernorm_forward)(Context *ctx, floatX *out, float *mean, float *rstd, const floatX *inp,
                              const floatX *weight, const floatX *bias, int B, int T, int C);
    /* residual = inp1 + inp2, then out = layernorm(residual): one pass over memory */
    void (*residual_layernorm_forward)(Context *ctx, floatX *residual, floatX *out, float *mean, float *rstd,
                                       const floatX *inp1, const floatX *inp2, const floatX *weight, const floatX *bias,
                                       int B, int T, int C);
    void (*layernorm_backward)(Context *ctx, floatX *dresidual, float *dweight, float *dbias, const floatX *dout,
                               const floatX *inp, const floatX *weight, const float *mean, const float *rstd, int B,
                               int T, int C);

    /* out(B,T,OC) = inp(B,T,C) @ weight(OC,C)^T + bias(OC); bias may be NULL */
    void (*matmul_forward)(Context *ctx, floatX *out, const floatX *inp, const floatX *weight, const floatX *bias,
                           int B, int T, int C, int OC);
    /* pre = inp @ weight^T + bias, out = gelu(pre), gelu(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) */
    void (*matmul_gelu_forward)(Context *ctx, floatX *out, floatX *pre, const floatX *inp, const floatX *weight,
                                const floatX *bias, int B, int T, int C, int OC);
    /* out = gelu(pre), the same bits as matmul_gelu_forward's if ctx->gelu_again */
    void (*gelu_forward)(Context *ctx, floatX *out, const floatX *pre, int64_t N);
    /* dinp(B,T,C) = dout(B,T,OC) @ weight(OC,C) */
    void (*matmul_backward_input)(Context *ctx, floatX *dinp, const floatX *dout, const floatX *weight, int B, int T,
                                  int C, int OC);
    /* dpre(B,T,C) = (dout @ weight) * gelu'(pre(B,T,C)) */
    void (*matmul_gelu_backward_input)(Context *ctx, floatX *dpre, const floatX *dout, const floatX *weight,
                                       const floatX *pre, int B, int T, int C, int OC);
    /* dweight(OC,C) += dout^T @ inp, or = unless accumulate; dbias(OC) += sum of dout over B,T; dbias may be NULL */
    void (*matmul_backward_weight)(Context *ctx, float *dweight, float *dbias, const floatX *dout, const floatX *inp,
                                   int accumulate, int B, int T, int C, int OC);

    /* Causal attention. qkv (B,T,3C): query, key, value, each NH heads of hs; out (B,T,C); lse (B,NH,T) = log sum exp
     * of the scores q.k/sqrt(hs). Query i sees the keys j <= i, and j > i - window where window > 0. */
    void (*attention_forward)(Context *ctx, floatX *out, float *lse, const floatX *qkv, int B, int T, int C, int NH,
                              int window);
    void (*attention_backward)(Context *ctx, floatX *dqkv, const floatX *dout, const floatX *out, const float *lse,
                               const floatX *qkv, int B, int T, int C, int NH, int window);
    /* Generation: store the n new rows qkv (B,n,3C) of each sequence b at positions pos[b].. of cache (B,T,3C), then
     * let them attend to all that is cached; out (B,n,C). pos[b] + n <= T. */
    void (*attention_cached)(Context *ctx, floatX *out, floatX *cache, const floatX *qkv, const int *pos, int B, int n,
                             int T, int C, int NH, int window);

    /* losses(B,T) = lse - logit[target], 0 where target is -1; lse (B,T) = log sum exp over the V real logits */
    void (*classifier_forward)(Context *ctx, float *losses, float *lse, const floatX *logits, const int *targets, int B,
                               int T, int V, int Vp);
    /* loss[0] = sum(weights*losses) / sum(weights), loss[1] = 1 / sum(weights), sums over targets != -1 (0 if none) */
    void (*loss_mean)(Context *ctx, float *loss, const float *losses, const int *targets, const float *weights,
                      int64_t N);
    /* in place: logits -> (softmax(logits) - onehot(target)) * weight * scale * loss[1]; 0 in the padding */
    void (*classifier_backward)(Context *ctx, floatX *logits, const float *lse, const int *targets,
                                const float *weights, const float *loss, float scale, int B, int T, int V, int Vp);

    /* For generation: weight(rows,C) becomes, in place and without gaps, rows of C numbers in LLMC_BF16, or in LLMC_INT8
     * rows of a float and C int8, whose products are the numbers (C >= 2). */
    void (*compress)(Context *ctx, floatX *weight, int format, int64_t rows, int C);

    /* norm[0] = sqrt(sum grads^2), norm[1] = min(1, max_norm / (norm[0] + 1e-6)); max_norm <= 0: 1 */
    void (*global_norm)(Context *ctx, float *norm, const float *grads, float max_norm, int64_t N);
    /* x *= factor[0] */
    void (*scale)(Context *ctx, float *x, const float *factor, int64_t N);
    /* AdamW (Loshchilov & Hutter) as in PyTorch, step t counted from 1; the gradient is first multiplied by
     * grad_scale[0] unless NULL:  m = b1 m + (1-b1) g, v = b2 v + (1-b2) g^2,
     *                 param -= lr (weight_decay param + (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps))
     * in the numbers of step[0]; no weight decay unless decayed. stored = param in floatX; the same memory where floatX
     * is float */
    void (*adamw)(Context *ctx, float *param, floatX *stored, float *m, float *v, const float *grad,
                  const float *grad_scale, const AdamW *step, int decayed, int64_t N);
    /* stored = param in floatX, to nearest, ties to even. The last entry: memory, as those at the start */
    void (*store)(Context *ctx, floatX *stored, const float *param, int64_t N);
} Kernels;
/* cffi: end */

/* the layers: what every device fills in by a name of its own */
/* clang-format off */
#define EACH_LAYER(X) \
    X(encoder_forward) X(encoder_backward) \
    X(layernorm_forward) X(residual_layernorm_forward) X(layernorm_backward) \
    X(matmul_forward) X(matmul_gelu_forward) X(gelu_forward) X(matmul_backward_input) X(matmul_gelu_backward_input) \
    X(matmul_backward_weight) \
    X(attention_forward) X(attention_backward) X(attention_cached) \
    X(classifier_forward) X(loss_mean) X(classifier_backward) \
    X(global_norm) X(scale) X(adamw)
/* clang-format on */
#endif
