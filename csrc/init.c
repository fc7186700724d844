/* Fresh weights: what each row of the table asks for, tensor after tensor and layer after layer, as the PyTorch
 * reference draws them from the same seed. */
#include <math.h>
#include <stdlib.h>
#include "error.h"
#include "gpt2.h"

/* x[n] of one layer; the rows of wte behind V pad it to Vp and stay zero */
static void draw(llmc_rng *rng, float *x, const llmc_tensor *t, int64_t n, int L, double std) {
    const int random = t->init == LLMC_NORMAL || t->init == LLMC_RESIDUAL;
    if (t->init == LLMC_RESIDUAL) std /= sqrt(2.0 * L);
    if (random) llmc_rng_normal(rng, x, n, 0, (float)std);
    for (int64_t i = random ? n : 0; i < t->size; i++) x[i] = t->init == LLMC_ONE && i < n;
}

/* GPT-2's 0.02, and wider for models narrower than its 768 channels: what a layer puts out keeps its size, without
 * which a small model takes many thousand steps to tell one name from another */
static double usual_std(int C) { return C < 768 ? 0.02 * sqrt(768.0 / C) : 0.02; }

int llmc_model_init(llmc_model *m, int64_t seed, double std) {
    const llmc_tensor *table = m->layout.table;
    int64_t largest = 0;
    for (int i = 0; i < NUM_PARAM_TENSORS; i++) largest = table[i].size > largest ? table[i].size : largest;
    float *x = malloc((size_t)largest * sizeof *x);
    CHECK(x, LLMC_ENOMEM, "no memory for %.0f MB of fresh weights: take a smaller model", (double)largest * 4e-6);
    m->ctx.weights = LLMC_FP32;
    llmc_rng rng;
    llmc_rng_seed(&rng, seed);
    for (int i = 0; i < NUM_PARAM_TENSORS; i++) {
        const llmc_tensor *t = &table[i];
        const int64_t n = i == P_wte ? (int64_t)m->config.V * m->config.C : t->size;
        for (int l = 0; l < (t->layers ? t->layers : 1); l++) {
            draw(&rng, x, t, n, m->config.L, std > 0 ? std : usual_std(m->config.C));
            m->k->copy_in(&m->ctx, m->params + t->offset + l * t->stride, x, t->size * (int64_t)sizeof *x);
        }
    }
    free(x);
    return m->k->sync(&m->ctx);
}
