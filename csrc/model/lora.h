/* LoRA: low-rank adapters beside the matrices of a layer (Hu et al. 2021, https://arxiv.org/abs/2106.09685).
 * y = x W^T + b + scale (x A^T) B^T with scale = alpha / rank, A (rank,C) and B (OC,rank); W and b are frozen.
 * The functions below are for a matrix that has adapters. */
#ifndef LORA_H
#define LORA_H
#include "model/pass.h"

/* The matrices that may have adapters, in the order of tensors.def. */
enum { LORA_QKV, LORA_ATTPROJ, LORA_FC, LORA_FCPROJ, LORA_TARGETS };
extern const int lora_matrices[LORA_TARGETS]; /* their rows in the table, each before that of its bias */
static inline int lora_row_of_A(int target) { return P_qkvA + 2 * target; } /* B's is the next */

static inline int lora_is_on(const llmc_model *m, int target) {
    return m->room.lora_rank && m->room.lora_on >> target & 1;
}
/* out = inp w^T + b and the adapters' part. gelu: becomes gelu(out), unless it is NULL. */
void lora_forward(const llmc_model *m, const Pass *pass, int l, int target, floatX *out, floatX *gelu,
                  const floatX *inp, const floatX *w, const floatX *b);
/* The gradients of A and B. inp must still be there: what lies over it is written by lora_backward_input, which follows. */
void lora_backward(const llmc_model *m, const Pass *pass, int l, int target, const floatX *dout, const floatX *inp,
                   int accumulate);
/* dinp = dout w and the adapters' part, times gelu'(pre) unless pre is NULL. It follows lora_backward of the same matrix. */
void lora_backward_input(const llmc_model *m, const Pass *pass, int l, int target, floatX *dinp, const floatX *dout,
                         const floatX *w, const floatX *pre);
#endif
