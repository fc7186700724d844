/* Model files and checkpoints: {u8 how; the file}, see fuzz_file(). how & OTHER: for a model of other sizes. */
#include "fuzz.h"
#include "files/modelfile.h"

enum { OTHER = 4 };

static void read_section(const llmc_file *f, int section) {
    const int size = fuzz_status(modelfile_section(f, section, NULL, 0));
    if (size < 0) return;
    char *text = malloc((size_t)size + 1);
    fuzz_expect(text && modelfile_section(f, section, text, size + 1) == size && !text[size]);
    if (size > 0) fuzz_expect(fuzz_status(modelfile_section(f, section, text, size - 1)) < 0);
    free(text);
}

/* Reads every section; and one of them again by its path. */
static void read_sections(const char *path, int one) {
    llmc_file *f;
    if (fuzz_status(llmc_file_open(&f, path)) < 0) return;
    for (int i = 0; i < NUM_SECTIONS; i++) read_section(f, i);
    const int size = (int)f->sections[one].size;
    llmc_file_free(f);
    fuzz_expect(fuzz_status(llmc_checkpoint_text(path, section_tags[one], NULL, 0)) == size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Input in = {data, size};
    char text[200];
    const int how = take_byte(&in);
    const char *path = fuzz_path(0, fuzz_file(in, how, 9));
    read_sections(path, how / 8 % NUM_SECTIONS);
    fuzz_status(llmc_model_describe(path, text, sizeof text));
    fuzz_load(path, how & OTHER);
    return 0;
}
