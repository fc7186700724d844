/* Where every tensor lies: the table tensors.def, worked out for one configuration.
 *
 * A model is one allocation, its arena, laid out in this order (place_blocks in gpt2.c; each block is 64-byte aligned):
 *
 *   | params | stored | grads | m | v | outer | acts                     | workspace |
 *     float    floatX   float          float   float, int32, floatX        scratch of the kernels
 *
 *   stored      the parameters as kernels read them; left out where floatX is float and params serve for both
 *   params      the tensors of tensors.def in their order, without gaps: those of model files, then LoRA's adapters; of bf16 on a
 *               CPU only what `stored` lacks of a float, 16 bits for each, unless room.whole asks for floats
 *   grads, m, v only in training; each has what is trained of params, in the same order, without gaps; with ZeRO-1 m and v have
 *               this process's share of that
 *   outer       only with an outer step (DiLoCo): the weights after the last one, then its momentum, each as long as grads
 *
 * The activations, acts, are laid out in three turns, and a gap of 16 to 31 words follows each layer of a tensor:
 *
 *   | ALONE                     | BENEATH                        | OVER
 *   | tokens  residual1  ln1 .. | fch    fch_gelu    dresidual   |
 *   |                           | whole  logits (a chunk) ------ | -->  the chunk may be longer than all behind it
 *   |                           |        dqkv                    |
 *   |                           |        dfch                    |
 *
 * logits, dqkv and dfch share the memory of fch_gelu if that is not kept, and `whole` that of fch; while a training model generates,
 * the layers' keys and values share that of fch if every layer has one (layout_caches_in_fch). A tensor that cannot share lies
 * at the end, in the turn OVER: logits, dqkv and dfch at --recompute=0, and logits if they are kept for every token. */
#ifndef LAYOUT_H
#define LAYOUT_H
#include <string.h>
#include "pyllmc.h"

/* P_wte, ..., P_qkvA, ... and then A_tokens, ...: a tensor's row in the table. */
enum {
#define PARAM(name, ...) P_##name,
#define ADAPTER(...)
#include "tensors.def"
    NUM_PARAM_TENSORS, /* LoRA's adapters follow */
    BEFORE_ADAPTERS = NUM_PARAM_TENSORS - 1,
#define ADAPTER(name, ...) P_##name,
#include "tensors.def"
    NUM_TRAINABLE,
    BEFORE_ACTS = NUM_TRAINABLE - 1,
#define ACT(name, ...) A_##name,
#include "tensors.def"
    NUM_TENSORS
};

/* Tensors of V rows in files, which memory pads to Vp with rows of zeros. */
static inline int layout_is_padded(int i) { return i == P_wte || i == P_lmheadw; }

/* True if the model's layers are dense and banded in GPT-3's order, or all dense where it has no window. */
int config_has_usual_pattern(const llmc_config *config);
/* The positions that layer l sees; 0: all. */
static inline int layout_window(const llmc_config *config, int l) {
    return config->window && config->pattern[(size_t)l % strlen(config->pattern)] == 'L' ? config->window : 0;
}

/* The highest --recompute. A tensor of tensors.def whose level is above it is kept whenever the model is trained. */
enum { RECOMPUTE_MOST = 4 };

typedef struct Layout {
    llmc_tensor table[NUM_TENSORS];
    int64_t num_params, num_acts; /* elements of model files; words of 4 bytes */
    int64_t num_weights;          /* elements of params: num_params, and the adapters */
    int64_t num_trained;          /* elements of grads; 0 without training */
    int64_t num_moments;          /* elements of m and of v: num_trained, or this process's share of it */
} Layout;
/* room->precision must be settled: LLMC_FP32 or LLMC_BF16. */
int layout_make(Layout *layout, const llmc_config *config, const llmc_room *room);
/* Finds the kernels that a room asks for. They settle its precision. */
int layout_kernels(const Kernels **k, llmc_room *room);
/* The rows of a ring, each position's keys and values in one of them; 0: the model has none. Banded layers have rings, dense
 * layers caches; without rings all layers have caches. */
static inline int layout_ring_rows(const Layout *layout) { return (int)layout->table[A_ring].shape[1]; }
/* True if a training model's caches, of one sequence, lie in fch, which generation needs of layer 0 only: layer l's at the start of its
 * fch, that of layer 0 in qkv. */
int layout_caches_in_fch(const llmc_room *room);
/* How many of the layers before layer l have a ring. */
int layout_rings_before(const Layout *layout, const llmc_config *config, int l);
static inline int64_t element_bytes(int element) { return element == LLMC_BF16 ? 2 : 4; }
/* The bytes of a master in params: a float, or its lower half. */
static inline int64_t master_bytes(int split) { return split ? 2 : 4; }

/* ---- what each process has of the moments ---- */

/* ZeRO-1 (Rajbhandari et al. 2020, "optimizer state partitioning"): of n trained elements each of W processes has the moments of
 * its own n / W, a multiple of 16. What is left over at the end, fewer than 16 W, every process has, and updates to the same bits. */
enum { MOMENT_PARTS = 2 };
typedef struct Moments {
    int64_t first, end; /* the elements, counted as gradients are */
    int64_t at;         /* where their moments begin in m and v */
} Moments;

/* The elements in a process's own share; all of them if nothing is shared out. */
static inline int64_t moments_each(int64_t trained, const llmc_room *room) {
    return room->shards > 1 ? trained / room->shards / 16 * 16 : trained;
}

static inline Moments moments_part(const Layout *layout, const llmc_room *room, int part) {
    const int64_t n = layout->num_trained, each = moments_each(n, room), shards = room->shards > 1 ? room->shards : 1;
    return part ? (Moments){shards * each, n, each} : (Moments){room->shard * each, (room->shard + 1) * each, 0};
}

/* ---- what is trained (trained.c) ---- */

static inline int layers_stored(const llmc_tensor *t) { return t->layers ? t->layers : 1; }
/* The matrix that an adapter belongs to, as a bit of llmc_room.lora_on. */
static inline int adapter_bit(int i) { return 1 << (i - NUM_PARAM_TENSORS) / 2; }
/* True if layer l of row i is trained: it is an adapter, or train_only names it; without either, everything is. */
int layout_trains(const Layout *layout, const llmc_room *room, int i, int l);
/* Writes the names of LoRA's targets, separated by commas. */
void layout_target_names(int lora_on, char *text, size_t size);
/* Refuses patterns that name no tensor, and a rank or targets that are not possible. */
int layout_check_trained(const Layout *layout, const llmc_room *room);
#endif
