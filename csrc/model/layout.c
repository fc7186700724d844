/* The table of tensors worked out for a configuration, and the memory it takes. Allocates nothing. */
#include <stdio.h>
#include <string.h>
#include "base/error.h"
#include "model/layout.h"

enum {
    ALIGN = 16,  /* elements: activations start on 64-byte lines */
    CHUNK = 512, /* rows of logits: as fast as all at once; 256 are 4 % slower, 128 8 % */
};

int llmc_num_tensors(void) { return NUM_TENSORS; }

#define UNPACK(...) {__VA_ARGS__}
#define TENSOR(name, torch, kind, type, layers, kept, init, decay, dims) \
    {#name, torch, kind, type, layers, kept, init, decay, 0, UNPACK dims, 0, 0, 0},

static void fill_rows(llmc_tensor *table, const llmc_config *config, const llmc_room *room) {
    const int64_t maxT = config->maxT, Vp = config->Vp, L = config->L, NH = config->NH, C = config->C;
    const int64_t B = room->B, T = room->T;
    const int level = room->training ? room->recompute : 4; /* inference shares every buffer between the layers */
    const llmc_tensor rows[] = {
#define PARAM(name, dims, torch, init, decay) TENSOR(name, torch, LLMC_PARAM, LLMC_F, 0, 1, LLMC_##init, decay, dims)
#define LAYER_PARAM(name, dims, torch, init, decay) \
    TENSOR(name, torch, LLMC_PARAM, LLMC_F, L, 1, LLMC_##init, decay, dims)
#define ACT(name, type, dims) TENSOR(name, "", LLMC_ACT, LLMC_##type, 0, 1, 0, 0, dims)
#define LAYER_ACT(name, type, dims, least) \
    TENSOR(name, "", LLMC_LAYER_ACT, LLMC_##type, level < (least) ? L : 1, level < (least), 0, 0, dims)
#define CACHE(name, type, dims, least) \
    TENSOR(name, "", LLMC_CACHE, LLMC_##type, L, !room->training || level < (least), 0, 0, dims)
#define CHUNK_ACT(name, type, dims, other) TENSOR(name, "", LLMC_CHUNK_ACT, LLMC_##type, 0, room->logits, 0, 0, dims)
#define OVER_ACT(name, type, dims, other) TENSOR(name, "", LLMC_OVER_ACT, LLMC_##type, 0, 1, 0, 0, dims)
#define GRAD_ACT(name, type, dims) TENSOR(name, "", LLMC_GRAD_ACT, LLMC_##type, 0, 1, 0, 0, dims)
#include "tensors.def"
    };
    memcpy(table, rows, sizeof rows);
}

/* of logits that are not kept: enough for the matrix products to be fast, and for the last token of each sequence */
static int64_t rows_of_chunk(const llmc_room *room) {
    const int64_t rows = (int64_t)room->B * room->T, enough = room->B > CHUNK ? room->B : CHUNK;
    return rows < enough ? rows : enough;
}

static int64_t with_gap(int64_t words) { return (words + 2 * ALIGN - 1) / ALIGN * ALIGN; }

static int64_t words(const llmc_tensor *t, int64_t elements) {
    return t->type == LLMC_X ? (elements * (int64_t)sizeof(floatX) + 3) / 4 : elements;
}

/* Give a tensor its size and its place after `end`; return the new end. Each layer of an activation leaves a gap
 * behind it, which tests fill with a canary. A cache that is not kept has room for one sequence per layer, over which
 * the layers before spread theirs in training. */
static int64_t place(llmc_tensor *t, int64_t end, const llmc_room *room) {
    if (t->kind == LLMC_CHUNK_ACT && !t->kept) t->shape[0] = 1, t->shape[1] = rows_of_chunk(room);
    for (t->size = 1, t->rank = 0; t->rank < 4 && t->shape[t->rank]; t->rank++) t->size *= t->shape[t->rank];
    const int64_t own = t->kind == LLMC_PARAM ? t->size : with_gap(words(t, t->size));
    const int64_t next = t->kind == LLMC_CACHE && !t->kept ? with_gap(words(t, t->size / room->B)) : own;
    t->offset = end;
    t->stride = t->layers > 1 ? next : 0;
    if (t->kind == LLMC_GRAD_ACT && !room->training) return end;
    return end + own + t->stride * (t->layers > 1 ? t->layers - 1 : 0);
}

/* the row whose buffer a tensor lies over if it can, or -1 */
static int other_of(int i) {
    switch (i) {
#define OVER_ACT(name, type, dims, other) \
    case A_##name: return A_##other;
#define CHUNK_ACT OVER_ACT
#include "tensors.def"
    default: return -1;
    }
}

static int64_t place_over(llmc_tensor *t, const llmc_tensor *other, int64_t end, const llmc_room *room) {
    if (other->kept || (t->kind == LLMC_CHUNK_ACT && t->kept)) return place(t, end, room);
    t->kept = 0;
    const int64_t own_end = place(t, other->offset, room);
    return own_end > end ? own_end : end;
}

/* In memory what lies over others comes last, and before it what it lies over: a chunk of logits may reach past fch_gelu,
 * over all that is BENEATH and on. */
enum { ALONE, BENEATH, OVER, TURNS };

static int turn_of(const llmc_tensor *table, int i) {
    if (other_of(i) >= 0) return OVER;
    for (int j = 0; j < NUM_TENSORS; j++)
        if (other_of(j) == i) return BENEATH;
    return table[i].kind == LLMC_GRAD_ACT ? BENEATH : ALONE;
}

static int check_room(const llmc_room *room, const llmc_config *c) {
    const double tokens = (double)room->B * room->T;
    const double acts = tokens * ((double)c->L * (16.0 * c->C + 2.0 * c->NH) + 3.0 * c->Vp);
    CHECK(room->B >= 1, LLMC_EINVAL, "B=%d: the batch needs at least one sequence", room->B);
    CHECK(room->T >= 1 && room->T <= c->maxT, LLMC_EINVAL,
          "T=%d is not in 1..%d, the model's context: choose a T within it", room->T, c->maxT);
    CHECK(room->recompute >= 0 && room->recompute <= 3, LLMC_EINVAL, "recompute=%d is not in 0..3", room->recompute);
    CHECK(acts < 1e15 && tokens < 2147483648.0, LLMC_EINVAL,
          "B=%d T=%d make %.1e activations: more than any machine holds", room->B, room->T, acts);
    return LLMC_OK;
}

int layout_make(Layout *layout, const llmc_config *config, const llmc_room *room) {
    llmc_config checked = *config;
    TRY(llmc_config_check(&checked));
    TRY(check_room(room, &checked));
    fill_rows(layout->table, &checked, room);
    layout->num_params = layout->num_acts = 0;
    for (int turn = 0; turn < TURNS; turn++)
        for (int i = 0; i < NUM_TENSORS; i++) {
            int64_t *end = i < NUM_PARAM_TENSORS ? &layout->num_params : &layout->num_acts;
            llmc_tensor *t = layout->table;
            if (turn_of(t, i) != turn) continue;
            *end = turn < OVER ? place(&t[i], *end, room) : place_over(&t[i], &t[other_of(i)], *end, room);
        }
    return LLMC_OK;
}

const char *layout_tensor_at(const Layout *layout, int64_t element) {
    int i = 0;
    while (i + 1 < NUM_PARAM_TENSORS && layout->table[i + 1].offset <= element) i++;
    return layout->table[i].name;
}

int llmc_layout(const llmc_config *config, const llmc_room *room, llmc_tensor *table) {
    Layout layout;
    TRY(layout_make(&layout, config, room));
    memcpy(table, layout.table, sizeof layout.table);
    return LLMC_OK;
}

static int64_t bytes_of(int64_t elements, size_t each) { /* a block, rounded up so that the next one is aligned */
    return (elements * (int64_t)each + 63) / 64 * 64;
}

int llmc_plan_memory(const llmc_config *config, const llmc_room *room, int threads, llmc_plan *plan) {
    Layout layout;
    TRY(layout_make(&layout, config, room));
    const Kernels *k = llmc_kernels(NULL);
    if (!k) return LLMC_EDEVICE;
    const int64_t Vp = layout.table[P_wte].shape[0];
    plan->params = bytes_of(layout.num_params, sizeof(float));
    plan->stored = sizeof(floatX) == sizeof(float) ? 0 : bytes_of(layout.num_params, sizeof(floatX));
    plan->grads = room->training ? plan->params : 0;
    plan->moments = 2 * plan->grads;
    plan->acts = bytes_of(layout.num_acts, 4);
    plan->workspace = k->workspace_bytes(room->B, room->T, config->C, config->NH, (int)Vp,
                                         threads > 0 ? threads : llmc_default_threads());
    plan->total = plan->params + plan->stored + plan->grads + plan->moments + plan->acts + plan->workspace;
    plan->num_params = layout.num_params - (Vp - config->V) * config->C;
    return LLMC_OK;
}

static int fits(const llmc_config *config, const llmc_room *room, int threads, int64_t bytes) {
    llmc_plan plan;
    return llmc_plan_memory(config, room, threads, &plan) == 0 && plan.total <= bytes;
}

/* the largest B that fits, if all else stays */
static int largest_batch(const llmc_config *config, const llmc_room *room, int threads, int64_t bytes) {
    llmc_room other = *room;
    int least = room->B, most = room->B;
    for (; most < 1 << 24; least = most) {
        other.B = most = 2 * least;
        if (!fits(config, &other, threads, bytes)) break;
    }
    while (most - least > 1) {
        other.B = least + (most - least) / 2;
        if (fits(config, &other, threads, bytes)) least = other.B;
        else most = other.B;
    }
    return least;
}

/* the least recomputation that fits, if all else stays; -1 if none does */
static int recompute_that_fits(const llmc_config *config, llmc_room room, int threads, int64_t bytes) {
    for (; room.training && room.recompute <= 3; room.recompute++)
        if (fits(config, &room, threads, bytes)) return room.recompute;
    return -1;
}

/* the largest T that fits, and the largest B with it, by halves; 0 if none does */
static int batch_that_fits(const llmc_config *config, llmc_room *room, int threads, int64_t bytes) {
    const int B = room->B;
    for (; room->T >= 1; room->T /= 2)
        for (room->B = B; room->B >= 1; room->B /= 2)
            if (fits(config, room, threads, bytes)) return 1;
    return 0;
}

/* what else would fit: more computed again, else a smaller batch */
static int refuse_room(const llmc_config *config, const llmc_room *room, int threads, const char *line, int64_t bytes) {
    llmc_room other = *room;
    const double MB = (double)bytes * 1e-6;
    char batch[64] = "";
    const int recompute = recompute_that_fits(config, *room, threads, bytes);
    if (batch_that_fits(config, &other, threads, bytes)) snprintf(batch, sizeof batch, "B=%d T=%d", other.B, other.T);
    CHECK(recompute < 0, LLMC_ENOMEM, "%s, but %.0f MB are available; recompute=%d would fit%s%s", line, MB, recompute,
          *batch ? ", or " : "", batch);
    CHECK(*batch, LLMC_ENOMEM, "%s, but %.0f MB are available; take a smaller model", line, MB);
    FAIL(LLMC_ENOMEM, "%s, but %.0f MB are available; %s would fit", line, MB, batch);
}

int llmc_plan_text(const llmc_config *config, const llmc_room *room, int threads, char *text, size_t size) {
    llmc_plan p;
    char line[512]; /* the caller's may be too small for the error */
    TRY(llmc_plan_memory(config, room, threads, &p));
    const double MB = 1e-6;
    const int n = snprintf(line, sizeof line,
                           "memory plan: params %.1f MB, grads %.1f, moments %.1f, activations %.1f, workspace %.1f; "
                           "total %.1f MB for B=%d T=%d recompute=%d",
                           (p.params + p.stored) * MB, p.grads * MB, p.moments * MB, p.acts * MB, p.workspace * MB,
                           p.total * MB, room->B, room->T, room->recompute);
    const int64_t available = llmc_kernels(NULL)->memory_available();
    if (available < 0 || p.total <= available) {
        if (available >= 0)
            snprintf(line + n, sizeof line - (size_t)n, "; fits in %.0f MB, with B up to %d", available * MB,
                     largest_batch(config, room, threads, available));
        snprintf(text, size, "%s", line);
        return LLMC_OK;
    }
    return refuse_room(config, room, threads, line, available);
}
