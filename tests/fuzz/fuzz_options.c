/* A command line, and pairs of name and value; then the options' text, and back: {u16 bytes of the text's buffer; the arguments,
 * a line each}.
 * With the buffer's highest bit: the options of a chat. */
#include "fuzz.h"
#include "options/options.h"

enum { MOST = 64, PAIRS = 2, TEXT = 1 << 16, CHAT = 1 << 15 };

/* Sets options from lines name=value, as the front ends read them from a checkpoint. */
static void set_again(llmc_options *options, char *text) {
    for (char *line = text, *end; *line; line = end + 1) {
        end = strchr(line, '\n');
        char *value = strchr(line, '=');
        fuzz_expect(end && value && value < end);
        *end = *value = 0;
        fuzz_expect(fuzz_status(llmc_options_set(options, line, value + 1)) == 0);
    }
}

static void print_and_read(const llmc_options *options, size_t room, int chat) {
    char *small = malloc(room + 1), *text = malloc(TEXT), *copy = malloc(TEXT);
    llmc_options *other = fuzz_options(chat);
    fuzz_expect(small && text && copy && fuzz_status(llmc_options_text(options, text, TEXT)) == 0);
    fuzz_expect((fuzz_status(llmc_options_text(options, small, room)) == 0) == (room > strlen(text)));
    set_again(other, strcpy(copy, text));
    fuzz_expect(llmc_options_text(other, copy, TEXT) == 0 && !strcmp(copy, text));
    llmc_options_free(other);
    free(small);
    free(text);
    free(copy);
}

static void get(const llmc_options *options, const char *name, size_t room) {
    char *value = malloc(room + 1);
    fuzz_expect(value);
    if (fuzz_status(llmc_options_get(options, name, value, room)) == 0)
        fuzz_expect(llmc_options_is_given(options, name) >= 0);
    free(value);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Input in = {data, size};
    char *argv[MOST];
    int argc = 0;
    uint16_t room;
    take(&in, &room, sizeof room);
    while (in.left && argc < MOST) argv[argc++] = take_line(&in);
    const int chat = room & CHAT;
    llmc_options *options = fuzz_options(chat);
    const int rc = fuzz_status(llmc_options_parse(options, argc, (const char *const *)argv));
    fuzz_expect(rc <= 2); /* 1: --help, 2: --version */
    for (int i = 0; i + 1 < argc && i < 2 * PAIRS; i += 2) {
        get(options, argv[i], room);
        fuzz_status(llmc_options_set(options, argv[i], argv[i + 1]));
    }
    print_and_read(options, room, chat);
    for (int i = 0; i < argc; i++) free(argv[i]);
    llmc_options_free(options);
    return 0;
}
