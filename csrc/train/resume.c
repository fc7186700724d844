/* Going on with a run: the options of its checkpoint, its state, and what this call changes. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/binfile.h"
#include "base/error.h"
#include "base/growing.h"
#include "files/runfolder.h"
#include "files/state.h"
#include "train/trainer.h"

/* ---- resume: the options of the checkpoint, unless the call gave others ---- */

/* Takes a line of the record: name=value, or a # comment of an earlier resume, which joins the history. Changes the line. */
static int adopt_option(llmc_trainer *t, char *line, Growing *history) {
    llmc_options *options = &t->options;
    char *value = strchr(line, '=');
    if (*line == '#') growing_add(history, "%s\n", line);
    if (*line == '#' || !value) return LLMC_OK;
    *value++ = 0;
    CHECK(strcmp(line, "model") || !options->model_given || !strcmp(options->model, value), LLMC_EINVAL,
          "--model=%s, but %s goes on with the model it has, which began as %s: leave the option out", options->model,
          options->resume, value);
    TRY(options_adopt(t->before, line, value));
    return options_adopt(options, line, value);
}

static int adopt_options(llmc_trainer *t) {
    char *rest = NULL;
    const int size = llmc_file_section(t->file, "OPTIONS ", NULL, 0);
    TRY(size);
    char *text = calloc(1, (size_t)size + 1);
    Growing history = {0};
    t->before = llmc_options_new();
    int rc = text && t->before ? llmc_file_section(t->file, "OPTIONS ", text, size)
                               : llmc_fail(LLMC_ENOMEM, "no memory for the checkpoint's options");
    for (char *line = rc < 0 ? NULL : strtok_r(text, "\n", &rest); rc >= 0 && line; line = strtok_r(NULL, "\n", &rest))
        rc = adopt_option(t, line, &history);
    free(text);
    t->history = growing_end(&history);
    return rc < 0 ? rc : t->history ? LLMC_OK : LLMC_ENOMEM;
}

static int find_checkpoint(const llmc_options *o, char *path, size_t size) {
    runfolder_resume(o->resume, path, size);
    CHECK(access(path, R_OK) == 0, LLMC_EIO, "--resume=%s: %s cannot be read: %s%s", o->resume, path, strerror(errno),
          remedy_for(errno));
    return LLMC_OK;
}

static void folder_of(const char *path, char *folder, size_t size) {
    const char *slash = strrchr(path, '/');
    if (is_folder(path)) snprintf(folder, size, "%s", path);
    else snprintf(folder, size, "%.*s", slash ? (int)(slash - path) : 1, slash ? path : ".");
}

int llmc_options_settle_resume(llmc_options *o) {
    char path[2 * OPTION_TEXT];
    if (strcmp(o->resume, "auto") != 0) return LLMC_OK;
    CHECK(*o->out && strcmp(o->out, "auto") != 0, LLMC_EINVAL,
          "--resume=auto goes on with the run in --out, and that names none: give --out=runs/NAME");
    if (!o->team || !o->team->rank) TRY(run_settle(o->out));
    snprintf(path, sizeof path, "%s/last.ckpt", o->out);
    if (access(path, F_OK) == 0) return llmc_options_set(o, "resume", o->out);
    CHECK(errno == ENOENT || errno == ENOTDIR, LLMC_EIO, "%s cannot be read: %s%s", path, strerror(errno),
          remedy_for(errno));
    CHECK(run_reached(o->out) < 0, LLMC_EINVAL,
          "--resume=auto: %s has no last.ckpt, but older checkpoints: name one of them with --resume, or another --out",
          o->out);
    *o->resume = 0, o->resume_given = 0;
    o->overwrite = 1; /* a run that was ended before its first checkpoint begins again */
    return LLMC_OK;
}

int resume_open(llmc_trainer *t) {
    llmc_options *o = &t->options;
    TRY(llmc_options_settle_resume(o));
    char folder[OPTION_TEXT];
    CHECK(*o->resume || !o->resume_given, LLMC_EINVAL, "--resume is empty: name a run folder or a checkpoint");
    if (!*o->resume) return LLMC_OK;
    t->resumed = 1;
    folder_of(o->resume, folder, sizeof folder);
    if (!t->team.rank) TRY(run_settle(folder));
    TRY(find_checkpoint(o, t->start_file, sizeof t->start_file));
    if (!o->out_given) TRY(llmc_options_set(o, "out", folder));
    t->in_place = t->saved = strcmp(o->out, "auto") && is_same_file(o->out, folder);
    TRY(llmc_file_open(&t->file, t->start_file));
    return adopt_options(t);
}

int resume_check_later_steps(const llmc_trainer *t) {
    char state[STATE_TEXT];
    if (is_folder(t->options.resume)) return LLMC_OK; /* its last checkpoint is the step that the run has come to */
    TRY(state_read(t->file, state));
    const int64_t step = state_whole(state, "step", 0), reached = run_reached(t->options.out);
    CHECK(
        reached <= step || t->options.overwrite, LLMC_EINVAL,
        "--resume=%s is at step %lld, and %s has come to step %lld: name another --out, or drop its later checkpoints "
        "and best.ckpt with --overwrite",
        t->options.resume, (long long)step, t->options.out, (long long)reached);
    return LLMC_OK;
}

/* Losses of other windows do not compare, so the present step is validated again. */
static void forget_validations(llmc_trainer *t) {
    t->best_val_loss = INFINITY, t->best_step = -1, t->stale = 0;
    t->val_loss = t->vals[0].loss = NAN;
    t->evaluated = NOT_EVALUATED;
}

int resume_restore(llmc_trainer *t) {
    char state[STATE_TEXT];
    TRY(state_read(t->file, state));
    t->step = state_whole(state, "step", 0);
    t->tokens = state_whole(state, "tokens", 0);
    t->best_val_loss = state_number(state, "best_val_loss", INFINITY);
    t->best_step = state_whole(state, "best_step", -1);
    CHECK(t->step == llmc_model_step(t->model), LLMC_EINVAL,
          "%s holds no moments, so it cannot be resumed bit for bit: resume from last.ckpt, or start from it with "
          "--model",
          t->start_file);
    t->found = t->evaluated = (int)state_whole(state, "evaluated", 0);
    t->val_loss = state_number(state, "val_loss", NAN);
    t->vals[0].loss = t->val_loss;
    t->stale = t->options.patience ? state_whole(state, "stale", 0) : 0;
    const int same = valsets_same_first(t, state);
    TRY(same);
    if (!same) forget_validations(t);
    t->early = t->options.patience && t->stale >= t->options.patience;
    if (t->options.skip_outliers > 0) outliers_read(&t->outliers, state);
    return llmc_loader_set_position(t->train, state_whole(state, "position", 0));
}

int resume_note_changes(llmc_trainer *t) {
    Growing history = {0};
    char old[OPTION_TEXT], new[OPTION_TEXT];
    int changes = 0;
    growing_add(&history, "%s", t->history);
    for (EACH_OPTION(o, &t->options)) {
        option_value(t->before, o, old);
        option_value(&t->options, o, new);
        if (!option_is_of_run(o) || !strcmp(old, new)) continue;
        if (!changes++) growing_add(&history, "# until step %lld:", (long long)t->step);
        growing_add(&history, " --%s=%s", o->name, old);
    }
    if (changes) growing_add(&history, "\n");
    free(t->history);
    t->history = growing_end(&history);
    return t->history ? LLMC_OK : LLMC_ENOMEM;
}
