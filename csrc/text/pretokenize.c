/* The regular expression 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ by hand: the first
 * alternative that matches wins, and each run is as long as possible. */
#include <stddef.h>
#include <string.h>
#include "text/pretokenize.h"
#include "base/ranges.h"
#include "base/utf8.h"

enum { OTHER, LETTER, NUMBER, SPACE, END };

static const Range ranges[] = {
#define L(first, last) {first, last, LETTER},
#define N(first, last) {first, last, NUMBER},
#define S(first, last) {first, last, SPACE},
#include "text/unicode.def"
#undef L
#undef N
#undef S
};

static int kind_of(uint32_t code) { return value_in(ranges, sizeof ranges / sizeof *ranges, code, OTHER); }

static int kind_of_ascii(int c) {
    if ((c | 32) >= 'a' && (c | 32) <= 'z') return LETTER;
    if (c >= '0' && c <= '9') return NUMBER;
    return c == ' ' || (c >= '\t' && c <= '\r') ? SPACE : OTHER;
}

static int kind_at(const char *text, int64_t n, int64_t at, int *length) {
    uint32_t code;
    *length = 1;
    if (at == n) return END;
    if ((unsigned char)text[at] < 0x80) return kind_of_ascii(text[at]);
    *length = utf8_decode(text + at, n - at, &code);
    return kind_of(code);
}

/* Returns the end of the run of characters of one kind at `at`; *last becomes the start of its last character. */
static int64_t end_of_run(const char *text, int64_t n, int64_t at, int kind, int64_t *last) {
    for (int length; kind_at(text, n, at, &length) == kind; at += length) *last = at;
    return at;
}

static int contraction(const char *text, int64_t n) {
    static const char *const all[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
    for (size_t i = 0; *text == '\'' && i < sizeof all / sizeof *all; i++) {
        const size_t length = strlen(all[i]);
        if (n >= (int64_t)length && !memcmp(text, all[i], length)) return (int)length;
    }
    return 0;
}

int64_t pretokenize_word(const char *text, int64_t n) {
    int length;
    int64_t last = 0;
    const int shortened = contraction(text, n), spaced = *text == ' ';
    if (shortened) return shortened;
    const int kind = kind_at(text, n, spaced, &length);
    if (kind != SPACE && kind != END) return end_of_run(text, n, spaced, kind, &last);
    /* white space before a word leaves its last character to that word, unless it has only one */
    const int64_t end = end_of_run(text, n, 0, SPACE, &last);
    return end < n && last > 0 ? last : end;
}
