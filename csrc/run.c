/* A run's folder: what is kept of a run, written so that a kill at any moment loses nothing. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include "error.h"
#include "paths.h"
#include "run.h"

void run_path(const Run *run, const char *name, char *path, size_t size) {
    snprintf(path, size, "%s/%s", run->folder, name);
}

static int exists(const Run *run, const char *name) {
    char path[2 * OPTION_TEXT];
    run_path(run, name, path, sizeof path);
    return access(path, F_OK) == 0;
}

static int system_error(const char *path, const char *what) {
    const int error = errno;
    return llmc_fail(LLMC_EIO, "%s cannot be %s: %s%s", path, what, strerror(error), remedy_for(error));
}

static int make_folder(const char *path) {
    if (mkdir(path, 0777) == 0 || errno == EEXIST) return LLMC_OK;
    const int error = errno;
    if (paths_is_folder(path)) return LLMC_OK; /* some file systems refuse first and look later */
    errno = error;
    return system_error(path, "made");
}

static int make_folders(const char *path) { /* mkdir -p */
    char partial[2 * OPTION_TEXT];
    snprintf(partial, sizeof partial, "%s", path);
    for (char *slash = partial + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = 0;
        TRY(make_folder(partial));
        *slash = '/';
    }
    return make_folder(partial);
}

static int next_free_folder(Run *run) {
    TRY(make_folders("runs"));
    for (int i = 0; i < 1000000; i++) {
        snprintf(run->folder, sizeof run->folder, "runs/%03d", i);
        if (mkdir(run->folder, 0777) == 0) return LLMC_OK;
        if (errno != EEXIST) return system_error(run->folder, "made");
    }
    FAIL(LLMC_EINVAL, "runs/ is full: name a folder with --out");
}

static int write_file(const char *path, const char *text, size_t size) {
    FILE *f = fopen(path, "w");
    if (!f) return system_error(path, "written");
    const int failed = fwrite(text, 1, size, f) < size;
    return fclose(f) == 0 && !failed ? LLMC_OK : system_error(path, "written");
}

/* ---- metrics.jsonl ---- */

/* every line of ours begins {"step": N, so the step is read without a JSON parser */
static int keep_line(const char *line, int64_t step) {
    long long of = -1;
    return sscanf(line, "{\"step\": %lld", &of) == 1 && of <= step && strchr(line, '\n');
}

static int drop_later_metrics(const Run *run, int64_t step) {
    char path[2 * OPTION_TEXT], fresh[2 * OPTION_TEXT], line[1024];
    run_path(run, "metrics.jsonl", path, sizeof path);
    run_path(run, "metrics.jsonl.tmp", fresh, sizeof fresh);
    FILE *from = fopen(path, "r"), *to = from ? fopen(fresh, "w") : NULL;
    if (!from) return errno == ENOENT ? LLMC_OK : system_error(path, "read");
    while (to && fgets(line, sizeof line, from))
        if (keep_line(line, step)) fputs(line, to);
    fclose(from);
    const int whole = to && !ferror(to) && fclose(to) == 0 && rename(fresh, path) == 0;
    return whole ? LLMC_OK : system_error(path, "rewritten");
}

int run_metric(Run *run, const char *line) {
    if (!run->metrics) return LLMC_OK;
    char path[2 * OPTION_TEXT];
    if (fputs(line, run->metrics) >= 0 && fflush(run->metrics) == 0) return LLMC_OK;
    run_path(run, "metrics.jsonl", path, sizeof path);
    return system_error(path, "written");
}

/* ---- the folder ---- */

static void remove_samples(const Run *run) {
    char folder[2 * OPTION_TEXT], path[3 * OPTION_TEXT];
    run_path(run, "samples", folder, sizeof folder);
    DIR *dir = opendir(folder);
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (!strncmp(entry->d_name, "step_", 5)) unlink(path);
    }
    if (dir) closedir(dir);
}

static int clear_old_run(const Run *run, int overwrite) {
    const char *files[] = {"last.ckpt", "best.ckpt", "metrics.jsonl"};
    char path[2 * OPTION_TEXT];
    for (int i = 0; i < 3; i++) {
        if (!exists(run, files[i])) continue;
        CHECK(overwrite || exists(run, "last.ckpt"), LLMC_EINVAL,
              "%s holds a run that saved nothing: replace it with --overwrite, or name another --out", run->folder);
        CHECK(overwrite, LLMC_EINVAL,
              "%s holds a run: continue it with --resume=%s, replace it with --overwrite, or name "
              "another --out",
              run->folder, run->folder);
        run_path(run, files[i], path, sizeof path);
        if (unlink(path) < 0) return system_error(path, "removed");
    }
    if (overwrite) remove_samples(run);
    return LLMC_OK;
}

static int lock_folder(Run *run) {
    run->lock = open(run->folder, O_RDONLY | O_CLOEXEC);
    if (run->lock < 0) return run->lock = 0, system_error(run->folder, "opened");
    CHECK(flock(run->lock, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK, LLMC_EINVAL,
          "%s is in use by another run: wait for it, or name another --out", run->folder);
    return LLMC_OK;
}

int run_open(Run *run, const llmc_options *options, int in_place, int64_t step) {
    char path[2 * OPTION_TEXT];
    snprintf(run->folder, sizeof run->folder, "%s", options->out);
    if (!*run->folder) return LLMC_OK;
    if (!strcmp(run->folder, "auto")) TRY(next_free_folder(run));
    run_path(run, "samples", path, sizeof path);
    TRY(make_folders(path));
    TRY(lock_folder(run));
    if (in_place) TRY(drop_later_metrics(run, step));
    else TRY(clear_old_run(run, (int)options->overwrite));
    char *text = malloc(1 << 18);
    CHECK(text, LLMC_ENOMEM, "no memory for the options' text");
    int rc = llmc_options_text(options, text, 1 << 18);
    run_path(run, "config.txt", path, sizeof path);
    if (rc == 0) rc = write_file(path, text, strlen(text));
    free(text);
    TRY(rc);
    run_path(run, "metrics.jsonl", path, sizeof path);
    run->metrics = fopen(path, "a");
    return run->metrics ? LLMC_OK : system_error(path, "written");
}

void run_close(Run *run) {
    if (run->lock > 0) close(run->lock);
    run->lock = 0;
    if (run->metrics) fclose(run->metrics);
    run->metrics = NULL;
}

int run_sample(const Run *run, int64_t step, const char *text, int64_t size) {
    char name[64], path[2 * OPTION_TEXT];
    if (!*run->folder) return LLMC_OK;
    snprintf(name, sizeof name, "samples/step_%08lld.txt", (long long)step);
    run_path(run, name, path, sizeof path);
    return write_file(path, text, (size_t)size);
}
