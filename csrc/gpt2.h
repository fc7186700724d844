/* The model's inside, for the files that compute with it, save, load and sample it. */
#ifndef GPT2_H
#define GPT2_H
#include "layout.h"

enum { EMPTY, FORWARD_DONE, LOSS_DONE, BACKWARD_DONE };

struct llmc_model {
    llmc_config config;
    llmc_room room;
    int b, t;     /* the shape of the last forward pass */
    int state;    /* one of the above: what may follow */
    int64_t step; /* AdamW steps taken */
    const Kernels *k;
    Context ctx;
    Layout layout;
    char *arena; /* the one allocation: params | grads | m | v | acts | workspace */
    int64_t bytes;
    floatX *params, *grads, *acts;
    float *m, *v;
};

/* ---- the tensors as one layer sees them ---- */

typedef struct Params {
#define PARAM(name, ...) floatX *name;
#include "tensors.def"
} Params;

#define F floatX
#define I int
typedef struct Acts {
#define ACT(name, type, ...) type *name;
#include "tensors.def"
} Acts;

/* within a block of parameters, weights or gradients */
static inline Params params_at(const llmc_model *model, floatX *base, int l) {
    const llmc_tensor *t = model->layout.table;
    return (Params){
#define PARAM(name, ...) base + t[P_##name].offset + l *t[P_##name].stride,
#include "tensors.def"
    };
}

static inline Acts acts_at(const llmc_model *model, int l) {
    const llmc_tensor *t = model->layout.table;
    return (Acts){
#define ACT(name, type, ...) (type *)(model->acts + t[A_##name].offset + l * t[A_##name].stride),
#include "tensors.def"
    };
}
#undef F
#undef I

/* odd layers of a banded model see the last `window` positions only */
static inline int window_of(const llmc_model *model, int l) { return l % 2 ? model->config.window : 0; }

/* ---- checks: errors in words ---- */

int gpt2_check_ids(const char *what, const int *ids, int64_t n, int lowest, int V);
int gpt2_check_shape(const llmc_model *model, int b, int t);
int gpt2_need_training(const llmc_model *model); /* an error where there are no gradients */
#endif
