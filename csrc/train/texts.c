/* The texts of a run: its prompt, and the template that turns and answers are written with. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/binfile.h"
#include "base/error.h"
#include "train/trainer.h"
#include "write/template.h"

/* Reads template.txt, which prepro writes beside token files made of pairs; "" if there is none. */
static int read_template(const char *data, char line[OPTION_TEXT]) {
    char path[2 * OPTION_TEXT];
    BinFile f;
    snprintf(path, sizeof path, "%s/template.txt", data);
    *line = 0;
    if (access(path, F_OK) < 0) return LLMC_OK;
    TRY(binfile_open(&f, path));
    int rc = f.size < OPTION_TEXT ? binfile_read(&f, line, f.size, 0)
                                  : llmc_fail(LLMC_EFORMAT, "%s has %lld bytes, a template at most %d: shorten it",
                                              path, (long long)f.size, OPTION_TEXT - 1);
    if (rc == 0) line[f.size] = 0, line[strcspn(line, "\r\n")] = 0;
    binfile_close(&f);
    return rc;
}

/* Puts the template itself into the options, so that every checkpoint of the run records it. */
static int choose_template(llmc_trainer *t, const char *data) {
    llmc_options *o = &t->options;
    char found[OPTION_TEXT];
    const char *line;
    Template parsed;
    int kind = template_kind(o->template, &line);
    if (kind == TEMPLATE_AUTO) {
        TRY(read_template(data, found));
        if (!*found && t->file) TRY(template_of_file(t->file, found));
        if (*found) kind = template_kind(found, &line);
    }
    TRY(kind);
    if (kind != TEMPLATE_TEXT) return LLMC_OK;
    TRY(template_parse(&parsed, line));
    memmove(o->template, line, strlen(line) + 1);
    return LLMC_OK;
}

/* The text of a window from behind its EOT up to its first learnt token; NULL if it begins with no EOT, or with what is learnt. */
static int asked_in(const llmc_trainer *t, const int *inputs, const int *targets, char **text) {
    int n = 0;
    *text = NULL;
    while (n < t->T && targets[n] < 0) n++;
    if (!n || n == t->T || *inputs != llmc_tokenizer_eot(t->tokenizer)) return LLMC_OK;
    const int size = llmc_tokenizer_decode(t->tokenizer, inputs + 1, n, NULL, 0);
    TRY(size);
    *text = calloc(1, (size_t)size + 1);
    CHECK(*text, LLMC_ENOMEM, "no memory for a prompt of %d bytes", size);
    const int rc = llmc_tokenizer_decode(t->tokenizer, inputs + 1, n, *text, size);
    if (rc < 0) free(*text), *text = NULL;
    return rc;
}

/* Makes the first prompt of the data, up to its answer. NULL: no prompt is among its first windows. */
static int ask(llmc_trainer *t, llmc_loader *data, char **text) {
    const int64_t position = llmc_loader_position(data);
    *text = NULL;
    if (!step_is_masked(data)) return LLMC_OK;
    TRY(llmc_loader_set_position(data, 0));
    TRY(llmc_loader_next(data, t->inputs, t->targets));
    for (int64_t b = 0; b < t->B && !*text; b++) TRY(asked_in(t, t->inputs + b * t->T, t->targets + b * t->T, text));
    return llmc_loader_set_position(data, position);
}

/* The same of the validation sets, or else of the training data. */
static int ask_any(llmc_trainer *t, char **text) {
    *text = NULL;
    for (int i = 0; i < t->num_vals && !*text; i++) TRY(ask(t, t->vals[i].loader, text));
    return *text ? LLMC_OK : ask(t, t->train, text);
}

int texts_prompt(llmc_trainer *t, char **text) {
    const llmc_options *o = &t->options;
    char *stop;
    const char *line;
    if (!*o->prompt && t->inputs && template_kind(o->template, &line) == TEMPLATE_TEXT) {
        TRY(ask_any(t, text));
        if (*text) return LLMC_OK;
    }
    TRY(template_prompt(o->template, o->prompt, text, &stop));
    free(stop);
    return LLMC_OK;
}

int texts_open(llmc_trainer *t, const char *data) {
    char *prompt;
    TRY(choose_template(t, data));
    if (!t->tokenizer) return LLMC_OK;
    TRY(texts_prompt(t, &prompt));
    /* a prompt that cannot be encoded is refused now, not only at the first sample */
    const int rc = llmc_tokenizer_encode(t->tokenizer, prompt, (int64_t)strlen(prompt), NULL, 0);
    free(prompt);
    return rc;
}
