/* The learning rate: {int64 done, size, end, warmup; double lr, final_frac, decay_frac; kind}. */
#include <math.h>
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Input in = {data, size};
    const int64_t done = take_long(&in), step = take_long(&in), end = take_long(&in), warmup = take_long(&in);
    const double lr = take_double(&in), final_frac = take_double(&in), decay_frac = take_double(&in);
    double rate = NAN;
    char *kind = take_line(&in);
    const int rc = fuzz_status(llmc_schedule_lr(&rate, kind, done, step, end, warmup, lr, final_frac, decay_frac));
    const int sane = done >= 0 && step >= 0 && end >= 0 && lr >= 0 && lr <= 1000 && final_frac >= 0 &&
                     final_frac <= 1 && decay_frac >= 0 && decay_frac <= 1;
    if (rc == 0 && sane) fuzz_expect(rate >= 0 && rate <= lr * (1 + 1e-12));
    free(kind);
    return 0;
}
