/* Compares byte-pair encoding, of any text by any table, with the plainest way: {u8 how; u8 number of pieces; {u8
 * length; bytes} each; text}. how & ASCII: high bits of the text are cleared, so that more of it is valid. */
#include "base/binfile.h"
#include "fuzz.h"
#include "text/vocab.h"
#include "text/pretokenize.h"
#include "base/utf8.h"

enum { ASCII = 1, MOST_TEXT = 160, MOST_PIECES = 256 + 64 };

/* Where each piece begins in the file. The pieces that share their first byte form a list: its first, and the next
 * after each, or -1. */
static size_t begins[MOST_PIECES];
static int first_with[256], next_with[MOST_PIECES];

static int note(const uint8_t *file, int id, size_t at) {
    int *place = &first_with[file[at + 1]];
    while (*place >= 0) place = &next_with[*place];
    begins[id] = at + 1, next_with[id] = -1;
    return *place = id;
}

static int is_known(const uint8_t *file, const uint8_t *piece) {
    int id = first_with[piece[1]];
    while (id >= 0 && memcmp(file + begins[id] - 1, piece, 1 + (size_t)*piece)) id = next_with[id];
    return id >= 0;
}

/* Makes a tokenizer.bin: all bytes, then the input's pieces that are not there yet. */
static Input make_table(Input *in, uint8_t *file) {
    int32_t head[] = {TOKENIZER_MAGIC, 2, 256, -1, GPT2};
    size_t end = HEADER_BYTES;
    for (int byte = 0; byte < 256; byte++, end += 2) {
        file[end] = 1, file[end + 1] = (uint8_t)byte;
        first_with[byte] = -1;
        note(file, byte, end);
    }
    for (int i = take_byte(in) % 64; i; i--) {
        file[end] = (uint8_t)take_byte(in);
        take(in, file + end + 1, file[end]);
        if (!file[end] || is_known(file, file + end)) continue;
        note(file, head[2]++, end);
        end += 1 + (size_t)file[end];
    }
    memset(file, 0, HEADER_BYTES);
    memcpy(file, head, sizeof head);
    return (Input){file, end};
}

/* The id of these bytes, found by a look at every piece with the same first byte; or -1. */
static int id_of(Input table, const char *text, int64_t n) {
    for (int id = first_with[(uint8_t)*text]; id >= 0; id = next_with[id]) {
        const uint8_t *piece = table.at + begins[id];
        if (piece[-1] == n && !memcmp(piece, text, (size_t)n)) return id;
    }
    return -1;
}

/* The ids of one word: the pair with the least id merges, the leftmost of equals, until no pair does. */
static int plainly(Input table, const char *word, int64_t n, int *ids) {
    int64_t starts[MOST_TEXT + 1];
    int parts = 0, whole = id_of(table, word, n);
    if (whole >= 0) return ids[0] = whole, 1;
    while (parts < n) starts[parts] = parts, parts++;
    for (int best = 0; best >= 0;) {
        int least = -1;
        best = -1, starts[parts] = n;
        for (int i = 0; i + 1 < parts; i++) {
            const int id = id_of(table, word + starts[i], starts[i + 2] - starts[i]);
            if (id >= 0 && (least < 0 || id < least)) least = id, best = i;
        }
        if (best < 0) break;
        memmove(&starts[best + 1], &starts[best + 2], (size_t)(parts - best - 1) * sizeof *starts);
        parts--;
    }
    for (int i = 0; i < parts; i++) ids[i] = id_of(table, word + starts[i], starts[i + 1] - starts[i]);
    return parts;
}

static void encode(const llmc_tokenizer *k, Input table, const char *text, int64_t n) {
    int ids[MOST_TEXT + 1], plain[MOST_TEXT + 1];
    const int rc = fuzz_status(llmc_tokenizer_encode(k, text, n, ids, MOST_TEXT));
    fuzz_expect((rc < 0) == (utf8_check(text, n) < n));
    int64_t parts = 0;
    for (int64_t at = 0, length; rc >= 0 && at < n; at += length) {
        length = pretokenize_word(text + at, n - at);
        fuzz_expect(length >= 1 && length <= n - at);
        parts += plainly(table, text + at, length, plain + parts);
    }
    fuzz_expect(rc < 0 || (rc == parts && !memcmp(ids, plain, (size_t)rc * sizeof *ids)));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static uint8_t file[HEADER_BYTES + 512 + 256 * 256];
    Input in = {data, size};
    llmc_tokenizer *k;
    const int how = take_byte(&in);
    const Input table = make_table(&in, file);
    fuzz_expect(fuzz_status(llmc_tokenizer_read(&k, file, (int64_t)table.left, "tokenizer.bin")) == 0);
    const size_t n = in.left < MOST_TEXT ? in.left : MOST_TEXT;
    char *text = malloc(n + !n);
    fuzz_expect(text);
    take(&in, text, n);
    for (size_t i = 0; i < n && how & ASCII; i++) text[i] &= 127;
    encode(k, table, text, (int64_t)n);
    free(text);
    llmc_tokenizer_free(k);
    return 0;
}
