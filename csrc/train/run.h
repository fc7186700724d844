/* A run's folder: config.txt, metrics.jsonl, samples/, last.ckpt, best.ckpt. */
#ifndef RUN_H
#define RUN_H
#include <stdio.h>
#include "options/options.h"

typedef struct Run {
    char folder[OPTION_TEXT]; /* "" writes nothing */
    FILE *metrics;
    int replacing; /* a run that lies aside until this one has saved */
    int lock;      /* file descriptor of the folder, 0 if none: two runs must not write into one */
} Run;

/* After a kill while a run was being replaced: what of the two is there, whole. Before a checkpoint is looked for. */
int run_settle(const char *folder);
/* Refuses a folder that holds a run which is not to be overwritten. */
int run_check(const llmc_options *options);
/* Makes the folder, or goes on in it from a checkpoint of `step`: later metrics are dropped, and its validation loss unless it was
 * evaluated. history: what config.txt tells of options before that step, lines of comments; may be NULL. A run that is overwritten comes back if this one ends before run_saved. */
int run_open(Run *run, const llmc_options *options, const char *history, int in_place, int64_t step, int evaluated);
void run_saved(Run *run); /* last.ckpt */
void run_close(Run *run);
int run_metric(Run *run, const char *line); /* one JSON object */
int run_sample(const Run *run, int64_t step, const char *text, int64_t size);
/* A checkpoint by a second name, whatever was there; 1, or 0 where the file system has but one name for a file. */
int run_link(const Run *run, const char *name, const char *second);
/* Of the checkpoints called step_N.ckpt the newest `keep` stay, and none beyond `step`: those are of a future that was left. */
int run_drop_numbered(const Run *run, int64_t step, int64_t keep);
/* Looks how far the run in a folder has come: the step of its last.ckpt, or, where that cannot be read, of the newest
 * step_N.ckpt; -1: neither. */
int64_t run_reached(const char *folder);
int run_is_numbered(const char *name, int64_t *step); /* whether `name` is step_N.ckpt, and N; step may be NULL */
void run_path(const Run *run, const char *name, char *path, size_t size);
#endif
