/* A run's folder: config.txt, metrics.jsonl, samples/, last.ckpt, best.ckpt, and ADAPTED_BASE if it trains adapters. */
#ifndef RUN_H
#define RUN_H
#include <stdio.h>
#include "options/options.h"

typedef struct Run {
    char folder[OPTION_TEXT]; /* "" writes nothing */
    /* The file that this run's adapters need; "": none, or one that is made anew each time */
    char base[2 * OPTION_TEXT];
    FILE *metrics;
    int replacing; /* an older run lies aside until this one has saved */
    int lock;      /* a file descriptor of the folder, which keeps other runs out of it; 0: none */
} Run;

/* Puts a folder in order after a kill while its run was being replaced: afterwards it holds the old run or the new one, whole.
 * To be called before a checkpoint is looked for. */
int run_settle(const char *folder);
/* Refuses a folder that holds a run, unless that is to be overwritten, and one that cannot be made because a file is there. */
int run_check(const llmc_options *options);
/* 1 if the file at `path` belongs to the run in the folder `out`, which would go if another run took its place */
int run_replaces(const char *out, const char *path);
/* Makes the folder. from: the run goes on in it from this checkpoint of `step`, which becomes last.ckpt, so later metrics are dropped,
 * and that step's validation loss too unless it was evaluated; NULL: from none of its own. history: comments for config.txt about options before that step; may be NULL.
 * A run that is overwritten comes back if this one ends before run_saved. */
int run_open(Run *run, const llmc_options *options, const char *history, const char *from, int64_t step, int evaluated);
void run_saved(Run *run); /* last.ckpt is there: a run that was overwritten is removed */
void run_close(Run *run);
int run_metric(Run *run, const char *line); /* one JSON object */
int run_sample(const Run *run, int64_t step, const char *text, int64_t size);
/* Gives a checkpoint a second name, in the place of whatever had it: 1, or 0 if the file system has no second names. */
int run_link(const Run *run, const char *name, const char *second);
/* Removes all checkpoints step_N.ckpt but the newest `keep`, and all with N > step, which belong to steps that a resume has
 * gone back before. */
int run_drop_numbered(const Run *run, int64_t step, int64_t keep);
/* Looks how far the run in a folder has come: the step of its last.ckpt, or, where that cannot be read, of the newest
 * step_N.ckpt; -1: neither. */
int64_t run_reached(const char *folder);
/* Removes all checkpoints step_N.ckpt with N > step, and best.ckpt if it is of a later step: 1 if so, else 0. */
int run_drop_later(const Run *run, int64_t step);
/* True if `name` is step_N.ckpt; tells N unless step is NULL. */
int run_is_numbered(const char *name, int64_t *step);
/* The error of errno: that `path` cannot be `what`, for example written, and the remedy. */
int run_system_error(const char *path, const char *what);
void run_path(const Run *run, const char *name, char *path, size_t size);
#endif
