/* The work between two steps: validations, samples, checkpoints. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "model/team.h"
#include "train/trainer.h"
#include "write/writer.h"

int64_t between_last(const llmc_trainer *t) { return t->early ? t->step : t->options.max_steps; }

int between_due(const llmc_trainer *t, int64_t every) {
    const int64_t apart = t->options.diloco ? t->options.diloco : 1; /* the steps since the work could be done last */
    return every > 0 && (t->step % every < apart || t->step == between_last(t));
}

/* Not before the first step: the scores of what a run begins with are those of its --model. */
int between_exam_due(const llmc_trainer *t) {
    const int now = t->step == between_last(t) || between_due(t, t->options.eval_every);
    return *t->options.eval_tasks && t->step && now;
}

/* The loss of the next batch of a validation set, of which `rows` count, and what it weighs: 1 if all do, and with a loss mask as much
 * as its learnt targets. */
static int validate_batch(llmc_trainer *t, const ValSet *set, int rows, float *loss, double *weight) {
    TRY(llmc_loader_next(set->loader, t->inputs, t->targets));
    *weight = step_is_masked(set->loader) ? (double)step_learnt(t, set->loader, rows) : (double)rows / t->B;
    const int T = step_shorten(t, set->loader);
    return llmc_model_forward(t->model, t->inputs, t->targets, NULL, rows ? rows : 1, T, loss);
}

/* Computes the loss of one validation set: 1, or 0 if the run was stopped between two batches. Of several processes each has its
 * part of every batch. */
static int validate(llmc_trainer *t, ValSet *set) {
    const double began = tell_now();
    const int64_t windows = valsets_windows(t, set);
    const int batches = length_micro_steps(t, windows);
    double sum[2] = {0};                           /* the losses times their weights, and the weights */
    TRY(llmc_loader_set_position(set->loader, 0)); /* so that every validation reads the same windows */
    for (int i = 0; i < batches; i++) {
        float loss;
        double n = 0;
        if (!t->stop) tell_batch(t, set, i, batches, sum[1] > 0 ? sum[0] / sum[1] : 0, tell_now() - began);
        if (t->stop) return 0;
        const int rc = meet(t, validate_batch(t, set, step_rows(t, windows, i), &loss, &n));
        if (rc == LLMC_STOPPED) return t->stop = 1, 0;
        TRY(rc);
        sum[0] += n * loss, sum[1] += n;
    }
    TRY(meet_sum(t, sum, 2));
    CHECK(sum[1] > 0, LLMC_EINVAL,
          "none of the %d batches of a validation has a target that is learnt: raise --val_batches (0: all)", batches);
    set->loss = sum[0] / sum[1];
    return isfinite(set->loss) ? 1 : tell_nonfinite(t, "validation loss", set->loss);
}

static int validate_all(llmc_trainer *t) {
    t->doing = VALIDATING;
    for (int i = 0; i < t->num_vals; i++) {
        const int rc = validate(t, &t->vals[i]);
        if (rc <= 0) return rc;
    }
    t->val_loss = t->vals[0].loss;
    return 1;
}

/* The lines of a checkpoint's STATE. */
static char *state_text(const llmc_trainer *t) {
    Growing state = {0};
    growing_add(&state,
                "step=%lld\ntokens=%lld\nposition=%lld\nbest_val_loss=%.17g\nbest_step=%lld\nval_loss=%.17g\n"
                "evaluated=%d\nbatch=%lld\n",
                (long long)t->step, (long long)t->tokens, (long long)llmc_loader_position(t->train), t->best_val_loss,
                (long long)t->best_step, t->val_loss, t->evaluated, (long long)t->batch);
    if (t->num_vals)
        growing_add(&state, "val_checksum=%lld\nval_windows=%lld\n", (long long)t->val_checksum,
                    (long long)valsets_windows(t, t->vals));
    if (t->options.patience) growing_add(&state, "stale=%lld\n", (long long)t->stale);
    if (t->options.skip_outliers > 0) outliers_add(&t->outliers, &state);
    return growing_end(&state);
}

static int write_checkpoint(llmc_trainer *t, const char *name, int with_moments) {
    char path[2 * OPTION_TEXT];
    const void *bytes = NULL;
    int64_t size = 0;
    run_path(&t->run, name, path, sizeof path);
    if (t->tokenizer) bytes = llmc_tokenizer_bytes(t->tokenizer, &size);
    char *options = options_record(&t->options, t->history ? t->history : ""), *state = state_text(t);
    int rc = options && state ? llmc_checkpoint_save(t->model, path, options, state, bytes, size, with_moments)
                              : LLMC_ENOMEM;
    if (!(options && state) && with_moments && team_has_moments(t->model)) rc = team_ready(t->model, rc);
    free(options);
    free(state);
    if (rc == 0 && with_moments) run_saved(&t->run);
    return rc;
}

int between_save_alone(llmc_trainer *t, const char *name, int with_moments) {
    if (!meet_keeps(t)) return LLMC_OK;
    t->doing = SAVING;
    if (!t->team.rank) return write_checkpoint(t, name, with_moments);
    return with_moments && team_has_moments(t->model) ? llmc_checkpoint_send(t->model) : LLMC_OK;
}

int between_save(llmc_trainer *t, const char *name, int with_moments) {
    if (!meet_keeps(t)) return LLMC_OK;
    TRY(meet(t, between_save_alone(t, name, with_moments)));
    return t->saved |= with_moments, LLMC_OK;
}

/* Ends the run at this step if the loss has not become better for as many validations as --patience allows. */
static void count_stale(llmc_trainer *t, int best) {
    const int64_t patience = t->options.patience;
    t->stale = best || !patience ? 0 : t->stale + 1;
    t->early = patience && t->stale >= patience;
}

static int write_losses(llmc_trainer *t) {
    Growing line = {0};
    growing_add(&line, "{\"step\": %lld, \"val_loss\": %.9g", (long long)t->step, t->val_loss);
    valsets_add_metric(t, &line);
    growing_add(&line, "}\n");
    return tell_metric(t, &line);
}

static int announce_losses(llmc_trainer *t, int best) {
    Growing line = {0};
    growing_add(&line, "step %lld | val loss", (long long)t->step);
    valsets_tell(t, best ? " (best)" : "", &line);
    if (t->early) growing_add(&line, " | ");
    if (t->early) tell_early(t, &line);
    return tell_line(t, &line);
}

/* A run that takes no step has no best. */
int between_evaluate(llmc_trainer *t) {
    const int rc = validate_all(t);
    if (rc <= 0) return rc;
    const int best = t->val_loss < t->best_val_loss && t->options.max_steps;
    if (best) t->best_val_loss = t->val_loss, t->best_step = t->step;
    count_stale(t, best);
    TRY(write_losses(t));
    if (best) TRY(between_save(t, "best.ckpt", 0));
    TRY(announce_losses(t, best));
    return LLMC_EVAL;
}

/* Writes a sample into the text: 1, or 0 if the run was stopped between two tokens. */
static int write_sample(llmc_trainer *t, llmc_writer *w) {
    char *prompt;
    const char *piece;
    int64_t size;
    TRY(texts_prompt(t, &prompt));
    int rc = llmc_writer_prompt(w, prompt, (int64_t)strlen(prompt), 1);
    if (rc == 0) rc = 1; /* there is more to write */
    free(prompt);
    t->sample_size = 0;
    t->doing = SAMPLING;
    for (int64_t i = 0; rc >= 0 && !t->stop && !t->asked; i++) {
        tell_token(t, i);
        if ((rc = llmc_writer_next(w, &piece, &size)) <= 0) break;
        TRY(tell_reserve(t, t->sample_size + size + 1));
        memcpy(t->text + t->sample_size, piece, (size_t)size);
        t->sample_size += size;
    }
    if (rc > 0 || rc == LLMC_STOPPED) t->sample_size = 0; /* a resumed run writes it again, whole */
    t->text[t->sample_size] = 0;
    return rc == LLMC_STOPPED ? 0 : rc < 0 ? rc : rc == 0;
}

static int sample(llmc_trainer *t) {
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

/* Rank 0 of several processes writes, and the others wait. */
int between_sample(llmc_trainer *t) {
    const int rc = meet(t, t->team.rank ? LLMC_SAMPLE : sample(t));
    return rc > 0 && t->team.world > 1 && t->stop ? 0 : rc;
}

/* Gives last.ckpt its second name; writes the file again where a file has only one. */
static int keep_numbered(llmc_trainer *t) {
    char name[32];
    snprintf(name, sizeof name, "step_%08lld.ckpt", (long long)t->step);
    const int rc = meet(t, t->team.rank ? 0 : run_link(&t->run, "last.ckpt", name));
    double linked = rc;
    TRY(rc);
    TRY(meet_sum(t, &linked, 1));
    return linked > 0 ? LLMC_OK : between_save(t, name, 1);
}

int between_keep(llmc_trainer *t) {
    if (!t->options.keep || !meet_keeps(t)) return LLMC_OK;
    TRY(keep_numbered(t));
    return meet(t, t->team.rank ? LLMC_OK : run_drop_numbered(&t->run, t->step, t->options.keep));
}

int between_save_last(llmc_trainer *t) {
    if (t->kept != t->step) {
        TRY(between_save(t, "last.ckpt", 1));
        TRY(between_keep(t));
    }
    t->kept = t->step;
    snprintf(t->text, TEXT_SIZE, "step %lld | saved %s/last.ckpt%s", (long long)t->step, t->run.folder,
             t->stop ? "; stopped, continue with --resume" : "");
    return LLMC_CHECKPOINT;
}
