/* Linear probing over slots that hold half of each hash, so that a look-up reads the bytes of the right piece only. */
#include <stdlib.h>
#include <string.h>
#include "text/vocab.h"
#include "base/rng.h"

/* up to 8 bytes, so that no others of as many give the same */
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

int pieces_reserve(Pieces *p, int n) {
    for (p->room = 512; p->room < 2 * (uint32_t)n; p->room *= 2) {
    }
    p->slots = calloc(p->room, sizeof *p->slots);
    return p->slots ? 0 : -1;
}

/* the slot of the piece with these bytes, or the free one where it belongs */
static uint64_t *slot_of(const Pieces *p, const char *text, int64_t n, uint64_t hash) {
    const uint64_t high = hash >> 32;
    for (uint32_t at = (uint32_t)hash & (p->room - 1);; at = (at + 1) & (p->room - 1)) {
        const uint64_t slot = p->slots[at];
        const int id = (int)(uint32_t)slot - 1;
        if (!slot || (slot >> 32 == high && piece_length(p, id) == n && !memcmp(piece(p, id), text, (size_t)n)))
            return &p->slots[at];
    }
}

int pieces_add(Pieces *p, int id) {
    const int length = piece_length(p, id);
    const uint64_t hash = hash_of(piece(p, id), length);
    uint64_t *slot = slot_of(p, piece(p, id), length, hash);
    if (*slot) return (int)(uint32_t)*slot - 1;
    *slot = hash >> 32 << 32 | ((uint32_t)id + 1);
    if (length > p->longest) p->longest = length;
    return -1;
}

int pieces_find(const Pieces *p, const char *text, int64_t n) {
    return n > p->longest ? -1 : (int)(uint32_t)*slot_of(p, text, n, hash_of(text, n)) - 1;
}

void pieces_free(Pieces *p) {
    free(p->bytes);
    free(p->start);
    free(p->slots);
}
