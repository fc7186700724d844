/* The struct behind llmc_trainer, and what the files of this room do with it: setup.c opens everything, trainer.c runs the
 * loop. */
#ifndef TRAINER_H
#define TRAINER_H
#include "base/growing.h"
#include "base/signals.h"
#include "options/options.h"
#include "train/run.h"

enum { TEXT_SIZE = 1 << 16 }; /* bytes */
/* The progress of the work between two steps: none, all of it, or the validation without the sample. */
enum { NOT_EVALUATED, EVALUATED, VALIDATED };
enum { LOADING, STEPPING, MICRO_STEPPING, VALIDATING, SAMPLING, SAVING, EXAMINING };

/* --val_data */
enum { MOST_VALS = 8, VAL_NAME = 33 };
typedef struct ValSet {
    char name[VAL_NAME]; /* "" if it is the only one, without a name */
    char path[OPTION_TEXT];
    llmc_loader *loader;
    double loss; /* the last validation's; NaN before the first; a checkpoint holds that of the first set only */
} ValSet;

/* --skip_outliers */
enum { OUTLIER_WINDOW = 128 }; /* steps */
typedef struct Outliers {
    double losses[OUTLIER_WINDOW], norms[OUTLIER_WINDOW]; /* the oldest first */
    int n;
} Outliers;

struct llmc_trainer {
    llmc_options options;
    llmc_config config;
    int B, T;             /* B: that of this process, at most --B (length_share) */
    int64_t batch;        /* the sequences in a full step of all processes */
    int64_t unit;         /* those by which --batch_ramp_tokens lets a step grow, and in a batch of --val_batches */
    int64_t sizes;        /* how many sizes a step has while it grows: the last one is `batch` */
    int most_micro_steps; /* how many this process makes in a full step */
    int lora_on;          /* the bits of --lora_on */
    const Kernels *k;     /* chosen by setup_check; the model finds the same */
    int threads;          /* as many as have been started for the plan */
    llmc_loader *train;
    ValSet vals[MOST_VALS];    /* the first decides what is best */
    int num_vals;              /* 0: no validation data */
    uint32_t val_checksum;     /* agree_on_set, of the first */
    llmc_tokenizer *tokenizer; /* NULL: no samples */
    llmc_model *model;
    Run run;
    char start_file[2 * OPTION_TEXT]; /* the weights or checkpoint to start from; "": fresh weights */
    llmc_file *file;                  /* `start_file`, open until it is loaded; else NULL */
    int resumed, in_place;            /* in_place: a run is resumed in its own folder */
    int gentle;                       /* the learning rate of a fine-tuning run was left to us */
    char *history; /* comments that say which options a resume changed, and at which step; NULL for a fresh run */
    llmc_options *before; /* the options that a resumed run's checkpoint records */
    int evaluated;        /* how much is done of the work between two steps, so that a resumed run does not repeat it */

    int phase;                  /* see trainer.c */
    int yield_gradients, saved; /* saved: there is a checkpoint to go back to */
    volatile sig_atomic_t doing;
    /* set by signals and other threads, which never reset them. asked: a stop is wanted; `stop` follows where all meet (meet.c) */
    volatile sig_atomic_t stop, asked;
    llmc_team team;                 /* world 1: this process trains alone */
    double summed_loss;             /* the step's loss over all of several processes */
    int64_t step, tokens, position; /* position: that of the data when the present step began */
    int found;                      /* `evaluated`, as read from the resumed checkpoint */
    int64_t kept, best_step;        /* the step of last.ckpt, -1: none yet; the step of the best, -1: not known */
    double val_loss, best_val_loss; /* those of the first set */
    int64_t stale;                  /* --patience: the validations since the best */
    int early;                      /* the run ends at the present step, because of --patience */
    int64_t last_window;            /* --epochs: the data position at which the run ends; else 0 */
    int64_t all_tokens;             /* the tokens that the run will have seen at its end */
    int64_t warmup, decay_end;      /* the schedule in tokens, if it counts them */
    int64_t windows;                /* those of the present step */
    Outliers outliers;
    const char *skipped;   /* the outlier for which the present step changed nothing: "loss" or "norm"; else NULL */
    double z;              /* its z-score */
    double loss, norm, lr; /* the present step's */
    double started, ms;    /* when it began; the smoothed time of a step */
    int *inputs, *targets; /* (B, T), those of this process */
    float *losses;         /* one for each micro-step */
    float *shares;         /* behind them: the share that each has of the step's loss */
    int64_t read;     /* the tokens that the present step reads: windows T, fewer with a loss mask (step_shorten) */
    int64_t learnt;   /* the targets that the present step learns, if the data has a loss mask */
    int told_nothing; /* a step that learns nothing has been told of */
    char *text;       /* the text of the last event, in memory for text_capacity bytes, at least TEXT_SIZE */
    int64_t text_capacity;
    int64_t sample_size; /* the bytes of text, which may hold NULs, if it is a sample; else 0 */
};

/* ---- setup.c ---- */
/* Checks all that can be checked before there is data: options, the checkpoint to resume, sizes, the run folder. Writes
 * nothing. */
int setup_check(llmc_trainer *trainer);
/* True if the default data is wanted and is not there; to be asked after setup_check. */
int setup_needs_data_made(const llmc_trainer *trainer);
/* Opens everything but large memory: the options of a checkpoint to resume, data, tokenizer, sizes. */
int setup_open(llmc_trainer *trainer);
/* The sizes that the run's model is made for. */
llmc_room setup_room(const llmc_trainer *trainer);
/* Makes the model with its weights. */
int setup_model(llmc_trainer *trainer);
/* Opens the run folder. */
int setup_run(llmc_trainer *trainer);

/* ---- trainer.c ---- */
/* The name, without its folder, of the file that the run starts from. */
const char *trainer_started_from(const llmc_trainer *trainer);

/* ---- meet.c: several processes train together ---- */
/* The sequences that all processes have in a micro-step. */
static inline int64_t global_B(const llmc_trainer *trainer) { return (int64_t)trainer->B * trainer->team.world; }
/* True if the batch is not that which --B and --grad_accum give one process. */
static inline int trainer_has_other_batch(const llmc_trainer *trainer) {
    return trainer->batch != trainer->options.B * trainer->options.grad_accum;
}
/* Notes that this process is asked to stop. */
void meet_ask_stop(llmc_trainer *trainer, int asked);
/* All processes come here, each with the status of its own work: an error of one of them is then the error of all. If one was
 * asked to stop, `stop` is set in all. If the work of one was stopped, all get LLMC_STOPPED, so that they stay together. */
int meet(llmc_trainer *trainer, int status);
/* x[n] becomes the sum over all processes. */
int meet_sum(llmc_trainer *trainer, double *x, int n);
/* All fail with `status` and the last error of the first process that knows more, or of rank 0 if none does. */
int meet_fail(llmc_trainer *trainer, int status, int knows);
/* Rank 0 works first, then the others. */
int meet_in_turn(llmc_trainer *trainer, int (*work)(llmc_trainer *));
/* With --diloco the processes are apart between two exchanges, and meet nobody. Within a step: returns the status of one's own work,
 * which without --diloco is that of all. After it: an error waits for the others at their next exchange, where all fail; a step
 * after which an exchange is due ends with that. */
int meet_within_step(llmc_trainer *trainer, int status);
int meet_after_step(llmc_trainer *trainer, int status);
/* True at the steps after which all weights are the same: each, or with --diloco those of the exchanges. */
int meet_is_due(const llmc_trainer *trainer);
/* True if the run is written; of several processes only rank 0 has its folder. */
int meet_keeps(const llmc_trainer *trainer);

/* ---- agree.c ---- */
/* Refuses processes that would not train the same: of another version, with other options or data. */
int agree_on_setup(llmc_trainer *trainer);
/* Refuses processes that have other weights. */
int agree_on_weights(llmc_trainer *trainer);
/* The checksum by which a data set is known again: the same in each process, and wherever its files lie. */
int agree_on_set(llmc_trainer *trainer, llmc_loader *data, uint32_t *checksum);

/* ---- length.c ---- */
/* Decides which option says how long the run is, and refuses options of length that contradict each other. */
int length_check(llmc_options *options);
/* Sets the batch of a step, and what this process computes of it at once: B. A resumed run keeps its batch with another number of
 * processes, unless the call changes it. To be called once the checkpoint's options are known. */
int length_share(llmc_trainer *trainer);
/* Sets max_steps as --epochs or --max_tokens asks, the warm-up of a fine-tuning run, and the schedule. The data may be NULL,
 * for a plan; then --epochs says nothing yet. */
int length_settle(llmc_trainer *trainer);
/* Writes the option that says how long the run is; the length is multiplied by `factor`. */
void length_name(const llmc_trainer *trainer, int64_t factor, char *text, size_t size);
/* True if the schedule counts tokens instead of steps. */
int length_counts_tokens(const llmc_options *options);
/* The windows of the step that begins at the present tokens and position. */
int64_t length_windows(const llmc_trainer *trainer);
/* The micro-steps that `windows` of all processes take. The last one may be smaller than global_B. */
int length_micro_steps(const llmc_trainer *trainer, int64_t windows);
/* Sets the learning rate of the present step. */
int length_rate(llmc_trainer *trainer);

/* ---- valsets.c ---- */
int valsets_parse(llmc_trainer *trainer);
/* The windows that a validation reads: all of the set, or the first of them. They do not depend on the number of processes, so
 * that a best loss stays comparable. */
int64_t valsets_windows(const llmc_trainer *trainer, const ValSet *set);
/* 1 if the first set, by which the best is chosen, is that of the resumed checkpoint with this STATE, and as much of it is read; 0; or
 * an error. */
int valsets_same_first(const llmc_trainer *trainer, const char *state);
/* Appends the losses that are known, each after its set's name. */
void valsets_tell(const llmc_trainer *trainer, const char *after_first, Growing *text);
/* Appends the losses by name to a line of metrics.jsonl, if the sets have names. */
void valsets_add_metric(const llmc_trainer *trainer, Growing *line);

/* ---- outliers.c ---- */
/* Takes the loss and norm of a step. Names the one whose z-score is above the limit, and gives that; NULL if neither is, or if
 * fewer than OUTLIER_WINDOW steps came before. */
const char *outliers_find(Outliers *seen, double loss, double norm, double limit, double *z);
void outliers_add(const Outliers *seen, Growing *state); /* appends the lines of a checkpoint's STATE */
void outliers_read(Outliers *seen, const char *state);

/* ---- sizes.c ---- */
/* Decides the sizes of the model. V may stay 0 until the tokenizer of the data is open. */
int sizes_choose(llmc_trainer *trainer);
/* Decides V, or refuses data whose ids mean other text than the weights have learnt. */
int sizes_choose_vocabulary(llmc_trainer *trainer, const char *data);
/* Refuses validation data of another tokenizer: its loss would mean nothing, and yet choose the best checkpoint. */
int sizes_check_val_data(const llmc_trainer *trainer, const char *data);
/* The weights to start from, by the name that the user gave; "" for fresh weights. */
const char *sizes_weights_name(const llmc_trainer *trainer);

/* ---- resume.c ---- */
/* Opens the checkpoint to resume, if any, and adopts its options. A run is resumed in the checkpoint's own folder, unless --out
 * names another. */
int resume_open(llmc_trainer *trainer);
/* Going on in the run's own folder from a step that it has passed replaces what came later: only if that is wanted. */
int resume_check_later_steps(const llmc_trainer *trainer);
/* Sets the loop's own numbers as the checkpoint has them. */
int resume_restore(llmc_trainer *trainer);
/* Adds to the history: the options that had other values before this resume. */
int resume_note_changes(llmc_trainer *trainer);

/* ---- tuning.c ---- */
/* Checks --train_only and LoRA's options, against the model's sizes and against the run that is resumed. */
int tuning_check(llmc_trainer *trainer);
/* Loads the file to start from. Adapters that it does not hold are fresh. */
int tuning_load(llmc_trainer *trainer);

/* ---- announce.c ---- */
/* Makes the text of LLMC_PLAN, starts the threads, and returns LLMC_PLAN. */
int trainer_announce_plan(llmc_trainer *trainer);

/* ---- tell.c ---- */
/* Signs of life; whoever hears them may stop the run. loss: the mean of the i batches so far. */
void tell_micro_step(llmc_trainer *trainer, int i);
void tell_batch(llmc_trainer *trainer, const ValSet *set, int64_t i, int64_t batches, double loss, double seconds);
void tell_token(llmc_trainer *trainer, int64_t i);
double tell_now(void);                                    /* seconds of a clock that never goes back */
void tell_clock(double seconds, char *text, size_t size); /* 1:02:03 */
/* Makes memory for a text of `size` bytes; the text so far stays. */
int tell_reserve(llmc_trainer *trainer, int64_t size);
/* Copies a text of any length to be the event's. */
int tell_text(llmc_trainer *trainer, const char *text);
/* Fails with the name of the first tensor that is not finite. The weights are unharmed, since the step has not changed them
 * yet. */
int tell_nonfinite(llmc_trainer *trainer, const char *what, double value);
int tell_line(llmc_trainer *trainer, Growing *line); /* makes a line that has grown the event's text */
/* Writes a line that has grown to metrics.jsonl. */
int tell_metric(llmc_trainer *trainer, Growing *line);
/* Sets the line of a resumed run that has nothing to do. */
void tell_nothing_to_do(llmc_trainer *trainer);
/* Appends why the run ends early: how many validations brought nothing better than which loss. */
void tell_early(const llmc_trainer *trainer, Growing *text);
/* Appends to the plan of a resumed run: its step, and each option that has changed. */
int tell_resume(const llmc_trainer *trainer, Growing *text);
/* Adds to the text of a step, the first time, that its batch has no target to learn. */
void tell_nothing_learnt(llmc_trainer *trainer);

/* ---- texts.c ---- */
/* Checks the prompt, and chooses the template: that of --template, of the data, or of the weights. */
int texts_open(llmc_trainer *trainer, const char *data);
/* Makes the text that a sample begins with: --prompt, as a turn if the run has a template. Without --prompt, a run on pairs takes
 * the first prompt of its data; it overwrites the batch. The caller frees the text. */
int texts_prompt(llmc_trainer *trainer, char **text);

/* ---- step.c ---- */
/* Computes the gradients of all micro-steps: 1, or 0 if the run was stopped between two of them. */
int step_accumulate(llmc_trainer *trainer);
/* The loss of the step, which is there once the model has been waited for. */
double step_loss(const llmc_trainer *trainer);
/* Cuts the padding off that all rows of the batch from `loader` have at their ends: the length of the rows (B,T) now. */
int step_shorten(llmc_trainer *trainer, const llmc_loader *loader);
int step_is_masked(const llmc_loader *loader); /* it has a loss mask */
/* True if the loss mask lets no target of the present step be learnt. */
int step_learns_nothing(const llmc_trainer *trainer);
/* How many rows micro-step i of this process has, out of `windows` of all processes: B, fewer at the end, or 0. */
int step_rows(const llmc_trainer *trainer, int64_t windows, int i);
/* How many targets in the first `rows` rows of the batch from `loader` are learnt. */
int64_t step_learnt(const llmc_trainer *trainer, const llmc_loader *loader, int rows);

/* ---- between.c ---- */
/* True at each multiple of `every`, with --diloco at the exchange that comes then or next, and at the run's last step. */
int between_due(const llmc_trainer *trainer, int64_t every);
/* True where --eval_tasks are scored. */
int between_exam_due(const llmc_trainer *trainer);
/* The step at which the run ends, which may be the present one by --patience. */
int64_t between_last(const llmc_trainer *trainer);
/* Makes LLMC_EVAL or LLMC_SAMPLE, and returns that; 0 if the run was stopped meanwhile. */
int between_evaluate(llmc_trainer *trainer);
int between_sample(llmc_trainer *trainer);
/* Writes a checkpoint of this name, if the run has a folder. */
int between_save(llmc_trainer *trainer, const char *name, int with_moments);
/* The same for one process, which the others do not wait for. */
int between_save_alone(llmc_trainer *trainer, const char *name, int with_moments);
/* Saves last.ckpt, unless it already is of this step, and keeps older ones; returns LLMC_CHECKPOINT. */
int between_save_last(llmc_trainer *trainer);
/* --keep: gives last.ckpt a second name, by its step, which costs no space while both are one file; then removes older
 * checkpoints. */
int between_keep(llmc_trainer *trainer);
#endif
