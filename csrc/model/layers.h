/* A pass through all layers: a batch forward and backward, or new rows in generation. */
#ifndef LAYERS_H
#define LAYERS_H
#include "model/pass.h"

/* From tokens to lnf. */
int layers_forward(llmc_model *model, const Pass *pass);
/* From the gradient of lnf, which is in branch, to the gradients of all parameters but those of the logits. Gradients of
 * matrices are written unless `accumulate`, all others are added. */
void layers_backward(llmc_model *model, const Pass *pass, int accumulate);
#endif
