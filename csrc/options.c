/* Options by name: set, get, parse a command line, print as text or as --help. The list is options.def. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "error.h"
#include "options.h"

enum { IS_INT, IS_FLAG, IS_FLOAT, IS_STRING, IS_HEADING };
typedef struct Option {
    const char *name, *initial, *help;
    int type, programs; /* of none: a heading of --help */
    size_t offset, given;
    double least, most;
    int of_call;
} Option;

#define IS(type) IS_##type
#define ROW(programs, of_call, type, name, initial, least, most, help) \
    {#name,                                                            \
     #initial,                                                         \
     help,                                                             \
     IS(type),                                                         \
     programs,                                                         \
     offsetof(llmc_options, name),                                     \
     offsetof(llmc_options, name##_given),                             \
     (double)(least),                                                  \
     (double)(most),                                                   \
     of_call},
static const Option table[] = {
#define OPTION(...) ROW(FOR_TRAINING, 0, __VA_ARGS__)
#define SHARED(...) ROW(FOR_TRAINING | FOR_CHAT, 0, __VA_ARGS__)
#define CHAT(...) ROW(FOR_CHAT, 0, __VA_ARGS__)
#define CALL(...) ROW(FOR_TRAINING, 1, __VA_ARGS__)
#define SHARED_CALL(...) ROW(FOR_TRAINING | FOR_CHAT, 1, __VA_ARGS__)
#define GROUP(title) {.type = IS_HEADING, .help = title},
#include "options.def"
};
enum { NUM_ROWS = sizeof table / sizeof *table };

static const struct Alias {
    const char *name, *ours;
} aliases[] = {
#define OPTION(...)
#define ALIAS(name, ours) {#name, #ours},
#include "options.def"
};

/* by offset, what a chat says of a shared option */
static const struct ChatHelp {
    size_t offset;
    const char *help;
} chat_help[] = {
#define OPTION(...)
#define OF_CHAT(name, help) {offsetof(llmc_options, name), help},
#include "options.def"
};

int llmc_num_options(void) {
    int n = 0;
    for (int i = 0; i < NUM_ROWS; i++) n += table[i].type != IS_HEADING;
    return n;
}

const char *llmc_option_name(int i) {
    for (const Option *o = table; i >= 0 && o < table + NUM_ROWS; o++)
        if (o->type != IS_HEADING && i-- == 0) return o->name;
    return NULL;
}

/* ---- names ---- */

static int same_name(const char *a, const char *b) { /* --max-steps is --max_steps */
    for (; *a && *b; a++, b++)
        if (*a != *b && !(*a == '-' && *b == '_')) return 0;
    return *a == *b;
}

static int distance(const char *a, const char *b) { /* Levenshtein's, of short words */
    int row[64];
    const int n = (int)strlen(b);
    if (n >= 63 || strlen(a) >= 63) return 64;
    for (int j = 0; j <= n; j++) row[j] = j;
    for (int i = 1; *a; i++, a++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            const int change = diagonal + (*a != b[j - 1]), drop = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            diagonal = row[j];
            row[j] = change < drop ? change : drop;
        }
    }
    return row[n];
}

/* the next row, from `o` on, of the program that the options are for */
static const Option *of_program(const llmc_options *options, const Option *o) {
    while (o < table + NUM_ROWS && !(o->programs & options->program)) o++;
    return o;
}
#define EACH_OPTION(o, options)                   \
    const Option *o = of_program(options, table); \
    o < table + NUM_ROWS;                         \
    o = of_program(options, o + 1)

static const Option *exact(const llmc_options *options, const char *name) {
    for (EACH_OPTION(o, options))
        if (same_name(name, o->name)) return o;
    return NULL;
}

/* what somebody who wrote `name` may have meant, or NULL: it has another name here, or hardly another spelling */
static const Option *meant(const llmc_options *options, const char *name) {
    const Option *nearest = NULL;
    const int length = (int)strlen(name);
    int least = (length > 3 ? (length + 1) / 3 : 1) + 1; /* two swapped letters count as two */
    for (size_t i = 0; i < sizeof aliases / sizeof *aliases; i++)
        if (same_name(name, aliases[i].name)) return exact(options, aliases[i].ours);
    for (EACH_OPTION(o, options)) {
        const int d = distance(name, o->name);
        if (d < least) least = d, nearest = o;
    }
    return nearest;
}

static int find(const llmc_options *options, const char *name, const Option **found) {
    if ((*found = exact(options, name))) return LLMC_OK;
    const Option *nearest = meant(options, name);
    CHECK(!nearest, LLMC_EINVAL, "unknown option --%.60s: did you mean --%s?", name, nearest->name);
    FAIL(LLMC_EINVAL, "unknown option --%.60s: --help lists them", name);
}

/* ---- values ---- */

static int parse_int(const Option *o, const char *text, int64_t *value) {
    char *end;
    errno = 0;
    long long n = strtoll(text, &end, 10);
    CHECK(*text && !*end, LLMC_EINVAL, "--%s=%.60s is not a whole number", o->name, text);
    CHECK(!errno && (double)n >= o->least && (double)n <= o->most, LLMC_EINVAL, "--%s=%.60s is not in %.0f..%.0f",
          o->name, text, o->least, o->most);
    *value = n;
    return LLMC_OK;
}

static int parse_float(const Option *o, const char *text, double *value) {
    char *end;
    const double x = strtod(text, &end);
    CHECK(*text && !*end, LLMC_EINVAL, "--%s=%.60s is not a number", o->name, text);
    CHECK(x >= o->least && x <= o->most, LLMC_EINVAL, "--%s=%.60s is not in %.10g..%.10g%s", o->name, text, o->least,
          o->most, o->most < 1 ? ": it must be below 1" : "");
    *value = x;
    return LLMC_OK;
}

static int parse_flag(const Option *o, const char *text, int64_t *value) {
    const char *words[] = {"0", "false", "False", "no", "off", "1", "true", "True", "yes", "on"};
    for (int i = 0; i < 10; i++)
        if (!strcmp(text, words[i])) return *value = i >= 5, LLMC_OK;
    FAIL(LLMC_EINVAL, "--%s=%.60s is neither yes nor no", o->name, text);
}

static int assign(llmc_options *options, const Option *o, const char *text) {
    void *at = (char *)options + o->offset;
    if (o->type == IS_INT) return parse_int(o, text, at);
    if (o->type == IS_FLOAT) return parse_float(o, text, at);
    if (o->type == IS_FLAG) return parse_flag(o, text, at);
    CHECK(strlen(text) < OPTION_TEXT, LLMC_EINVAL, "--%s is longer than %d bytes", o->name, OPTION_TEXT - 1);
    CHECK(options->program == FOR_CHAT || !strpbrk(text, "\r\n"), LLMC_EINVAL, "--%s holds a line break", o->name);
    strcpy(at, text);
    return LLMC_OK;
}

static void unquoted(const char *initial, char *text, size_t size) { /* "demo" as spelled in the table -> demo */
    const int quoted = initial[0] == '"';
    snprintf(text, size, "%.*s", (int)strlen(initial) - 2 * quoted, initial + quoted);
}

static llmc_options *new_options(int program) {
    llmc_options *options = calloc(1, sizeof *options);
    char text[OPTION_TEXT];
    for (const Option *o = table; options && o < table + NUM_ROWS; o++) {
        if (o->type == IS_HEADING) continue;
        unquoted(o->initial, text, sizeof text);
        assign(options, o, text);
    }
    if (options) options->program = program;
    else llmc_fail(LLMC_ENOMEM, "no memory for the options");
    return options;
}

llmc_options *llmc_options_new(void) { return new_options(FOR_TRAINING); }
llmc_options *llmc_options_new_chat(void) { return new_options(FOR_CHAT); }

void llmc_options_free(llmc_options *options) { free(options); }

int llmc_options_set(llmc_options *options, const char *name, const char *value) {
    const Option *o = NULL;
    TRY(find(options, name, &o));
    TRY(assign(options, o, value));
    *((unsigned char *)options + o->given) = 1;
    return LLMC_OK;
}

static void value_text(const llmc_options *options, const Option *o, char *text, size_t size) {
    const void *at = (const char *)options + o->offset;
    if (o->type == IS_STRING) snprintf(text, size, "%s", (const char *)at);
    else if (o->type == IS_FLOAT) snprintf(text, size, "%.17g", *(const double *)at);
    else snprintf(text, size, "%lld", (long long)*(const int64_t *)at);
}

int llmc_options_get(const llmc_options *options, const char *name, char *text, size_t size) {
    const Option *o = NULL;
    TRY(find(options, name, &o));
    return value_text(options, o, text, size), LLMC_OK;
}

static int is_given(const llmc_options *options, const Option *o) {
    return *((const unsigned char *)options + o->given);
}

int llmc_options_is_given(const llmc_options *options, const char *name) {
    const Option *o = NULL;
    TRY(find(options, name, &o));
    return is_given(options, o);
}

int options_adopt(llmc_options *options, const char *name, const char *value) {
    const Option *o = exact(options, name);
    const int adopted = o && *value && !o->of_call && !is_given(options, o);
    return adopted ? assign(options, o, value) : LLMC_OK; /* not given in this call */
}

/* ---- the command line ---- */

/* one argument; *used tells whether it took the next one as its value */
static int parse_one(llmc_options *options, const char *argument, const char *next, int *used) {
    char name[64];
    const Option *o = NULL;
    const char *value = strchr(argument, '=');
    *used = 0;
    CHECK(!strncmp(argument, "--", 2), LLMC_EINVAL, "'%.60s' is not an option: write --name=value; --help lists them",
          argument);
    snprintf(name, sizeof name, "%.*s", value ? (int)(value - argument - 2) : 60, argument + 2);
    const int negated = !value && (!strncmp(name, "no_", 3) || !strncmp(name, "no-", 3));
    TRY(find(options, negated ? name + 3 : name, &o));
    CHECK(!negated || o->type == IS_FLAG, LLMC_EINVAL, "unknown option --%s: --no_ is for flags", name);
    if (value) return llmc_options_set(options, o->name, value + 1);
    if (o->type == IS_FLAG) return llmc_options_set(options, o->name, negated ? "0" : "1");
    CHECK(next && strncmp(next, "--", 2), LLMC_EINVAL, "--%s needs a value", o->name);
    *used = 1;
    return llmc_options_set(options, o->name, next);
}

int llmc_options_parse(llmc_options *options, int argc, const char *const *argv) {
    const char *const places[] = {"model", "tokenizer"}; /* what a chat's arguments without a name are */
    int named = options->program == FOR_CHAT ? 0 : 2;
    for (int i = 0, used; i < argc; i += 1 + used) {
        used = 0;
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) return 1;
        if (!strcmp(argv[i], "--version")) return 2;
        if (*argv[i] != '-' && named < 2) TRY(llmc_options_set(options, places[named++], argv[i]));
        else TRY(parse_one(options, argv[i], i + 1 < argc ? argv[i + 1] : NULL, &used));
    }
    return LLMC_OK;
}

int llmc_options_only_write(const llmc_options *o) {
    return o->max_steps == 0 && o->prompt_given && !o->data_given && !*o->resume;
}

/* ---- as text ---- */

static int append(char **at, size_t *left, const char *text) {
    const size_t n = strlen(text);
    CHECK(n < *left, LLMC_EINVAL, "the options do not fit the buffer");
    memcpy(*at, text, n + 1);
    *at += n;
    *left -= n;
    return LLMC_OK;
}

int llmc_options_text(const llmc_options *options, char *text, size_t size) {
    char line[OPTION_TEXT + 80], value[OPTION_TEXT];
    for (EACH_OPTION(o, options)) {
        value_text(options, o, value, sizeof value);
        snprintf(line, sizeof line, "%s=%s\n", o->name, value);
        TRY(append(&text, &size, line));
    }
    return LLMC_OK;
}

static const char HELP_END[] =
    "\nof an option given twice the last counts; --version tells the version\n\n"
    "exit status: 0 done, 2 usage, 3 memory, 4 malformed file, 5 input/output, 6 device, 7 not finite,\n"
    "130 interrupted";

static const char *help_of(const Option *o, int program) {
    for (size_t i = 0; program == FOR_CHAT && i < sizeof chat_help / sizeof *chat_help; i++)
        if (chat_help[i].offset == o->offset) return chat_help[i].help;
    return o->help;
}

static void help_line(const Option *o, int program, char *line, size_t size) {
    static const char *const values[] = {[IS_INT] = "N", [IS_FLOAT] = "X", [IS_STRING] = "TEXT"};
    char initial[OPTION_TEXT], flag[64];
    unquoted(o->initial, initial, sizeof initial);
    if (program == FOR_CHAT && o->offset == offsetof(llmc_options, model)) *initial = 0; /* it must be named */
    snprintf(flag, sizeof flag, o->type == IS_FLAG ? "--%s, --no_%s" : "--%s=%s", o->name,
             o->type == IS_FLAG ? o->name : values[o->type]);
    snprintf(line, size, "  %-24s %s%s%.40s%s\n", flag, help_of(o, program), *initial ? " [" : "", initial,
             *initial ? "]" : "");
}

int llmc_options_help(const llmc_options *options, char *text, size_t size) {
    char line[512];
    const char *heading = NULL; /* of what comes; printed before the first option that the program has */
    for (const Option *o = table; o < table + NUM_ROWS; o++) {
        if (o->type == IS_HEADING) heading = o->help;
        if (!(o->programs & options->program)) continue;
        if (heading && options->program == FOR_TRAINING) { /* a chat's are few */
            snprintf(line, sizeof line, "%s%s:\n", o == table + 1 ? "" : "\n", heading);
            TRY(append(&text, &size, line));
        }
        heading = NULL;
        help_line(o, options->program, line, sizeof line);
        TRY(append(&text, &size, line));
    }
    TRY(append(&text, &size, HELP_END));
    return append(&text, &size, options->program == FOR_TRAINING ? " (after a checkpoint)\n" : "\n");
}
