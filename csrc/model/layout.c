/* The table of tensors worked out for a configuration: each tensor's shape and offset. Allocates nothing. */
#include <string.h>
#include "base/error.h"
#include "model/layout.h"

enum {
    ALIGN = 16,  /* words of 4 bytes: activations start on 64-byte lines */
    CHUNK = 512, /* rows of logits at a time: as fast as all at once, while 256 are 4 % slower and 128 8 % */
    SLACK = 16,  /* rows of a ring beyond the window, so that a text may lose its last tokens and go on */
};

int llmc_num_tensors(void) { return NUM_TENSORS; }

#define UNPACK(...) {__VA_ARGS__}
#define RANK(...) (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t))
#define TENSOR(name, torch, kind, type, layers, kept, init, decay, dims) \
    {#name, torch, kind, type, layers, kept, init, decay, RANK dims, UNPACK dims, 0, 0, 0},

enum { /* the level of each tensor that has one */
#define LAYER_ACT(name, type, dims, level) LEVEL_##name = level,
#define CACHE LAYER_ACT
#include "tensors.def"
};

int layout_caches_in_fch(const llmc_room *room) {
    return room->training && room->recompute >= LEVEL_qkv && room->recompute < LEVEL_fch;
}

/* The rows of a ring; 0: the model has none, because training keeps all rows of qkv, or has memory for them, or because there are
 * hardly more. */
static int ring_rows(const llmc_config *config, const llmc_room *room) {
    const int keeps_all = room->training && (room->recompute < LEVEL_qkv || layout_caches_in_fch(room));
    const int R = config->window + SLACK;
    return !keeps_all && strchr(config->pattern, 'L') && R < room->T ? R : 0;
}

/* The layers before layer l, or before the end, that are banded. */
static int banded_before(const llmc_config *config, int l) {
    const int n = (int)strlen(config->pattern);
    int count = 0;
    for (int i = 0; i < n; i++)
        if (config->pattern[i] == 'L') count += l / n + (i < l % n);
    return count;
}

int layout_rings_before(const Layout *layout, const llmc_config *config, int l) {
    return layout_ring_rows(layout) ? banded_before(config, l) : 0;
}

static void fill_rows(llmc_tensor *table, const llmc_config *config, const llmc_room *room) {
    const int64_t maxT = config->maxT, Vp = config->Vp, L = config->L, NH = config->NH, C = config->C;
    const int64_t B = room->B, T = room->T, Vh = config->untied ? Vp : 0, r = room->lora_rank;
    const int64_t R = ring_rows(config, room), Tr = R ? T : 0, S = room->training ? 1 : B;
    const int rings = R ? banded_before(config, config->L) : 0, caches = config->L - rings;
    const int level = room->training ? room->recompute : RECOMPUTE_MOST + 1; /* inference: layers share all */
    const llmc_tensor rows[] = {
#define PARAM(name, dims, torch, init, decay) TENSOR(name, torch, LLMC_PARAM, LLMC_F, 0, 1, LLMC_##init, decay, dims)
#define LAYER_PARAM(name, dims, torch, init, decay) \
    TENSOR(name, torch, LLMC_PARAM, LLMC_F, L, 1, LLMC_##init, decay, dims)
#define ADAPTER(name, dims, torch, init, decay) \
    TENSOR(name, torch, LLMC_ADAPTER, LLMC_F, L, 1, LLMC_##init, decay, dims)
#define ACT(name, type, dims) TENSOR(name, "", LLMC_ACT, LLMC_##type, 0, 1, 0, 0, dims)
#define LAYER_ACT(name, type, dims, least) \
    TENSOR(name, "", LLMC_LAYER_ACT, LLMC_##type, level < (least) ? L : 1, level < (least), 0, 0, dims)
#define CACHE(name, type, dims, least)                                                                                \
    TENSOR(name, "", LLMC_CACHE, LLMC_##type, caches ? caches : 1, !rings && (!room->training || level < (least)), 0, \
           0, dims)
#define RING(name, type, dims) TENSOR(name, "", LLMC_RING, LLMC_##type, rings, 0, 0, 0, dims)
#define CHUNK_ACT(name, type, dims, other) TENSOR(name, "", LLMC_CHUNK_ACT, LLMC_##type, 0, room->logits, 0, 0, dims)
#define OVER_ACT(name, type, dims, other) TENSOR(name, "", LLMC_OVER_ACT, LLMC_##type, 0, 1, 0, 0, dims)
#define GRAD_ACT(name, type, dims) TENSOR(name, "", LLMC_GRAD_ACT, LLMC_##type, 0, 1, 0, 0, dims)
#include "tensors.def"
    };
    memcpy(table, rows, sizeof rows);
    if (!caches && !room->training)
        table[A_qkv].shape[0] = 0; /* a batch needs one layer's rows, and has them in `whole` */
}

/* The rows of a chunk, if not all logits are kept: enough for fast matrix products, and for the last token of each
 * sequence, whose logits generation needs at once. */
static int64_t rows_of_chunk(const llmc_room *room) {
    const int64_t rows = (int64_t)room->B * room->T, enough = room->B > CHUNK ? room->B : CHUNK;
    return rows < enough ? rows : enough;
}

static int64_t with_gap(int64_t words) { return (words + 2 * ALIGN - 1) / ALIGN * ALIGN; }

static int64_t words(const llmc_tensor *t, int64_t elements, const llmc_room *room) {
    return t->type == LLMC_X ? (elements * element_bytes(room->precision) + 3) / 4 : elements;
}

/* The words between two layers of a tensor that has a buffer of `own` words for each. Where a training model does not keep qkv, its
 * layers have one buffer for a batch if caches lie in fch. If they do not, the layers' buffers are one sequence apart, which is all that
 * generation needs; a batch's B sequences in one then overwrite those of the layers behind it. */
static int64_t stride_of(const llmc_tensor *t, int64_t own, const llmc_room *room) {
    if (t->kind != LLMC_CACHE || !room->training || t->kept) return own;
    return layout_caches_in_fch(room) ? 0 : with_gap(words(t, t->size / room->B, room));
}

/* Gives a tensor its size, and `end` as its offset; returns the new end. A gap follows each layer of an activation,
 * which tests fill with a canary. */
static int64_t lay_out(llmc_tensor *t, int64_t end, const llmc_room *room) {
    if (t->kind == LLMC_CHUNK_ACT && !t->kept) t->shape[0] = 1, t->shape[1] = rows_of_chunk(room);
    t->size = 1;
    for (int i = 0; i < t->rank; i++) t->size *= t->shape[i];
    if (!t->size) t->rank = 0; /* it is not there */
    const int is_weight = t->kind == LLMC_PARAM || t->kind == LLMC_ADAPTER;
    const int64_t own = is_weight || !t->size ? t->size : with_gap(words(t, t->size, room));
    t->offset = end;
    t->stride = t->layers > 1 ? stride_of(t, own, room) : 0;
    if (t->kind == LLMC_GRAD_ACT && !room->training) return end;
    return end + own + t->stride * (t->layers > 1 ? t->layers - 1 : 0);
}

/* The row whose memory a tensor shares if it can; -1: none. */
static int other_of(int i) {
    switch (i) {
#define OVER_ACT(name, type, dims, other) \
    case A_##name: return A_##other;
#define CHUNK_ACT OVER_ACT
#include "tensors.def"
    default: return -1;
    }
}

/* Lays a tensor over the start of `other`, unless one of the two must be kept. */
static int64_t lay_over(llmc_tensor *t, const llmc_tensor *other, int64_t end, const llmc_room *room) {
    if (other->kept || (t->kind == LLMC_CHUNK_ACT && t->kept)) return lay_out(t, end, room);
    t->kept = 0;
    const int64_t own_end = lay_out(t, other->offset, room);
    return own_end > end ? own_end : end;
}

/* Tensors are laid out in three turns: ALONE, whose memory nothing shares; BENEATH, whose memory another reuses; OVER, which
 * reuse it. OVER is last because a chunk of logits may be longer than fch_gelu, and then runs on over all that is BENEATH
 * and beyond. */
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
    CHECK(room->recompute >= 0 && room->recompute <= RECOMPUTE_MOST, LLMC_EINVAL, "recompute=%d is not in 0..%d",
          room->recompute, RECOMPUTE_MOST);
    CHECK(acts < 1e15 && tokens < 2147483648.0, LLMC_EINVAL,
          "B=%d T=%d make %.1e activations: more than any machine holds", room->B, room->T, acts);
    return LLMC_OK;
}

/* The adapters of a matrix that is not among --lora_on take no memory. */
static void leave_out_adapters(llmc_tensor *table, const llmc_room *room) {
    for (int i = NUM_PARAM_TENSORS; i < NUM_TRAINABLE; i++)
        if (!(room->lora_on & adapter_bit(i))) table[i].shape[0] = table[i].shape[1] = 0;
}

static void count_trained(Layout *layout, const llmc_room *room) {
    const int by_name = room->train_only && *room->train_only; /* else all layers of a tensor are alike */
    layout->num_trained = 0;
    for (int i = 0; room->training && i < NUM_TRAINABLE; i++) {
        const int layers = layers_stored(&layout->table[i]), alike = by_name ? 1 : layers;
        for (int l = 0; l < layers; l += alike)
            if (layout_trains(layout, room, i, l)) layout->num_trained += alike * layout->table[i].size;
    }
}

int layout_make(Layout *layout, const llmc_config *config, const llmc_room *room) {
    llmc_config checked = *config;
    TRY(llmc_config_check(&checked));
    TRY(check_room(room, &checked));
    fill_rows(layout->table, &checked, room);
    leave_out_adapters(layout->table, room);
    layout->num_weights = layout->num_acts = 0;
    for (int turn = 0; turn < TURNS; turn++)
        for (int i = 0; i < NUM_TENSORS; i++) {
            int64_t *end = i < NUM_TRAINABLE ? &layout->num_weights : &layout->num_acts;
            llmc_tensor *t = layout->table;
            if (turn_of(t, i) != turn) continue;
            *end = turn < OVER ? lay_out(&t[i], *end, room) : lay_over(&t[i], &t[other_of(i)], *end, room);
        }
    layout->num_params = layout->table[NUM_PARAM_TENSORS].offset;
    TRY(layout_check_trained(layout, room));
    count_trained(layout, room);
    CHECK(room->shards <= 1 || layout->num_trained == layout->num_weights || !room->training, LLMC_EINVAL,
          "the moments are shared out (--zero) only where all of a model is trained: leave it out, as these are few");
    CHECK(!room->outer || (room->training && room->shards <= 1), LLMC_EINVAL,
          "an outer step needs a model that is trained, and all of its moments");
    layout->num_moments = 0;
    for (int i = 0; i < MOMENT_PARTS; i++) {
        const Moments part = moments_part(layout, room, i);
        layout->num_moments += part.end - part.first;
    }
    return LLMC_OK;
}

/* ---- the precision ---- */

static int is_settled(const llmc_room *room) { return room->precision == LLMC_FP32 || room->precision == LLMC_BF16; }

int layout_kernels(const Kernels **k, llmc_room *room) {
    CHECK(is_settled(room) || room->precision == LLMC_AUTO, LLMC_EINVAL,
          "precision=%d is none of LLMC_FP32, LLMC_BF16, LLMC_AUTO", room->precision);
    *k = llmc_kernels(NULL, room->precision);
    if (!*k) return LLMC_EDEVICE;
    room->precision = (*k)->element;
    return LLMC_OK;
}

int llmc_layout(const llmc_config *config, const llmc_room *room, llmc_tensor *table) {
    llmc_room settled = *room;
    const Kernels *k;
    Layout layout;
    if (!is_settled(room)) TRY(layout_kernels(&k, &settled));
    TRY(layout_make(&layout, config, &settled));
    memcpy(table, layout.table, sizeof layout.table);
    return LLMC_OK;
}
