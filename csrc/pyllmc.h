/* The public C API: the only symbols the library exports, and what Python binds (pyllmc/_ffi.py reads this file).
 *
 * A function that can fail returns an int: 0 or a count, or a negative llmc_status, with the reason and the remedy in
 * llmc_last_error() of the same thread. The library never exits, aborts or prints. */
#ifndef PYLLMC_H
#define PYLLMC_H
#include <stddef.h>
#include <stdint.h>
#include "kernels.h"
#pragma GCC visibility push(default)
/* cffi: begin */
typedef enum llmc_status {
    LLMC_OK = 0,
    LLMC_EINVAL = -1,  /* an argument, option or shape that cannot be */
    LLMC_ENOMEM = -2,  /* the memory plan does not fit */
    LLMC_EFORMAT = -3, /* a file that is not what it should be */
    LLMC_EIO = -4,     /* the system would not read or write */
    LLMC_EDEVICE = -5, /* no such device or instruction set here */
    LLMC_ENUMERIC = -6 /* a loss or gradient that is not finite */
} llmc_status;

const char *llmc_last_error(void);

/* ---- signs of life (pulse.c) ---- */
enum { LLMC_STOPPED = -7 }; /* the answer of a function that a pulse has stopped */
/* Called by this thread before every piece of what takes long, such as a tensor that is loaded or a batch of a validation,
 * with a line that says what is under way and how far it is; with "" when that is over. If it returns anything but 0, the
 * work ends with LLMC_STOPPED (a model that was being loaded is then neither old nor new), and a trainer is stopped as by
 * llmc_trainer_stop; a checkpoint that is being written is finished. It must not call the library. NULL: none, as at first. */
typedef int llmc_pulse(void *context, const char *text);
void llmc_on_pulse(llmc_pulse *pulse, void *context);

const char *llmc_backend(void); /* "cpu", "cuda" or "emu": which library this is */
const char *llmc_blas(void);    /* the library that this build's fp32 products come from (make BLAS=...); "": its own */
const char *llmc_version(void); /* of pyproject.toml */
const char *llmc_headers(void); /* the checksum of TABLES (Makefile) that it was built from: is it stale? */
/* A device's kernels by instruction set (avx512_bf16, avx512, avx2, generic, neon, reference); "" or NULL: $PYLLMC_ISA, else the
 * best this machine can run. NULL, with an error, if there is none. */
const Kernels *llmc_kernels(const char *isa);
/* The cores this process may use: those it may run on, within its container's quota and $OMP_NUM_THREADS. */
int llmc_default_threads(void);
/* Starts what a model of so many threads would use: how many there are, fewer where the system starts no more. */
int llmc_start_threads(int threads);

/* ---- configuration (config.c) ---- */
typedef struct llmc_config {
    int maxT, V, Vp, L, NH, C;
    int window; /* 0: every layer dense; w: odd layers attend to the last w positions only (GPT-3, GPT-Neo) */
} llmc_config;
/* "d12", "gpt2:d48", "gpt3:c768", "gpt2-xl", "gpt-nano" ...; V = 0 means: from the data. */
int llmc_config_parse(llmc_config *config, const char *descriptor);
int llmc_config_check(llmc_config *config); /* fills Vp; refuses what cannot be */

/* ---- layout (layout.c) ---- */
enum { LLMC_PARAM, LLMC_ACT, LLMC_LAYER_ACT, LLMC_CACHE, LLMC_CHUNK_ACT, LLMC_OVER_ACT, LLMC_GRAD_ACT };
enum { LLMC_F, LLMC_I, LLMC_X }; /* float, int32, floatX (kernels.h) */
enum { LLMC_ZERO, LLMC_ONE, LLMC_NORMAL, LLMC_RESIDUAL };
typedef struct llmc_room { /* what a model's memory is for */
    int B, T;              /* at most B sequences of at most T tokens */
    int training;          /* 0 leaves out what only gradients need */
    int recompute; /* 0..3: how much the backward pass computes again rather than keep, see tensors.def; same bits */
    int logits;    /* 1: keeps the logits of every token; 0: of a few at a time, never to be looked at */
} llmc_room;
typedef struct llmc_tensor {
    const char *name, *torch_name; /* torch_name has %d for the layer; "" for activations */
    int kind, type, layers;        /* layers: 0 if not per layer, else how many copies are stored */
    int kept;                      /* 0: one layer or chunk overwrites another's */
    int init, decay, rank;
    int64_t shape[4];       /* of one layer */
    int64_t size;           /* elements of one layer */
    int64_t stride, offset; /* between layers, from the start of its block: elements of parameters, words of 4 bytes */
} llmc_tensor;
typedef struct llmc_plan { /* bytes */
    int64_t params, grads, moments, acts, workspace, total;
    int64_t stored;     /* of the parameters in floatX, where that is not float */
    int64_t num_params; /* elements, without the padding of V */
} llmc_plan;
int llmc_num_tensors(void);
/* Fills table[llmc_num_tensors()] for these sizes. */
int llmc_layout(const llmc_config *config, const llmc_room *room, llmc_tensor *table);
int llmc_plan_memory(const llmc_config *config, const llmc_room *room, int threads, llmc_plan *plan);
/* One line: what the arena would hold, whether it fits the memory available, and if not which room would. */
int llmc_plan_text(const llmc_config *config, const llmc_room *room, int threads, char *text, size_t size);

/* ---- model (gpt2.c) ---- */
typedef struct llmc_model llmc_model;
typedef struct llmc_adamw {
    double lr, beta1, beta2, eps, weight_decay;
} llmc_adamw;
enum { LLMC_PARAMS, LLMC_GRADS, LLMC_M, LLMC_V, LLMC_ACTS };
/* threads 0: llmc_default_threads(). The weights are uninitialised: follow with init or load. */
int llmc_model_create(llmc_model **model, const llmc_config *config, const llmc_room *room, int threads);
void llmc_model_free(llmc_model *model);
/* "fp32", "bf16" or "auto", the first of them that the device can: how matrix products multiply (kernels.h). It is fp32 at
 * first. LLMC_EDEVICE if it cannot. */
int llmc_model_set_precision(llmc_model *model, const char *name);
/* For generation: the weight matrices in place become "bf16", or "int8" with a scale per row; "fp32" leaves them. The
 * parameters cannot be read, saved or trained afterwards; load makes them fp32 again. */
int llmc_model_compress(llmc_model *model, const char *format);
/* The reference's weights for torch.Generator().manual_seed(seed). std 0: 0.02 sqrt(max(1, 768/C)). */
int llmc_model_init(llmc_model *model, int64_t seed, double std);
const llmc_config *llmc_model_config(const llmc_model *model);
const llmc_room *llmc_model_room(const llmc_model *model);
const char *llmc_model_isa(const llmc_model *model);
/* The threads that it computes with: fewer than were asked for where the system starts no more. */
int llmc_model_threads(const llmc_model *model);
/* Row i of the model's table: its place in a block. NULL if there is none. */
const llmc_tensor *llmc_model_tensor(const llmc_model *model, int i);
/* NULL if the block is not there, or not where the host can look at it (on_host 0). */
void *llmc_model_block(llmc_model *model, int block);
int llmc_model_on_host(const llmc_model *model);
int llmc_model_weights(const llmc_model *model); /* LLMC_FP32, or what compress made of them */
/* The first n elements of layer l of row i, as float or int32; what is written to parameters counts at once. */
int llmc_model_read(const llmc_model *model, int block, int i, int l, int64_t n, void *out);
int llmc_model_write(llmc_model *model, int block, int i, int l, int64_t n, const float *in);
/* tokens, targets (b,t) with b <= B, t <= T; targets NULL: logits only; weights NULL: all 1. loss may be NULL. */
int llmc_model_forward(llmc_model *model, const int *tokens, const int *targets, const float *weights, int b, int t,
                       float *loss);
int llmc_model_backward(llmc_model *model, float scale); /* grads += scale * d loss */
/* Both at once; grads = instead of += unless accumulate. This is the faster way: no gradients need to be zeroed, and
 * where logits are not kept, backward alone must compute them again. Does not wait for the device: the loss is there after
 * sync, grad_norm or whatever else looks at the model. */
int llmc_model_micro_step(llmc_model *model, const int *tokens, const int *targets, const float *weights, int b, int t,
                          float scale, int accumulate, float *loss);
int llmc_model_sync(llmc_model *model); /* waits for the device; the error of what it did */
int llmc_model_zero_grad(llmc_model *model);
int llmc_model_reset_moments(llmc_model *model);                               /* as before the first step */
int llmc_model_clip_grad_norm(llmc_model *model, float max_norm, float *norm); /* scales the gradients themselves */
/* Tells the global norm and keeps the factor that clips it to max_norm (<= 0: 1) for the next update. */
int llmc_model_grad_norm(llmc_model *model, float max_norm, float *norm);
/* One AdamW step; clip: its gradients are first multiplied by grad_norm's factor. Does not wait for the device. */
int llmc_model_update(llmc_model *model, const llmc_adamw *hyper, int clip);
int64_t llmc_model_step(const llmc_model *model); /* AdamW steps taken */
/* Appends tokens (b,n) to b sequences which hold pos[b] tokens each; last_logits (b,V) of the last of them. A model made
 * with recompute 3 has the memory for b = 1 only. */
int llmc_model_extend(llmc_model *model, const int *tokens, const int *pos, int b, int n, float *last_logits);
/* The first tensor, in the order of computation, that holds a NaN or infinity: its name, or "" if all are finite. */
int llmc_model_find_nonfinite(llmc_model *model, char *name, size_t size);
int llmc_model_shape(const llmc_model *model, int *b, int *t); /* of the last forward pass; 0, 0 before the first */

/* ---- random numbers (rng.c) ---- */
typedef struct llmc_rng { /* torch.Generator on the CPU: MT19937, and the second half of the last pair of normals */
    uint32_t words[624];
    int next;
    int has_normal;
    double normal;
} llmc_rng;
void llmc_rng_seed(llmc_rng *rng, int64_t seed); /* as manual_seed: the low 32 bits count */
uint32_t llmc_rng_uint32(llmc_rng *rng);
/* x[n] as torch.empty(n).normal_(mean, std, generator=...) fills it, to the last bits of log, sin and cos. */
void llmc_rng_normal(llmc_rng *rng, float *x, int64_t n, float mean, float std);

/* ---- token files (dataloader.c) ---- */
typedef struct llmc_loader llmc_loader;
/* Token files made of windows of T+1 tokens. paths: a folder (its SPLIT*.bin), a glob or a file, sorted as bytes. Window
 * number p of the stream is i = p % N of epoch p / N, or llmc_permute(i, N, seed, epoch) if shuffled; rank r of `world`
 * takes p = position + r*B .. + B-1, then the position moves by world*B. V: an id >= V is an error; 0: any. eot: the id
 * before each document, at which windows begin where they can (windows.h); -1: they begin every T tokens. */
int llmc_loader_open(llmc_loader **loader, const char *paths, const char *split, int B, int T, int shuffle,
                     int64_t seed, int rank, int world, int V, int eot);
void llmc_loader_free(llmc_loader *loader);
int llmc_loader_next(llmc_loader *loader, int *inputs, int *targets); /* (B,T) each */
int64_t llmc_loader_position(const llmc_loader *loader); /* all the state there is: windows taken by all ranks */
int llmc_loader_set_position(llmc_loader *loader, int64_t position);
int64_t llmc_loader_windows(const llmc_loader *loader); /* N, of one epoch */
int64_t llmc_loader_tokens(const llmc_loader *loader);
int llmc_loader_num_shards(const llmc_loader *loader);
/* Where i in [0, N) goes in the permutation of an epoch: a keyed Feistel network, walked until it falls below N;
 * negative if i is not in it. */
int64_t llmc_permute(int64_t i, int64_t N, int64_t seed, int64_t epoch);

/* ---- sampling (sampler.c, generate.c) ---- */
typedef struct llmc_sampling {
    float temperature; /* 0: always the likeliest */
    int top_k;         /* only the k likeliest; 0: all */
    float top_p;       /* of these, the fewest likeliest that hold this share of the probability; 0 or 1: all */
    int64_t seed;
    float
        repetition_penalty; /* first, logits of ids in the context are divided by it, or multiplied if negative; 0 or 1: not */
    int vocab;              /* only ids below it, where a model has more than its tokenizer; 0: all */
} llmc_sampling;
/* An id for logits[V] and a coin in [0, 1): the first, in the order of ids, at which the sum of the probabilities kept
 * exceeds it. Ties go to the lower id. -inf is allowed; NaN and +inf are errors. */
int llmc_sample(const float *logits, int V, const llmc_sampling *how, double coin);
double llmc_coin(uint64_t *state); /* the next in [0, 1) of a SplitMix64; any state will do as a seed */

/* b texts of the same length, which grow together, one id each at a time; text i is drawn with seed + i. The model holds
 * their keys and values: what was read once is not read again, unless the model was used for something else meanwhile. */
typedef struct llmc_generation llmc_generation;
int llmc_generation_new(llmc_generation **generation, llmc_model *model, int b, const llmc_sampling *how);
void llmc_generation_free(llmc_generation *generation);
/* Appends ids (b,n). Where they do not fit the context of T, the last max(T/2, n) of all go on; of n > T the last T. */
int llmc_generation_feed(llmc_generation *generation, const int *ids, int n);
/* The next id of each text, ids (b), which is appended; whenever T are held, the last T/2 go on as a new context. */
int llmc_generation_next(llmc_generation *generation, int *ids);
/* Takes ids [from, to) out of every text; what comes after them is read again. */
int llmc_generation_cut(llmc_generation *generation, int from, int to);
/* What text i holds now, and how much; valid until the next call. */
const int *llmc_generation_ids(const llmc_generation *generation, int i, int *n);
/* All at once: out (b,max_new), ids which follow prompts (b,n), n >= 1. Returns how many were made of the longest text; a
 * text ends with its first `eot` (-1: none does), which then repeats. */
int llmc_model_generate(llmc_model *model, const int *prompts, int b, int n, int max_new, const llmc_sampling *how,
                        int *out, int eot);

/* ---- checkpoints and other files of weights (csrc/files/) ---- */
/* Weights and all that resuming needs in one file: llm.c's model .bin (version 3), then sections {char tag[8]; int64 size;
 * payload} "OPTIONS ", "STATE   ", "TOKENIZR", "MOMENTS " (m, then v), "CRC32   " (zlib's, of all bytes before). options,
 * state: lines key=value; tokenizer: a tokenizer.bin; each may be NULL. A state without a line step= gets the model's.
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
/* The same by path, each opening the file for a single question. */
int llmc_model_load(llmc_model *model, const char *path);
int llmc_model_read_config(const char *path, llmc_config *config);
int llmc_model_describe(const char *path, char *text, size_t size);
int llmc_checkpoint_text(const char *path, const char *tag, char *out, int64_t size);

/* ---- tokenizer (tokenizer.c) ---- */
typedef struct llmc_tokenizer llmc_tokenizer;
/* A tokenizer.bin, ours or llm.c's, or OpenAI's vocab.bpe. */
int llmc_tokenizer_open(llmc_tokenizer **tokenizer, const char *path);
/* From the bytes of such a file; `name` is what errors call it. */
int llmc_tokenizer_read(llmc_tokenizer **tokenizer, const void *bytes, int64_t size, const char *name);
/* The tokenizer inside a checkpoint; or, if asked for, the tokenizer.bin or vocab.bpe beside the weights, which must fit them.
 * NULL where there is none. */
int llmc_file_tokenizer(const llmc_file *file, int beside, llmc_tokenizer **tokenizer);
void llmc_tokenizer_free(llmc_tokenizer *tokenizer);
int llmc_tokenizer_size(const llmc_tokenizer *tokenizer); /* V */
/* LLMC_EINVAL unless a model of V ids, which may be padded to a multiple of 128, can have it; `name` as above. */
int llmc_tokenizer_fits(const llmc_tokenizer *tokenizer, int V, const char *name);
int llmc_tokenizer_eot(const llmc_tokenizer *tokenizer); /* the id that ends a document, or -1 */
const void *llmc_tokenizer_bytes(const llmc_tokenizer *tokenizer,
                                 int64_t *size); /* the tokenizer.bin, to travel in a checkpoint */
/* The text of ids and its length, of which at most `size` bytes are written. */
int llmc_tokenizer_decode(const llmc_tokenizer *tokenizer, const int *ids, int n, char *out, int64_t size);
/* The ids of a text and how many, of which at most `size` are written; never EOT. As the file says: the longest piece that
 * matches, or GPT-2's byte pairs, for which the text must be UTF-8. */
int llmc_tokenizer_encode(const llmc_tokenizer *tokenizer, const char *text, int64_t bytes, int *out, int64_t size);

/* ---- text in, text out (writer.c) ---- */
typedef struct llmc_writer llmc_writer;
enum { LLMC_GOING_ON, LLMC_AT_EOT, LLMC_AT_STOP, LLMC_AT_LIMIT };
/* Borrows model and tokenizer. most: tokens from a prompt to the end. Ids that the tokenizer does not know are never drawn. */
int llmc_writer_new(llmc_writer **writer, llmc_model *model, const llmc_tokenizer *tokenizer, const llmc_sampling *how,
                    int64_t most);
/* A text ends before the first stop string; of several that end at the same byte the longest counts. */
int llmc_writer_stop_at(llmc_writer *writer, const char *text, int64_t size);
void llmc_writer_free(llmc_writer *writer);
/* Appends to the text, whose first prompt, empty or not, begins with EOT (where there is none, an empty one with id 0). What
 * was written stays, what was not handed out or belongs to a stop string does not. echo: the prompt itself comes out first. */
int llmc_writer_prompt(llmc_writer *writer, const char *text, int64_t size, int echo);
/* The next part of the text, valid until the next call: 1, or 0 at the end. It is UTF-8, whole characters: what is none comes as
 * U+FFFD, and a character that the end cuts is left out, and taken back from the context. */
int llmc_writer_next(llmc_writer *writer, const char **text, int64_t *size);
int llmc_writer_end(const llmc_writer *writer); /* how the text ended */

/* ---- learning rate (schedule.c) ---- */
/* Of a step counted from 0: lr (step+1)/warmup during the warm-up, then by kind from lr to final = lr final_frac over
 * x = (step-warmup) / (max_steps-warmup): linear; cosine; wsd (lr until the last decay_frac of max_steps, then linear);
 * constant (lr). */
int llmc_schedule_lr(double *rate, const char *kind, int64_t step, int64_t max_steps, int64_t warmup, double lr,
                     double final_frac, double decay_frac);

/* ---- options (options.c): the list is options.def ---- */
typedef struct llmc_options llmc_options;
llmc_options *llmc_options_new(void);      /* training's, with their defaults; NULL without memory */
llmc_options *llmc_options_new_chat(void); /* a chat's; it also parses MODEL [TOKENIZER] without --names */
void llmc_options_free(llmc_options *options);
int llmc_num_options(void);
const char *llmc_option_name(int i);
/* "config" reads that file, whose lines count where no call of this function or of _parse gave the option. */
int llmc_options_set(llmc_options *options, const char *name, const char *value);
/* The file to read for --model, whose format the engine does not read itself: a front end has converted it. The run's record and
 * the messages name --model all the same. */
int llmc_options_set_model_file(llmc_options *options, const char *path);
int llmc_options_is_given(const llmc_options *options, const char *name); /* set since the defaults: 1 or 0 */
int llmc_options_get(const llmc_options *options, const char *name, char *value, size_t size);
/* --name=value, --name value, --flag, --no_flag; of two of a name the last counts. 1 if --help is among them, 2 if --version. */
int llmc_options_parse(llmc_options *options, int argc, const char *const *argv);
int llmc_options_text(const llmc_options *options, char *text, size_t size); /* name=value, a line each */
/* What `command --help` tells, in lines of `width` columns: its length, of which as much is written as fits `size`. */
int llmc_options_help(const llmc_options *options, const char *command, int width, char *text, size_t size);
/* --max_steps=0 with a --prompt and neither --data nor --resume: no training is wanted, but text (llmc_writer_open) */
int llmc_options_only_write(const llmc_options *options);
/* What weights a run folder `model` stands for, its best, and where the last step ended worse, a command for that: `before`,
 * its path, `after`. One line; "" where model is no run folder. */
int llmc_run_told(const char *model, const char *before, const char *after, char *text, size_t size);
/* A writer with a model and a tokenizer of its own, by --model, --tokenizer, --temperature and so on. */
int llmc_writer_open(llmc_writer **writer, const llmc_options *options);

/* ---- words at the edge of a terminal (wrap.c) ---- */

typedef struct llmc_wrap llmc_wrap;
llmc_wrap *llmc_wrap_new(void); /* NULL: no memory */
void llmc_wrap_free(llmc_wrap *wrap);
/* What to show of a text that comes in pieces, at the next of them; NULL: it has ended. columns: the terminal's now; 0: it
 * is none, and nothing is changed. out[n] lives until the next call. */
int llmc_wrap_next(llmc_wrap *wrap, int columns, const char *text, int64_t size, const char **out, int64_t *n);

/* ---- chat (chat.c) ---- */
/* Turns and answers. A dialogue puts the speakers' names before what they say, and an answer ends where somebody else's line
 * begins; turns that the context has no room for are forgotten whole, the oldest first, never the text before them. A story
 * goes on with each turn as a text of its own; an empty turn goes on with the one before. */
typedef struct llmc_chat llmc_chat;
int llmc_chat_new(llmc_chat **chat, const llmc_options *options);
void llmc_chat_free(llmc_chat *chat);
/* One turn; whatever was not read of the answer before it is forgotten. */
int llmc_chat_say(llmc_chat *chat, const char *text, int64_t size);
int llmc_chat_next(llmc_chat *chat, const char **text, int64_t *size); /* of the answer; as llmc_writer_next */
int llmc_chat_end(const llmc_chat *chat);                              /* as llmc_writer_end */
const char *llmc_chat_about(const llmc_chat *chat);                    /* a line or two for who sits before it */
const char *llmc_chat_label(const llmc_chat *chat, int answer);        /* what to show before a turn or an answer */

/* ---- trainer (trainer.c): the loop as a step machine ---- */
typedef struct llmc_trainer llmc_trainer;
enum { LLMC_DONE, LLMC_PLAN, LLMC_STEP, LLMC_GRADIENTS, LLMC_EVAL, LLMC_SAMPLE, LLMC_CHECKPOINT };
typedef struct llmc_event {
    int kind;
    int64_t step, tokens;  /* optimizer steps and tokens done */
    double loss, val_loss; /* of this step; of the last evaluation (NaN before the first) */
    double lr, norm, ms, tok_s, eta_s;
    const char *text;  /* the line to print, or the sample, which may hold NULs; valid until the next call */
    int64_t text_size; /* its bytes; 0 where nothing is to be printed */
} llmc_event;
/* Checks all that can be checked before there is data; 1 if the default data is to be made first (pyllmc.stories), else 0. */
int llmc_trainer_check(const llmc_options *options);
/* Opens the data and works out the plan; allocates nothing large. The options are copied. */
int llmc_trainer_new(llmc_trainer **trainer, const llmc_options *options);
void llmc_trainer_free(llmc_trainer *trainer);
/* Goes on to the next event and returns its kind: PLAN first (before the arena is allocated), DONE (0) last and ever after.
 * GRADIENTS, only where asked for: the gradients of all micro-steps are complete and may be changed. */
int llmc_trainer_next(llmc_trainer *trainer, llmc_event *event);
int llmc_trainer_yield_gradients(llmc_trainer *trainer, int on);
/* From a signal handler or another thread, too: at most one micro-step, batch of a validation or token of a sample later
 * there is a checkpoint, then DONE; a run that is resumed from it goes on as if it had never been stopped. */
void llmc_trainer_stop(llmc_trainer *trainer);
/* The line that answers a first Ctrl-C, by what is under way; may be called from a signal handler. */
const char *llmc_trainer_stopping(const llmc_trainer *trainer);
/* For whoever sits there after DONE: what was best, where it is, and what to do next as whole commands, in which `program`
 * trains and `python` is Python; program begins with it where the trainer was called from there. */
int llmc_trainer_ending(const llmc_trainer *trainer, const char *program, const char *python, char *text, size_t size);
llmc_model *llmc_trainer_model(llmc_trainer *trainer);     /* NULL before the first event after PLAN */
const char *llmc_trainer_out(const llmc_trainer *trainer); /* the run folder; "" if none */
/* cffi: end */
#pragma GCC visibility pop
#endif
