/* Generation: n new rows of each sequence go through the layers, whose keys and values of the old rows are cached. */
#include "base/error.h"
#include "model/layers.h"

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

/* The logits of the last new row of each sequence; nobody asks for the others. */
static void logits_of_last(llmc_model *m, int b, int n) {
    const int C = m->config.C, Vp = m->config.Vp;
    const floatX *head = gpt2_head(m);
    const Acts a = acts_at(m, 0);
    if (n == 1) m->k->matmul_forward(&m->ctx, a.logits, a.lnf, head, NULL, b, 1, C, Vp);
    for (int i = 0; n > 1 && i < b; i++)
        m->k->matmul_forward(&m->ctx, gpt2_at(m, a.logits, (int64_t)i * Vp),
                             gpt2_at(m, a.lnf, ((int64_t)i * n + n - 1) * C), head, NULL, 1, 1, C, Vp);
}

/* A prompt may be stopped between two layers. A single token is not worth it, and a device may be recording it. */
static int extend(llmc_model *m, int b, int n) {
    const Pass pass = {.B = b, .T = n, .cached = 1, .told = n > 1 ? "of the prompt" : NULL, .may_stop = n > 1};
    TRY(layers_forward(m, &pass));
    logits_of_last(m, b, n);
    return LLMC_OK;
}

int llmc_model_extend(llmc_model *m, const int *tokens, const int *pos, int b, int n, float *last_logits) {
    const Kernels *k = m->k;
    const int V = m->config.V, Vp = m->config.Vp;
    const int64_t one_token[4] = {b}; /* a key that differs from any micro-step's, whose second number is not 0 */
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
