/* The words of a trainer for its user: what it is doing, what a resume changed, what the run leaves, and what to do next. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "base/error.h"
#include "base/growing.h"
#include "base/pulse.h"
#include "base/quote.h"
#include "files/state.h"
#include "model/layout.h"
#include "train/trainer.h"
#include "write/template.h"

/* ---- signs of life ---- */

void tell_clock(double seconds, char *text, size_t size) {
    const long s = seconds > 0 && seconds < 1e9 ? (long)seconds : 0;
    if (s >= 3600) snprintf(text, size, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    else snprintf(text, size, "%ld:%02ld", s / 60, s % 60);
}

enum { LONG_STEP = 500 }; /* ms: a shorter step needs no signs of life within it */

void tell_micro_step(llmc_trainer *t, int i) {
    if (t->ms > 0 && t->ms < LONG_STEP) return;
    meet_ask_stop(t, pulse("step %lld/%lld: micro-step %d of %d", (long long)t->step + 1,
                           (long long)t->options.max_steps, i + 1, length_micro_steps(t, t->windows)) < 0);
}

void tell_batch(llmc_trainer *t, const ValSet *set, int64_t i, int64_t batches, double loss, double seconds) {
    char so_far[96] = "", eta[32];
    tell_clock(i ? seconds / (double)i * (double)(batches - i) : 0, eta, sizeof eta);
    if (i) snprintf(so_far, sizeof so_far, ", loss %.4f so far, ETA %s", loss, eta);
    meet_ask_stop(t, pulse("step %lld: validation%s%s, batch %lld of %lld%s", (long long)t->step,
                           *set->name ? " of " : "", set->name, (long long)i + 1, (long long)batches, so_far) < 0);
}

void tell_token(llmc_trainer *t, int64_t i) {
    meet_ask_stop(t, pulse("step %lld: sample, token %lld of at most %lld", (long long)t->step, (long long)i + 1,
                           (long long)t->options.sample_tokens) < 0);
}

void tell_nothing_learnt(llmc_trainer *t) {
    const size_t n = strlen(t->text);
    if (t->told_nothing++) return;
    snprintf(
        t->text + n, TEXT_SIZE - n,
        "%sstep %lld | every target of its batch is masked, so it learnt nothing: raise --B or --T if this is frequent "
        "(told once)",
        n ? "\n" : "", (long long)t->step);
}

const char *llmc_trainer_stopping(const llmc_trainer *t) {
    if (t->options.diloco && (t->doing == STEPPING || t->doing == MICRO_STEPPING))
        return "stopping at the next exchange (--diloco); again to quit now";
    switch (t->doing) {
    case STEPPING: return "stopping after this step; again to quit now";
    case MICRO_STEPPING: return "stopping after this micro-step; again to quit now";
    case VALIDATING: return "stopping after this batch of the validation; again to quit now";
    case SAMPLING: return "stopping after this token of the sample; again to quit now";
    case EXAMINING: return "stopping after this batch of --eval_tasks; again to quit now";
    case SAVING: return "stopping after this checkpoint; again to quit now";
    default: return "stopping; again to quit now";
    }
}

/* ---- the text of an event ---- */

double tell_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int tell_reserve(llmc_trainer *t, int64_t size) {
    if (size <= t->text_capacity) return LLMC_OK;
    char *text = realloc(t->text, (size_t)(2 * size));
    CHECK(text, LLMC_ENOMEM, "no memory for a text of %lld bytes", (long long)size);
    return t->text = text, t->text_capacity = 2 * size, LLMC_OK;
}

int tell_text(llmc_trainer *t, const char *text) {
    TRY(tell_reserve(t, (int64_t)strlen(text) + 1));
    strcpy(t->text, text);
    return LLMC_OK;
}

int tell_nonfinite(llmc_trainer *t, const char *what, double value) {
    char name[128];
    TRY(llmc_model_find_nonfinite(t->model, name, sizeof name));
    llmc_fail(LLMC_ENUMERIC, "step %lld: the %s is %g, first seen in %s; %s with a lower --lr or --grad_clip",
              (long long)t->step + 1, what, value, *name ? name : "the gradient norm",
              t->saved ? "the last checkpoint is untouched: --resume from it" : "nothing was saved yet: start again");
    if (t->options.diloco && t->doing != VALIDATING) return LLMC_ENUMERIC; /* the others are apart */
    return meet_fail(t, LLMC_ENUMERIC, *name != 0); /* the tensor may have been seen by another process only */
}

int tell_line(llmc_trainer *t, Growing *line) {
    char *text = growing_end(line);
    const int rc = text ? tell_text(t, text) : LLMC_ENOMEM;
    free(text);
    return rc;
}

int tell_metric(llmc_trainer *t, Growing *line) {
    char *text = growing_end(line);
    const int rc = text ? run_metric(&t->run, text) : LLMC_ENOMEM;
    free(text);
    return rc;
}

void tell_early(const llmc_trainer *t, Growing *text) {
    growing_add(text, "stopped early: %lld validation%s in a row without a better loss than %.4f", (long long)t->stale,
                s_of(t->stale), t->best_val_loss);
    if (t->best_step >= 0) growing_add(text, " at step %lld", (long long)t->best_step);
}

/* ---- a resumed run ---- */

void tell_nothing_to_do(llmc_trainer *t) {
    char reached[64];
    length_name(t, 1, reached, sizeof reached);
    if (t->early) snprintf(reached, sizeof reached, "--patience=%lld", (long long)t->options.patience);
    snprintf(t->text, TEXT_SIZE, "step %lld | %s is reached: nothing to do, raise it to go on", (long long)t->step,
             reached);
}

/* Adds each option whose value differs from the checkpoint's record. Options of one call, such as --out, do not count. */
static void add_changes(Growing *text, const llmc_options *before, const llmc_options *after) {
    char old[OPTION_TEXT], new[OPTION_TEXT];
    for (EACH_OPTION(o, after)) {
        if (o->of_call) continue;
        option_value(before, o, old);
        option_value(after, o, new);
        if (strcmp(old, new)) growing_add(text, "\n%s: %s -> %s", o->name, *old ? old : "none", *new ? new : "none");
    }
}

int tell_resume(const llmc_trainer *t, Growing *text) {
    char state[STATE_TEXT];
    if (!t->resumed) return LLMC_OK;
    TRY(state_read(t->file, state));
    growing_add(text, "\nresume: %s, at step %lld of %lld", t->start_file, (long long)state_whole(state, "step", 0),
                (long long)t->options.max_steps);
    add_changes(text, t->before, &t->options);
    const double best = state_number(state, "best_val_loss", INFINITY);
    const int same = valsets_same_first(t, state);
    TRY(same);
    if (!same && isfinite(best))
        growing_add(text, "\nbest: the val loss of %.4f is forgotten, because validations read other windows now",
                    best);
    return LLMC_OK;
}

/* ---- the end ---- */

typedef struct Ending {
    const llmc_trainer *t;
    const char *program, *python;
    char folder[QUOTED], exported[QUOTED]; /* quoted for a shell, as is run */
    char run[QUOTED];                      /* the run or checkpoint to resume; "" if there is none */
    const char *merge;                     /* the option that the export needs, after a space; "" */
    int has_best, has_last, in_python;
} Ending;

static int has(const llmc_trainer *t, const char *name) {
    char path[2 * OPTION_TEXT];
    run_path(&t->run, name, path, sizeof path);
    return *t->run.folder && access(path, F_OK) == 0;
}

static void add_best(const Ending *e, Growing *text) {
    const llmc_trainer *t = e->t;
    if (!isfinite(t->best_val_loss)) return;
    growing_add(text, "best: val loss %s%s%.4f", t->vals[0].name, *t->vals[0].name ? " " : "", t->best_val_loss);
    if (t->best_step >= 0) growing_add(text, " at step %lld", (long long)t->best_step);
    if (e->has_best) growing_add(text, ", kept in %s/best.ckpt", t->run.folder);
    else if (*t->run.folder) growing_add(text, ", in the run that this one goes on from");
    growing_add(text, "\n");
}

static void add_last(const Ending *e, Growing *text) {
    const llmc_trainer *t = e->t;
    const int ended = t->step >= between_last(t);
    if (t->doing == LOADING && !(ended && t->resumed)) {
        growing_add(text, "stopped before the first step\n");
        return;
    }
    growing_add(text, ended ? "last: step %lld" : "stopped at step %lld of %lld", (long long)t->step,
                (long long)t->options.max_steps);
    if (t->options.overfit_batch && t->started > 0)
        growing_add(text, ", loss %.3g on the one batch that it trained on (--overfit_batch)", t->loss);
    if (ended && t->num_vals && t->evaluated && isfinite(t->val_loss)) {
        growing_add(text, ", val loss");
        valsets_tell(t, "", text);
    }
    if (e->has_last) growing_add(text, ", kept in %s/last.ckpt", t->run.folder);
    growing_add(text, "\n");
    if (!t->early) return;
    tell_early(t, text);
    growing_add(text, " (--patience=%lld)\n", (long long)t->options.patience);
}

/* Explains why nothing is kept, if there is no run folder. */
static void add_nothing_kept(const Ending *e, Growing *text) {
    const llmc_trainer *t = e->t;
    if (*t->run.folder || t->options.plan) return;
    if (!*t->options.out)
        growing_add(text, "nothing of it is kept, as --out is empty: --out=runs/NAME keeps a run, and so "
                          "does leaving --out away (the next free runs/NNN)\n");
    else growing_add(text, "nothing was written yet: start again\n");
}

/* A run with a template of turns can be talked with. ./chat_gpt2 lies beside ./train_gpt2, and beside ./train_gpt2_cuda. */
static void add_chat(const Ending *e, Growing *text) {
    const char *line, *slash = strrchr(e->program, '/'), *name = strstr(slash ? slash : e->program, "train_gpt2");
    if (template_kind(e->t->options.template, &line) != TEMPLATE_TEXT) return;
    if (e->in_python || !name) {
        growing_add(text, "  chat     %s -m pyllmc.chat %s\n", e->python, e->folder);
        return;
    }
    const char *behind = strchr(name, '\''); /* a path in quotes ends behind its name */
    growing_add(text, "  chat     %.*schat_gpt2%s %s\n", (int)(name - e->program), e->program, behind ? behind : "",
                e->folder);
}

static void add_write(const Ending *e, Growing *text) {
    const llmc_trainer *t = e->t;
    if (!t->tokenizer || !(e->has_best || e->has_last)) return;
    add_chat(e, text);
    if (e->in_python) growing_add(text, "  write    %s -m pyllmc.sample %s\n", e->python, e->folder);
    else growing_add(text, "  write    %s --model=%s --max_steps=0 --prompt=\n", e->program, e->folder);
    if (e->has_best && e->has_last && t->best_step != t->step)
        growing_add(text, "           (from best.ckpt; for the last step name %s/last.ckpt)\n", t->run.folder);
}

/* The option with which an ended run goes on. */
static void add_longer(const llmc_trainer *t, Growing *text) {
    char length[64];
    length_name(t, 2, length, sizeof length);
    if (t->early) growing_add(text, " --patience=%lld", (long long)(2 * t->options.patience));
    else if (t->step >= t->options.max_steps) growing_add(text, " %s", length);
}

static void add_go_on(const Ending *e, Growing *text) {
    const llmc_options *o = &e->t->options;
    if (!*e->run) return;
    const llmc_team *team = &e->t->team;
    growing_add(text, "  go on    ");
    if (team->world == 1) growing_add(text, "%s", e->program);
    else
        growing_add(text, "%s -m torch.distributed.run --nnodes=%d --nproc_per_node=%d -m pyllmc.train", e->python,
                    team->world / team->local, team->local);
    growing_add(text, " --resume=%s", e->run);
    add_longer(e->t, text);
    if (o->device_given && strcmp(o->device, "auto")) growing_add(text, " --device=%s", o->device);
    growing_add(text, "\n");
}

static void add_next(const Ending *e, Growing *text) {
    const llmc_trainer *t = e->t;
    if (!(e->has_best || e->has_last || *e->run)) return;
    growing_add(text, "next:\n");
    const int ended = t->step >= between_last(t);
    if (ended) add_write(e, text);
    add_go_on(e, text);
    if (!ended) add_write(e, text);
    if (!e->has_last) return;
    if (t->step) growing_add(text, "  draw     %s -m pyllmc.plot %s\n", e->python, e->folder);
    if (*e->exported)
        growing_add(text, "  export   %s -m pyllmc.convert %s %s%s\n", e->python, e->folder, e->exported, e->merge);
}

/* The export lies beside the run: a folder runs/demo-hf, also for adapters, with which those are merged if other tensors were
 * trained, too, because PEFT's adapter has no place for them. A banded model that was trained has biases which GPT-Neo,
 * in such a folder, cannot say, so it becomes llm.c's file, runs/demo.bin, with its adapters merged; "" if that cannot say it either
 * (pyllmc/convert/sayable.py). */
static void export_name(Ending *e) {
    const llmc_trainer *t = e->t;
    const llmc_config *c = &t->config;
    const int banded = c->window && c->window < c->maxT && strchr(c->pattern, 'L');
    const char *folder = t->run.folder, *ending = banded ? ".bin" : "-hf";
    char name[OPTION_TEXT + 5];
    size_t n = strlen(folder);
    e->merge = t->options.lora_rank && (banded || *t->options.train_only) ? " --merge" : "";
    *e->exported = 0;
    if (banded && (c->untied || !config_has_usual_pattern(c))) return;
    while (n > 1 && folder[n - 1] == '/') n--;
    snprintf(name, sizeof name, "%.*s%s", (int)n, folder, ending);
    quote(name, e->exported);
}

int llmc_trainer_ending(const llmc_trainer *t, const char *program, const char *python, char *buffer, size_t size) {
    Growing text = {0};
    Ending e = {.t = t, .program = program, .python = python};
    CHECK(size, LLMC_EINVAL, "a buffer of 0 bytes cannot hold the text of an ending");
    *buffer = 0;
    if (t->options.plan || (!t->stop && !t->options.max_steps)) return LLMC_OK;
    e.has_best = has(t, "best.ckpt"), e.has_last = has(t, "last.ckpt");
    e.in_python = !strncmp(program, python, strlen(python));
    quote(t->run.folder, e.folder);
    export_name(&e);
    if (e.has_last) quote(t->run.folder, e.run);
    else if (t->resumed) quote(t->options.resume, e.run);
    add_best(&e, &text);
    add_last(&e, &text);
    add_nothing_kept(&e, &text);
    add_next(&e, &text);
    const int n = growing_copy(&text, buffer, size);
    return n < 0 ? n : LLMC_OK;
}
