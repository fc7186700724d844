/* All that a training run needs before its first step: data, rates, model, run folder. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/binfile.h"
#include "base/error.h"
#include "data/shards.h"
#include "model/layout.h"
#include "train/trainer.h"
#include "write/locate.h"

/* ---- data ---- */

static int open_tokenizer(llmc_trainer *t, const char *data) {
    char path[2 * OPTION_TEXT];
    if (*t->options.tokenizer) return llmc_tokenizer_open(&t->tokenizer, t->options.tokenizer);
    snprintf(path, sizeof path, "%s/tokenizer.bin", data);
    if (access(path, F_OK) == 0) return llmc_tokenizer_open(&t->tokenizer, path);
    return t->file ? llmc_file_tokenizer(t->file, 0, &t->tokenizer) : LLMC_OK; /* without one, no samples */
}

/* 1, 0, or an error if the folder cannot be read. */
static int has_shards(const char *data, const char *split) {
    Shards shards = {0};
    const int rc = shards_find(&shards, data, split), found = shards.n > 0;
    shards_free(&shards);
    return rc < 0 ? rc : found;
}

/* The id that begins a document; -1: none is known. */
static int document_id(const llmc_trainer *t) { return t->tokenizer ? llmc_tokenizer_eot(t->tokenizer) : -1; }

static int open_data(llmc_trainer *t, const char *data) {
    const llmc_options *o = &t->options;
    CHECK(!o->separate_documents || document_id(t) >= 0, LLMC_EINVAL,
          "--separate_documents needs a tokenizer that knows the id which begins a document, and %s: %s",
          t->tokenizer ? "this one has none" : "the data has none",
          t->tokenizer ? "prepare the data again with python -m pyllmc.prepro" : "name it with --tokenizer");
    const int V = t->config.V, eot = o->documents ? document_id(t) : -1;
    __typeof__(llmc_loader_open) *const open_set = o->separate_documents ? llmc_loader_open_packed : llmc_loader_open;
    TRY(open_set(&t->train, data, "train", t->B, t->T, (int)o->shuffle, o->seed, t->team.rank, t->team.world, V, eot));
    const int own = !t->num_vals && is_folder(data) && o->val_every ? has_shards(data, "val") : 0;
    TRY(own);
    if (own) snprintf(t->vals[t->num_vals++].path, OPTION_TEXT, "%s", data);
    for (ValSet *set = t->vals; set < t->vals + t->num_vals; set++) {
        TRY(open_set(&set->loader, set->path, "val", t->B, t->T, 0, 0, t->team.rank, t->team.world, V, eot));
        set->loss = NAN;
    }
    if (t->num_vals) TRY(agree_on_set(t, t->vals[0].loader, &t->val_checksum));
    CHECK(!o->patience || (t->num_vals && o->val_every), LLMC_EINVAL,
          "--patience=%lld counts validations, and there are none: give --val_data and --val_every",
          (long long)o->patience);
    return LLMC_OK;
}

/* 6e-4 at 768 channels, as in GPT-3's table of sizes. The rate grows more slowly than the width shrinks, because at C=128 a
 * model with 3.6e-3 learnt to refer back 1,000 to 2,000 steps later than with 2.4e-3 or 1.6e-3. */
static double usual_lr(int C) { return fmin(6e-3, 6e-4 * pow(768.0 / C, 0.75)); }

/* The rate for fine-tuning is gentle, so that the weights keep what they know. It is inverse to the width: GPT, with 768
 * channels, was fine-tuned with 6.25e-5 (Radford et al. 2018, section 4.1), and nanoGPT's example gives GPT-2 XL, with 1600,
 * 3e-5. The demo's model, after 300 steps on 150 stories in other words, has a validation loss of 1.25 with this rate, which
 * still falls; 1.54 with the rate of fresh weights, with which it learns the stories by heart; and 1.89 with a third of this. */
static double tuning_lr(int C) { return fmin(1e-3, 6e-5 * 768.0 / C); }

/* LoRA's matrices are few and begin at zero, so they take larger steps: GPT-2 M, with 1024 channels, was adapted with 2e-4 (Hu et
 * al. 2021, table 11). */
static double adapting_lr(int C) { return fmin(3e-3, 2e-4 * 1024.0 / C); }

static double own_lr(const llmc_trainer *t) {
    const int C = t->config.C;
    if (!*t->start_file || t->resumed) return usual_lr(C);
    return t->options.lora_rank ? adapting_lr(C) : tuning_lr(C);
}

/* Processes that are apart cannot share moments, nor decide together which step is an outlier. */
static int check_diloco(const llmc_options *o) {
    CHECK(!o->diloco || !o->zero, LLMC_EINVAL,
          "--zero shares out the moments, which --diloco changes on each process by itself: give one");
    CHECK(
        !o->diloco || !(o->skip_outliers > 0), LLMC_EINVAL,
        "--skip_outliers looks at the loss of all processes in each step, which --diloco does not exchange: give one");
    CHECK(!o->diloco || !o->lora_rank, LLMC_EINVAL,
          "--diloco saves little with --lora_rank, whose gradients are few: leave one out");
    return LLMC_OK;
}

/* --eval_every without tasks is refused, because other trainers mean validations by it. */
static int check_exam(const llmc_options *o) {
    const int data = *o->eval_data && o->eval_data_given == BY_CALL;
    const int limit = o->eval_limit && o->eval_limit_given == BY_CALL;
    CHECK(!*o->eval_tasks || o->examines, LLMC_EINVAL,
          "--eval_tasks=%s: tasks are scored by python -m pyllmc.train, and by pyllmc.Trainer with "
          "examiner=pyllmc.Examiner: take one of them, or leave the tasks out with --eval_tasks=",
          o->eval_tasks);
    CHECK(*o->eval_tasks || !o->eval_every || o->eval_every_given != BY_CALL, LLMC_EINVAL,
          "--eval_every=%lld is the number of steps between scores of --eval_tasks, and no task is named; that between "
          "validations is --val_every",
          (long long)o->eval_every);
    CHECK(*o->eval_tasks || !(data || limit), LLMC_EINVAL,
          "--eval_data and --eval_limit are about the tasks of --eval_tasks, and none is named: name one, or leave "
          "them out");
    return LLMC_OK;
}

int setup_check(llmc_trainer *t) {
    llmc_options *o = &t->options;
    double lr;
    TRY(locate_check_device(o));
    TRY(resume_open(t));
    options_settle_dropout(o);
    const int element = llmc_precision(o->precision); /* the resumed run's, unless the call gave another */
    TRY(element);
    if (!(t->k = llmc_kernels(NULL, element))) return LLMC_EDEVICE;
    CHECK(!strcmp(o->reduce_precision, "fp32") || !strcmp(o->reduce_precision, "bf16"), LLMC_EINVAL,
          "--reduce_precision=%s is neither fp32 nor bf16", o->reduce_precision);
    TRY(check_diloco(o));
    if (t->k->element == LLMC_BF16) strcpy(o->precision, "bf16"); /* in the record too, where auto may become fp32 */
    CHECK(*o->data, LLMC_EINVAL, "--data is empty: name a folder, a glob or a file of tokens");
    TRY(llmc_schedule_lr(&lr, o->schedule, 0, 1, 0, 0, 0, 0, 0));
    TRY(length_check(o));
    TRY(check_exam(o));
    TRY(valsets_parse(t));
    TRY(sizes_choose(t));
    TRY(length_share(t));
    TRY(tuning_check(t));
    t->gentle = o->lr == 0 && *t->start_file && !t->resumed && !o->lora_rank;
    if (o->lr == 0) o->lr = own_lr(t);
    if (o->plan || (t->team.rank && !t->in_place)) return LLMC_OK; /* only rank 0 of several processes has a folder */
    return t->in_place ? resume_check_later_steps(t) : run_check(o);
}

static int default_data_is_missing(const llmc_trainer *t) {
    char meta[2 * OPTION_TEXT];
    const Option *data;
    TRY(option_find(&t->options, "data", &data));
    snprintf(meta, sizeof meta, "%s/meta.json", t->options.data);
    return option_is_default(&t->options, data) && !t->resumed && access(meta, F_OK) < 0;
}

static int plan_without_data(const llmc_trainer *t) {
    return t->options.plan && t->config.V && default_data_is_missing(t);
}

int setup_needs_data_made(const llmc_trainer *t) { return default_data_is_missing(t) && !plan_without_data(t); }

/* Replaces options that were left to the model by its sizes, so that their record is whole. */
static void settle_options(llmc_options *o, const llmc_config *c) {
    o->n_layer = c->L, o->n_head = c->NH, o->n_embd = c->C;
    o->max_seq_len = c->maxT, o->vocab_size = c->V, o->window = c->window, o->untied = c->untied;
    /* The usual pattern is not recorded, so that a run which is repeated with another window or depth gets the usual one. */
    snprintf(o->pattern, sizeof o->pattern, "%s", config_has_usual_pattern(c) ? "" : c->pattern);
    if (!o->T) o->T = c->maxT;
}

int setup_open(llmc_trainer *t) {
    TRY(setup_check(t));
    if (plan_without_data(t)) TRY(length_settle(t));
    if (plan_without_data(t)) return llmc_config_check(&t->config);
    const char *data = t->options.data;
    CHECK(access(data, F_OK) == 0 || strpbrk(data, "*?["), LLMC_EIO,
          "there is no data at %s: prepare some with python -m pyllmc.prepro, or make the stories: python3 -m "
          "pyllmc.stories",
          data);
    TRY(open_tokenizer(t, data));
    TRY(sizes_choose_vocabulary(t, data));
    TRY(sizes_check_val_data(t, data));
    TRY(open_data(t, data));
    TRY(texts_open(t, data));
    TRY(length_settle(t));
    settle_options(&t->options, &t->config);
    if (t->before) settle_options(t->before, &t->config);
    return LLMC_OK;
}

llmc_room setup_room(const llmc_trainer *t) {
    const llmc_options *o = &t->options;
    return (llmc_room){.B = t->B,
                       .T = t->T,
                       .training = 1,
                       .recompute = (int)o->recompute,
                       .precision = t->k->element,
                       .lora_rank = (int)o->lora_rank,
                       .lora_on = t->lora_on,
                       .lora_alpha = (float)o->lora_alpha,
                       .train_only = o->train_only,
                       .shards = o->zero ? t->team.world : 1,
                       .shard = o->zero ? t->team.rank : 0,
                       .outer = o->diloco > 0,
                       .neighbours = t->k->host ? t->team.local : 1};
}

/* Rank 0 alone of several processes opens the folder. */
static int open_run(llmc_trainer *t) {
    if (t->team.rank) return LLMC_OK;
    return run_open(&t->run, &t->options, t->history, t->in_place ? trainer_started_from(t) : NULL, t->step,
                    t->evaluated);
}

/* Drops what a run that goes back in its own folder has of later steps. */
static int drop_later(llmc_trainer *t) {
    const int rc = meet(t, t->team.rank ? LLMC_OK : run_drop_later(&t->run, t->step));
    double dropped = rc;
    TRY(rc);
    TRY(meet_sum(t, &dropped, 1));
    t->early = 0; /* The run goes on, because the validations that ended it are dropped. */
    if (dropped > 0) t->best_val_loss = INFINITY, t->best_step = -1, t->stale = 0;
    return LLMC_OK;
}

int setup_model(llmc_trainer *t) {
    const llmc_options *o = &t->options;
    const llmc_room room = setup_room(t);
    const size_t batch = (size_t)t->B * (size_t)t->T * sizeof(int);
    t->inputs = malloc(batch);
    t->targets = malloc(batch);
    t->losses = malloc(2 * (size_t)t->most_micro_steps * sizeof *t->losses);
    CHECK(t->inputs && t->targets && t->losses, LLMC_ENOMEM, "no memory for a batch of tokens");
    t->shares = t->losses + t->most_micro_steps;
    TRY(llmc_model_create(&t->model, &t->config, &room, t->threads));
    if (t->team.world > 1) TRY(llmc_model_join(t->model, &t->team));
    TRY(llmc_model_set_dropout(t->model, o->embd_pdrop, o->attn_pdrop, o->resid_pdrop, o->lora_dropout, o->seed));
    if (o->separate_documents) TRY(llmc_model_separate(t->model, document_id(t)));
    if (t->file) TRY(tuning_load(t));
    else TRY(llmc_model_init(t->model, o->seed, o->init_std));
    if (t->resumed) TRY(resume_restore(t));
    if (t->resumed) TRY(resume_note_changes(t));
    else TRY(llmc_model_reset_moments(t->model)); /* a file may bring those of another run */
    if (o->diloco) TRY(llmc_model_outer_begin(t->model));
    llmc_file_free(t->file), t->file = NULL;
    return LLMC_OK;
}

int setup_run(llmc_trainer *t) {
    TRY(meet(t, open_run(t)));
    return t->in_place && t->options.overwrite ? drop_later(t) : LLMC_OK;
}
