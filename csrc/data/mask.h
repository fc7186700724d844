/* The loss mask of a token file, which says of each token whether it is learnt. It is the file NAME.mask beside the token file
 * NAME; pyllmc/text/masks.py writes it.
 *
 *     int32 magic, version; int64 tokens; uint32 crc of the token file, crc of the bits; 8 bytes of 0
 *     bits    bit i % 8 (the lowest is 0) of byte i / 8 is 1 if token i is learnt; those behind the last token are 0
 *
 * Both checksums are zlib's. That of the token file keeps a mask from being used with other tokens. */
#ifndef MASK_H
#define MASK_H
#include "base/binfile.h"

enum { MASK_MAGIC = 20261130, MASK_VERSION = 1, MASK_HEADER = 32 };
typedef struct Mask {
    uint8_t *bits;  /* NULL: the file has no mask, so every token is learnt */
    int64_t learnt; /* the learnt tokens, without the first of the file, which nothing predicts */
} Mask;
/* Reads the mask beside a token file of n tokens, if there is one. mask_free it, also after an error. */
int mask_open(Mask *mask, const BinFile *tokens, int64_t n);
void mask_free(Mask *mask);
static inline int mask_at(const Mask *mask, int64_t i) { return mask->bits[i / 8] >> i % 8 & 1; }
#endif
