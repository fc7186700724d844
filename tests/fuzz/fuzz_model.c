/* Model files and checkpoints: {u8 how; the file}, see fuzz_file(). how & OTHER: for a model of other sizes. */
#include "fuzz.h"
#include "modelfile.h"

enum { OTHER = 4 };

static void read_text(const char *path, const char *tag) {
    const int size = fuzz_status(llmc_checkpoint_text(path, tag, NULL, 0));
    if (size < 0) return;
    char *text = malloc((size_t)size + 1);
    fuzz_expect(text && llmc_checkpoint_text(path, tag, text, size + 1) == size && !text[size]);
    if (size > 0) fuzz_expect(fuzz_status(llmc_checkpoint_text(path, tag, text, size - 1)) < 0);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Input in = {data, size};
    char text[200];
    const int how = take_byte(&in);
    const char *path = fuzz_path(0, fuzz_file(in, how, 9));
    for (int i = 0; i < (how & OTHER ? 1 : NUM_SECTIONS); i++) read_text(path, section_tags[i]);
    fuzz_status(llmc_model_describe(path, text, sizeof text));
    fuzz_load(path, how & OTHER);
    return 0;
}
