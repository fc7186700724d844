/* Files of weights: what they are, checked before a byte of the model changes; then loading. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "crc32.h"
#include "error.h"
#include "gpt2.h"
#include "modelfile.h"

const char *const section_tags[NUM_SECTIONS] = {"OPTIONS ", "STATE   ", "TOKENIZR", "MOMENTS ", "CRC32   "};

static const struct Version {
    int version, width, padded;
} versions[] = {{1, 4, 0}, {3, 4, 1}, {5, 2, 1}};

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

/* Sizes in the file. The bound in floating point comes first: behind it, 64 bits cannot overflow. */
static int measure(ModelFile *f, int padded) {
    const llmc_config *c = &f->config;
    const double least = 12.0 * c->L * c->C * c->C * f->width;
    CHECK(least < (double)f->file.size, LLMC_EFORMAT,
          "%s is truncated: L=%d and C=%d need more than %.0f bytes, found %lld; "
          "copy or write it again",
          f->file.path, c->L, c->C, least, (long long)f->file.size);
    TRY(layout_make(&f->layout, c, &(llmc_room){.B = 1, .T = 1}));
    f->wte = (int64_t)(padded ? c->Vp : c->V) * c->C;
    f->params = f->layout.num_params - f->layout.table[P_wte].size + f->wte;
    f->end = HEADER_BYTES + f->params * f->width;
    CHECK(f->file.size >= f->end, LLMC_EFORMAT,
          "%s is truncated: expected %lld bytes, found %lld; copy or write it again", f->file.path, (long long)f->end,
          (long long)f->file.size);
    return LLMC_OK;
}

static int read_header(ModelFile *f) {
    int32_t head[9];
    const struct Version *v = versions, *end = versions + sizeof versions / sizeof *versions;
    const char *path = f->file.path;
    CHECK(f->file.size >= HEADER_BYTES, LLMC_EFORMAT,
          "%s: expected a header of %d bytes, found %lld; name a model .bin or a "
          "checkpoint",
          path, HEADER_BYTES, (long long)f->file.size);
    TRY(binfile_read(&f->file, head, sizeof head, 0));
    const char *kind = magic_name(head[0]);
    CHECK(head[0] == MODEL_MAGIC, LLMC_EFORMAT,
          "%s is %s%s%s, not a model file: expected magic %d, found %d; name a model "
          ".bin or a checkpoint",
          path, kind ? "a " : "something else", kind ? kind : "", kind ? " file" : "", MODEL_MAGIC, head[0]);
    while (v < end && v->version != head[1]) v++;
    CHECK(v < end, LLMC_EFORMAT, "%s: expected version 1 or 3 (fp32) or 5 (bf16), found %d; export it again", path,
          head[1]);
    f->version = v->version, f->width = v->width;
    TRY(read_config(f, head, v->padded));
    return measure(f, v->padded);
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

int modelfile_open(ModelFile *f, const char *path) {
    memset(f, 0, sizeof *f);
    TRY(binfile_open(&f->file, path));
    int rc = read_header(f);
    if (rc == 0) rc = read_sections(f);
    if (rc < 0) modelfile_close(f);
    return rc;
}

void modelfile_close(ModelFile *f) { binfile_close(&f->file); }

int llmc_model_read_config(const char *path, llmc_config *config) {
    ModelFile f;
    TRY(modelfile_open(&f, path));
    *config = f.config;
    modelfile_close(&f);
    return LLMC_OK;
}

static int copy_section(const ModelFile *f, int s, char *out, int64_t size) {
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
    const int rc = copy_section(&f, s, out, size);
    modelfile_close(&f);
    return rc;
}

/* ---- checking the content, piece by piece ---- */

const char *tensor_at(const Layout *layout, int64_t element) {
    int i = 0;
    while (i + 1 < NUM_PARAM_TENSORS && layout->table[i + 1].offset <= element) i++;
    return layout->table[i].name;
}

int64_t find_nonfinite(const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], 4);
        if ((bits & 0x7f800000) == 0x7f800000) return i;
    }
    return -1;
}

static void widen_bf16(float *to, const uint16_t *from, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const uint32_t bits = (uint32_t)from[i] << 16;
        memcpy(&to[i], &bits, 4);
    }
}

typedef struct Reader {
    const ModelFile *f;
    Crc32 crc;
    float x[PIECE];
    uint16_t narrow[PIECE];
} Reader;

/* n <= PIECE elements from a byte of the file, as float; the checksum goes over the bytes */
static int read_elements(Reader *r, int64_t at, int64_t n, int width) {
    void *raw = width == 2 ? (void *)r->narrow : (void *)r->x;
    TRY(binfile_read(&r->f->file, raw, n * width, at));
    crc32_add(&r->crc, raw, n * width);
    if (width == 2) widen_bf16(r->x, r->narrow, n);
    return LLMC_OK;
}

static int check_bytes(Reader *r, int64_t from, int64_t to) {
    for (int64_t at = from; at < to; at += PIECE) TRY(read_elements(r, at, to - at < PIECE ? to - at : PIECE, 1));
    return LLMC_OK;
}

/* n finite numbers; element i of them is element i % params of the parameters */
static int check_numbers(Reader *r, const char *what, int64_t at, int64_t n, int width) {
    for (int64_t i = 0, m; i < n; i += m) {
        m = n - i < PIECE ? n - i : PIECE;
        TRY(read_elements(r, at + i * width, m, width));
        const int64_t bad = find_nonfinite(r->x, m);
        if (bad < 0) continue;
        const int64_t element = (i + bad) % r->f->params, padding = r->f->layout.table[P_wte].size - r->f->wte;
        FAIL(LLMC_ENUMERIC, "%s: %s of %s hold %g; use an earlier checkpoint", r->f->file.path, what,
             tensor_at(&r->f->layout, element < r->f->wte ? element : element + padding), r->x[bad]);
    }
    return LLMC_OK;
}

/* header, parameters, texts, moments, checksum: in the order of the file */
static int check_content(Reader *r) {
    const ModelFile *f = r->f;
    const Section *moments = &f->sections[MOMENTS], *crc = &f->sections[CRC32];
    uint32_t expected;
    crc32_start(&r->crc);
    TRY(check_bytes(r, 0, HEADER_BYTES));
    TRY(check_numbers(r, "weights", HEADER_BYTES, f->params, f->width));
    if (!crc->at) return LLMC_OK;
    if (moments->at) {
        TRY(check_bytes(r, f->end, moments->at));
        TRY(check_numbers(r, "moments", moments->at, 2 * f->params, 4));
    }
    TRY(check_bytes(r, moments->at ? moments->at + moments->size : f->end, crc->at - SECTION_HEAD));
    TRY(binfile_read(&f->file, &expected, 4, crc->at));
    CHECK(r->crc.value == expected, LLMC_EFORMAT,
          "%s is damaged: expected checksum %08x, found %08x; use another copy or an "
          "earlier checkpoint",
          f->file.path, expected, r->crc.value);
    return LLMC_OK;
}

/* ---- loading ---- */

static int check_same(const ModelFile *f, const llmc_config *model) {
    const struct {
        const char *name;
        int file, model;
    } sizes[] = {{"max_seq_len", f->config.maxT, model->maxT},
                 {"vocab_size", f->config.V, model->V},
                 {"n_layer", f->config.L, model->L},
                 {"n_head", f->config.NH, model->NH},
                 {"n_embd", f->config.C, model->C},
                 {"window", f->config.window, model->window}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        CHECK(sizes[i].file == sizes[i].model, LLMC_EINVAL, "%s has %s=%d, the model %d: make the model from the file",
              f->file.path, sizes[i].name, sizes[i].file, sizes[i].model);
    return LLMC_OK;
}

static int copy_in(Reader *r, llmc_model *m, float *to, int64_t at, int64_t n, int width) {
    for (int64_t i = 0; i < n; i += PIECE) {
        const int64_t piece = n - i < PIECE ? n - i : PIECE;
        TRY(read_elements(r, at + i * width, piece, width));
        m->k->copy_in(&m->ctx, to + i, r->x, piece * 4);
    }
    return LLMC_OK;
}

static int load_params(Reader *r, llmc_model *m) {
    const ModelFile *f = r->f;
    const int64_t real = (int64_t)m->config.V * m->config.C, wte = m->layout.table[P_wte].size;
    m->ctx.weights = LLMC_FP32;
    TRY(copy_in(r, m, m->params, HEADER_BYTES, real, f->width));
    m->k->fill(&m->ctx, m->params + real, 0, (wte - real) * 4); /* the padding, whatever the file has there */
    return copy_in(r, m, m->params + wte, HEADER_BYTES + f->wte * f->width, f->params - f->wte, f->width);
}

static const char *next_line(const char *line) {
    line = strchr(line, '\n');
    return line ? line + 1 : NULL;
}

/* STATE's line "step=" */
static int read_step(const ModelFile *f, int64_t *step) {
    *step = 0;
    const int64_t size = f->sections[STATE].size + 1;
    char *text = malloc((size_t)size);
    CHECK(text, LLMC_ENOMEM, "no memory for the state in %s", f->file.path);
    const int rc = copy_section(f, STATE, text, size);
    for (const char *line = rc > 0 ? text : NULL; line; line = next_line(line))
        if (!strncmp(line, "step=", 5)) *step = strtoll(line + 5, NULL, 10);
    free(text);
    TRY(rc);
    CHECK(*step >= 0, LLMC_EFORMAT, "%s: step=%lld is negative; use an earlier checkpoint", f->file.path,
          (long long)*step);
    return LLMC_OK;
}

static int load(Reader *r, llmc_model *m) {
    const ModelFile *f = r->f;
    const int64_t moments = f->sections[MOMENTS].at;
    int64_t step = 0;
    TRY(check_same(f, &m->config));
    TRY(check_content(r));
    TRY(read_step(f, &step));
    m->state = 0, m->cache_of = NULL; /* what a forward pass left belongs to other weights */
    TRY(load_params(r, m));
    TRY(gpt2_store(m));
    if (m->room.training && !moments) return llmc_model_reset_moments(m);
    m->step = step;
    if (!m->room.training) return LLMC_OK;
    TRY(copy_in(r, m, m->m, moments, f->params, 4));
    TRY(copy_in(r, m, m->v, moments + f->params * 4, f->params, 4));
    return m->k->sync(&m->ctx);
}

int llmc_model_load(llmc_model *m, const char *path) {
    ModelFile f;
    TRY(modelfile_open(&f, path));
    Reader *r = malloc(sizeof *r);
    if (r) r->f = &f;
    const int rc = r ? load(r, m) : llmc_fail(LLMC_ENOMEM, "no memory to read %s", path);
    free(r);
    modelfile_close(&f);
    return rc;
}
