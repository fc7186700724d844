/* GPT-2: the order of the kernels, once, for every device. No arithmetic and no device code. */
#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "model/gpt2.h"
#include "base/pulse.h"

/* ---- create and free ---- */

static void place_blocks(llmc_model *model, const llmc_plan *plan) {
    char *at = model->arena;
    model->params = (float *)at, at += plan->params;
    model->stored = (floatX *)model->params;
    if (plan->stored) model->stored = (floatX *)at, at += plan->stored;
    if (model->room.training) {
        model->grads = (float *)at, at += plan->grads;
        model->m = (float *)at, at += plan->moments / 2;
        model->v = (float *)at, at += plan->moments / 2;
    }
    model->acts = (float *)at, at += plan->acts;
    model->ctx.workspace = at;
}

/* from what the forward pass has left; where a product is run again it is as good as the first time */
static int computes_gelu_again(const llmc_model *m) {
    const llmc_tensor *t = m->layout.table;
    return m->room.training && !t[A_fch_gelu].kept && t[A_qkv].kept;
}

static int allocate(llmc_model *model) {
    char text[512];
    llmc_plan plan;
    TRY(model->k->open(&model->ctx));
    TRY(llmc_plan_text(&model->config, &model->room, model->ctx.threads, text, sizeof text));
    TRY(llmc_plan_memory(&model->config, &model->room, model->ctx.threads, &plan));
    model->arena = model->k->alloc(plan.total);
    CHECK(model->arena, LLMC_ENOMEM, "the system would not give %.0f MB; choose a smaller B, T or model",
          (double)plan.total * 1e-6);
    model->bytes = plan.total;
    place_blocks(model, &plan);
    model->ctx.gelu_again = computes_gelu_again(model);
    model->k->fill(&model->ctx, model->arena, 0xff, plan.total); /* NaN: a read before a write shows */
    if (model->room.training) model->k->fill(&model->ctx, model->grads, 0, plan.grads + plan.moments);
    return model->k->sync(&model->ctx);
}

int llmc_model_create(llmc_model **out, const llmc_config *config, const llmc_room *room, int threads) {
    *out = NULL;
    CHECK(threads >= 0 && threads <= 1024, LLMC_EINVAL, "threads=%d is not in 0..1024; 0 takes every core", threads);
    const Kernels *k = llmc_kernels(NULL);
    if (!k) return LLMC_EDEVICE;
    llmc_model *model = calloc(1, sizeof *model);
    CHECK(model, LLMC_ENOMEM, "no memory for a model's description");
    *model = (llmc_model){
        .config = *config, .room = *room, .k = k, .ctx.threads = threads ? threads : llmc_default_threads()};
    int rc = layout_make(&model->layout, config, room);
    if (rc == 0) rc = llmc_config_check(&model->config);
    if (rc == 0) rc = allocate(model);
    if (rc < 0) llmc_model_free(model);
    else *out = model;
    return rc;
}

int gpt2_precision(const Kernels *k, const char *name) {
    const int any = !strcmp(name, "auto"), bf16 = any ? !k->fp32 : !strcmp(name, "bf16");
    CHECK(any || bf16 || !strcmp(name, "fp32"), LLMC_EINVAL, "precision '%s' is not one of auto, fp32, bf16", name);
    CHECK(!bf16 || k->bf16, LLMC_EDEVICE,
          "%s has no products in bf16 (a CPU with AVX512_BF16 has): leave the precision at fp32", k->name);
    CHECK(bf16 || k->fp32, LLMC_EDEVICE, "%s was built for bf16: its build for fp32 is another library", k->name);
    return bf16 ? LLMC_BF16 : LLMC_FP32;
}

int llmc_model_set_precision(llmc_model *model, const char *name) {
    const int precision = gpt2_precision(model->k, name);
    TRY(precision);
    model->ctx.precision = precision;
    return LLMC_OK;
}

/* of parameters: those of matrix products */
static int is_matrix(const llmc_model *m, const llmc_tensor *t) { return t->rank == 2 && t != m->layout.table + P_wpe; }

int llmc_model_compress(llmc_model *m, const char *format) {
    const int bf16 = !strcmp(format, "bf16"), int8 = !strcmp(format, "int8");
    CHECK(bf16 || int8 || !strcmp(format, "fp32"), LLMC_EINVAL, "weights '%s' are not one of fp32, bf16, int8", format);
    if (!bf16 && !int8) return LLMC_OK;
    CHECK(m->k->compress, LLMC_EDEVICE, "%s keeps weights in its own precision: leave the weights at fp32", m->k->name);
    CHECK(!m->room.training, LLMC_EINVAL, "%s weights cannot be trained: create the model with training=False", format);
    CHECK(m->ctx.weights == LLMC_FP32, LLMC_EINVAL, "the weights are compressed already: load them again");
    CHECK(bf16 || m->config.C >= 2, LLMC_EINVAL, "int8 weights need C >= 2");
    m->ctx.weights = bf16 ? LLMC_BF16 : LLMC_INT8;
    for (const llmc_tensor *t = m->layout.table; t < m->layout.table + NUM_PARAM_TENSORS; t++)
        for (int l = 0; is_matrix(m, t) && l < (t->layers ? t->layers : 1); l++)
            m->k->compress(&m->ctx, m->stored + t->offset + l * t->stride, m->ctx.weights, t->shape[0],
                           (int)t->shape[1]);
    return m->k->sync(&m->ctx);
}

void llmc_model_free(llmc_model *model) {
    if (!model) return;
    if (model->arena) model->k->free(model->arena, model->bytes);
    model->k->close(&model->ctx);
    free(model);
}

/* ---- the layers forward ---- */

/* from ln1 to what the MLP's second product takes */
static void layer_inside(const llmc_model *m, int l) {
    const Kernels *k = m->k;
    Context *ctx = (Context *)&m->ctx;
    const int B = m->b, T = m->t, C = m->config.C, NH = m->config.NH;
    const Params w = params_at(m, l);
    const Acts a = acts_at(m, l);
    k->matmul_forward(ctx, a.qkv, a.ln1, w.qkvw, w.qkvb, B, T, C, 3 * C);
    k->attention_forward(ctx, a.atty, a.lse, a.qkv, B, T, C, NH, window_of(m, l));
    k->matmul_forward(ctx, a.branch, a.atty, w.attprojw, w.attprojb, B, T, C, C);
    k->residual_layernorm_forward(ctx, a.residual2, a.ln2, a.ln2_mean, a.ln2_rstd, a.residual1, a.branch, w.ln2w,
                                  w.ln2b, B, T, C);
    k->matmul_gelu_forward(ctx, a.fch_gelu, a.fch, a.ln2, w.fcw, w.fcb, B, T, C, 4 * C);
}

static void layer_forward(const llmc_model *m, int l) {
    const Kernels *k = m->k;
    Context *ctx = (Context *)&m->ctx;
    const int B = m->b, T = m->t, C = m->config.C, last = l + 1 == m->config.L;
    const Params w = params_at(m, l), next_w = params_at(m, last ? 0 : l + 1);
    const Acts a = acts_at(m, l), next = acts_at(m, last ? 0 : l + 1);
    layer_inside(m, l);
    k->matmul_forward(ctx, a.branch, a.fch_gelu, w.fcprojw, w.fcprojb, B, T, 4 * C, C);
    if (last)
        k->residual_layernorm_forward(ctx, a.residual3, a.lnf, a.lnf_mean, a.lnf_rstd, a.residual2, a.branch, w.lnfw,
                                      w.lnfb, B, T, C);
    else
        k->residual_layernorm_forward(ctx, next.residual1, next.ln1, next.ln1_mean, next.ln1_rstd, a.residual2,
                                      a.branch, next_w.ln1w, next_w.ln1b, B, T, C);
}

int gpt2_tell_layer(const llmc_model *m, const char *way, int l, int64_t rows) {
    if ((double)rows * m->config.C * m->config.C < 2e8) return LLMC_OK; /* a layer takes some milliseconds only */
    return pulse_part("layer %d of %d %s", l + 1, m->config.L, way);
}

static int layers_forward(llmc_model *m, int may_stop) {
    const int B = m->b, T = m->t, C = m->config.C;
    const Params w = params_at(m, 0);
    const Acts a = acts_at(m, 0);
    m->k->encoder_forward(&m->ctx, a.residual1, a.tokens, w.wte, w.wpe, NULL, B, T, C);
    m->k->layernorm_forward(&m->ctx, a.ln1, a.ln1_mean, a.ln1_rstd, a.residual1, w.ln1w, w.ln1b, B, T, C);
    for (int l = 0; l < m->config.L; l++) {
        const int rc = gpt2_tell_layer(m, "forward", l, (int64_t)B * T);
        if (rc < 0 && may_stop) return rc;
        layer_forward(m, l);
    }
    return LLMC_OK;
}

/* ---- the layers backward: the forward pass from its end to its start ---- */

/* what the layers after this one have overwritten since the forward pass: the same kernels on the same numbers */
static void layer_recompute(const llmc_model *m, int l) {
    const llmc_tensor *t = m->layout.table;
    const Kernels *k = m->k;
    Context *ctx = (Context *)&m->ctx;
    const int B = m->b, T = m->t, C = m->config.C;
    const Params w = params_at(m, l);
    const Acts a = acts_at(m, l);
    if (!t[A_ln1].kept) k->layernorm_forward(ctx, a.ln1, a.ln1_mean, a.ln1_rstd, a.residual1, w.ln1w, w.ln1b, B, T, C);
    if (!t[A_qkv].kept) {
        layer_inside(m, l);
        return;
    }
    if (!t[A_ln2].kept) k->layernorm_forward(ctx, a.ln2, a.ln2_mean, a.ln2_rstd, a.residual2, w.ln2w, w.ln2b, B, T, C);
    if (!t[A_fch_gelu].kept) k->gelu_forward(ctx, a.fch_gelu, a.fch, (int64_t)B * T * 4 * C);
}

/* of the last layer only what a chunk's logits lay over is gone; it comes back to the bits that the forward pass had */
static void last_layer_recompute(const llmc_model *m, int l) {
    Context *ctx = (Context *)&m->ctx;
    const int B = m->b, T = m->t, C = m->config.C;
    const Params w = params_at(m, l);
    const Acts a = acts_at(m, l);
    if (m->layout.table[A_fch_gelu].kept || m->layout.table[A_logits].kept) return;
    if (ctx->gelu_again) m->k->gelu_forward(ctx, a.fch_gelu, a.fch, (int64_t)B * T * 4 * C);
    else m->k->matmul_gelu_forward(ctx, a.fch_gelu, a.fch, a.ln2, w.fcw, w.fcb, B, T, C, 4 * C);
}

static void layer_backward(const llmc_model *m, int l, int accumulate) {
    const Kernels *k = m->k;
    Context *ctx = (Context *)&m->ctx;
    const int B = m->b, T = m->t, C = m->config.C, NH = m->config.NH;
    const Params w = params_at(m, l);
    const Grads dw = grads_at(m, l);
    const Acts a = acts_at(m, l);
    k->matmul_backward_weight(ctx, dw.fcprojw, dw.fcprojb, a.dresidual, a.fch_gelu, accumulate, B, T, 4 * C, C);
    k->matmul_gelu_backward_input(ctx, a.dfch, a.dresidual, w.fcprojw, a.fch, B, T, 4 * C, C);
    k->matmul_backward_weight(ctx, dw.fcw, dw.fcb, a.dfch, a.ln2, accumulate, B, T, C, 4 * C);
    k->matmul_backward_input(ctx, a.branch, a.dfch, w.fcw, B, T, C, 4 * C);
    k->layernorm_backward(ctx, a.dresidual, dw.ln2w, dw.ln2b, a.branch, a.residual2, w.ln2w, a.ln2_mean, a.ln2_rstd, B,
                          T, C);
    k->matmul_backward_weight(ctx, dw.attprojw, dw.attprojb, a.dresidual, a.atty, accumulate, B, T, C, C);
    k->matmul_backward_input(ctx, a.branch, a.dresidual, w.attprojw, B, T, C, C);
    k->attention_backward(ctx, a.dqkv, a.branch, a.atty, a.lse, a.qkv, B, T, C, NH, window_of(m, l));
    k->matmul_backward_weight(ctx, dw.qkvw, dw.qkvb, a.dqkv, a.ln1, accumulate, B, T, C, 3 * C);
    k->matmul_backward_input(ctx, a.branch, a.dqkv, w.qkvw, B, T, C, 3 * C);
    k->layernorm_backward(ctx, a.dresidual, dw.ln1w, dw.ln1b, a.branch, a.residual1, w.ln1w, a.ln1_mean, a.ln1_rstd, B,
                          T, C);
}

/* from the gradient of lnf, which is in branch */
static void layers_backward(llmc_model *m, int accumulate) {
    const Kernels *k = m->k;
    const int B = m->b, T = m->t, C = m->config.C, L = m->config.L;
    const Params w = params_at(m, 0);
    const Grads dw = grads_at(m, 0);
    const Acts a = acts_at(m, 0);
    k->fill(&m->ctx, a.dresidual, 0, (int64_t)B * T * C * (int64_t)sizeof(floatX));
    k->layernorm_backward(&m->ctx, a.dresidual, dw.lnfw, dw.lnfb, a.branch, a.residual3, w.lnfw, a.lnf_mean, a.lnf_rstd,
                          B, T, C);
    for (int l = L - 1; l >= 0; l--) {
        gpt2_tell_layer(m, "backward", l, (int64_t)B * T);
        if (l < L - 1) layer_recompute(m, l);
        else last_layer_recompute(m, l);
        layer_backward(m, l, accumulate);
    }
    k->encoder_backward(&m->ctx, dw.wte, dw.wpe, a.dresidual, a.tokens, B, T, C);
}

/* ---- logits and loss, forward and backward: the rows go through in equal chunks, one where all logits are kept ---- */

enum { LOGITS = 1, LOSSES = 2, GRADIENTS = 4, ACCUMULATE = 8 };

/* the shape alone decides it */
static int64_t rows_in_chunk(const llmc_model *m) {
    const int64_t rows = (int64_t)m->b * m->t, room = m->layout.table[A_logits].size / m->config.Vp;
    const int64_t chunks = (rows + room - 1) / room;
    return (rows + chunks - 1) / chunks;
}

static void chunk(llmc_model *m, int64_t row, int rows, int what, float scale) {
    const Kernels *k = m->k;
    const int C = m->config.C, V = m->config.V, Vp = m->config.Vp;
    const Params w = params_at(m, 0);
    const Acts a = acts_at(m, 0);
    floatX *lnf = a.lnf + row * C, *dlnf = a.branch + row * C;
    float *lse = a.logits_lse + row;
    int *targets = a.targets + row;
    if (what & LOGITS) k->matmul_forward(&m->ctx, a.logits, lnf, w.wte, NULL, 1, rows, C, Vp);
    if (what & LOSSES) k->classifier_forward(&m->ctx, a.losses + row, lse, a.logits, targets, 1, rows, V, Vp);
    if (!(what & GRADIENTS)) return;
    k->classifier_backward(&m->ctx, a.logits, lse, targets, a.weights + row, a.loss, scale, 1, rows, V, Vp);
    k->matmul_backward_weight(&m->ctx, grads_at(m, 0).wte, NULL, a.logits, lnf, row || what & ACCUMULATE, 1, rows, C,
                              Vp);
    k->matmul_backward_input(&m->ctx, dlnf, a.logits, w.wte, 1, rows, C, Vp);
}

static void chunks(llmc_model *m, int what, float scale) {
    const int64_t rows = (int64_t)m->b * m->t, each = rows_in_chunk(m);
    for (int64_t at = 0; at < rows; at += each) chunk(m, at, (int)(rows - at < each ? rows - at : each), what, scale);
}

static void loss_mean(llmc_model *m) {
    const Acts a = acts_at(m, 0);
    m->k->loss_mean(&m->ctx, a.loss, a.losses, a.targets, a.weights, (int64_t)m->b * m->t);
}

/* ---- a batch ---- */

int gpt2_check_ids(const char *what, const int *ids, int64_t n, int lowest, int V) {
    for (int64_t i = 0; i < n; i++)
        CHECK(ids[i] >= lowest && ids[i] < V, LLMC_EINVAL,
              "%s[%lld] = %d is not in %d..%d: were these tokens made for another vocabulary?", what, (long long)i,
              ids[i], lowest, V - 1);
    return LLMC_OK;
}

int gpt2_check_shape(const llmc_model *m, int b, int t) {
    CHECK(b >= 1 && b <= m->room.B && t >= 1 && t <= m->room.T, LLMC_EINVAL,
          "a batch of %d x %d does not fit a model made for B=%d T=%d", b, t, m->room.B, m->room.T);
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
        m->ones = 0;
        return;
    }
    float ones[256];
    for (int i = 0; i < 256; i++) ones[i] = 1;
    for (; m->ones < n; m->ones += 256)
        m->k->copy_in(&m->ctx, to + m->ones, ones, (n - m->ones < 256 ? n - m->ones : 256) * 4);
    if (m->ones > n) m->ones = n;
}

/* checks and copies */
static int take_batch(llmc_model *m, const int *tokens, const int *targets, const float *weights, int b, int t) {
    const int64_t n = (int64_t)b * t;
    const Acts a = acts_at(m, 0);
    TRY(gpt2_check_shape(m, b, t));
    TRY(gpt2_check_ids("inputs", tokens, n, 0, m->config.V));
    if (targets) TRY(gpt2_check_ids("targets", targets, n, -1, m->config.V));
    if (weights) TRY(check_weights(weights, n));
    m->b = b, m->t = t;
    m->k->copy_in(&m->ctx, a.tokens, tokens, n * 4);
    if (targets) m->k->copy_in(&m->ctx, a.targets, targets, n * 4);
    if (targets) copy_weights(m, weights, n);
    return LLMC_OK;
}

int llmc_model_forward(llmc_model *m, const int *tokens, const int *targets, const float *weights, int b, int t,
                       float *loss) {
    CHECK(targets || m->room.logits, LLMC_EINVAL,
          "without targets there is nothing to keep: this model was made without the logits of every token");
    TRY(take_batch(m, tokens, targets, weights, b, t));
    m->state = EMPTY;
    TRY(layers_forward(m, 1));
    m->state = FORWARD_DONE;
    chunks(m, targets ? LOGITS | LOSSES : LOGITS, 0);
    if (targets) {
        loss_mean(m);
        m->state = LOSS_DONE;
    }
    if (targets && loss) m->k->copy_out(&m->ctx, loss, acts_at(m, 0).loss, 4);
    return m->k->sync(&m->ctx);
}

int gpt2_need_training(const llmc_model *m) {
    CHECK(m->room.training, LLMC_EINVAL, "this model was made without gradients: create it with training=True");
    return LLMC_OK;
}

int llmc_model_backward(llmc_model *m, float scale) {
    TRY(gpt2_need_training(m));
    CHECK(m->state == LOSS_DONE, LLMC_EINVAL, "backward needs a forward pass with targets just before it");
    chunks(m, ACCUMULATE | GRADIENTS | (m->room.logits ? 0 : LOGITS), scale);
    layers_backward(m, 1);
    m->state = BACKWARD_DONE;
    return m->k->sync(&m->ctx);
}

/* all gradients but those of matrix products, which can be written at once: half a gigabyte less to zero and read */
static void zero_what_adds_up(llmc_model *m) {
    for (const llmc_tensor *t = m->layout.table; t < m->layout.table + NUM_PARAM_TENSORS; t++)
        if (!is_matrix(m, t))
            m->k->fill(&m->ctx, m->grads + t->offset, 0,
                       t->size * (t->layers ? t->layers : 1) * (int64_t)sizeof(float));
}

static void forward_and_backward(llmc_model *m, float scale, int accumulate) {
    if (!accumulate) zero_what_adds_up(m);
    layers_forward(m, 0); /* a step is not stopped within, where a device may be recording it */
    m->k->fill(&m->ctx, acts_at(m, 0).losses, 0, (int64_t)m->b * m->t * 4);
    loss_mean(m); /* for the sum of the weights, by which the first chunk's gradients are already divided */
    chunks(m, LOGITS | LOSSES | GRADIENTS | (accumulate ? ACCUMULATE : 0), scale);
    loss_mean(m);
    layers_backward(m, accumulate);
}

static int64_t bits_of(float x) {
    int32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

int llmc_model_micro_step(llmc_model *m, const int *tokens, const int *targets, const float *weights, int b, int t,
                          float scale, int accumulate, float *loss) {
    const Acts a = acts_at(m, 0);
    TRY(gpt2_need_training(m));
    CHECK(targets, LLMC_EINVAL, "a micro-step needs targets");
    TRY(take_batch(m, tokens, targets, weights, b, t));
    const int64_t key[4] = {b, t, accumulate, bits_of(scale)};
    if (!m->k->replay(&m->ctx, key)) {
        forward_and_backward(m, scale, accumulate);
        m->k->recorded(&m->ctx);
    }
    m->state = BACKWARD_DONE;
    if (loss) m->k->copy_out(&m->ctx, loss, a.loss, 4);
    return LLMC_OK;
}
