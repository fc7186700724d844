/* --skip_outliers: steps whose loss or gradient norm is far above those before change nothing. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "files/state.h"
#include "train/trainer.h"

/* z = (x - mean) / std over the last OUTLIER_WINDOW values, of which x is the last; std is that of the values themselves
 * (divisor n). So do llm.c's -sl and -sg (llmc/outlier_detector.h). There sums are kept from step to step; here they are added
 * up anew, so that a resumed run, which knows the values only, gets the same bits. */
static double z_score(const double *x) {
    double mean = 0, variance = 0;
    for (int i = 0; i < OUTLIER_WINDOW; i++) mean += x[i] / OUTLIER_WINDOW;
    for (int i = 0; i < OUTLIER_WINDOW; i++) variance += (x[i] - mean) * (x[i] - mean) / OUTLIER_WINDOW;
    return variance > 0 ? (x[OUTLIER_WINDOW - 1] - mean) / sqrt(variance) : 0;
}

/* Appends a value; the oldest goes if there is no room. */
static void push(double *window, int n, double x) {
    if (n == OUTLIER_WINDOW) memmove(window, window + 1, (OUTLIER_WINDOW - 1) * sizeof *window);
    window[n < OUTLIER_WINDOW ? n : OUTLIER_WINDOW - 1] = x;
}

const char *outliers_find(Outliers *seen, double loss, double norm, double limit, double *z) {
    const int full = seen->n == OUTLIER_WINDOW; /* before this step, as in llm.c */
    push(seen->losses, seen->n, loss);
    push(seen->norms, seen->n, norm);
    seen->n += !full;
    if (full && (*z = z_score(seen->losses)) > limit) return "loss";
    if (full && (*z = z_score(seen->norms)) > limit) return "norm";
    return NULL;
}

/* ---- in a checkpoint's STATE ---- */

static void add(Growing *state, const char *name, const double *window, int n) {
    growing_add(state, "%s=", name);
    for (int i = 0; i < n; i++) growing_add(state, i ? " %.17g" : "%.17g", window[i]);
    growing_add(state, "\n");
}

void outliers_add(const Outliers *seen, Growing *state) {
    add(state, "loss_window", seen->losses, seen->n);
    add(state, "norm_window", seen->norms, seen->n);
}

/* The numbers in a line of STATE, of which the last OUTLIER_WINDOW are kept. */
static int read(const char *state, const char *name, double *window) {
    const char *value = state_value(state, name);
    int n = 0;
    for (char *end; value && *value && *value != '\n'; value = end) {
        const double x = strtod(value, &end);
        if (end == value) break;
        push(window, n, x);
        n += n < OUTLIER_WINDOW;
        end += *end == ' ';
    }
    return n;
}

void outliers_read(Outliers *seen, const char *state) {
    const int losses = read(state, "loss_window", seen->losses), norms = read(state, "norm_window", seen->norms);
    seen->n = losses == norms ? losses : 0;
}
