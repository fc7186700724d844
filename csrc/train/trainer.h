/* The struct behind llmc_trainer: setup.c opens everything, trainer.c runs the loop. */
#ifndef TRAINER_H
#define TRAINER_H
#include "base/growing.h"
#include "base/signals.h"
#include "options/options.h"
#include "train/run.h"

enum { TEXT_SIZE = 1 << 16 }; /* bytes */
/* The progress of the work between two steps: none, all of it, or the validation without the sample. */
enum { NOT_EVALUATED, EVALUATED, VALIDATED };
enum { LOADING, STEPPING, MICRO_STEPPING, VALIDATING, SAMPLING, SAVING };

struct llmc_trainer {
    llmc_options options;
    llmc_config config;
    int B, T;
    const Kernels *k;          /* chosen by setup_check; the model finds the same */
    int threads;               /* as many as have been started for the plan */
    llmc_loader *train, *val;  /* val NULL: no validation data */
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
    volatile sig_atomic_t stop, doing;
    int64_t step, tokens, position; /* position: that of the data when the present step began */
    int found;                      /* `evaluated`, as read from the resumed checkpoint */
    int64_t kept, best_step;        /* the step of last.ckpt, -1: none yet; the step of the best, -1: not known */
    double val_loss, best_val_loss;
    double loss, norm, lr; /* the present step's */
    double started, ms;    /* when it began; the smoothed time of a step */
    int *inputs, *targets; /* (B, T) */
    float *losses;         /* one for each micro-step */
    char *text;            /* the text of the last event, in memory for text_capacity bytes, at least TEXT_SIZE */
    int64_t text_capacity;
    int64_t sample_size; /* the bytes of text, which may hold NULs, if it is a sample; else 0 */
};

/* Checks all that can be checked before there is data: options, the checkpoint to resume, sizes, the run folder. Writes
 * nothing. */
int setup_check(llmc_trainer *trainer);
/* True if the default data is wanted and is not there; to be asked after setup_check. */
int setup_needs_data_made(const llmc_trainer *trainer);
/* Opens everything but large memory: the options of a checkpoint to resume, data, tokenizer, sizes. */
int setup_open(llmc_trainer *trainer);
/* Signs of life (tell.c); whoever hears them may stop the run. sum: the losses of the i batches so far. */
void tell_micro_step(llmc_trainer *trainer, int i);
void tell_batch(llmc_trainer *trainer, int64_t i, int64_t batches, double sum, double seconds);
void tell_token(llmc_trainer *trainer, int64_t i);
void tell_clock(double seconds, char *text, size_t size); /* 1:02:03 */
/* Appends to the plan of a resumed run: its step, and each option that has changed. */
int tell_resume(const llmc_trainer *trainer, Growing *text);
/* The sizes that the run's model is made for. */
llmc_room setup_room(const llmc_trainer *trainer);
/* Makes the text of LLMC_PLAN, starts the threads, and returns LLMC_PLAN. */
int trainer_announce_plan(llmc_trainer *trainer);
/* Copies a text of any length to be the event's. */
int trainer_set_text(llmc_trainer *trainer, const char *text);
/* The weights to start from, by the name that the user gave; "" for fresh weights. */
const char *setup_weights_name(const llmc_trainer *trainer);
/* Makes the model with its weights, and opens the run folder. */
int setup_model(llmc_trainer *trainer);
#endif
