/* The public C API, with frontends.h: the only symbols that the library exports. Python reads both (pyllmc/engine/_ffi.py).
 *
 * A function that can fail returns an int: 0 or a count, or a negative llmc_status. The reason and the remedy are then in
 * llmc_last_error() of the same thread. The library never exits, aborts or prints.
 *
 * An example: a model is made, takes a training step, and generates. In a checkout it is built by
 * gcc example.c -Icsrc -Lpyllmc/lib -lpyllmc -Wl,-rpath,pyllmc/lib
 *
 *   #include <stdio.h>
 *   #include "pyllmc.h"
 *
 *   int main(void) {
 *       const llmc_config config = {.maxT = 16, .V = 100, .L = 2, .NH = 2, .C = 64};
 *       const llmc_room room = {.B = 2, .T = 16, .training = 1, .recompute = 2};
 *       const llmc_adamw adamw = {.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1};
 *       const llmc_sampling sampling = {.temperature = 0.8f, .seed = 42};
 *       const int inputs[8] = {1, 2, 3, 4, 5, 6, 7, 8}, targets[8] = {2, 3, 4, 5, 6, 7, 8, 9}; // (2,4)
 *       llmc_model *model;
 *       float loss, norm;
 *       int ids[6], rc = llmc_model_create(&model, &config, &room, 0);
 *       if (rc == 0) rc = llmc_model_init(model, 42, 0);
 *       if (rc == 0) rc = llmc_model_micro_step(model, inputs, targets, NULL, 2, 4, 1, 0, &loss);
 *       if (rc == 0) rc = llmc_model_grad_norm(model, 1, &norm);
 *       if (rc == 0) rc = llmc_model_update(model, &adamw, 1);
 *       if (rc == 0) rc = llmc_model_generate(model, inputs, 1, 4, 6, &sampling, ids, -1);
 *       if (rc < 0) fprintf(stderr, "%s\n", llmc_last_error());
 *       else printf("loss %.6f, gradient norm %.6f, then ids %d %d %d ...\n", loss, norm, ids[0], ids[1], ids[2]);
 *       llmc_model_free(model);
 *       return rc < 0;
 *   }
 */
#ifndef PYLLMC_H
#define PYLLMC_H
#include <stddef.h>
#include <stdint.h>
#include "kernels.h"
#pragma GCC visibility push(default)
/* cffi: begin */
typedef enum llmc_status {
    LLMC_OK = 0,
    LLMC_EINVAL = -1,  /* an argument, option or shape that is not possible */
    LLMC_ENOMEM = -2,  /* there is not enough memory */
    LLMC_EFORMAT = -3, /* a malformed file */
    LLMC_EIO = -4,     /* the system failed to read or write */
    LLMC_EDEVICE = -5, /* this machine has no such device or instruction set */
    LLMC_ENUMERIC = -6 /* a loss or gradient that is not finite */
} llmc_status;

const char *llmc_last_error(void);

/* ---- signs of life (pulse.c) ---- */
enum { LLMC_STOPPED = -7 }; /* returned by a function that a pulse has stopped */
/* Long work calls the pulse again and again, in the thread that does the work: before each tensor that is loaded, each batch
 * of a validation, and so on. text is a line that says what is done and how far it is; "" when the work is over. If a pulse
 * returns anything but 0, the work ends with LLMC_STOPPED (a model that was being loaded is then neither old nor new), and a
 * trainer is stopped as by llmc_trainer_stop; a checkpoint that is being written is finished first. A pulse must not call the
 * library. NULL: no pulse, as at first. */
typedef int llmc_pulse(void *context, const char *text);
void llmc_on_pulse(llmc_pulse *pulse, void *context);

const char *llmc_backend(void); /* "cpu", "cuda" or "emu": the device of this library */
const char *llmc_refused(void); /* why kernels that this CPU could run are left out; "": none are */
const char *llmc_blas(void);    /* the BLAS of this build's fp32 products (make BLAS=...); "": none */
const char *llmc_version(void); /* as in pyproject.toml */
const char *llmc_headers(void); /* the checksum of TABLES (Makefile) at its build, which tells if it is stale */
/* The kernels of an instruction set of csrc/cpu/isas.def, or "reference", for LLMC_FP32, LLMC_BF16 or LLMC_AUTO. "" or NULL: of
 * the set that $PYLLMC_ISA names, else of the best that this machine can run. NULL, with an error, if there are none. */
const Kernels *llmc_kernels(const char *isa, int element);
/* LLMC_AUTO, LLMC_FP32 or LLMC_BF16 for "auto", "fp32" or "bf16"; LLMC_EINVAL for other names. */
int llmc_precision(const char *name);
/* The number of cores that this process may use, within its container's quota and $OMP_NUM_THREADS. */
int llmc_default_threads(void);
/* Starts the threads that a model would use. Returns how many there are: fewer if the system starts no more. */
int llmc_start_threads(int threads);

/* ---- configuration (config.c) ---- */
typedef struct llmc_config {
    int maxT, V, Vp, L, NH, C;
    int window; /* 0: every layer dense; w: banded layers attend to the last w positions only (GPT-3, GPT-Neo) */
    int untied; /* 1: the logits are made by a matrix of their own, lmheadw; 0: by the embedding wte (GPT-2) */
    /* The kind of each layer, D dense or L banded, as a text that is repeated over the layers. Only with a window; ""
     * is then DL. llmc_config_check shortens it to what is repeated. */
    char pattern[128];
} llmc_config;
/* "d12", "gpt2:d48", "gpt3:c768", "gpt2-xl", "gpt-nano" ...; V = 0: the data decide it. */
int llmc_config_parse(llmc_config *config, const char *descriptor);
int llmc_config_check(llmc_config *config); /* fills Vp and pattern; refuses impossible sizes */
int llmc_config_set_pattern(llmc_config *config, const char *pattern); /* "": the default; the check is yours */

/* ---- layout (layout.c) ---- */
enum { LLMC_PARAM, LLMC_ADAPTER, LLMC_ACT, LLMC_LAYER_ACT, LLMC_CACHE };
enum { LLMC_RING = LLMC_CACHE + 1, LLMC_CHUNK_ACT, LLMC_OVER_ACT, LLMC_GRAD_ACT };
enum { LLMC_F, LLMC_I, LLMC_X }; /* float, int32, floatX (kernels.h) */
enum { LLMC_ZERO, LLMC_ONE, LLMC_NORMAL, LLMC_RESIDUAL, LLMC_UNIFORM };
typedef struct llmc_room { /* the sizes that a model's memory is made for */
    int B, T;              /* at most B sequences of at most T tokens */
    int training;          /* 0: without gradients and moments */
    int recompute;         /* 0..4: how much backward computes again instead of keeping it (tensors.def); same bits */
    int logits;            /* 1: keeps the logits of every token; 0: computes a few at a time, which cannot be read */
    int precision;         /* LLMC_FP32, LLMC_BF16, or LLMC_AUTO (0), for which llmc_model_room names one of them */
    /* LoRA (Hu et al. 2021): y = x W^T + b + (alpha / rank) (x A^T) B^T. W and all else is frozen, unless train_only names it. */
    int lora_rank; /* rows of A; 0: there are no adapters */
    int lora_on;   /* the matrices that have adapters, as llmc_lora_targets gives them */
    float lora_alpha;
    const char *train_only; /* patterns of names, see options.def; NULL or "": all is trained, or LoRA's adapters */
    /* ZeRO-1 (llmc_team): the moments are shared out among so many processes, of which this is number `shard`; 0, 1: it has all. */
    int shards, shard;
    int outer;      /* 1: the model keeps what the outer step of DiLoCo needs (llmc_model_outer_step) */
    int neighbours; /* the processes that share the machine's memory, itself among them, for what would fit; 0: 1 */
    int whole;      /* 1: the masters of bf16 are floats; 0: on a CPU only the 16 bits that `stored` lacks of them */
} llmc_room;
typedef struct llmc_tensor {
    const char *name, *torch_name; /* torch_name has %d for the layer; it is "" for activations */
    int kind, type, layers;        /* layers: how many are stored; 0: the tensor is not per layer */
    int kept;                      /* 0: layers or chunks overwrite each other */
    int init, decay;
    int rank;         /* 0: the model has no such tensor */
    int64_t shape[4]; /* a layer's shape */
    int64_t size;     /* elements of one layer */
    /* From layer to layer, and from the start of its block: elements for parameters, words of 4 bytes for activations. */
    int64_t stride, offset;
} llmc_tensor;
/* Bits for llmc_room.lora_on of names that commas separate: qkv, attproj, fc, fcproj. LLMC_EINVAL for other names. */
int llmc_lora_targets(const char *names);
typedef struct llmc_plan { /* bytes */
    int64_t params, grads, moments, acts, workspace, total;
    int64_t outer, stored; /* the outer step's weights and momentum; parameters as floatX (params: all, or the rest) */
    int64_t num_params;    /* elements of model files, without the padding of V */
    int64_t trained;       /* elements that have gradients and moments */
} llmc_plan;
int llmc_num_tensors(void);
/* Fills table[llmc_num_tensors()] for these sizes. */
int llmc_layout(const llmc_config *config, const llmc_room *room, llmc_tensor *table);
int llmc_plan_memory(const llmc_config *config, const llmc_room *room, int threads, llmc_plan *plan);
/* Writes one line: the parts of the arena, and whether it fits the memory that is available. LLMC_ENOMEM if it does not: the
 * error says which sizes would fit. */
int llmc_plan_text(const llmc_config *config, const llmc_room *room, int threads, char *text, size_t size);

/* ---- model (csrc/model/) ---- */
typedef struct llmc_model llmc_model;
typedef struct llmc_adamw {
    double lr, beta1, beta2, eps, weight_decay;
    int still_embeddings; /* 1: wte and wpe do not decay, as in minGPT; 0: they do, as in GPT-2 */
} llmc_adamw;
enum { LLMC_PARAMS, LLMC_GRADS, LLMC_M, LLMC_V, LLMC_ACTS };
/* threads 0: llmc_default_threads(). The weights are not initialised: llmc_model_init or llmc_model_load must follow. */
int llmc_model_create(llmc_model **model, const llmc_config *config, const llmc_room *room, int threads);
void llmc_model_free(llmc_model *model);
/* For generation: compresses the weight matrices to "bf16", or to "int8" with a scale per row; "fp32", and "bf16" in a model
 * of bf16, does nothing. Parameters can then be neither read, written nor saved until they are loaded again, because nothing but
 * the compressed weights is left. */
int llmc_model_compress(llmc_model *model, const char *format);
/* Draws fresh weights, those of the PyTorch reference for torch.Generator().manual_seed(seed).
 * std 0: 0.02 sqrt(max(1, 768/C)). */
int llmc_model_init(llmc_model *model, int64_t seed, double std);
/* Draws adapters as PEFT does: A by kaiming_uniform_(a=sqrt(5)) with a generator of this seed, B zero. llmc_model_init does it, too;
 * after llmc_model_load of a model file this must follow. */
int llmc_model_init_adapters(llmc_model *model, int64_t seed);
const llmc_config *llmc_model_config(const llmc_model *model);
const llmc_room *llmc_model_room(const llmc_model *model);
const char *llmc_model_isa(const llmc_model *model);
/* The threads that it computes with: fewer than were asked for if the system starts no more. */
int llmc_model_threads(const llmc_model *model);
/* Row i of the model's table, with its place in a block; NULL if there is no such row. */
const llmc_tensor *llmc_model_tensor(const llmc_model *model, int i);
/* The memory of a block; NULL if there is none, or if it is not floats that the host can read (on_host 0, whole 0). With whole 1 a
 * model of bf16 computes with a copy of LLMC_PARAMS, which llmc_model_write brings up to date; its LLMC_ACTS of type LLMC_X are bf16. */
void *llmc_model_block(llmc_model *model, int block);
int llmc_model_on_host(const llmc_model *model);
int llmc_model_weights(const llmc_model *model); /* the model's element, or the format that they are compressed to */
/* Where the gradient and the moments of layer l of row i begin in their blocks, in elements; -1: it is frozen. */
int64_t llmc_model_gradient_at(const llmc_model *model, int i, int l);
/* Read and write the first n elements of layer l of row i, as float or int32. Parameters are used as soon as they are written. */
int llmc_model_read(const llmc_model *model, int block, int i, int l, int64_t n, void *out);
int llmc_model_write(llmc_model *model, int block, int i, int l, int64_t n, const float *in);
/* Must follow a change of LLMC_PARAMS through llmc_model_block: brings the copy that a model of bf16 computes with up to date. */
int llmc_model_refresh(llmc_model *model);
/* tokens, targets and loss_weights are (b,t) with b <= B, t <= T. targets NULL: logits only; a target of -1 is ignored.
 * loss_weights NULL: all 1. loss may be NULL. */
int llmc_model_forward(llmc_model *model, const int *tokens, const int *targets, const float *loss_weights, int b,
                       int t, float *loss);
int llmc_model_backward(llmc_model *model, float scale); /* grads += scale * d loss */
/* The same for any loss: dlogits (b,t,V), the gradient of the logits, takes the place of that of scale * loss, unless it is NULL.
 * The gradients are written unless accumulate. */
int llmc_model_backward_from(llmc_model *model, const float *dlogits, float scale, int accumulate);
/* Forward and backward at once; the gradients are written unless accumulate, which adds to them. This is faster than the two
 * calls: no gradients need to be zeroed, and logits that are not kept are computed only once. The device is not waited for:
 * the loss is valid after llmc_model_sync, llmc_model_grad_norm or any other call that reads from the model. */
int llmc_model_micro_step(llmc_model *model, const int *tokens, const int *targets, const float *loss_weights, int b,
                          int t, float scale, int accumulate, float *loss);
/* Dropout as in GPT-2, with probabilities in [0, 1): on the sum of the embeddings (embd), on attention's weights (attn), and on
 * what attention and MLP add to the residual stream (resid); and of what LoRA's A reads (lora), 0 in a model without adapters. kernels.h says which elements drop: they follow from the seed,
 * llmc_model_step, llmc_model_micro_steps and the place. llmc_model_micro_step drops; llmc_model_forward only after
 * llmc_model_drop_in_forward(model, 1); generation never. 0, 0, 0, 0 as at first: no random number is drawn. */
int llmc_model_set_dropout(llmc_model *model, double embd, double attn, double resid, double lora, int64_t seed);
int llmc_model_drop_in_forward(llmc_model *model, int on);
/* The number of the next pass that drops: it counts them from the last update on, and from a micro-step that does not
 * accumulate. Whoever updates the weights without llmc_model_update may set it, so that a resumed training goes on with the
 * same numbers. */
int64_t llmc_model_micro_steps(const llmc_model *model);
int llmc_model_set_micro_steps(llmc_model *model, int64_t n);
/* Documents that share a window do not see each other from the next batch on: `id` begins one, whose attention and positions begin
 * with it, so that a batch computes for it what it would compute for it alone. -1, as at first: a window is one document. It
 * concerns batches only, not generation. */
int llmc_model_separate(llmc_model *model, int id);
int llmc_model_sync(llmc_model *model); /* waits for the device; returns the error of any call before */
int llmc_model_zero_grad(llmc_model *model);
int llmc_model_reset_moments(llmc_model *model);                               /* as before the first step */
int llmc_model_clip_grad_norm(llmc_model *model, float max_norm, float *norm); /* scales the gradients themselves */
/* Computes the global norm of the gradients, and the factor that clips it to max_norm (<= 0: no clipping) in the next update. */
int llmc_model_grad_norm(llmc_model *model, float max_norm, float *norm);
/* One AdamW step; clip: the gradients are first multiplied by the factor of llmc_model_grad_norm. The device is not waited for. */
int llmc_model_update(llmc_model *model, const llmc_adamw *hyper, int clip);
int64_t llmc_model_step(const llmc_model *model);         /* AdamW steps taken */
int llmc_model_set_step(llmc_model *model, int64_t step); /* for moments that were written from outside */
/* Appends tokens (b,n) to b sequences, of which sequence i holds pos[i] tokens; last_logits (b,V) are those of the last token
 * of each. A training model made with recompute >= 3 has memory for b = 1 only. pos[i] may be less than was appended so far; but
 * rings (tensors.def) have then forgotten what is more than 17 tokens back: LLMC_EINVAL unless pos[i] is 0. */
int llmc_model_extend(llmc_model *model, const int *tokens, const int *pos, int b, int n, float *last_logits);
/* How likely tokens are that follow others, in spans of counts[i] >= 1 tokens each. Span i begins at position pos[i], behind what the
 * cache's first sequence holds before it: the tokens of spans before it, in this call or an earlier one; what is there from
 * pos[i] on is forgotten. So a context may be a span, and every continuation of it another one. tokens, targets and losses are
 * those of all spans, one after the other, at most B T. losses = -log P(target | what is before it), 0 where the target is -1.
 * logits NULL, or the V logits of each token with a target, in order. */
int llmc_model_score(llmc_model *model, const int *tokens, const int *targets, const int *counts, const int *pos,
                     int spans, float *losses, float *logits);
/* Names the first tensor, in the order of computation, that holds a NaN or infinity; "" if all are finite. */
int llmc_model_find_nonfinite(llmc_model *model, char *name, size_t size);
/* Tells b and t of the last forward pass; 0, 0 before the first, and after its memory served extend or score. */
int llmc_model_shape(const llmc_model *model, int *b, int *t);

/* ---- random numbers (rng.c) ---- */
typedef struct llmc_rng { /* as torch.Generator on the CPU: MT19937, which draws normal numbers in pairs */
    uint32_t words[624];
    int next;
    int has_normal; /* the second of a pair is still to be used */
    double normal;
} llmc_rng;
void llmc_rng_seed(llmc_rng *rng, int64_t seed); /* as manual_seed, of whose argument the low 32 bits count */
uint32_t llmc_rng_uint32(llmc_rng *rng);
/* x[n] as torch.empty(n).normal_(mean, std, generator=...) fills it, to the last bits of log, sin and cos. */
void llmc_rng_normal(llmc_rng *rng, float *x, int64_t n, float mean, float std);

/* ---- token files (dataloader.c) ---- */
typedef struct llmc_loader llmc_loader;
/* Reads token files as windows of T+1 tokens. paths: a folder (its SPLIT*.bin), a glob or a file; names are sorted as bytes.
 * Window number p of the stream is i = p % N of epoch p / N, or llmc_permute(i, N, seed, epoch) if shuffled. Rank r of `world`
 * takes p = position + r*B .. + B-1, then the position moves by world*B. V: an id >= V is an error; 0: any id is taken. eot:
 * the id before each document; windows begin at it where they can (windows.h). -1: windows begin every T tokens. */
int llmc_loader_open(llmc_loader **loader, const char *paths, const char *split, int B, int T, int shuffle,
                     int64_t seed, int rank, int world, int V, int eot);
/* The same, but in files with a loss mask as many whole documents as fit share a window, for a model that separates them
 * (llmc_model_separate). */
int llmc_loader_open_packed(llmc_loader **loader, const char *paths, const char *split, int B, int T, int shuffle,
                            int64_t seed, int rank, int world, int V, int eot);
void llmc_loader_free(llmc_loader *loader);
/* (B,T) each. A file NAME with a loss mask beside it, NAME.mask (mask.h), has targets of -1 where nothing is to be learnt, and
 * a padded window for each document. LLMC_EFORMAT for the mask of another file. */
int llmc_loader_next(llmc_loader *loader, int *inputs, int *targets);
int64_t llmc_loader_position(const llmc_loader *loader); /* the only state: the windows that all ranks have taken */
int llmc_loader_set_position(llmc_loader *loader, int64_t position);
int64_t llmc_loader_windows(const llmc_loader *loader); /* N, the windows of an epoch */
int64_t llmc_loader_tokens(const llmc_loader *loader);
int llmc_loader_num_shards(const llmc_loader *loader);
int64_t llmc_loader_learnt(const llmc_loader *loader); /* targets learnt in an epoch; -1: no file has a mask */
int64_t llmc_loader_cut(const llmc_loader *loader);    /* documents of files with a mask that are longer than T */
/* The place of i in [0, N) in the permutation of an epoch: a keyed Feistel network, applied until the result is below N.
 * Negative if i is not in [0, N). */
int64_t llmc_permute(int64_t i, int64_t N, int64_t seed, int64_t epoch);

/* ---- sampling (sampler.c, generate.c) ---- */
typedef struct llmc_sampling {
    float temperature; /* 0: always the likeliest id */
    int top_k;         /* draws among the k likeliest; 0: among all */
    float top_p;       /* among the fewest likeliest that hold this share of the probability; 0 or 1: all */
    int64_t seed;
    /* Divides the logits of ids in the context, or multiplies them if they are negative; 0 or 1: no penalty. */
    float repetition_penalty;
    int vocab; /* draws among ids below it, if a model has more than its tokenizer; 0: among all */
} llmc_sampling;
/* Draws an id by logits[V] and a coin in [0, 1): the first id at which the sum of the probabilities so far exceeds the coin.
 * Ties go to the lower id. -inf is allowed; NaN and +inf are errors. */
int llmc_sample(const float *logits, int V, const llmc_sampling *how, double coin);
double llmc_coin(uint64_t *state); /* the next number in [0, 1) of a SplitMix64, of which any state is a seed */

/* b texts of the same length, which grow together by one id each at a time; text i is drawn with seed + i. The model caches
 * their keys and values, so that it reads each id once, unless it was used for something else meanwhile. */
typedef struct llmc_generation llmc_generation;
int llmc_generation_new(llmc_generation **generation, llmc_model *model, int b, const llmc_sampling *how);
void llmc_generation_free(llmc_generation *generation);
/* Appends ids (b,n). If the context of T cannot hold all ids, only the last max(T/2, n) stay; if n > T, the last T. */
int llmc_generation_feed(llmc_generation *generation, const int *ids, int n);
/* Draws the next id of each text into ids (b), and appends it. A context that holds T ids is cut to the last T/2 before that. */
int llmc_generation_next(llmc_generation *generation, int *ids);
/* The last draw: returns the id of text i. own[V] are the model's own probabilities, the softmax of its logits. chances[V] are
 * those that the id was drawn by, after repetition_penalty, temperature, top_k and top_p. LLMC_EINVAL before the first draw. */
int llmc_generation_last(const llmc_generation *generation, int i, float *own, float *chances);
/* The next draws are those of a new generation with this seed. */
void llmc_generation_reseed(llmc_generation *generation, int64_t seed);
/* Removes ids [from, to) from every text. The model reads the ids behind them again; and those before them, if the rings of banded
 * layers have forgotten what they held. */
int llmc_generation_cut(llmc_generation *generation, int from, int to);
/* The ids that text i holds now, and their number n; valid until the next call. */
const int *llmc_generation_ids(const llmc_generation *generation, int i, int *n);
/* A whole generation at once: out (b,max_new) follows prompts (b,n), n >= 1. A text ends with its first `eot`, which fills the
 * rest of its row; -1: no text ends early. Returns the number of ids in the longest text. */
int llmc_model_generate(llmc_model *model, const int *prompts, int b, int n, int max_new, const llmc_sampling *how,
                        int *out, int eot);

/* ---- checkpoints and other files of weights (csrc/files/) ---- */
/* Weights and all that resuming needs in one file: llm.c's model .bin (version 3; 103 if that cannot say the model; 104 with OUTER), then
 * sections {char tag[8]; int64 size; payload} "OPTIONS ", "STATE   ", "TOKENIZR", "MOMENTS " (m, then v), "OUTER   " (llmcfile.h), "CRC32   " (zlib's,
 * of all bytes before). options, state: lines key=value; tokenizer: a tokenizer.bin; each may be NULL. A state without a line
 * step= gets the model's.
 * The old file stays until the new one is whole and on the disk. Refuses what is not finite. */
int llmc_checkpoint_save(llmc_model *model, const char *path, const char *options, const char *state,
                         const void *tokenizer, int64_t tokenizer_size, int with_moments);
/* A file of weights, opened once for all questions: llm.c's versions 1 to 5, a checkpoint, or OpenAI's TensorFlow checkpoint (its
 * folder, its prefix or either file). A run folder stands for its best checkpoint, or for its last where it has no best. */
typedef struct llmc_file llmc_file;
int llmc_file_open(llmc_file **file, const char *path);
void llmc_file_free(llmc_file *file);
/* What llmc_file_open would open for `path`: 1; or 0 if nothing there can hold weights that the engine reads. */
int llmc_file_find(const char *path, char *file, size_t size);
const char *llmc_file_path(const llmc_file *file); /* the file that was opened; of a run folder, its checkpoint */
const llmc_config *llmc_file_config(const llmc_file *file);
int llmc_file_describe(const llmc_file *file, char *text, size_t size); /* the kind of file, in a few words */
/* Reads a section of a checkpoint and returns its size; 0 if it has none. out NULL: only the size. Adds a 0 if it fits. */
int llmc_file_section(const llmc_file *file, const char *tag, char *out, int64_t size);
/* Checks the whole file before the model changes. Training models also take m, v and step, which start at 0 where the file has
 * none. */
int llmc_model_load_from(llmc_model *model, const llmc_file *file);
/* LoRA: says which file the model's present weights came from. Its checkpoints then hold its adapters, what else is trained, this
 * name and a checksum of the weights. A file of adapters brings the name itself. */
int llmc_model_name_base(llmc_model *model, const char *path);
/* Writes about the adapters that a file holds instead of a model: lines base=, checksum=, lora_rank=, lora_alpha=, lora_on= (names)
 * and train_only=. Returns the whole length, 0 if the file holds a model. Loading such a file loads its base, too; a model of
 * lora_rank 0 gets the adapters merged. */
int llmc_file_adapters(const llmc_file *file, char *text, int64_t size);
/* Copies the weights of a model of the same sizes; its adapters are merged, and `model` has none. */
int llmc_model_copy_weights(llmc_model *model, const llmc_model *from);
/* Reads the base of a file of adapters from another place than where it was. */
int llmc_file_set_base(llmc_file *file, const char *path);
/* The same by path, each opening the file for a single question. */
int llmc_model_load(llmc_model *model, const char *path);
int llmc_model_read_config(const char *path, llmc_config *config);
int llmc_model_describe(const char *path, char *text, size_t size);
int llmc_checkpoint_text(const char *path, const char *tag, char *out, int64_t size);

/* ---- tokenizer (tokenizer.c) ---- */
typedef struct llmc_tokenizer llmc_tokenizer;
/* Opens a tokenizer.bin, ours or llm.c's, or OpenAI's vocab.bpe. */
int llmc_tokenizer_open(llmc_tokenizer **tokenizer, const char *path);
/* Reads the bytes of such a file; errors call it `name`. */
int llmc_tokenizer_read(llmc_tokenizer **tokenizer, const void *bytes, int64_t size, const char *name);
/* The tokenizer inside a checkpoint; or, if asked for, the tokenizer.bin or vocab.bpe beside the weights, which must fit them.
 * NULL where there is none. */
int llmc_file_tokenizer(const llmc_file *file, int beside, llmc_tokenizer **tokenizer);
void llmc_tokenizer_free(llmc_tokenizer *tokenizer);
int llmc_tokenizer_size(const llmc_tokenizer *tokenizer); /* V */
/* LLMC_EINVAL unless the tokenizer fits a model of V ids, which may be padded to a multiple of 128; `name` as above. */
int llmc_tokenizer_fits(const llmc_tokenizer *tokenizer, int V, const char *name);
int llmc_tokenizer_eot(const llmc_tokenizer *tokenizer); /* the id that ends a document, or -1 */
const void *llmc_tokenizer_bytes(const llmc_tokenizer *tokenizer,
                                 int64_t *size); /* a tokenizer.bin, for a checkpoint */
/* Writes the text of ids, at most `size` bytes of it; returns its whole length. */
int llmc_tokenizer_decode(const llmc_tokenizer *tokenizer, const int *ids, int n, char *out, int64_t size);
/* Writes the ids of a text, at most `size` of them, and returns their whole number; EOT is never among them. The file decides
 * the method: the longest piece that matches, or GPT-2's byte pairs, for which the text must be UTF-8. */
int llmc_tokenizer_encode(const llmc_tokenizer *tokenizer, const char *text, int64_t bytes, int *out, int64_t size);

/* ---- text in, text out (writer.c) ---- */
typedef struct llmc_writer llmc_writer;
enum { LLMC_GOING_ON, LLMC_AT_EOT, LLMC_AT_STOP, LLMC_AT_LIMIT };
/* The model and the tokenizer must outlive the writer. most: tokens from a prompt to the end. Ids that the tokenizer does not
 * know are never drawn. */
int llmc_writer_new(llmc_writer **writer, llmc_model *model, const llmc_tokenizer *tokenizer, const llmc_sampling *how,
                    int64_t most);
/* A text ends before the first stop string; the longest counts if several end at the same byte. */
int llmc_writer_stop_at(llmc_writer *writer, const char *text, int64_t size);
void llmc_writer_free(llmc_writer *writer);
/* Appends a prompt to the text. The first prompt begins with EOT; if the tokenizer has none, an empty first prompt begins with
 * id 0. The text so far stays, without bytes that were not handed out and without a stop string. echo: the prompt is the
 * first part. */
int llmc_writer_prompt(llmc_writer *writer, const char *text, int64_t size, int echo);
/* The next part of the text, valid until the next call: 1, or 0 at the end. It is whole UTF-8 characters: bytes that make
 * none become U+FFFD, and a character that the end cuts is left out, and removed from the context. */
int llmc_writer_next(llmc_writer *writer, const char **text, int64_t *size);
/* The same, one token at a time: the text that is certain now, which may be empty. At the limit no token is drawn any more. */
int llmc_writer_step(llmc_writer *writer, const char **text, int64_t *size);
int llmc_writer_end(const llmc_writer *writer); /* one of the four above */
/* The ids that the text is made of. Only this writer's functions may change them. */
llmc_generation *llmc_writer_generation(llmc_writer *writer);
/* Forgets all but the first n ids of the text, which the model does not read again. The next prompt follows them, and at most
 * `most` tokens follow that, drawn as by a new writer of this seed. So many prompts share one beginning. */
int llmc_writer_rewind(llmc_writer *writer, int n, int64_t seed, int64_t most);
/* cffi: end */
#pragma GCC visibility pop
#include "frontends.h"
#endif
