/* Chooses the checkpoint that a run folder stands for. */
#ifndef RUNFOLDER_H
#define RUNFOLDER_H
#include <stddef.h>
/* Its weights: the best checkpoint, or the last where no best was kept. 1; or 0 if `path` is no run folder, and `file` is then
 * `path` itself. */
int runfolder_weights(const char *path, char *file, size_t size);
/* The checkpoint that training continues from: the last one of a folder, because only that has moments; else `path`. */
void runfolder_resume(const char *path, char *file, size_t size);
#endif
