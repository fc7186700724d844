/* Rows that are read soon, asked for while something else is computed: a few lines at a time, into the second cache.
 * (More lines at once than a core can wait for would stall it; and the first cache lacks the room.) */
#ifndef AHEAD_H
#define AHEAD_H
#include <stdint.h>

typedef struct Ahead {
    const char *row;
    int64_t bytes, stride; /* of a row; from one to the next */
    int64_t at, left;      /* bytes into this row; rows */
    int64_t share;         /* lines at a time */
} Ahead;

static inline void ask(Ahead *a) {
    for (int64_t i = 0; i < a->share && a->left; i++) {
        __builtin_prefetch(a->row + a->at, 0, 2);
        if ((a->at += 64) >= a->bytes) a->at = 0, a->row += a->stride, a->left--;
    }
}
#endif
