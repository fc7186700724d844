/* Model files and checkpoints: {u8 how; the file}, see fuzz_file(). how & OTHER: for a model of other sizes. */
#include "fuzz.h"
#include "modelfile.h"

enum { OTHER = 4 };
static const llmc_room room = {.B = 1, .T = 1, .training = 1, .recompute = 2};

static void read_texts(const char *path) {
    for (int i = 0; i < NUM_SECTIONS; i++) {
        const int size = fuzz_status(llmc_checkpoint_text(path, section_tags[i], NULL, 0));
        fuzz_expect(size >= 0);
        char *text = malloc((size_t)size + 1);
        fuzz_expect(text && llmc_checkpoint_text(path, section_tags[i], text, size + 1) == size && !text[size]);
        if (size > 0) fuzz_expect(fuzz_status(llmc_checkpoint_text(path, section_tags[i], text, size - 1)) < 0);
        free(text);
    }
}

/* what was loaded is finite; what was refused has changed nothing */
static void load(const char *path, const llmc_config *config, int same) {
    llmc_model *model;
    char name[80];
    fuzz_expect(fuzz_status(llmc_model_create(&model, config, &room, 1)) == 0);
    fuzz_expect(fuzz_status(llmc_model_init(model, 1, 0)) == 0);
    const int rc = fuzz_status(llmc_model_load(model, path));
    fuzz_expect(same || rc < 0);
    fuzz_expect(fuzz_status(llmc_model_find_nonfinite(model, name, sizeof name)) == 0 && !*name);
    fuzz_expect(llmc_model_step(model) >= 0);
    llmc_model_free(model);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Input in = {data, size};
    llmc_config config;
    const int how = take_byte(&in);
    const char *path = fuzz_path(0, fuzz_file(in, how, 9));
    if (fuzz_status(llmc_model_read_config(path, &config)) < 0) {
        fuzz_expect(fuzz_status(llmc_checkpoint_text(path, "STATE   ", NULL, 0)) < 0);
        return 0;
    }
    fuzz_expect(llmc_config_check(&config) == 0 && config.C % config.NH == 0);
    read_texts(path);
    config.V += how & OTHER ? 1 : 0;
    load(path, &config, !(how & OTHER));
    return 0;
}
