/* Which token files a user's --data means. */
#ifndef SHARDS_H
#define SHARDS_H
#include <stddef.h>
typedef struct Shards {
    char **names; /* sorted as bytes, whatever the locale */
    int n;
    size_t room;
} Shards;
/* A folder: its SPLIT*.bin; a file: itself; else a glob. An error if there is none; `shards` must be zero before, and
 * wants shards_free after either outcome. */
int shards_find(Shards *shards, const char *data, const char *split);
void shards_free(Shards *shards);
#endif
