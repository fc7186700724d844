/* The outer step of DiLoCo. It is computed by the host, a piece at a time, on every device, because it is rare. What the processes
 * exchange lies in the memory of the gradients, which nobody needs between two steps. */
#include <stdlib.h>
#include "base/error.h"
#include "model/team.h"

enum { PIECE = 1 << 16, SENT_AT_ONCE = 1 << 24 }; /* elements */

typedef struct Outer {
    llmc_model *m;
    float lr, momentum, ranks;
    float weights[PIECE], last[PIECE], u[PIECE], g[PIECE];
} Outer;

/* Work on n elements, which begin at `at` among the parameters, and at `g` among the gradients. */
typedef int (*Work)(Outer *o, int64_t at, int64_t g, int64_t n);

/* last = weights */
static int keep(Outer *o, int64_t at, int64_t g, int64_t n) {
    TRY(gpt2_get(o->m, o->weights, o->m->params, at, n));
    gpt2_set(o->m, o->m->outer, g, o->weights, n);
    return LLMC_OK;
}

/* gradient = last - weights */
static int measure(Outer *o, int64_t at, int64_t g, int64_t n) {
    TRY(gpt2_get(o->m, o->weights, o->m->params, at, n));
    TRY(gpt2_get(o->m, o->last, o->m->outer, g, n));
    for (int64_t i = 0; i < n; i++) o->g[i] = o->last[i] - o->weights[i];
    gpt2_set(o->m, o->m->grads, g, o->g, n);
    return LLMC_OK;
}

/* The gradients hold the sums of all ranks. */
static int step(Outer *o, int64_t at, int64_t g, int64_t n) {
    float *const last = o->m->outer, *const u = team_momentum(o->m);
    TRY(gpt2_get(o->m, o->g, o->m->grads, g, n));
    TRY(gpt2_get(o->m, o->last, last, g, n));
    TRY(gpt2_get(o->m, o->u, u, g, n));
    for (int64_t i = 0; i < n; i++) {
        const float mean = o->g[i] / o->ranks;
        o->u[i] = o->momentum * o->u[i] + mean;
        o->last[i] -= o->lr * (mean + o->momentum * o->u[i]);
    }
    gpt2_set(o->m, u, g, o->u, n);
    gpt2_set(o->m, last, g, o->last, n);
    gpt2_set(o->m, o->m->params, at, o->last, n);
    return LLMC_OK;
}

static int in_pieces(Outer *o, Work work, int64_t at, int64_t g, int64_t n) {
    for (int64_t i = 0; i < n; i += PIECE) TRY(work(o, at + i, g + i, n - i < PIECE ? n - i : PIECE));
    return LLMC_OK;
}

static int on_all_trained(Outer *o, Work work) {
    llmc_model *m = o->m;
    for (int i = 0; i < NUM_TRAINABLE; i++)
        for (int l = 0, n; l < layers_stored(&m->layout.table[i]); l += n ? n : 1) {
            const llmc_tensor *t = &m->layout.table[i];
            n = gpt2_trained_in_a_row(m, i, l);
            if (n) TRY(in_pieces(o, work, t->offset + l * t->stride, gradient_at(m, i, l), n * t->size));
        }
    return m->k->sync(&m->ctx);
}

/* Sums the gradients over all ranks, some at a time, because bf16 takes memory for as many. */
static int sum(llmc_model *m) {
    const int64_t all = m->layout.num_trained;
    for (int64_t i = 0; m->team && i < all; i += SENT_AT_ONCE) {
        m->team->begin_sum(m->team->self, m->grads + i, all - i < SENT_AT_ONCE ? all - i : SENT_AT_ONCE);
        if (m->team->end_sums(m->team->self) != 0)
            return team_lost(m->team); /* an error of begin_sum comes here again */
    }
    return LLMC_OK;
}

static int new_outer(Outer **out, llmc_model *m) {
    CHECK(m->room.outer, LLMC_EINVAL, "the model was made without an outer step: room.outer asks for it");
    Outer *o = *out = malloc(sizeof *o);
    CHECK(o, LLMC_ENOMEM, "no memory for an outer step");
    o->m = m, o->ranks = m->team ? (float)m->team->world : 1;
    return LLMC_OK;
}

int llmc_model_outer_begin(llmc_model *m) {
    Outer *o;
    TRY(new_outer(&o, m));
    const int rc = on_all_trained(o, keep);
    free(o);
    return rc;
}

int llmc_model_outer_step(llmc_model *m, double lr, double momentum) {
    Outer *o;
    TRY(new_outer(&o, m));
    o->lr = (float)lr, o->momentum = (float)momentum;
    int rc = on_all_trained(o, measure);
    if (rc == 0) rc = sum(m);
    if (rc == 0) rc = on_all_trained(o, step);
    free(o);
    return rc == 0 ? gpt2_store(m) : rc;
}
