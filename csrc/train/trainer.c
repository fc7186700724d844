/* The training loop as a step machine. It alone decides when to evaluate, sample, save and stop. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/cores.h"
#include "base/error.h"
#include "model/gpt2.h"
#include "train/trainer.h"
#include "write/writer.h"

/* Between two steps the machine goes through EVALUATE, SAMPLE and SAVE; ACCUMULATE and UPDATE make the next step. */
enum { OPEN, BEGIN, EVALUATE, SAMPLE, SAVE, ACCUMULATE, UPDATE, FINISHED };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- life ---- */

int llmc_trainer_check(const llmc_options *options) {
    llmc_trainer *t = calloc(1, sizeof *t);
    CHECK(t, LLMC_ENOMEM, "no memory for a trainer");
    t->options = *options;
    int rc = setup_check(t);
    if (rc >= 0) rc = setup_needs_data_made(t);
    llmc_trainer_free(t);
    return rc;
}

int llmc_trainer_new(llmc_trainer **out, const llmc_options *options) {
    llmc_trainer *t = calloc(1, sizeof *t);
    *out = NULL;
    CHECK(t, LLMC_ENOMEM, "no memory for a trainer");
    t->options = *options;
    t->best_val_loss = INFINITY;
    t->val_loss = NAN;
    t->kept = t->best_step = -1;
    t->text = calloc(1, TEXT_SIZE), t->text_capacity = TEXT_SIZE;
    const int rc = t->text ? setup_open(t) : llmc_fail(LLMC_ENOMEM, "no memory for a trainer's text");
    if (rc < 0) llmc_trainer_free(t);
    else *out = t;
    return rc;
}

void llmc_trainer_free(llmc_trainer *t) {
    if (!t) return;
    run_close(&t->run);
    llmc_loader_free(t->train);
    llmc_loader_free(t->val);
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

void llmc_trainer_stop(llmc_trainer *t) { t->stop = 1; }
int llmc_trainer_yield_gradients(llmc_trainer *t, int on) { return t->yield_gradients = on, LLMC_OK; }
llmc_model *llmc_trainer_model(llmc_trainer *t) { return t->model; }
const char *llmc_trainer_out(const llmc_trainer *t) { return t->run.folder; }

/* ---- one step ---- */

/* Computes the gradients of all micro-steps: 1, or 0 if the run was stopped between two of them. */
static int accumulate(llmc_trainer *t) {
    const int micro_steps = (int)t->options.grad_accum;
    t->doing = micro_steps > 1 ? MICRO_STEPPING : STEPPING;
    for (int i = 0; i < micro_steps; i++) {
        if (!t->stop) tell_micro_step(t, i);
        if (i && t->stop) return 0;
        TRY(llmc_loader_next(t->train, t->inputs, t->targets));
        TRY(llmc_model_micro_step(t->model, t->inputs, t->targets, NULL, t->B, t->T, 1.0f / (float)micro_steps, i > 0,
                                  &t->losses[i]));
    }
    if (t->yield_gradients) TRY(llmc_model_sync(t->model));
    return 1;
}

/* The mean over the micro-steps, whose losses are there once the model has been waited for. */
static double mean_loss(const llmc_trainer *t) {
    const int micro_steps = (int)t->options.grad_accum;
    double loss = 0;
    for (int i = 0; i < micro_steps; i++) loss += (double)t->losses[i] / micro_steps;
    return loss;
}

/* Names the first tensor that is not finite. The weights are unharmed, since the step has not changed them yet. */
static int explain_nonfinite(llmc_trainer *t, const char *what, double value) {
    char name[128];
    TRY(llmc_model_find_nonfinite(t->model, name, sizeof name));
    FAIL(LLMC_ENUMERIC, "step %lld: the %s is %g, first seen in %s; %s with a lower --lr or --grad_clip",
         (long long)t->step + 1, what, value, *name ? name : "the gradient norm",
         t->saved ? "the last checkpoint is untouched: --resume from it" : "nothing was saved yet: start again");
}

static int update(llmc_trainer *t) {
    const llmc_options *o = &t->options;
    float norm = 0;
    TRY(llmc_schedule_lr(&t->lr, o->schedule, t->step, o->max_steps, o->warmup_steps, o->lr, o->final_lr_frac,
                         o->decay_frac));
    const llmc_adamw hyper = {t->lr, o->beta1, o->beta2, o->eps, o->weight_decay};
    const int rc = llmc_model_grad_norm(t->model, (float)o->grad_clip, &norm); /* the one wait of a step */
    if (rc < 0 && rc != LLMC_ENUMERIC) return rc;
    t->loss = mean_loss(t);
    if (!isfinite(t->loss)) return explain_nonfinite(t, "loss", t->loss);
    if (rc < 0) return explain_nonfinite(t, "gradient", norm);
    TRY(llmc_model_update(t->model, &hyper, 1));
    t->norm = norm;
    t->step++;
    t->tokens += (int64_t)t->B * t->T * o->grad_accum;
    return LLMC_OK;
}

/* ---- what an event says ---- */

/* Makes memory for a text of `size` bytes; the text so far stays. */
static int reserve_text(llmc_trainer *t, int64_t size) {
    if (size <= t->text_capacity) return LLMC_OK;
    char *text = realloc(t->text, (size_t)(2 * size));
    CHECK(text, LLMC_ENOMEM, "no memory for a text of %lld bytes", (long long)size);
    return t->text = text, t->text_capacity = 2 * size, LLMC_OK;
}

int trainer_set_text(llmc_trainer *t, const char *text) {
    TRY(reserve_text(t, (int64_t)strlen(text) + 1));
    strcpy(t->text, text);
    return LLMC_OK;
}

static int announce_step(llmc_trainer *t, llmc_event *e) {
    const llmc_options *o = &t->options;
    const double ms = (now() - t->started) * 1e3;
    char eta[32], line[512];
    t->ms = t->ms > 0 ? 0.95 * t->ms + 0.05 * ms : ms;
    e->ms = ms;
    e->tok_s = (double)t->B * t->T * (double)o->grad_accum / ms * 1e3;
    e->eta_s = (double)(o->max_steps - t->step) * t->ms * 1e-3;
    tell_clock(e->eta_s, eta, sizeof eta);
    snprintf(line, sizeof line,
             "{\"step\": %lld, \"loss\": %.9g, \"lr\": %.9g, \"norm\": %.9g, \"ms\": %.3f, \"tok_s\": %.1f}\n",
             (long long)t->step, t->loss, t->lr, t->norm, ms, e->tok_s);
    TRY(run_metric(&t->run, line));
    if (t->step % o->log_every == 0 || t->step == 1 || t->step == o->max_steps)
        snprintf(t->text, TEXT_SIZE,
                 "step %*lld/%lld | loss %.4f | lr %.2e | norm %.3f | %.1f ms | %.0f tok/s | ETA %s",
                 (int)snprintf(NULL, 0, "%lld", (long long)o->max_steps), (long long)t->step, (long long)o->max_steps,
                 t->loss, t->lr, t->norm, ms, e->tok_s, eta);
    return LLMC_STEP;
}

/* ---- evaluate, sample, save ---- */

static int due(int64_t step, int64_t every, int64_t last) { return every > 0 && (step % every == 0 || step == last); }

/* Computes the validation loss: 1, or 0 if the run was stopped between two batches. */
static int validate(llmc_trainer *t) {
    const double began = now();
    const int64_t batches_in_all = (llmc_loader_windows(t->val) + t->B - 1) / t->B;
    const int64_t asked = t->options.val_batches;
    const int64_t batches = asked && asked < batches_in_all ? asked : batches_in_all;
    double sum = 0;
    TRY(llmc_loader_set_position(t->val, 0)); /* so that every validation reads the same windows */
    t->doing = VALIDATING;
    for (int64_t i = 0; i < batches; i++) {
        float loss;
        if (!t->stop) tell_batch(t, i, batches, sum, now() - began);
        if (t->stop) return 0;
        TRY(llmc_loader_next(t->val, t->inputs, t->targets));
        const int rc = llmc_model_forward(t->model, t->inputs, t->targets, NULL, t->B, t->T, &loss);
        if (rc == LLMC_STOPPED) return t->stop = 1, 0;
        TRY(rc);
        sum += loss;
    }
    t->val_loss = sum / (double)batches;
    return isfinite(t->val_loss) ? 1 : explain_nonfinite(t, "validation loss", t->val_loss);
}

static int save(llmc_trainer *t, const char *name, int with_moments) {
    char path[2 * OPTION_TEXT], state[512];
    const void *bytes = NULL;
    int64_t size = 0;
    if (!*t->run.folder) return LLMC_OK;
    run_path(&t->run, name, path, sizeof path);
    snprintf(state, sizeof state,
             "step=%lld\ntokens=%lld\nposition=%lld\nbest_val_loss=%.17g\nbest_step=%lld\nval_loss=%.17g\n"
             "evaluated=%d\n",
             (long long)t->step, (long long)t->tokens, (long long)llmc_loader_position(t->train), t->best_val_loss,
             (long long)t->best_step, t->val_loss, t->evaluated);
    t->doing = SAVING;
    if (t->tokenizer) bytes = llmc_tokenizer_bytes(t->tokenizer, &size);
    char *options = options_record(&t->options, t->history ? t->history : "");
    if (!options) return LLMC_ENOMEM;
    const int rc = llmc_checkpoint_save(t->model, path, options, state, bytes, size, with_moments);
    free(options);
    TRY(rc);
    t->saved |= with_moments;
    if (with_moments) run_saved(&t->run);
    return LLMC_OK;
}

/* The event, or 0 if the run was stopped. A run that takes no step has no best. */
static int evaluate(llmc_trainer *t) {
    char line[128];
    const int rc = validate(t);
    if (rc <= 0) return rc;
    const int best = t->val_loss < t->best_val_loss && t->options.max_steps;
    if (best) t->best_val_loss = t->val_loss, t->best_step = t->step;
    snprintf(line, sizeof line, "{\"step\": %lld, \"val_loss\": %.9g}\n", (long long)t->step, t->val_loss);
    TRY(run_metric(&t->run, line));
    if (best) TRY(save(t, "best.ckpt", 0));
    snprintf(t->text, TEXT_SIZE, "step %lld | val loss %.4f%s", (long long)t->step, t->val_loss, best ? " (best)" : "");
    return LLMC_EVAL;
}

/* Writes a sample into the text: 1, or 0 if the run was stopped between two tokens. */
static int write_sample(llmc_trainer *t, llmc_writer *w) {
    const char *prompt = t->options.prompt, *piece;
    int64_t size;
    int rc = llmc_writer_prompt(w, prompt, (int64_t)strlen(prompt), 1);
    t->sample_size = 0;
    t->doing = SAMPLING;
    for (int64_t i = 0; rc >= 0 && !t->stop; i++) {
        tell_token(t, i);
        if ((rc = llmc_writer_next(w, &piece, &size)) <= 0) break;
        TRY(reserve_text(t, t->sample_size + size + 1));
        memcpy(t->text + t->sample_size, piece, (size_t)size);
        t->sample_size += size;
    }
    if (rc > 0 || rc == LLMC_STOPPED) t->sample_size = 0; /* a resumed run writes it again, whole */
    t->text[t->sample_size] = 0;
    return rc == LLMC_STOPPED ? 0 : rc < 0 ? rc : rc == 0;
}

static int draw_sample(llmc_trainer *t) {
    llmc_writer *w;
    llmc_sampling how = writer_sampling(&t->options);
    how.seed = (int64_t)((uint64_t)how.seed + (uint64_t)t->step);
    TRY(llmc_writer_new(&w, t->model, t->tokenizer, &how, t->options.sample_tokens));
    const int rc = write_sample(t, w);
    llmc_writer_free(w);
    if (rc <= 0) return rc;
    TRY(run_sample(&t->run, t->step, t->text, t->sample_size));
    return LLMC_SAMPLE;
}

/* --keep: gives last.ckpt a second name, by its step, which costs no space while both are one file; then removes older
 * checkpoints. */
static int keep_numbered(llmc_trainer *t) {
    char name[32];
    if (!t->options.keep || !*t->run.folder) return LLMC_OK;
    snprintf(name, sizeof name, "step_%08lld.ckpt", (long long)t->step);
    const int linked = run_link(&t->run, "last.ckpt", name);
    TRY(linked);
    if (!linked) TRY(save(t, name, 1));
    return run_drop_numbered(&t->run, t->step, t->options.keep);
}

/* True if the run goes on in its own folder, from last.ckpt. */
static int started_from_last(const llmc_trainer *t) {
    const char *name = strrchr(t->start_file, '/');
    return t->in_place && !strcmp(name ? name + 1 : t->start_file, "last.ckpt");
}

static int save_last(llmc_trainer *t) {
    if (t->kept != t->step) {
        TRY(save(t, "last.ckpt", 1));
        TRY(keep_numbered(t));
    }
    t->kept = t->step;
    snprintf(t->text, TEXT_SIZE, "step %lld | saved %s/last.ckpt%s", (long long)t->step, t->run.folder,
             t->stop ? "; stopped, continue with --resume" : "");
    return LLMC_CHECKPOINT;
}

/* ---- the machine ---- */

static int begin(llmc_trainer *t) {
    if (t->options.plan || t->stop) return t->phase = FINISHED, LLMC_OK;
    t->doing = LOADING;
    const int rc = setup_model(t);
    if (rc == LLMC_STOPPED) return t->stop = 1, t->phase = FINISHED, LLMC_OK;
    t->phase = t->evaluated == EVALUATED ? SAVE : t->evaluated == VALIDATED ? SAMPLE : EVALUATE;
    return rc;
}

static int at_evaluate(llmc_trainer *t) {
    t->phase = SAMPLE;
    const int wanted = t->val && !t->stop && due(t->step, t->options.val_every, t->options.max_steps);
    const int rc = wanted ? evaluate(t) : LLMC_OK;
    if (!wanted ? !t->stop : rc == LLMC_EVAL)
        t->evaluated = VALIDATED; /* not after a stop, which skips the validation */
    return rc;
}

static int at_sample(llmc_trainer *t) {
    t->phase = SAVE;
    const int wanted =
        t->tokenizer && !t->stop && t->step && due(t->step, t->options.sample_every, t->options.max_steps);
    const int rc = wanted ? draw_sample(t) : LLMC_OK;
    if (!wanted ? !t->stop : rc == LLMC_SAMPLE) t->evaluated = EVALUATED;
    return rc;
}

/* A run that was stopped before its first step is saved too, so that it can be resumed; but not over a run that is being
 * replaced, which comes back instead. */
static int may_save(const llmc_trainer *t) { return *t->run.folder && (t->step || (t->stop && !t->run.replacing)); }

static int at_save(llmc_trainer *t) {
    const int64_t last = t->options.max_steps;
    const int ending = t->stop || t->step >= last;
    const int wanted = ending || due(t->step, t->options.checkpoint_every, last);
    const int fresh = t->resumed && t->started == 0 && t->found == t->evaluated; /* as the checkpoint has it */
    if (fresh && started_from_last(t))
        TRY(keep_numbered(t)); /* a kill may have come before last.ckpt got its second name */
    if (fresh && ending && !t->stop) {
        t->phase = FINISHED;
        snprintf(t->text, TEXT_SIZE, "step %lld | --max_steps=%lld is reached: nothing to do, raise it to go on",
                 (long long)t->step, (long long)last);
        return LLMC_CHECKPOINT;
    }
    const int kind = may_save(t) && wanted && !fresh ? save_last(t) : LLMC_OK;
    if (kind >= 0)
        t->phase = ending ? FINISHED : ACCUMULATE; /* not if saving failed: rescue() is for ACCUMULATE alone */
    return kind;
}

/* Forgets the present step, as if it had never begun. */
static int drop_step(llmc_trainer *t) {
    t->phase = SAVE;
    return llmc_loader_set_position(t->train, t->position);
}

static int at_accumulate(llmc_trainer *t) {
    if (t->stop) return t->phase = SAVE, LLMC_OK; /* the stop came while a checkpoint was written */
    t->started = now();
    t->position = llmc_loader_position(t->train);
    const int rc = accumulate(t);
    if (rc <= 0) return rc < 0 ? rc : drop_step(t);
    t->phase = UPDATE;
    if (!t->yield_gradients) return LLMC_OK;
    t->loss = mean_loss(t);
    return isfinite(t->loss) ? LLMC_GRADIENTS : explain_nonfinite(t, "loss", t->loss);
}

static int at_update(llmc_trainer *t, llmc_event *e) {
    TRY(update(t));
    t->phase = EVALUATE;
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
    case ACCUMULATE: return at_accumulate(t);
    default: return at_update(t, e);
    }
}

/* Saves the steps so far when data cannot be read within a step: the weights are still those of the step before. */
static void rescue(llmc_trainer *t, int status) {
    char reason[1024];
    snprintf(reason, sizeof reason, "%s", llmc_last_error());
    const int saved = *t->run.folder && t->step && llmc_loader_set_position(t->train, t->position) == 0 &&
                      save(t, "last.ckpt", 1) == 0;
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
    return kind;
}
