/* llm.c's model .bin: its header, where each tensor lies, and the sections of a checkpoint. Nothing in the file is trusted: all is
 * checked before a byte of the model changes. */
#include "files/llmcfile.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "base/binfile.h"
#include "base/error.h"
#include "files/adapterfile.h"

/* llm.c wrote versions 2 and 4 for some days in April 2024. */
typedef struct Version {
    int version, width, norm_width, padded; /* bytes of an element; padded: wte has Vp rows, not V */
    const char *precision;
} Version;
static const Version versions[] = {{1, 4, 4, 0, "fp32"},
                                   {2, 2, 4, 0, "mixed"},
                                   {3, 4, 4, 1, "fp32"},
                                   {4, 2, 4, 1, "mixed"},
                                   {5, 2, 2, 1, "bf16"},
                                   {OWN_VERSION, 4, 4, 1, "fp32"},
                                   {OUTER_VERSION, 4, 4, 1, "fp32"}};

/* True for versions that llm.c does not know, which always have sections. */
static int is_own(int version) { return version == OWN_VERSION || version == OUTER_VERSION; }

static const Version *version_of(int number) {
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++)
        if (versions[i].version == number) return &versions[i];
    return NULL;
}

/* ---- the header ---- */

static int read_config(llmc_file *f, const int32_t *header, int padded) {
    llmc_config *c = &f->config;
    *c = (llmc_config){
        .maxT = header[2], .V = header[3], .L = header[4], .NH = header[5], .C = header[6], .window = header[8]};
    if (is_own(f->version) || f->version == ADAPTER_VERSION) {
        c->untied = header[9];
        memcpy(c->pattern, header + PATTERN_AT, sizeof c->pattern);
    }
    const int rc = llmc_config_check(c);
    CHECK(rc == 0, LLMC_EFORMAT, "%s: %s; the file is damaged, write it again", f->path, llmc_last_error());
    CHECK(!padded || header[7] == c->Vp, LLMC_EFORMAT, "%s: V=%d is padded to %d, expected %d; write it again", f->path,
          c->V, header[7], c->Vp);
    return LLMC_OK;
}

static int is_norm(const llmc_file *f, int i) { return !strncmp(f->layout.table[i].name, "ln", 2); }

static int width_of(const llmc_file *f, const Version *v, int i) { return is_norm(f, i) ? v->norm_width : v->width; }

/* Works out the sizes in the file. The rough bound is compared first, in floating point, because sizes below it cannot overflow
 * 64 bits. */
static int measure(llmc_file *f, const Version *v) {
    const llmc_config *c = &f->config;
    const double least = 12.0 * c->L * c->C * c->C * v->width;
    CHECK(least < (double)f->file.size, LLMC_EFORMAT,
          "%s is truncated: L=%d and C=%d need more than %.0f bytes, found %lld; "
          "copy or write it again",
          f->path, c->L, c->C, least, (long long)f->file.size);
    TRY(modelfile_lay_out(f, v->padded ? c->Vp : c->V));
    f->begin = f->end = HEADER_BYTES;
    for (int i = 0; i < NUM_PARAM_TENSORS; i++) f->end += elements_of(f, i) * layers_of(f, i) * width_of(f, v, i);
    CHECK(f->file.size >= f->end, LLMC_EFORMAT,
          "%s is truncated: expected %lld bytes, found %lld; copy or write it again", f->path, (long long)f->end,
          (long long)f->file.size);
    return LLMC_OK;
}

/* Puts tensors one after the other, from byte `at` on: the norms, the others, or both. Returns where they end. */
static int64_t line_up(llmc_file *f, const Version *v, int64_t at, int norms, int others) {
    for (int i = 0; i < NUM_PARAM_TENSORS; i++)
        for (int l = 0; (is_norm(f, i) ? norms : others) && l < layers_of(f, i); l++) {
            *extent_of(f, i, l) = (Extent){.at = at, .width = width_of(f, v, i)};
            at += elements_of(f, i) * width_of(f, v, i);
        }
    return at;
}

/* The first files of version 2 have all norms at the end. Such a file is known by the bytes where the gains of a norm would be
 * otherwise: gains are positive and around 1, but here lie pairs of bfloat16 weights, whose signs differ. */
static int has_norms_last(const llmc_file *f, const Version *v, int *last) {
    float gains[64] = {0};
    const int n = f->config.C < 64 ? f->config.C : 64;
    int positive = 0;
    *last = 0;
    if (v->version != 2) return LLMC_OK;
    TRY(binfile_read(&f->file, gains, n * 4, extent_of(f, P_ln1w, 0)->at));
    for (int i = 0; i < n; i++) positive += gains[i] > 1e-3f && gains[i] < 1e3f;
    *last = 4 * positive < 3 * n;
    return LLMC_OK;
}

static int find_tensors(llmc_file *f, const Version *v) {
    int norms_last;
    line_up(f, v, HEADER_BYTES, 1, 1);
    TRY(has_norms_last(f, v, &norms_last));
    if (norms_last) line_up(f, v, line_up(f, v, HEADER_BYTES, 0, 1), 1, 0);
    return LLMC_OK;
}

static int refuse_magic(const llmc_file *f, int32_t magic) {
    const char *path = f->path, *kind = magic_name(magic);
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

static int read_header(llmc_file *f) {
    int32_t header[TEXT_AT + 1];
    const char *path = f->path;
    CHECK(f->file.size >= HEADER_BYTES, LLMC_EFORMAT,
          "%s: expected a header of %d bytes, found %lld; name a model .bin or a "
          "checkpoint",
          path, HEADER_BYTES, (long long)f->file.size);
    TRY(binfile_read(&f->file, header, sizeof header, 0));
    if (header[0] != MODEL_MAGIC) return refuse_magic(f, header[0]);
    if (header[1] == ADAPTER_VERSION) {
        f->version = ADAPTER_VERSION;
        TRY(read_config(f, header, 1));
        return adapterfile_read(f, header[TEXT_AT]);
    }
    const Version *v = version_of(header[1]);
    CHECK(v, LLMC_EFORMAT,
          "%s: expected version 1 or 3 (fp32), 2 or 4 (mixed) or 5 (bf16), found %d; export it "
          "again, or read it with the version of pyllmc that wrote it",
          path, header[1]);
    f->version = v->version;
    TRY(read_config(f, header, v->padded));
    TRY(measure(f, v));
    return find_tensors(f, v);
}

/* ---- the sections ---- */

/* Notes the section that begins at `at`, and moves `at` behind it. */
static int read_section(llmc_file *f, int64_t *at) {
    char header[SECTION_HEADER];
    int64_t size;
    const int64_t left = f->file.size - *at - SECTION_HEADER;
    CHECK(left >= 0, LLMC_EFORMAT,
          "%s: expected the file to end at byte %lld or to go on with a section of a checkpoint, "
          "found %lld bytes; copy or write it again",
          f->path, (long long)*at, (long long)(f->file.size - *at));
    TRY(binfile_read(&f->file, header, SECTION_HEADER, *at));
    memcpy(&size, header + TAG_BYTES, sizeof size);
    const int s = modelfile_find_section(header);
    CHECK(s >= 0 && !f->sections[s].at && size >= 0 && size <= left, LLMC_EFORMAT,
          "%s: expected the file to end at byte %lld or "
          "to go on with a section of a checkpoint, found something else; copy or write it again",
          f->path, (long long)*at);
    f->sections[s] = (Section){*at + SECTION_HEADER, size};
    *at += SECTION_HEADER + size;
    return LLMC_OK;
}

/* OUTER holds one number, and two for each process but the first, where MOMENTS hold two. */
static int check_outer(const llmc_file *f) {
    const int64_t size = f->sections[OUTER].size, each = f->sections[MOMENTS].size / 2;
    const int expected = f->version == OUTER_VERSION;
    CHECK(!f->sections[OUTER].at == !expected && (!expected || (each && size % each == 0 && size / each % 2)),
          LLMC_EFORMAT, "%s: expected %s outer step, found %lld bytes of one beside %lld of moments; write it again",
          f->path, expected ? "an" : "no", (long long)size, (long long)(2 * each));
    return LLMC_OK;
}

static int read_sections(llmc_file *f) {
    int64_t at = f->end;
    const int has_sections = f->version == 3 || is_own(f->version) || f->adapters;
    CHECK(at == f->file.size || has_sections, LLMC_EFORMAT,
          "%s has trailing bytes: expected %lld bytes, found %lld; copy "
          "or write it again",
          f->path, (long long)at, (long long)f->file.size);
    if (at == f->file.size && !is_own(f->version)) return LLMC_OK; /* llm.c's own file has no sections */
    while (at < f->file.size) TRY(read_section(f, &at));
    const Section *crc = &f->sections[CRC32], *moments = &f->sections[MOMENTS];
    CHECK(crc->at && crc->size == 4 && crc->at + 4 == at, LLMC_EFORMAT,
          "%s does not end with its checksum: it is truncated; "
          "copy or write it again",
          f->path);
    const int64_t most = 2 * f->params * 4; /* fewer are those of a run that trained some tensors only */
    CHECK(!moments->at || moments->size == most || (moments->size < most && moments->size % 8 == 0 && !f->adapters),
          LLMC_EFORMAT,
          "%s: expected %lld bytes of moments, found %lld; "
          "write it again",
          f->path, (long long)most, (long long)moments->size);
    return check_outer(f);
}

/* ---- the whole file ---- */

int llmcfile_is(const char *path) { return access(path, F_OK) == 0 && !is_folder(path); }

int llmcfile_open(llmc_file *f, const char *path) {
    TRY(modelfile_open(f, path));
    TRY(read_header(f));
    return read_sections(f);
}

void llmcfile_describe(const llmc_file *f, char *text, size_t size) {
    if (f->adapters) snprintf(text, size, "LoRA adapters of rank %d", f->adapters->room.lora_rank);
    else if (f->sections[CRC32].at) snprintf(text, size, "pyllmc checkpoint");
    else snprintf(text, size, "llm.c model file, version %d (%s)", f->version, version_of(f->version)->precision);
}
