/* Fresh weights: what each row of the table asks for, tensor after tensor and layer after layer, as the PyTorch
 * reference draws them from the same seed. */
#include <math.h>
#include <stdlib.h>
#include "error.h"
#include "gpt2.h"

/* x[n] of one layer; the rows of wte behind V pad it to Vp and stay zero */
static void draw(llmc_rng *rng, float *x, const llmc_tensor *t, int64_t n, int L) {
    const float std = t->init == LLMC_RESIDUAL ? (float)(0.02 / sqrt(2.0 * L)) : 0.02f;
    const int random = t->init == LLMC_NORMAL || t->init == LLMC_RESIDUAL;
    if (random) llmc_rng_normal(rng, x, n, 0, std);
    for (int64_t i = random ? n : 0; i < t->size; i++) x[i] = t->init == LLMC_ONE && i < n;
}

int llmc_model_init(llmc_model *m, int64_t seed) {
    const llmc_tensor *table = m->layout.table;
    int64_t largest = 0;
    for (int i = 0; i < NUM_PARAM_TENSORS; i++) largest = table[i].size > largest ? table[i].size : largest;
    float *x = malloc((size_t)largest * sizeof *x);
    CHECK(x, LLMC_ENOMEM, "no memory for %.0f MB of fresh weights: take a smaller model", (double)largest * 4e-6);
    llmc_rng rng;
    llmc_rng_seed(&rng, seed);
    for (int i = 0; i < NUM_PARAM_TENSORS; i++) {
        const llmc_tensor *t = &table[i];
        const int64_t n = i == P_wte ? (int64_t)m->config.V * m->config.C : t->size;
        for (int l = 0; l < (t->layers ? t->layers : 1); l++) {
            draw(&rng, x, t, n, m->config.L);
            m->k->copy_in(&m->ctx, m->params + t->offset + l * t->stride, x, t->size * (int64_t)sizeof *x);
        }
    }
    free(x);
    return m->k->sync(&m->ctx);
}
