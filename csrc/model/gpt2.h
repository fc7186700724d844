/* The struct behind llmc_model, for the files that compute with a model, save, load and sample it. */
#ifndef GPT2_H
#define GPT2_H
#include "frontends.h"
#include "model/layout.h"

enum { EMPTY, FORWARD_DONE, LOSS_DONE, BACKWARD_DONE };

struct llmc_model {
    llmc_config config;
    llmc_room room;
    int b, t;             /* the shape of the last forward pass */
    int state;            /* one of the above; it decides which call may follow */
    int64_t step;         /* AdamW steps taken */
    const void *cache_of; /* the generation whose keys and values are cached, while state is EMPTY; NULL: none */
    int64_t ones;         /* the first `ones` loss weights on the device are 1 */
    int separator;   /* the id that begins a document, which sees nothing before it; -1: documents see each other */
    struct {         /* dropout.c */
        double p[8]; /* the probability of each kind (kernels.h) */
        int64_t seed;
        int64_t micro_step; /* the number of the next pass that drops, since the last update */
        int64_t first;      /* the number of the first pass after an update: the rank */
        int64_t others;     /* the numbers between two passes, which are those of other ranks */
        int in_forward;     /* llmc_model_forward drops, too */
        int dropped;        /* the last forward pass did */
    } drop;
    const llmc_team *team; /* NULL: this process trains alone */
    int summing;           /* the next micro-step begins the sums of its gradients */
    int failed;            /* what the device answered when such a micro-step first waited in vain; else LLMC_OK */
    const Kernels *k;      /* chosen once, when the model is made, as is the number of threads in ctx */
    Context ctx;
    Layout layout;
    char *arena; /* the one allocation, which layout.h draws */
    int64_t bytes;
    float *params; /* the masters of the weights; if ctx.split, their lower halves: gpt2_get and gpt2_set know both */
    float *grads, *m, *v;
    float *outer;         /* with an outer step: its weights, then its momentum, both as grads */
    int64_t *gradient_at; /* (NUM_TRAINABLE,L): where each layer's gradient lies in grads, m and v; -1: it is frozen */
    char *train_only;     /* room.train_only points here */
    char *base;           /* the file of the weights that LoRA's adapters belong to; NULL: it has no name */
    uint32_t base_crc;    /* crc32 of its weights, as floats in the order of the table, before any of them is trained */
    int *reached;         /* (B): how many positions of each sequence generation has stored; see gpt2_remembers */
    floatX *stored;       /* the parameters as kernels read them; the same memory as params in fp32 */
    float *acts;          /* counted in words of 4 bytes */
};

/* ---- the tensors as one layer sees them ---- */

/* The address of element n behind x. The kernels know what a floatX is; the model knows only its size. */
static inline floatX *gpt2_at(const llmc_model *model, const floatX *x, int64_t n) {
    return (floatX *)((char *)x + n * element_bytes(model->k->element));
}

typedef struct Params {
#define PARAM(name, ...) const floatX *name;
#include "tensors.def"
} Params;

typedef struct Grads { /* NULL: the tensor is frozen */
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
#define PARAM(name, ...) gpt2_at(model, model->stored, t[P_##name].offset + l * t[P_##name].stride),
#include "tensors.def"
    };
}

/* Where the gradient of layer l of row i lies in grads, m and v; -1: it is frozen. A tensor without layers has its place at 0. */
static inline int64_t gradient_at(const llmc_model *model, int i, int l) {
    return model->gradient_at[(int64_t)i * model->config.L + (model->layout.table[i].layers ? l : 0)];
}

static inline float *gradient_of(const llmc_model *model, int i, int l) {
    const int64_t at = gradient_at(model, i, l);
    return at < 0 ? NULL : model->grads + at;
}

static inline Grads grads_at(const llmc_model *model, int l) {
    return (Grads){
#define PARAM(name, ...) gradient_of(model, P_##name, l),
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

static inline int window_of(const llmc_model *model, int l) { return layout_window(&model->config, l); }

/* The rows that generation reads back of a layer: R of each sequence, position p in row p % R. */
typedef struct Cache {
    floatX *qkv; /* (B,R,3C) */
    int R;
} Cache;
Cache gpt2_cache(const llmc_model *model, int l);
/* The rows of a batch in layer l: (B,T,3C). */
floatX *gpt2_qkv(const llmc_model *model, int l);
/* True if sequence i can go on from position pos: what its next token sees is still cached. */
int gpt2_remembers(const llmc_model *model, int i, int pos);
/* The bytes of the rings of b sequences; 0: the model has none. And their copies to and from the host: the rings that are brought
 * back are those of `pos` positions. */
int64_t gpt2_ring_bytes(const llmc_model *model, int b);
int gpt2_save_rings(const llmc_model *model, int b, void *rings);
int gpt2_load_rings(llmc_model *model, int b, int pos, const void *rings);

/* The matrix that makes the logits, and its gradient. */
static inline const floatX *gpt2_head(const llmc_model *model) {
    return model->config.untied ? params_at(model, 0).lmheadw : params_at(model, 0).wte;
}
static inline float *gpt2_head_gradient(const llmc_model *model) {
    return model->config.untied ? grads_at(model, 0).lmheadw : grads_at(model, 0).wte;
}

/* True for the matrices that compression makes smaller: not for biases, norms and wpe. wte is one, though an untied model only
 * looks its rows up. */
int gpt2_is_matrix(const llmc_model *model, const llmc_tensor *t);

/* Counts a step that changes nothing, so that AdamW's correction of its means counts it, as in llm.c. */
void gpt2_skip_update(llmc_model *model);

/* ---- dropout ---- */

/* Gives the device the numbers of the next pass: those of dropout if it is on. */
void gpt2_begin_dropout(llmc_model *model, int on);
/* The kinds that are dropped at all, as bits. */
int gpt2_dropped_kinds(const llmc_model *model);
/* The dropout of one kind in layer l during the last pass; NULL: none. */
const Dropout *gpt2_dropout(const llmc_model *model, int kind, int l);

/* How many trained layers of row i follow one another from layer l on; 0: layer l is frozen. */
int gpt2_trained_in_a_row(const llmc_model *model, int i, int l);

/* ---- checks ---- */

int gpt2_check_ids(const char *what, const int *ids, int64_t n, int lowest, int V);
int gpt2_check_shape(const llmc_model *model, int b, int t);
int gpt2_need_training(const llmc_model *model); /* an error where there are no gradients */

/* ---- numbers for the host ---- */

/* True if the weights are compressed: parameters are then neither read nor written. */
static inline int gpt2_is_compressed(const llmc_model *m) { return m->ctx.weight_format != m->k->element; }
/* The address of the master of element n, as kernels take it. */
static inline void *gpt2_master(const llmc_model *m, int64_t n) {
    return (char *)m->params + n * master_bytes(m->ctx.split);
}
/* Copies n floats of a block (params, grads, m, v, outer), from element `at` on, to the host, which waits for them. */
int gpt2_get(const llmc_model *m, float *x, const float *block, int64_t at, int64_t n);
/* The reverse. x may be used again at once. gpt2_store must follow a change of params. */
void gpt2_set(llmc_model *m, float *block, int64_t at, const float *x, int64_t n);
/* Makes n parameters 0, from element `at` on. */
void gpt2_clear(llmc_model *m, int64_t at, int64_t n);
/* to[n] = from[n], which are bf16; they may be the end of to's memory. */
void gpt2_widen(float *to, const uint16_t *from, int64_t n);
/* out (rows,n) = rows of src, which lie `stride` elements apart, as float. Waits for the device, once. */
int gpt2_fetch(const llmc_model *model, float *out, const floatX *src, int64_t rows, int64_t n, int64_t stride);
/* Reads n elements of layer l of row i, beginning at element `from`. */
int gpt2_read(const llmc_model *model, int block, int i, int l, int64_t from, int64_t n, void *out);
/* Adds scale B A to the matrix of a target (lora.h) in layer l: A (rank,C), B (OC,rank) on the host. gpt2_store must follow. */
int gpt2_merge(llmc_model *model, int target, int l, const float *A, const float *B, int rank, float scale);
/* Brings `stored` up to date after params have changed. Split masters always are. */
int gpt2_store(const llmc_model *model);
/* The first of x[n], which are on the host, that is NaN or infinite; -1: none. */
int64_t gpt2_find_nonfinite(const float *x, int64_t n);
#endif
