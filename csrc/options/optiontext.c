/* Options as text: the record in a checkpoint, config.txt of a run, and --help. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "base/growing.h"
#include "options/options.h"

int option_is_default(const llmc_options *options, const Option *o) {
    char value[OPTION_TEXT], initial[OPTION_TEXT];
    llmc_options usual = *options;
    option_default(o, initial);
    option_assign(&usual, o, initial);
    option_value(&usual, o, initial);
    option_value(options, o, value);
    return !strcmp(value, initial);
}

int option_is_of_run(const Option *o) { return !o->of_call && o->offset != offsetof(llmc_options, threads); }

/* ---- name=value ---- */

static void add_record(Growing *text, const llmc_options *options) {
    char value[OPTION_TEXT];
    for (EACH_OPTION(o, options)) {
        option_value(options, o, value);
        growing_add(text, "%s=%s\n", o->name, value);
    }
}

char *options_record(const llmc_options *options, const char *history) {
    Growing text = {0};
    add_record(&text, options);
    growing_add(&text, "%s", history);
    return growing_end(&text);
}

int llmc_options_text(const llmc_options *options, char *text, size_t size) {
    Growing record = {0};
    add_record(&record, options);
    const int n = growing_copy(&record, text, size);
    TRY(n);
    CHECK((size_t)n < size, LLMC_EINVAL, "the text of the options has %d bytes, the buffer %zu", n, size);
    return LLMC_OK;
}

/* Writes a value so that options_read reads it back: in quotes if blanks or a # would be lost without them. */
static void add_value(Growing *text, const char *value) {
    const size_t n = strlen(value);
    const int plain = *value != '"' && !strstr(value, " #") && !strstr(value, "\t#") && *value != '#' &&
                      (!n || (!isspace((unsigned char)*value) && !isspace((unsigned char)value[n - 1])));
    if (plain) {
        growing_add(text, "%s", value);
        return;
    }
    growing_add(text, "\"");
    for (const char *c = value; *c; c++) growing_add(text, *c == '"' || *c == '\\' ? "\\%c" : "%c", *c);
    growing_add(text, "\"");
}

static void add_options(Growing *text, const llmc_options *options, int of_call) {
    const char *heading = NULL;
    char value[OPTION_TEXT];
    for (const Option *o = option_table; o < option_table + option_rows; o++) {
        if (o->type == IS_HEADING) heading = o->help;
        if (!(o->programs & options->program) || option_is_of_run(o) == of_call) continue;
        if (heading && !of_call) growing_add(text, "\n# %s\n", heading);
        heading = NULL;
        option_value(options, o, value);
        growing_add(text, "%s%s=", of_call ? "# " : "", o->name);
        add_value(text, value);
        growing_add(text, "\n");
    }
}

char *options_config(const llmc_options *options, const char *history) {
    Growing text = {0};
    growing_add(&text,
                CONFIG_BEGIN " which repeats it with the same losses: ./train_gpt2 --config=THIS_FILE\n"
                             "# An option on the command line counts before the one here.\n%s",
                history);
    add_options(&text, options, 0);
    growing_add(&text, "\n# These were of that call and its machine only, so they are not read.\n");
    add_options(&text, options, 1);
    return growing_end(&text);
}

/* ---- --help ---- */

/* COLUMN: where the help of an option begins. A terminal narrower than NARROW shows it on separate lines. */
enum { COLUMN = 27, NARROW = 60, LEAST = 30, MOST = 120 };

/* The help of a shared option in a chat's --help; `offset` says which option. */
static const struct ChatHelp {
    size_t offset;
    const char *help;
} chat_help[] = {
#define OPTION(...)
#define OF_CHAT(name, help) {offsetof(llmc_options, name), help},
#include "options.def"
};

static const struct About {
    int program;
    const char *use, *text;
} abouts[] = {
#define OPTION(...)
#define ABOUT(use, text) {FOR_TRAINING, use, text},
#define CHAT_ABOUT(use, text) {FOR_CHAT, use, text},
#include "options.def"
};

static const struct Example {
    int program;
    const char *arguments, *what;
} examples[] = {
#define OPTION(...)
#define EXAMPLE(arguments, what) {FOR_TRAINING, arguments, what},
#define CHAT_EXAMPLE(arguments, what) {FOR_CHAT, arguments, what},
#include "options.def"
};

/* Adds words from column `at` on. Further lines begin at `indent`, and no line is longer than `width`. */
static void wrap(Growing *text, const char *words, int at, int indent, int width) {
    int begun = 0;
    while (*words) {
        const int n = (int)strcspn(words, " ");
        if (begun && at + 1 + n > width) growing_add(text, "\n%*s", indent, ""), at = indent, begun = 0;
        growing_add(text, "%s%.*s", begun ? " " : "", n, words);
        at += n + begun, begun = 1;
        words += n + strspn(words + n, " ");
    }
    growing_add(text, "\n");
}

static const char *help_of(const Option *o, int program) {
    for (size_t i = 0; program == FOR_CHAT && i < sizeof chat_help / sizeof *chat_help; i++)
        if (chat_help[i].offset == o->offset) return chat_help[i].help;
    return o->help;
}

static void add_option(Growing *text, const Option *o, int program, int width) {
    static const char *const values[] = {[IS_INT] = "N", [IS_FLOAT] = "X", [IS_STRING] = "TEXT"};
    char initial[OPTION_TEXT], flag[80], help[OPTION_TEXT + 1024];
    const int indent = width < NARROW ? 6 : COLUMN;
    option_default(o, initial);
    /* a chat has no default model: it must be named */
    if (program == FOR_CHAT && o->offset == offsetof(llmc_options, model)) *initial = 0;
    snprintf(flag, sizeof flag, o->type == IS_FLAG ? "  --%s, --no_%s" : "  --%s=%s", o->name,
             o->type == IS_FLAG ? o->name : values[o->type]);
    snprintf(help, sizeof help, "%s%s%s%s", help_of(o, program), *initial ? " [" : "", initial, *initial ? "]" : "");
    if ((int)strlen(flag) < indent) growing_add(text, "%-*s", indent, flag);
    else {
        growing_add(text, "  ");
        wrap(text, flag + 2, 2, 2, width);
        growing_add(text, "%*s", indent, "");
    }
    wrap(text, help, indent, indent, width);
}

static void add_groups(Growing *text, const llmc_options *options, int width) {
    const char *heading = NULL; /* a heading that is not yet written, because no option of its group was */
    for (const Option *o = option_table; o < option_table + option_rows; o++) {
        if (o->type == IS_HEADING) heading = o->help;
        if (!(o->programs & options->program)) continue;
        /* a chat has few options, so it needs no headings */
        if (heading && options->program == FOR_TRAINING) growing_add(text, "\n%s:\n", heading);
        if (heading && options->program == FOR_CHAT && o == option_from(options, option_table)) growing_add(text, "\n");
        heading = NULL;
        add_option(text, o, options->program, width);
    }
}

/* The bytes of the argument that a command begins with; blanks between quotes belong to it. */
static int argument_length(const char *command) {
    int n = 0, quoted = 0;
    for (; command[n] && (quoted || command[n] != ' '); n++) quoted ^= command[n] == '"';
    return n;
}

/* Adds a command that can be pasted: a line too long for the terminal ends with a backslash and goes on in the next one. */
static void add_command(Growing *text, const char *command, const char *arguments, int width) {
    enum { INDENT = 8 };
    int at = 2 + (int)strlen(command);
    growing_add(text, "  %s", command);
    for (int n; *arguments; arguments += n, arguments += *arguments == ' ') {
        n = argument_length(arguments);
        const int fits = at + 1 + n + (arguments[n] ? 2 : 0) <= width; /* a backslash may have to follow */
        growing_add(text, fits ? " %.*s" : " \\\n        %.*s", n, arguments);
        at = (fits ? at + 1 : INDENT) + n;
    }
    growing_add(text, "\n");
}

static void add_examples(Growing *text, int program, const char *command, int width) {
    growing_add(text, "\nfor example\n");
    for (size_t i = 0; i < sizeof examples / sizeof *examples; i++) {
        if (examples[i].program != program) continue;
        add_command(text, command, examples[i].arguments, width);
        growing_add(text, "      ");
        wrap(text, examples[i].what, 6, 6, width);
    }
}

static void add_about(Growing *text, int program, const char *command, int width) {
    for (size_t i = 0; i < sizeof abouts / sizeof *abouts; i++) {
        if (abouts[i].program != program) continue;
        growing_add(text, "%s ", command);
        wrap(text, abouts[i].use, (int)strlen(command) + 1, 4, width);
        growing_add(text, "\n");
        wrap(text, abouts[i].text, 0, 0, width);
    }
}

/* pyllmc/base/errors.py says the same in the --help of Python commands. */
static void add_exit_codes(Growing *text, int program, int width) {
    char codes[256];
    snprintf(codes, sizeof codes,
             "exit status: 0 done, 2 usage, 3 memory, 4 malformed file, 5 input/output, 6 device, 7 not finite, 130 "
             "interrupted%s",
             program == FOR_TRAINING ? " (after a checkpoint)" : "");
    wrap(text, codes, 0, 0, width);
}

int llmc_options_help(const llmc_options *options, const char *command, int width, char *text, size_t size) {
    Growing help = {0};
    const int program = options->program, wide = width < LEAST ? LEAST : width > MOST ? MOST : width;
    add_about(&help, program, command, wide);
    add_groups(&help, options, wide);
    add_examples(&help, program, command, wide);
    growing_add(&help, "\n");
    wrap(&help, "If an option is given twice, the last one counts; --version prints the version.", 0, 0, wide);
    growing_add(&help, "\n");
    add_exit_codes(&help, program, wide);
    return growing_copy(&help, text, size);
}
