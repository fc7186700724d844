/* Prefetching: rows that are read soon come into the second cache while something else is computed, a few lines at a time.
 * More lines than a core can wait for at once would stall it, and the first cache lacks the room. */
#ifndef AHEAD_H
#define AHEAD_H
#include <stdint.h>

typedef struct Ahead {
    const char *row;
    int64_t bytes, stride; /* the bytes of a row, and from one row to the next */
    int64_t at, left;      /* the bytes asked for in this row; the rows that are left */
    int64_t share;         /* the lines of one call of ask() */
} Ahead;

static inline void ask(Ahead *a) {
    for (int64_t i = 0; i < a->share && a->left; i++) {
        __builtin_prefetch(a->row + a->at, 0, 2);
        if ((a->at += 64) >= a->bytes) a->at = 0, a->row += a->stride, a->left--;
    }
}
#endif
