/* A chat: turns and answers on top of a writer. It decides who speaks when; front ends only read lines and show text. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "text/vocab.h"
#include "write/template.h"
#include "write/writer.h"

struct llmc_chat {
    llmc_options options;
    llmc_writer *writer;
    llmc_generation *generation; /* it belongs to the writer */
    int T, dialogue;
    Template *form; /* turns are written as the model was fine-tuned; NULL: with the names of the speakers */
    int opening;    /* ids before the first turn, which are never forgotten */
    int *starts;    /* (T) where each turn in the context begins */
    int turns;      /* how many there are */
    int has_spoken; /* the answer has begun with something to see */
    char about[4 * OPTION_TEXT], label[2][OPTION_TEXT + 4];
};

static int held(const llmc_chat *c) {
    int n;
    llmc_generation_ids(c->generation, 0, &n);
    return n;
}

/* ---- life ---- */

static int check_name(const char *option, const char *name) {
    CHECK(*name && !strpbrk(name, "\r\n"), LLMC_EINVAL, "--%s needs a name of one line", option);
    return LLMC_OK;
}

static int stop_at_line_of(llmc_chat *c, const char *name) {
    char line[OPTION_TEXT + 4];
    const int n = snprintf(line, sizeof line, "\n\n%s:", name);
    TRY(llmc_writer_stop_at(c->writer, line, n)); /* an empty line before the name does not belong to the answer */
    return llmc_writer_stop_at(c->writer, line + 1, n - 1);
}

static void introduce(const llmc_options *o, char *text, size_t size) {
    if (o->system_given) snprintf(text, size, "%s", o->system);
    else
        snprintf(text, size,
                 "%s talks with %s, who is kind, knows a lot and gives short, true answers.\n\n"
                 "%s: Hello %s, how are you?\n%s: I am fine, thank you. What would you like to know?\n"
                 "%s: What is the capital of France?\n%s: It is Paris.",
                 o->user, o->bot, o->user, o->bot, o->bot, o->user, o->bot);
}

static int begin_dialogue(llmc_chat *c) {
    const llmc_options *o = &c->options;
    char text[8 * OPTION_TEXT];
    TRY(check_name("user", o->user));
    TRY(check_name("bot", o->bot));
    TRY(stop_at_line_of(c, o->user));
    TRY(stop_at_line_of(c, o->bot));
    snprintf(c->label[0], sizeof *c->label, "%s: ", o->user);
    snprintf(c->label[1], sizeof *c->label, "%s: ", o->bot);
    introduce(o, text, sizeof text);
    int n = writer_count(c->writer, text, (int64_t)strlen(text), 1);
    TRY(n);
    if (n >= c->T / 2 && !o->system_given) *text = 0, n = 0; /* it may be left out, because nobody asked for it */
    CHECK(n < c->T / 2, LLMC_EINVAL,
          "the text before the first turn has %d token%s, and the context is %d: shorten --system, leave it out with "
          "--system=, or take --template=story",
          n, s_of(n), c->T);
    TRY(llmc_writer_prompt(c->writer, text, (int64_t)strlen(text), 0));
    c->opening = held(c);
    return LLMC_OK;
}

/* Ends answers, and begins the text with the system's, which is left out unless it is given. */
static int begin_form(llmc_chat *c) {
    const llmc_options *o = &c->options;
    const Template *form = c->form;
    Growing stop = {0}, opening = {0};
    CHECK(form->system >= 0 || !*o->system, LLMC_EINVAL,
          "the template of %s has no {system}: leave --system out, or give another --template", o->model);
    template_add_stop(form, &stop);
    if (*o->system) template_add_opening(form, &opening, o->system);
    char *end = growing_end(&stop), *text = growing_end(&opening);
    int rc = end && text ? llmc_writer_stop_at(c->writer, end, (int64_t)strlen(end)) : LLMC_ENOMEM;
    writer_end_with(c->writer, form->text + form->answer, form->n - form->answer);
    if (rc == 0) rc = writer_count(c->writer, text, (int64_t)strlen(text), 1);
    if (rc >= c->T / 2)
        rc = llmc_fail(LLMC_EINVAL, "--system has %d tokens, and the context is %d: shorten it", rc, c->T);
    if (rc >= 0) rc = llmc_writer_prompt(c->writer, text, (int64_t)strlen(text), 0);
    free(end);
    free(text);
    c->opening = held(c);
    return rc < 0 ? rc : LLMC_OK;
}

static void describe(llmc_chat *c, const llmc_model *m) {
    const llmc_config *f = llmc_model_config(m);
    char window[32] = "";
    if (f->window) snprintf(window, sizeof window, " window=%d", f->window);
    snprintf(
        c->about, sizeof c->about,
        "%s: L=%d NH=%d C=%d%s, %d tokens of context, %s\n%s\nCtrl-C ends an answer, twice the program; Ctrl-D ends",
        c->options.model, f->L, f->NH, f->C, window, c->T, llmc_model_isa(m),
        c->form ? "a dialogue, as in its fine-tuning: write a line, and it is answered (--template=story goes on with "
                  "it instead)"
        : c->dialogue ? "a dialogue: write a line, and it is answered (--template=story goes on with it instead)"
                      : "write how a text begins, and it goes on; an empty line lets it go on (--template=chat: a "
                        "dialogue)");
}

static int check_frame(const llmc_chat *c);

static int begin(llmc_chat *c) {
    const char *line;
    TRY(c->dialogue = template_kind(writer_template(c->writer, &c->options), &line));
    c->generation = llmc_writer_generation(c->writer);
    const llmc_model *m = writer_model(c->writer);
    c->T = llmc_model_room(m)->T;
    /* auto: a model with a vocabulary as large as GPT-2's has read all kinds of text, and so knows dialogues */
    if (c->dialogue == TEMPLATE_AUTO) c->dialogue = llmc_model_config(m)->V >= GPT2_V;
    c->starts = malloc((size_t)c->T * sizeof *c->starts);
    CHECK(c->starts, LLMC_ENOMEM, "no memory for a chat");
    snprintf(c->label[0], sizeof *c->label, "> ");
    if (c->dialogue == TEMPLATE_TEXT) {
        c->form = calloc(1, sizeof *c->form);
        CHECK(c->form, LLMC_ENOMEM, "no memory for a chat");
        TRY(template_parse(c->form, line));
    }
    describe(c, m);
    TRY(c->form ? begin_form(c) : c->dialogue ? begin_dialogue(c) : LLMC_OK);
    return c->dialogue ? check_frame(c) : LLMC_OK;
}

int chat_new(llmc_chat **out, llmc_writer *writer, const llmc_options *options) {
    llmc_chat *c = calloc(1, sizeof *c);
    *out = NULL;
    if (!c) return llmc_writer_free(writer), llmc_fail(LLMC_ENOMEM, "no memory for a chat");
    c->options = *options, c->writer = writer;
    const int rc = begin(c);
    if (rc < 0) llmc_chat_free(c);
    else *out = c;
    return rc;
}

int llmc_chat_new(llmc_chat **out, const llmc_options *options) {
    llmc_writer *writer;
    *out = NULL;
    TRY(llmc_writer_open(&writer, options));
    return chat_new(out, writer, options);
}

void llmc_chat_free(llmc_chat *c) {
    if (!c) return;
    llmc_writer_free(c->writer);
    free(c->form);
    free(c->starts);
    free(c);
}

const char *llmc_chat_about(const llmc_chat *c) { return c->about; }
const char *llmc_chat_label(const llmc_chat *c, int answer) { return c->label[answer != 0]; }
int llmc_chat_end(const llmc_chat *c) { return llmc_writer_end(c->writer); }

/* ---- the context ---- */

/* Forgets the oldest turns, whole, until at most `most` ids are held, but only among the first `droppable` turns. Returns how many
 * ids are held then. */
static int forget(llmc_chat *c, int droppable, int most) {
    int n = 0, gone = 0;
    while (n < droppable && held(c) - gone > most) n++, gone = (n < c->turns ? c->starts[n] : held(c)) - c->opening;
    llmc_generation_cut(c->generation, c->opening, c->opening + gone);
    c->turns -= n;
    for (int i = 0; i < c->turns; i++) c->starts[i] = c->starts[i + n] - gone;
    return held(c);
}

/* ---- a turn ---- */

/* A turn as text. The end of the answer before and the turn are two prompts, because training has encoded them apart too: as one
 * text, tokens could span both, which the model has never seen there. */
typedef struct Said {
    char *end;    /* the end of the answer before, at which the writer stops; "": there is none */
    char *turn;   /* the turn up to its answer; it may hold NULs */
    int64_t size; /* the bytes of turn */
} Said;

/* Adds what stands before and behind the words of a turn, up to the answer. */
static void frame_turn(const llmc_chat *c, Growing *before, Growing *behind) {
    const llmc_options *o = &c->options;
    if (c->form) {
        template_add_before(c->form, before);
        template_add_between(c->form, behind);
        return;
    }
    growing_add(before, "%s%s: ", c->turns || held(c) > 1 ? "\n" : "", o->user);
    growing_add(behind, "\n%s:", o->bot);
}

/* The words between both; the caller frees the text. */
static char *join(const char *before, const char *words, int64_t size, const char *behind, int64_t *n) {
    const size_t first = strlen(before), last = strlen(behind);
    char *turn = malloc(first + (size_t)size + last + 1);
    if (!turn) return llmc_fail(LLMC_ENOMEM, "no memory for a turn of %lld bytes", (long long)size), NULL;
    memcpy(turn, before, first);
    memcpy(turn + first, words, (size_t)size);
    memcpy(turn + first + (size_t)size, behind, last);
    return *n = (int64_t)(first + last) + size, turn;
}

static void free_said(Said *s) {
    free(s->end);
    free(s->turn);
    *s = (Said){0};
}

static int write_said(const llmc_chat *c, const char *words, int64_t size, Said *s) {
    Growing end = {0}, before = {0}, behind = {0};
    free_said(s);
    if (c->form && c->turns) template_add_end(c->form, &end);
    frame_turn(c, &before, &behind);
    char *first = growing_end(&before), *last = growing_end(&behind);
    s->end = growing_end(&end);
    s->turn = first && last ? join(first, words, size, last, &s->size) : NULL;
    free(first);
    free(last);
    return s->end && s->turn ? LLMC_OK : LLMC_ENOMEM;
}

static int count_said(const llmc_chat *c, const Said *s) {
    const int end = *s->end ? writer_count(c->writer, s->end, (int64_t)strlen(s->end), 1) : 0;
    TRY(end);
    const int turn = writer_count(c->writer, s->turn, s->size, !*s->end);
    return turn < 0 ? turn : end + turn;
}

/* Refuses a template, or names, that the model has no ids for, before the first turn. */
static int check_frame(const llmc_chat *c) {
    Said s = {0};
    char reason[1024];
    int rc = write_said(c, "", 0, &s);
    if (rc == 0) rc = count_said(c, &s);
    free_said(&s);
    if (rc != LLMC_EINVAL) return rc < 0 ? rc : LLMC_OK;
    snprintf(reason, sizeof reason, "%s", llmc_last_error());
    FAIL(rc, "what stands around a turn cannot be said to this model: give another --template, such as story: %s",
         reason);
}

/* Fits a turn and its answer into the context. If turns must be forgotten, half of the context is freed, so that this happens
 * seldom. If all are, the turn is written again, as a first one. */
static int fit_said(llmc_chat *c, const char *words, int64_t size, Said *s) {
    const int64_t answer = c->options.sample_tokens < c->T / 4 ? c->options.sample_tokens : c->T / 4;
    int n = count_said(c, s);
    TRY(n);
    if (c->turns && held(c) + n + answer > c->T) {
        forget(c, c->turns, c->T / 2 - n);
        if (!c->turns) {
            writer_restart(c->writer, c->opening);
            TRY(write_said(c, words, size, s));
            TRY(n = count_said(c, s));
        }
    }
    CHECK(held(c) + n + answer <= c->T, LLMC_EINVAL,
          "this turn has %d token%s, and only %lld fit a context of %d: say it in fewer words", n, s_of(n),
          (long long)(c->T - answer - c->opening), c->T);
    return LLMC_OK;
}

static int say_line(llmc_chat *c, const char *words, int64_t size) {
    Said s = {0};
    writer_drop_unseen(c->writer);
    TRY(writer_count(c->writer, words, size, 1)); /* an error counts the bytes of the turn alone */
    int rc = write_said(c, words, size, &s);
    if (rc == 0) rc = fit_said(c, words, size, &s);
    if (rc == 0 && *s.end) rc = llmc_writer_prompt(c->writer, s.end, (int64_t)strlen(s.end), 0);
    const int start = held(c); /* the end belongs to the turn before, and is forgotten with it */
    if (rc == 0) rc = llmc_writer_prompt(c->writer, s.turn, s.size, 0);
    free_said(&s);
    TRY(rc);
    return c->starts[c->turns++] = start, LLMC_OK;
}

int llmc_chat_say(llmc_chat *c, const char *text, int64_t size) {
    CHECK(size >= 0, LLMC_EINVAL, "a turn of %lld bytes", (long long)size);
    while (size && strchr("\r\n", text[size - 1])) size--;
    c->has_spoken = 0;
    if (c->dialogue) return say_line(c, text, size);
    const int end = llmc_writer_end(c->writer);
    if (size || end == LLMC_AT_EOT) writer_restart(c->writer, 0);
    return llmc_writer_prompt(c->writer, text, size, 1);
}

/* ---- an answer ---- */

/* Counts the blanks at the start: the space after "Bob:", and whatever other blanks a model writes there. */
static int64_t blanks(const char *text, int64_t size) {
    int64_t n = 0;
    while (n < size && strchr(" \t\r\n", text[n]) && text[n]) n++;
    return n;
}

static int next_of_dialogue(llmc_chat *c, const char **text, int64_t *size) {
    int rc = 1;
    for (*size = 0; rc > 0 && !*size;) {
        if (held(c) == c->T && forget(c, c->turns - 1, c->T / 2) == c->T) writer_finish(c->writer, LLMC_AT_LIMIT);
        TRY(rc = llmc_writer_step(c->writer, text, size));
        const int64_t skip = c->has_spoken ? 0 : blanks(*text, *size);
        *text += skip, *size -= skip;
        c->has_spoken |= *size > 0;
    }
    return rc;
}

int llmc_chat_next(llmc_chat *c, const char **text, int64_t *size) {
    return c->dialogue ? next_of_dialogue(c, text, size) : llmc_writer_next(c->writer, text, size);
}
