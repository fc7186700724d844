/* Finds where a NaN or infinity came from: the first tensor that holds one, in the order of computation. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "model/gpt2.h"

enum { ELEMENTS_AT_A_TIME = 1 << 14 };

int64_t gpt2_find_nonfinite(const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], 4);
        if ((bits & 0x7f800000) == 0x7f800000) return i;
    }
    return -1;
}

/* Looks at the first n elements of layer l of row i. */
static int has_nonfinite(const llmc_model *m, int block, int i, int l, int64_t n, float *x) {
    for (int64_t at = 0; at < n; at += ELEMENTS_AT_A_TIME) {
        const int64_t count = n - at < ELEMENTS_AT_A_TIME ? n - at : ELEMENTS_AT_A_TIME;
        if (gpt2_read(m, block, i, l, at, count, x) < 0) return 0;
        if (gpt2_find_nonfinite(x, count) >= 0) return 1;
    }
    return 0;
}

/* Looks at the used part of layer l of row i. A tensor that is not kept is skipped: it may hold another layer's numbers. */
static int row_is_bad(const llmc_model *m, const Layout *used, int i, int l, float *x) {
    const llmc_tensor *t = &m->layout.table[i];
    const int block = i < NUM_TRAINABLE ? LLMC_PARAMS : LLMC_ACTS;
    if (block == LLMC_PARAMS && gpt2_is_compressed(m)) return 0;
    return t->type != LLMC_I && t->kept && has_nonfinite(m, block, i, l, used->table[i].size, x);
}

static int describe(char *name, size_t size, const char *what, const llmc_tensor *t, int l) {
    if (t->layers) return snprintf(name, size, "%s h.%d.%s", what, l, t->name);
    return snprintf(name, size, "%s %s", what, t->name);
}

static int find(llmc_model *m, const Layout *used, float *x, char *name, size_t size) {
    const int L = m->config.L, order[] = {A_residual3, A_lnf, A_logits, A_losses};
    for (int i = 0; i < NUM_TRAINABLE; i++)
        for (int l = 0; l < (m->layout.table[i].layers ? L : 1); l++)
            if (row_is_bad(m, used, i, l, x)) return describe(name, size, "weights", &m->layout.table[i], l);
    for (int l = 0; l < L; l++)
        for (int i = A_residual1; i < A_residual3; i++)
            if (row_is_bad(m, used, i, l, x)) return describe(name, size, "activation", &m->layout.table[i], l);
    for (int i = 0; i < 4; i++)
        if (row_is_bad(m, used, order[i], 0, x))
            return describe(name, size, "activation", &m->layout.table[order[i]], 0);
    return 0;
}

int llmc_model_find_nonfinite(llmc_model *m, char *name, size_t size) {
    Layout used;
    llmc_room room = m->room;
    float *x = malloc(ELEMENTS_AT_A_TIME * sizeof *x);
    CHECK(x, LLMC_ENOMEM, "no memory to look for a NaN");
    name[0] = 0;
    if (m->b) room.B = m->b, room.T = m->t;
    const int rc = layout_make(&used, &m->config, &room);
    if (rc == 0 && m->b) find(m, &used, x, name, size);
    free(x);
    return rc;
}
