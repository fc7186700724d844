/* Guesses the content of a file that lacks the header of a token file, by its first bytes. pyllmc/text/raw_tokens.py decides
 * in the same way. */
#ifndef RAWIDS_H
#define RAWIDS_H
#include <stdint.h>

enum { RAW_SAMPLE = 1024 };

/* "uint16", "int32", a few words that say what else the file is, or "" */
const char *rawids_kind(const unsigned char *head, int64_t n, int64_t size);
#endif
