/* The table of tensors worked out for a configuration, and the memory it takes. Allocates nothing. */
#include <stdio.h>
#include <string.h>
#include "error.h"
#include "layout.h"

enum { ALIGN = 16 }; /* elements: activations start on 64-byte lines */

int llmc_num_tensors(void) { return NUM_TENSORS; }

#define UNPACK(...) {__VA_ARGS__}
#define TENSOR(name, torch, kind, type, layers, init, decay, dims) \
    {#name, torch, kind, type, layers, init, decay, 0, UNPACK dims, 0, 0, 0},

static void fill_rows(llmc_tensor *table, const llmc_config *config, int64_t B, int64_t T, int training) {
    const int64_t maxT = config->maxT, Vp = config->Vp, L = config->L, NH = config->NH, C = config->C;
    const int kept = training ? (int)L : 1; /* inference shares one buffer between the layers */
    const llmc_tensor rows[] = {
#define PARAM(name, dims, torch, init, decay) TENSOR(name, torch, LLMC_PARAM, LLMC_F, 0, LLMC_##init, decay, dims)
#define LAYER_PARAM(name, dims, torch, init, decay) TENSOR(name, torch, LLMC_PARAM, LLMC_F, L, LLMC_##init, decay, dims)
#define ACT(name, type, dims) TENSOR(name, "", LLMC_ACT, LLMC_##type, 0, 0, 0, dims)
#define LAYER_ACT(name, type, dims) TENSOR(name, "", LLMC_LAYER_ACT, LLMC_##type, kept, 0, 0, dims)
#define CACHE(name, type, dims) TENSOR(name, "", LLMC_CACHE, LLMC_##type, L, 0, 0, dims)
#define GRAD_ACT(name, type, dims) TENSOR(name, "", LLMC_GRAD_ACT, LLMC_##type, 0, 0, 0, dims)
#include "tensors.def"
    };
    memcpy(table, rows, sizeof rows);
}

/* Give a tensor its size and its place after `end`; return the new end. Each layer of an activation leaves a gap
 * behind it, which tests fill with a canary. */
static int64_t place(llmc_tensor *t, int64_t end, int training) {
    for (t->size = 1, t->rank = 0; t->rank < 4 && t->shape[t->rank]; t->rank++) t->size *= t->shape[t->rank];
    const int64_t room = t->kind == LLMC_PARAM ? t->size : (t->size + 2 * ALIGN - 1) / ALIGN * ALIGN;
    t->offset = end;
    t->stride = t->layers > 1 ? room : 0;
    if (t->kind == LLMC_GRAD_ACT && !training) return end;
    return end + room * (t->layers ? t->layers : 1);
}

int layout_make(Layout *layout, const llmc_config *config, int B, int T, int training) {
    llmc_config checked = *config;
    TRY(llmc_config_check(&checked));
    CHECK(B >= 1, LLMC_EINVAL, "B=%d: the batch needs at least one sequence", B);
    CHECK(T >= 1 && T <= checked.maxT, LLMC_EINVAL, "T=%d is not in 1..%d, the model's context: choose a T within it",
          T, checked.maxT);
    const double acts = (double)B * T * ((double)checked.L * (16.0 * checked.C + 2.0 * checked.NH) + 3.0 * checked.Vp);
    CHECK(acts < 1e15, LLMC_EINVAL, "B=%d T=%d make %.1e activations: more than any machine holds", B, T, acts);
    fill_rows(layout->table, &checked, B, T, training);
    layout->num_params = layout->num_acts = 0;
    for (int i = 0; i < NUM_TENSORS; i++) {
        int64_t *end = i < NUM_PARAM_TENSORS ? &layout->num_params : &layout->num_acts;
        *end = place(&layout->table[i], *end, training);
    }
    return LLMC_OK;
}

int llmc_layout(const llmc_config *config, int B, int T, int training, llmc_tensor *table) {
    Layout layout;
    TRY(layout_make(&layout, config, B, T, training));
    memcpy(table, layout.table, sizeof layout.table);
    return LLMC_OK;
}

static int64_t bytes_of(int64_t elements) { /* a block, rounded up so that the next one is aligned */
    return (elements * (int64_t)sizeof(float) + 63) / 64 * 64;
}

int llmc_plan_memory(const llmc_config *config, int B, int T, int training, int threads, llmc_plan *plan) {
    Layout layout;
    TRY(layout_make(&layout, config, B, T, training));
    const Kernels *k = llmc_kernels(NULL);
    if (!k) return LLMC_EDEVICE;
    const int64_t Vp = layout.table[P_wte].shape[0];
    plan->params = bytes_of(layout.num_params);
    plan->grads = training ? plan->params : 0;
    plan->moments = 2 * plan->grads;
    plan->acts = bytes_of(layout.num_acts);
    plan->workspace =
        k->workspace_bytes(B, T, config->C, config->NH, (int)Vp, threads > 0 ? threads : llmc_default_threads());
    plan->total = plan->params + plan->grads + plan->moments + plan->acts + plan->workspace;
    plan->num_params = layout.num_params - (Vp - config->V) * config->C;
    return LLMC_OK;
}

/* the largest B, then T, whose plan fits; 0 if none does */
static int largest_that_fits(const llmc_config *config, int *B, int *T, int training, int threads, int64_t room) {
    llmc_plan plan;
    for (; *T >= 1; *T /= 2) {
        for (int b = *B; b >= 1; b = b > 1 ? b / 2 : 0) {
            if (llmc_plan_memory(config, b, *T, training, threads, &plan) < 0) return 0;
            if (plan.total <= room) return *B = b, 1;
        }
    }
    return 0;
}

int llmc_plan_text(const llmc_config *config, int B, int T, int training, int threads, char *text, size_t size) {
    llmc_plan p;
    TRY(llmc_plan_memory(config, B, T, training, threads, &p));
    const double MB = 1e-6;
    int n = snprintf(text, size,
                     "memory plan: params %.1f MB, grads %.1f, moments %.1f, activations %.1f, workspace %.1f; "
                     "total %.1f MB for B=%d T=%d",
                     p.params * MB, p.grads * MB, p.moments * MB, p.acts * MB, p.workspace * MB, p.total * MB, B, T);
    const int64_t room = llmc_kernels(NULL)->memory_available();
    if (room < 0 || p.total <= room) {
        if (room >= 0 && n > 0 && (size_t)n < size)
            snprintf(text + n, size - (size_t)n, "; fits in %.0f MB", room * MB);
        return LLMC_OK;
    }
    if (largest_that_fits(config, &B, &T, training, threads, room))
        FAIL(LLMC_ENOMEM, "%s, but %.0f MB are available; B=%d T=%d would fit", text, room * MB, B, T);
    FAIL(LLMC_ENOMEM, "%s, but %.0f MB are available; take a smaller model", text, room * MB);
}
