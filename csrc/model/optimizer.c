/* Gradients are zeroed, measured, clipped, and taken by AdamW. */
#include <float.h>
#include <math.h>
#include "base/error.h"
#include "model/team.h"

int llmc_model_zero_grad(llmc_model *m) {
    TRY(gpt2_need_training(m));
    m->k->fill(&m->ctx, m->grads, 0, m->layout.num_trained * (int64_t)sizeof(float));
    return m->k->sync(&m->ctx);
}

int llmc_model_reset_moments(llmc_model *m) {
    const int64_t bytes = m->layout.num_moments * (int64_t)sizeof(float);
    TRY(gpt2_need_training(m));
    m->step = 0, m->drop.micro_step = m->drop.first;
    m->k->fill(&m->ctx, m->m, 0, bytes);
    m->k->fill(&m->ctx, m->v, 0, bytes);
    if (m->room.outer) m->k->fill(&m->ctx, team_momentum(m), 0, bytes);
    return m->k->sync(&m->ctx);
}

int llmc_model_set_step(llmc_model *m, int64_t step) {
    TRY(gpt2_need_training(m));
    CHECK(step >= 0, LLMC_EINVAL, "step=%lld is not >= 0", (long long)step);
    m->step = step;
    return LLMC_OK;
}

int llmc_model_grad_norm(llmc_model *m, float max_norm, float *norm) {
    float *stats = acts_at(m, 0).norm;
    TRY(gpt2_need_training(m));
    m->k->global_norm(&m->ctx, stats, m->grads, max_norm, m->layout.num_trained);
    m->k->copy_out(&m->ctx, norm, stats, 4);
    TRY(m->k->sync(&m->ctx));
    CHECK(*norm <= FLT_MAX, LLMC_ENUMERIC, "the gradient norm is %g: nothing was changed", (double)*norm);
    return LLMC_OK;
}

int llmc_model_clip_grad_norm(llmc_model *m, float max_norm, float *norm) {
    float before;
    CHECK(max_norm > 0, LLMC_EINVAL, "max_norm=%g is not > 0", (double)max_norm);
    const int rc = llmc_model_grad_norm(m, max_norm, norm ? norm : &before);
    TRY(rc);
    m->k->scale(&m->ctx, m->grads, acts_at(m, 0).norm + 1, m->layout.num_trained);
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

/* The numbers of step t, which counts from 1. */
static AdamW make_step(const llmc_adamw *h, int64_t t) {
    const double correct1 = 1 - pow(h->beta1, (double)t), correct2 = 1 - pow(h->beta2, (double)t);
    return (AdamW){
        .beta1 = (float)h->beta1,
        .gain1 = (float)(1 - h->beta1),
        .beta2 = (float)h->beta2,
        .gain2 = (float)(1 - h->beta2),
        .rate = (float)(h->lr / correct1),
        .unbias = (float)(1 / sqrt(correct2)),
        .eps = (float)h->eps,
        .decay = (float)(h->lr * h->weight_decay),
    };
}

/* True if the tensor decays. */
static int decays(const llmc_model *m, const llmc_tensor *p, const llmc_adamw *h) {
    const llmc_tensor *t = m->layout.table;
    return p->decay && !(h->still_embeddings && (p == t + P_wte || p == t + P_wpe));
}

/* Updates the parameters from `at` on, whose n gradients begin at g, as far as their moments are here. */
static void update_run(llmc_model *m, int64_t at, int64_t g, int64_t n, int decay, const float *factor) {
    const AdamW *step = (const AdamW *)acts_at(m, 0).adamw;
    for (int i = 0; i < MOMENT_PARTS; i++) {
        const Moments own = moments_part(&m->layout, &m->room, i);
        const int64_t from = g > own.first ? g : own.first, to = g + n < own.end ? g + n : own.end;
        if (from >= to) continue;
        const int64_t x = at + from - g, mv = own.at + from - own.first;
        m->k->adamw(&m->ctx, gpt2_master(m, x), gpt2_at(m, m->stored, x), m->m + mv, m->v + mv, m->grads + from, factor,
                    step, decay, to - from);
    }
}

static void update(llmc_model *m, const llmc_adamw *h, const float *factor) {
    for (int i = 0; i < NUM_TRAINABLE; i++)
        for (int l = 0, n; l < layers_stored(&m->layout.table[i]); l += n ? n : 1) {
            const llmc_tensor *p = &m->layout.table[i];
            const int64_t at = p->offset + l * p->stride, g = gradient_at(m, i, l);
            if ((n = gpt2_trained_in_a_row(m, i, l))) update_run(m, at, g, n * p->size, decays(m, p, h), factor);
        }
}

int llmc_model_update(llmc_model *m, const llmc_adamw *h, int clip) {
    const Acts a = acts_at(m, 0);
    /* The key differs from any other call's: a batch's first number is not 0. */
    const int64_t key[4] = {0, clip != 0, h->still_embeddings != 0};
    TRY(gpt2_need_training(m));
    TRY(check_adamw(h));
    const AdamW step = make_step(h, ++m->step);
    m->cache_of = NULL; /* old weights computed the keys and values of texts */
    m->drop.micro_step = m->drop.first;
    _Static_assert(sizeof step == 8 * sizeof(float), "tensors.def has room for 8");
    m->k->copy_in(&m->ctx, a.adamw, &step, sizeof step);
    if (!m->k->replay(&m->ctx, key)) {
        update(m, h, clip ? a.norm + 1 : NULL);
        m->k->recorded(&m->ctx);
    }
    return m->room.shards > 1 ? team_gather(m) : LLMC_OK;
}

void gpt2_skip_update(llmc_model *m) {
    m->drop.micro_step = m->drop.first;
    m->step++;
}
