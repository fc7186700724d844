/* The second half of the public C API, which pyllmc.h includes: what a front end is made of, from --names to the loop. Its
 * functions return what those of pyllmc.h do. */
#ifndef FRONTENDS_H
#define FRONTENDS_H
#include "pyllmc.h"
#pragma GCC visibility push(default)
/* cffi: begin */
/* ---- several processes that train one model together (model/team.c, train/meet.c) ---- */
/* The processes, and how they reach each other. All of them make the same calls in the same order; a call returns 0, or -1 if
 * another process cannot be reached. */
typedef struct llmc_team {
    int rank, world;                          /* the number of this process, and how many there are */
    int local;                                /* how many of them are on this machine */
    void *self;                               /* is handed to each function */
    const char *(*why)(void *self);           /* after a call has failed: a line that names the process that was lost */
    int (*sum)(void *self, double *x, int n); /* x[n] becomes the sum of all ranks' x, the same bits on each */
    int (*begin_sum)(void *self, float *x, int64_t n); /* begins that for x[n] on the device, and returns at once */
    int (*end_sums)(void *self);                       /* waits until all sums that were begun are there */
    int (*gather)(void *self, float *x,
                  int64_t each); /* x (world,each) on the device: each rank has its row, and gets all, bit by bit */
    int (*fetch)(void *self, float *x, int64_t n,
                 int from); /* rank `from` sends x[n] to rank 0; both are on the host */
} llmc_team;
/* Makes a model one of several. The team must outlive it. Passes that drop are numbered as if one process made the passes of all
 * ranks in turn. If the room has shards, llmc_model_update changes this rank's share of the parameters and gathers the others'. */
int llmc_model_join(llmc_model *model, const llmc_team *team);
/* Begins the sum of each gradient in the next llmc_model_micro_step, as soon as that has made it: of the last layers first. */
int llmc_model_sum_next(llmc_model *model);
/* With shards, or an outer step: sends this rank's moments while rank 0 is in llmc_checkpoint_save. */
int llmc_checkpoint_send(llmc_model *model);
/* DiLoCo (Douillard et al. 2023, arXiv:2311.08105): a model whose room has `outer` keeps the weights of the last outer step, and
 * a momentum. The first call notes the present weights, which must be the same on all ranks, as those of the last outer step. The
 * second takes the mean over all ranks of how far their weights have come since, g = last - present, as the gradient of SGD with
 * Nesterov momentum: u = momentum u + g, weights = last - lr (g + momentum u). All ranks then have the same weights; each keeps its
 * own moments of AdamW. The gradients are overwritten. */
int llmc_model_outer_begin(llmc_model *model);
int llmc_model_outer_step(llmc_model *model, double lr, double momentum);

/* ---- learning rate (schedule.c) ---- */
/* The learning rate of the step that goes from `done` to `done + size`. Both count steps (size 1) or tokens, as do `end` and
 * `warmup`. It is lr (done+size)/warmup, at most lr, while done < warmup. Then it goes from lr to
 * lr final_frac over x = (done-warmup) / (end-warmup), as `kind` says: linear; cosine; wsd (lr until the last decay_frac of
 * `end`, then linear); constant (always lr). After `end` it no longer changes. */
int llmc_schedule_lr(double *rate, const char *kind, int64_t done, int64_t size, int64_t end, int64_t warmup, double lr,
                     double final_frac, double decay_frac);

/* ---- options (options.c): the list is options.def ---- */
typedef struct llmc_options llmc_options;
llmc_options *llmc_options_new(void);      /* the options of training, with their defaults; NULL without memory */
llmc_options *llmc_options_new_chat(void); /* those of a chat, which also parse MODEL [TOKENIZER] without --names */
void llmc_options_free(llmc_options *options);
int llmc_num_options(void);
const char *llmc_option_name(int i);
/* "config" reads that file. A line of it counts only if no call of this function or of _parse gave the same option. */
int llmc_options_set(llmc_options *options, const char *name, const char *value);
/* Sets the file to read for --model, if a front end has converted that from a format which the engine cannot read. The run's
 * record and the messages still name --model. */
int llmc_options_set_model_file(llmc_options *options, const char *path);
/* The same for the base of adapters, if --model or --resume names a file of those. */
int llmc_options_set_base_file(llmc_options *options, const char *path);
/* A trainer that is made with these options is one of several, which train together. NULL: it is alone. */
int llmc_options_set_team(llmc_options *options, const llmc_team *team);
/* The front end scores --eval_tasks at each LLMC_EXAM. Other trainers refuse the option. */
int llmc_options_examine(llmc_options *options, int on);
int llmc_options_is_given(const llmc_options *options, const char *name); /* set since the defaults: 1 or 0 */
int llmc_options_get(const llmc_options *options, const char *name, char *value, size_t size);
/* Takes --name=value, --name value, --flag, --no_flag; the last one of a name counts. 1 if --help is among them, 2 if
 * --version. */
int llmc_options_parse(llmc_options *options, int argc, const char *const *argv);
int llmc_options_text(const llmc_options *options, char *text, size_t size); /* lines name=value */
/* Writes the text of `command --help` in lines of `width` columns, as much as fits `size`; returns its whole length. */
int llmc_options_help(const llmc_options *options, const char *command, int width, char *text, size_t size);
/* True for --max_steps=0 with a --prompt and neither --data nor --resume: the user wants text, no training. */
int llmc_options_only_write(const llmc_options *options);
/* One line about the weights that a run folder `model` stands for, its best. If the last step ended worse, the line also has a
 * command for that: `before`, its path, `after`. "" if model is no run folder. */
int llmc_run_told(const char *model, const char *before, const char *after, char *text, size_t size);
/* Makes a writer with a model and a tokenizer of its own, as --model, --tokenizer, --temperature and so on say. */
int llmc_writer_open(llmc_writer **writer, const llmc_options *options);
/* Takes --prompt, which is handed out first. If --template or the weights name a template, the prompt is a turn and its answer is
 * written. */
int llmc_writer_begin(llmc_writer *writer, const llmc_options *options);

/* ---- words at the edge of a terminal (wrap.c) ---- */

typedef struct llmc_wrap llmc_wrap;
llmc_wrap *llmc_wrap_new(void); /* NULL: no memory */
void llmc_wrap_free(llmc_wrap *wrap);
/* Takes the next piece of a text, NULL at its end, and gives the bytes out[n] to show now, which live until the next call.
 * columns: the terminal's present width; 0: there is no terminal, and the text stays as it is. */
int llmc_wrap_next(llmc_wrap *wrap, int columns, const char *text, int64_t size, const char **out, int64_t *n);

/* ---- chat (chat.c) ---- */
/* Turns and answers, written as --template says; auto: as the weights say, else by their vocabulary. With a template, turns become
 * the text and the ids that fine-tuning has made of pairs, and an answer ends where the template ends it. In a dialogue without
 * one, the name of the speaker stands before each turn, and an answer ends where another speaker's line begins. If the context
 * cannot hold all turns, the oldest are forgotten, each as a whole with its answer, but never the text before them. A story
 * continues each turn as a text of its own; an empty turn continues the text before. */
typedef struct llmc_chat llmc_chat;
int llmc_chat_new(llmc_chat **chat, const llmc_options *options);
void llmc_chat_free(llmc_chat *chat);
/* Takes one turn. The rest of the last answer, if it was not read to its end, is forgotten. */
int llmc_chat_say(llmc_chat *chat, const char *text, int64_t size);
int llmc_chat_next(llmc_chat *chat, const char **text, int64_t *size); /* the answer, as llmc_writer_next */
int llmc_chat_end(const llmc_chat *chat);                              /* as llmc_writer_end */
const char *llmc_chat_about(const llmc_chat *chat);                    /* a line or two for the user */
const char *llmc_chat_label(const llmc_chat *chat, int answer);        /* the text to show before a turn or an answer */

/* ---- trainer (trainer.c): the loop as a step machine ---- */
typedef struct llmc_trainer llmc_trainer;
enum { LLMC_DONE, LLMC_PLAN, LLMC_STEP, LLMC_GRADIENTS, LLMC_EVAL, LLMC_SAMPLE, LLMC_CHECKPOINT, LLMC_EXAM };
typedef struct llmc_event {
    int kind;
    int64_t step, tokens;  /* optimizer steps and tokens so far */
    double loss, val_loss; /* this step's; the last validation's (NaN before the first) */
    double lr, norm, ms, tok_s, eta_s;
    int skipped;       /* 1: the step changed nothing, because its loss or norm is an outlier (--skip_outliers) */
    const char *text;  /* the line to print, or a sample, which may hold NULs; valid until the next call */
    int64_t text_size; /* its bytes; 0: there is nothing to print */
} llmc_event;
/* Checks all that can be checked before there is data: 1 if the default data must be made first (pyllmc.stories), else 0. */
int llmc_trainer_check(const llmc_options *options);
/* --resume=auto becomes the run in --out, or, where that has no checkpoint, a fresh run in its place. */
int llmc_options_settle_resume(llmc_options *options);
/* Opens the data; allocates nothing large. The options are copied. */
int llmc_trainer_new(llmc_trainer **trainer, const llmc_options *options);
void llmc_trainer_free(llmc_trainer *trainer);
/* Runs to the next event and returns its kind: PLAN first (before the arena is allocated), DONE (0) last and ever after.
 * GRADIENTS comes only if it is asked for: the gradients of all micro-steps are complete and may be changed. EXAM comes after
 * the checkpoint of a step, if any, wherever --eval_tasks are due: the front end scores them before its next call. A run that is
 * resumed tells it again of the step that it begins with. */
int llmc_trainer_next(llmc_trainer *trainer, llmc_event *event);
int llmc_trainer_yield_gradients(llmc_trainer *trainer, int on);
/* Stops the run; may be called from a signal handler or another thread. At most one micro-step, batch of a validation or token
 * of a sample later there is a checkpoint, then DONE. A run that is resumed from it goes on as if it had never been stopped. */
void llmc_trainer_stop(llmc_trainer *trainer);
/* The line that answers a first Ctrl-C, which depends on the present work; may be called from a signal handler. */
const char *llmc_trainer_stopping(const llmc_trainer *trainer);
/* Writes a line into the run's metrics.jsonl, if it has a folder: it begins {"step": N, has less than 1,024 bytes, and ends with
 * \n. */
int llmc_trainer_note(llmc_trainer *trainer, const char *line);
/* The value of an option as the run has it: that of the checkpoint it goes on from, and the sizes of its model. */
int llmc_trainer_option(const llmc_trainer *trainer, const char *name, char *value, size_t size);
/* Writes a text for the user after DONE: the best loss, where its weights are, and whole commands for what to do next. In these
 * `program` is the command that trains, and `python` is Python; if Python trains, program begins with it. */
int llmc_trainer_ending(const llmc_trainer *trainer, const char *program, const char *python, char *text, size_t size);
/* The number of validation sets; for i among them also the name ("" if it is the only one, without a name) and the loss of its
 * last validation (NaN before the first; a resumed run knows that of set 0 from its checkpoint). */
int llmc_trainer_val(const llmc_trainer *trainer, int i, const char **name, double *loss);
llmc_tokenizer *llmc_trainer_tokenizer(llmc_trainer *trainer); /* NULL: neither data nor weights have one */
llmc_model *llmc_trainer_model(llmc_trainer *trainer);         /* NULL before the first event after PLAN */
const char *llmc_trainer_out(const llmc_trainer *trainer);     /* the run folder; "" if none */
/* cffi: end */
#pragma GCC visibility pop
#endif
