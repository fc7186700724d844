/* The tensors of a model, as the host reads and writes them. */
#include <string.h>
#include "base/bf16.h"
#include "base/error.h"
#include "model/gpt2.h"

const llmc_config *llmc_model_config(const llmc_model *m) { return &m->config; }
const llmc_room *llmc_model_room(const llmc_model *m) { return &m->room; }
const char *llmc_model_isa(const llmc_model *m) { return m->k->name; }
int llmc_model_threads(const llmc_model *m) { return m->ctx.threads; }
int llmc_model_shape(const llmc_model *m, int *b, int *t) { return *b = m->b, *t = m->t, LLMC_OK; }
int64_t llmc_model_gradient_at(const llmc_model *m, int i, int l) {
    return i >= 0 && i < NUM_TRAINABLE && l >= 0 && l < layers_stored(&m->layout.table[i]) ? gradient_at(m, i, l) : -1;
}
int64_t llmc_model_step(const llmc_model *m) { return m->step; }
int llmc_model_sync(llmc_model *m) { return m->k->sync(&m->ctx); }
int llmc_model_on_host(const llmc_model *m) { return m->k->host; }
int llmc_model_weights(const llmc_model *m) { return m->ctx.weight_format; }
const llmc_tensor *llmc_model_tensor(const llmc_model *m, int i) {
    return i >= 0 && i < NUM_TENSORS ? &m->layout.table[i] : NULL;
}

/* NULL if the model has no such block. */
static float *block_of(const llmc_model *m, int block) {
    float *const blocks[] = {m->params, m->grads, m->m, m->v, m->acts};
    if (block == LLMC_PARAMS && gpt2_is_compressed(m)) return NULL;
    return block >= 0 && block < 5 ? blocks[block] : NULL;
}

/* ZeRO-1 leaves only a share of the moments here, whose place is that of no tensor. */
static int is_shared_out(const llmc_model *m, int block) {
    return m->room.shards > 1 && (block == LLMC_M || block == LLMC_V);
}

void *llmc_model_block(llmc_model *m, int block) {
    const int whole = block != LLMC_PARAMS || !m->ctx.split;
    return m->k->host && whole && !is_shared_out(m, block) ? block_of(m, block) : NULL;
}

void gpt2_widen(float *to, const uint16_t *from, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const uint32_t bits = (uint32_t)from[i] << 16;
        memcpy(&to[i], &bits, 4);
    }
}

int gpt2_fetch(const llmc_model *m, float *out, const floatX *src, int64_t rows, int64_t n, int64_t stride) {
    Context *ctx = (Context *)&m->ctx;
    const int64_t bytes = n * element_bytes(m->k->element);
    /* A row is copied to the end of its memory and widened from its start, so that no number is overwritten before it is read. */
    for (int64_t i = 0; i < rows; i++)
        m->k->copy_out(ctx, (char *)(out + (i + 1) * n) - bytes, gpt2_at(m, src, i * stride), bytes);
    TRY(m->k->sync(ctx));
    for (int64_t i = 0; m->k->element == LLMC_BF16 && i < rows; i++)
        gpt2_widen(out + i * n, (const uint16_t *)(out + (i + 1) * n) - n, n);
    return LLMC_OK;
}

/* ---- floats of blocks ---- */

/* A model whose masters are split lies in the host's memory, and its kernels have ended when they return. */
static int is_split(const llmc_model *m, const float *block) { return m->ctx.split && block == m->params; }

int gpt2_get(const llmc_model *m, float *x, const float *block, int64_t at, int64_t n) {
    if (is_split(m, block)) {
        const uint16_t *upper = (const uint16_t *)m->stored + at, *lower = gpt2_master(m, at);
        for (int64_t i = 0; i < n; i++) x[i] = bf16_join(upper[i], lower[i]);
        return LLMC_OK;
    }
    m->k->copy_out((Context *)&m->ctx, x, block + at, n * 4);
    return m->k->sync((Context *)&m->ctx);
}

void gpt2_set(llmc_model *m, float *block, int64_t at, const float *x, int64_t n) {
    if (is_split(m, block)) {
        uint16_t *upper = (uint16_t *)m->stored + at, *lower = gpt2_master(m, at);
        for (int64_t i = 0; i < n; i++) bf16_split(x[i], upper + i, lower + i);
        return;
    }
    m->k->copy_in(&m->ctx, block + at, x, n * 4);
}

void gpt2_clear(llmc_model *m, int64_t at, int64_t n) {
    m->k->fill(&m->ctx, gpt2_master(m, at), 0, n * master_bytes(m->ctx.split));
    m->k->fill(&m->ctx, gpt2_at(m, m->stored, at), 0, n * element_bytes(m->k->element));
}

/* Brings n elements of `stored` up to date, beginning at element `at`. */
static int store(const llmc_model *m, int64_t at, int64_t n) {
    if (m->ctx.split) return LLMC_OK;
    m->k->store((Context *)&m->ctx, gpt2_at(m, m->stored, at), m->params + at, n);
    return m->k->sync((Context *)&m->ctx);
}

int gpt2_store(const llmc_model *m) { return store(m, 0, m->layout.num_weights); }

/* ---- tensors ---- */

/* Where layer l of row i begins in a block; LLMC_EINVAL if the block has not `end` elements of it. */
static int64_t find(const llmc_model *m, int block, int i, int l, int64_t end) {
    const llmc_tensor *t = llmc_model_tensor(m, i);
    CHECK(block != LLMC_PARAMS || !gpt2_is_compressed(m), LLMC_EINVAL,
          "compressed weights are neither read nor written: make the model with weights in fp32");
    const int there = t && block_of(m, block) && !is_shared_out(m, block) &&
                      (i < NUM_TRAINABLE) == (block != LLMC_ACTS) && l >= 0 && l < layers_stored(t) && end >= 0 &&
                      end <= t->size;
    const int of_gradients = block == LLMC_GRADS || block == LLMC_M || block == LLMC_V;
    if (there && !of_gradients) return t->offset + l * t->stride;
    if (there && gradient_at(m, i, l) >= 0) return gradient_at(m, i, l);
    FAIL(LLMC_EINVAL, "block %d has no %lld numbers of tensor %d, layer %d", block, (long long)end, i, l);
}

int gpt2_read(const llmc_model *m, int block, int i, int l, int64_t from, int64_t n, void *out) {
    const int64_t at = find(m, block, i, l, from + n);
    if (at < 0) return (int)at;
    if (m->layout.table[i].type != LLMC_X) return gpt2_get(m, out, block_of(m, block), at + from, n);
    return gpt2_fetch(m, out, gpt2_at(m, (const floatX *)(m->acts + at), from), 1, n, n);
}

int llmc_model_read(const llmc_model *m, int block, int i, int l, int64_t n, void *out) {
    return gpt2_read(m, block, i, l, 0, n, out);
}

int llmc_model_write(llmc_model *m, int block, int i, int l, int64_t n, const float *in) {
    const int64_t at = find(m, block, i, l, n);
    if (at < 0) return (int)at;
    CHECK(block != LLMC_ACTS, LLMC_EINVAL, "activations are what the model computes: nothing writes them from outside");
    gpt2_set(m, block_of(m, block), at, in, n);
    if (block == LLMC_PARAMS) m->cache_of = NULL; /* old weights computed the keys and values of texts */
    return block == LLMC_PARAMS ? store(m, at, n) : m->k->sync(&m->ctx);
}

int llmc_model_refresh(llmc_model *m) {
    CHECK(!gpt2_is_compressed(m), LLMC_EINVAL,
          "compressed weights cannot be refreshed: make the model with weights in fp32");
    m->cache_of = NULL; /* old weights computed the keys and values of texts */
    return gpt2_store(m);
}
