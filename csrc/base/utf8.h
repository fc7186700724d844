/* UTF-8 as it may come: cut between two tokens, or none at all. */
#ifndef UTF8_H
#define UTF8_H
#include <stdint.h>

/* The character at the head of text[n], n >= 1: its bytes, 1 to 4; 0: it is cut; -1: no character begins so. */
int utf8_decode(const char *text, int64_t n, uint32_t *code);
/* How many bytes at the head are not the beginning of a character that more bytes may complete: what can be shown now. */
int64_t utf8_whole(const char *text, int64_t n);
/* Where the first thing that is no UTF-8 begins; n: it all is. */
int64_t utf8_check(const char *text, int64_t n);
/* The same as valid UTF-8: each thing that is none, as long as it could begin a character, becomes U+FFFD, as Python's
 * errors="replace" has it. How many bytes; out takes up to 3n. */
int64_t utf8_replace(const char *text, int64_t n, char *out);
#endif
