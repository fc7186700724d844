/* The gradients of one step, from its micro-steps. Its loss is the mean over all targets that are learnt, however these are spread
 * over the micro-steps: with a loss mask a micro-step counts by how many it has. */
#include <math.h>
#include <string.h>
#include "base/error.h"
#include "train/trainer.h"

int step_is_masked(const llmc_loader *d) { return llmc_loader_learnt(d) >= 0; }
int step_learns_nothing(const llmc_trainer *t) { return step_is_masked(t->train) && !t->learnt; }

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

/* The micro-steps of the present step as a number that counts one smaller than B, the last of --epochs, as its share of B. */
static double micro_steps(const llmc_trainer *t) { return (double)t->windows / t->B; }

/* The share of B that micro-step i has: 1, but for that last one. */
static double share_of_batch(const llmc_trainer *t, int i) { return fmin(1, micro_steps(t) - i); }

static int rows_of(const llmc_trainer *t, int i) {
    const int64_t left = t->windows - (int64_t)i * t->B;
    return left < t->B ? (int)left : t->B;
}

/* Counts the learnt targets of the step, and goes back to its beginning. */
static int count_ahead(llmc_trainer *t, int n) {
    t->learnt = 0;
    for (int i = 0; i < n; i++) {
        TRY(llmc_loader_next(t->train, t->inputs, t->targets));
        t->learnt += step_learnt(t, t->train, rows_of(t, i));
    }
    return llmc_loader_set_position(t->train, t->position);
}

/* The share of the step's loss that micro-step i has, whose batch is loaded. */
static float share_of(const llmc_trainer *t, int i) {
    if (!step_is_masked(t->train)) return (float)share_of_batch(t, i) / (float)micro_steps(t);
    return t->learnt ? (float)step_learnt(t, t->train, rows_of(t, i)) / (float)t->learnt : 0;
}

int step_accumulate(llmc_trainer *t) {
    const int n = length_micro_steps(t);
    t->doing = n > 1 ? MICRO_STEPPING : STEPPING;
    t->read = 0;
    if (step_is_masked(t->train) && n > 1) TRY(count_ahead(t, n));
    for (int i = 0; i < n; i++) {
        if (!t->stop) tell_micro_step(t, i);
        if (i && t->stop) return 0;
        TRY(llmc_loader_next(t->train, t->inputs, t->targets));
        if (n == 1) t->learnt = step_learnt(t, t->train, rows_of(t, 0));
        const float share = t->shares[i] = share_of(t, i);
        const int rows = rows_of(t, i), T = step_shorten(t, t->train);
        TRY(llmc_model_micro_step(t->model, t->inputs, t->targets, NULL, rows, T, share, i > 0, &t->losses[i]));
        t->read += (int64_t)rows * T;
    }
    if (t->yield_gradients) TRY(llmc_model_sync(t->model));
    TRY(llmc_loader_set_position(t->train, t->position + t->windows)); /* the last batch may have read further */
    return 1;
}

double step_loss(const llmc_trainer *t) {
    double loss = 0;
    for (int i = 0; i < length_micro_steps(t); i++) {
        const double l = t->losses[i];
        loss += step_is_masked(t->train) ? l * t->shares[i] : l * share_of_batch(t, i) / micro_steps(t);
    }
    return loss;
}
