/* The order of the kernels in a layer, once: for a batch, for generation, and for the backward pass. */
#include "base/error.h"
#include "base/pulse.h"
#include "model/layers.h"
#include "model/lora.h"
#include "model/team.h"

/* ---- forward ---- */

/* The buffers of layer l. Generation keeps nothing of a layer but its keys and values, so its layers share the buffers of
 * the first, which then stay in the CPU's caches. */
static Acts acts_of(const llmc_model *m, const Pass *pass, int l) { return acts_at(m, pass->cached ? 0 : l); }

/* Generation drops nothing. */
static const Dropout *dropout_of(const llmc_model *m, const Pass *pass, int kind, int l) {
    return pass->cached ? NULL : gpt2_dropout(m, kind, l);
}

/* A prompt of generation is one document. */
static const int *offsets_of(const llmc_model *m, const Pass *pass) {
    return pass->cached || m->separator < 0 ? NULL : acts_at(m, 0).offsets;
}

/* n new rows of B sequences, at these positions, join the layer's cache and attend to what it holds. */
static void attend_cached(const llmc_model *m, int l, floatX *atty, const floatX *qkv, const int *positions, int B,
                          int n) {
    const Cache cache = gpt2_cache(m, l);
    m->k->attention_cached((Context *)&m->ctx, atty, cache.qkv, acts_at(m, 0).whole, qkv, positions, B, n, cache.R,
                           m->room.T, m->config.C, m->config.NH, window_of(m, l));
}

/* The spans take turns in the cache of one sequence: each finds the keys and values that those before it have left there. */
static void attend_spans(const llmc_model *m, const Pass *pass, int l, floatX *atty, const floatX *qkv) {
    const int C = m->config.C;
    for (int64_t i = 0, at = 0; i < pass->spans; at += pass->counts[i++])
        attend_cached(m, l, gpt2_at(m, atty, at * C), gpt2_at(m, qkv, at * 3 * C), pass->row_positions + at, 1,
                      pass->counts[i]);
}

/* out = inp w^T + b for a matrix of a layer, with its adapters if it has some. gelu: becomes gelu(out), unless it is NULL. */
static void linear(const llmc_model *m, const Pass *pass, int l, int target, floatX *out, floatX *gelu,
                   const floatX *inp, const floatX *w, const floatX *b) {
    const int64_t *shape = m->layout.table[lora_matrices[target]].shape;
    const int B = pass->B, T = pass->T, OC = (int)shape[0], C = (int)shape[1];
    Context *ctx = (Context *)&m->ctx;
    if (lora_is_on(m, target)) lora_forward(m, pass, l, target, out, gelu, inp, w, b);
    else if (gelu) m->k->matmul_gelu_forward(ctx, gelu, out, inp, w, b, B, T, C, OC);
    else m->k->matmul_forward(ctx, out, inp, w, b, B, T, C, OC);
}

/* Where a pass has qkv of layer l: all rows, or the new ones of generation. */
static floatX *qkv_of(const llmc_model *m, const Pass *pass, int l) {
    return pass->cached ? acts_of(m, pass, l).dqkv : gpt2_qkv(m, l);
}

/* The four parts of a layer. They are inline so that the buffers of a layer are worked out once, which is 3 % of the time of a
 * token in a small model. */

/* From ln1 to qkv. */
static inline void to_qkv(const llmc_model *m, const Pass *pass, int l) {
    const Params w = params_at(m, l);
    linear(m, pass, l, LORA_QKV, qkv_of(m, pass, l), NULL, acts_of(m, pass, l).ln1, w.qkvw, w.qkvb);
}

/* From qkv to atty. Generation stores the new rows of qkv in the layer's cache, and attends to all that is there. */
static inline void to_atty(const llmc_model *m, const Pass *pass, int l) {
    const int B = pass->B, T = pass->T;
    const Acts a = acts_of(m, pass, l);
    const floatX *qkv = qkv_of(m, pass, l);
    if (pass->spans) attend_spans(m, pass, l, a.atty, qkv);
    else if (pass->cached) attend_cached(m, l, a.atty, qkv, a.positions, B, T);
    else
        m->k->attention_forward((Context *)&m->ctx, a.atty, a.lse, qkv, offsets_of(m, pass),
                                dropout_of(m, pass, LLMC_DROP_ATTENTION, l), B, T, m->config.C, m->config.NH,
                                window_of(m, l));
}

/* From atty to residual2 and ln2. */
static inline void to_residual2(const llmc_model *m, const Pass *pass, int l) {
    const Params w = params_at(m, l);
    const Acts a = acts_of(m, pass, l);
    linear(m, pass, l, LORA_ATTPROJ, a.branch, NULL, a.atty, w.attprojw, w.attprojb);
    m->k->residual_layernorm_forward((Context *)&m->ctx, a.residual2, a.ln2, a.ln2_mean, a.ln2_rstd, a.residual1,
                                     a.branch, w.ln2w, w.ln2b, dropout_of(m, pass, LLMC_DROP_ATTPROJ, l), pass->B,
                                     pass->T, m->config.C);
}

/* From ln2 to fch and fch_gelu. */
static inline void to_fch(const llmc_model *m, const Pass *pass, int l) {
    const Params w = params_at(m, l);
    const Acts a = acts_of(m, pass, l);
    linear(m, pass, l, LORA_FC, a.fch, a.fch_gelu, a.ln2, w.fcw, w.fcb);
}

/* From ln1 to the next layer's, or to lnf. */
static void layer_forward(const llmc_model *m, const Pass *pass, int l) {
    const Kernels *k = m->k;
    Context *ctx = (Context *)&m->ctx;
    const int B = pass->B, T = pass->T, C = m->config.C, last = l + 1 == m->config.L;
    const Params w = params_at(m, l), next_w = params_at(m, last ? 0 : l + 1);
    const Acts a = acts_of(m, pass, l), next = acts_of(m, pass, last ? 0 : l + 1);
    const Dropout *dropout = dropout_of(m, pass, LLMC_DROP_FCPROJ, l);
    to_qkv(m, pass, l);
    to_atty(m, pass, l);
    to_residual2(m, pass, l);
    to_fch(m, pass, l);
    linear(m, pass, l, LORA_FCPROJ, a.branch, NULL, a.fch_gelu, w.fcprojw, w.fcprojb);
    if (last)
        k->residual_layernorm_forward(ctx, a.residual3, a.lnf, a.lnf_mean, a.lnf_rstd, a.residual2, a.branch, w.lnfw,
                                      w.lnfb, dropout, B, T, C);
    else
        k->residual_layernorm_forward(ctx, next.residual1, next.ln1, next.ln1_mean, next.ln1_rstd, a.residual2,
                                      a.branch, next_w.ln1w, next_w.ln1b, dropout, B, T, C);
}

/* A sign of life before layer l, if a layer takes more than some milliseconds; LLMC_STOPPED as pulse.h says. */
static int tell_layer(const llmc_model *m, const Pass *pass, const char *way, int l) {
    const double C = m->config.C, work = (double)pass->B * pass->T * C * C;
    return way && work >= 2e8 ? pulse_part("layer %d of %d %s", l + 1, m->config.L, way) : LLMC_OK;
}

int layers_forward(llmc_model *m, const Pass *pass) {
    const int B = pass->B, T = pass->T, C = m->config.C;
    const Params w = params_at(m, 0);
    const Acts a = acts_at(m, 0);
    const Dropout *dropout = dropout_of(m, pass, LLMC_DROP_EMBEDDING, 0);
    if (pass->spans)
        m->k->encoder_forward(&m->ctx, a.residual1, a.tokens, w.wte, w.wpe, pass->row_positions, NULL, T, 1, C);
    else
        m->k->encoder_forward(&m->ctx, a.residual1, a.tokens, w.wte, w.wpe, pass->cached ? a.positions : NULL,
                              offsets_of(m, pass), B, T, C);
    if (dropout) m->k->dropout(&m->ctx, a.residual1, a.residual1, dropout, B, T, C);
    m->k->layernorm_forward(&m->ctx, a.ln1, a.ln1_mean, a.ln1_rstd, a.residual1, w.ln1w, w.ln1b, B, T, C);
    for (int l = 0; l < m->config.L; l++) {
        const int rc = tell_layer(m, pass, pass->told, l);
        if (rc < 0 && pass->may_stop) return rc;
        layer_forward(m, pass, l);
    }
    return LLMC_OK;
}

/* ---- backward: the forward pass from its end to its start ---- */

/* Computes again what later layers have overwritten since the forward pass: the same kernels on the same numbers. */
static void layer_recompute(const llmc_model *m, const Pass *pass, int l) {
    const llmc_tensor *t = m->layout.table;
    const Kernels *k = m->k;
    Context *ctx = (Context *)&m->ctx;
    const int B = pass->B, T = pass->T, C = m->config.C;
    const Params w = params_at(m, l);
    const Acts a = acts_at(m, l);
    if (!t[A_ln1].kept) k->layernorm_forward(ctx, a.ln1, a.ln1_mean, a.ln1_rstd, a.residual1, w.ln1w, w.ln1b, B, T, C);
    if (!t[A_qkv].kept) to_qkv(m, pass, l);
    if (!t[A_atty].kept) to_atty(m, pass, l);
    if (!t[A_residual2].kept) to_residual2(m, pass, l);
    else if (!t[A_ln2].kept)
        k->layernorm_forward(ctx, a.ln2, a.ln2_mean, a.ln2_rstd, a.residual2, w.ln2w, w.ln2b, B, T, C);
    if (!t[A_fch].kept) to_fch(m, pass, l);
    else if (!t[A_fch_gelu].kept) k->gelu_forward(ctx, a.fch_gelu, a.fch, (int64_t)B * T * 4 * C);
}

/* In the last layer only fch_gelu was overwritten, by a chunk of logits. The kernel that made it makes it again, so its
 * bits are the same. */
static void last_layer_recompute(const llmc_model *m, const Pass *pass, int l) {
    Context *ctx = (Context *)&m->ctx;
    const int B = pass->B, T = pass->T, C = m->config.C;
    const Params w = params_at(m, l);
    const Acts a = acts_at(m, l);
    if (m->layout.table[A_fch_gelu].kept || m->layout.table[A_logits].kept) return;
    if (ctx->gelu_again || lora_is_on(m, LORA_FC)) m->k->gelu_forward(ctx, a.fch_gelu, a.fch, (int64_t)B * T * 4 * C);
    else m->k->matmul_gelu_forward(ctx, a.fch_gelu, a.fch, a.ln2, w.fcw, w.fcb, B, T, C, 4 * C);
}

/* The gradient of a branch's output: dresidual times dropout's factors, in the buffer `to`; dresidual itself if nothing
 * drops. */
static const floatX *branch_gradient(const llmc_model *m, const Pass *pass, floatX *to, int kind, int l) {
    const Dropout *dropout = gpt2_dropout(m, kind, l);
    const floatX *dresidual = acts_at(m, 0).dresidual;
    if (!dropout) return dresidual;
    m->k->dropout((Context *)&m->ctx, to, dresidual, dropout, pass->B, pass->T, m->config.C);
    return to;
}

/* The gradients of a matrix and its bias, as far as they are trained, and those of its adapters. They are final then, and other
 * processes' are added while the pass goes on. */
static void weight_backward(llmc_model *m, const Pass *pass, int l, int target, float *dw, float *db,
                            const floatX *dout, const floatX *inp, int accumulate) {
    const llmc_tensor *matrix = &m->layout.table[lora_matrices[target]];
    if (dw || db)
        m->k->matmul_backward_weight(&m->ctx, dw, db, dout, inp, accumulate, pass->B, pass->T, (int)matrix->shape[1],
                                     (int)matrix->shape[0]);
    if (lora_is_on(m, target)) lora_backward(m, pass, l, target, dout, inp, accumulate);
    if (m->summing) team_sum_matrix(m, l, target);
}

/* dinp = dout w for a matrix of a layer, with its adapters if it has some; times gelu'(pre) unless pre is NULL. */
static void input_backward(const llmc_model *m, const Pass *pass, int l, int target, floatX *dinp, const floatX *dout,
                           const floatX *w, const floatX *pre) {
    const int64_t *shape = m->layout.table[lora_matrices[target]].shape;
    const int B = pass->B, T = pass->T, OC = (int)shape[0], C = (int)shape[1];
    Context *ctx = (Context *)&m->ctx;
    if (lora_is_on(m, target)) lora_backward_input(m, pass, l, target, dinp, dout, w, pre);
    else if (pre) m->k->matmul_gelu_backward_input(ctx, dinp, dout, w, pre, B, T, C, OC);
    else m->k->matmul_backward_input(ctx, dinp, dout, w, B, T, C, OC);
}

/* Nobody asks for the gradient of the input of the lowest layer that is trained. */
static void layer_backward(llmc_model *m, const Pass *pass, int l, int accumulate, int is_lowest) {
    const Kernels *k = m->k;
    Context *ctx = &m->ctx;
    const int B = pass->B, T = pass->T, C = m->config.C, NH = m->config.NH;
    const Params w = params_at(m, l);
    const Grads dw = grads_at(m, l);
    const Acts a = acts_at(m, l);
    const floatX *d = branch_gradient(m, pass, a.branch, LLMC_DROP_FCPROJ, l);
    weight_backward(m, pass, l, LORA_FCPROJ, dw.fcprojw, dw.fcprojb, d, a.fch_gelu, accumulate);
    input_backward(m, pass, l, LORA_FCPROJ, a.dfch, d, w.fcprojw, a.fch);
    weight_backward(m, pass, l, LORA_FC, dw.fcw, dw.fcb, a.dfch, a.ln2, accumulate);
    input_backward(m, pass, l, LORA_FC, a.branch, a.dfch, w.fcw, NULL);
    k->layernorm_backward(ctx, a.dresidual, dw.ln2w, dw.ln2b, a.branch, a.residual2, w.ln2w, a.ln2_mean, a.ln2_rstd, B,
                          T, C);
    d = branch_gradient(m, pass, a.dqkv, LLMC_DROP_ATTPROJ, l);
    weight_backward(m, pass, l, LORA_ATTPROJ, dw.attprojw, dw.attprojb, d, a.atty, accumulate);
    input_backward(m, pass, l, LORA_ATTPROJ, a.branch, d, w.attprojw, NULL);
    k->attention_backward(ctx, a.dqkv, a.branch, a.atty, a.lse, gpt2_qkv(m, l), offsets_of(m, pass),
                          gpt2_dropout(m, LLMC_DROP_ATTENTION, l), B, T, C, NH, window_of(m, l));
    weight_backward(m, pass, l, LORA_QKV, dw.qkvw, dw.qkvb, a.dqkv, a.ln1, accumulate);
    if (is_lowest && !dw.ln1w && !dw.ln1b) return;
    input_backward(m, pass, l, LORA_QKV, a.branch, a.dqkv, w.qkvw, NULL);
    k->layernorm_backward(ctx, a.dresidual, dw.ln1w, dw.ln1b, a.branch, a.residual1, w.ln1w, a.ln1_mean, a.ln1_rstd, B,
                          T, C);
}

/* The lowest layer of which something is trained: L if there is none, -1 if the embeddings are trained, which are below all. */
static int lowest_trained(const llmc_model *m) {
    const int L = m->config.L;
    if (gradient_at(m, P_wte, 0) >= 0 || gradient_at(m, P_wpe, 0) >= 0) return -1;
    for (int l = 0; l < L; l++)
        for (int i = 0; i < NUM_TRAINABLE; i++)
            if (m->layout.table[i].layers && gradient_at(m, i, l) >= 0) return l;
    return L;
}

void layers_backward(llmc_model *m, const Pass *pass, int accumulate) {
    const Kernels *k = m->k;
    const int B = pass->B, T = pass->T, C = m->config.C, L = m->config.L, lowest = lowest_trained(m);
    const Params w = params_at(m, 0);
    const Grads dw = grads_at(m, 0);
    const Acts a = acts_at(m, 0);
    k->fill(&m->ctx, a.dresidual, 0, (int64_t)B * T * C * element_bytes(k->element));
    k->layernorm_backward(&m->ctx, a.dresidual, dw.lnfw, dw.lnfb, a.branch, a.residual3, w.lnfw, a.lnf_mean, a.lnf_rstd,
                          B, T, C);
    if (m->summing) team_sum_head(m);
    for (int l = L - 1; l >= 0 && l >= lowest; l--) {
        tell_layer(m, pass, "backward", l);
        if (l < L - 1) layer_recompute(m, pass, l);
        else last_layer_recompute(m, pass, l);
        layer_backward(m, pass, l, accumulate, l == lowest);
        if (m->summing) team_sum_norms(m, l);
    }
    if (!dw.wte && !dw.wpe) return;
    const floatX *d = branch_gradient(m, pass, a.branch, LLMC_DROP_EMBEDDING, 0);
    k->encoder_backward(&m->ctx, dw.wte, dw.wpe, d, a.tokens, offsets_of(m, pass), B, T, C);
    if (m->summing) team_sum_embeddings(m);
}
