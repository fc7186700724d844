/* Which token files a user's --data means. */
#ifndef PATHS_H
#define PATHS_H
#include <stddef.h>
typedef struct Paths {
    char **names; /* sorted as bytes, whatever the locale */
    int n;
    size_t room;
} Paths;
/* A folder: its SPLIT*.bin; a file: itself; else a glob. An error if there is none; `paths` must be zero before, and
 * wants paths_free after either outcome. */
int paths_find(Paths *paths, const char *data, const char *split);
void paths_free(Paths *paths);
#endif
