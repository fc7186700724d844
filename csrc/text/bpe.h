/* Byte-pair encoding over a table whose ids are the ranks of the merges, as GPT-2's are. */
#ifndef BPE_H
#define BPE_H
#include "text/vocab.h"

/* The ids of text[n] and how many, of which at most `size` are written. pieces: hashed, all 256 bytes among them. Takes
 * O(n log n), and 28 bytes of memory for each byte of the longest word that is no piece itself. */
int64_t bpe_encode(const Vocab *v, const char *text, int64_t n, int *out, int64_t size);
#endif
