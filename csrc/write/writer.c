/* Text in, text out: a tokenizer around a generation. The text that comes out is whole characters, up to a stop string. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "text/vocab.h"
#include "write/generate.h"
#include "write/locate.h"
#include "write/template.h"
#include "base/utf8.h"
#include "write/writer.h"

typedef struct Stop {
    char *text;
    int64_t size;
} Stop;

/*  The bytes in text:  | handed out | certain, to be handed out next | may begin a stop string or a character | */
struct llmc_writer {
    llmc_generation *generation;
    const llmc_model *model;
    const llmc_tokenizer *tokenizer;
    llmc_model *own_model; /* this and the next are NULL unless llmc_writer_open made the writer */
    llmc_tokenizer *own_tokenizer;
    int64_t most, made; /* tokens after the last prompt: how many there may be, how many there are */
    int end;            /* how the text ended, or LLMC_GOING_ON */
    char *text;         /* (capacity) */
    char *valid;        /* (3 capacity) is handed out instead of text where that is no UTF-8 */
    int64_t size, given, capacity;
    char carry[MAX_PIECE]; /* the first bytes of a token that was cut: they go before the next prompt */
    int carried;
    Stop *stops;
    int num_stops;
    const char *ending; /* see writer_end_with; NULL: none */
    int64_t ending_size;
    char template[OPTION_TEXT]; /* the one that the weight file records, or "" */
};

/* ---- life ---- */

llmc_sampling writer_sampling(const llmc_options *o) {
    return (llmc_sampling){.temperature = (float)o->temperature,
                           .top_k = (int)o->top_k,
                           .top_p = (float)o->top_p,
                           .seed = o->seed,
                           .repetition_penalty = (float)o->repetition_penalty};
}

int llmc_writer_new(llmc_writer **out, llmc_model *m, const llmc_tokenizer *t, const llmc_sampling *how, int64_t most) {
    const int size = llmc_tokenizer_size(t), V = llmc_model_config(m)->V;
    llmc_sampling known = *how;
    *out = NULL;
    CHECK(size <= V, LLMC_EINVAL, "the tokenizer has %d id%s, the model %d: use the one it was trained with", size,
          s_of(size), V);
    CHECK(most >= 0, LLMC_EINVAL, "%lld tokens to write", (long long)most);
    if (!known.vocab || known.vocab > size) known.vocab = size;
    llmc_writer *w = calloc(1, sizeof *w);
    CHECK(w, LLMC_ENOMEM, "no memory for a writer");
    w->model = m, w->tokenizer = t, w->most = most;
    const int rc = llmc_generation_new(&w->generation, m, 1, &known);
    if (rc < 0) llmc_writer_free(w);
    else *out = w;
    return rc;
}

int llmc_writer_open(llmc_writer **out, const llmc_options *o) {
    llmc_model *m = NULL;
    llmc_tokenizer *t = NULL;
    const llmc_sampling how = writer_sampling(o);
    char line[OPTION_TEXT] = "";
    *out = NULL;
    int rc = locate_open(o, &m, &t, line);
    if (rc == 0) rc = llmc_writer_new(out, m, t, &how, o->sample_tokens);
    if (rc == 0) strcpy((*out)->template, line);
    if (rc == 0) return (*out)->own_model = m, (*out)->own_tokenizer = t, LLMC_OK;
    llmc_model_free(m);
    llmc_tokenizer_free(t);
    return rc;
}

void llmc_writer_free(llmc_writer *w) {
    if (!w) return;
    for (int i = 0; i < w->num_stops; i++) free(w->stops[i].text);
    free(w->stops);
    free(w->text);
    free(w->valid);
    llmc_generation_free(w->generation);
    llmc_model_free(w->own_model);
    llmc_tokenizer_free(w->own_tokenizer);
    free(w);
}

const char *writer_template(const llmc_writer *w, const llmc_options *o) {
    return strcmp(o->template, "auto") || !*w->template ? o->template : w->template;
}
llmc_generation *llmc_writer_generation(llmc_writer *w) { return w->generation; }
const llmc_model *writer_model(const llmc_writer *w) { return w->model; }
int llmc_writer_end(const llmc_writer *w) { return w->end; }

int llmc_writer_stop_at(llmc_writer *w, const char *text, int64_t size) {
    CHECK(size > 0, LLMC_EINVAL, "an empty stop string would stop at once");
    Stop *more = realloc(w->stops, ((size_t)w->num_stops + 1) * sizeof *more);
    CHECK(more, LLMC_ENOMEM, "no memory for a stop string");
    w->stops = more;
    char *copy = malloc((size_t)size);
    CHECK(copy, LLMC_ENOMEM, "no memory for a stop string");
    memcpy(copy, text, (size_t)size);
    w->stops[w->num_stops++] = (Stop){copy, size};
    return LLMC_OK;
}

static int reserve(llmc_writer *w, int64_t more) {
    const int64_t capacity = w->size + more;
    if (capacity <= w->capacity) return LLMC_OK;
    char *text = realloc(w->text, (size_t)(2 * capacity));
    CHECK(text, LLMC_ENOMEM, "no memory for %lld bytes of text", (long long)capacity);
    w->text = text;
    char *valid = realloc(w->valid, (size_t)(6 * capacity));
    CHECK(valid, LLMC_ENOMEM, "no memory for %lld bytes of text", (long long)capacity);
    return w->valid = valid, w->capacity = 2 * capacity, LLMC_OK;
}

/* ---- stop strings ---- */

/* Returns where the text stops: the start of the stop string that is complete first after byte `from`, the longest of several;
 * or -1. Bytes decide, not tokens, so that the same text stops at the same byte however it was cut into tokens. */
static int64_t find_stop(const llmc_writer *w, int64_t from) {
    for (int64_t end = from + 1; end <= w->size; end++) {
        int64_t longest = 0;
        for (int i = 0; i < w->num_stops; i++) {
            const Stop *s = &w->stops[i];
            if (s->size <= end && s->size > longest && !memcmp(w->text + end - s->size, s->text, (size_t)s->size))
                longest = s->size;
        }
        if (longest) return end - longest;
    }
    return -1;
}

/* Counts the bytes at the end of the text that may be the beginning of a stop string. */
static int64_t begun_stop(const llmc_writer *w) {
    int64_t most = 0;
    for (int i = 0; i < w->num_stops; i++)
        for (int64_t n = w->stops[i].size - 1; n > most; n--)
            if (n <= w->size && !memcmp(w->text + w->size - n, w->stops[i].text, (size_t)n)) most = n;
    return most;
}

/* Drops the last bytes of the text, with their tokens. If the cut falls inside a token, its first bytes are carried to the next
 * prompt. */
static void take_back(llmc_writer *w, int64_t bytes) {
    int held;
    const int *ids = llmc_generation_ids(w->generation, 0, &held);
    int n = held;
    w->size -= bytes;
    /* after an earlier cut, the end of the text has no tokens any more but is in carry */
    const int64_t carried = bytes < w->carried ? bytes : w->carried;
    w->carried -= (int)carried, bytes -= carried;
    if (w->carried) return;
    /* carry takes the bytes from the token, because the text may have been handed out up to the middle of the token */
    while (bytes > 0 && n > 0) bytes -= llmc_tokenizer_decode(w->tokenizer, &ids[--n], 1, w->carry, MAX_PIECE);
    w->carried = bytes < 0 ? (int)-bytes : 0;
    llmc_generation_cut(w->generation, n, held);
}

/* ---- a prompt ---- */

/* Encodes the first `carried` bytes of carry and the prompt together. Returns how many ids there are; the caller frees them. */
static int encode(const llmc_writer *w, int carried, const char *text, int64_t size, int **ids) {
    const int64_t bytes = carried + size;
    CHECK(size >= 0 && bytes < INT_MAX, LLMC_EINVAL, "%lld bytes of text are too many for a prompt", (long long)size);
    char *joined = malloc((size_t)bytes + 1);
    *ids = malloc(((size_t)bytes + 1) * sizeof **ids);
    int n = LLMC_ENOMEM;
    if (joined && *ids) {
        memcpy(joined, w->carry, (size_t)carried);
        memcpy(joined + carried, text, (size_t)size);
        n = llmc_tokenizer_encode(w->tokenizer, joined, bytes, *ids, bytes);
    } else llmc_fail(LLMC_ENOMEM, "no memory for a prompt of %lld bytes", (long long)bytes);
    free(joined);
    if (n < 0) free(*ids), *ids = NULL;
    return n;
}

void writer_drop_unseen(llmc_writer *w) {
    if (w->made && w->size > w->given) take_back(w, w->size - w->given);
}

int writer_count(const llmc_writer *w, const char *text, int64_t size, int next) {
    int *ids = NULL;
    const int n = encode(w, next ? w->carried : 0, text, size, &ids);
    free(ids);
    return n;
}

/* Begins a text as documents begin, with EOT. If the tokenizer has no EOT, an empty prompt of n = 0 ids begins with id 0. */
static int begin_text(llmc_writer *w, int n) {
    int held;
    const int eot = llmc_tokenizer_eot(w->tokenizer), first = eot >= 0 ? eot : 0;
    llmc_generation_ids(w->generation, 0, &held);
    return held || (eot < 0 && n) ? LLMC_OK : llmc_generation_feed(w->generation, &first, 1);
}

int llmc_writer_prompt(llmc_writer *w, const char *text, int64_t size, int echo) {
    int *ids = NULL;
    writer_drop_unseen(w);
    const int n = encode(w, w->carried, text, size, &ids);
    TRY(n);
    int rc = begin_text(w, n);
    if (rc == 0) rc = llmc_generation_feed(w->generation, ids, n);
    free(ids);
    TRY(rc);
    if (w->made) w->size = w->given = 0; /* otherwise an earlier prompt still waits to be echoed */
    w->made = w->carried = 0;
    w->end = LLMC_GOING_ON;
    if (!echo || !size) return LLMC_OK;
    TRY(reserve(w, size));
    memcpy(w->text + w->size, text, (size_t)size);
    return w->size += size, LLMC_OK;
}

int llmc_writer_begin(llmc_writer *w, const llmc_options *o) {
    char *text, *stop;
    int rc = template_prompt(writer_template(w, o), o->prompt, &text, &stop);
    if (rc == 0 && *stop) rc = llmc_writer_stop_at(w, stop, (int64_t)strlen(stop));
    if (rc == 0) rc = llmc_writer_prompt(w, text, (int64_t)strlen(text), 1);
    free(text);
    free(stop);
    return rc;
}

/* Forgets the text but its first n ids. */
static int forget(llmc_writer *w, int n) {
    int held;
    llmc_generation_ids(w->generation, 0, &held);
    TRY(llmc_generation_cut(w->generation, n, held));
    return w->size = w->given = w->carried = 0, LLMC_OK;
}

void writer_restart(llmc_writer *w, int n) { forget(w, n); }

int llmc_writer_rewind(llmc_writer *w, int n, int64_t seed, int64_t most) {
    CHECK(most >= 0, LLMC_EINVAL, "%lld tokens to write", (long long)most);
    TRY(forget(w, n));
    generation_return_to(w->generation, n);
    llmc_generation_reseed(w->generation, seed);
    return w->made = 0, w->most = most, w->end = LLMC_GOING_ON, LLMC_OK;
}

/* ---- writing ---- */

static int add_token(llmc_writer *w, int id) {
    const int64_t before = w->size;
    TRY(reserve(w, MAX_PIECE));
    const int n = llmc_tokenizer_decode(w->tokenizer, &id, 1, w->text + w->size, w->capacity - w->size);
    TRY(n);
    w->size += n;
    const int64_t stop = find_stop(w, before);
    if (stop < 0) return LLMC_OK;
    take_back(w, w->size - stop);
    return w->end = LLMC_AT_STOP, LLMC_OK;
}

static int write_token(llmc_writer *w) {
    int id, held;
    if (w->made == w->most) return w->end = LLMC_AT_LIMIT, LLMC_OK;
    TRY(llmc_generation_next(w->generation, &id));
    w->made++;
    if (id != llmc_tokenizer_eot(w->tokenizer)) return add_token(w, id);
    llmc_generation_ids(w->generation, 0, &held);
    TRY(llmc_generation_cut(w->generation, held - 1, held)); /* EOT is taken back, because the text may go on */
    if (w->ending && w->size >= w->ending_size &&
        !memcmp(w->text + w->size - w->ending_size, w->ending, (size_t)w->ending_size))
        take_back(w, w->ending_size);
    return w->end = LLMC_AT_EOT, LLMC_OK;
}

void writer_end_with(llmc_writer *w, const char *ending, int64_t size) { w->ending = ending, w->ending_size = size; }
void writer_finish(llmc_writer *w, int end) { w->end = end; }

/* Drops a character that the end of the text has cut, from the text and from the context. */
static void drop_cut_character(llmc_writer *w) {
    const int64_t cut = w->size - utf8_whole(w->text, w->size);
    if (cut && w->made) take_back(w, cut);
}

/* Hands out the first `given` bytes of text, as valid UTF-8. */
static void hand_out(const llmc_writer *w, const char **text, int64_t *size) {
    *text = w->text, *size = w->given;
    if (utf8_check(w->text, w->given) == w->given) return;
    *text = w->valid, *size = utf8_replace(w->text, w->given, w->valid);
}

int llmc_writer_step(llmc_writer *w, const char **text, int64_t *size) {
    if (w->given) memmove(w->text, w->text + w->given, (size_t)(w->size - w->given));
    w->size -= w->given;
    const int echo = w->size && !w->made && !w->end; /* the prompt is handed out whole */
    w->given = 0;
    if (!w->end && !echo) TRY(write_token(w));
    if (w->end) drop_cut_character(w);
    w->given = w->end || echo ? w->size : utf8_whole(w->text, w->size - begun_stop(w));
    hand_out(w, text, size);
    return w->given || !w->end;
}

int llmc_writer_next(llmc_writer *w, const char **text, int64_t *size) {
    int rc;
    do rc = llmc_writer_step(w, text, size);
    while (rc > 0 && !*size);
    return rc;
}
