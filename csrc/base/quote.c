/* Quotes a path for a shell. */
#include "base/quote.h"
#include <string.h>

static int is_plain(unsigned char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c > 127 ||
           (c && strchr("_-./,:=@%+", c));
}

void quote(const char *path, char *quoted) {
    int plain = *path != 0;
    for (const char *c = path; *c; c++) plain &= is_plain((unsigned char)*c);
    char *to = quoted, *const end = quoted + QUOTED - 6;
    if (!plain) *to++ = '\'';
    for (const char *c = path; *c && to < end; c++) {
        if (*c == '\'') memcpy(to, "'\\''", 4), to += 4;
        else *to++ = *c;
    }
    if (!plain) *to++ = '\'';
    *to = 0;
}
