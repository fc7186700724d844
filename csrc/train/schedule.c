/* The learning rate of each step. */
#include <math.h>
#include <string.h>
#include "base/error.h"

static double constant(double x) { return (void)x, 0; }
static double linear(double x) { return x; }
static double cosine(double x) { return 0.5 * (1 - cos(3.141592653589793 * x)); }

/* How much of the way from lr to the final rate is done at x in [0, 1]. */
static const struct Shape {
    const char *name;
    double (*done)(double x);
} shapes[] = {{"constant", constant}, {"linear", linear}, {"cosine", cosine}, {"wsd", linear}};

int llmc_schedule_lr(double *rate, const char *kind, int64_t done, int64_t size, int64_t end, int64_t warmup, double lr,
                     double final_frac, double decay_frac) {
    const struct Shape *shape = shapes, *last = shapes + sizeof shapes / sizeof *shapes;
    while (shape < last && strcmp(shape->name, kind)) shape++;
    CHECK(shape < last, LLMC_EINVAL, "schedule '%s' is not one of constant, linear, cosine, wsd", kind);
    if (done < warmup) {
        *rate = lr * fmin((double)done + (double)size, (double)warmup) / (double)warmup;
        return LLMC_OK;
    }
    double start = (double)warmup;
    if (!strcmp(kind, "wsd")) start = fmax(start, (double)end * (1 - decay_frac));
    const double x = ((double)done - start) / fmax(1, (double)end - start);
    *rate = lr + (lr * final_frac - lr) * shape->done(fmin(fmax(x, 0), 1));
    return LLMC_OK;
}
