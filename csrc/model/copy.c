/* Copies the weights of one model into another. */
#include <stdlib.h>
#include "base/error.h"
#include "model/gpt2.h"
#include "model/lora.h"

static int is_alike(const llmc_config *a, const llmc_config *b) {
    return a->V == b->V && a->maxT == b->maxT && a->L == b->L && a->C == b->C && a->untied == b->untied;
}

static int copy_tensor(llmc_model *m, const llmc_model *from, int i, int l, float *x) {
    const int64_t n = m->layout.table[i].size;
    TRY(llmc_model_read(from, LLMC_PARAMS, i, l, n, x));
    return llmc_model_write(m, LLMC_PARAMS, i, l, n, x);
}

/* Adds what the adapters of one matrix in layer l do, as a file of adapters is merged (files/load.c). x: memory for both. */
static int merge(llmc_model *m, const llmc_model *from, int target, int l, float *x) {
    const int A = lora_row_of_A(target), B = A + 1;
    const int64_t n = from->layout.table[A].size, more = from->layout.table[B].size;
    if (!lora_is_on(from, target)) return LLMC_OK;
    TRY(llmc_model_read(from, LLMC_PARAMS, A, l, n, x));
    TRY(llmc_model_read(from, LLMC_PARAMS, B, l, more, x + n));
    return gpt2_merge(m, target, l, x, x + n, from->room.lora_rank,
                      from->room.lora_alpha / (float)from->room.lora_rank);
}

static int copy_all(llmc_model *m, const llmc_model *from, float *x) {
    for (int i = 0; i < NUM_PARAM_TENSORS; i++)
        for (int l = 0; m->layout.table[i].size && l < layers_stored(&m->layout.table[i]); l++)
            TRY(copy_tensor(m, from, i, l, x));
    if (!from->room.lora_rank) return LLMC_OK;
    for (int target = 0; target < LORA_TARGETS; target++)
        for (int l = 0; l < m->config.L; l++) TRY(merge(m, from, target, l, x));
    return llmc_model_refresh(m);
}

int llmc_model_copy_weights(llmc_model *m, const llmc_model *from) {
    int64_t most = 0;
    CHECK(is_alike(&m->config, &from->config) && !m->room.lora_rank, LLMC_EINVAL,
          "weights are copied into a model of the same sizes that has no adapters");
    for (int i = 0; i < NUM_TRAINABLE; i++)
        if (from->layout.table[i].size > most) most = from->layout.table[i].size;
    float *x = malloc(2 * (size_t)most * sizeof *x);
    CHECK(x, LLMC_ENOMEM, "no memory to copy weights");
    const int rc = copy_all(m, from, x);
    free(x);
    return rc;
}
