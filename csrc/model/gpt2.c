/* GPT-2: a model's life, its loss, and a batch forward and backward. The layers are in layers.c. No arithmetic and no
 * device code is here: the kernels of any device are called in the same order. */
#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "model/layers.h"
#include "model/plan.h"

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

/* True if backward computes GELU alone again, from the kept fch. At recompute=3 the whole product runs again instead, and
 * gives the same bits by itself. */
static int computes_gelu_again(const llmc_model *m) {
    const llmc_tensor *t = m->layout.table;
    return m->room.training && !t[A_fch_gelu].kept && t[A_qkv].kept;
}

static int allocate(llmc_model *model) {
    llmc_plan plan;
    TRY(model->k->open(&model->ctx));
    TRY(plan_check(&plan, model->k, &model->config, &model->room, model->ctx.threads));
    model->arena = model->k->alloc(plan.total);
    CHECK(model->arena, LLMC_ENOMEM, "the system would not give %.0f MB; choose a smaller B, T or model",
          (double)plan.total * 1e-6);
    model->bytes = plan.total;
    place_blocks(model, &plan);
    model->ctx.gelu_again = computes_gelu_again(model);
    model->k->fill(&model->ctx, model->arena, 0xff, plan.total); /* NaN, so that a read before a write shows */
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

/* True for the parameters of matrix products, as opposed to those that are added or looked up. wte is both. */
static int is_matrix(const llmc_model *m, const llmc_tensor *t) { return t->rank == 2 && t != m->layout.table + P_wpe; }

int llmc_model_compress(llmc_model *m, const char *format) {
    const int bf16 = !strcmp(format, "bf16"), int8 = !strcmp(format, "int8");
    CHECK(bf16 || int8 || !strcmp(format, "fp32"), LLMC_EINVAL, "weights '%s' are not one of fp32, bf16, int8", format);
    if (!bf16 && !int8) return LLMC_OK;
    CHECK(m->k->compress, LLMC_EDEVICE, "%s keeps weights in its own precision: leave the weights at fp32", m->k->name);
    CHECK(!m->room.training, LLMC_EINVAL, "%s weights cannot be trained: create the model with training=False", format);
    CHECK(m->ctx.weight_format == LLMC_FP32, LLMC_EINVAL, "the weights are compressed already: load them again");
    CHECK(bf16 || m->config.C >= 2, LLMC_EINVAL, "int8 weights need C >= 2");
    m->ctx.weight_format = bf16 ? LLMC_BF16 : LLMC_INT8;
    for (const llmc_tensor *t = m->layout.table; t < m->layout.table + NUM_PARAM_TENSORS; t++)
        for (int l = 0; is_matrix(m, t) && l < (t->layers ? t->layers : 1); l++)
            m->k->compress(&m->ctx, m->stored + t->offset + l * t->stride, m->ctx.weight_format, t->shape[0],
                           (int)t->shape[1]);
    return m->k->sync(&m->ctx);
}

void llmc_model_free(llmc_model *model) {
    if (!model) return;
    if (model->arena) model->k->free(model->arena, model->bytes);
    model->k->close(&model->ctx);
    free(model);
}

/* ---- logits and loss, forward and backward ---- */

/* The rows go through in equal chunks; in a single one if the logits of every token are kept. */

enum { LOGITS = 1, LOSSES = 2, GRADIENTS = 4, ACCUMULATE = 8 };

/* The shape alone decides it, so that the result does not depend on anything else. */
static int64_t rows_in_chunk(const llmc_model *m) {
    const int64_t rows = (int64_t)m->b * m->t, most = m->layout.table[A_logits].size / m->config.Vp;
    const int64_t chunks = (rows + most - 1) / most;
    return (rows + chunks - 1) / chunks;
}

static void chunk(llmc_model *m, int64_t row, int rows, int wanted, float scale) {
    const Kernels *k = m->k;
    const int C = m->config.C, V = m->config.V, Vp = m->config.Vp;
    const Params w = params_at(m, 0);
    const Acts a = acts_at(m, 0);
    floatX *lnf = a.lnf + row * C, *dlnf = a.branch + row * C;
    float *lse = a.logits_lse + row;
    int *targets = a.targets + row;
    if (wanted & LOGITS) k->matmul_forward(&m->ctx, a.logits, lnf, w.wte, NULL, 1, rows, C, Vp);
    if (wanted & LOSSES) k->classifier_forward(&m->ctx, a.losses + row, lse, a.logits, targets, 1, rows, V, Vp);
    if (!(wanted & GRADIENTS)) return;
    k->classifier_backward(&m->ctx, a.logits, lse, targets, a.loss_weights + row, a.loss, scale, 1, rows, V, Vp);
    k->matmul_backward_weight(&m->ctx, grads_at(m, 0).wte, NULL, a.logits, lnf, row || wanted & ACCUMULATE, 1, rows, C,
                              Vp);
    k->matmul_backward_input(&m->ctx, dlnf, a.logits, w.wte, 1, rows, C, Vp);
}

static void chunks(llmc_model *m, int wanted, float scale) {
    const int64_t rows = (int64_t)m->b * m->t, each = rows_in_chunk(m);
    for (int64_t at = 0; at < rows; at += each) chunk(m, at, (int)(rows - at < each ? rows - at : each), wanted, scale);
}

static void loss_mean(llmc_model *m) {
    const Acts a = acts_at(m, 0);
    m->k->loss_mean(&m->ctx, a.loss, a.losses, a.targets, a.loss_weights, (int64_t)m->b * m->t);
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

/* Without this the mean could be NaN or beyond every loss. */
static int check_loss_weights(const float *weights, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        CHECK(weights[i] >= 0 && weights[i] < 3e38f, LLMC_EINVAL, "weights[%lld] = %g: a loss weight is finite, >= 0",
              (long long)i, weights[i]);
    return LLMC_OK;
}

/* NULL: all are 1. Those that are 1 on the device already are not copied again. */
static void copy_loss_weights(llmc_model *m, const float *weights, int64_t n) {
    float *to = acts_at(m, 0).loss_weights;
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

/* Checks a batch and copies it to the device. */
static int take_batch(llmc_model *m, const int *tokens, const int *targets, const float *weights, int b, int t) {
    const int64_t n = (int64_t)b * t;
    const Acts a = acts_at(m, 0);
    TRY(gpt2_check_shape(m, b, t));
    TRY(gpt2_check_ids("inputs", tokens, n, 0, m->config.V));
    if (targets) TRY(gpt2_check_ids("targets", targets, n, -1, m->config.V));
    if (weights) TRY(check_loss_weights(weights, n));
    m->b = b, m->t = t;
    m->k->copy_in(&m->ctx, a.tokens, tokens, n * 4);
    if (targets) m->k->copy_in(&m->ctx, a.targets, targets, n * 4);
    if (targets) copy_loss_weights(m, weights, n);
    return LLMC_OK;
}

int llmc_model_forward(llmc_model *m, const int *tokens, const int *targets, const float *weights, int b, int t,
                       float *loss) {
    CHECK(targets || m->room.logits, LLMC_EINVAL,
          "without targets there is nothing to keep: this model was made without the logits of every token");
    const Pass pass = {.B = b, .T = t, .told = "forward", .may_stop = 1};
    TRY(take_batch(m, tokens, targets, weights, b, t));
    m->state = EMPTY;
    TRY(layers_forward(m, &pass));
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
    const Pass pass = {.B = m->b, .T = m->t};
    chunks(m, ACCUMULATE | GRADIENTS | (m->room.logits ? 0 : LOGITS), scale);
    layers_backward(m, &pass, 1);
    m->state = BACKWARD_DONE;
    return m->k->sync(&m->ctx);
}

/* Zeroes the gradients that kernels add to. Those of matrix products are written instead, which saves zeroing and reading
 * half a gigabyte at 124M parameters. */
static void zero_what_adds_up(llmc_model *m) {
    for (const llmc_tensor *t = m->layout.table; t < m->layout.table + NUM_PARAM_TENSORS; t++)
        if (!is_matrix(m, t))
            m->k->fill(&m->ctx, m->grads + t->offset, 0,
                       t->size * (t->layers ? t->layers : 1) * (int64_t)sizeof(float));
}

static void forward_and_backward(llmc_model *m, float scale, int accumulate) {
    const Pass pass = {.B = m->b, .T = m->t, .told = "forward"}; /* without may_stop: a device may be recording */
    if (!accumulate) zero_what_adds_up(m);
    layers_forward(m, &pass);
    m->k->fill(&m->ctx, acts_at(m, 0).losses, 0, (int64_t)m->b * m->t * 4);
    loss_mean(m); /* only for the sum of the loss weights, by which the first chunk's gradients are divided */
    chunks(m, LOGITS | LOSSES | GRADIENTS | (accumulate ? ACCUMULATE : 0), scale);
    loss_mean(m);
    layers_backward(m, &pass, accumulate);
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
