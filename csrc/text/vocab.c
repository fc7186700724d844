/* A hash table with linear probing. A slot holds half of the hash, so that a look-up reads the bytes of almost no wrong
 * piece. */
#include <stdlib.h>
#include <string.h>
#include "text/vocab.h"
#include "base/rng.h"

/* Packs up to 8 bytes so that two texts of equal length differ in the result if they differ at all. */
static uint64_t few_bytes(const char *text, int64_t n) {
    uint32_t front, back;
    const unsigned char *s = (const unsigned char *)text;
    if (n < 4) return n ? s[0] | (uint64_t)s[n / 2] << 8 | (uint64_t)s[n - 1] << 16 : 0;
    memcpy(&front, text, 4);
    memcpy(&back, text + n - 4, 4);
    return (uint64_t)front << 32 | back;
}

static uint64_t hash_of(const char *text, int64_t n) {
    uint64_t h = (uint64_t)n * GOLDEN;
    for (; n > 8; text += 8, n -= 8) h = mix64(h ^ few_bytes(text, 8));
    return mix64(h ^ few_bytes(text, n));
}

int vocab_reserve(Vocab *v, int n) {
    for (v->capacity = 512; v->capacity < 2 * (uint32_t)n; v->capacity *= 2) {
    }
    v->slots = calloc(v->capacity, sizeof *v->slots);
    return v->slots ? 0 : -1;
}

/* The slot of the piece with these bytes, or the free slot where that piece belongs */
static uint64_t *slot_of(const Vocab *v, const char *text, int64_t n, uint64_t hash) {
    const uint64_t high = hash >> 32;
    for (uint32_t at = (uint32_t)hash & (v->capacity - 1);; at = (at + 1) & (v->capacity - 1)) {
        const uint64_t slot = v->slots[at];
        const int id = (int)(uint32_t)slot - 1;
        if (!slot || (slot >> 32 == high && vocab_length(v, id) == n && !memcmp(vocab_piece(v, id), text, (size_t)n)))
            return &v->slots[at];
    }
}

int vocab_add(Vocab *v, int id) {
    const int length = vocab_length(v, id);
    const uint64_t hash = hash_of(vocab_piece(v, id), length);
    uint64_t *slot = slot_of(v, vocab_piece(v, id), length, hash);
    if (*slot) return (int)(uint32_t)*slot - 1;
    *slot = hash >> 32 << 32 | ((uint32_t)id + 1);
    if (length > v->longest) v->longest = length;
    return -1;
}

int vocab_find(const Vocab *v, const char *text, int64_t n) {
    return n > v->longest ? -1 : (int)(uint32_t)*slot_of(v, text, n, hash_of(text, n)) - 1;
}

void vocab_free(Vocab *v) {
    free(v->bytes);
    free(v->start);
    free(v->slots);
}
