/* The formats of weight files that the engine reads: one row and one file each. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/error.h"
#include "files/llmcfile.h"
#include "files/runfolder.h"
#include "files/tfbundle.h"

typedef struct Format {
    int (*is)(const char *path); /* whether `path` names a file of this format; looks at names, not into the file */
    int (*open)(llmc_file *f, const char *path);
    void (*describe)(const llmc_file *f, char *text, size_t size);
} Format;

static const Format formats[] = {
    {tfbundle_is, tfbundle_open, tfbundle_describe},
    {llmcfile_is, llmcfile_open,
     llmcfile_describe}, /* last: it accepts any file, and its open() tells what else the file is */
};
enum { NUM_FORMATS = sizeof formats / sizeof *formats };

static const Format *format_of(const char *path) {
    for (int i = 0; i < NUM_FORMATS; i++)
        if (formats[i].is(path)) return &formats[i];
    return NULL;
}

int llmc_file_find(const char *path, char *file, size_t size) {
    return runfolder_weights(path, file, size) || format_of(path) != NULL;
}

/* ---- opening ---- */

static int refuse_folder(const char *path) {
    char aside[PATH_MAX], file[PATH_MAX];
    snprintf(aside, sizeof aside, "%s/replaced", path);
    CHECK(!runfolder_weights(aside, file, sizeof file), LLMC_EIO,
          "%s holds no weights yet: the run that was to be replaced lies in %s: name that, or put it back with "
          "--resume=%s",
          path, aside, path);
    FAIL(LLMC_EIO,
         "%s is a directory without best.ckpt, last.ckpt or model.ckpt.*: name a weight file; other weights (Hugging "
         "Face's, nanoGPT's) are read by python -m pyllmc.train --model=%s and python -m pyllmc.chat %s, "
         "or converted by python -m pyllmc.convert %s model.bin",
         path, path, path, path);
}

static int open_found(llmc_file *f, const char *path) {
    char checkpoint[PATH_MAX];
    const char *file = runfolder_weights(path, checkpoint, sizeof checkpoint) ? checkpoint : path;
    f->format = format_of(file);
    if (!f->format && is_folder(path)) return refuse_folder(path);
    if (!f->format) f->format = &formats[NUM_FORMATS - 1]; /* it says why the file cannot be opened */
    return f->format->open(f, file);
}

int llmc_file_open(llmc_file **out, const char *path) {
    llmc_file *f = calloc(1, sizeof *f);
    *out = NULL;
    CHECK(f, LLMC_ENOMEM, "no memory to open %s", path);
    f->file.fd = -1;
    const int rc = open_found(f, path);
    if (rc < 0) llmc_file_free(f);
    else *out = f;
    return rc;
}

int llmc_file_describe(const llmc_file *f, char *text, size_t size) {
    f->format->describe(f, text, size);
    return LLMC_OK;
}

/* ---- a single question, by path ---- */

int llmc_model_read_config(const char *path, llmc_config *config) {
    llmc_file *f;
    TRY(llmc_file_open(&f, path));
    *config = f->config;
    llmc_file_free(f);
    return LLMC_OK;
}

int llmc_model_describe(const char *path, char *text, size_t size) {
    llmc_file *f;
    TRY(llmc_file_open(&f, path));
    const int rc = llmc_file_describe(f, text, size);
    llmc_file_free(f);
    return rc;
}

int llmc_checkpoint_text(const char *path, const char *tag, char *out, int64_t size) {
    llmc_file *f;
    TRY(llmc_file_open(&f, path));
    const int rc = llmc_file_section(f, tag, out, size);
    llmc_file_free(f);
    return rc;
}
