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
#endif
