/* Signs of life: what takes long tells its caller how far it is, and learns whether to go on (llmc_on_pulse). */
#ifndef PULSE_H
#define PULSE_H
#include "pyllmc.h"

/* Tells in a few words what is under way; "" that it is over. LLMC_STOPPED if the caller does not want it any more. */
int pulse(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The same, in addition to what was told last: a part of it. */
int pulse_part(const char *format, ...) __attribute__((format(printf, 1, 2)));

typedef struct Share { /* work of a known size; percent begins at -1 */
    const char *what, *path;
    int64_t done, all;
    int percent;
} Share;
/* Tells "WHAT PATH: 45 %" whenever another hundredth is done. */
int pulse_share(Share *share, int64_t more);
#endif
