/* Generation: the same layers over n new rows of each sequence, keys and values of the old ones cached. */
#include "base/error.h"
#include "model/gpt2.h"

static void layer_extend(const llmc_model *m, int l, int b, int n) {
    const Kernels *k = m->k;
    Context *ctx = (Context *)&m->ctx;
    const int C = m->config.C, last = l + 1 == m->config.L;
    const Params w = params_at(m, l), next = params_at(m, last ? 0 : l + 1);
    const Acts a = acts_at(m, 0); /* nothing but the cache is kept per layer */
    k->matmul_forward(ctx, a.dqkv, a.ln1, w.qkvw, w.qkvb, b, n, C, 3 * C);
    k->attention_cached(ctx, a.atty, acts_at(m, l).qkv, a.dqkv, a.positions, b, n, m->room.T, C, m->config.NH,
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
    TRY(gpt2_check_shape(m, b, n));
    TRY(gpt2_check_ids("tokens", tokens, (int64_t)b * n, 0, m->config.V));
    for (int i = 0; i < b; i++)
        CHECK(pos[i] >= 0 && pos[i] <= m->room.T - n, LLMC_EINVAL, "sequence %d holds %d tokens; %d more exceed T=%d",
              i, pos[i], n, m->room.T);
    CHECK(b == 1 || m->layout.table[A_qkv].kept, LLMC_EINVAL,
          "%d sequences at once: made with recompute=3 the model keeps the keys and values of one", b);
    return LLMC_OK;
}

static int extend(llmc_model *m, int b, int n) {
    const Kernels *k = m->k;
    const int C = m->config.C, Vp = m->config.Vp;
    const Params w = params_at(m, 0);
    const Acts a = acts_at(m, 0);
    k->encoder_forward(&m->ctx, a.residual1, a.tokens, w.wte, w.wpe, a.positions, b, n, C);
    k->layernorm_forward(&m->ctx, a.ln1, a.ln1_mean, a.ln1_rstd, a.residual1, w.ln1w, w.ln1b, b, n, C);
    for (int l = 0; l < m->config.L; l++) {
        if (n > 1) TRY(gpt2_tell_layer(m, "of the prompt", l, (int64_t)b * n));
        layer_extend(m, l, b, n);
    }
    if (n == 1) k->matmul_forward(&m->ctx, a.logits, a.ln1, w.wte, NULL, b, 1, C, Vp);
    for (int i = 0; n > 1 && i < b; i++) /* only the last new row of each sequence is asked for */
        k->matmul_forward(&m->ctx, a.logits + (int64_t)i * Vp, a.ln1 + ((int64_t)i * n + n - 1) * C, w.wte, NULL, 1, 1,
                          C, Vp);
    return LLMC_OK;
}

int llmc_model_extend(llmc_model *m, const int *tokens, const int *pos, int b, int n, float *last_logits) {
    const Kernels *k = m->k;
    const int V = m->config.V, Vp = m->config.Vp;
    const int64_t one_token[4] = {b}; /* unlike a micro-step's, whose second number is not 0 */
    const Acts a = acts_at(m, 0);
    TRY(check_extend(m, tokens, pos, b, n));
    m->state = EMPTY, m->cache_of = NULL;
    k->copy_in(&m->ctx, a.tokens, tokens, (int64_t)b * n * 4);
    k->copy_in(&m->ctx, a.positions, pos, (int64_t)b * 4);
    if (n > 1) TRY(extend(m, b, n));
    else if (!k->replay(&m->ctx, one_token)) {
        extend(m, b, n);
        k->recorded(&m->ctx);
    }
    return last_logits ? gpt2_fetch(m, last_logits, a.logits, b, V, Vp) : k->sync(&m->ctx);
}
