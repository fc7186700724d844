/* vocab.bpe: {u8 how; lines}, below the first line unless AS_IS. how & WHOLE: other lines follow, as many as a whole one has. */
#include "fuzz.h"
#include "text/vocab.h"

enum { WHOLE = 4, LINES = GPT2_V - 256 - 1, ROOM = 4 * LINES };

/* Pairs of the printable characters, each of two bytes. */
static void fill_up(Input *file, char *text) {
    int lines = -1; /* the first line is no merge */
    for (size_t i = 0; i < file->left; i++) lines += text[i] == '\n';
    for (int i = 0; lines < LINES; i++, lines++, file->left += 4) {
        const char pair[] = {(char)('!' + i % 94), ' ', (char)('!' + i / 94), '\n'};
        memcpy(text + file->left, pair, sizeof pair);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static char text[ROOM + FUZZ_FILE];
    static const char first[] = "#version: 0.2\n";
    Input in = {data, size};
    llmc_tokenizer *k;
    const int how = take_byte(&in), skip = how & AS_IS ? 0 : (int)sizeof first - 1;
    in = take_input(&in, FUZZ_FILE - 64);
    memcpy(text, first, (size_t)skip);
    if (in.left) memcpy(text + skip, in.at, in.left);
    Input file = {(const uint8_t *)text, in.left + (size_t)skip};
    if (how & WHOLE) fill_up(&file, text);
    const int rc = fuzz_status(llmc_tokenizer_read(&k, text, (int64_t)file.left, "vocab.bpe"));
    fuzz_expect(!k == (rc < 0));
    if (!k) return 0;
    int ids[8], n = fuzz_status(llmc_tokenizer_encode(k, "ab cd", 5, ids, 8));
    char back[8];
    fuzz_expect(n > 0 && n <= 5 && llmc_tokenizer_decode(k, ids, n, back, sizeof back) == 5 &&
                !memcmp(back, "ab cd", 5));
    llmc_tokenizer_free(k);
    return 0;
}
