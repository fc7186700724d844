/* Loads weights into a model, from a file of any format. The whole file is checked before the model changes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/crc32.h"
#include "base/error.h"
#include "model/lora.h"
#include "model/team.h"
#include "files/modelfile.h"
#include "files/state.h"
#include "base/pulse.h"

/* ---- checking the content ---- */

typedef struct Reader {
    const llmc_file *f;
    Crc32 crc;
    Share share;
    float *transposed; /* memory for the largest tensor that is stored transposed */
    float x[AT_A_TIME];
    uint16_t narrow[AT_A_TIME];
} Reader;

/* Reads n <= AT_A_TIME elements from byte `at` into r->x as float, and adds their bytes to the checksum. */
static int read_elements(Reader *r, int64_t at, int64_t n, int width) {
    void *raw = width == 2 ? (void *)r->narrow : (void *)r->x;
    TRY(binfile_read(&r->f->file, raw, n * width, at));
    crc32_add(&r->crc, raw, n * width);
    if (width == 2) gpt2_widen(r->x, r->narrow, n);
    return pulse_share(&r->share, n * width);
}

static int check_bytes(Reader *r, int64_t from, int64_t to) {
    for (int64_t at = from; at < to; at += AT_A_TIME) TRY(read_elements(r, at, next_turn(to - at), 1));
    return LLMC_OK;
}

/* Checks that n numbers of tensor i are finite. */
static int check_numbers(Reader *r, const char *what, int i, int64_t at, int64_t n, int width) {
    for (int64_t done = 0; done < n; done += AT_A_TIME) {
        const int64_t turn = next_turn(n - done);
        TRY(read_elements(r, at + done * width, turn, width));
        const int64_t bad = gpt2_find_nonfinite(r->x, turn);
        CHECK(bad < 0, LLMC_ENUMERIC, "%s: %s of %s hold %g; use an earlier checkpoint", r->f->path, what,
              i < 0 ? "what was trained" : r->f->layout.table[i].name, r->x[bad]);
    }
    return LLMC_OK;
}

static int check_weights(Reader *r, int i, int l) {
    const llmc_file *f = r->f;
    const Extent *e = extent_of(f, i, l);
    if (f->has_crcs) r->crc.value = 0;
    TRY(check_numbers(r, "weights", i, e->at, elements_of(f, i), e->width));
    CHECK(!f->has_crcs || r->crc.value == e->crc, LLMC_EFORMAT,
          "%s is damaged in %s of layer %d: expected checksum %08x, found %08x; copy it again", f->path,
          f->layout.table[i].name, l, e->crc, r->crc.value);
    return LLMC_OK;
}

static int check_all_weights(Reader *r) {
    for (int i = 0; i < NUM_TRAINABLE; i++)
        for (int l = 0; l < layers_of(r->f, i); l++)
            if (holds(r->f, i, l)) TRY(check_weights(r, i, l));
    return LLMC_OK;
}

/* Checks m, then v. In both the tensors follow one another as the weights do. Only the names of fewer moments are not known here:
 * those of a run that trained some tensors. */
static int check_moments(Reader *r, int64_t at) {
    const int64_t size = r->f->sections[MOMENTS].size;
    if (size != 2 * r->f->params * 4) return check_numbers(r, "moments", -1, at, size / 4, 4);
    for (int block = 0; block < 2; block++)
        for (int i = 0; i < NUM_TRAINABLE; i++)
            for (int l = 0; l < layers_of(r->f, i); l++) {
                if (!holds(r->f, i, l)) continue;
                TRY(check_numbers(r, "moments", i, at, elements_of(r->f, i), 4));
                at += elements_of(r->f, i) * 4;
            }
    return LLMC_OK;
}

/* Checks header, parameters, texts, moments and checksum, in the order of the file. */
static int check_content(Reader *r) {
    const llmc_file *f = r->f;
    const Section *moments = &f->sections[MOMENTS], *outer = &f->sections[OUTER], *crc = &f->sections[CRC32];
    int64_t done = f->end;
    uint32_t expected;
    crc32_start(&r->crc, f->has_crcs ? CRC_CASTAGNOLI : CRC_ZLIB);
    TRY(check_bytes(r, 0, f->begin));
    TRY(check_all_weights(r));
    if (!crc->at) return LLMC_OK;
    if (moments->at) {
        TRY(check_bytes(r, f->end, moments->at));
        TRY(check_moments(r, moments->at));
        done = moments->at + moments->size;
    }
    if (outer->at) {
        CHECK(outer->at > done, LLMC_EFORMAT, "%s: OUTER stands before MOMENTS; write it again", f->path);
        TRY(check_bytes(r, done, outer->at));
        TRY(check_numbers(r, "numbers of the outer step", -1, outer->at, outer->size / 4, 4));
        done = outer->at + outer->size;
    }
    TRY(check_bytes(r, done, crc->at - SECTION_HEADER));
    TRY(binfile_read(&f->file, &expected, 4, crc->at));
    CHECK(r->crc.value == expected, LLMC_EFORMAT,
          "%s is damaged: expected checksum %08x, found %08x; use another copy or an "
          "earlier checkpoint",
          f->path, expected, r->crc.value);
    return LLMC_OK;
}

/* ---- loading ---- */

static int check_same(const llmc_file *f, const llmc_config *model) {
    const struct {
        const char *name;
        int file, model;
    } sizes[] = {{"max_seq_len", f->config.maxT, model->maxT},
                 {"vocab_size", f->config.V, model->V},
                 {"n_layer", f->config.L, model->L},
                 {"n_head", f->config.NH, model->NH},
                 {"n_embd", f->config.C, model->C},
                 {"window", f->config.window, model->window},
                 {"untied", f->config.untied, model->untied}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        CHECK(sizes[i].file == sizes[i].model, LLMC_EINVAL, "%s has %s=%d, the model %d: make the model from the file",
              f->path, sizes[i].name, sizes[i].file, sizes[i].model);
    CHECK(!strcmp(f->config.pattern, model->pattern), LLMC_EINVAL,
          "%s has pattern=%s, the model %s: make the model from the file", f->path, f->config.pattern, model->pattern);
    return LLMC_OK;
}

/* Reads n elements and copies them to a block of the model, from element `to` on. */
static int copy_in(Reader *r, llmc_model *m, float *block, int64_t to, int64_t at, int64_t n, int width) {
    for (int64_t i = 0; i < n; i += AT_A_TIME) {
        const int64_t turn = next_turn(n - i);
        TRY(read_elements(r, at + i * width, turn, width));
        gpt2_set(m, block, to + i, r->x, turn);
    }
    return LLMC_OK;
}

/* Writes the transpose of x (nc,no) into a matrix of C columns, from row o0 and column c0 on. It goes tile by tile, because
 * writes that are far apart miss the cache. */
static void transpose(float *to, int64_t C, int64_t c0, int64_t o0, const float *x, int64_t nc, int64_t no) {
    enum { TILE = 16 };
    for (int64_t ot = 0; ot < no; ot += TILE)
        for (int64_t ct = 0; ct < nc; ct += TILE)
            for (int64_t o = ot; o < no && o < ot + TILE; o++)
                for (int64_t c = ct; c < nc && c < ct + TILE; c++) to[(o0 + o) * C + c0 + c] = x[c * no + o];
}

/* Reads a matrix (C,OC) and copies it to the model as (OC,C). It reads some rows at a time, or a part of a row, and copies the
 * matrix when it is complete. */
static int copy_transposed(Reader *r, llmc_model *m, int64_t to, const Extent *e, int64_t OC, int64_t C) {
    const int64_t rows = OC < AT_A_TIME ? AT_A_TIME / OC : 1, columns = OC < AT_A_TIME ? OC : AT_A_TIME;
    for (int64_t c = 0; c < C; c += rows)
        for (int64_t o = 0; o < OC; o += columns) {
            const int64_t nc = C - c < rows ? C - c : rows, no = OC - o < columns ? OC - o : columns;
            TRY(read_elements(r, e->at + (c * OC + o) * e->width, nc * no, e->width));
            transpose(r->transposed, C, c, o, r->x, nc, no);
        }
    gpt2_set(m, m->params, to, r->transposed, OC * C);
    return m->k->sync(&m->ctx); /* the next tensor uses r->transposed again */
}

static int load_tensor(Reader *r, llmc_model *m, int i, int l) {
    const llmc_tensor *t = &m->layout.table[i];
    const Extent *e = extent_of(r->f, i, l);
    const int64_t to = t->offset + l * t->stride;
    if (r->f->adapters) return copy_in(r, m, m->params, to, e->at, t->size, e->width);
    if (e->transposed) return copy_transposed(r, m, to, e, t->shape[0], t->shape[1]);
    if (!t->size || !layout_is_padded(i)) return copy_in(r, m, m->params, to, e->at, t->size, e->width);
    const int64_t real = (int64_t)m->config.V * m->config.C;
    gpt2_clear(m, to + real, t->size - real); /* the padding is 0, whatever the file holds there */
    return copy_in(r, m, m->params, to, e->at, real, e->width);
}

/* ---- adapters ---- */

/* Loads the model at `path`, which the adapters belong to. */
static int load_base_from(const llmc_file *f, llmc_model *m, const char *path) {
    const Adapters *a = f->adapters;
    const char *shown = a->is_copy ? a->name : path;
    llmc_file *base;
    int rc = llmc_file_open(&base, path);
    CHECK(rc == 0, rc, "%s holds adapters of %s, which cannot be loaded: %s", f->path, shown, llmc_last_error());
    rc = base->adapters ? llmc_fail(LLMC_EFORMAT,
                                    "%s holds adapters of %s, which holds adapters itself: put back the model that was "
                                    "there",
                                    f->path, shown)
                        : llmc_model_load_from(m, base);
    llmc_file_free(base);
    TRY(rc);
    TRY(llmc_model_name_base(m, a->name));
    CHECK(m->base_crc == a->base_crc, LLMC_EFORMAT,
          "%s holds adapters of other weights than %s has now: expected checksum %08x, found %08x; put the file back "
          "that "
          "they were trained on",
          f->path, shown, a->base_crc, m->base_crc);
    return LLMC_OK;
}

/* The file that lies beside the adapters may be the base of others, which were copied there. */
static int load_base(const llmc_file *f, llmc_model *m) {
    const Adapters *a = f->adapters;
    char reason[1024];
    const int rc = load_base_from(f, m, a->base);
    if (rc == 0 || a->is_copy || !strcmp(a->base, a->name) || access(a->name, R_OK) < 0) return rc;
    snprintf(reason, sizeof reason, "%s", llmc_last_error());
    return load_base_from(f, m, a->name) == 0 ? LLMC_OK : llmc_fail(rc, "%s", reason);
}

/* Reads A and B of a target in layer l, and adds their product to the model's matrix. */
static int merge(Reader *r, llmc_model *m, int target, int l) {
    const llmc_room *room = &r->f->adapters->room;
    const int A = lora_row_of_A(target), B = A + 1;
    const int64_t n = elements_of(r->f, A), all = n + elements_of(r->f, B);
    if (!holds(r->f, A, l)) return LLMC_OK;
    float *x = malloc((size_t)all * sizeof *x);
    CHECK(x, LLMC_ENOMEM, "no memory to merge the adapters of %s", r->f->path);
    int rc = binfile_read(&r->f->file, x, n * 4, extent_of(r->f, A, l)->at);
    if (rc == 0) rc = binfile_read(&r->f->file, x + n, (all - n) * 4, extent_of(r->f, B, l)->at);
    if (rc == 0) rc = gpt2_merge(m, target, l, x, x + n, room->lora_rank, room->lora_alpha / (float)room->lora_rank);
    free(x);
    return rc;
}

/* The base's weights, then what was trained of them, then the adapters: as such, or merged into a model that has none. */
static int load_adapters(Reader *r, llmc_model *m) {
    const llmc_file *f = r->f;
    TRY(load_base(f, m));
    for (int i = 0; i < (m->room.lora_rank ? NUM_TRAINABLE : NUM_PARAM_TENSORS); i++)
        for (int l = 0; l < layers_of(f, i); l++)
            if (holds(f, i, l)) TRY(load_tensor(r, m, i, l));
    for (int target = 0; !m->room.lora_rank && target < LORA_TARGETS; target++)
        for (int l = 0; l < f->config.L; l++) TRY(merge(r, m, target, l));
    return m->k->sync(&m->ctx);
}

static int load_params(Reader *r, llmc_model *m) {
    m->ctx.weight_format = m->k->element;
    if (r->f->adapters) return load_adapters(r, m);
    for (int i = 0; i < NUM_PARAM_TENSORS; i++)
        for (int l = 0; l < layers_of(r->f, i); l++) TRY(load_tensor(r, m, i, l));
    return LLMC_OK;
}

/* A model with adapters takes a file's only if they are of its own form. */
static int check_adapters(const llmc_file *f, const llmc_model *m) {
    const llmc_room *own = &m->room;
    if (!f->adapters || !own->lora_rank) return LLMC_OK;
    const llmc_room *its = &f->adapters->room;
    CHECK(
        its->lora_rank == own->lora_rank && its->lora_on == own->lora_on && its->lora_alpha == own->lora_alpha,
        LLMC_EINVAL,
        "%s holds adapters of lora_rank=%d lora_alpha=%g on matrices %d, the model is made for %d, %g and %d: give the "
        "file's, or merge them first: python -m pyllmc.convert %s MERGED --merge",
        f->path, its->lora_rank, (double)its->lora_alpha, its->lora_on, own->lora_rank, (double)own->lora_alpha,
        own->lora_on, f->path);
    CHECK(!strcmp(its->train_only, own->train_only), LLMC_EINVAL,
          "%s was trained with train_only='%s', the model is made for '%s': give the file's, or merge it first",
          f->path, its->train_only, own->train_only);
    return LLMC_OK;
}

static int allocate_transposed(Reader *r) {
    int64_t most = 0;
    for (int i = 0; !r->f->adapters && i < NUM_PARAM_TENSORS; i++)
        if (extent_of(r->f, i, 0)->transposed && elements_of(r->f, i) > most) most = elements_of(r->f, i);
    r->transposed = most ? malloc((size_t)most * sizeof *r->transposed) : NULL;
    CHECK(r->transposed || !most, LLMC_ENOMEM, "no memory to transpose the matrices of %s", r->f->path);
    return LLMC_OK;
}

/* True if the file's moments are those of what the model trains. */
static int has_its_moments(const llmc_file *f, const llmc_model *m, const char *state) {
    const char *trained = state_value(state, "train_only"), *own = m->room.train_only;
    const size_t n = trained ? strcspn(trained, "\n") : 0;
    return f->sections[MOMENTS].at && f->sections[MOMENTS].size == 2 * m->layout.num_trained * 4 &&
           !f->adapters == !m->room.lora_rank && n == strlen(own) && (!n || !strncmp(trained, own, n));
}

/* Reads the step of STATE, 0 if it has none, and whether the moments are of use for the model. */
static int read_step(const llmc_file *f, const llmc_model *m, int64_t *step, int *moments) {
    char state[STATE_TEXT];
    TRY(state_read(f, state));
    *moments = m->room.training && has_its_moments(f, m, state);
    *step = state_whole(state, "step", 0);
    CHECK(*step >= 0, LLMC_EFORMAT, "%s: step=%lld is negative; use an earlier checkpoint", f->path, (long long)*step);
    return LLMC_OK;
}

/* How much there is to read. Weights and moments count twice, because they are checked first and then read again. */
static Share share_of(const llmc_file *f, const llmc_model *m) {
    const int64_t weights = f->params * (f->adapters ? 4 : extent_of(f, 0, 0)->width);
    const int64_t moments = m->room.training && f->sections[MOMENTS].at ? 2 * f->params * 4 : 0;
    const int64_t checked = f->sections[CRC32].at ? f->file.size : weights;
    return (Share){.what = "loading", .path = f->path, .all = checked + weights + moments, .percent = -1};
}

/* Where the moments of this process begin. A run that had other processes gives its rank r those of number r modulo as many. */
static int64_t moments_at(const llmc_file *f, const llmc_model *m) {
    const Section *first = &f->sections[MOMENTS], *outer = &f->sections[OUTER];
    const int64_t had = outer->at ? (outer->size / (first->size / 2) + 1) / 2 : 1;
    const int64_t i = m->team && m->room.outer ? m->team->rank % had : 0;
    return i ? outer->at + first->size / 2 + (i - 1) * first->size : first->at;
}

/* Loads the moments, and the momentum of the outer step, which is 0 if the file has none. */
static int load_moments(Reader *r, llmc_model *m) {
    const int64_t moments = moments_at(r->f, m), outer = r->f->sections[OUTER].at, n = m->layout.num_trained;
    for (int i = 0; i < MOMENT_PARTS; i++) {
        const Moments own = moments_part(&m->layout, &m->room, i);
        TRY(copy_in(r, m, m->m, own.at, moments + own.first * 4, own.end - own.first, 4));
        TRY(copy_in(r, m, m->v, own.at, moments + (n + own.first) * 4, own.end - own.first, 4));
    }
    if (m->room.outer && outer) TRY(copy_in(r, m, team_momentum(m), 0, outer, n, 4));
    if (m->room.outer && !outer) m->k->fill(&m->ctx, team_momentum(m), 0, n * 4);
    return m->k->sync(&m->ctx);
}

static int load(Reader *r, llmc_model *m) {
    const llmc_file *f = r->f;
    int64_t step = 0;
    int has_moments = 0;
    TRY(check_same(f, &m->config));
    TRY(check_adapters(f, m));
    TRY(check_content(r));
    TRY(read_step(f, m, &step, &has_moments));
    TRY(allocate_transposed(r));
    m->state = 0, m->cache_of = NULL; /* the results of the last forward pass belong to other weights */
    TRY(load_params(r, m));
    TRY(gpt2_store(m));
    if (m->room.training && !has_moments) return llmc_model_reset_moments(m);
    m->step = step;
    return m->room.training ? load_moments(r, m) : LLMC_OK;
}

int llmc_model_load_from(llmc_model *m, const llmc_file *f) {
    Reader *r = malloc(sizeof *r);
    CHECK(r, LLMC_ENOMEM, "no memory to read %s", f->path);
    r->f = f, r->transposed = NULL, r->share = share_of(f, m);
    const int rc = load(r, m);
    free(r->transposed);
    free(r);
    pulse("%s", "");
    return rc;
}

int llmc_model_load(llmc_model *m, const char *path) {
    llmc_file *f;
    TRY(llmc_file_open(&f, path));
    const int rc = llmc_model_load_from(m, f);
    llmc_file_free(f);
    return rc;
}
