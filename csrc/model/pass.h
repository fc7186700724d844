/* The description of a pass through the layers: a batch, or new rows in generation. */
#ifndef PASS_H
#define PASS_H
#include "model/gpt2.h"

typedef struct Pass {
    int B, T;   /* T rows in each of B sequences */
    int cached; /* generation: the rows continue those whose keys and values are cached, from `positions` on */
    /* Scoring: the T rows of B = 1 are spans of counts[i] rows, which follow each other in the cache of the first sequence, each at
     * a position of its own: row_positions[T], on the device. 0 spans: there are none. */
    int spans;
    const int *counts, *row_positions;
    const char *told; /* how signs of life call a forward pass; NULL: there are none */
    int may_stop;     /* a sign of life may end it with LLMC_STOPPED */
} Pass;
#endif
