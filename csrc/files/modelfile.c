/* Files of weights: what they are, and where each tensor lies, checked before a byte of the model changes. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/binfile.h"
#include "base/error.h"
#include "files/modelfile.h"
#include "files/tfbundle.h"

const char *const section_tags[NUM_SECTIONS] = {"OPTIONS ", "STATE   ", "TOKENIZR", "MOMENTS ", "CRC32   "};

/* llm.c wrote 2 and 4 for some days in April 2024 */
typedef struct Version {
    int version, width, norm_width, padded;
} Version;
static const Version versions[] = {{1, 4, 4, 0}, {2, 2, 4, 0}, {3, 4, 4, 1}, {4, 2, 4, 1}, {5, 2, 2, 1}};

/* ---- the header ---- */

static int read_config(ModelFile *f, const int32_t *head, int padded) {
    llmc_config *c = &f->config;
    *c = (llmc_config){.maxT = head[2], .V = head[3], .L = head[4], .NH = head[5], .C = head[6], .window = head[8]};
    const int rc = llmc_config_check(c);
    CHECK(rc == 0, LLMC_EFORMAT, "%s: %s; the file is damaged, write it again", f->file.path, llmc_last_error());
    CHECK(!padded || head[7] == c->Vp, LLMC_EFORMAT, "%s: V=%d is padded to %d, expected %d; write it again",
          f->file.path, c->V, head[7], c->Vp);
    return LLMC_OK;
}

static int is_norm(const ModelFile *f, int i) { return !strncmp(f->layout.table[i].name, "ln", 2); }

static int width_of(const ModelFile *f, const Version *v, int i) { return is_norm(f, i) ? v->norm_width : v->width; }

int modelfile_lay_out(ModelFile *f) {
    TRY(layout_make(&f->layout, &f->config, &(llmc_room){.B = 1, .T = 1}));
    f->places = calloc((size_t)NUM_PARAM_TENSORS * (size_t)f->config.L, sizeof *f->places);
    CHECK(f->places, LLMC_ENOMEM, "no memory for the places of the tensors in %s", f->file.path);
    return LLMC_OK;
}

/* Sizes in the file. The bound in floating point comes first: behind it, 64 bits cannot overflow. */
static int measure(ModelFile *f, const Version *v) {
    const llmc_config *c = &f->config;
    const double least = 12.0 * c->L * c->C * c->C * v->width;
    CHECK(least < (double)f->file.size, LLMC_EFORMAT,
          "%s is truncated: L=%d and C=%d need more than %.0f bytes, found %lld; "
          "copy or write it again",
          f->file.path, c->L, c->C, least, (long long)f->file.size);
    TRY(modelfile_lay_out(f));
    f->wte = (int64_t)(v->padded ? c->Vp : c->V) * c->C;
    f->params = f->layout.num_params - f->layout.table[P_wte].size + f->wte;
    f->end = HEADER_BYTES;
    for (int i = 0; i < NUM_PARAM_TENSORS; i++) f->end += elements_of(f, i) * layers_of(f, i) * width_of(f, v, i);
    CHECK(f->file.size >= f->end, LLMC_EFORMAT,
          "%s is truncated: expected %lld bytes, found %lld; copy or write it again", f->file.path, (long long)f->end,
          (long long)f->file.size);
    return LLMC_OK;
}

/* the tensors that are norms, or those that are not, or (both) all, from a byte on; returns where they end */
static int64_t place(ModelFile *f, const Version *v, int64_t at, int norms, int others) {
    for (int i = 0; i < NUM_PARAM_TENSORS; i++)
        for (int l = 0; (is_norm(f, i) ? norms : others) && l < layers_of(f, i); l++) {
            *place_of(f, i, l) = (Place){.at = at, .width = width_of(f, v, i)};
            at += elements_of(f, i) * width_of(f, v, i);
        }
    return at;
}

/* The first files of version 2 have all norms at the end. Where the gains of a norm, which are around 1, would else be, they
 * have pairs of weights, whose signs differ. */
static int has_norms_last(const ModelFile *f, const Version *v, int *last) {
    float gains[64] = {0};
    const int n = f->config.C < 64 ? f->config.C : 64;
    int positive = 0;
    *last = 0;
    if (v->version != 2) return LLMC_OK;
    TRY(binfile_read(&f->file, gains, n * 4, place_of(f, P_ln1w, 0)->at));
    for (int i = 0; i < n; i++) positive += gains[i] > 1e-3f && gains[i] < 1e3f;
    *last = 4 * positive < 3 * n;
    return LLMC_OK;
}

static int place_all(ModelFile *f, const Version *v) {
    int norms_last;
    place(f, v, HEADER_BYTES, 1, 1);
    TRY(has_norms_last(f, v, &norms_last));
    if (norms_last) place(f, v, place(f, v, HEADER_BYTES, 0, 1), 1, 0);
    return LLMC_OK;
}

static int refuse_magic(const ModelFile *f, int32_t magic) {
    const char *path = f->file.path, *kind = magic_name(magic);
    const size_t n = strlen(path), m = strlen(".safetensors");
    const int zip = magic == 0x04034b50, safe = n > m && !strcmp(path + n - m, ".safetensors");
    CHECK(!zip && !safe, LLMC_EFORMAT,
          "%s is %s, which Python reads: python -m pyllmc.train --model=%s, or python -m pyllmc.convert %s model.bin "
          "and then --model=model.bin",
          path, zip ? "PyTorch's" : "a safetensors file", path, path);
    FAIL(LLMC_EFORMAT,
         "%s is %s%s%s, not a model file: expected magic %d, found %d; name a model "
         ".bin or a checkpoint",
         path, kind ? "a " : "something else", kind ? kind : "", kind ? " file" : "", MODEL_MAGIC, magic);
}

static int read_header(ModelFile *f) {
    int32_t head[9];
    const Version *v = versions, *end = versions + sizeof versions / sizeof *versions;
    const char *path = f->file.path;
    CHECK(f->file.size >= HEADER_BYTES, LLMC_EFORMAT,
          "%s: expected a header of %d bytes, found %lld; name a model .bin or a "
          "checkpoint",
          path, HEADER_BYTES, (long long)f->file.size);
    TRY(binfile_read(&f->file, head, sizeof head, 0));
    if (head[0] != MODEL_MAGIC) return refuse_magic(f, head[0]);
    while (v < end && v->version != head[1]) v++;
    CHECK(v < end, LLMC_EFORMAT,
          "%s: expected version 1 or 3 (fp32), 2 or 4 (mixed) or 5 (bf16), found %d; export it "
          "again",
          path, head[1]);
    f->version = v->version;
    TRY(read_config(f, head, v->padded));
    TRY(measure(f, v));
    return place_all(f, v);
}

/* ---- the sections ---- */

static int section_of(const char *tag) {
    for (int i = 0; i < NUM_SECTIONS; i++)
        if (!memcmp(tag, section_tags[i], TAG_BYTES)) return i;
    return -1;
}

/* the section at `at`; moves behind it */
static int read_section(ModelFile *f, int64_t *at) {
    char head[SECTION_HEAD];
    int64_t size;
    const int64_t left = f->file.size - *at - SECTION_HEAD;
    CHECK(left >= 0, LLMC_EFORMAT,
          "%s: expected the file to end at byte %lld or to go on with a section of a checkpoint, "
          "found %lld bytes; copy or write it again",
          f->file.path, (long long)*at, (long long)(f->file.size - *at));
    TRY(binfile_read(&f->file, head, SECTION_HEAD, *at));
    memcpy(&size, head + TAG_BYTES, sizeof size);
    const int s = section_of(head);
    CHECK(s >= 0 && !f->sections[s].at && size >= 0 && size <= left, LLMC_EFORMAT,
          "%s: expected the file to end at byte %lld or "
          "to go on with a section of a checkpoint, found something else; copy or write it again",
          f->file.path, (long long)*at);
    f->sections[s] = (Section){*at + SECTION_HEAD, size};
    *at += SECTION_HEAD + size;
    return LLMC_OK;
}

static int read_sections(ModelFile *f) {
    int64_t at = f->end;
    CHECK(at == f->file.size || f->version == 3, LLMC_EFORMAT,
          "%s has trailing bytes: expected %lld bytes, found %lld; copy "
          "or write it again",
          f->file.path, (long long)at, (long long)f->file.size);
    if (at == f->file.size) return LLMC_OK; /* llm.c's own */
    while (at < f->file.size) TRY(read_section(f, &at));
    const Section *crc = &f->sections[CRC32], *moments = &f->sections[MOMENTS];
    CHECK(crc->at && crc->size == 4 && crc->at + 4 == at, LLMC_EFORMAT,
          "%s does not end with its checksum: it is truncated; "
          "copy or write it again",
          f->file.path);
    CHECK(!moments->at || moments->size == 2 * f->params * 4, LLMC_EFORMAT,
          "%s: expected %lld bytes of moments, found %lld; "
          "write it again",
          f->file.path, (long long)(2 * f->params * 4), (long long)moments->size);
    return LLMC_OK;
}

/* folders that are not ours, in words */
static int refuse_folder(const char *path) {
    FAIL(
        LLMC_EIO,
        "%s is a directory without best.ckpt, last.ckpt or model.ckpt.*: name a weight file; other weights (Hugging "
        "Face's, nanoGPT's) are read by python -m pyllmc.train --model=%s, or converted by python -m pyllmc.convert %s "
        "model.bin",
        path, path, path);
}

static int open_bin(ModelFile *f, const char *path) {
    if (is_folder(path)) return refuse_folder(path);
    TRY(binfile_open(&f->file, path));
    TRY(read_header(f));
    return read_sections(f);
}

int modelfile_open(ModelFile *f, const char *path) {
    memset(f, 0, sizeof *f);
    f->file.fd = -1;
    const int rc = tfbundle_is(path) ? tfbundle_open(f, path) : open_bin(f, path);
    if (rc < 0) modelfile_close(f);
    return rc;
}

void modelfile_close(ModelFile *f) {
    binfile_close(&f->file);
    free(f->places);
    free(f->path);
}

int llmc_model_read_config(const char *path, llmc_config *config) {
    ModelFile f;
    TRY(modelfile_open(&f, path));
    *config = f.config;
    modelfile_close(&f);
    return LLMC_OK;
}

int llmc_model_describe(const char *path, char *text, size_t size) {
    ModelFile f;
    static const char *const precision[] = {"", "fp32", "mixed", "fp32", "mixed", "bf16"};
    TRY(modelfile_open(&f, path));
    if (!f.version)
        snprintf(text, size, "OpenAI TensorFlow checkpoint %s",
                 f.checksums ? "with its index" : "without an index, told by its size");
    else if (f.sections[CRC32].at) snprintf(text, size, "pyllmc checkpoint");
    else snprintf(text, size, "llm.c model file, version %d (%s)", f.version, precision[f.version]);
    modelfile_close(&f);
    return LLMC_OK;
}

int modelfile_section(const ModelFile *f, int s, char *out, int64_t size) {
    const Section *section = &f->sections[s];
    CHECK(section->size <= INT_MAX, LLMC_EINVAL, "%s: section %s is too large to read at once", f->file.path,
          section_tags[s]);
    if (!section->at) {
        if (out && size > 0) *out = 0;
        return 0;
    }
    CHECK(!out || size >= section->size, LLMC_EINVAL, "%s: section %s has %lld bytes, room for %lld", f->file.path,
          section_tags[s], (long long)section->size, (long long)size);
    if (out) TRY(binfile_read(&f->file, out, section->size, section->at));
    if (out && size > section->size) out[section->size] = 0;
    return (int)section->size;
}

int llmc_checkpoint_text(const char *path, const char *tag, char *out, int64_t size) {
    ModelFile f;
    const int s = strlen(tag) == TAG_BYTES ? section_of(tag) : -1;
    CHECK(s >= 0, LLMC_EINVAL, "'%s' is no section of a checkpoint: one is 'STATE   '", tag);
    TRY(modelfile_open(&f, path));
    const int rc = modelfile_section(&f, s, out, size);
    modelfile_close(&f);
    return rc;
}
