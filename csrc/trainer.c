/* The training loop as a step machine: all policy (when to evaluate, sample, save, stop) is here, and nowhere else. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "error.h"
#include "gpt2.h"
#include "trainer.h"
#include "writer.h"

/* At each step boundary the machine walks EVALUATE, SAMPLE, SAVE, then ACCUMULATE and UPDATE lead to the next one. */
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
    t->text = calloc(1, TEXT_SIZE);
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
    free(t->inputs);
    free(t->losses);
    free(t->targets);
    free(t->text);
    free(t);
}

void llmc_trainer_stop(llmc_trainer *t) { t->stop = 1; }
int llmc_trainer_yield_gradients(llmc_trainer *t, int on) { return t->yield_gradients = on, LLMC_OK; }
llmc_model *llmc_trainer_model(llmc_trainer *t) { return t->model; }
const char *llmc_trainer_out(const llmc_trainer *t) { return t->run.folder; }

/* ---- one step ---- */

static int accumulate(llmc_trainer *t) {
    const int micro_steps = (int)t->options.grad_accum;
    for (int i = 0; i < micro_steps; i++) {
        TRY(llmc_loader_next(t->train, t->inputs, t->targets));
        TRY(llmc_model_micro_step(t->model, t->inputs, t->targets, NULL, t->B, t->T, 1.0f / (float)micro_steps, i > 0,
                                  &t->losses[i]));
    }
    return t->yield_gradients ? llmc_model_sync(t->model) : LLMC_OK;
}

/* of the micro-steps, once the device has told them */
static double mean_loss(const llmc_trainer *t) {
    const int micro_steps = (int)t->options.grad_accum;
    double loss = 0;
    for (int i = 0; i < micro_steps; i++) loss += (double)t->losses[i] / micro_steps;
    return loss;
}

/* where the run broke, before anything is harmed: the weights are still those of the last step */
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

static void clock_text(double seconds, char *text, size_t size) {
    const long s = seconds > 0 && seconds < 1e9 ? (long)seconds : 0;
    if (s >= 3600) snprintf(text, size, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    else snprintf(text, size, "%ld:%02ld", s / 60, s % 60);
}

static int announce_step(llmc_trainer *t, llmc_event *e) {
    const llmc_options *o = &t->options;
    const double ms = (now() - t->started) * 1e3;
    char eta[32], line[512];
    t->ms = t->ms > 0 ? 0.95 * t->ms + 0.05 * ms : ms;
    e->ms = ms;
    e->tok_s = (double)t->B * t->T * (double)o->grad_accum / ms * 1e3;
    e->eta_s = (double)(o->max_steps - t->step) * t->ms * 1e-3;
    clock_text(e->eta_s, eta, sizeof eta);
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

/* of a plan that was asked for before there is any: nothing */
static void data_text(const llmc_trainer *t, char *text, size_t size) {
    *text = 0;
    if (t->train)
        snprintf(text, size, "data: %lld tokens in %d shards, %lld windows of %d%s\n",
                 (long long)llmc_loader_tokens(t->train), llmc_loader_num_shards(t->train),
                 (long long)llmc_loader_windows(t->train), t->T,
                 t->val || !t->options.val_every ? "" : "; no validation data");
}

static int announce_plan(llmc_trainer *t) {
    const llmc_config *c = &t->config;
    const llmc_room room = setup_room(t);
    char memory[1024], data[256];
    llmc_plan plan;
    const Kernels *k = llmc_kernels(NULL);
    if (!k) return LLMC_EDEVICE;
    const int precision = gpt2_precision(k, t->options.precision);
    TRY(precision);
    TRY(llmc_plan_text(c, &room, (int)t->options.threads, memory, sizeof memory));
    TRY(llmc_plan_memory(c, &room, (int)t->options.threads, &plan));
    const int cores = llmc_default_threads(), threads = t->options.threads ? (int)t->options.threads : cores;
    data_text(t, data, sizeof data);
    char crowded[64] = "", window[32] = "";
    if (c->window) snprintf(window, sizeof window, " window=%d", c->window);
    if (threads > cores) snprintf(crowded, sizeof crowded, " on %d cores: more than cores are slower", cores);
    snprintf(t->text, TEXT_SIZE,
             "device: %s, %s, %s, %d threads%s\nmodel: L=%d NH=%d C=%d T=%d V=%d%s, %.2fM parameters%s%s\n"
             "%s%s",
             llmc_backend(), k->name, precision == LLMC_BF16 ? "bf16" : "fp32", threads, crowded, c->L, c->NH, c->C,
             c->maxT, c->V, window, (double)plan.num_params * 1e-6, *t->weights ? ", from " : "", t->weights, data,
             memory);
    return LLMC_PLAN;
}

/* ---- evaluate, sample, save ---- */

static int due(int64_t step, int64_t every, int64_t last) { return every > 0 && (step % every == 0 || step == last); }

static int validate(llmc_trainer *t) {
    const int64_t batches_in_all = (llmc_loader_windows(t->val) + t->B - 1) / t->B;
    const int64_t asked = t->options.val_batches;
    const int64_t batches = asked && asked < batches_in_all ? asked : batches_in_all;
    double sum = 0;
    TRY(llmc_loader_set_position(t->val, 0)); /* the same windows every time */
    for (int64_t i = 0; i < batches; i++) {
        float loss;
        TRY(llmc_loader_next(t->val, t->inputs, t->targets));
        TRY(llmc_model_forward(t->model, t->inputs, t->targets, NULL, t->B, t->T, &loss));
        sum += loss;
    }
    t->val_loss = sum / (double)batches;
    return isfinite(t->val_loss) ? LLMC_OK : explain_nonfinite(t, "validation loss", t->val_loss);
}

static int save(llmc_trainer *t, const char *name, int with_moments) {
    char path[2 * OPTION_TEXT], state[512], options[OPTION_TEXT * 16];
    const void *bytes = NULL;
    int64_t size = 0;
    if (!*t->run.folder) return LLMC_OK;
    run_path(&t->run, name, path, sizeof path);
    TRY(llmc_options_text(&t->options, options, sizeof options));
    snprintf(state, sizeof state,
             "step=%lld\ntokens=%lld\nposition=%lld\nbest_val_loss=%.17g\nval_loss=%.17g\n"
             "evaluated=%d\n",
             (long long)t->step, (long long)t->tokens, (long long)llmc_loader_position(t->train), t->best_val_loss,
             t->val_loss, t->evaluated);
    if (t->tokenizer) bytes = llmc_tokenizer_bytes(t->tokenizer, &size);
    TRY(llmc_checkpoint_save(t->model, path, options, state, bytes, size, with_moments));
    t->saved |= with_moments;
    if (with_moments) run_saved(&t->run);
    return LLMC_OK;
}

static int evaluate(llmc_trainer *t) {
    char line[128];
    TRY(validate(t));
    const int best = t->val_loss < t->best_val_loss;
    if (best) t->best_val_loss = t->val_loss;
    snprintf(line, sizeof line, "{\"step\": %lld, \"val_loss\": %.9g}\n", (long long)t->step, t->val_loss);
    TRY(run_metric(&t->run, line));
    if (best && t->step > 0) TRY(save(t, "best.ckpt", 0));
    snprintf(t->text, TEXT_SIZE, "step %lld | val loss %.4f%s", (long long)t->step, t->val_loss, best ? " (best)" : "");
    return LLMC_EVAL;
}

static int write_sample(llmc_trainer *t, llmc_writer *w) {
    const char *prompt = t->options.prompt, *piece;
    int64_t size;
    int rc = llmc_writer_prompt(w, prompt, (int64_t)strlen(prompt), 1);
    t->sample_size = 0;
    while (rc >= 0 && (rc = llmc_writer_next(w, &piece, &size)) > 0) {
        const int64_t room = TEXT_SIZE - 1 - t->sample_size, n = size < room ? size : room;
        memcpy(t->text + t->sample_size, piece, (size_t)n);
        t->sample_size += n;
    }
    t->text[t->sample_size] = 0;
    return rc;
}

static int draw_sample(llmc_trainer *t) {
    llmc_writer *w;
    llmc_sampling how = writer_sampling(&t->options);
    how.seed = (int64_t)((uint64_t)how.seed + (uint64_t)t->step);
    TRY(llmc_writer_new(&w, t->model, t->tokenizer, &how, t->options.sample_tokens));
    const int rc = write_sample(t, w);
    llmc_writer_free(w);
    TRY(rc);
    TRY(run_sample(&t->run, t->step, t->text, t->sample_size));
    return LLMC_SAMPLE;
}

static int save_last(llmc_trainer *t) {
    TRY(save(t, "last.ckpt", 1));
    snprintf(t->text, TEXT_SIZE, "step %lld | saved %s/last.ckpt%s", (long long)t->step, t->run.folder,
             t->stop ? "; stopped, continue with --resume" : "");
    return LLMC_CHECKPOINT;
}

/* ---- the machine ---- */

static int begin(llmc_trainer *t) {
    if (t->options.plan) return t->phase = FINISHED, LLMC_OK;
    TRY(setup_model(t));
    t->phase = t->evaluated ? SAVE : EVALUATE;
    return LLMC_OK;
}

static int at_evaluate(llmc_trainer *t) {
    t->phase = SAMPLE;
    if (!t->val || t->stop || !due(t->step, t->options.val_every, t->options.max_steps)) return LLMC_OK;
    return evaluate(t);
}

static int at_sample(llmc_trainer *t) {
    t->phase = SAVE;
    t->evaluated = !t->stop; /* a stop is not kept waiting */
    if (!t->tokenizer || t->stop || !t->step) return LLMC_OK;
    return due(t->step, t->options.sample_every, t->options.max_steps) ? draw_sample(t) : LLMC_OK;
}

static int at_save(llmc_trainer *t) {
    const int64_t last = t->options.max_steps;
    const int ending = t->stop || t->step >= last;
    const int wanted = ending || due(t->step, t->options.checkpoint_every, last);
    const int fresh = t->resumed && t->model->step == t->step && t->started == 0; /* just read from there */
    if (fresh && ending && !t->stop) {
        t->phase = FINISHED;
        snprintf(t->text, TEXT_SIZE, "step %lld | --max_steps=%lld is reached: nothing to do, raise it to go on",
                 (long long)t->step, (long long)last);
        return LLMC_CHECKPOINT;
    }
    const int kind = *t->run.folder && t->step && wanted && !fresh ? save_last(t) : LLMC_OK;
    if (kind >= 0)
        t->phase = ending ? FINISHED : ACCUMULATE; /* a save that failed is no failure of the next step's data */
    return kind;
}

static int at_accumulate(llmc_trainer *t) {
    t->started = now();
    t->evaluated = 0;
    t->position = llmc_loader_position(t->train);
    TRY(accumulate(t));
    t->phase = UPDATE;
    if (!t->yield_gradients) return LLMC_OK;
    t->loss = mean_loss(t);
    return isfinite(t->loss) ? LLMC_GRADIENTS : explain_nonfinite(t, "loss", t->loss);
}

static int at_update(llmc_trainer *t, llmc_event *e) {
    TRY(update(t));
    t->phase = EVALUATE;
    return announce_step(t, e);
}

/* one move; the kind of event it made, or 0 to move on */
static int move(llmc_trainer *t, llmc_event *e) {
    switch (t->phase) {
    case OPEN: t->phase = BEGIN; return announce_plan(t);
    case BEGIN: return begin(t);
    case EVALUATE: return at_evaluate(t);
    case SAMPLE: return at_sample(t);
    case SAVE: return at_save(t);
    case ACCUMULATE: return at_accumulate(t);
    default: return at_update(t, e);
    }
}

/* the data failed within a step: the weights are still those of the last one, so keep them */
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
