/* The file has a line "#version: 0.2", then 50,000 lines "left right", each of which makes a new piece of two earlier
 * ones. A byte is written as a visible character: a printable character of Latin-1 as itself, the other 68 bytes as
 * U+0100 and on. Pieces 0 to 255 are the bytes in the order of these characters; then come the pieces of the lines,
 * then <|endoftext|>. */
#include <stdlib.h>
#include <string.h>
#include "base/binfile.h"
#include "base/error.h"
#include "text/vocab.h"
#include "base/utf8.h"
#include "text/vocabbpe.h"

#define HEADING "#version: 0.2"
#define EOT_TEXT "<|endoftext|>"
#define AGAIN "fetch it again, as binary"
enum { HIDDEN = 68, FIRST_HIDDEN = 0x100, MERGES = GPT2_V - 256 - 1 };
enum { SHOWN = 99 }; /* the most bytes of a symbol that a message shows */

typedef struct Reader {
    const char *name, *text;
    int64_t size, at; /* at: where the next line begins */
    int line;         /* the number of the line before `at` */
    Vocab made;
} Reader;

int vocabbpe_is(const char *text, int64_t size) { return size >= 8 && !memcmp(text, HEADING, 8); }

/* The byte that a character stands for, or -1 */
static int byte_of(uint32_t code) {
    if ((code >= 33 && code <= 126) || (code >= 161 && code <= 172) || (code >= 174 && code <= 255)) return (int)code;
    if (code < FIRST_HIDDEN || code >= FIRST_HIDDEN + HIDDEN) return -1;
    const int i = (int)code - FIRST_HIDDEN; /* the hidden bytes are 0-32, 127-160 and 173 */
    return i < 33 ? i : i < 67 ? i + 94 : 173;
}

/* ---- lines ---- */

static int next_line(Reader *r, const char **line, int64_t *n) {
    *line = r->text + r->at;
    const char *end = memchr(*line, '\n', (size_t)(r->size - r->at));
    r->line++;
    CHECK(end, LLMC_EFORMAT, "%s:%d: the line has no end, so the file is truncated; " AGAIN, r->name, r->line);
    *n = end - *line;
    r->at += *n + 1;
    CHECK(!*n || end[-1] != '\r', LLMC_EFORMAT, "%s:%d: the line ends in CR LF, expected LF; " AGAIN, r->name, r->line);
    return LLMC_OK;
}

/* Adds the bytes of a symbol to the piece in the making. */
static int read_symbol(Reader *r, const char *symbol, int64_t n) {
    const int64_t begin = r->made.size;
    for (int64_t at = 0, length; at < n; at += length) {
        uint32_t code;
        length = utf8_decode(symbol + at, n - at, &code);
        CHECK(length > 0, LLMC_EFORMAT, "%s:%d: byte %lld of the file is no UTF-8; " AGAIN, r->name, r->line,
              (long long)(symbol + at - r->text));
        CHECK(byte_of(code) >= 0, LLMC_EFORMAT, "%s:%d: U+%04X stands for no byte in GPT-2's alphabet; " AGAIN, r->name,
              r->line, (unsigned)code);
        r->made.bytes[r->made.size++] = (char)byte_of(code);
    }
    const int known = vocab_find(&r->made, r->made.bytes + begin, r->made.size - begin) >= 0;
    CHECK(known, LLMC_EFORMAT, "%s:%d: '%.*s' is neither a byte nor made by a line above; " AGAIN, r->name, r->line,
          (int)utf8_whole(symbol, n < SHOWN ? n : SHOWN), symbol);
    return LLMC_OK;
}

static int read_first_line(Reader *r) {
    const char *line;
    int64_t n;
    TRY(next_line(r, &line, &n));
    CHECK(n == (int64_t)strlen(HEADING) && !memcmp(line, HEADING, (size_t)n), LLMC_EFORMAT,
          "%s:1: expected " HEADING ", found another; " AGAIN, r->name);
    return LLMC_OK;
}

/* ---- pieces ---- */

static void begin_piece(Reader *r) { r->made.start[r->made.n] = (uint32_t)++r->made.size; }

/* Returns the same as vocab_add. */
static int end_piece(Reader *r) {
    const uint32_t start = r->made.start[r->made.n];
    r->made.bytes[start - 1] = (char)(r->made.size - start);
    return vocab_add(&r->made, r->made.n++);
}

static void add_bytes(Reader *r) {
    for (uint32_t code = 0; code < FIRST_HIDDEN + HIDDEN; code++) {
        if (byte_of(code) < 0) continue;
        begin_piece(r);
        r->made.bytes[r->made.size++] = (char)byte_of(code);
        end_piece(r);
    }
}

static int read_merge(Reader *r) {
    const char *line;
    int64_t n;
    TRY(next_line(r, &line, &n));
    const char *space = memchr(line, ' ', (size_t)n);
    CHECK(space && space > line && space + 1 < line + n && !memchr(space + 1, ' ', (size_t)(line + n - space - 1)),
          LLMC_EFORMAT, "%s:%d: expected two symbols with one space between; " AGAIN, r->name, r->line);
    begin_piece(r);
    TRY(read_symbol(r, line, space - line));
    TRY(read_symbol(r, space + 1, line + n - space - 1));
    const int64_t length = r->made.size - r->made.start[r->made.n];
    CHECK(length <= MAX_PIECE, LLMC_EFORMAT, "%s:%d: the piece has %d bytes, expected at most %d; " AGAIN, r->name,
          r->line, (int)length, MAX_PIECE);
    const int twin = end_piece(r);
    CHECK(twin < 0, LLMC_EFORMAT, "%s:%d: makes the same piece as line %d; " AGAIN, r->name, r->line, twin - 256 + 2);
    return LLMC_OK;
}

static void add_eot(Reader *r) {
    begin_piece(r);
    memcpy(r->made.bytes + r->made.size, EOT_TEXT, strlen(EOT_TEXT));
    r->made.size += (int64_t)strlen(EOT_TEXT);
    end_piece(r);
}

static int read_all(Reader *r) {
    const int32_t header[] = {TOKENIZER_MAGIC, 2, GPT2_V, GPT2_V - 1, GPT2};
    TRY(read_first_line(r));
    memset(r->made.bytes, 0, HEADER_BYTES);
    memcpy(r->made.bytes, header, sizeof header);
    r->made.size = HEADER_BYTES;
    add_bytes(r);
    for (int merges = 0; merges < MERGES; merges++) {
        CHECK(r->at < r->size, LLMC_EFORMAT, "%s:%d: expected %d merges, found %d; " AGAIN, r->name, r->line, MERGES,
              merges);
        TRY(read_merge(r));
    }
    CHECK(r->at == r->size, LLMC_EFORMAT, "%s:%d: expected %d merges, found more; " AGAIN, r->name, r->line + 1,
          MERGES);
    add_eot(r);
    return LLMC_OK;
}

int vocabbpe_convert(char **out, int64_t *out_size, const char *text, int64_t size, const char *name) {
    Reader r = {.name = name, .text = text, .size = size};
    /* the piece of a line, with its length, is not longer than that line */
    const size_t capacity = HEADER_BYTES + 2 * 256 + (size_t)size + 1 + strlen(EOT_TEXT);
    r.made.bytes = malloc(capacity);
    r.made.start = malloc(GPT2_V * sizeof *r.made.start);
    const int there = r.made.bytes && r.made.start && vocab_reserve(&r.made, GPT2_V) == 0;
    const int rc = there ? read_all(&r) : llmc_fail(LLMC_ENOMEM, "no memory for the tokenizer %s", name);
    *out = rc < 0 ? NULL : r.made.bytes, *out_size = r.made.size;
    if (rc == 0) r.made.bytes = NULL;
    vocab_free(&r.made);
    return rc;
}
