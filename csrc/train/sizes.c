/* The sizes of the model of a run, and the vocabulary that its data must have. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/error.h"
#include "text/agree.h"
#include "train/trainer.h"
#include "write/locate.h"

static void override(int *value, int64_t option) {
    if (option) *value = (int)option;
}

/* If Python has converted the file, its user knows it by the name of the original. */
const char *sizes_weights_name(const llmc_trainer *t) {
    return *t->options.model_file && !strcmp(t->start_file, t->options.model_file) ? t->options.model : t->start_file;
}

/* What a file says of its model cannot be changed by options. */
static int refuse_other(const char *file, const char *name, int64_t given, int64_t asked, int has) {
    CHECK(!given || asked == has, LLMC_EINVAL, "--%s=%lld, but %s has %d: leave the option out", name, (long long)asked,
          file, has);
    return LLMC_OK;
}

static int refuse_other_sizes(const llmc_options *o, const char *file, const llmc_config *c) {
    TRY(refuse_other(file, "n_layer", o->n_layer, o->n_layer, c->L));
    TRY(refuse_other(file, "n_head", o->n_head, o->n_head, c->NH));
    TRY(refuse_other(file, "n_embd", o->n_embd, o->n_embd, c->C));
    TRY(refuse_other(file, "max_seq_len", o->max_seq_len, o->max_seq_len, c->maxT));
    TRY(refuse_other(file, "vocab_size", o->vocab_size, o->vocab_size, c->V));
    TRY(refuse_other(file, "window", o->window_given, o->window, c->window));
    TRY(refuse_other(file, "untied", o->untied_given, o->untied, c->untied));
    llmc_config asked = *c;
    TRY(llmc_config_set_pattern(&asked, *o->pattern ? o->pattern : c->pattern));
    TRY(llmc_config_check(&asked)); /* makes the pattern as short as the model's */
    CHECK(!strcmp(asked.pattern, c->pattern), LLMC_EINVAL, "--pattern=%s, but %s has %s: leave the option out",
          o->pattern, file, *c->pattern ? c->pattern : "dense layers only");
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
    const char *const of_model[] = {"n_layer", "n_head", "n_embd", "max_seq_len", "vocab_size",   "window",
                                    "pattern", "untied", "T",      "lr",          "warmup_steps", "warmup_tokens"};
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

int sizes_choose(llmc_trainer *t) {
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
        TRY(refuse_other_sizes(o, sizes_weights_name(t), c));
    } else {
        TRY(llmc_config_parse(c, o->model));
        override(&c->V, o->vocab_size);
        override(&c->L, o->n_layer);
        override(&c->NH, o->n_head);
        override(&c->C, o->n_embd);
        override(&c->maxT, o->max_seq_len);
        override(&c->window, o->window);
        override(&c->untied, o->untied);
        TRY(llmc_config_set_pattern(c, o->pattern));
    }
    t->T = o->T ? (int)o->T : c->maxT;
    CHECK(t->T <= c->maxT, LLMC_EINVAL, "--T=%d is longer than the model's context of %d: lower --T%s", t->T, c->maxT,
          *t->start_file ? "" : " or raise --max_seq_len");
    llmc_config known = *c;
    override(&known.V, !known.V);
    TRY(llmc_config_check(&known));
    return llmc_config_set_pattern(c, known.pattern);
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
          sizes_weights_name(t), t->config.V, V, sizes_weights_name(t));
    const int same = !own || !t->tokenizer || tokenizers_agree(own, t->tokenizer);
    llmc_tokenizer_free(own);
    CHECK(same, LLMC_EINVAL,
          "%s was trained with another tokenizer than that of %s, whose ids mean other text: begin a new model, or "
          "prepare the data with the model's tokenizer: python -m pyllmc.prepro --input TEXT --tokenizer %s",
          sizes_weights_name(t), *t->options.tokenizer ? t->options.tokenizer : data, sizes_weights_name(t));
    return LLMC_OK;
}

static int check_val_set(const llmc_trainer *t, const char *val, const char *data) {
    char path[2 * OPTION_TEXT];
    llmc_tokenizer *own = NULL;
    snprintf(path, sizeof path, "%s/tokenizer.bin", val);
    if (access(path, F_OK) < 0) return LLMC_OK;
    TRY(llmc_tokenizer_open(&own, path));
    const int same = tokenizers_agree(own, t->tokenizer);
    llmc_tokenizer_free(own);
    CHECK(same, LLMC_EINVAL,
          "--val_data=%s has another tokenizer than --data, so its ids mean other text: prepare it with --tokenizer %s",
          val, data);
    return LLMC_OK;
}

int sizes_check_val_data(const llmc_trainer *t, const char *data) {
    for (int i = 0; t->tokenizer && i < t->num_vals; i++) TRY(check_val_set(t, t->vals[i].path, data));
    return LLMC_OK;
}

int sizes_choose_vocabulary(llmc_trainer *t, const char *data) {
    const llmc_options *o = &t->options;
    const int tokenizer_V = t->tokenizer ? llmc_tokenizer_size(t->tokenizer) : 0;
    if (*t->start_file) return check_vocabulary(t, data);
    if (!o->vocab_size) override(&t->config.V, tokenizer_V);
    if (!t->config.V) return explain_no_vocabulary(data, o->model);
    CHECK(tokenizer_V <= t->config.V, LLMC_EINVAL, "--vocab_size=%d is less than the tokenizer's %d", t->config.V,
          tokenizer_V);
    return llmc_config_check(&t->config);
}
