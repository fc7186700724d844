/* The model's inside, for the files that compute with it, save, load and sample it. */
#ifndef GPT2_H
#define GPT2_H
#include "model/layout.h"

enum { EMPTY, FORWARD_DONE, LOSS_DONE, BACKWARD_DONE };

struct llmc_model {
    llmc_config config;
    llmc_room room;
    int b, t;             /* the shape of the last forward pass */
    int state;            /* one of the above: what may follow */
    int64_t step;         /* AdamW steps taken */
    const void *cache_of; /* whose keys and values are cached, while state is EMPTY: a generation, or NULL */
    int64_t ones;         /* so many loss weights on the device are 1 */
    const Kernels *k;
    Context ctx;
    Layout layout;
    char *arena; /* the one allocation: params | stored | grads | m | v | acts | workspace */
    int64_t bytes;
    float *params, *grads, *m, *v;
    floatX *stored; /* the parameters as the kernels take them; params where floatX is float */
    float *acts;    /* by words of 4 bytes */
};

/* ---- the tensors as one layer sees them ---- */

typedef struct Params {
#define PARAM(name, ...) const floatX *name;
#include "tensors.def"
} Params;

typedef struct Grads {
#define PARAM(name, ...) float *name;
#include "tensors.def"
} Grads;

#define X floatX
#define F float
#define I int
typedef struct Acts {
#define ACT(name, type, ...) type *name;
#include "tensors.def"
} Acts;

static inline Params params_at(const llmc_model *model, int l) {
    const llmc_tensor *t = model->layout.table;
    return (Params){
#define PARAM(name, ...) model->stored + t[P_##name].offset + l *t[P_##name].stride,
#include "tensors.def"
    };
}

static inline Grads grads_at(const llmc_model *model, int l) {
    const llmc_tensor *t = model->layout.table;
    return (Grads){
#define PARAM(name, ...) model->grads + t[P_##name].offset + l *t[P_##name].stride,
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
#undef X
#undef F
#undef I

/* odd layers of a banded model see the last `window` positions only */
static inline int window_of(const llmc_model *model, int l) { return l % 2 ? model->config.window : 0; }

/* ---- checks: errors in words ---- */

int gpt2_precision(const Kernels *k, const char *name); /* LLMC_FP32 or LLMC_BF16 */
int gpt2_check_ids(const char *what, const int *ids, int64_t n, int lowest, int V);
int gpt2_check_shape(const llmc_model *model, int b, int t);
int gpt2_need_training(const llmc_model *model); /* an error where there are no gradients */

/* A sign of life before layer l of a pass over that many rows, if they take long: LLMC_STOPPED as pulse.h says. */
int gpt2_tell_layer(const llmc_model *model, const char *way, int l, int64_t rows);

/* ---- numbers for the host ---- */

/* out (rows,n) = rows of src, stride apart, as float; waits for the device, once */
int gpt2_fetch(const llmc_model *model, float *out, const floatX *src, int64_t rows, int64_t n, int64_t stride);
/* n elements from number `from` of layer l of row i */
int gpt2_read(const llmc_model *model, int block, int i, int l, int64_t from, int64_t n, void *out);
int gpt2_store(const llmc_model *model); /* params have changed */
/* The first of x[n], which are on the host, that is NaN or infinite, or -1. */
int64_t gpt2_find_nonfinite(const float *x, int64_t n);
#endif
