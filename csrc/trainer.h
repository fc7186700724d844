/* The trainer's inside: setup.c opens everything, trainer.c runs the loop. */
#ifndef TRAINER_H
#define TRAINER_H
#include <signal.h>
#include "options.h"
#include "run.h"

enum { TEXT_SIZE = 1 << 16 };

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
    int evaluated; /* what is due at this step's boundary has been done: a resumed run does not do it again */

    int phase;                  /* see trainer.c */
    int yield_gradients, saved; /* whether there is a checkpoint to go back to */
    volatile sig_atomic_t stop;
    int64_t step, tokens, position; /* the last: of the data, where the step under way began */
    double val_loss, best_val_loss;
    double loss, norm, lr; /* of the step under way */
    double started, ms;    /* when it began; smoothed time of a step */
    int *inputs, *targets; /* (B, T) */
    float *losses;         /* of each micro-step */
    char *text;            /* TEXT_SIZE: what the last event says */
    int64_t sample_size;   /* bytes of it that are a sample, which may hold NULs; else 0 */
};

/* What can be checked before there is data: options, the checkpoint to resume, sizes, the run folder. Writes nothing. */
int setup_check(llmc_trainer *trainer);
/* Whether the default data is wanted and not there; after setup_check. */
int setup_needs_data_made(const llmc_trainer *trainer);
/* Options of the checkpoint to resume, data, tokenizer, configuration: everything but large memory. */
int setup_open(llmc_trainer *trainer);
/* What its model is made for. */
llmc_room setup_room(const llmc_trainer *trainer);
/* The weights that it starts from, as their user calls them; "" from scratch. */
const char *setup_weights_name(const llmc_trainer *trainer);
/* The arena and the weights; the run folder. */
int setup_model(llmc_trainer *trainer);
#endif
