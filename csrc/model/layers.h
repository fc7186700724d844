/* A pass through all layers: a batch forward and backward, or new rows in generation. */
#ifndef LAYERS_H
#define LAYERS_H
#include "model/gpt2.h"

typedef struct Pass {
    int B, T;         /* T rows in each of B sequences */
    int cached;       /* generation: the rows continue those whose keys and values are cached, from `positions` on */
    const char *told; /* how signs of life call a forward pass; NULL: there are none */
    int may_stop;     /* a sign of life may end it with LLMC_STOPPED */
} Pass;

/* From tokens to lnf. */
int layers_forward(llmc_model *model, const Pass *pass);
/* From the gradient of lnf, which is in branch, to the gradients of all parameters but those of the logits. Gradients of
 * matrices are written unless `accumulate`, all others are added. */
void layers_backward(llmc_model *model, const Pass *pass, int accumulate);
#endif
