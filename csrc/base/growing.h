/* A text that grows with what is added, however long. */
#ifndef GROWING_H
#define GROWING_H
#include <stddef.h>

typedef struct Growing {
    char *text; /* NULL: nothing yet */
    size_t size, room;
    int failed; /* there was no memory, and something is missing */
} Growing;

void growing_add(Growing *g, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The text, "" if nothing was added, which the caller frees; NULL, with an error, without memory. */
char *growing_end(Growing *g);
/* The same into `text` of `size` bytes, cut to what fits: its whole length, or LLMC_ENOMEM. */
int growing_copy(Growing *g, char *text, size_t size);
#endif
