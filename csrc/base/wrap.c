/* Wraps a text for a terminal while the text still arrives, so that no line breaks inside a word. A word is shown when
 * it is whole, because only then it is known whether it fits. */
#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "base/ranges.h"
#include "base/utf8.h"

enum { WORD = 4096 }; /* the most bytes of a word that are held back */

static const Range ranges[] = {
#define COLUMNS(columns, first, last) {first, last, columns},
#include "base/width.def"
#undef COLUMNS
};

struct llmc_wrap {
    int column, gap; /* column: where the line stands; gap: blanks after it, shown only if a word follows */
    int held, width; /* bytes and columns of the word held back */
    char word[WORD];
    char *out; /* the n bytes to show */
    int64_t n;
};

static int columns_of(uint32_t code) {
    return value_in(ranges, sizeof ranges / sizeof *ranges, code, code >= 32 && code != 127);
}

llmc_wrap *llmc_wrap_new(void) {
    llmc_wrap *w = calloc(1, sizeof *w);
    if (!w) llmc_fail(LLMC_ENOMEM, "no memory to wrap a text");
    return w;
}

void llmc_wrap_free(llmc_wrap *w) {
    if (w) free(w->out);
    free(w);
}

static void put_bytes(llmc_wrap *w, const char *text, int64_t size) {
    memcpy(w->out + w->n, text, (size_t)size);
    w->n += size;
}

static void end_line(llmc_wrap *w) {
    put_bytes(w, "\n", 1);
    w->column = w->gap = 0;
}

static void put_gap(llmc_wrap *w) {
    memset(w->out + w->n, ' ', (size_t)w->gap);
    w->n += w->gap, w->column += w->gap;
    w->gap = 0;
}

static void put_word(llmc_wrap *w, int columns) {
    if (!w->held) return;
    const int fits = w->column + w->gap + w->width <= columns;
    if (!fits && w->column) end_line(w);
    if (fits) put_gap(w);
    put_bytes(w, w->word, w->held);
    w->column += w->width;
    w->gap = w->held = w->width = 0;
}

static void add_blank(llmc_wrap *w, int columns, char c) {
    put_word(w, columns);
    if (c == '\n') end_line(w);
    else w->gap += c == '\t' ? 8 - (w->column + w->gap) % 8 : 1;
    if (w->gap > columns) w->gap = columns;
}

/* Adds a character to the word held back. A character two columns wide, e.g. a Chinese one, is a word by itself; one of
 * no width belongs to the word before it. */
static void add_character(llmc_wrap *w, int columns, const char *text, int length, int width) {
    if (width == 2 || w->width + width > columns || w->held + length > WORD) put_word(w, columns);
    memcpy(w->word + w->held, text, (size_t)length);
    w->held += length, w->width += width;
    if (width == 2) put_word(w, columns);
}

static void add(llmc_wrap *w, int columns, const char *text, int64_t size) {
    uint32_t code;
    for (int64_t at = 0; at < size;) {
        int length = utf8_decode(text + at, size - at, &code), width = length > 0 ? columns_of(code) : 1;
        if (length <= 0) length = 1;
        if (strchr(" \t\n", text[at]) && text[at]) add_blank(w, columns, text[at]);
        else add_character(w, columns, text + at, length, width);
        at += length;
    }
}

int llmc_wrap_next(llmc_wrap *w, int columns, const char *text, int64_t size, const char **out, int64_t *n) {
    CHECK(size >= 0 && columns >= 0, LLMC_EINVAL, "a piece of %lld bytes for %d columns", (long long)size, columns);
    /* each byte may end a line, or be a tab of 8 blanks */
    const int64_t capacity = 11 * size + WORD + w->gap + (columns > 8 ? columns : 8) + 16;
    char *grown = realloc(w->out, (size_t)capacity);
    CHECK(grown, LLMC_ENOMEM, "no memory for a piece of %lld bytes", (long long)size);
    w->out = grown, w->n = 0;
    if (!columns || !text) put_word(w, columns ? columns : 1 << 30);
    if (!columns) put_gap(w);
    if (text && !columns) put_bytes(w, text, size);
    else if (text) add(w, columns, text, size);
    *out = w->out, *n = w->n;
    return LLMC_OK;
}
