/* All that a training run needs before its first step: options, data, tokenizer, model, run folder. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/binfile.h"
#include "base/error.h"
#include "model/gpt2.h"
#include "base/growing.h"
#include "data/shards.h"
#include "files/runfolder.h"
#include "files/state.h"
#include "text/agree.h"
#include "train/trainer.h"
#include "write/locate.h"

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

/* A run is resumed in the checkpoint's own folder, unless --out names another. */
static int open_resume(llmc_trainer *t) {
    llmc_options *o = &t->options;
    char folder[OPTION_TEXT];
    CHECK(*o->resume || !o->resume_given, LLMC_EINVAL, "--resume is empty: name a run folder or a checkpoint");
    if (!*o->resume) return LLMC_OK;
    t->resumed = 1;
    folder_of(o->resume, folder, sizeof folder);
    TRY(run_settle(folder));
    TRY(find_checkpoint(o, t->start_file, sizeof t->start_file));
    if (!o->out_given) TRY(llmc_options_set(o, "out", folder));
    t->in_place = t->saved = !strcmp(o->out, folder);
    TRY(llmc_file_open(&t->file, t->start_file));
    return adopt_options(t);
}

/* Going on in the run's own folder from a step that it has passed replaces what came later: only if that is wanted. */
static int check_later_steps(const llmc_trainer *t) {
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

static int restore_state(llmc_trainer *t) {
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
    return llmc_loader_set_position(t->train, state_whole(state, "position", 0));
}

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
    const int rc = shards_find(&shards, data, split);
    shards_free(&shards);
    return rc == LLMC_EINVAL ? 0 : rc < 0 ? rc : 1;
}

static int open_data(llmc_trainer *t, const char *data) {
    const llmc_options *o = &t->options;
    const int V = t->config.V, eot = o->documents && t->tokenizer ? llmc_tokenizer_eot(t->tokenizer) : -1;
    TRY(llmc_loader_open(&t->train, data, "train", t->B, t->T, (int)o->shuffle, o->seed, 0, 1, V, eot));
    if (*o->val_data) return llmc_loader_open(&t->val, o->val_data, "val", t->B, t->T, 0, 0, 0, 1, V, eot);
    const int found = is_folder(data) && o->val_every ? has_shards(data, "val") : 0;
    if (found <= 0) return found;
    return llmc_loader_open(&t->val, data, "val", t->B, t->T, 0, 0, 0, 1, V, eot);
}

/* ---- configuration ---- */

static void override(int *value, int64_t option) {
    if (option) *value = (int)option;
}

/* If Python has converted the file, its user knows it by the name of the original. */
const char *setup_weights_name(const llmc_trainer *t) {
    return *t->options.model_file && !strcmp(t->start_file, t->options.model_file) ? t->options.model : t->start_file;
}

/* The sizes of a file cannot be changed by options. */
static int refuse_other(const char *file, const char *name, int64_t asked, int has) {
    CHECK(!asked || asked == has, LLMC_EINVAL, "--%s=%lld, but %s has %d: leave the option out", name, (long long)asked,
          file, has);
    return LLMC_OK;
}

static int refuse_other_sizes(const llmc_options *o, const char *file, const llmc_config *c) {
    TRY(refuse_other(file, "n_layer", o->n_layer, c->L));
    TRY(refuse_other(file, "n_head", o->n_head, c->NH));
    TRY(refuse_other(file, "n_embd", o->n_embd, c->C));
    TRY(refuse_other(file, "max_seq_len", o->max_seq_len, c->maxT));
    TRY(refuse_other(file, "vocab_size", o->vocab_size, c->V));
    CHECK(!o->window_given || o->window == c->window, LLMC_EINVAL, "--window=%lld, but %s has %d: leave the option out",
          (long long)o->window, file, c->window);
    return LLMC_OK;
}

/* Reports an error of the data first, as that is the usual reason why there is no vocabulary. */
static int explain_no_vocabulary(const char *data, const char *model) {
    llmc_loader *probe = NULL;
    const int rc = llmc_loader_open(&probe, data, "train", 1, 1, 0, 0, 0, 1, 0, -1);
    llmc_loader_free(probe);
    TRY(rc);
    FAIL(LLMC_EINVAL, "%s has no vocabulary of its own and %s no tokenizer.bin: give --vocab_size or --tokenizer",
         model, data);
}

/* Drops the shape that a file of options gives, if the call names another --model: it is the shape of the file's model. */
static int forget_other_shape(llmc_options *o) {
    const char *const of_model[] = {"n_layer", "n_head", "n_embd", "max_seq_len", "vocab_size",
                                    "window",  "T",      "lr",     "warmup_steps"};
    if (!*o->file_model || !strcmp(o->model, o->file_model) || o->n_embd_given != BY_FILE) return LLMC_OK;
    for (size_t i = 0; i < sizeof of_model / sizeof *of_model; i++) {
        const Option *option;
        char usual[OPTION_TEXT];
        TRY(option_find(o, of_model[i], &option));
        if (*option_given(o, option) != BY_FILE) continue;
        option_default(option, usual);
        TRY(option_assign(o, option, usual));
        *option_given(o, option) = 0;
    }
    return LLMC_OK;
}

/* Decides the sizes of the model. V may stay 0 until the tokenizer of the data is open. */
static int choose_sizes(llmc_trainer *t) {
    const llmc_options *o = &t->options;
    llmc_config *c = &t->config;
    if (!t->resumed) TRY(forget_other_shape(&t->options));
    if (!*t->start_file) {
        const int found = locate_weight_file(o, t->start_file, sizeof t->start_file);
        TRY(found);
        if (!found) *t->start_file = 0;
    }
    if (*t->start_file) {
        if (!t->file) TRY(llmc_file_open(&t->file, t->start_file));
        *c = *llmc_file_config(t->file);
        TRY(refuse_other_sizes(o, setup_weights_name(t), c));
    } else {
        TRY(llmc_config_parse(c, o->model));
        override(&c->V, o->vocab_size);
        override(&c->L, o->n_layer);
        override(&c->NH, o->n_head);
        override(&c->C, o->n_embd);
        override(&c->maxT, o->max_seq_len);
        override(&c->window, o->window);
    }
    t->B = (int)o->B;
    t->T = o->T ? (int)o->T : c->maxT;
    CHECK(t->T <= c->maxT, LLMC_EINVAL, "--T=%d is longer than the model's context of %d: lower --T%s", t->T, c->maxT,
          *t->start_file ? "" : " or raise --max_seq_len");
    llmc_config known = *c;
    override(&known.V, !known.V);
    return llmc_config_check(&known);
}

/* True if a model of V rows may belong to a vocabulary of `ids`: some are padded to a multiple of 2, 4, ... or 128. */
static int is_padded(int ids, int V) {
    for (int multiple = 1; multiple <= 128; multiple *= 2)
        if ((ids + multiple - 1) / multiple * multiple == V) return 1;
    return 0;
}

/* Refuses data whose ids mean other text than the weights have learnt. */
static int check_vocabulary(const llmc_trainer *t, const char *data) {
    llmc_tokenizer *own = NULL;
    const int V = t->tokenizer ? llmc_tokenizer_size(t->tokenizer) : t->config.V;
    TRY(llmc_file_tokenizer(t->file, 0, &own));
    const int fits = own ? V == llmc_tokenizer_size(own) : is_padded(V, t->config.V);
    if (!fits) llmc_tokenizer_free(own);
    CHECK(fits, LLMC_EINVAL,
          "%s has V=%d, the tokenizer of the data %d: prepare the data with the model's tokenizer: python -m "
          "pyllmc.prepro --input TEXT --tokenizer %s",
          setup_weights_name(t), t->config.V, V, setup_weights_name(t));
    const int same = !own || !t->tokenizer || tokenizers_agree(own, t->tokenizer);
    llmc_tokenizer_free(own);
    CHECK(same, LLMC_EINVAL,
          "%s was trained with another tokenizer than that of %s, whose ids mean other text: begin a new model, or "
          "prepare the data with the model's tokenizer: python -m pyllmc.prepro --input TEXT --tokenizer %s",
          setup_weights_name(t), *t->options.tokenizer ? t->options.tokenizer : data, setup_weights_name(t));
    return LLMC_OK;
}

/* Refuses validation data of another tokenizer: its loss would mean nothing, and yet choose the best checkpoint. */
static int check_val_data(const llmc_trainer *t, const char *data) {
    char path[2 * OPTION_TEXT];
    llmc_tokenizer *own = NULL;
    snprintf(path, sizeof path, "%s/tokenizer.bin", t->options.val_data);
    if (!*t->options.val_data || !t->tokenizer || access(path, F_OK) < 0) return LLMC_OK;
    TRY(llmc_tokenizer_open(&own, path));
    const int same = tokenizers_agree(own, t->tokenizer);
    llmc_tokenizer_free(own);
    CHECK(same, LLMC_EINVAL,
          "--val_data=%s has another tokenizer than --data, so its ids mean other text: prepare it with --tokenizer %s",
          t->options.val_data, data);
    return LLMC_OK;
}

static int choose_vocabulary(llmc_trainer *t, const char *data) {
    const llmc_options *o = &t->options;
    const int tokenizer_V = t->tokenizer ? llmc_tokenizer_size(t->tokenizer) : 0;
    if (*t->start_file) return check_vocabulary(t, data);
    if (!o->vocab_size) override(&t->config.V, tokenizer_V);
    if (!t->config.V) return explain_no_vocabulary(data, o->model);
    CHECK(tokenizer_V <= t->config.V, LLMC_EINVAL, "--vocab_size=%d is less than the tokenizer's %d", t->config.V,
          tokenizer_V);
    return llmc_config_check(&t->config);
}

/* Refuses a prompt that cannot be encoded now, not only at the first sample. */
static int check_prompt(const llmc_trainer *t) {
    const char *prompt = t->options.prompt;
    return t->tokenizer ? llmc_tokenizer_encode(t->tokenizer, prompt, (int64_t)strlen(prompt), NULL, 0) : LLMC_OK;
}

/* 6e-4 at 768 channels, as in GPT-3's table of sizes. The rate grows more slowly than the width shrinks, because at C=128 a
 * model with 3.6e-3 learnt to refer back 1,000 to 2,000 steps later than with 2.4e-3 or 1.6e-3. */
static double usual_lr(int C) { return fmin(6e-3, 6e-4 * pow(768.0 / C, 0.75)); }

/* The rate for fine-tuning is gentle, so that the weights keep what they know. It is inverse to the width: GPT, with 768
 * channels, was fine-tuned with 6.25e-5 (Radford et al. 2018, section 4.1), and nanoGPT's example gives GPT-2 XL, with 1600,
 * 3e-5. The demo's model, after 300 steps on 150 stories in other words, has a validation loss of 1.25 with this rate, which
 * still falls; 1.54 with the rate of fresh weights, with which it learns the stories by heart; and 1.89 with a third of this. */
static double tuning_lr(int C) { return fmin(1e-3, 6e-5 * 768.0 / C); }
/* A fine-tuning run often has only a few hundred steps. */
static int64_t tuning_warmup(const llmc_options *o) {
    return o->warmup_steps < o->max_steps / 10 ? o->warmup_steps : o->max_steps / 10;
}

static int is_tuning(const llmc_trainer *t) { return *t->start_file && !t->resumed; }

int setup_check(llmc_trainer *t) {
    llmc_options *o = &t->options;
    double lr;
    TRY(locate_check_device(o->device));
    TRY(open_resume(t));
    const int element = llmc_precision(o->precision); /* the resumed run's, unless the call gave another */
    TRY(element);
    if (!(t->k = llmc_kernels(NULL, element))) return LLMC_EDEVICE;
    if (t->k->element == LLMC_BF16) strcpy(o->precision, "bf16"); /* in the record too, where auto may become fp32 */
    CHECK(*o->data, LLMC_EINVAL, "--data is empty: name a folder, a glob or a file of tokens");
    TRY(llmc_schedule_lr(&lr, o->schedule, 0, o->max_steps, 0, 0, 0, 0));
    TRY(choose_sizes(t));
    t->gentle = o->lr == 0 && is_tuning(t);
    if (is_tuning(t) && !o->warmup_steps_given) o->warmup_steps = tuning_warmup(o);
    if (o->lr == 0) o->lr = t->gentle ? tuning_lr(t->config.C) : usual_lr(t->config.C);
    return o->plan ? LLMC_OK : t->in_place ? check_later_steps(t) : run_check(o);
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
    o->max_seq_len = c->maxT, o->vocab_size = c->V, o->window = c->window;
    if (!o->T) o->T = c->maxT;
}

int setup_open(llmc_trainer *t) {
    TRY(setup_check(t));
    if (plan_without_data(t)) return llmc_config_check(&t->config);
    const char *data = t->options.data;
    CHECK(access(data, F_OK) == 0 || strpbrk(data, "*?["), LLMC_EIO,
          "there is no data at %s: prepare some with python -m pyllmc.prepro, or make the stories: python3 -m "
          "pyllmc.stories",
          data);
    TRY(open_tokenizer(t, data));
    TRY(choose_vocabulary(t, data));
    TRY(check_val_data(t, data));
    TRY(open_data(t, data));
    TRY(check_prompt(t));
    settle_options(&t->options, &t->config);
    if (t->before) settle_options(t->before, &t->config);
    return LLMC_OK;
}

llmc_room setup_room(const llmc_trainer *t) {
    return (llmc_room){
        .B = t->B, .T = t->T, .training = 1, .recompute = (int)t->options.recompute, .precision = t->k->element};
}

/* Adds to the history: the options that had other values before this resume. */
static int note_changes(llmc_trainer *t) {
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

int setup_model(llmc_trainer *t) {
    const llmc_room room = setup_room(t);
    const size_t batch = (size_t)t->B * (size_t)t->T * sizeof(int);
    t->inputs = malloc(batch);
    t->targets = malloc(batch);
    t->losses = malloc((size_t)t->options.grad_accum * sizeof *t->losses);
    CHECK(t->inputs && t->targets && t->losses, LLMC_ENOMEM, "no memory for a batch of tokens");
    TRY(llmc_model_create(&t->model, &t->config, &room, t->threads));
    if (t->file) TRY(llmc_model_load_from(t->model, t->file));
    else TRY(llmc_model_init(t->model, t->options.seed, t->options.init_std));
    if (t->resumed) TRY(restore_state(t));
    if (t->resumed) TRY(note_changes(t));
    else TRY(llmc_model_reset_moments(t->model)); /* a file may bring those of another run */
    llmc_file_free(t->file), t->file = NULL;
    TRY(run_open(&t->run, &t->options, t->history, t->in_place, t->step, t->evaluated));
    if (!t->in_place || !t->options.overwrite) return LLMC_OK;
    const int dropped = run_drop_later(&t->run, t->step);
    if (dropped > 0) t->best_val_loss = INFINITY, t->best_step = -1;
    return dropped < 0 ? dropped : LLMC_OK;
}
