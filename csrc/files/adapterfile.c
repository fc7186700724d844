/* A file of LoRA's adapters: its text, where each tensor lies, and the base that it belongs to. */
#include "files/adapterfile.h"
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/crc32.h"
#include "base/error.h"
#include "files/state.h"
#include "model/gpt2.h"

/* ---- writing ---- */

int adapterfile_text(const llmc_model *m, char text[ADAPTER_TEXT]) {
    char on[64];
    CHECK(m->base, LLMC_EINVAL,
          "adapters are saved with the name of the model that they belong to, and this one has fresh weights: save a "
          "model "
          "first, and adapt that");
    layout_target_names(m->room.lora_on, on, sizeof on);
    const int n = snprintf(
        text, ADAPTER_TEXT,
        "base=%s\nchecksum=%u\nlora_rank=%d\nlora_alpha=%.9g\nlora_dropout=%.9g\nlora_on=%s\ntrain_only=%s\n", m->base,
        m->base_crc, m->room.lora_rank, (double)m->room.lora_alpha, m->drop.p[LLMC_DROP_LORA], on, m->train_only);
    CHECK(n < ADAPTER_TEXT, LLMC_EINVAL, "the path of %s is too long for a checkpoint", m->base);
    return n;
}

static int add_block(llmc_model *m, Crc32 *crc, float *x) {
    for (int64_t at = 0; at < m->layout.num_params; at += AT_A_TIME) {
        const int64_t n = next_turn(m->layout.num_params - at);
        TRY(gpt2_get(m, x, m->params, at, n));
        crc32_add(crc, x, n * 4);
    }
    return LLMC_OK;
}

int llmc_model_name_base(llmc_model *m, const char *path) {
    Crc32 crc;
    char absolute[PATH_MAX];
    const char *name = realpath(path, absolute) ? absolute : path;
    CHECK(!strchr(name, '\n'), LLMC_EINVAL, "the path of a model that is adapted holds a line break");
    CHECK(!gpt2_is_compressed(m), LLMC_EINVAL, "compressed weights have no checksum");
    float *x = malloc(AT_A_TIME * sizeof *x);
    free(m->base);
    m->base = strdup(name);
    int rc = x && m->base ? LLMC_OK : llmc_fail(LLMC_ENOMEM, "no memory to read the weights of %s", path);
    crc32_start(&crc, CRC_ZLIB);
    if (rc == 0) rc = add_block(m, &crc, x);
    m->base_crc = crc.value;
    free(x);
    return rc;
}

/* ---- reading ---- */

/* A copy of the value in the line of this name; NULL if memory ran out. */
static char *copy_of(const char *text, const char *name) {
    const char *value = state_value(text, name);
    return value ? strndup(value, strcspn(value, "\n")) : strdup("");
}

static int read_text(llmc_file *f, int32_t bytes) {
    const int fits = bytes > 0 && bytes < ADAPTER_TEXT && HEADER_BYTES + (int64_t)bytes <= f->file.size;
    CHECK(fits, LLMC_EFORMAT, "%s is damaged: its text has %d bytes; copy it again", f->path, bytes);
    Adapters *a = f->adapters = calloc(1, sizeof *a);
    if (a) a->text = calloc(1, (size_t)bytes + 1);
    CHECK(a && a->text, LLMC_ENOMEM, "no memory to open %s", f->path);
    TRY(binfile_read(&f->file, a->text, bytes, HEADER_BYTES));
    f->begin = f->end = HEADER_BYTES + bytes;
    return LLMC_OK;
}

/* Where the base is read: beside the adapters, if it is there (csrc/train/run.c), else by its name. */
static char *find_base(const char *path, const char *name) {
    const char *slash = strrchr(path, '/');
    char beside[PATH_MAX];
    const int n = snprintf(beside, sizeof beside, "%.*s" ADAPTED_BASE, slash ? (int)(slash - path) + 1 : 0, path);
    return strdup(n < PATH_MAX && access(beside, F_OK) == 0 ? beside : name);
}

static int read_room(const llmc_file *f) {
    Adapters *a = f->adapters;
    char *on = copy_of(a->text, "lora_on");
    a->name = copy_of(a->text, "base");
    a->base = a->name ? find_base(f->path, a->name) : NULL;
    a->train_only = copy_of(a->text, "train_only");
    a->base_crc = (uint32_t)state_whole(a->text, "checksum", 0);
    const int has_all = a->name && a->base && a->train_only && on, bits = on ? llmc_lora_targets(on) : 0;
    free(on);
    CHECK(has_all, LLMC_ENOMEM, "no memory to open %s", f->path);
    a->room = (llmc_room){.B = 1,
                          .T = 1,
                          .training = 1,
                          .precision = LLMC_FP32,
                          .lora_rank = (int)state_whole(a->text, "lora_rank", 0),
                          .lora_on = bits,
                          .lora_alpha = (float)state_number(a->text, "lora_alpha", 0),
                          .train_only = a->train_only};
    return bits < 0 ? bits : LLMC_OK;
}

/* Refuses a small file that claims to hold many layers before their number is used. */
static int check_size(const llmc_file *f) {
    const llmc_config *c = &f->config;
    const int rank = f->adapters->room.lora_rank;
    const double least = 8.0 * c->L * c->C * rank;
    CHECK(rank >= 1 && least < (double)f->file.size, LLMC_EFORMAT,
          "%s is truncated: adapters of rank %d for L=%d and C=%d need more than %.0f bytes, found %lld; copy it again",
          f->path, rank, c->L, c->C, least, (long long)f->file.size);
    return LLMC_OK;
}

static int place_tensors(llmc_file *f) {
    f->extents = calloc((size_t)NUM_TRAINABLE * (size_t)f->config.L, sizeof *f->extents);
    CHECK(f->extents, LLMC_ENOMEM, "no memory for the table of the tensors in %s", f->path);
    f->padded = f->layout.table[P_wte].size;
    f->params = f->layout.num_trained;
    CHECK(f->file.size - f->end >= f->params * 4, LLMC_EFORMAT,
          "%s is truncated: expected %lld bytes, found %lld; copy it again", f->path,
          (long long)(f->end + f->params * 4), (long long)f->file.size);
    for (int i = 0; i < NUM_TRAINABLE; i++)
        for (int l = 0; l < layers_stored(&f->layout.table[i]); l++) {
            if (!layout_trains(&f->layout, &f->adapters->room, i, l)) continue;
            *extent_of(f, i, l) = (Extent){.at = f->end, .width = 4};
            f->end += f->layout.table[i].size * 4;
        }
    return LLMC_OK;
}

int adapterfile_read(llmc_file *f, int32_t text_bytes) {
    TRY(read_text(f, text_bytes));
    int rc = read_room(f);
    if (rc == 0) rc = check_size(f);
    if (rc == 0) rc = layout_make(&f->layout, &f->config, &f->adapters->room);
    CHECK(rc != LLMC_EINVAL, LLMC_EFORMAT, "%s is damaged: %s", f->path, llmc_last_error());
    TRY(rc);
    return place_tensors(f);
}

int llmc_file_adapters(const llmc_file *f, char *text, int64_t size) {
    if (!f->adapters) return 0;
    if (text) snprintf(text, (size_t)size, "%s", f->adapters->text);
    return (int)strlen(f->adapters->text);
}

int llmc_file_set_base(llmc_file *f, const char *path) {
    CHECK(f->adapters, LLMC_EINVAL, "%s holds a model, no adapters of one", f->path);
    char *base = strdup(path);
    CHECK(base, LLMC_ENOMEM, "no memory for the path %s", path);
    free(f->adapters->base);
    f->adapters->base = base;
    f->adapters->is_copy = 1;
    return LLMC_OK;
}
