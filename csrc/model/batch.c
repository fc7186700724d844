/* A batch forward and backward: the layers, which are in layers.c, the logits and the loss. No arithmetic and no device code
 * is here: the kernels of any device are called in the same order. */
#include <string.h>
#include "base/bf16.h"
#include "base/error.h"
#include "model/layers.h"

/* ---- logits and loss, forward and backward ---- */

/* The rows go through in equal chunks; in a single one if the logits of every token are kept. */

enum { LOGITS = 1, LOSSES = 2, GRADIENTS = 4, ACCUMULATE = 8 };

/* The gradient that a backward pass begins with: of scale times the loss; or, if it is given, that of the logits themselves. */
typedef struct Start {
    float scale;
    const float *dlogits; /* (b,t,V), on the host; NULL: the loss's */
} Start;

/* The shape alone decides it, so that the result does not depend on anything else. */
static int64_t rows_in_chunk(const llmc_model *m) {
    const int64_t rows = (int64_t)m->b * m->t, most = m->layout.table[A_logits].size / m->config.Vp;
    const int64_t chunks = (rows + most - 1) / most;
    return (rows + chunks - 1) / chunks;
}

/* One row of dlogits into the memory of logits, in the model's element. */
static void put_row(llmc_model *m, floatX *to, const float *from) {
    enum { PART = 1024 };
    uint16_t part[PART];
    const int V = m->config.V;
    if (m->k->element == LLMC_FP32) {
        m->k->copy_in(&m->ctx, to, from, (int64_t)V * 4);
        return;
    }
    for (int at = 0; at < V; at += PART) {
        const int n = V - at < PART ? V - at : PART;
        for (int i = 0; i < n; i++) part[i] = bf16_of(from[at + i]);
        m->k->copy_in(&m->ctx, gpt2_at(m, to, at), part, (int64_t)n * 2);
    }
}

/* Rows of dlogits in the place of logits; the columns that pad the vocabulary are 0. */
static void put_dlogits(llmc_model *m, const float *dlogits, int64_t row, int rows) {
    const int64_t V = m->config.V, Vp = m->config.Vp;
    floatX *logits = acts_at(m, 0).logits;
    if (Vp > V) m->k->fill(&m->ctx, logits, 0, rows * Vp * element_bytes(m->k->element));
    for (int i = 0; i < rows; i++) put_row(m, gpt2_at(m, logits, i * Vp), dlogits + (row + i) * V);
}

static void chunk(llmc_model *m, int64_t row, int rows, int wanted, Start start) {
    const Kernels *k = m->k;
    const int C = m->config.C, V = m->config.V, Vp = m->config.Vp;
    const floatX *head = gpt2_head(m);
    const Acts a = acts_at(m, 0);
    floatX *lnf = gpt2_at(m, a.lnf, row * C), *dlnf = gpt2_at(m, a.branch, row * C);
    float *lse = a.logits_lse + row;
    int *targets = a.targets + row;
    if (wanted & LOGITS) k->matmul_forward(&m->ctx, a.logits, lnf, head, NULL, 1, rows, C, Vp);
    if (wanted & LOSSES) k->classifier_forward(&m->ctx, a.losses + row, lse, a.logits, targets, 1, rows, V, Vp);
    if (!(wanted & GRADIENTS)) return;
    float *dhead = gpt2_head_gradient(m);
    if (start.dlogits) put_dlogits(m, start.dlogits, row, rows);
    else
        k->classifier_backward(&m->ctx, a.logits, lse, targets, a.loss_weights + row, a.loss, start.scale, 1, rows, V,
                               Vp);
    if (dhead)
        k->matmul_backward_weight(&m->ctx, dhead, NULL, a.logits, lnf, row || wanted & ACCUMULATE, 1, rows, C, Vp);
    k->matmul_backward_input(&m->ctx, dlnf, a.logits, head, 1, rows, C, Vp);
}

static void chunks(llmc_model *m, int wanted, Start start) {
    const int64_t rows = (int64_t)m->b * m->t, each = rows_in_chunk(m);
    for (int64_t at = 0; at < rows; at += each) chunk(m, at, (int)(rows - at < each ? rows - at : each), wanted, start);
}

static void loss_mean(llmc_model *m) {
    const Acts a = acts_at(m, 0);
    m->k->loss_mean(&m->ctx, a.loss, a.losses, a.targets, a.loss_weights, (int64_t)m->b * m->t);
}

/* ---- a batch ---- */

/* Without this the mean could be NaN or beyond every loss. */
static int check_loss_weights(const float *weights, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        CHECK(weights[i] >= 0 && weights[i] < 3e38f, LLMC_EINVAL, "weights[%lld] = %g: a loss weight is finite, >= 0",
              (long long)i, weights[i]);
    return LLMC_OK;
}

/* weights NULL: all are 1. The first m->ones weights on the device are 1 already and are not copied again. */
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

/* Counts the rows of each row's document before it (kernels.h). A document begins with the separator, or with the window. */
static void put_offsets(llmc_model *m, const int *tokens, int64_t n, int t) {
    enum { PART = 1024 };
    int part[PART], offset = 0;
    for (int64_t at = 0; at < n; at += PART) {
        const int64_t each = n - at < PART ? n - at : PART;
        for (int64_t i = at; i < at + each; i++) {
            const int begins = i % t == 0 || tokens[i] == m->separator;
            part[i - at] = offset = begins ? 0 : offset + 1;
        }
        m->k->copy_in(&m->ctx, acts_at(m, 0).offsets + at, part, each * 4);
    }
}

int llmc_model_separate(llmc_model *m, int id) {
    CHECK(id >= -1 && id < m->config.V, LLMC_EINVAL,
          "separator %d is not in 0..%d: give the id that begins a document, or -1", id, m->config.V - 1);
    m->separator = id;
    if (m->state != EMPTY) m->state = EMPTY, m->cache_of = NULL; /* a backward pass must not see other documents */
    return LLMC_OK;
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
    if (m->separator >= 0) put_offsets(m, tokens, n, t);
    return LLMC_OK;
}

int llmc_model_forward(llmc_model *m, const int *tokens, const int *targets, const float *weights, int b, int t,
                       float *loss) {
    CHECK(targets || m->room.logits, LLMC_EINVAL,
          "without targets there is nothing to keep: this model was made without the logits of every token");
    const Pass pass = {.B = b, .T = t, .told = "forward", .may_stop = 1};
    TRY(take_batch(m, tokens, targets, weights, b, t));
    m->state = EMPTY, m->cache_of = NULL;
    gpt2_begin_dropout(m, m->drop.in_forward);
    TRY(layers_forward(m, &pass));
    m->state = FORWARD_DONE;
    chunks(m, targets ? LOGITS | LOSSES : LOGITS, (Start){0});
    if (targets) {
        loss_mean(m);
        m->state = LOSS_DONE;
    }
    if (targets && loss) m->k->copy_out(&m->ctx, loss, acts_at(m, 0).loss, 4);
    return m->k->sync(&m->ctx);
}

/* True for a gradient that a matrix product makes. That of wte is one only if wte makes the logits, too. */
static int is_written(const llmc_model *m, const llmc_tensor *t) {
    return gpt2_is_matrix(m, t) && !(m->config.untied && t == m->layout.table + P_wte);
}

/* Zeroes the gradients that kernels add to. Those of matrix products are written instead, which saves zeroing and reading
 * half a gigabyte at 124M parameters. */
static void zero_what_adds_up(llmc_model *m) {
    for (int i = 0; i < NUM_PARAM_TENSORS; i++) {
        const llmc_tensor *t = &m->layout.table[i];
        for (int l = 0, n; l < layers_stored(t); l += n ? n : 1)
            if ((n = gpt2_trained_in_a_row(m, i, l)) && !is_written(m, t))
                m->k->fill(&m->ctx, gradient_of(m, i, l), 0, n * t->size * (int64_t)sizeof(float));
    }
}

int llmc_model_backward_from(llmc_model *m, const float *dlogits, float scale, int accumulate) {
    const int ready = m->state == LOSS_DONE || (dlogits && m->state == FORWARD_DONE);
    TRY(gpt2_need_training(m));
    CHECK(ready, LLMC_EINVAL, "backward needs a forward pass%s just before it", dlogits ? "" : " with targets");
    const Pass pass = {.B = m->b, .T = m->t};
    const int again = dlogits || m->room.logits ? 0 : LOGITS;
    if (!accumulate) zero_what_adds_up(m);
    chunks(m, GRADIENTS | again | (accumulate ? ACCUMULATE : 0), (Start){scale, dlogits});
    layers_backward(m, &pass, accumulate);
    m->state = BACKWARD_DONE;
    return m->k->sync(&m->ctx);
}

int llmc_model_backward(llmc_model *m, float scale) { return llmc_model_backward_from(m, NULL, scale, 1); }

static void forward_and_backward(llmc_model *m, float scale, int accumulate) {
    const Pass pass = {.B = m->b, .T = m->t, .told = "forward"}; /* without may_stop: a device may be recording */
    if (!accumulate) zero_what_adds_up(m);
    layers_forward(m, &pass);
    m->k->fill(&m->ctx, acts_at(m, 0).losses, 0, (int64_t)m->b * m->t * 4);
    loss_mean(m); /* only for the sum of the loss weights, by which the first chunk's gradients are divided */
    chunks(m, LOGITS | LOSSES | GRADIENTS | (accumulate ? ACCUMULATE : 0), (Start){.scale = scale});
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
    const int summing = m->summing;
    m->summing = 0; /* a batch that is refused begins no sums */
    TRY(gpt2_need_training(m));
    CHECK(targets, LLMC_EINVAL, "a micro-step needs targets");
    TRY(take_batch(m, tokens, targets, weights, b, t));
    if (!accumulate) m->drop.micro_step = m->drop.first;
    gpt2_begin_dropout(m, 1);
    m->summing = summing, m->failed = LLMC_OK;
    const int64_t key[4] = {b, t, (accumulate != 0) + 2 * (m->separator >= 0) + 4 * m->drop.dropped, bits_of(scale)};
    /* What a device has recorded cannot call the team between two layers. */
    if (m->summing || !m->k->replay(&m->ctx, key)) {
        forward_and_backward(m, scale, accumulate);
        if (!m->summing) m->k->recorded(&m->ctx);
    }
    m->summing = 0;
    m->state = BACKWARD_DONE;
    if (loss) m->k->copy_out(&m->ctx, loss, a.loss, 4);
    return m->failed;
}
