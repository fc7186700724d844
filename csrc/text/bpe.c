/* Byte-pair encoding (Sennrich, Haddow, Birch 2016) on bytes. A word begins as its single bytes. Then two neighbours
 * that together are a piece merge: the lowest id first, the leftmost of equals. A heap holds the candidates, so a long
 * word takes n log n and not n^2. */
#include <stdlib.h>
#include "text/bpe.h"
#include "base/error.h"
#include "text/pretokenize.h"

#define NONE UINT32_MAX

typedef struct Word {
    const char *text;
    uint32_t n, capacity;
    uint64_t *heap; /* (2n) heap of rank << 32 | part; an entry is out of date if it differs from rank[part] */
    int64_t waiting;
    uint32_t *next, *prev; /* (n) for the part that begins at a byte: where its neighbours begin; n: there is none */
    /* (n) the piece that the part and the next one make; NONE: they make none, or no part begins here */
    uint32_t *rank;
} Word;

static int reserve(Word *w, int64_t n) {
    if (n <= w->capacity) return LLMC_OK;
    const size_t capacity = n < 256 ? 256 : (size_t)n;
    free(w->heap);
    w->capacity = 0;
    w->heap = malloc(capacity * (2 * sizeof *w->heap + 3 * sizeof *w->next));
    CHECK(w->heap, LLMC_ENOMEM, "no memory to encode a word of %lld bytes: encode less text at once", (long long)n);
    w->capacity = (uint32_t)capacity;
    w->next = (uint32_t *)(w->heap + 2 * capacity);
    w->prev = w->next + capacity;
    w->rank = w->prev + capacity;
    return LLMC_OK;
}

/* ---- the heap ---- */

static void push(Word *w, uint64_t key) {
    int64_t at = w->waiting++;
    for (; at && w->heap[(at - 1) / 2] > key; at = (at - 1) / 2) w->heap[at] = w->heap[(at - 1) / 2];
    w->heap[at] = key;
}

static uint64_t pop(Word *w) {
    const uint64_t least = w->heap[0], last = w->heap[--w->waiting];
    int64_t at = 0;
    for (int64_t child; (child = 2 * at + 1) < w->waiting; at = child) {
        if (child + 1 < w->waiting && w->heap[child + 1] < w->heap[child]) child++;
        if (w->heap[child] >= last) break;
        w->heap[at] = w->heap[child];
    }
    w->heap[at] = last;
    return least;
}

/* ---- merging ---- */

static void look_up(Word *w, const Vocab *v, uint32_t at) {
    const uint32_t next = w->next[at];
    const int id = next < w->n ? vocab_find(v, w->text + at, w->next[next] - at) : -1;
    w->rank[at] = id < 0 ? NONE : (uint32_t)id;
    if (id >= 0) push(w, (uint64_t)id << 32 | at);
}

static void join(Word *w, const Vocab *v, uint32_t at) {
    const uint32_t gone = w->next[at], after = w->next[gone];
    w->next[at] = after;
    w->rank[gone] = NONE;
    if (after < w->n) w->prev[after] = at;
    look_up(w, v, at);
    if (at) look_up(w, v, w->prev[at]);
}

static void merge(Word *w, const Vocab *v) {
    w->waiting = 0;
    for (uint32_t i = 0; i < w->n; i++) w->next[i] = i + 1, w->prev[i] = i - 1;
    for (uint32_t i = 0; i < w->n; i++) look_up(w, v, i);
    while (w->waiting) {
        const uint64_t key = pop(w);
        if (w->rank[(uint32_t)key] == key >> 32) join(w, v, (uint32_t)key);
    }
}

/* ---- text ---- */

typedef struct Out {
    int *ids;
    int64_t n, size;
} Out;

static void put_id(Out *out, int id) {
    if (out->n < out->size) out->ids[out->n] = id;
    out->n++;
}

static int encode_word(Word *w, const Vocab *v, const char *text, int64_t n, Out *out) {
    const int id = vocab_find(v, text, n);
    if (id >= 0) return put_id(out, id), LLMC_OK;
    TRY(reserve(w, n));
    w->text = text, w->n = (uint32_t)n;
    merge(w, v);
    for (uint32_t at = 0; at < w->n; at = w->next[at]) put_id(out, vocab_find(v, text + at, w->next[at] - at));
    return LLMC_OK;
}

int64_t bpe_encode(const Vocab *v, const char *text, int64_t n, int *ids, int64_t size) {
    Word w = {0};
    Out out = {ids, 0, size};
    int rc = LLMC_OK;
    for (int64_t at = 0, length; at < n && rc == 0; at += length) {
        length = pretokenize_word(text + at, n - at);
        rc = encode_word(&w, v, text + at, length, &out);
    }
    free(w.heap);
    return rc < 0 ? rc : out.n;
}
