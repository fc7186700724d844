/* Characters and their bytes (RFC 3629) */
#include <string.h>
#include "base/utf8.h"

static int length_by(int lead) { return lead < 0x80 ? 1 : lead < 0xc2 ? -1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4; }

/* Bounds of the byte after `lead`. They exclude longer spellings of a short character, surrogates, and codes past
 * 0x10ffff. */
static int low_by(int lead) { return lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80; }
static int high_by(int lead) { return lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf; }

int utf8_decode(const char *text, int64_t n, uint32_t *code) {
    const unsigned char *s = (const unsigned char *)text;
    const int lead = s[0], length = lead > 0xf4 ? -1 : length_by(lead);
    if (length < 2) return *code = (uint32_t)lead, length;
    uint32_t bits = (uint32_t)lead & (0x7fu >> length);
    for (int i = 1; i < length; i++) {
        if (i == n) return 0;
        if (s[i] < (i == 1 ? low_by(lead) : 0x80) || s[i] > (i == 1 ? high_by(lead) : 0xbf)) return -1;
        bits = bits << 6 | (s[i] & 0x3f);
    }
    return *code = bits, length;
}

int64_t utf8_whole(const char *text, int64_t n) {
    uint32_t code;
    for (int64_t back = 1; back <= 3 && back <= n; back++)
        if (utf8_decode(text + n - back, back, &code) == 0) return n - back;
    return n;
}

static int eight_of_ascii(const char *text) {
    uint64_t bytes;
    memcpy(&bytes, text, sizeof bytes);
    return !(bytes & UINT64_C(0x8080808080808080));
}

int64_t utf8_check(const char *text, int64_t n) {
    uint32_t code;
    for (int64_t at = 0; at < n;) {
        const int length = n - at >= 8 && eight_of_ascii(text + at) ? 8 : utf8_decode(text + at, n - at, &code);
        if (length <= 0) return at;
        at += length;
    }
    return n;
}

/* The number of bytes, at the head of a text that is not valid there, that become one U+FFFD */
static int length_of_bad(const char *text, int64_t n) {
    uint32_t code;
    int length = 1;
    while (length < 3 && length < n && utf8_decode(text, length + 1, &code) == 0) length++;
    return length;
}

int64_t utf8_replace(const char *text, int64_t n, char *out) {
    int64_t made = 0;
    for (int64_t at = 0; at < n;) {
        const int64_t good = utf8_check(text + at, n - at);
        memcpy(out + made, text + at, (size_t)good);
        at += good, made += good;
        if (at == n) break;
        at += length_of_bad(text + at, n - at);
        memcpy(out + made, "\xef\xbf\xbd", 3);
        made += 3;
    }
    return made;
}
