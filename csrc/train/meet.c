/* Several processes train together. They run the same loop on their own part of each batch and meet at fixed places in it, where
 * they exchange sums. Whatever the loop decides, it decides by numbers that are the same in all of them. */
#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "model/team.h"
#include "train/trainer.h"

enum { MESSAGE = 1024 }; /* bytes */

static int is_alone(const llmc_trainer *t) { return t->team.world == 1; }

/* With --diloco one process, too, stops only where several would meet. */
void meet_ask_stop(llmc_trainer *t, int asked) {
    if (!asked) return;
    if (is_alone(t) && !t->options.diloco) t->stop = 1;
    else t->asked = 1;
}

int meet_keeps(const llmc_trainer *t) { return t->team.rank ? *t->options.out != 0 : *t->run.folder != 0; }

int meet_sum(llmc_trainer *t, double *x, int n) {
    if (is_alone(t)) return LLMC_OK;
    return t->team.sum(t->team.self, x, n) == 0 ? LLMC_OK : team_lost(&t->team);
}

/* ---- errors ---- */

/* The first rank whose flag is set; -1: none. Negative statuses are below that. */
static int first_of(llmc_trainer *t, int flag, int *first) {
    *first = -1;
    double *flags = calloc((size_t)t->team.world, sizeof *flags);
    CHECK(flags, LLMC_ENOMEM, "no memory to meet %d processes", t->team.world);
    flags[t->team.rank] = flag != 0;
    const int rc = meet_sum(t, flags, t->team.world);
    for (int i = t->team.world - 1; rc == 0 && i >= 0; i--)
        if (flags[i] > 0) *first = i;
    free(flags);
    return rc;
}

/* The status and the last error of one rank become those of all. A sum carries them, to which the others add zeros. */
static int take_failure(llmc_trainer *t, int status, int from) {
    double sent[1 + MESSAGE] = {0};
    char text[MESSAGE] = "";
    snprintf(text, sizeof text, "%s", llmc_last_error());
    if (t->team.rank == from) {
        sent[0] = status;
        for (int i = 0; i < MESSAGE; i++) sent[1 + i] = (unsigned char)text[i];
    }
    TRY(meet_sum(t, sent, 1 + MESSAGE));
    for (int i = 0; i < MESSAGE; i++) text[i] = (char)(unsigned char)sent[1 + i];
    if (from) FAIL((int)sent[0], "rank %d: %s", from, text);
    FAIL((int)sent[0], "%s", text);
}

int meet_fail(llmc_trainer *t, int status, int knows) {
    char reason[MESSAGE];
    int first;
    if (is_alone(t)) return status;
    snprintf(reason, sizeof reason, "%s", llmc_last_error());
    TRY(first_of(t, knows, &first));
    llmc_fail(status, "%s", reason);
    return take_failure(t, status, first < 0 ? 0 : first);
}

int meet(llmc_trainer *t, int status) {
    const int stopped = status == LLMC_STOPPED, failed = status < 0 && !stopped;
    if (is_alone(t) && t->asked) t->stop = 1;
    if (is_alone(t)) return status;
    if (stopped) t->asked = 1;
    double x[] = {t->asked != 0, failed, stopped};
    char reason[MESSAGE];
    snprintf(reason, sizeof reason, "%s", llmc_last_error());
    TRY(meet_sum(t, x, 3));
    if (x[0] > 0) t->stop = 1;
    if (failed) llmc_fail(status, "%s", reason);
    if (x[1] > 0) return meet_fail(t, status, failed);
    return x[2] > 0 ? LLMC_STOPPED : status;
}

/* ---- DiLoCo ---- */

int meet_within_step(llmc_trainer *t, int status) { return t->options.diloco ? status : meet(t, status); }

int meet_is_due(const llmc_trainer *t) {
    return !t->options.diloco || t->step % t->options.diloco == 0 || t->step == t->options.max_steps;
}

int meet_after_step(llmc_trainer *t, int status) {
    const llmc_options *o = &t->options;
    if (!o->diloco || (status >= 0 && !meet_is_due(t))) return status;
    TRY(meet(t, status));
    return llmc_model_outer_step(t->model, o->diloco_lr, o->diloco_momentum);
}

int meet_in_turn(llmc_trainer *t, int (*work)(llmc_trainer *)) {
    const int first = meet(t, t->team.rank ? LLMC_OK : work(t));
    TRY(first);
    const int then = meet(t, t->team.rank ? work(t) : first);
    return then;
}
