/* GPT-2: the order of the kernels, once, for every device. No arithmetic and no device code. */
#include <float.h>
#include <stdlib.h>
#include <string.h>
#include "error.h"
#include "gpt2.h"

enum { EMPTY, FORWARD_DONE, LOSS_DONE, BACKWARD_DONE };

/* ---- the tensors as one layer sees them ---- */

typedef struct Params {
#define PARAM(name, ...) floatX *name;
#include "tensors.def"
} Params;

#define F floatX
#define I int
typedef struct Acts {
#define ACT(name, type, dims) type *name;
#include "tensors.def"
} Acts;

/* within a block of parameters, weights or gradients */
static Params params_at(const llmc_model *model, floatX *base, int l) {
    const llmc_tensor *t = model->layout.table;
    return (Params){
#define PARAM(name, ...) base + t[P_##name].offset + l *t[P_##name].stride,
#include "tensors.def"
    };
}

static Acts acts_at(const llmc_model *model, int l) {
    const llmc_tensor *t = model->layout.table;
    return (Acts){
#define ACT(name, type, dims) (type *)(model->acts + t[A_##name].offset + l * t[A_##name].stride),
#include "tensors.def"
    };
}
#undef F
#undef I

/* odd layers of a banded model see the last `window` positions only */
static int window_of(const llmc_model *model, int l) { return l % 2 ? model->config.window : 0; }

/* ---- create and free ---- */

static void place_blocks(llmc_model *model, const llmc_plan *plan) {
    char *at = model->arena;
    model->params = (floatX *)at, at += plan->params;
    if (model->training) {
        model->grads = (floatX *)at, at += plan->grads;
        model->m = (float *)at, at += plan->moments / 2;
        model->v = (float *)at, at += plan->moments / 2;
    }
    model->acts = (floatX *)at, at += plan->acts;
    model->ctx.workspace = at;
}

static int allocate(llmc_model *model) {
    char text[512];
    llmc_plan plan;
    const int threads = model->ctx.threads;
    TRY(llmc_plan_text(&model->config, model->B, model->T, model->training, threads, text, sizeof text));
    TRY(llmc_plan_memory(&model->config, model->B, model->T, model->training, threads, &plan));
    model->arena = model->k->alloc(plan.total);
    CHECK(model->arena, LLMC_ENOMEM, "the system would not give %.0f MB; choose a smaller B, T or model",
          (double)plan.total * 1e-6);
    model->bytes = plan.total;
    place_blocks(model, &plan);
    model->k->fill(&model->ctx, model->arena, 0xff, plan.total); /* NaN: a read before a write shows */
    if (model->training) model->k->fill(&model->ctx, model->grads, 0, plan.grads + plan.moments);
    return model->k->sync(&model->ctx);
}

int llmc_model_create(llmc_model **out, const llmc_config *config, int B, int T, int training, int threads) {
    *out = NULL;
    CHECK(threads >= 0 && threads <= 1024, LLMC_EINVAL, "threads=%d is not in 0..1024; 0 takes every core", threads);
    const Kernels *k = llmc_kernels(NULL);
    if (!k) return LLMC_EDEVICE;
    llmc_model *model = calloc(1, sizeof *model);
    CHECK(model, LLMC_ENOMEM, "no memory for a model's description");
    *model = (llmc_model){.config = *config,
                          .B = B,
                          .T = T,
                          .training = training,
                          .k = k,
                          .ctx.threads = threads ? threads : llmc_default_threads()};
    int rc = layout_make(&model->layout, config, B, T, training);
    if (rc == 0) rc = llmc_config_check(&model->config);
    if (rc == 0) rc = allocate(model);
    if (rc < 0) llmc_model_free(model);
    else *out = model;
    return rc;
}

int llmc_model_set_precision(llmc_model *model, const char *name) {
    const int bf16 = !strcmp(name, "bf16");
    CHECK(bf16 || !strcmp(name, "fp32"), LLMC_EINVAL, "precision '%s' is not one of fp32, bf16", name);
    CHECK(!bf16 || model->k->bf16, LLMC_EDEVICE,
          "%s has no products in bf16 (a CPU with AVX512_BF16 has): leave the precision at fp32", model->k->name);
    model->ctx.precision = bf16 ? LLMC_BF16 : LLMC_FP32;
    return LLMC_OK;
}

int llmc_model_compress(llmc_model *m, const char *format) {
    const int bf16 = !strcmp(format, "bf16"), int8 = !strcmp(format, "int8");
    CHECK(bf16 || int8 || !strcmp(format, "fp32"), LLMC_EINVAL, "weights '%s' are not one of fp32, bf16, int8", format);
    if (!bf16 && !int8) return LLMC_OK;
    CHECK(!m->training, LLMC_EINVAL, "%s weights cannot be trained: create the model with training=False", format);
    CHECK(m->ctx.weights == LLMC_FP32, LLMC_EINVAL, "the weights are compressed already: load them again");
    CHECK(bf16 || m->config.C >= 2, LLMC_EINVAL, "int8 weights need C >= 2");
    m->ctx.weights = bf16 ? LLMC_BF16 : LLMC_INT8;
    for (const llmc_tensor *t = m->layout.table; t < m->layout.table + NUM_PARAM_TENSORS; t++)
        for (int l = 0; t->rank == 2 && t != m->layout.table + P_wpe && l < (t->layers ? t->layers : 1); l++)
            m->k->compress(&m->ctx, m->params + t->offset + l * t->stride, m->ctx.weights, t->shape[0],
                           (int)t->shape[1]);
    return m->k->sync(&m->ctx);
}

const char *llmc_model_precision(const llmc_model *model) {
    return model->ctx.precision == LLMC_BF16 ? "bf16" : "fp32";
}

void llmc_model_free(llmc_model *model) {
    if (!model) return;
    if (model->arena) model->k->free(model->arena, model->bytes);
    free(model);
}

/* ---- forward ---- */

static void layer_forward(const llmc_model *m, int l) {
    const Kernels *k = m->k;
    Context *ctx = (Context *)&m->ctx;
    const int B = m->b, T = m->t, C = m->config.C, NH = m->config.NH, last = l + 1 == m->config.L;
    const Params w = params_at(m, m->params, l), next_w = params_at(m, m->params, last ? 0 : l + 1);
    const Acts a = acts_at(m, l), next = acts_at(m, last ? 0 : l + 1);
    k->matmul_forward(ctx, a.qkv, a.ln1, w.qkvw, w.qkvb, B, T, C, 3 * C);
    k->attention_forward(ctx, a.atty, a.lse, a.qkv, B, T, C, NH, window_of(m, l));
    k->matmul_forward(ctx, a.branch, a.atty, w.attprojw, w.attprojb, B, T, C, C);
    k->residual_layernorm_forward(ctx, a.residual2, a.ln2, a.ln2_mean, a.ln2_rstd, a.residual1, a.branch, w.ln2w,
                                  w.ln2b, B, T, C);
    k->matmul_gelu_forward(ctx, a.fch_gelu, a.fch, a.ln2, w.fcw, w.fcb, B, T, C, 4 * C);
    k->matmul_forward(ctx, a.branch, a.fch_gelu, w.fcprojw, w.fcprojb, B, T, 4 * C, C);
    if (last)
        k->residual_layernorm_forward(ctx, a.residual3, a.lnf, a.lnf_mean, a.lnf_rstd, a.residual2, a.branch, w.lnfw,
                                      w.lnfb, B, T, C);
    else
        k->residual_layernorm_forward(ctx, next.residual1, next.ln1, next.ln1_mean, next.ln1_rstd, a.residual2,
                                      a.branch, next_w.ln1w, next_w.ln1b, B, T, C);
}

static void logits_forward(llmc_model *m) {
    const Kernels *k = m->k;
    const int B = m->b, T = m->t, C = m->config.C;
    const Params w = params_at(m, m->params, 0);
    const Acts a = acts_at(m, 0);
    k->encoder_forward(&m->ctx, a.residual1, a.tokens, w.wte, w.wpe, NULL, B, T, C);
    k->layernorm_forward(&m->ctx, a.ln1, a.ln1_mean, a.ln1_rstd, a.residual1, w.ln1w, w.ln1b, B, T, C);
    for (int l = 0; l < m->config.L; l++) layer_forward(m, l);
    k->matmul_forward(&m->ctx, a.logits, a.lnf, w.wte, NULL, B, T, C, m->config.Vp);
}

static void loss_forward(llmc_model *m) {
    const Kernels *k = m->k;
    const Acts a = acts_at(m, 0);
    k->classifier_forward(&m->ctx, a.losses, a.logits_lse, a.logits, a.targets, m->b, m->t, m->config.V, m->config.Vp);
    k->loss_mean(&m->ctx, a.loss, a.losses, a.targets, a.weights, (int64_t)m->b * m->t);
}

static int check_ids(const char *what, const int *ids, int64_t n, int lowest, int V) {
    for (int64_t i = 0; i < n; i++)
        CHECK(ids[i] >= lowest && ids[i] < V, LLMC_EINVAL,
              "%s[%lld] = %d is not in %d..%d: were these tokens made for another vocabulary?", what, (long long)i,
              ids[i], lowest, V - 1);
    return LLMC_OK;
}

static int check_shape(const llmc_model *m, int b, int t) {
    CHECK(b >= 1 && b <= m->B && t >= 1 && t <= m->T, LLMC_EINVAL,
          "a batch of %d x %d does not fit a model made for B=%d T=%d", b, t, m->B, m->T);
    return LLMC_OK;
}

/* weights must be finite and not negative, or the mean means nothing */
static int check_weights(const float *weights, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        CHECK(weights[i] >= 0 && weights[i] < 3e38f, LLMC_EINVAL, "weights[%lld] = %g: a loss weight is finite, >= 0",
              (long long)i, weights[i]);
    return LLMC_OK;
}

static void copy_weights(llmc_model *m, const float *weights, int64_t n) {
    float *to = acts_at(m, 0).weights;
    if (weights) {
        m->k->copy_in(&m->ctx, to, weights, n * 4);
        return;
    }
    float ones[256];
    for (int i = 0; i < 256; i++) ones[i] = 1;
    for (int64_t i = 0; i < n; i += 256) m->k->copy_in(&m->ctx, to + i, ones, (n - i < 256 ? n - i : 256) * 4);
}

int llmc_model_forward(llmc_model *m, const int *tokens, const int *targets, const float *weights, int b, int t,
                       float *loss) {
    const int64_t n = (int64_t)b * t;
    const Acts a = acts_at(m, 0);
    TRY(check_shape(m, b, t));
    TRY(check_ids("inputs", tokens, n, 0, m->config.V));
    if (targets) TRY(check_ids("targets", targets, n, -1, m->config.V));
    if (weights) TRY(check_weights(weights, n));
    m->b = b, m->t = t, m->state = FORWARD_DONE;
    m->k->copy_in(&m->ctx, a.tokens, tokens, n * 4);
    logits_forward(m);
    if (targets) {
        m->k->copy_in(&m->ctx, a.targets, targets, n * 4);
        copy_weights(m, weights, n);
        loss_forward(m);
        m->state = LOSS_DONE;
    }
    if (targets && loss) m->k->copy_out(&m->ctx, loss, a.loss, 4);
    return m->k->sync(&m->ctx);
}

/* ---- backward: the forward pass from its end to its start ---- */

static void layer_backward(const llmc_model *m, int l) {
    const Kernels *k = m->k;
    Context *ctx = (Context *)&m->ctx;
    const int B = m->b, T = m->t, C = m->config.C, NH = m->config.NH;
    const Params w = params_at(m, m->params, l), dw = params_at(m, m->grads, l);
    const Acts a = acts_at(m, l);
    k->matmul_backward_weight(ctx, dw.fcprojw, dw.fcprojb, a.dresidual, a.fch_gelu, B, T, 4 * C, C);
    k->matmul_gelu_backward_input(ctx, a.dfch, a.dresidual, w.fcprojw, a.fch, B, T, 4 * C, C);
    k->matmul_backward_weight(ctx, dw.fcw, dw.fcb, a.dfch, a.ln2, B, T, C, 4 * C);
    k->matmul_backward_input(ctx, a.branch, a.dfch, w.fcw, B, T, C, 4 * C);
    k->layernorm_backward(ctx, a.dresidual, dw.ln2w, dw.ln2b, a.branch, a.residual2, w.ln2w, a.ln2_mean, a.ln2_rstd, B,
                          T, C);
    k->matmul_backward_weight(ctx, dw.attprojw, dw.attprojb, a.dresidual, a.atty, B, T, C, C);
    k->matmul_backward_input(ctx, a.branch, a.dresidual, w.attprojw, B, T, C, C);
    k->attention_backward(ctx, a.dqkv, a.branch, a.atty, a.lse, a.qkv, B, T, C, NH, window_of(m, l));
    k->matmul_backward_weight(ctx, dw.qkvw, dw.qkvb, a.dqkv, a.ln1, B, T, C, 3 * C);
    k->matmul_backward_input(ctx, a.branch, a.dqkv, w.qkvw, B, T, C, 3 * C);
    k->layernorm_backward(ctx, a.dresidual, dw.ln1w, dw.ln1b, a.branch, a.residual1, w.ln1w, a.ln1_mean, a.ln1_rstd, B,
                          T, C);
}

static int need_training(const llmc_model *m) {
    CHECK(m->training, LLMC_EINVAL, "this model was made without gradients: create it with training=True");
    return LLMC_OK;
}

int llmc_model_backward(llmc_model *m, float scale) {
    const Kernels *k = m->k;
    const int B = m->b, T = m->t, C = m->config.C, V = m->config.V, Vp = m->config.Vp;
    TRY(need_training(m));
    CHECK(m->state == LOSS_DONE, LLMC_EINVAL, "backward needs a forward pass with targets just before it");
    const Params w = params_at(m, m->params, 0), dw = params_at(m, m->grads, 0);
    const Acts a = acts_at(m, 0);
    k->classifier_backward(&m->ctx, a.logits, a.logits_lse, a.targets, a.weights, a.loss, scale, B, T, V, Vp);
    k->matmul_backward_weight(&m->ctx, dw.wte, NULL, a.logits, a.lnf, B, T, C, Vp);
    k->matmul_backward_input(&m->ctx, a.branch, a.logits, w.wte, B, T, C, Vp);
    k->fill(&m->ctx, a.dresidual, 0, (int64_t)B * T * C * (int64_t)sizeof(floatX));
    k->layernorm_backward(&m->ctx, a.dresidual, dw.lnfw, dw.lnfb, a.branch, a.residual3, w.lnfw, a.lnf_mean, a.lnf_rstd,
                          B, T, C);
    for (int l = m->config.L - 1; l >= 0; l--) layer_backward(m, l);
    k->encoder_backward(&m->ctx, dw.wte, dw.wpe, a.dresidual, a.tokens, B, T, C);
    m->state = BACKWARD_DONE;
    return k->sync(&m->ctx);
}

/* ---- update ---- */

int llmc_model_zero_grad(llmc_model *m) {
    TRY(need_training(m));
    m->k->fill(&m->ctx, m->grads, 0, m->layout.num_params * (int64_t)sizeof(floatX));
    return m->k->sync(&m->ctx);
}

int llmc_model_reset_moments(llmc_model *m) {
    const int64_t bytes = m->layout.num_params * (int64_t)sizeof(float);
    TRY(need_training(m));
    m->step = 0;
    m->k->fill(&m->ctx, m->m, 0, bytes);
    m->k->fill(&m->ctx, m->v, 0, bytes);
    return m->k->sync(&m->ctx);
}

int llmc_model_clip_grad_norm(llmc_model *m, float max_norm, float *norm) {
    float *stats = acts_at(m, 0).norm;
    float before;
    TRY(need_training(m));
    CHECK(max_norm > 0, LLMC_EINVAL, "max_norm=%g is not > 0", (double)max_norm);
    m->k->global_norm(&m->ctx, stats, m->grads, max_norm, m->layout.num_params);
    m->k->copy_out(&m->ctx, &before, stats, 4);
    TRY(m->k->sync(&m->ctx));
    if (norm) *norm = before;
    CHECK(before <= FLT_MAX, LLMC_ENUMERIC, "the gradient norm is %g: nothing was clipped", (double)before);
    m->k->scale(&m->ctx, m->grads, stats + 1, m->layout.num_params);
    return m->k->sync(&m->ctx);
}

static int check_adamw(const llmc_adamw *h) {
    CHECK(h->lr >= 0 && h->lr < 1e30, LLMC_EINVAL, "lr=%g is not finite and >= 0", h->lr);
    CHECK(h->beta1 >= 0 && h->beta1 < 1 && h->beta2 >= 0 && h->beta2 < 1, LLMC_EINVAL,
          "betas=(%g, %g) are not in [0, 1)", h->beta1, h->beta2);
    CHECK(h->eps > 0 && h->eps < 1e30, LLMC_EINVAL, "eps=%g is not finite and > 0", h->eps);
    CHECK(h->weight_decay >= 0 && h->weight_decay < 1e30, LLMC_EINVAL, "weight_decay=%g is not finite and >= 0",
          h->weight_decay);
    return LLMC_OK;
}

int llmc_model_update(llmc_model *m, const llmc_adamw *h, float max_norm, float *norm) {
    float *stats = acts_at(m, 0).norm;
    TRY(need_training(m));
    TRY(check_adamw(h));
    const int measure = norm || max_norm > 0;
    if (measure) m->k->global_norm(&m->ctx, stats, m->grads, max_norm, m->layout.num_params);
    if (norm) {
        m->k->copy_out(&m->ctx, norm, stats, 4);
        TRY(m->k->sync(&m->ctx));
        CHECK(*norm <= FLT_MAX, LLMC_ENUMERIC, "the gradient norm is %g: nothing was updated", (double)*norm);
    }
    m->step++;
    for (const llmc_tensor *p = m->layout.table; p < m->layout.table + NUM_PARAM_TENSORS; p++) {
        const int64_t n = p->size * (p->layers ? p->layers : 1), at = p->offset;
        m->k->adamw(&m->ctx, m->params + at, m->m + at, m->v + at, m->grads + at, measure ? stats + 1 : NULL, h->lr,
                    h->beta1, h->beta2, h->eps, p->decay ? h->weight_decay : 0, m->step, n);
    }
    return m->k->sync(&m->ctx);
}

/* ---- generation: the same layers over n new rows of each sequence, keys and values of the old ones cached ---- */

static void layer_extend(const llmc_model *m, int l, int b, int n) {
    const Kernels *k = m->k;
    Context *ctx = (Context *)&m->ctx;
    const int C = m->config.C, last = l + 1 == m->config.L;
    const Params w = params_at(m, m->params, l), next = params_at(m, m->params, last ? 0 : l + 1);
    const Acts a = acts_at(m, 0); /* nothing but the cache is kept per layer */
    k->matmul_forward(ctx, a.dqkv, a.ln1, w.qkvw, w.qkvb, b, n, C, 3 * C);
    k->attention_cached(ctx, a.atty, acts_at(m, l).qkv, a.dqkv, a.positions, b, n, m->T, C, m->config.NH,
                        window_of(m, l));
    k->matmul_forward(ctx, a.branch, a.atty, w.attprojw, w.attprojb, b, n, C, C);
    k->residual_layernorm_forward(ctx, a.residual2, a.ln2, a.ln2_mean, a.ln2_rstd, a.residual1, a.branch, w.ln2w,
                                  w.ln2b, b, n, C);
    k->matmul_gelu_forward(ctx, a.fch_gelu, a.fch, a.ln2, w.fcw, w.fcb, b, n, C, 4 * C);
    k->matmul_forward(ctx, a.branch, a.fch_gelu, w.fcprojw, w.fcprojb, b, n, 4 * C, C);
    k->residual_layernorm_forward(ctx, a.residual1, a.ln1, a.ln1_mean, a.ln1_rstd, a.residual2, a.branch,
                                  last ? w.lnfw : next.ln1w, last ? w.lnfb : next.ln1b, b, n, C);
}

static int check_extend(const llmc_model *m, const int *tokens, const int *pos, int b, int n) {
    TRY(check_shape(m, b, n));
    TRY(check_ids("tokens", tokens, (int64_t)b * n, 0, m->config.V));
    for (int i = 0; i < b; i++)
        CHECK(pos[i] >= 0 && pos[i] <= m->T - n, LLMC_EINVAL, "sequence %d holds %d tokens; %d more exceed T=%d", i,
              pos[i], n, m->T);
    return LLMC_OK;
}

int llmc_model_extend(llmc_model *m, const int *tokens, const int *pos, int b, int n, float *last_logits) {
    const Kernels *k = m->k;
    const int C = m->config.C, V = m->config.V, Vp = m->config.Vp;
    const Params w = params_at(m, m->params, 0);
    const Acts a = acts_at(m, 0);
    TRY(check_extend(m, tokens, pos, b, n));
    m->state = EMPTY;
    k->copy_in(&m->ctx, a.tokens, tokens, (int64_t)b * n * 4);
    k->copy_in(&m->ctx, a.positions, pos, (int64_t)b * 4);
    k->encoder_forward(&m->ctx, a.residual1, a.tokens, w.wte, w.wpe, a.positions, b, n, C);
    k->layernorm_forward(&m->ctx, a.ln1, a.ln1_mean, a.ln1_rstd, a.residual1, w.ln1w, w.ln1b, b, n, C);
    for (int l = 0; l < m->config.L; l++) layer_extend(m, l, b, n);
    if (n == 1) k->matmul_forward(&m->ctx, a.logits, a.ln1, w.wte, NULL, b, 1, C, Vp);
    for (int i = 0; n > 1 && i < b; i++) /* only the last new row of each sequence is asked for */
        k->matmul_forward(&m->ctx, a.logits + (int64_t)i * Vp, a.ln1 + ((int64_t)i * n + n - 1) * C, w.wte, NULL, 1, 1,
                          C, Vp);
    for (int i = 0; last_logits && i < b; i++)
        k->copy_out(&m->ctx, last_logits + (int64_t)i * V, a.logits + (int64_t)i * Vp, (int64_t)V * 4);
    return k->sync(&m->ctx);
}

/* ---- looking inside ---- */

const llmc_config *llmc_model_config(const llmc_model *m) { return &m->config; }
const char *llmc_model_isa(const llmc_model *m) { return m->k->name; }
int llmc_model_shape(const llmc_model *m, int *b, int *t) { return *b = m->b, *t = m->t, LLMC_OK; }
int64_t llmc_model_step(const llmc_model *m) { return m->step; }
const llmc_tensor *llmc_model_tensor(const llmc_model *m, int i) {
    return i >= 0 && i < NUM_TENSORS ? &m->layout.table[i] : NULL;
}
void *llmc_model_block(llmc_model *m, int block) {
    void *const blocks[] = {m->params, m->grads, m->m, m->v, m->acts};
    if (block == LLMC_PARAMS && m->ctx.weights != LLMC_FP32) return NULL; /* not floats any more */
    return block >= 0 && block < 5 ? blocks[block] : NULL;
}
