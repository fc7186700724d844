/* LoRA's adapters in the forward and the backward pass of a layer. */
#include "model/lora.h"
#include <stdlib.h>
#include "base/error.h"

const int lora_matrices[LORA_TARGETS] = {P_qkvw, P_attprojw, P_fcw, P_fcprojw};

typedef struct Adapter {
    const floatX *A, *B;
    float *dA, *dB;
    floatX *hidden;         /* (B,T,rank) = scale x A^T, which the forward pass leaves for the gradient of B */
    floatX *dhidden;        /* (B,T,rank) = scale dy B */
    const Dropout *dropout; /* drops what A reads, unless it is NULL */
    int C, OC, rank;
    float scale;
} Adapter;

static Adapter adapter_at(const llmc_model *m, const Pass *pass, int l, int target) {
    const int A = lora_row_of_A(target), B = A + 1, rank = m->room.lora_rank;
    const llmc_tensor *a = &m->layout.table[A], *b = &m->layout.table[B];
    const Acts acts = acts_at(m, pass->cached ? 0 : l);
    return (Adapter){.A = gpt2_at(m, m->stored, a->offset + l * a->stride),
                     .B = gpt2_at(m, m->stored, b->offset + l * b->stride),
                     .dA = gradient_of(m, A, l),
                     .dB = gradient_of(m, B, l),
                     .hidden = gpt2_at(m, acts.lora, (int64_t)target * pass->B * pass->T * rank),
                     .dhidden = acts.dlora,
                     .dropout = pass->cached ? NULL : gpt2_dropout(m, LLMC_DROP_LORA + target, l),
                     .C = (int)a->shape[1],
                     .OC = (int)b->shape[0],
                     .rank = rank,
                     .scale = m->room.lora_alpha / (float)rank};
}

void lora_forward(const llmc_model *m, const Pass *pass, int l, int target, floatX *out, floatX *gelu,
                  const floatX *inp, const floatX *w, const floatX *b) {
    const Adapter a = adapter_at(m, pass, l, target);
    m->k->lora_forward((Context *)&m->ctx, out, gelu, a.hidden, inp, w, b, a.A, a.B, a.dropout, a.scale, pass->B,
                       pass->T, a.C, a.OC, a.rank);
}

/* inp as A has read it: with dropout, in a buffer whose turn comes only after this. That of fcproj may be inp itself, which
 * nobody reads again. */
static const floatX *what_was_read(const llmc_model *m, const Pass *pass, int l, int target, const Adapter *a,
                                   const floatX *inp) {
    const Acts acts = acts_at(m, l);
    floatX *to = target == LORA_FCPROJ ? acts.dfch : acts.branch;
    if (!a->dropout) return inp;
    m->k->dropout((Context *)&m->ctx, to, inp, a->dropout, pass->B, pass->T, a->C);
    return to;
}

void lora_backward(const llmc_model *m, const Pass *pass, int l, int target, const floatX *dout, const floatX *inp,
                   int accumulate) {
    Context *ctx = (Context *)&m->ctx;
    const int B = pass->B, T = pass->T;
    const Adapter a = adapter_at(m, pass, l, target);
    const floatX *read = what_was_read(m, pass, l, target, &a, inp);
    m->k->lora_backward_hidden(ctx, a.dhidden, dout, a.B, a.scale, B, T, a.OC, a.rank);
    m->k->matmul_backward_weight(ctx, a.dB, NULL, dout, a.hidden, accumulate, B, T, a.rank, a.OC);
    m->k->matmul_backward_weight(ctx, a.dA, NULL, a.dhidden, read, accumulate, B, T, a.C, a.rank);
}

void lora_backward_input(const llmc_model *m, const Pass *pass, int l, int target, floatX *dinp, const floatX *dout,
                         const floatX *w, const floatX *pre) {
    const Adapter a = adapter_at(m, pass, l, target);
    m->k->lora_backward_input((Context *)&m->ctx, dinp, dout, w, a.dhidden, a.A, pre, a.dropout, pass->B, pass->T, a.C,
                              a.OC, a.rank);
}

static void add_product(float *W, const float *A, const float *B, int64_t OC, int64_t C, int rank, float scale) {
    for (int64_t o = 0; o < OC; o++)
        for (int k = 0; k < rank; k++) {
            const float b = scale * B[o * rank + k];
            for (int64_t c = 0; c < C; c++) W[o * C + c] += b * A[k * C + c];
        }
}

int gpt2_merge(llmc_model *m, int target, int l, const float *A, const float *B, int rank, float scale) {
    const llmc_tensor *t = &m->layout.table[lora_matrices[target]];
    const int64_t at = t->offset + l * t->stride;
    float *W = malloc((size_t)t->size * sizeof *W);
    CHECK(W, LLMC_ENOMEM, "no memory to merge adapters");
    int rc = gpt2_get(m, W, m->params, at, t->size);
    if (rc == 0) add_product(W, A, B, t->shape[0], t->shape[1], rank, scale);
    if (rc == 0) gpt2_set(m, m->params, at, W, t->size);
    if (rc == 0) rc = m->k->sync(&m->ctx);
    free(W);
    return rc;
}
