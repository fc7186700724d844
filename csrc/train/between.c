/* The work between two steps: validations, samples, checkpoints. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "model/gpt2.h"
#include "train/trainer.h"
#include "write/writer.h"

int between_due(int64_t step, int64_t every, int64_t last) { return every > 0 && (step % every == 0 || step == last); }

/* Computes the validation loss: 1, or 0 if the run was stopped between two batches. */
static int validate(llmc_trainer *t) {
    const double began = tell_now();
    const int64_t batches_in_all = (llmc_loader_windows(t->val) + t->B - 1) / t->B;
    const int64_t asked = t->options.val_batches;
    const int64_t batches = asked && asked < batches_in_all ? asked : batches_in_all;
    double sum = 0;
    TRY(llmc_loader_set_position(t->val, 0)); /* so that every validation reads the same windows */
    t->doing = VALIDATING;
    for (int64_t i = 0; i < batches; i++) {
        float loss;
        if (!t->stop) tell_batch(t, i, batches, sum, tell_now() - began);
        if (t->stop) return 0;
        TRY(llmc_loader_next(t->val, t->inputs, t->targets));
        const int rc = llmc_model_forward(t->model, t->inputs, t->targets, NULL, t->B, t->T, &loss);
        if (rc == LLMC_STOPPED) return t->stop = 1, 0;
        TRY(rc);
        sum += loss;
    }
    t->val_loss = sum / (double)batches;
    return isfinite(t->val_loss) ? 1 : tell_nonfinite(t, "validation loss", t->val_loss);
}

int between_save(llmc_trainer *t, const char *name, int with_moments) {
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
int between_evaluate(llmc_trainer *t) {
    char line[128];
    const int rc = validate(t);
    if (rc <= 0) return rc;
    const int best = t->val_loss < t->best_val_loss && t->options.max_steps;
    if (best) t->best_val_loss = t->val_loss, t->best_step = t->step;
    snprintf(line, sizeof line, "{\"step\": %lld, \"val_loss\": %.9g}\n", (long long)t->step, t->val_loss);
    TRY(run_metric(&t->run, line));
    if (best) TRY(between_save(t, "best.ckpt", 0));
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
        TRY(tell_reserve(t, t->sample_size + size + 1));
        memcpy(t->text + t->sample_size, piece, (size_t)size);
        t->sample_size += size;
    }
    if (rc > 0 || rc == LLMC_STOPPED) t->sample_size = 0; /* a resumed run writes it again, whole */
    t->text[t->sample_size] = 0;
    return rc == LLMC_STOPPED ? 0 : rc < 0 ? rc : rc == 0;
}

int between_sample(llmc_trainer *t) {
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

int between_keep(llmc_trainer *t) {
    char name[32];
    if (!t->options.keep || !*t->run.folder) return LLMC_OK;
    snprintf(name, sizeof name, "step_%08lld.ckpt", (long long)t->step);
    const int linked = run_link(&t->run, "last.ckpt", name);
    TRY(linked);
    if (!linked) TRY(between_save(t, name, 1));
    return run_drop_numbered(&t->run, t->step, t->options.keep);
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
