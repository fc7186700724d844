/* The gradients of one step, from its micro-steps. Its loss is the mean over all targets that are learnt, however these are spread
 * over the micro-steps: with a loss mask a micro-step counts by how many it has. */
#include <math.h>
#include <string.h>
#include "base/error.h"
#include "model/team.h"
#include "train/trainer.h"

int step_is_masked(const llmc_loader *d) { return llmc_loader_learnt(d) >= 0; }

int64_t step_learnt(const llmc_trainer *t, const llmc_loader *d, int rows) {
    const int64_t all = (int64_t)rows * t->T;
    int64_t n = 0;
    if (!step_is_masked(d)) return all;
    for (int64_t i = 0; i < all; i++) n += t->targets[i] >= 0;
    return n;
}

/* One past the last target of row b that is learnt; 0: none is. */
static int row_length(const llmc_trainer *t, int b) {
    int n = t->T;
    while (n && t->targets[(int64_t)b * t->T + n - 1] < 0) n--;
    return n;
}

int step_shorten(llmc_trainer *t, const llmc_loader *d) {
    enum { MULTIPLE = 16 };
    int longest = 1;
    if (!step_is_masked(d)) return t->T;
    for (int b = 0; b < t->B; b++) {
        const int n = row_length(t, b);
        if (n > longest) longest = n;
    }
    longest = (longest + MULTIPLE - 1) / MULTIPLE * MULTIPLE;
    if (longest >= t->T) return t->T;
    for (int64_t b = 1; b < t->B; b++) {
        memmove(t->inputs + b * longest, t->inputs + b * t->T, (size_t)longest * sizeof *t->inputs);
        memmove(t->targets + b * longest, t->targets + b * t->T, (size_t)longest * sizeof *t->targets);
    }
    return longest;
}

/* True if the gradients of a step are those of this process: it is alone, or apart from the others (--diloco). */
static int is_apart(const llmc_trainer *t) { return t->team.world == 1 || t->options.diloco; }

/* The step's windows are cut into batches of B, which the processes take in turn: the number of that of micro-step i. */
static int64_t number_of(const llmc_trainer *t, int i) { return (int64_t)i * t->team.world + t->team.rank; }

/* The share of B that micro-step i has: 1, but for the last batch, which may be smaller, and 0 where none is left for this process. */
static double share_of_batch(const llmc_trainer *t, int i) {
    return fmax(0, fmin(1, (double)t->windows / t->B - (double)number_of(t, i)));
}

int step_rows(const llmc_trainer *t, int64_t windows, int i) {
    const int64_t left = windows - number_of(t, i) * t->B;
    return left < 0 ? 0 : left < t->B ? (int)left : t->B;
}
static int rows_of(const llmc_trainer *t, int i) { return step_rows(t, t->windows, i); }

/* Only the last micro-step may have less than a batch. */
static double own_batches(const llmc_trainer *t) {
    const int last = length_micro_steps(t, t->windows) - 1;
    return last + share_of_batch(t, last);
}

/* The batches whose mean is the step's loss: those of all processes, or, apart, one's own. One smaller than B, the last of --epochs,
 * counts as its share of B. */
static double batches(const llmc_trainer *t) { return t->options.diloco ? own_batches(t) : (double)t->windows / t->B; }

int step_learns_nothing(const llmc_trainer *t) {
    return (step_is_masked(t->train) && !t->learnt) || (t->options.diloco && !rows_of(t, 0));
}

static int count_own(llmc_trainer *t, int n) {
    t->learnt = 0;
    for (int i = 0; i < n; i++) {
        TRY(llmc_loader_next(t->train, t->inputs, t->targets));
        t->learnt += step_learnt(t, t->train, rows_of(t, i));
    }
    return llmc_loader_set_position(t->train, t->position);
}

/* Counts the learnt targets of the step in all processes, and goes back to its beginning. */
static int count_ahead(llmc_trainer *t, int n) {
    TRY(meet_within_step(t, count_own(t, n)));
    double learnt = (double)t->learnt;
    if (!is_apart(t)) TRY(meet_sum(t, &learnt, 1));
    return t->learnt = (int64_t)learnt, LLMC_OK;
}

/* The share of the step's loss that micro-step i has, whose batch is loaded. */
static float share_of(const llmc_trainer *t, int i) {
    if (!rows_of(t, i)) return 0;
    if (!step_is_masked(t->train)) return (float)share_of_batch(t, i) / (float)batches(t);
    return t->learnt ? (float)step_learnt(t, t->train, rows_of(t, i)) / (float)t->learnt : 0;
}

/* Computes a micro-step, whose batch is loaded. A process that has no row left computes one that counts nothing. */
static int compute(llmc_trainer *t, int i, int is_last) {
    const float share = t->shares[i] = share_of(t, i);
    const int rows = rows_of(t, i), T = step_shorten(t, t->train);
    if (!is_apart(t) && is_last) TRY(llmc_model_sum_next(t->model));
    t->read += (int64_t)rows * T;
    return llmc_model_micro_step(t->model, t->inputs, t->targets, NULL, rows ? rows : 1, T, share, i > 0,
                                 &t->losses[i]);
}

/* The step's loss, as far as it is that of this process. */
static double own_loss(const llmc_trainer *t) {
    double loss = 0;
    for (int i = 0; i < length_micro_steps(t, t->windows); i++) {
        const double l = t->losses[i];
        if (!rows_of(t, i)) continue;
        loss += step_is_masked(t->train) ? l * t->shares[i] : l * share_of_batch(t, i) / batches(t);
    }
    return loss;
}

/* Waits for the sums of the gradients, and sums the loss, unless the processes are apart. */
static int sum_all(llmc_trainer *t) {
    if (is_apart(t)) return t->read *= t->team.world, LLMC_OK; /* the others are taken to read as much */
    if (t->team.end_sums(t->team.self) != 0) return team_lost(&t->team);
    TRY(llmc_model_sync(t->model));
    double x[] = {own_loss(t), (double)t->read};
    TRY(meet_sum(t, x, 2));
    return t->summed_loss = x[0], t->read = (int64_t)x[1], LLMC_OK;
}

int step_accumulate(llmc_trainer *t) {
    const int n = length_micro_steps(t, t->windows), several = !is_apart(t), counted = n > 1 || several;
    t->doing = n > 1 ? MICRO_STEPPING : STEPPING;
    t->read = 0;
    if (step_is_masked(t->train) && counted) TRY(count_ahead(t, n));
    for (int i = 0; i < n; i++) {
        if (!t->stop) tell_micro_step(t, i);
        TRY(meet_within_step(t, llmc_loader_next(t->train, t->inputs, t->targets)));
        if (t->stop && (i || several)) return 0;
        if (!counted) t->learnt = step_learnt(t, t->train, rows_of(t, 0));
        TRY(compute(t, i, i + 1 == n));
    }
    TRY(sum_all(t));
    if (t->yield_gradients) TRY(llmc_model_sync(t->model));
    TRY(llmc_loader_set_position(t->train, t->position + t->windows)); /* the last batch may have read further */
    return 1;
}

double step_loss(const llmc_trainer *t) { return is_apart(t) ? own_loss(t) : t->summed_loss; }
