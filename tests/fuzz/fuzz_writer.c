/* Stop strings and prompts: {u8 seed; u8 tokens; the prompt; stop strings}, a line each, in which "\n" is a line break.
 * The text must be the one without stop strings, up to the first of them. */
#include "base/binfile.h"
#include "fuzz.h"
#include "model/gpt2.h"
#include "base/utf8.h"

enum { MOST = 48, TEXT = 8 * MOST, STOPS = 8 };
static llmc_model *model, as_made;
static llmc_tokenizer *tokenizer;

/* Makes few and short pieces, halves of characters among them, so that stop strings come soon and cut tokens. */
static void prepare(void) {
    static const char *const pieces[] = {"a",    "b",    "\n",           "ab",   "aba", "\xc3",
                                         "\xa9", "\n\n", "\xf0\x9f\x98", "\x80", ":"};
    enum { V = sizeof pieces / sizeof *pieces };
    const llmc_config config = {.maxT = 12, .V = V, .L = 1, .NH = 1, .C = 2};
    int32_t head[HEADER_INTS] = {TOKENIZER_MAGIC, 2, V, -1, 1};
    char file[HEADER_BYTES + 64], *end = file + HEADER_BYTES;
    memcpy(file, head, HEADER_BYTES);
    for (int i = 0; i < V; i++) {
        *end++ = (char)strlen(pieces[i]);
        end = stpcpy(end, pieces[i]);
    }
    fuzz_expect(fuzz_status(llmc_tokenizer_read(&tokenizer, file, end - file, "tokenizer.bin")) == 0);
    fuzz_expect(fuzz_status(llmc_model_create(&model, &config, &(llmc_room){.B = 1, .T = 12}, 1)) == 0);
    fuzz_expect(fuzz_status(llmc_model_init(model, 3, 1)) == 0);
    as_made = *model;
}

static void unescape(char *text) {
    char *to = text;
    for (; *text; text++) *to++ = *text == '\\' && text[1] == 'n' ? text++, '\n' : *text;
    *to = 0;
}

typedef struct Asked {
    llmc_sampling how;
    int most, stops;
    char *prompt, *stop[STOPS];
} Asked;

/* Writes into text; its size, or -1. */
static int64_t run(const Asked *a, int stops, char *text) {
    llmc_writer *w;
    const char *piece;
    int64_t n, size = 0;
    *model = as_made; /* the cache is empty */
    fuzz_expect(fuzz_status(llmc_writer_new(&w, model, tokenizer, &a->how, a->most)) == 0);
    for (int i = 0; i < stops; i++)
        fuzz_expect((fuzz_status(llmc_writer_stop_at(w, a->stop[i], (int64_t)strlen(a->stop[i]))) == 0) ==
                    !!*a->stop[i]);
    int rc = fuzz_status(llmc_writer_prompt(w, a->prompt, (int64_t)strlen(a->prompt), 0));
    const int refused = rc < 0;
    while (!refused && (rc = fuzz_status(llmc_writer_next(w, &piece, &n))) > 0) {
        fuzz_expect(n > 0 && size + n <= TEXT);
        memcpy(text + size, piece, (size_t)n);
        size += n;
    }
    fuzz_expect(refused || (rc == 0 && llmc_writer_end(w) != LLMC_GOING_ON));
    llmc_writer_free(w);
    return refused ? -1 : size;
}

/* Where the first stop string begins; the longest counts of those that end first. */
static int64_t stopped(const Asked *a, const char *text, int64_t size) {
    for (int64_t end = 1; end <= size; end++) {
        int64_t longest = 0;
        for (int i = 0; i < a->stops; i++) {
            const int64_t n = (int64_t)strlen(a->stop[i]);
            if (n > longest && n <= end && !memcmp(text + end - n, a->stop[i], (size_t)n)) longest = n;
        }
        if (longest) return end - longest;
    }
    return size;
}

/* 1 if a text holds U+FFFD, which stands for bytes of no character */
static int has_replaced(const char *text, int64_t size) {
    for (int64_t i = 0; i + 3 <= size; i++)
        if (!memcmp(text + i, "\xef\xbf\xbd", 3)) return 1;
    return 0;
}

/* 1 if all stop strings are text. Others can match bytes of no character. */
static int stops_are_text(const Asked *a) {
    for (int i = 0; i < a->stops; i++) {
        const int64_t n = (int64_t)strlen(a->stop[i]);
        if (utf8_check(a->stop[i], n) != n || has_replaced(a->stop[i], n)) return 0;
    }
    return 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Input in = {data, size};
    if (!model) prepare();
    Asked a = {.how = {.temperature = 1, .seed = take_byte(&in)}};
    char plain[TEXT], text[TEXT];
    a.most = take_byte(&in) % MOST;
    a.prompt = take_line(&in);
    unescape(a.prompt);
    while (in.left && a.stops < STOPS) unescape(a.stop[a.stops++] = take_line(&in));
    const int64_t all = run(&a, 0, plain), written = run(&a, a.stops, text);
    const int64_t end = all < 0 ? all : stopped(&a, plain, all);
    fuzz_expect((written < 0) == (all < 0));
    fuzz_expect(written < 1 || utf8_check(text, written) == written);
    if (stops_are_text(&a) && !has_replaced(plain, end)) {
        fuzz_expect(written == end);
        fuzz_expect(written < 1 || !memcmp(text, plain, (size_t)written));
    }
    free(a.prompt);
    for (int i = 0; i < a.stops; i++) free(a.stop[i]);
    return 0;
}
