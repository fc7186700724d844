/* Where every tensor lies: the table tensors.def, worked out for one configuration. */
#ifndef LAYOUT_H
#define LAYOUT_H
#include "pyllmc.h"

/* P_wte, ... and then A_tokens, ...: a tensor's row in the table */
enum {
#define PARAM(name, ...) P_##name,
#include "tensors.def"
    NUM_PARAM_TENSORS,
    BEFORE_ACTS = NUM_PARAM_TENSORS - 1,
#define ACT(name, ...) A_##name,
#include "tensors.def"
    NUM_TENSORS
};

typedef struct Layout {
    llmc_tensor table[NUM_TENSORS];
    int64_t num_params, num_acts; /* elements; words of 4 bytes */
} Layout;
int layout_make(Layout *layout, const llmc_config *config, const llmc_room *room);
/* The parameter tensor that holds an element of the block. */
const char *layout_tensor_at(const Layout *layout, int64_t element);
#endif
