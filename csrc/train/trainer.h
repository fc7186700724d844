/* The trainer's inside: setup.c opens everything, trainer.c runs the loop. */
#ifndef TRAINER_H
#define TRAINER_H
#include "base/signals.h"
#include "options/options.h"
#include "train/run.h"

enum { TEXT_SIZE = 1 << 16 };
/* How much of what is due at a step's boundary is done. EVALUATED: all; VALIDATED: all but the sample. */
enum { NOT_EVALUATED, EVALUATED, VALIDATED };
enum { LOADING, STEPPING, MICRO_STEPPING, VALIDATING, SAMPLING, SAVING };

struct llmc_trainer {
    llmc_options options;
    llmc_config config;
    int B, T;
    llmc_loader *train, *val;  /* val NULL: no validation data */
    llmc_tokenizer *tokenizer; /* NULL: no samples */
    llmc_model *model;
    Run run;
    char weights[OPTION_TEXT]; /* a file to start from; "" from scratch */
    int resumed, in_place;     /* from a checkpoint; in its own folder */
    int gentle;                /* the learning rate of a fine-tuning run was left to us */
    /* Lines of comments that say which options a run had until which step, if a resume changed any; NULL of a fresh run. */
    char *history;
    llmc_options *before; /* the options that the checkpoint of a resumed run records */
    int evaluated; /* how much of what is due at this step's boundary is done, so that a resumed run does not repeat it */

    int phase;                  /* see trainer.c */
    int yield_gradients, saved; /* whether there is a checkpoint to go back to */
    volatile sig_atomic_t stop, doing;
    int64_t step, tokens, position; /* the last: of the data, where the step under way began */
    int found;                      /* `evaluated`, as the checkpoint that is resumed has it */
    int64_t kept, best_step;        /* the step of last.ckpt, -1: none yet; the step of the best, -1: not known */
    double val_loss, best_val_loss;
    double loss, norm, lr; /* of the step under way */
    double started, ms;    /* when it began; smoothed time of a step */
    int *inputs, *targets; /* (B, T) */
    float *losses;         /* of each micro-step */
    char *text;            /* TEXT_SIZE, or text_room where a sample needed more: what the last event says */
    int64_t text_room;
    int64_t sample_size; /* bytes of it that are a sample, which may hold NULs; else 0 */
};

/* What can be checked before there is data: options, the checkpoint to resume, sizes, the run folder. Writes nothing. */
int setup_check(llmc_trainer *trainer);
/* Whether the default data is wanted and not there; after setup_check. */
int setup_needs_data_made(const llmc_trainer *trainer);
/* Options of the checkpoint to resume, data, tokenizer, configuration: everything but large memory. */
int setup_open(llmc_trainer *trainer);
/* Signs of life (tell.c); whoever hears them may stop the run. sum: of the losses of the i batches so far. */
void tell_micro_step(llmc_trainer *trainer, int i);
void tell_batch(llmc_trainer *trainer, int64_t i, int64_t batches, double sum, double seconds);
void tell_token(llmc_trainer *trainer, int64_t i);
void tell_clock(double seconds, char *text, size_t size); /* 1:02:03 */
/* Appends to the plan of a run that goes on: from what step, and each option that is another one now. */
int tell_resume(const llmc_trainer *trainer, char *text, size_t size);
/* What its model is made for. */
llmc_room setup_room(const llmc_trainer *trainer);
/* The text of LLMC_PLAN, which it returns. */
int trainer_announce_plan(llmc_trainer *trainer);
/* The weights that it starts from, as their user calls them; "" from scratch. */
const char *setup_weights_name(const llmc_trainer *trainer);
/* The arena and the weights; the run folder. */
int setup_model(llmc_trainer *trainer);
#endif
