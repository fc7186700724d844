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

char *texts_prompt(const llmc_trainer *t) {
    char *text, *stop;
    if (template_prompt(t->options.template, t->options.prompt, &text, &stop) == 0) free(stop);
    return text;
}

int texts_open(llmc_trainer *t, const char *data) {
    TRY(choose_template(t, data));
    char *prompt = t->tokenizer ? texts_prompt(t) : NULL;
    if (!prompt) return t->tokenizer ? LLMC_ENOMEM : LLMC_OK;
    /* a prompt that cannot be encoded is refused now, not only at the first sample */
    const int rc = llmc_tokenizer_encode(t->tokenizer, prompt, (int64_t)strlen(prompt), NULL, 0);
    free(prompt);
    return rc;
}
