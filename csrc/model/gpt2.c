/* GPT-2: a model is made, compressed and freed. */
#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "model/gpt2.h"
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
        model->outer = (float *)at, at += plan->outer;
    }
    model->acts = (float *)at, at += plan->acts;
    model->ctx.workspace = at;
}

/* True if backward computes GELU alone again, from the kept fch. At recompute=4 the whole product runs again instead, and
 * gives the same bits by itself. */
static int computes_gelu_again(const llmc_model *m) {
    const llmc_tensor *t = m->layout.table;
    return m->room.training && !t[A_fch_gelu].kept && t[A_fch].kept;
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
    if (model->room.training) model->k->fill(&model->ctx, model->grads, 0, plan.grads + plan.moments + plan.outer);
    return model->k->sync(&model->ctx);
}

/* Places the gradients of what is trained, tensor after tensor and layer after layer. */
static int place_gradients(llmc_model *m, const llmc_room *room) {
    const int L = m->config.L;
    int64_t end = 0;
    m->train_only = strdup(room->train_only ? room->train_only : "");
    m->gradient_at = malloc((size_t)NUM_TRAINABLE * (size_t)L * sizeof *m->gradient_at);
    m->reached = calloc((size_t)room->B, sizeof *m->reached);
    CHECK(m->train_only && m->gradient_at && m->reached, LLMC_ENOMEM, "no memory for a model's description");
    m->room.train_only = m->train_only;
    for (int i = 0; i < NUM_TRAINABLE; i++)
        for (int l = 0; l < L; l++) {
            const int stored = l < layers_stored(&m->layout.table[i]) && room->training;
            const int trained = stored && layout_trains(&m->layout, room, i, l);
            m->gradient_at[(int64_t)i * L + l] = trained ? end : -1;
            end += trained ? m->layout.table[i].size : 0;
        }
    return LLMC_OK;
}

int llmc_model_create(llmc_model **out, const llmc_config *config, const llmc_room *room, int threads) {
    *out = NULL;
    CHECK(threads >= 0 && threads <= 1024, LLMC_EINVAL, "threads=%d is not in 0..1024; 0 takes every core", threads);
    llmc_room settled = *room;
    const Kernels *k;
    TRY(layout_kernels(&k, &settled));
    llmc_model *model = calloc(1, sizeof *model);
    CHECK(model, LLMC_ENOMEM, "no memory for a model's description");
    *model = (llmc_model){
        .config = *config, .room = settled, .k = k, .separator = -1, .ctx.threads = threads_asked(threads)};
    model->ctx.weight_format = k->element;
    model->ctx.split = plan_splits(k, room);
    int rc = layout_make(&model->layout, config, &settled);
    if (rc == 0) rc = llmc_config_check(&model->config);
    if (rc == 0) rc = place_gradients(model, &settled);
    if (rc == 0) rc = allocate(model);
    if (rc < 0) llmc_model_free(model);
    else *out = model;
    return rc;
}

int gpt2_trained_in_a_row(const llmc_model *m, int i, int l) {
    int n = 0;
    while (l + n < layers_stored(&m->layout.table[i]) && gradient_at(m, i, l + n) >= 0) n++;
    return n;
}

int gpt2_is_matrix(const llmc_model *m, const llmc_tensor *t) { return t->rank == 2 && t != m->layout.table + P_wpe; }

static void compress(llmc_model *m, const llmc_tensor *t, int l) {
    const int64_t at = t->offset + l * t->stride;
    m->k->compress(&m->ctx, gpt2_at(m, m->stored, at), gpt2_master(m, at), m->ctx.weight_format, t->shape[0],
                   (int)t->shape[1]);
}

int llmc_model_compress(llmc_model *m, const char *name) {
    const int bf16 = !strcmp(name, "bf16"), int8 = !strcmp(name, "int8"), element = m->k->element;
    const int format = bf16 ? LLMC_BF16 : int8 ? LLMC_INT8 : LLMC_FP32;
    const int least = element == LLMC_BF16 ? 4 : 2; /* so that a row of int8, C + 4 bytes, is no longer than before */
    CHECK(bf16 || int8 || !strcmp(name, "fp32"), LLMC_EINVAL, "weights '%s' are not one of fp32, bf16, int8", name);
    if (format == LLMC_FP32 || (format == element && format == m->ctx.weight_format)) return LLMC_OK;
    CHECK(m->k->compress, LLMC_EDEVICE, "%s keeps weights in its own precision: leave the weights at fp32", m->k->name);
    CHECK(!m->room.lora_rank, LLMC_EINVAL, "%s weights cannot have adapters: merge them first", name);
    CHECK(!m->room.training, LLMC_EINVAL, "%s weights cannot be trained: create the model with training=False", name);
    CHECK(m->ctx.weight_format == element, LLMC_EINVAL, "the weights are compressed already: load them again");
    CHECK(bf16 || m->config.C >= least, LLMC_EINVAL,
          "n_embd=%d: int8 weights need %d channels or more; leave the weights at fp32", m->config.C, least);
    m->ctx.weight_format = format;
    for (const llmc_tensor *t = m->layout.table; t < m->layout.table + NUM_PARAM_TENSORS; t++)
        for (int l = 0; gpt2_is_matrix(m, t) && l < (t->layers ? t->layers : 1); l++) compress(m, t, l);
    return m->k->sync(&m->ctx);
}

void llmc_model_free(llmc_model *model) {
    if (!model) return;
    if (model->arena) model->k->free(model->arena, model->bytes);
    model->k->close(&model->ctx);
    free(model->gradient_at);
    free(model->reached);
    free(model->train_only);
    free(model->base);
    free(model);
}

/* ---- checks ---- */

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

int gpt2_need_training(const llmc_model *m) {
    CHECK(m->room.training, LLMC_EINVAL, "this model was made without gradients: create it with training=True");
    return LLMC_OK;
}
