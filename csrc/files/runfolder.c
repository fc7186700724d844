/* Chooses the checkpoint that a run folder stands for. */
#include "files/runfolder.h"
#include <stdio.h>
#include <unistd.h>
#include "base/binfile.h"

int runfolder_weights(const char *path, char *file, size_t size) {
    static const char *const in_order[] = {"best.ckpt", "last.ckpt"};
    for (int i = 0; i < 2; i++) {
        snprintf(file, size, "%s/%s", path, in_order[i]);
        if (access(file, F_OK) == 0) return 1;
    }
    snprintf(file, size, "%s", path);
    return 0;
}

void runfolder_resume(const char *path, char *file, size_t size) {
    snprintf(file, size, is_folder(path) ? "%s/last.ckpt" : "%s", path);
}
