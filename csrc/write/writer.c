/* Text in, text out: a tokenizer around a generation. What comes out is whole characters, up to a stop string. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "text/vocab.h"
#include "write/locate.h"
#include "base/utf8.h"
#include "write/writer.h"

typedef struct Stop {
    char *text;
    int64_t size;
} Stop;

/*  bytes of tokens, in text:  | handed out | settled, next to go | may begin a stop string, or a character | */
struct llmc_writer {
    llmc_generation *generation;
    const llmc_model *model;
    const llmc_tokenizer *tokenizer;
    llmc_model *own_model; /* these two only by llmc_writer_open */
    llmc_tokenizer *own_tokenizer;
    int64_t most, made; /* tokens from prompt to end */
    int end;            /* how it ended, or LLMC_GOING_ON */
    char *text;         /* (room) */
    char *valid;        /* (3 room) what is handed out, where text is no UTF-8 */
    int64_t size, given, room;
    char carry[MAX_PIECE]; /* of a token that a stop string cut: what goes before the next prompt */
    int carried;
    Stop *stops;
    int num_stops;
};

/* ---- life ---- */

llmc_sampling writer_sampling(const llmc_options *o) {
    return (llmc_sampling){.temperature = (float)o->temperature,
                           .top_k = (int)o->top_k,
                           .top_p = (float)o->top_p,
                           .seed = o->seed,
                           .repetition_penalty = (float)o->repetition_penalty};
}

int llmc_writer_new(llmc_writer **out, llmc_model *m, const llmc_tokenizer *k, const llmc_sampling *how, int64_t most) {
    const int size = llmc_tokenizer_size(k), V = llmc_model_config(m)->V;
    llmc_sampling known = *how;
    *out = NULL;
    CHECK(size <= V, LLMC_EINVAL, "the tokenizer has %d id%s, the model %d: use the one it was trained with", size,
          s_of(size), V);
    CHECK(most >= 0, LLMC_EINVAL, "%lld tokens to write", (long long)most);
    if (!known.vocab || known.vocab > size) known.vocab = size;
    llmc_writer *w = calloc(1, sizeof *w);
    CHECK(w, LLMC_ENOMEM, "no memory for a writer");
    w->model = m, w->tokenizer = k, w->most = most;
    const int rc = llmc_generation_new(&w->generation, m, 1, &known);
    if (rc < 0) llmc_writer_free(w);
    else *out = w;
    return rc;
}

int llmc_writer_open(llmc_writer **out, const llmc_options *o) {
    llmc_model *m = NULL;
    llmc_tokenizer *k = NULL;
    const llmc_sampling how = writer_sampling(o);
    *out = NULL;
    int rc = locate_open(o, &m, &k);
    if (rc == 0) rc = llmc_writer_new(out, m, k, &how, o->sample_tokens);
    if (rc == 0) return (*out)->own_model = m, (*out)->own_tokenizer = k, LLMC_OK;
    llmc_model_free(m);
    llmc_tokenizer_free(k);
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

llmc_generation *writer_generation(llmc_writer *w) { return w->generation; }
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

static int make_room(llmc_writer *w, int64_t more) {
    const int64_t room = w->size + more;
    if (room <= w->room) return LLMC_OK;
    char *text = realloc(w->text, (size_t)(2 * room));
    CHECK(text, LLMC_ENOMEM, "no memory for %lld bytes of text", (long long)room);
    w->text = text;
    char *valid = realloc(w->valid, (size_t)(6 * room));
    CHECK(valid, LLMC_ENOMEM, "no memory for %lld bytes of text", (long long)room);
    return w->valid = valid, w->room = 2 * room, LLMC_OK;
}

/* ---- stop strings ---- */

/* Of those that end first, where the longest begins; -1: none ends behind `from`. Bytes, not tokens, decide, so that the
 * same text ends at the same place however it was cut into tokens. */
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

/* the bytes at the end that may be the beginning of a stop string */
static int64_t begun_stop(const llmc_writer *w) {
    int64_t most = 0;
    for (int i = 0; i < w->num_stops; i++)
        for (int64_t n = w->stops[i].size - 1; n > most; n--)
            if (n <= w->size && !memcmp(w->text + w->size - n, w->stops[i].text, (size_t)n)) most = n;
    return most;
}

/* The last bytes of text are not of it: their tokens go, and what is left of the first of these waits for the next prompt. */
static void take_back(llmc_writer *w, int64_t bytes) {
    int held;
    const int *ids = llmc_generation_ids(w->generation, 0, &held);
    int n = held;
    w->size -= bytes;
    /* where a stop string cut the text, its end is in carry */
    const int64_t of_carry = bytes < w->carried ? bytes : w->carried;
    w->carried -= (int)of_carry, bytes -= of_carry;
    if (w->carried) return;
    /* from the token, not the text: that may be handed out already, up to its middle */
    while (bytes > 0 && n > 0) bytes -= llmc_tokenizer_decode(w->tokenizer, &ids[--n], 1, w->carry, MAX_PIECE);
    w->carried = bytes < 0 ? (int)-bytes : 0;
    llmc_generation_cut(w->generation, n, held);
}

/* ---- a prompt ---- */

/* what goes before the prompt and the prompt, as ids, which the caller frees */
static int encode(const llmc_writer *w, const char *text, int64_t size, int **ids) {
    const int64_t bytes = w->carried + size;
    CHECK(size >= 0 && bytes < INT_MAX, LLMC_EINVAL, "%lld bytes of text are too many for a prompt", (long long)size);
    char *joined = malloc((size_t)bytes + 1);
    *ids = malloc(((size_t)bytes + 1) * sizeof **ids);
    int n = LLMC_ENOMEM;
    if (joined && *ids) {
        memcpy(joined, w->carry, (size_t)w->carried);
        memcpy(joined + w->carried, text, (size_t)size);
        n = llmc_tokenizer_encode(w->tokenizer, joined, bytes, *ids, bytes);
    } else llmc_fail(LLMC_ENOMEM, "no memory for a prompt of %lld bytes", (long long)bytes);
    free(joined);
    if (n < 0) free(*ids), *ids = NULL;
    return n;
}

void writer_settle(llmc_writer *w) {
    if (w->made && w->size > w->given) take_back(w, w->size - w->given);
}

int writer_count(const llmc_writer *w, const char *text, int64_t size) {
    int *ids = NULL;
    const int n = encode(w, text, size, &ids);
    free(ids);
    return n;
}

/* a text begins where documents do; without an id for that, an empty one begins with the first of the vocabulary */
static int begin_text(llmc_writer *w, int n) {
    int held;
    const int eot = llmc_tokenizer_eot(w->tokenizer), first = eot >= 0 ? eot : 0;
    llmc_generation_ids(w->generation, 0, &held);
    return held || (eot < 0 && n) ? LLMC_OK : llmc_generation_feed(w->generation, &first, 1);
}

int llmc_writer_prompt(llmc_writer *w, const char *text, int64_t size, int echo) {
    int *ids = NULL;
    writer_settle(w);
    const int n = encode(w, text, size, &ids);
    TRY(n);
    int rc = begin_text(w, n);
    if (rc == 0) rc = llmc_generation_feed(w->generation, ids, n);
    free(ids);
    TRY(rc);
    if (w->made) w->size = w->given = 0; /* else the prompt before still waits to be echoed */
    w->made = w->carried = 0;
    w->end = LLMC_GOING_ON;
    if (!echo || !size) return LLMC_OK;
    TRY(make_room(w, size));
    memcpy(w->text + w->size, text, (size_t)size);
    return w->size += size, LLMC_OK;
}

void writer_restart(llmc_writer *w) {
    int held;
    llmc_generation_ids(w->generation, 0, &held);
    llmc_generation_cut(w->generation, 0, held);
    w->size = w->given = w->carried = 0;
}

/* ---- writing ---- */

static int add_token(llmc_writer *w, int id) {
    const int64_t before = w->size;
    TRY(make_room(w, MAX_PIECE));
    const int n = llmc_tokenizer_decode(w->tokenizer, &id, 1, w->text + w->size, w->room - w->size);
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
    TRY(llmc_generation_cut(w->generation, held - 1, held)); /* the text may go on */
    return w->end = LLMC_AT_EOT, LLMC_OK;
}

void writer_finish(llmc_writer *w, int end) { w->end = end; }

/* Takes back a character that the end has cut: it is neither text nor context. */
static void drop_cut_character(llmc_writer *w) {
    const int64_t cut = w->size - utf8_whole(w->text, w->size);
    if (cut && w->made) take_back(w, cut);
}

/* text[given] as characters */
static void hand_out(const llmc_writer *w, const char **piece, int64_t *size) {
    *piece = w->text, *size = w->given;
    if (utf8_check(w->text, w->given) == w->given) return;
    *piece = w->valid, *size = utf8_replace(w->text, w->given, w->valid);
}

int writer_step(llmc_writer *w, const char **piece, int64_t *size) {
    if (w->given) memmove(w->text, w->text + w->given, (size_t)(w->size - w->given));
    w->size -= w->given;
    const int echo = w->size && !w->made && !w->end; /* the prompt, whole */
    w->given = 0;
    if (!w->end && !echo) TRY(write_token(w));
    if (w->end) drop_cut_character(w);
    w->given = w->end || echo ? w->size : utf8_whole(w->text, w->size - begun_stop(w));
    hand_out(w, piece, size);
    return w->given || !w->end;
}

int llmc_writer_next(llmc_writer *w, const char **piece, int64_t *size) {
    int rc;
    do rc = writer_step(w, piece, size);
    while (rc > 0 && !*size);
    return rc;
}
