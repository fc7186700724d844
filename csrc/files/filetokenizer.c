/* The tokenizer that belongs to a file of weights: the one inside it, or the one beside it. */
#include "files/filetokenizer.h"
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/error.h"
#include "files/modelfile.h"

int filetokenizer_open(llmc_tokenizer **out, const char *path, int V) {
    TRY(llmc_tokenizer_open(out, path));
    const int rc = llmc_tokenizer_fits(*out, V, path);
    if (rc < 0) llmc_tokenizer_free(*out), *out = NULL;
    return rc;
}

static int read_inside(llmc_tokenizer **out, const llmc_file *f) {
    const int size = modelfile_section(f, TOKENIZR, NULL, 0);
    if (size <= 0) return size;
    char *bytes = malloc((size_t)size);
    CHECK(bytes, LLMC_ENOMEM, "no memory for the tokenizer of %s", f->path);
    int rc = modelfile_section(f, TOKENIZR, bytes, size);
    if (rc > 0) rc = llmc_tokenizer_read(out, bytes, size, f->path);
    free(bytes);
    return rc < 0 ? rc : LLMC_OK;
}

static int open_beside(llmc_tokenizer **out, const llmc_file *f) {
    static const char *const names[] = {"tokenizer.bin", "vocab.bpe"};
    const char *slash = strrchr(f->path, '/');
    const int folder = slash ? (int)(slash - f->path) + 1 : 0;
    char path[PATH_MAX + 16];
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%.*s%s", folder, f->path, names[i]);
        if (access(path, F_OK) == 0) return filetokenizer_open(out, path, f->config.V);
    }
    return LLMC_OK;
}

int llmc_file_tokenizer(const llmc_file *f, int beside, llmc_tokenizer **out) {
    *out = NULL;
    TRY(read_inside(out,
                    f)); /* whether it fits is not checked, because --vocab_size may have given the model more ids */
    return *out || !beside ? LLMC_OK : open_beside(out, f);
}
