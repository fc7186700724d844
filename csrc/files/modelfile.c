/* What all formats of weight files have in common once they are open. */
#include "files/modelfile.h"
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "base/error.h"

const char *const section_tags[NUM_SECTIONS] = {"OPTIONS ", "STATE   ", "TOKENIZR", "MOMENTS ", "OUTER   ", "CRC32   "};

int modelfile_open(llmc_file *f, const char *path) {
    f->path = strdup(path);
    CHECK(f->path, LLMC_ENOMEM, "no memory to open %s", path);
    return binfile_open(&f->file, f->path);
}

void llmc_file_free(llmc_file *f) {
    if (!f) return;
    binfile_close(&f->file);
    if (f->adapters) {
        free(f->adapters->text);
        free(f->adapters->name);
        free(f->adapters->base);
        free(f->adapters->train_only);
        free(f->adapters);
    }
    free(f->extents);
    free(f->path);
    free(f);
}

const llmc_config *llmc_file_config(const llmc_file *f) { return &f->config; }
const char *llmc_file_path(const llmc_file *f) { return f->path; }

int modelfile_lay_out(llmc_file *f, int rows) {
    TRY(layout_make(&f->layout, &f->config, &(llmc_room){.B = 1, .T = 1, .precision = LLMC_FP32}));
    f->padded = (int64_t)rows * f->config.C;
    f->params = f->layout.num_params;
    for (int i = 0; i < NUM_PARAM_TENSORS; i++)
        f->params += (elements_of(f, i) - f->layout.table[i].size) * layers_of(f, i);
    f->extents = calloc((size_t)NUM_PARAM_TENSORS * (size_t)f->config.L, sizeof *f->extents);
    CHECK(f->extents, LLMC_ENOMEM, "no memory for the table of the tensors in %s", f->path);
    return LLMC_OK;
}

int modelfile_find_section(const char *tag) {
    for (int i = 0; i < NUM_SECTIONS; i++)
        if (!memcmp(tag, section_tags[i], TAG_BYTES)) return i;
    return -1;
}

int modelfile_section(const llmc_file *f, int s, char *out, int64_t size) {
    const Section *section = &f->sections[s];
    CHECK(section->size <= INT_MAX, LLMC_EINVAL, "%s: section %s is too large to read at once", f->path,
          section_tags[s]);
    if (!section->at) {
        if (out && size > 0) *out = 0;
        return 0;
    }
    CHECK(!out || size >= section->size, LLMC_EINVAL, "%s: section %s has %lld bytes, room for %lld", f->path,
          section_tags[s], (long long)section->size, (long long)size);
    if (out) TRY(binfile_read(&f->file, out, section->size, section->at));
    if (out && size > section->size) out[section->size] = 0;
    return (int)section->size;
}

int llmc_file_section(const llmc_file *f, const char *tag, char *out, int64_t size) {
    const int s = strlen(tag) == TAG_BYTES ? modelfile_find_section(tag) : -1;
    CHECK(s >= 0, LLMC_EINVAL, "'%s' is no section of a checkpoint: one is 'STATE   '", tag);
    return modelfile_section(f, s, out, size);
}
