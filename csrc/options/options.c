/* Options by name: set, get, parse a command line. The list is options.def. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "base/near.h"
#include "base/number.h"
#include "options/options.h"

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
const Option option_table[] = {
#define OPTION(...) ROW(FOR_TRAINING, 0, __VA_ARGS__)
#define SHARED(...) ROW(FOR_TRAINING | FOR_CHAT, 0, __VA_ARGS__)
#define CHAT(...) ROW(FOR_CHAT, 0, __VA_ARGS__)
#define CALL(...) ROW(FOR_TRAINING, 1, __VA_ARGS__)
#define SHARED_CALL(...) ROW(FOR_TRAINING | FOR_CHAT, 1, __VA_ARGS__)
#define GROUP(title) {.type = IS_HEADING, .help = title},
#include "options.def"
};
enum { NUM_ROWS = sizeof option_table / sizeof *option_table };
const int option_rows = NUM_ROWS;

typedef struct Alias {
    const char *name, *ours;
} Alias;
static const Alias aliases[] = {
#define OPTION(...)
#define ALIAS(name, ours) {#name, #ours},
#include "options.def"
};
static const Alias synonyms[] = {
#define OPTION(...)
#define SYNONYM(name, ours) {#name, #ours},
#include "options.def"
};

int llmc_num_options(void) {
    int n = 0;
    for (int i = 0; i < NUM_ROWS; i++) n += option_table[i].type != IS_HEADING;
    return n;
}

const char *llmc_option_name(int i) {
    for (const Option *o = option_table; i >= 0 && o < option_table + NUM_ROWS; o++)
        if (o->type != IS_HEADING && i-- == 0) return o->name;
    return NULL;
}

/* ---- names ---- */

static int same_name(const char *a, const char *b) { /* --max-steps is --max_steps */
    for (; *a && *b; a++, b++)
        if (*a != *b && !(*a == '-' && *b == '_')) return 0;
    return *a == *b;
}

const Option *option_from(const llmc_options *options, const Option *o) {
    while (o < option_table + NUM_ROWS && !(o->programs & options->program)) o++;
    return o < option_table + NUM_ROWS ? o : NULL;
}

static const Option *exact(const llmc_options *options, const char *name) {
    for (size_t i = 0; i < sizeof synonyms / sizeof *synonyms; i++)
        if (same_name(name, synonyms[i].name)) name = synonyms[i].ours;
    for (EACH_OPTION(o, options))
        if (same_name(name, o->name)) return o;
    return NULL;
}

/* The option that another trainer calls by this name, or that is spelt nearly like it; else NULL */
static const Option *nearest(const llmc_options *options, const char *name) {
    const Option *found = NULL;
    int least = near_enough(name) + 1;
    for (size_t i = 0; i < sizeof aliases / sizeof *aliases; i++)
        if (same_name(name, aliases[i].name)) return exact(options, aliases[i].ours);
    for (EACH_OPTION(o, options)) {
        const int d = near_distance(name, o->name);
        if (d < least) least = d, found = o;
    }
    return found;
}

/* 1 if `word` is one of the parts that _ separates in `name`: tokens is a part of sample_tokens */
static int is_part(const char *word, const char *name) {
    const size_t n = strlen(word);
    for (const char *at = name; n >= 3 && at; at = strchr(at, '_'), at = at ? at + 1 : NULL)
        if (!strncmp(at, word, n) && (!at[n] || at[n] == '_')) return 1;
    return 0;
}

/* Writes the options that `name` may have been meant as: "--a", "--a, --b or --c", or "". */
static void meant(const llmc_options *options, const char *name, char *text, size_t size) {
    const Option *found[8], *one = nearest(options, name);
    int n = 0;
    *text = 0;
    if (one) found[n++] = one;
    for (EACH_OPTION(o, options))
        if (!one && n < 8 && is_part(name, o->name)) found[n++] = o;
    for (int i = 0; i < n; i++)
        snprintf(text + strlen(text), size - strlen(text), "%s--%s",
                 !i          ? ""
                 : i + 1 < n ? ", "
                             : " or ",
                 found[i]->name);
}

int option_find(const llmc_options *options, const char *name, const Option **found) {
    char others[512];
    if ((*found = exact(options, name))) return LLMC_OK;
    meant(options, name, others, sizeof others);
    CHECK(!*others, LLMC_EINVAL, "unknown option --%.60s: did you mean %s?", name, others);
    FAIL(LLMC_EINVAL, "unknown option --%.60s: --help lists them", name);
}

/* ---- values ---- */

/* The bound of a whole number; a double holds 2^63 in place of 2^63 - 1. */
static long long whole_bound(double bound) { return bound < 0x1p63 ? (long long)bound : INT64_MAX; }

static int parse_int(const Option *o, const char *text, int64_t *value) {
    int64_t n = 0;
    const int rc = number_whole(text, &n);
    CHECK(rc >= 0, LLMC_EINVAL, "--%s=%.60s is not a whole number", o->name, text);
    CHECK(!rc && (double)n >= o->least && (double)n <= o->most, LLMC_EINVAL, "--%s=%.60s is not in %lld..%lld", o->name,
          text, whole_bound(o->least), whole_bound(o->most));
    *value = n;
    return LLMC_OK;
}

static int parse_float(const Option *o, const char *text, double *value) {
    double x = 0;
    const int rc = number_real(text, &x);
    CHECK(rc >= 0, LLMC_EINVAL, "--%s=%.60s is not a number", o->name, text);
    CHECK(!rc || x, LLMC_EINVAL, "--%s=%.60s is too small for a number, and is not 0: write 0", o->name, text);
    CHECK(!rc && x >= o->least && x <= o->most, LLMC_EINVAL, "--%s=%.60s is not in %.10g..%.10g%s", o->name, text,
          o->least, o->most, o->most < 1 ? ": it must be at least 0 and below 1" : "");
    *value = x;
    return LLMC_OK;
}

static int parse_flag(const Option *o, const char *text, int64_t *value) {
    const char *words[] = {"0", "false", "False", "no", "off", "1", "true", "True", "yes", "on"};
    for (int i = 0; i < 10; i++)
        if (!strcmp(text, words[i])) return *value = i >= 5, LLMC_OK;
    FAIL(LLMC_EINVAL, "--%s=%.60s is neither yes nor no", o->name, text);
}

int option_assign(llmc_options *options, const Option *o, const char *text) {
    void *at = (char *)options + o->offset;
    if (o->type == IS_INT) return parse_int(o, text, at);
    if (o->type == IS_FLOAT) return parse_float(o, text, at);
    if (o->type == IS_FLAG) return parse_flag(o, text, at);
    CHECK(strlen(text) < OPTION_TEXT, LLMC_EINVAL, "--%s is longer than %d bytes: %s", o->name, OPTION_TEXT - 1,
          options->program == FOR_CHAT && !strcmp(o->name, "prompt") ? "pipe the turn into standard input instead"
                                                                     : "shorten it");
    CHECK(options->program == FOR_CHAT || !strpbrk(text, "\r\n"), LLMC_EINVAL, "--%s holds a line break", o->name);
    strcpy(at, text);
    return LLMC_OK;
}

void option_default(const Option *o, char text[OPTION_TEXT]) { /* "demo" in the table, with its quotes, becomes demo */
    const int quoted = o->initial[0] == '"';
    snprintf(text, OPTION_TEXT, "%.*s", (int)strlen(o->initial) - 2 * quoted, o->initial + quoted);
}

static llmc_options *new_options(int program) {
    llmc_options *options = calloc(1, sizeof *options);
    char text[OPTION_TEXT];
    for (const Option *o = option_table; options && o < option_table + NUM_ROWS; o++) {
        if (o->type == IS_HEADING) continue;
        option_default(o, text);
        option_assign(options, o, text);
    }
    if (options) options->program = program;
    else llmc_fail(LLMC_ENOMEM, "no memory for the options");
    return options;
}

llmc_options *llmc_options_new(void) { return new_options(FOR_TRAINING); }
llmc_options *llmc_options_new_chat(void) { return new_options(FOR_CHAT); }

void llmc_options_free(llmc_options *options) { free(options); }

unsigned char *option_given(llmc_options *options, const Option *o) { return (unsigned char *)options + o->given; }

int llmc_options_set(llmc_options *options, const char *name, const char *value) {
    const Option *o = NULL;
    TRY(option_find(options, name, &o));
    if (o->offset == offsetof(llmc_options, config) && *value) TRY(options_read(options, value));
    TRY(option_assign(options, o, value));
    *option_given(options, o) = BY_CALL;
    return LLMC_OK;
}

static void value_text(const llmc_options *options, const Option *o, char *text, size_t size) {
    const void *at = (const char *)options + o->offset;
    char number[NUMBER_TEXT];
    if (o->type == IS_FLOAT) number_text(*(const double *)at, number);
    if (o->type == IS_STRING) snprintf(text, size, "%s", (const char *)at);
    else if (o->type == IS_FLOAT) snprintf(text, size, "%s", number);
    else snprintf(text, size, "%lld", (long long)*(const int64_t *)at);
}

void option_value(const llmc_options *options, const Option *o, char text[OPTION_TEXT]) {
    value_text(options, o, text, OPTION_TEXT);
}

static int set_file(char file[OPTION_TEXT], const char *path) {
    CHECK(strlen(path) < OPTION_TEXT, LLMC_EINVAL, "the path of the model's file is longer than %d bytes",
          OPTION_TEXT - 1);
    strcpy(file, path);
    return LLMC_OK;
}

int llmc_options_set_model_file(llmc_options *options, const char *path) { return set_file(options->model_file, path); }
int llmc_options_set_base_file(llmc_options *options, const char *path) { return set_file(options->base_file, path); }

int llmc_options_get(const llmc_options *options, const char *name, char *text, size_t size) {
    const Option *o = NULL;
    TRY(option_find(options, name, &o));
    value_text(options, o, text, size);
    return LLMC_OK;
}

int llmc_options_set_team(llmc_options *options, const llmc_team *team) {
    CHECK(!team || (team->world >= 1 && team->rank >= 0 && team->rank < team->world && team->local >= 1), LLMC_EINVAL,
          "rank %d of %d processes: expected 0 <= rank < world", team->rank, team->world);
    return options->team = team, LLMC_OK;
}

int llmc_options_examine(llmc_options *options, int on) { return options->examines = on, LLMC_OK; }

int llmc_options_is_given(const llmc_options *options, const char *name) {
    const Option *o = NULL;
    TRY(option_find(options, name, &o));
    return *((const unsigned char *)options + o->given) != 0;
}

int options_adopt(llmc_options *options, const char *name, const char *value) {
    const Option *o = exact(options, name);
    const int adopted = o && *value && !o->of_call && !*option_given(options, o);
    return adopted ? option_assign(options, o, value) : LLMC_OK; /* an option of this call keeps its value */
}

/* ---- the command line ---- */

static int set_option(llmc_options *options, const Option *o, const char *value) {
    CHECK(*value || o->offset != offsetof(llmc_options, config), LLMC_EINVAL,
          "--config is empty: name a file of options or a run's folder");
    return llmc_options_set(options, o->name, value);
}

/* Parses one argument; *used is 1 if the next argument was its value. */
static int parse_one(llmc_options *options, const char *argument, const char *next, int *used) {
    char name[64];
    const Option *o = NULL;
    const char *value = strchr(argument, '=');
    *used = 0;
    CHECK(!strncmp(argument, "--", 2), LLMC_EINVAL, "'%.60s' is not an option: write --name=value; --help lists them",
          argument);
    snprintf(name, sizeof name, "%.*s", value ? (int)(value - argument - 2) : 60, argument + 2);
    CHECK(!value || (strcmp(name, "help") && strcmp(name, "version")), LLMC_EINVAL,
          "--%s takes no value: write --%s alone", name, name);
    const int negated = !value && (!strncmp(name, "no_", 3) || !strncmp(name, "no-", 3));
    TRY(option_find(options, negated ? name + 3 : name, &o));
    CHECK(!negated || o->type == IS_FLAG, LLMC_EINVAL, "unknown option --%s: --no_ is for flags", name);
    if (value) return set_option(options, o, value + 1);
    if (o->type == IS_FLAG) return llmc_options_set(options, o->name, negated ? "0" : "1");
    CHECK(next && strncmp(next, "--", 2), LLMC_EINVAL, "--%s needs a value", o->name);
    *used = 1;
    return set_option(options, o, next);
}

int llmc_options_parse(llmc_options *options, int argc, const char *const *argv) {
    const char *const places[] = {"model", "tokenizer"}; /* the options that a chat's arguments without a name set */
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

void options_settle_dropout(llmc_options *o) {
    if (o->dropout_given > o->embd_pdrop_given) o->embd_pdrop = o->dropout;
    if (o->dropout_given > o->attn_pdrop_given) o->attn_pdrop = o->dropout;
    if (o->dropout_given > o->resid_pdrop_given) o->resid_pdrop = o->dropout;
}

int llmc_options_only_write(const llmc_options *o) {
    return o->max_steps == 0 && o->prompt_given && !o->data_given && !*o->resume;
}
