/* Philox4x32-7 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011): random bits as a
 * function of a counter and a key. Seven rounds pass BigCrush, the authors report. CUDA sources say in PHILOX what their
 * functions begin with. csrc/cpu/dropout.h computes the same for many counters at once. */
#ifndef PHILOX_H
#define PHILOX_H
#include "kernels.h"
#ifndef PHILOX
#define PHILOX static inline
#endif
enum { PHILOX_ROUNDS = 7 };
#define PHILOX_M0 0xD2511F53u /* a round's factors */
#define PHILOX_M1 0xCD9E8D57u
#define PHILOX_W0 0x9E3779B9u /* are added to the key from round to round: golden ratio, sqrt(3) - 1 */
#define PHILOX_W1 0xBB67AE85u

typedef struct Philox {
    uint32_t word[4];
} Philox;

PHILOX Philox philox(Philox c, uint32_t key0, uint32_t key1) {
    for (int round = 0; round < PHILOX_ROUNDS; round++, key0 += PHILOX_W0, key1 += PHILOX_W1) {
        const uint64_t a = (uint64_t)PHILOX_M0 * c.word[0], b = (uint64_t)PHILOX_M1 * c.word[2];
        const Philox next = {
            {(uint32_t)(b >> 32) ^ c.word[1] ^ key0, (uint32_t)b, (uint32_t)(a >> 32) ^ c.word[3] ^ key1, (uint32_t)a}};
        c = next;
    }
    return c;
}

/* The random words of columns 8 group .. 8 group + 7 of a row. */
PHILOX Philox dropout_words(const Dropout *d, uint32_t row, uint32_t group) {
    const Philox counter = {{group, row, d->step, d->place}};
    return philox(counter, d->key[0], d->key[1]);
}
/* The factor of column 8 group + i. */
PHILOX float dropout_factor(const Dropout *d, Philox words, int i) {
    return (words.word[i / 2] >> 16 * (i % 2) & 0xffffu) < d->threshold ? 0.0f : d->scale;
}
#endif
