/* How GPT-2 cuts text before it merges bytes. */
#ifndef PRETOKENIZE_H
#define PRETOKENIZE_H
#include <stdint.h>

/* The bytes of the first word of text[n], n >= 1, which must be UTF-8 and go to the end of the text: only there does white
 * space keep together. */
int64_t pretokenize_word(const char *text, int64_t n);
#endif
