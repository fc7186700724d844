/* Generation and scoring: n new rows of each sequence go through the layers, whose keys and values of the old rows are cached. */
#include "base/error.h"
#include "model/layers.h"

/* ---- where keys and values are ---- */

static floatX *act_at(const llmc_model *m, int i, int l) {
    const llmc_tensor *t = &m->layout.table[i];
    return (floatX *)(m->acts + t->offset + l * t->stride);
}

static int has_ring(const llmc_model *m, int l) { return layout_ring_rows(&m->layout) && window_of(m, l); }

static int rings_before(const llmc_model *m, int l) { return layout_rings_before(&m->layout, &m->config, l); }
static floatX *rows_of_dense(const llmc_model *m, int l) { return act_at(m, A_qkv, l - rings_before(m, l)); }

Cache gpt2_cache(const llmc_model *m, int l) {
    if (has_ring(m, l)) return (Cache){act_at(m, A_ring, rings_before(m, l)), layout_ring_rows(&m->layout)};
    if (l && layout_caches_in_fch(&m->room)) return (Cache){act_at(m, A_fch, l), m->room.T};
    return (Cache){rows_of_dense(m, l), m->room.T};
}

/* A layer with a ring has no rows for a batch. In training it borrows those of a dense layer, which are computed again. */
floatX *gpt2_qkv(const llmc_model *m, int l) {
    if (!has_ring(m, l)) return rows_of_dense(m, l);
    return act_at(m, m->room.training ? A_qkv : A_whole, 0);
}

static int remembers(const llmc_model *m, int reached, int pos) {
    const int R = layout_ring_rows(&m->layout), oldest = reached - R;
    return !R || oldest <= 0 || pos == 0 || pos - m->config.window + 1 >= oldest;
}
int gpt2_remembers(const llmc_model *m, int i, int pos) { return remembers(m, m->reached[i], pos); }

/* How far a sequence has reached once n rows have followed position pos. */
static int reach(int reached, int pos, int n) { return pos && reached > pos + n ? reached : pos + n; }

/* The bytes of b sequences in one ring. */
static int64_t bytes_of_ring(const llmc_model *m, int b) {
    return (int64_t)b * layout_ring_rows(&m->layout) * 3 * m->config.C * element_bytes(m->k->element);
}

static int rings(const llmc_model *m) { return rings_before(m, m->config.L); }

int64_t gpt2_ring_bytes(const llmc_model *m, int b) { return rings(m) * bytes_of_ring(m, b); }

int gpt2_save_rings(const llmc_model *m, int b, void *to) {
    const int64_t bytes = bytes_of_ring(m, b);
    for (int i = 0; i < rings(m); i++)
        m->k->copy_out((Context *)&m->ctx, (char *)to + i * bytes, act_at(m, A_ring, i), bytes);
    return m->k->sync((Context *)&m->ctx);
}

int gpt2_load_rings(llmc_model *m, int b, int pos, const void *from) {
    const int64_t bytes = bytes_of_ring(m, b);
    for (int i = 0; i < rings(m); i++)
        m->k->copy_in(&m->ctx, act_at(m, A_ring, i), (const char *)from + i * bytes, bytes);
    for (int i = 0; i < b; i++) m->reached[i] = pos;
    return m->k->sync(&m->ctx);
}

/* ---- new rows ---- */

#define FORGOTTEN                                                                                               \
    "%s %d cannot go on from token %d: after %d tokens the banded layers have forgotten what that token sees; " \
    "begin again at 0"

static int check_extend(const llmc_model *m, const int *tokens, const int *pos, int b, int n) {
    TRY(gpt2_check_shape(m, b, n));
    TRY(gpt2_check_ids("tokens", tokens, (int64_t)b * n, 0, m->config.V));
    for (int i = 0; i < b; i++)
        CHECK(pos[i] >= 0 && pos[i] <= m->room.T - n, LLMC_EINVAL, "sequence %d holds %d tokens; %d more exceed T=%d",
              i, pos[i], n, m->room.T);
    for (int i = 0; i < b; i++)
        CHECK(gpt2_remembers(m, i, pos[i]), LLMC_EINVAL, FORGOTTEN, "sequence", i, pos[i], m->reached[i]);
    CHECK(b == 1 || !m->room.training || m->layout.table[A_qkv].kept, LLMC_EINVAL,
          "%d sequences at once: made with recompute=3 or more, the model keeps the keys and values of one", b);
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

/* The activations are no longer those of the last forward pass. */
static void forget_batch(llmc_model *m) { m->state = EMPTY, m->cache_of = NULL, m->b = m->t = 0; }

int llmc_model_extend(llmc_model *m, const int *tokens, const int *pos, int b, int n, float *last_logits) {
    const Kernels *k = m->k;
    const int V = m->config.V, Vp = m->config.Vp;
    const int64_t one_token[4] = {b}; /* a key that differs from any micro-step's, whose second number is not 0 */
    const Acts a = acts_at(m, 0);
    TRY(check_extend(m, tokens, pos, b, n));
    forget_batch(m);
    for (int i = 0; i < b; i++) m->reached[i] = reach(m->reached[i], pos[i], n);
    k->copy_in(&m->ctx, a.tokens, tokens, (int64_t)b * n * 4);
    k->copy_in(&m->ctx, a.positions, pos, (int64_t)b * 4);
    if (n > 1) TRY(extend(m, b, n));
    else if (!k->replay(&m->ctx, one_token)) {
        extend(m, b, n);
        k->recorded(&m->ctx);
    }
    return last_logits ? gpt2_fetch(m, last_logits, a.logits, b, V, Vp) : k->sync(&m->ctx);
}

/* ---- scoring ---- */

/* Moves a row of lnf forward, through the host's memory: a device need not offer more. */
static int move_row(llmc_model *m, int64_t to, int64_t from) {
    enum { PART = 4096 };
    char part[PART];
    const int64_t C = m->config.C, bytes = C * element_bytes(m->k->element);
    char *lnf = (char *)acts_at(m, 0).lnf;
    for (int64_t at = 0; to != from && at < bytes; at += PART) {
        const int64_t n = bytes - at < PART ? bytes - at : PART;
        m->k->copy_out(&m->ctx, part, lnf + from * bytes + at, n);
        TRY(m->k->sync(&m->ctx));
        m->k->copy_in(&m->ctx, lnf + to * bytes + at, part, n);
    }
    return LLMC_OK;
}

/* Brings the rows of lnf with a target together, so that no logits are made of the others. Returns their number. */
static int gather(llmc_model *m, const int *targets, int rows) {
    int found = 0;
    for (int i = 0; i < rows; i++)
        if (targets[i] >= 0) {
            m->k->copy_in(&m->ctx, acts_at(m, 0).targets + found, targets + i, 4);
            TRY(move_row(m, found++, i));
        }
    return found;
}

/* The losses of gathered rows, and their logits unless NULL, as many rows at a time as the model has memory for. */
static int losses_of(llmc_model *m, int rows, float *losses, float *logits) {
    const int C = m->config.C, V = m->config.V, Vp = m->config.Vp;
    const int most = (int)(m->layout.table[A_logits].size / Vp);
    const Acts a = acts_at(m, 0);
    for (int at = 0; at < rows; at += most) {
        const int n = rows - at < most ? rows - at : most;
        m->k->matmul_forward(&m->ctx, a.logits, gpt2_at(m, a.lnf, (int64_t)at * C), gpt2_head(m), NULL, 1, n, C, Vp);
        m->k->classifier_forward(&m->ctx, a.losses + at, a.logits_lse + at, a.logits, a.targets + at, 1, n, V, Vp);
        if (logits) TRY(gpt2_fetch(m, logits + (int64_t)at * V, a.logits, n, V, Vp));
    }
    m->k->copy_out(&m->ctx, losses, a.losses, (int64_t)rows * 4);
    return m->k->sync(&m->ctx);
}

/* Returns the number of rows in all spans. */
static int check_spans(const llmc_model *m, const int *counts, const int *pos, int spans) {
    const int64_t most = (int64_t)m->room.B * m->room.T;
    int64_t rows = 0;
    int reached = m->reached[0];
    CHECK(spans >= 1, LLMC_EINVAL, "%d spans: scoring needs one at least", spans);
    for (int i = 0; i < spans; rows += counts[i++]) {
        CHECK(counts[i] >= 1 && pos[i] >= 0 && pos[i] <= m->room.T - counts[i], LLMC_EINVAL,
              "span %d: %d tokens behind %d are not 1 to T=%d", i, counts[i], pos[i], m->room.T);
        CHECK(remembers(m, reached, pos[i]), LLMC_EINVAL, FORGOTTEN, "span", i, pos[i], reached);
        reached = reach(reached, pos[i], counts[i]);
    }
    CHECK(rows <= most, LLMC_EINVAL, "%lld tokens at once: the model was made for B T = %lld", (long long)rows,
          (long long)most);
    return (int)rows;
}

/* The position of every row goes where targets will be, which nobody reads before the rows are gathered. */
static void place_rows(llmc_model *m, const int *counts, const int *pos, int spans) {
    enum { PART = 256 };
    int part[PART], *to = acts_at(m, 0).targets;
    for (int i = 0; i < spans; i++)
        for (int t = 0, n; t < counts[i]; t += n, to += n) {
            n = counts[i] - t < PART ? counts[i] - t : PART;
            for (int j = 0; j < n; j++) part[j] = pos[i] + t + j;
            m->k->copy_in(&m->ctx, to, part, n * 4);
        }
}

int llmc_model_score(llmc_model *m, const int *tokens, const int *targets, const int *counts, const int *pos, int spans,
                     float *losses, float *logits) {
    const int rows = check_spans(m, counts, pos, spans);
    const Acts a = acts_at(m, 0);
    TRY(rows);
    TRY(gpt2_check_ids("tokens", tokens, rows, 0, m->config.V));
    TRY(gpt2_check_ids("targets", targets, rows, -1, m->config.V));
    forget_batch(m);
    for (int i = 0; i < spans; i++) m->reached[0] = reach(m->reached[0], pos[i], counts[i]);
    m->k->copy_in(&m->ctx, a.tokens, tokens, (int64_t)rows * 4);
    place_rows(m, counts, pos, spans);
    TRY(layers_forward(m, &(Pass){.B = 1,
                                  .T = rows,
                                  .cached = 1,
                                  .spans = spans,
                                  .counts = counts,
                                  .row_positions = a.targets,
                                  .told = "of the batch",
                                  .may_stop = 1}));
    int found = gather(m, targets, rows);
    TRY(found);
    TRY(losses_of(m, found, losses, logits));
    for (int i = rows - 1; i >= 0; i--) losses[i] = targets[i] < 0 ? 0 : losses[--found]; /* each to its place */
    return LLMC_OK;
}
