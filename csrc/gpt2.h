/* The model's inside, for the files that save, load and sample it. */
#ifndef GPT2_H
#define GPT2_H
#include "layout.h"

struct llmc_model {
    llmc_config config;
    int B, T, training; /* room for B sequences of T tokens */
    int b, t;           /* the shape of the last forward pass */
    int state;          /* what may follow: see enum in gpt2.c */
    int64_t step;       /* AdamW steps taken */
    const Kernels *k;
    Context ctx;
    Layout layout;
    char *arena; /* the one allocation: params | grads | m | v | acts | workspace */
    int64_t bytes;
    floatX *params, *grads, *acts;
    float *m, *v;
};
#endif
