/* Fresh weights, drawn as each row of the table asks: tensor after tensor and layer after layer, with the same numbers as the
 * PyTorch reference draws from the same seed. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "base/rng.h"
#include "model/gpt2.h"
#include "base/pulse.h"

enum { NUMBERS_AT_A_TIME = 1 << 20 }; /* few, so that hardly more memory is used than the weights take */

/* PyTorch draws 16 numbers at a time, and the last 16 anew if fewer are left. Parts that end at a multiple of 16, and a last
 * part of more than 16, keep the numbers the same. */
static int64_t next_part(int64_t left) { return left < 2 * NUMBERS_AT_A_TIME ? left : NUMBERS_AT_A_TIME; }

/* Draws n elements of one layer. The rows behind V, which pad a tensor to Vp, are zero. */
static int draw(llmc_model *m, llmc_rng *rng, float *x, const llmc_tensor *t, int l, int64_t n, double std,
                Share *share) {
    const int64_t first = t->offset + l * t->stride;
    if (t->init == LLMC_RESIDUAL) std /= sqrt(2.0 * m->config.L);
    for (int64_t at = 0, count; at < n; at += count) {
        count = next_part(n - at);
        if (t->init == LLMC_NORMAL || t->init == LLMC_RESIDUAL) llmc_rng_normal(rng, x, count, 0, (float)std);
        else
            for (int64_t i = 0; i < count; i++) x[i] = t->init == LLMC_ONE;
        gpt2_set(m, m->params, first + at, x, count);
        TRY(pulse_share(share, count));
    }
    gpt2_clear(m, first + n, t->size - n);
    return LLMC_OK;
}

static int draw_all(llmc_model *m, llmc_rng *rng, float *x, double std) {
    Share share = {.what = "drawing the weights", .path = "", .all = m->layout.num_params, .percent = -1};
    for (int i = 0; i < NUM_PARAM_TENSORS; i++) {
        const llmc_tensor *t = &m->layout.table[i];
        const int64_t n = layout_is_padded(i) && t->size ? (int64_t)m->config.V * m->config.C : t->size;
        for (int l = 0; l < (t->layers ? t->layers : 1); l++) TRY(draw(m, rng, x, t, l, n, std, &share));
    }
    return LLMC_OK;
}

/* GPT-2's 0.02, and more for models with less than its 768 channels, so that a layer's output keeps its size. Without that a
 * small model takes many thousand steps to tell one name from another. */
static double usual_std(int C) { return C < 768 ? 0.02 * sqrt(768.0 / C) : 0.02; }

int llmc_model_init(llmc_model *m, int64_t seed, double std) {
    CHECK(std >= 0 && std <= 100, LLMC_EINVAL, "init_std=%g is not in 0..100; 0 means the usual", std);
    float *x = malloc(2 * NUMBERS_AT_A_TIME * sizeof *x);
    CHECK(x, LLMC_ENOMEM, "no memory to draw fresh weights");
    if (std == 0) std = usual_std(m->config.C);
    m->ctx.weight_format = m->k->element;
    llmc_rng rng;
    llmc_rng_seed(&rng, seed);
    const int rc = draw_all(m, &rng, x, std);
    free(x);
    pulse("%s", "");
    TRY(rc);
    TRY(gpt2_store(m));
    return m->room.lora_rank ? llmc_model_init_adapters(m, seed) : LLMC_OK;
}

/* A matrix (r,C) of an adapter, uniform within 1/sqrt(C) of 0; or zeros. */
static int draw_adapter(llmc_model *m, llmc_rng *rng, int i, int l, float *x) {
    const llmc_tensor *t = &m->layout.table[i];
    const float bound = 1 / sqrtf((float)t->shape[1]);
    memset(x, 0, (size_t)t->size * sizeof *x);
    if (t->init == LLMC_UNIFORM) rng_uniform(rng, x, t->size, -bound, bound);
    return llmc_model_write(m, LLMC_PARAMS, i, l, t->size, x);
}

int llmc_model_init_adapters(llmc_model *m, int64_t seed) {
    const int64_t largest = (int64_t)4 * m->config.C * m->room.lora_rank;
    llmc_rng rng;
    CHECK(m->room.lora_rank, LLMC_EINVAL, "this model has no adapters: create it with a lora_rank");
    float *x = malloc((size_t)largest * sizeof *x);
    CHECK(x, LLMC_ENOMEM, "no memory to draw adapters");
    llmc_rng_seed(&rng, seed);
    int rc = LLMC_OK;
    for (int i = NUM_PARAM_TENSORS; i < NUM_TRAINABLE; i++)
        for (int l = 0; rc == 0 && m->layout.table[i].size && l < m->config.L; l++) rc = draw_adapter(m, &rng, i, l, x);
    free(x);
    return rc;
}
