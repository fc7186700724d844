/* The token files that a user's --data names */
#ifndef SHARDS_H
#define SHARDS_H
#include <stddef.h>
typedef struct Shards {
    char **names; /* sorted by bytes, in every locale */
    int n;
    size_t capacity;
    char other[256]; /* a token file of another split in the same folder; "": none is known */
} Shards;
/* data: a folder stands for its SPLIT*.bin, a file for itself, another text is a glob. `shards` must be zero before the call and must
 * be freed by shards_free, also after an error. */
int shards_find(Shards *shards, const char *data, const char *split);
/* LLMC_EIO if none were found */
int shards_check(const Shards *shards, const char *data, const char *split);
void shards_free(Shards *shards);
#endif
