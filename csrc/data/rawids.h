/* What a file without a token file's header holds, by its first bytes; pyllmc/text/raw_tokens.py decides alike. */
#ifndef RAWIDS_H
#define RAWIDS_H
#include <stdint.h>

enum { RAW_SAMPLE = 1024 };

/* "uint16", "int32", in words what else it is, or "" */
const char *rawids_kind(const unsigned char *head, int64_t n, int64_t size);
#endif
