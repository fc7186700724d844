/* Cuts text into words, as GPT-2 does before it merges bytes. */
#ifndef PRETOKENIZE_H
#define PRETOKENIZE_H
#include <stdint.h>

/* The number of bytes of the first word of text[n], n >= 1. The text must be valid UTF-8 and must go on to its real
 * end, because white space is cut differently there. */
int64_t pretokenize_word(const char *text, int64_t n);
#endif
