/* A run's folder, written so that a kill at any moment loses nothing. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/binfile.h"
#include "base/error.h"
#include "files/adapterfile.h"
#include "train/run.h"

void run_path(const Run *run, const char *name, char *path, size_t size) {
    snprintf(path, size, "%s/%s", run->folder, name);
}

static int exists(const Run *run, const char *name) {
    char path[2 * OPTION_TEXT];
    run_path(run, name, path, sizeof path);
    return access(path, F_OK) == 0;
}

static int holds_folder(const Run *run, const char *name) {
    char path[2 * OPTION_TEXT];
    run_path(run, name, path, sizeof path);
    return is_folder(path);
}

int run_system_error(const char *path, const char *what) {
    const int error = errno;
    return llmc_fail(LLMC_EIO, "%s cannot be %s: %s%s", path, what, strerror(error), remedy_for(error));
}

static int make_folder(const char *path) {
    if (mkdir(path, 0777) == 0 || errno == EEXIST) return LLMC_OK;
    const int error = errno;
    if (is_folder(path)) return LLMC_OK; /* some file systems refuse before they see that it is there */
    errno = error;
    return run_system_error(path, "made");
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
        if (errno != EEXIST) return run_system_error(run->folder, "made");
    }
    FAIL(LLMC_EINVAL, "runs/ is full: name a folder with --out");
}

/* Puts a file that is written in the place of another, or removes it if that failed, which errno says. */
static int put_in_place(const char *fresh, const char *path, int failed) {
    if (!failed && rename(fresh, path) == 0) return LLMC_OK;
    const int rc = run_system_error(path, "written");
    unlink(fresh);
    return rc;
}

static int write_file(const char *path, const char *text, size_t size) {
    char fresh[4 * OPTION_TEXT];
    snprintf(fresh, sizeof fresh, "%s.tmp", path);
    FILE *f = fopen(fresh, "we");
    if (!f) return run_system_error(path, "written");
    int failed = fwrite(text, 1, size, f) < size || fflush(f) != 0 || fsync(fileno(f)) != 0;
    if (fclose(f) != 0) failed = 1;
    return put_in_place(fresh, path, failed);
}

/* ---- metrics.jsonl ---- */

/* Every line begins {"step": N, so the step is read without a JSON parser. */
static int keep_line(const char *line, int64_t step, int evaluated) {
    long long of = -1;
    if (sscanf(line, "{\"step\": %lld", &of) != 1 || of > step || !strchr(line, '\n')) return 0;
    return of < step || evaluated || !strstr(line, "\"val_loss\""); /* a resumed run evaluates again */
}

static int copy_metrics(FILE *from, FILE *to, int64_t step, int evaluated) {
    char line[1024];
    while (fgets(line, sizeof line, from))
        if (keep_line(line, step, evaluated) && fputs(line, to) < 0) return -1;
    return 0;
}

static int drop_later_metrics(const Run *run, int64_t step, int evaluated) {
    char path[2 * OPTION_TEXT], fresh[2 * OPTION_TEXT];
    run_path(run, "metrics.jsonl", path, sizeof path);
    run_path(run, "metrics.jsonl.tmp", fresh, sizeof fresh);
    FILE *from = fopen(path, "re"), *to = from ? fopen(fresh, "we") : NULL;
    if (!from) return errno == ENOENT ? LLMC_OK : run_system_error(path, "read");
    int failed = !to || copy_metrics(from, to, step, evaluated) < 0;
    if (to && fclose(to) != 0) failed = 1;
    fclose(from);
    return put_in_place(fresh, path, failed);
}

int run_metric(Run *run, const char *line) {
    if (!run->metrics) return LLMC_OK;
    char path[2 * OPTION_TEXT];
    if (fputs(line, run->metrics) >= 0 && fflush(run->metrics) == 0) return LLMC_OK;
    run_path(run, "metrics.jsonl", path, sizeof path);
    return run_system_error(path, "written");
}

/* ---- a run that is replaced is kept until the new one has saved last.ckpt ----
 * Its files go to moving/, which is then renamed replaced/, and come back the same way. So the folders that are found after a
 * kill say what to do: if there is moving/, it and the run's folder hold files of the old run only; if there is replaced/, all
 * files beside it are the new run's. */

static const char *const files[] = {"last.ckpt", "best.ckpt", "metrics.jsonl", "config.txt", ADAPTED_BASE};
enum {
    NUM_FILES = sizeof files / sizeof *files,
    OF_A_RUN = 3, /* config.txt and the base alone are no run */
    ALL_BUT_BASE = 4
};

static int is_by_step(const char *name) { return !strncmp(name, "step_", 5); }

/* The path of a run's file in a subfolder; "" is the run's folder itself, in which samples have a folder of their own. */
static void path_in(const Run *run, const char *sub, const char *name, char *path, size_t size) {
    const int is_sample = is_by_step(name) && !run_is_numbered(name, NULL);
    snprintf(path, size, "%s/%s/%s", run->folder, *sub ? sub : is_sample ? "samples" : ".", name);
}

static int transfer_file(const Run *run, const char *from, const char *to, const char *name) {
    char old[4 * OPTION_TEXT], new[4 * OPTION_TEXT];
    path_in(run, from, name, old, sizeof old);
    if (to) path_in(run, to, name, new, sizeof new);
    if ((to ? rename(old, new) : unlink(old)) == 0 || errno == ENOENT) return LLMC_OK;
    return run_system_error(old, to ? "moved" : "removed");
}

/* Transfers the files of a folder that are named by their step; if `numbered`, only checkpoints. */
static int transfer_by_step(const Run *run, const char *folder, int numbered, const char *from, const char *to) {
    char path[2 * OPTION_TEXT];
    int rc = LLMC_OK;
    run_path(run, folder, path, sizeof path);
    DIR *dir = opendir(path);
    for (struct dirent *entry; dir && rc == 0 && (entry = readdir(dir));)
        if (is_by_step(entry->d_name) && (!numbered || run_is_numbered(entry->d_name, NULL)))
            rc = transfer_file(run, from, to, entry->d_name);
    if (dir) closedir(dir);
    return rc;
}

/* Moves every file of a run from one subfolder to another; removes them if `to` is NULL. */
static int transfer(const Run *run, const char *from, const char *to) {
    for (int i = 0; i < NUM_FILES; i++) TRY(transfer_file(run, from, to, files[i]));
    if (!*from) TRY(transfer_by_step(run, ".", 1, from, to));
    return transfer_by_step(run, *from ? from : "samples", 0, from, to);
}

static int rename_within(const Run *run, const char *from, const char *to) {
    char old[2 * OPTION_TEXT], new[2 * OPTION_TEXT];
    run_path(run, from, old, sizeof old);
    run_path(run, to, new, sizeof new);
    return rename(old, new) == 0 ? LLMC_OK : run_system_error(old, "moved");
}

static int empty_into(const Run *run, const char *from, const char *to) {
    char path[2 * OPTION_TEXT];
    TRY(transfer(run, from, to));
    run_path(run, from, path, sizeof path);
    return rmdir(path) == 0 ? LLMC_OK : run_system_error(path, "removed");
}

static int set_aside(Run *run) {
    char path[2 * OPTION_TEXT];
    run_path(run, "moving", path, sizeof path);
    TRY(make_folder(path));
    run->replacing = 1;
    TRY(transfer(run, "", "moving"));
    return rename_within(run, "moving", "replaced");
}

/* Removes the old run if the new one has saved; else brings it back. */
static int settle(const Run *run) {
    if (holds_folder(run, "replaced")) {
        if (exists(run, "last.ckpt")) return empty_into(run, "replaced", NULL);
        TRY(transfer(run, "", NULL));
        TRY(rename_within(run, "replaced", "moving"));
    }
    return holds_folder(run, "moving") ? empty_into(run, "moving", "") : LLMC_OK;
}

/* ---- the base of adapters ----
 * A second name in the run's folder keeps it when its own run goes on, and lets it go along when the folder is moved. Where the
 * system gives none, as on another disk, only the path that the adapters' file has leads to it. */

static int needs_base(const Run *run, int in_place) { return *run->base && !(in_place && exists(run, ADAPTED_BASE)); }

/* Links it under a name for a moment, before this folder's files, of which it may be one, are set aside. */
static int link_base(const Run *run) {
    char beside[2 * OPTION_TEXT];
    run_path(run, ADAPTED_BASE ".tmp", beside, sizeof beside);
    unlink(beside); /* a process that was killed may have left one */
    return linkat(AT_FDCWD, run->base, AT_FDCWD, beside, AT_SYMLINK_FOLLOW) == 0;
}

static int put_base(const Run *run, int linked) {
    char beside[2 * OPTION_TEXT], path[2 * OPTION_TEXT];
    run_path(run, ADAPTED_BASE ".tmp", beside, sizeof beside);
    run_path(run, ADAPTED_BASE, path, sizeof path);
    if (linked && rename(beside, path) < 0) return run_system_error(path, "put in place");
    if (linked) unlink(beside); /* rename leaves it if both names already are the same file */
    else if (!is_same_file(path, run->base)) unlink(path); /* it would be taken for the base of this run */
    return LLMC_OK;
}

/* ---- the folder ---- */

/* True if there is no config.txt, or one that a run has written. */
static int is_our_config(const Run *run) {
    char path[2 * OPTION_TEXT], line[sizeof CONFIG_BEGIN];
    run_path(run, "config.txt", path, sizeof path);
    FILE *f = fopen(path, "re");
    const int ours = !f || (fgets(line, sizeof line, f) && !strcmp(line, CONFIG_BEGIN));
    if (f) fclose(f);
    return ours;
}

static int check_free(const Run *run, int overwrite) {
    int holds = 0;
    for (int i = 0; i < OF_A_RUN; i++) holds |= exists(run, files[i]);
    CHECK(holds || overwrite || run_reached(run->folder) < 0, LLMC_EINVAL,
          "%s holds a run's older checkpoints: replace them with --overwrite, or name another --out", run->folder);
    CHECK(holds || overwrite || is_our_config(run), LLMC_EINVAL,
          "%s holds a config.txt that is no run's, which would be replaced: name another --out", run->folder);
    CHECK(!holds || overwrite || exists(run, "last.ckpt"), LLMC_EINVAL,
          "%s holds a run that saved nothing: replace it with --overwrite, or name another --out", run->folder);
    CHECK(!holds || overwrite, LLMC_EINVAL,
          "%s holds a run: continue it with --resume=%s, replace it with --overwrite, or name another --out",
          run->folder, run->folder);
    return LLMC_OK;
}

static int lock_folder(Run *run) {
    run->lock = open(run->folder, O_RDONLY | O_CLOEXEC);
    if (run->lock < 0) return run->lock = 0, run_system_error(run->folder, "opened");
    CHECK(flock(run->lock, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK, LLMC_EINVAL,
          "%s is in use by another run: wait for it, or name another --out", run->folder);
    return LLMC_OK;
}

int run_settle(const char *folder) {
    Run run = {0};
    snprintf(run.folder, sizeof run.folder, "%s", folder);
    if (!holds_folder(&run, "replaced") && !holds_folder(&run, "moving")) return LLMC_OK;
    int rc = lock_folder(&run);
    if (rc == 0) rc = settle(&run);
    run_close(&run);
    return rc;
}

/* Refuses a path that is a file, or leads through one: no folder can be made there. */
static int check_path(const char *path) {
    char part[OPTION_TEXT];
    for (size_t n = 1;; n++) {
        n += strcspn(path + n, "/");
        snprintf(part, sizeof part, "%.*s", (int)n, path);
        CHECK(access(part, F_OK) < 0 || is_folder(part), LLMC_EIO,
              "%s cannot be made: %s is not a folder; name another --out", path, part);
        if (!path[n]) return LLMC_OK;
    }
}

int run_replaces(const char *out, const char *path) {
    char own[OPTION_TEXT + PATH_MAX], absolute[PATH_MAX];
    if (!realpath(path, absolute)) return 0;
    const char *name = strrchr(absolute, '/') + 1;
    int is_own = run_is_numbered(name, NULL);
    for (int i = 0; i < ALL_BUT_BASE; i++) is_own |= !strcmp(name, files[i]);
    snprintf(own, sizeof own, "%s/%s", out, name);
    return is_own && is_same_file(own, absolute);
}

int run_check(const llmc_options *options) {
    Run run = {0};
    if (!*options->out || !strcmp(options->out, "auto")) return LLMC_OK;
    TRY(check_path(options->out));
    TRY(run_settle(options->out));
    snprintf(run.folder, sizeof run.folder, "%s", options->out);
    return check_free(&run, (int)options->overwrite);
}

static int write_config(const Run *run, const llmc_options *options, const char *history) {
    char path[2 * OPTION_TEXT];
    char *text = options_config(options, history ? history : "");
    if (!text) return LLMC_ENOMEM;
    run_path(run, "config.txt", path, sizeof path);
    const int rc = write_file(path, text, strlen(text));
    free(text);
    return rc;
}

/* Lets a run that goes back to an earlier checkpoint go on from there after a kill, too, before anything of later steps goes. */
static int go_back(const Run *run, const char *to) {
    char path[2 * OPTION_TEXT], last[2 * OPTION_TEXT];
    const int linked = strcmp(to, "last.ckpt") ? run_link(run, to, "last.ckpt") : 1;
    if (linked) return linked;
    run_path(run, to, path, sizeof path); /* a file has one name here */
    run_path(run, "last.ckpt", last, sizeof last);
    return rename(path, last) == 0 ? LLMC_OK : run_system_error(path, "moved");
}

int run_open(Run *run, const llmc_options *options, const char *history, const char *from, int64_t step,
             int evaluated) {
    char path[2 * OPTION_TEXT];
    const int in_place = from != NULL;
    snprintf(run->folder, sizeof run->folder, "%s", options->out);
    if (!*run->folder) return LLMC_OK;
    if (!strcmp(run->folder, "auto")) TRY(next_free_folder(run));
    run_path(run, "samples", path, sizeof path);
    TRY(make_folders(path));
    TRY(lock_folder(run));
    TRY(settle(run));
    if (in_place) TRY(go_back(run, from));
    if (in_place) TRY(drop_later_metrics(run, step, evaluated));
    else TRY(check_free(run, (int)options->overwrite));
    const int needs = needs_base(run, in_place), linked = needs && link_base(run);
    if (!in_place && options->overwrite) TRY(set_aside(run));
    if (needs) TRY(put_base(run, linked));
    TRY(write_config(run, options, history));
    run_path(run, "metrics.jsonl", path, sizeof path);
    run->metrics = fopen(path, "ae");
    return run->metrics ? LLMC_OK : run_system_error(path, "written");
}

void run_saved(Run *run) {
    if (run->replacing) settle(run); /* files that cannot be removed now are removed when the folder is next opened */
    run->replacing = 0;
}

void run_close(Run *run) {
    char reason[1024];
    snprintf(reason, sizeof reason, "%s", llmc_last_error());
    if (run->replacing && settle(run) < 0)
        llmc_fail(LLMC_EIO, "%s", reason); /* the reason why the run ends says more */
    run->replacing = 0;
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
