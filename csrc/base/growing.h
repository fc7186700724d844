/* A text that grows with each addition */
#ifndef GROWING_H
#define GROWING_H
#include <stddef.h>

typedef struct Growing {
    char *text; /* NULL: nothing yet */
    size_t size, capacity;
    int failed; /* memory ran out, so a part of the text is missing */
} Growing;

void growing_add(Growing *g, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The finished text, "" if nothing was added; the caller frees it. NULL if memory ran out, with the error set. */
char *growing_end(Growing *g);
/* Copies the finished text to `text`, cut to its `size` bytes, and frees it. Returns the length of the whole, or
 * LLMC_ENOMEM. */
int growing_copy(Growing *g, char *text, size_t size);
#endif
