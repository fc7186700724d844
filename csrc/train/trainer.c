/* The training loop as a step machine. It alone decides when to evaluate, sample, save and stop. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "model/gpt2.h"
#include "train/trainer.h"

/* Between two steps the machine goes through EVALUATE, SAMPLE, SAVE and EXAMINE; ACCUMULATE and UPDATE make the next step. */
enum { OPEN, BEGIN, EVALUATE, SAMPLE, SAVE, EXAMINE, ACCUMULATE, UPDATE, LEAVE, FINISHED };

/* ---- life ---- */

static llmc_trainer *new_trainer(const llmc_options *options) {
    llmc_trainer *t = calloc(1, sizeof *t);
    if (!t) llmc_fail(LLMC_ENOMEM, "no memory for a trainer");
    if (!t) return NULL;
    t->options = *options;
    t->team = options->team ? *options->team : (llmc_team){.world = 1, .local = 1};
    return t;
}

static int check(llmc_trainer *t) {
    TRY(setup_check(t));
    return setup_needs_data_made(t);
}

int llmc_trainer_check(const llmc_options *options) {
    llmc_trainer *t = new_trainer(options);
    const int rc = t ? meet_in_turn(t, check) : LLMC_ENOMEM;
    llmc_trainer_free(t);
    return rc;
}

int llmc_trainer_new(llmc_trainer **out, const llmc_options *options) {
    llmc_trainer *t = new_trainer(options);
    *out = NULL;
    if (!t) return LLMC_ENOMEM;
    t->best_val_loss = INFINITY;
    t->val_loss = NAN;
    t->kept = t->best_step = -1;
    t->text = calloc(1, TEXT_SIZE), t->text_capacity = TEXT_SIZE;
    int rc = t->text ? setup_open(t) : llmc_fail(LLMC_ENOMEM, "no memory for a trainer's text");
    rc = meet(t, rc);
    if (rc >= 0) rc = agree_on_setup(t);
    if (rc < 0) llmc_trainer_free(t);
    else *out = t;
    return rc;
}

void llmc_trainer_free(llmc_trainer *t) {
    if (!t) return;
    run_close(&t->run);
    llmc_loader_free(t->train);
    for (int i = 0; i < t->num_vals; i++) llmc_loader_free(t->vals[i].loader);
    llmc_tokenizer_free(t->tokenizer);
    llmc_model_free(t->model);
    llmc_file_free(t->file);
    free(t->inputs);
    free(t->losses);
    free(t->targets);
    free(t->text);
    free(t->history);
    llmc_options_free(t->before);
    free(t);
}

void llmc_trainer_stop(llmc_trainer *t) { meet_ask_stop(t, 1); }
int llmc_trainer_yield_gradients(llmc_trainer *t, int on) { return t->yield_gradients = on, LLMC_OK; }
llmc_model *llmc_trainer_model(llmc_trainer *t) { return t->model; }
llmc_tokenizer *llmc_trainer_tokenizer(llmc_trainer *t) { return t->tokenizer; }
const char *llmc_trainer_out(const llmc_trainer *t) { return t->run.folder; }
int llmc_trainer_note(llmc_trainer *t, const char *line) { return run_metric(&t->run, line); }

int llmc_trainer_option(const llmc_trainer *t, const char *name, char *value, size_t size) {
    return llmc_options_get(&t->options, name, value, size);
}

/* ---- one step ---- */

/* Applies the gradients, unless no target is learnt (a loss mask), or --skip_outliers finds that the loss or their norm is an
 * outlier. Such a step counts, too. */
static int apply(llmc_trainer *t) {
    const llmc_options *o = &t->options;
    const llmc_adamw hyper = {t->lr, o->beta1, o->beta2, o->eps, o->weight_decay, 0};
    const int learns = !step_learns_nothing(t);
    t->skipped = NULL;
    if (learns && o->skip_outliers > 0)
        t->skipped = outliers_find(&t->outliers, t->loss, t->norm, o->skip_outliers, &t->z);
    if (learns && !t->skipped) return llmc_model_update(t->model, &hyper, 1);
    gpt2_skip_update(t->model);
    return LLMC_OK;
}

static int update(llmc_trainer *t) {
    float norm = 0;
    TRY(length_rate(t));
    const int rc = llmc_model_grad_norm(t->model, (float)t->options.grad_clip, &norm); /* the one wait of a step */
    if (rc < 0 && rc != LLMC_ENUMERIC) return rc;
    t->loss = step_loss(t);
    if (!isfinite(t->loss)) return tell_nonfinite(t, "loss", t->loss);
    if (rc < 0) return tell_nonfinite(t, "gradient", norm);
    t->norm = norm;
    TRY(apply(t));
    t->step++;
    t->tokens += t->windows * t->T;
    return LLMC_OK;
}

/* ---- what an event says ---- */

static void measure(llmc_trainer *t, llmc_event *e) {
    const double tokens = (double)t->windows * t->T;
    e->ms = (tell_now() - t->started) * 1e3;
    t->ms = t->ms > 0 ? 0.95 * t->ms + 0.05 * e->ms : e->ms;
    e->tok_s = (double)t->read / e->ms * 1e3;
    e->eta_s = (double)(t->options.max_steps - t->step) * t->ms * 1e-3;
    if (t->options.batch_ramp_tokens) e->eta_s = (double)(t->all_tokens - t->tokens) / tokens * t->ms * 1e-3;
}

/* Appends what only some steps have: a batch of their own size or of several processes, an outlier. */
static void add_special(const llmc_trainer *t, const char *batch, const char *skipped, Growing *text) {
    const int told = t->options.batch_ramp_tokens || t->team.world > 1 || trainer_has_other_batch(t);
    if (told) growing_add(text, batch, (long long)(t->windows * t->T));
    if (t->skipped) growing_add(text, skipped, t->skipped, t->z);
}

static int write_step(llmc_trainer *t, const llmc_event *e) {
    Growing line = {0};
    growing_add(&line, "{\"step\": %lld, \"loss\": %.9g, \"lr\": %.9g, \"norm\": %.9g, \"ms\": %.3f, \"tok_s\": %.1f",
                (long long)t->step, t->loss, t->lr, t->norm, e->ms, e->tok_s);
    add_special(t, ", \"batch\": %lld", ", \"skipped\": \"%s\", \"z\": %.9g", &line);
    growing_add(&line, "}\n");
    return tell_metric(t, &line);
}

static int tell_step(llmc_trainer *t, const llmc_event *e) {
    const long long last = t->options.max_steps;
    Growing line = {0};
    char eta[32];
    tell_clock(e->eta_s, eta, sizeof eta);
    growing_add(&line, "step %*lld/%lld | loss %.4f | lr %.2e | norm %.3f | %.1f ms | %.0f tok/s | ETA %s",
                snprintf(NULL, 0, "%lld", last), (long long)t->step, last, t->loss, t->lr, t->norm, e->ms, e->tok_s,
                eta);
    add_special(t, " | batch %lld", " | skipped: the %s is an outlier, z-score %.2f", &line);
    return tell_line(t, &line);
}

static int announce_step(llmc_trainer *t, llmc_event *e) {
    const llmc_options *o = &t->options;
    measure(t, e);
    TRY(write_step(t, e));
    if (t->step % o->log_every == 0 || t->step == 1 || t->step == o->max_steps || t->skipped) TRY(tell_step(t, e));
    if (step_learns_nothing(t)) tell_nothing_learnt(t);
    return LLMC_STEP;
}

/* ---- the machine ---- */

static int begin(llmc_trainer *t) {
    if (t->options.plan || t->stop) return t->phase = FINISHED, LLMC_OK;
    t->doing = LOADING;
    int rc = meet(t, setup_model(t));
    if (rc >= 0) rc = agree_on_weights(t);
    if (rc >= 0 && (t->team.world == 1 || !t->stop)) rc = setup_run(t);
    if (rc == LLMC_STOPPED || (rc >= 0 && t->team.world > 1 && t->stop))
        return t->stop = 1, t->phase = FINISHED, LLMC_OK;
    t->phase = t->evaluated == EVALUATED ? SAVE : t->evaluated == VALIDATED ? SAMPLE : EVALUATE;
    return rc;
}

static int at_evaluate(llmc_trainer *t) {
    t->phase = SAMPLE;
    const int wanted = t->num_vals && !t->stop && between_due(t, t->options.val_every);
    const int rc = wanted ? between_evaluate(t) : LLMC_OK;
    if (!wanted ? !t->stop : rc == LLMC_EVAL)
        t->evaluated = VALIDATED; /* not after a stop, which skips the validation */
    return rc;
}

static int at_sample(llmc_trainer *t) {
    t->phase = SAVE;
    const int wanted = t->tokenizer && !t->stop && t->step && between_due(t, t->options.sample_every);
    const int rc = wanted ? between_sample(t) : LLMC_OK;
    if (!wanted ? !t->stop : rc == LLMC_SAMPLE) t->evaluated = EVALUATED;
    return rc;
}

/* A run that was stopped before its first step is saved too, so that it can be resumed; but not over a run that is being
 * replaced, which comes back instead. */
static int may_save(const llmc_trainer *t) {
    const int replacing = t->options.overwrite && !t->saved;
    return meet_keeps(t) && (t->step || (t->stop && !replacing));
}

const char *trainer_started_from(const llmc_trainer *t) {
    const char *slash = strrchr(t->start_file, '/');
    return slash ? slash + 1 : t->start_file;
}

/* True if the run goes on in its own folder, from last.ckpt. */
static int started_from_last(const llmc_trainer *t) {
    return t->in_place && !strcmp(trainer_started_from(t), "last.ckpt");
}

static int at_save(llmc_trainer *t) {
    const int ending = t->stop || t->step >= between_last(t);
    const int wanted = ending || between_due(t, t->options.checkpoint_every);
    const int fresh = t->resumed && t->started == 0 && t->found == t->evaluated; /* as the checkpoint has it */
    if (fresh && started_from_last(t))
        TRY(between_keep(t)); /* a kill may have come before last.ckpt got its second name */
    if (fresh && ending && !t->stop) return t->phase = EXAMINE, tell_nothing_to_do(t), LLMC_CHECKPOINT;
    const int kind = may_save(t) && wanted && !fresh ? between_save_last(t) : LLMC_OK;
    if (kind >= 0) t->phase = EXAMINE; /* not if saving failed: rescue() is for ACCUMULATE alone */
    return kind;
}

/* An exam may take hours, so it comes after the checkpoint: a run that is killed meanwhile loses no step, and is told of the exam
 * again once it is resumed. */
static int at_examine(llmc_trainer *t) {
    t->phase = t->stop || t->step >= between_last(t) ? LEAVE : ACCUMULATE;
    if (t->stop || !between_exam_due(t)) return LLMC_OK;
    return t->doing = EXAMINING, LLMC_EXAM;
}

/* Forgets the present step, as if it had never begun. */
static int drop_step(llmc_trainer *t) {
    t->phase = SAVE;
    return llmc_loader_set_position(t->train, t->position);
}

static int at_accumulate(llmc_trainer *t) {
    if (t->stop) return t->phase = SAVE, LLMC_OK; /* the stop came while a checkpoint was written */
    t->started = tell_now();
    if (t->options.overfit_batch) TRY(llmc_loader_set_position(t->train, 0));
    t->position = llmc_loader_position(t->train);
    t->windows = length_windows(t);
    const int rc = step_accumulate(t);
    if (rc <= 0) return rc < 0 ? meet_after_step(t, rc) : drop_step(t);
    t->phase = UPDATE;
    if (!t->yield_gradients) return LLMC_OK;
    t->loss = step_loss(t);
    return isfinite(t->loss) ? LLMC_GRADIENTS : meet_after_step(t, tell_nonfinite(t, "loss", t->loss));
}

static int at_update(llmc_trainer *t, llmc_event *e) {
    TRY(meet_after_step(t, update(t)));
    t->phase = meet_is_due(t) ? EVALUATE : ACCUMULATE;
    t->evaluated = NOT_EVALUATED;
    return announce_step(t, e);
}

/* Makes one move: the kind of event that it made, or 0 to go on. */
static int move(llmc_trainer *t, llmc_event *e) {
    switch (t->phase) {
    case OPEN: t->phase = BEGIN; return trainer_announce_plan(t);
    case BEGIN: return begin(t);
    case EVALUATE: return at_evaluate(t);
    case SAMPLE: return at_sample(t);
    case SAVE: return at_save(t);
    case EXAMINE: return at_examine(t);
    case ACCUMULATE: return at_accumulate(t);
    case UPDATE: return at_update(t, e);
    default: return t->phase = FINISHED, LLMC_OK;
    }
}

/* Saves the steps so far when data cannot be read within a step: the weights are still those of the step before, but with --diloco
 * those of one process. */
static void rescue(llmc_trainer *t, int status) {
    char reason[1024];
    snprintf(reason, sizeof reason, "%s", llmc_last_error());
    const int saved = !t->options.diloco && meet_keeps(t) && t->step &&
                      llmc_loader_set_position(t->train, t->position) == 0 &&
                      between_save_alone(t, "last.ckpt", 1) == 0;
    llmc_fail(status, "%s%s", reason, saved ? "; the steps so far are saved, continue with --resume" : "");
}

int llmc_trainer_next(llmc_trainer *t, llmc_event *e) {
    int kind = LLMC_DONE;
    *e = (llmc_event){0};
    t->text[0] = 0, t->sample_size = 0;
    while (kind == LLMC_DONE && t->phase != FINISHED) kind = move(t, e);
    if (kind < 0) {
        if (t->phase == ACCUMULATE && (kind == LLMC_EIO || kind == LLMC_EFORMAT)) rescue(t, kind);
        t->phase = FINISHED;
    }
    if (t->phase == FINISHED) run_close(&t->run);
    e->kind = kind, e->step = t->step, e->tokens = t->tokens;
    e->text = t->text, e->text_size = t->sample_size ? t->sample_size : (int64_t)strlen(t->text);
    e->loss = t->loss, e->val_loss = t->val_loss, e->lr = t->lr, e->norm = t->norm;
    e->skipped = kind == LLMC_STEP && t->skipped;
    return kind;
}
