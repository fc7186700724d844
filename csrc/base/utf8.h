/* UTF-8 that may be cut between two tokens, or not be UTF-8 at all */
#ifndef UTF8_H
#define UTF8_H
#include <stdint.h>

/* Decodes the character at the head of text[n], n >= 1. Returns its bytes, 1 to 4; 0: the end cuts it; -1: no character
 * begins so. */
int utf8_decode(const char *text, int64_t n, uint32_t *code);
/* The number of bytes that can be shown now: all but a tail that more bytes may complete to a character */
int64_t utf8_whole(const char *text, int64_t n);
/* The offset of the first byte that is not valid UTF-8; n: all of it is valid */
int64_t utf8_check(const char *text, int64_t n);
/* Writes the text as valid UTF-8: each invalid part, as long as a character could begin with it, becomes U+FFFD, as in
 * Python with errors="replace". Returns the number of bytes; out takes up to 3n. */
int64_t utf8_replace(const char *text, int64_t n, char *out);
#endif
