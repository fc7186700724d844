/* Signs of life: a long call tells its caller how far it is, and learns whether to go on (llmc_on_pulse). */
#ifndef PULSE_H
#define PULSE_H
#include "pyllmc.h"

/* Tells the caller in a few words what is being done; "" says that it is done. Returns LLMC_STOPPED if the caller wants
 * no more. */
int pulse(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The same, but appends to the last line told: one part of that work. */
int pulse_part(const char *format, ...) __attribute__((format(printf, 1, 2)));

typedef struct Share { /* work of a known size; percent begins at -1 */
    const char *what, *path;
    int64_t done, all;
    int percent;
} Share;
/* Tells "WHAT PATH: 45 %" each time another percent is done. */
int pulse_share(Share *share, int64_t more);
#endif
