/* Older checkpoints, kept as step_N.ckpt beside last.ckpt and best.ckpt. */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/error.h"
#include "files/state.h"
#include "train/run.h"

int run_is_numbered(const char *name, int64_t *step) {
    long long n = -1;
    int end = 0;
    if (sscanf(name, "step_%lld.ckpt%n", &n, &end) != 1 || n < 0 || !end || name[end]) return 0;
    if (step) *step = n;
    return 1;
}

int run_link(const Run *run, const char *name, const char *second) {
    char from[2 * OPTION_TEXT], to[2 * OPTION_TEXT], beside[2 * OPTION_TEXT];
    run_path(run, name, from, sizeof from);
    run_path(run, second, to, sizeof to);
    run_path(run, "numbered.tmp", beside, sizeof beside);
    unlink(beside); /* a process that was killed may have left one */
    if (link(from, beside) < 0) {
        const int one_name_only = errno == EPERM || errno == EOPNOTSUPP || errno == EMLINK || errno == ENOSYS;
        return one_name_only ? 0 : run_system_error(to, "written");
    }
    const int moved = rename(beside, to);
    const int rc = moved < 0 ? run_system_error(to, "put in place") : 1;
    unlink(beside); /* rename leaves it if both names already are the same file */
    return rc;
}

/* The step of a checkpoint's STATE; -1 if it cannot be read. */
static int64_t step_of(const char *path) {
    char state[STATE_TEXT];
    if (access(path, R_OK) || state_read_by_path(path, state) < 0) return -1;
    return state_whole(state, "step", -1);
}

int64_t run_reached(const char *folder) {
    char path[2 * OPTION_TEXT];
    snprintf(path, sizeof path, "%s/last.ckpt", folder);
    int64_t newest = step_of(path), step;
    DIR *dir = newest < 0 ? opendir(folder) : NULL;
    for (struct dirent *entry; dir && (entry = readdir(dir));)
        if (run_is_numbered(entry->d_name, &step) && step > newest) newest = step;
    if (dir) closedir(dir);
    return newest;
}

int run_drop_later(const Run *run, int64_t step) {
    char path[2 * OPTION_TEXT];
    TRY(run_drop_numbered(run, step, INT64_MAX));
    run_path(run, "best.ckpt", path, sizeof path);
    if (step_of(path) <= step) return 0;
    return unlink(path) < 0 && errno != ENOENT ? run_system_error(path, "removed") : 1;
}

/* Finds a checkpoint that must go: 1 and its name, or 0. */
static int find_surplus(DIR *dir, int64_t last, int64_t keep, char *name, size_t size) {
    int64_t oldest = INT64_MAX, of, n = 0;
    rewinddir(dir);
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (!run_is_numbered(entry->d_name, &of)) continue;
        if (of > last) return snprintf(name, size, "%s", entry->d_name), 1;
        n++;
        if (of < oldest) oldest = of, snprintf(name, size, "%s", entry->d_name);
    }
    return n > keep;
}

int run_drop_numbered(const Run *run, int64_t step, int64_t keep) {
    char name[NAME_MAX + 1], path[2 * OPTION_TEXT];
    int rc = LLMC_OK;
    DIR *dir = opendir(run->folder);
    if (!dir) return run_system_error(run->folder, "read");
    while (rc == 0 && find_surplus(dir, step, keep, name, sizeof name)) {
        run_path(run, name, path, sizeof path);
        if (unlink(path) < 0 && errno != ENOENT) rc = run_system_error(path, "removed");
    }
    closedir(dir);
    return rc;
}
