/* Byte-pair encoding by a table whose ids are the ranks of the merges, as GPT-2's are */
#ifndef BPE_H
#define BPE_H
#include "text/vocab.h"

/* Writes the ids of text[n], which is UTF-8, at most `size` of them, and returns how many there are. v: hashed, with a piece for each
 * of the 256 bytes. Takes O(n log n) time, and 28 bytes of memory for each byte of the longest word that is not a
 * piece. */
int64_t bpe_encode(const Vocab *v, const char *text, int64_t n, int *out, int64_t size);
#endif
