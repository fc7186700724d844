/* The model's inside, for the files that save, load and sample it. */
#ifndef GPT2_H
#define GPT2_H
#include "layout.h"

struct llmc_model {
    llmc_config config;
    llmc_room room;
    int b, t;     /* the shape of the last forward pass */
    int state;    /* what may follow: see enum in gpt2.c */
    int64_t step; /* AdamW steps taken */
    const Kernels *k;
    Context ctx;
    Layout layout;
    char *arena; /* the one allocation: params | grads | m | v | acts | workspace */
    int64_t bytes;
    floatX *params, *grads, *acts;
    float *m, *v;
};
int gpt2_need_training(const llmc_model *model); /* an error where there are no gradients */
#endif
