/* Windows that begin where documents begin, so that a model reads a story from its first sentence */
#ifndef WINDOWS_H
#define WINDOWS_H
#include "base/binfile.h"

typedef struct IdRange { /* n ids of 2 or 4 bytes, from byte `start` of a file */
    const BinFile *file;
    int64_t start, n;
    int width;
} IdRange;
/* Finds where the windows of T+1 ids start, and how many there are. The first starts at 0. After s comes the first id
 * `eot` >= 0 in (s + T/2, s + T], or s + T if there is none. The last start s is the largest with s + T + 1 <= n; n >
 * T. So each id up to the end of the last window lies in one window or two, short documents share a window, and long
 * ones go on in the next. free() *starts, also after an error. */
int windows_find(int64_t **starts, int64_t *count, const IdRange *ids, int T, int eot);
/* The same for tokens with a loss mask: a document is a window of its own, so that it is learnt as a chat will meet it, and each
 * token but the first is a target of exactly one window. Window i has the targets (starts[i], starts[i + 1]], at most T of them;
 * starts[count] is the last token. The next window starts at the first `eot` in (s, s + T], or at s + T if there is none, which
 * cuts a document; *cut counts those. eot -1: the windows follow each other every T tokens. n >= 2.
 * pack: as many whole documents as fit share a window; the next starts at the last `eot` in (s, s + T], and what is left at the end is
 * one window if it fits, whether or not a document begins there. */
int windows_part(int64_t **starts, int64_t *count, int64_t *cut, const IdRange *ids, int T, int eot, int pack);
#endif
