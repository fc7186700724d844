/* Parses a template, and finds the one that a model was fine-tuned with. pyllmc/text/template.py parses by the same rules. */
#include "write/template.h"
#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "files/state.h"

#define EXAMPLE_OF_ONE "as in 'User: {prompt}\\nAssistant: {answer}\\n'"
static const char BLANKS[] = " \t\r\n";

static const struct Named {
    const char *name, *line;
} named[] = {
#define OPTION(...)
#define TEMPLATE(name, line) {#name, line},
#include "options.def"
};

int template_kind(const char *value, const char **line) {
    static const char *const kinds[] = {"story", "chat", "auto"};
    const int has_place = strstr(value, "{prompt}") || strstr(value, "{answer}");
    *line = value;
    for (int i = 0; i < 3; i++)
        if (!strcmp(value, kinds[i])) return i;
    for (size_t i = 0; i < sizeof named / sizeof *named; i++)
        if (!strcmp(value, named[i].name)) return *line = named[i].line, TEMPLATE_TEXT;
    CHECK(has_place, LLMC_EINVAL,
          "--template=%.60s is not one of chat, story, auto, plain, alpaca, chatml, nor a template with {prompt} and "
          "{answer}",
          value);
    return TEMPLATE_TEXT;
}

/* Takes a {place} at `line`: its length, 0 if there is none, or an error if it stands a second time. */
static int take_place(Template *t, const char *line) {
    static const char *const places[] = {"{system}", "{turn}", "{prompt}", "{answer}"};
    int *const offsets[] = {&t->system, &t->turn, &t->prompt, &t->answer};
    for (int i = 0; i < 4; i++) {
        if (strncmp(line, places[i], strlen(places[i]))) continue;
        CHECK(*offsets[i] < 0, LLMC_EINVAL, "the template has %s twice: each place stands once, " EXAMPLE_OF_ONE,
              places[i]);
        for (int later = i + 1; later < 4; later++)
            CHECK(*offsets[later] < 0, LLMC_EINVAL,
                  "the template has %s behind %s: the order is {system}, {turn}, {prompt}, {answer}", places[i],
                  places[later]);
        *offsets[i] = t->n;
        return (int)strlen(places[i]);
    }
    return 0;
}

static int take_escape(const char *line, char *c) {
    const char *const from = "ntr\\", *const to = "\n\t\r\\", *found = line[1] ? strchr(from, line[1]) : NULL;
    CHECK(found, LLMC_EINVAL, "the template has \\%.1s, and knows \\n, \\t, \\r and \\\\ only: write \\\\ for a \\",
          line + 1);
    return *c = to[found - from], LLMC_OK;
}

static int take_all(Template *t, const char *line) {
    while (*line) {
        const int place = take_place(t, line);
        TRY(place);
        line += place;
        if (place) continue;
        t->text[t->n] = *line;
        if (*line == '\\') TRY(take_escape(line++, &t->text[t->n]));
        line++, t->n++;
    }
    return LLMC_OK;
}

static int check_whole(const Template *t) {
    CHECK(t->prompt >= 0 && t->answer >= 0, LLMC_EINVAL,
          "the template needs {prompt}, and behind it {answer}, " EXAMPLE_OF_ONE);
    CHECK(t->turn < 0 || t->system >= 0, LLMC_EINVAL,
          "the template has {turn} without {system} before it: {turn} ends the part that holds {system}");
    CHECK(t->answer < t->n, LLMC_EINVAL,
          "nothing stands behind {answer} in the template, so an answer would have no end: add one, " EXAMPLE_OF_ONE);
    return LLMC_OK;
}

int template_parse(Template *t, const char *line) {
    CHECK(strlen(line) < OPTION_TEXT, LLMC_EINVAL, "the template is longer than %d bytes: shorten it", OPTION_TEXT - 1);
    *t = (Template){.system = -1, .turn = -1, .prompt = -1, .answer = -1};
    TRY(take_all(t, line));
    TRY(check_whole(t));
    if (t->turn < 0 && t->system >= 0)
        for (t->turn = t->system; t->turn < t->prompt && strchr(BLANKS, t->text[t->turn]);) t->turn++;
    if (t->turn < 0) t->turn = 0;
    for (t->spaces = t->answer; t->spaces > t->prompt && t->text[t->spaces - 1] == ' ';) t->spaces--;
    return LLMC_OK;
}

static void add(const Template *t, Growing *text, int from, int to) {
    growing_add(text, "%.*s", to - from, t->text + from);
}

void template_add_opening(const Template *t, Growing *text, const char *system) {
    add(t, text, 0, t->system);
    growing_add(text, "%s", system);
    add(t, text, t->system, t->turn);
}
void template_add_before(const Template *t, Growing *text) { add(t, text, t->turn, t->prompt); }
void template_add_between(const Template *t, Growing *text) { add(t, text, t->prompt, t->spaces); }
void template_add_end(const Template *t, Growing *text) { add(t, text, t->answer, t->n); }

void template_add_stop(const Template *t, Growing *text) {
    const int end = t->answer + (int)strspn(t->text + t->answer, BLANKS);
    int before = t->prompt;
    while (before > t->turn && strchr(BLANKS, t->text[before - 1])) before--;
    template_add_end(t, text);
    if (end == t->n) add(t, text, t->turn, before);
}

int template_check(const char *value) {
    const char *line;
    const int kind = template_kind(value, &line);
    return kind == TEMPLATE_TEXT ? template_parse(&(Template){0}, line) : kind < 0 ? kind : LLMC_OK;
}

int template_prompt(const char *value, const char *prompt, char **text, char **stop) {
    const char *line;
    Template form;
    Growing asked = {0}, over = {0};
    *text = *stop = NULL;
    const int kind = template_kind(value, &line), as_turn = *prompt && kind == TEMPLATE_TEXT;
    TRY(kind);
    if (as_turn) TRY(template_parse(&form, line));
    if (as_turn) template_add_before(&form, &asked), template_add_stop(&form, &over);
    growing_add(&asked, "%s", prompt);
    if (as_turn) template_add_between(&form, &asked);
    *text = growing_end(&asked), *stop = growing_end(&over);
    if (*text && *stop) return LLMC_OK;
    free(*text);
    free(*stop);
    return *text = *stop = NULL, LLMC_ENOMEM;
}

static int read_record(const llmc_file *file, char *record, int size, char line[OPTION_TEXT]) {
    TRY(llmc_file_section(file, "OPTIONS ", record, size));
    const char *value = state_value(record, "template");
    const size_t n = value ? strcspn(value, "\n") : 0;
    *line = 0;
    if (n >= OPTION_TEXT || !strncmp(value ? value : "auto", "auto", n)) return LLMC_OK;
    memcpy(line, value, n);
    line[n] = 0;
    return LLMC_OK;
}

int template_of_file(const llmc_file *file, char line[OPTION_TEXT]) {
    const int size = llmc_file_section(file, "OPTIONS ", NULL, 0);
    TRY(size);
    char *record = calloc(1, (size_t)size + 1);
    CHECK(record, LLMC_ENOMEM, "no memory for the options in %s", llmc_file_path(file));
    const int rc = read_record(file, record, size + 1, line);
    free(record);
    return rc;
}
