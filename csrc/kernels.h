/* struct Kernels: the functions that a device must supply. csrc/model/ calls them in order and never names a device.
 *
 * Sizes    B batch, T time, C channels, NH heads, hs = C/NH, OC output channels, L layers,
 *          V vocabulary, Vp = V padded to a multiple of 128 (padded rows of wte are zero), N elements.
 * Order    context, outputs, inputs, sizes. Every matrix is row-major; a weight is (OC, C) as in nn.Linear.
 * Gradient Gradients are "d" + name. Parameter gradients accumulate (+=), activation gradients are
 *          written (=), except dresidual, the residual stream's, to which layernorm_backward adds.
 * Results  do not depend on the number of threads. Scratch memory is ctx->workspace; no kernel allocates, but one that
 *          measures what is fastest for a shape (cuda/cublaslt_choose.cu).
 * This header is plain C, which cffi reads as it is. */
#ifndef KERNELS_H
#define KERNELS_H
#include <stdint.h>

/* The element in which weights and activations are stored: float, or bfloat16. A file of kernels is compiled for one of them;
 * all else only hands pointers to it around. Statistics, losses, gradients of parameters, their masters and moments are
 * always float; but see adamw for masters in two halves. */
#if defined(FLOATX_FP32)
typedef float floatX;
#elif !defined(FLOATX_BF16)
typedef struct floatX floatX;
#elif defined(__cplusplus)
typedef __nv_bfloat16 floatX; /* from cuda_bf16.h, which is included before */
#else
typedef struct floatX {
    uint16_t bits;
} floatX;
#endif

/* cffi: begin */
/* LLMC_FP32 and LLMC_BF16 are elements, and the precision that a model computes in: in bf16 the operands of matrix products
 * are bf16, and their products are added up in float. LLMC_INT8 is a format of weights; see compress. LLMC_AUTO stands for the
 * first element that there are kernels for, fp32 before bf16. */
enum { LLMC_AUTO, LLMC_FP32, LLMC_BF16, LLMC_INT8 };

typedef struct Context {
    int threads;
    int weight_format; /* the format of weight and wte in matmul_forward, matmul_gelu_forward and encoder_forward: see compress */
    int gelu_again; /* gelu_forward will repeat what matmul_gelu_forward computed, and must give the same bits */
    int split;      /* the masters are split: param, in adamw and compress, is the lower halves of floats. See adamw */
    void *workspace;
    void *device; /* streams and handles that open made; NULL on the CPU */
} Context;

/* The numbers of one AdamW step, the same for every parameter. They lie in the device's memory, so that a recorded step
 * which is started again finds new ones there. */
typedef struct AdamW {
    float beta1, gain1, beta2, gain2; /* b1, 1 - b1, b2, 1 - b2 */
    float rate, unbias, eps, decay;   /* lr / (1 - b1^t), 1 / sqrt(1 - b2^t), eps, lr times the weight decay */
} AdamW;

/* Dropout (Srivastava et al. 2014) of a matrix: each element becomes 0 with probability p, or is multiplied by `scale`.
 * Nothing is stored: an element's random number follows from its row and column, so that every device, every order of work
 * and every repetition drops the same elements. It is computed by Philox4x32-7 (Salmon et al., "Parallel random numbers: as
 * easy as 1, 2, 3", SC 2011, csrc/base/philox.h), which makes four words of 32 bits from a counter and a key:
 *
 *     word[0..3] = Philox4x32-7(counter (column / 8, row modulo 2^32, step, place), key)
 *     number     = the low (column even) or high (odd) 16 bits of word[column % 8 / 2]
 *     factor     = number < threshold ? 0 : scale
 *
 * The numbers lie in the device's memory, as those of AdamW do. */
typedef struct Dropout {
    uint32_t key[2]; /* the low and the high half of the seed */
    uint32_t step;   /* AdamW steps taken, modulo 2^32 */
    uint32_t
        place; /* micro-step * 4096 + layer * 4 + kind, modulo 2^32; from LLMC_DROP_LORA on 2^31 more, and kind - 4 */
    uint32_t threshold; /* 65536 p to the nearest, 1..65535 */
    float scale;        /* 65536 / (65536 - threshold), which is 1 / (1 - p) for this p */
} Dropout;
/* The kinds of a model's dropouts, with the rows and columns of their matrices: on the sum of the embeddings (B T, C), layer 0; on
 * attention's weights (B NH T, T), where the rows are queries and the columns keys; and on each branch before it is added to
 * the residual stream (B T, C), after attention and after the MLP. The last four are on what LoRA's A reads (B T, its columns), in
 * the order of the adapters in tensors.def. */
enum { LLMC_DROP_EMBEDDING, LLMC_DROP_ATTENTION, LLMC_DROP_ATTPROJ, LLMC_DROP_FCPROJ, LLMC_DROP_LORA };

typedef struct Kernels {
    const char *name;
    int (*supported)(void);            /* true if this machine can run them */
    int element;                       /* LLMC_FP32 or LLMC_BF16 */
    int host;                          /* true if the host can read and write memory from alloc */
    int splits;                        /* true if masters may be split, which only bf16 in the host's memory can be */
    int64_t (*memory_available)(void); /* bytes that may be allocated now; -1 if unknown */
    int (*open)(Context *ctx);         /* comes before all that follows; 0, or a status with its message */
    void (*close)(Context *ctx);
    void *(*alloc)(int64_t bytes); /* 64-byte aligned; NULL if there is not enough */
    void (*free)(void *memory, int64_t bytes);
    /* The bytes of scratch memory that any kernel below may use at these sizes or smaller ones. */
    int64_t (*workspace_bytes)(int B, int T, int C, int NH, int Vp, int threads);
    int (*sync)(Context *ctx); /* wait for the device; 0, or the status of what failed before */
    /* A device may record calls that come again with the same arguments. replay starts the calls that were recorded under
     * these four numbers and returns 1; if there are none it returns 0, and records all calls until `recorded`. */
    int (*replay)(Context *ctx, const int64_t key[4]);
    void (*recorded)(Context *ctx);
    /* The calls from here on run in the order in which they are made. The data of copy_out are valid after sync; the host's
     * buffer of copy_in may be used again at once. */
    void (*fill)(Context *ctx, void *dst, int byte, int64_t bytes);
    void (*copy_in)(Context *ctx, void *dst, const void *host, int64_t bytes);
    void (*copy_out)(Context *ctx, void *host, const void *src, int64_t bytes);

    /* Documents that share a window: offsets (B,T) count the rows of a row's own document that stand before it. So they are 0 at
     * the first row of a window and of each document, else one more than in the row before. NULL: a window is one document. */

    /* out(B,T,C) = wte[tokens] + wpe[pos[b] + t], or with offsets wpe[offsets[b][t]]; tokens (B,T) in [0,V); pos (B), NULL:
     * all sequences start at 0; dwte or dwpe NULL: it is not computed */
    void (*encoder_forward)(Context *ctx, floatX *out, const int *tokens, const floatX *wte, const floatX *wpe,
                            const int *pos, const int *offsets, int B, int T, int C);
    void (*encoder_backward)(Context *ctx, float *dwte, float *dwpe, const floatX *dout, const int *tokens,
                             const int *offsets, int B, int T, int C);

    /* out = weight * (inp - mean) * rstd + bias over the last axis, rstd = 1/sqrt(var + 1e-5); inp, out (B,T,C);
     * mean, rstd (B,T); weight, bias (C); dweight or dbias NULL: it is not computed */
    void (*layernorm_forward)(Context *ctx, floatX *out, float *mean, float *rstd, const floatX *inp,
                              const floatX *weight, const floatX *bias, int B, int T, int C);
    /* residual = inp1 + inp2 factor, then out = layernorm(residual): one pass over memory; the factors are dropout's, 1 if it is
     * NULL */
    void (*residual_layernorm_forward)(Context *ctx, floatX *residual, floatX *out, float *mean, float *rstd,
                                       const floatX *inp1, const floatX *inp2, const floatX *weight, const floatX *bias,
                                       const Dropout *dropout, int B, int T, int C);
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
    /* dweight(OC,C) += dout^T @ inp, or = unless accumulate; dbias(OC) += sum of dout over B,T; either may be NULL */
    void (*matmul_backward_weight)(Context *ctx, float *dweight, float *dbias, const floatX *dout, const floatX *inp,
                                   int accumulate, int B, int T, int C, int OC);

    /* out(B,T,C) = inp factor, for dropout's factors; out may be inp. Backward, dinp = dout factor. */
    void (*dropout)(Context *ctx, floatX *out, const floatX *inp, const Dropout *dropout, int B, int T, int C);

    /* A matrix with LoRA's adapters A(r,C) and Bw(OC,r), r <= C and r <= 256: hidden(B,T,r) = scale * (inp(B,T,C) factor) @ A^T
     * with dropout's factors, 1 if it is NULL; inp factor is rounded to floatX, as by dropout. out(B,T,OC) = inp @ weight^T +
     * bias + hidden @ Bw^T, and unless gelu(B,T,OC) is NULL it is what gelu_forward makes of out */
    void (*lora_forward)(Context *ctx, floatX *out, floatX *gelu, floatX *hidden, const floatX *inp,
                         const floatX *weight, const floatX *bias, const floatX *A, const floatX *Bw,
                         const Dropout *dropout, float scale, int B, int T, int C, int OC, int r);
    /* dhidden(B,T,r) = scale * dout(B,T,OC) @ Bw */
    void (*lora_backward_hidden)(Context *ctx, floatX *dhidden, const floatX *dout, const floatX *Bw, float scale,
                                 int B, int T, int OC, int r);
    /* dinp(B,T,C) = dout(B,T,OC) @ weight + (dhidden @ A) factor, times gelu'(pre(B,T,C)) unless pre is NULL */
    void (*lora_backward_input)(Context *ctx, floatX *dinp, const floatX *dout, const floatX *weight,
                                const floatX *dhidden, const floatX *A, const floatX *pre, const Dropout *dropout,
                                int B, int T, int C, int OC, int r);

    /* Causal attention. qkv (B,T,3C): query, key, value, each NH heads of hs; out (B,T,C); lse (B,NH,T) = log sum exp
     * of the scores q.k/sqrt(hs). Query i sees the keys j <= i, j > i - window where window > 0, and j >= i - offsets[i], those of
     * its own document. out = (weights factor) v, where the weights are softmax(scores) and the factors dropout's, 1 if it is
     * NULL; lse knows nothing of them. */
    void (*attention_forward)(Context *ctx, floatX *out, float *lse, const floatX *qkv, const int *offsets,
                              const Dropout *dropout, int B, int T, int C, int NH, int window);
    void (*attention_backward)(Context *ctx, floatX *dqkv, const floatX *dout, const floatX *out, const float *lse,
                               const floatX *qkv, const int *offsets, const Dropout *dropout, int B, int T, int C,
                               int NH, int window);
    /* Generation: store the n new rows qkv (B,n,3C) of each sequence b, those of its positions pos[b].., in cache (B,R,3C), which
     * holds position p in row p % R; then let them attend to all that is cached; out (B,n,C). pos[b] + n <= T. R is T, or
     * 0 < window <= R < T: then only the last R positions stay, and whole (B,T,3C) is scratch memory. */
    void (*attention_cached)(Context *ctx, floatX *out, floatX *cache, floatX *whole, const floatX *qkv, const int *pos,
                             int B, int n, int R, int T, int C, int NH, int window);

    /* losses(B,T) = lse - logit[target], 0 where target is -1; lse (B,T) = log sum exp over the V real logits */
    void (*classifier_forward)(Context *ctx, float *losses, float *lse, const floatX *logits, const int *targets, int B,
                               int T, int V, int Vp);
    /* loss[0] = sum(weight * loss) / sum(weight), loss[1] = 1 / sum(weight), over targets that are not -1; both
     * are 0 if no weight is left */
    void (*loss_mean)(Context *ctx, float *loss, const float *losses, const int *targets, const float *loss_weights,
                      int64_t N);
    /* in place: logits -> (softmax(logits) - onehot(target)) * loss_weight * scale * loss[1]; 0 in the padding */
    void (*classifier_backward)(Context *ctx, floatX *logits, const float *lse, const int *targets,
                                const float *loss_weights, const float *loss, float scale, int B, int T, int V, int Vp);

    /* For generation: stored = param(rows,C) in a format, without gaps. LLMC_BF16: C numbers in bf16 a row. LLMC_INT8: a float
     * and C int8 a row, and each number is the product of the float and an int8. The two may be the same memory, and a row
     * must not become longer. */
    void (*compress)(Context *ctx, floatX *stored, const void *param, int format, int64_t rows, int C);

    /* norm[0] = sqrt(sum grads^2), norm[1] = min(1, max_norm / (norm[0] + 1e-6)); max_norm <= 0: 1 */
    void (*global_norm)(Context *ctx, float *norm, const float *grads, float max_norm, int64_t N);
    /* x *= factor[0] */
    void (*scale)(Context *ctx, float *x, const float *factor, int64_t N);
    /* AdamW (Loshchilov & Hutter) as in PyTorch, step t counted from 1; the gradient is first multiplied by
     * grad_scale[0] unless NULL:  m = b1 m + (1-b1) g, v = b2 v + (1-b2) g^2,
     *                 param -= lr (weight_decay param + (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps))
     * with the numbers in step[0]; without weight decay unless decayed. Then stored = param in floatX; if floatX is float
     * the two are the same memory.
     * Masters that are split (ctx->split) take half the memory: param (N) is then uint16, and bf16_split and bf16_join of
     * csrc/base/bf16.h make the upper halves, `stored`, and these of floats, and floats of both. */
    void (*adamw)(Context *ctx, void *param, floatX *stored, float *m, float *v, const float *grad,
                  const float *grad_scale, const AdamW *step, int decayed, int64_t N);
    /* stored = param in floatX, to nearest, ties to even */
    void (*store)(Context *ctx, floatX *stored, const float *param, int64_t N);
} Kernels;
/* cffi: end */

/* The kernels of the layers, for each of which a device has a function of this name. */
/* clang-format off */
#define EACH_LAYER(X) \
    X(encoder_forward) X(encoder_backward) \
    X(layernorm_forward) X(residual_layernorm_forward) X(layernorm_backward) \
    X(matmul_forward) X(matmul_gelu_forward) X(gelu_forward) X(matmul_backward_input) X(matmul_gelu_backward_input) \
    X(matmul_backward_weight) X(lora_forward) X(lora_backward_hidden) X(lora_backward_input) \
    X(dropout) X(attention_forward) X(attention_backward) X(attention_cached) \
    X(classifier_forward) X(loss_mean) X(classifier_backward) \
    X(global_norm) X(scale) X(adamw)
/* clang-format on */
#endif
