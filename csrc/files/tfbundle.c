/* OpenAI's TensorFlow checkpoint: which files it has, how large the model is, and where each tensor lies. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/binfile.h"
#include "base/error.h"
#include "text/vocab.h"
#include "files/tfbundle.h"
#include "files/tfindex.h"

#define DATA ".data-00000-of-00001"
#define INDEX ".index"
enum { OPENAI_T = 1024, HEAD_SIZE = 64, MOST_C = 1 << 20 };

/* The tensors of a layer, and those after the layers. Both are sorted as bytes, which is their order in the data. */
static const struct Name {
    const char *name;
    int tensor;
} in_layer[] = {{"attn/c_attn/b", P_qkvb},
                {"attn/c_attn/w", P_qkvw},
                {"attn/c_proj/b", P_attprojb},
                {"attn/c_proj/w", P_attprojw},
                {"ln_1/b", P_ln1b},
                {"ln_1/g", P_ln1w},
                {"ln_2/b", P_ln2b},
                {"ln_2/g", P_ln2w},
                {"mlp/c_fc/b", P_fcb},
                {"mlp/c_fc/w", P_fcw},
                {"mlp/c_proj/b", P_fcprojb},
                {"mlp/c_proj/w", P_fcprojw}},
  after_layers[] = {{"ln_f/b", P_lnfb}, {"ln_f/g", P_lnfw}, {"wpe", P_wpe}, {"wte", P_wte}};
enum { IN_LAYER = sizeof in_layer / sizeof *in_layer, AFTER_LAYERS = sizeof after_layers / sizeof *after_layers };
_Static_assert(IN_LAYER + AFTER_LAYERS == NUM_PARAM_TENSORS - 1, "every parameter but lmheadw has its name");

typedef struct Files {
    char data[PATH_MAX], index[PATH_MAX], hparams[PATH_MAX]; /* index is "" if the file is missing */
} Files;

/* ---- which files ---- */

static int ends_with(const char *text, const char *end) {
    const size_t n = strlen(text), m = strlen(end);
    return n > m && !strcmp(text + n - m, end);
}

/* Fills in the names of the files that `path` means. 1 if PREFIX + DATA or PREFIX + INDEX exists, else 0. */
static int find_files(const char *path, Files *files) {
    char prefix[PATH_MAX - 32];
    const char *end = ends_with(path, DATA) ? DATA : ends_with(path, INDEX) ? INDEX : "";
    const size_t n = strlen(path) - strlen(end);
    if (n + sizeof "/model.ckpt" DATA > sizeof prefix) return 0;
    snprintf(prefix, sizeof prefix, "%.*s%s", (int)n, path, is_folder(path) ? "/model.ckpt" : "");
    const char *slash = strrchr(prefix, '/');
    snprintf(files->data, sizeof files->data, "%s" DATA, prefix);
    snprintf(files->index, sizeof files->index, "%s" INDEX, prefix);
    snprintf(files->hparams, sizeof files->hparams, "%.*shparams.json", slash ? (int)(slash + 1 - prefix) : 0, prefix);
    if (access(files->index, F_OK) == 0) return 1;
    *files->index = 0;
    return access(files->data, F_OK) == 0;
}

int tfbundle_is(const char *path) {
    Files files;
    return find_files(path, &files);
}

/* ---- hparams.json: {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12} ---- */

/* Reads the number of a key: 0 if the key is missing, an error if its value is no whole number. */
static int read_hparam(const Files *files, const char *text, const char *key, int *value) {
    char quoted[16];
    int read = 0;
    snprintf(quoted, sizeof quoted, "\"%s\"", key);
    const char *at = strstr(text, quoted);
    *value = 0;
    if (!at) return LLMC_OK;
    at += strlen(quoted);
    CHECK(sscanf(at, " : %8d%n", value, &read) == 1 && strchr(",} \r\n\t", at[read]) && *value > 0, LLMC_EFORMAT,
          "%s: %s is no whole number from 1 to 99999999; correct it or take the file away", files->hparams, key);
    return LLMC_OK;
}

static int read_hparams(const Files *files, llmc_config *c) {
    char text[4096] = "";
    BinFile file;
    if (access(files->hparams, F_OK)) return LLMC_OK;
    TRY(binfile_open(&file, files->hparams));
    int rc = file.size < (int64_t)sizeof text
                 ? binfile_read(&file, text, file.size, 0)
                 : llmc_fail(LLMC_EFORMAT, "%s: expected less than %zu bytes, found %lld; take the file away",
                             files->hparams, sizeof text, (long long)file.size);
    binfile_close(&file);
    const struct {
        const char *key;
        int *value;
    } keys[] = {{"n_vocab", &c->V}, {"n_ctx", &c->maxT}, {"n_embd", &c->C}, {"n_head", &c->NH}, {"n_layer", &c->L}};
    for (size_t i = 0; rc == 0 && i < sizeof keys / sizeof *keys; i++)
        rc = read_hparam(files, text, keys[i].key, keys[i].value);
    CHECK(rc < 0 || c->NH, LLMC_EFORMAT,
          "%s: expected {\"n_head\": ...}, found no n_head; correct it or take the file away", files->hparams);
    return rc;
}

/* Compares a size that hparams.json may tell with the size that the tensors have. */
static int agree(const Files *files, const char *key, int says, int has) {
    CHECK(!says || says == has, LLMC_EFORMAT, "%s says %s=%d, but the tensors of %s have %d; take the right files",
          files->hparams, key, says, files->data, has);
    return LLMC_OK;
}

/* Completes the sizes that the tensors have told: the number of heads comes from hparams.json. */
static int complete_config(llmc_file *f, const Files *files, const llmc_config *h) {
    llmc_config *c = &f->config;
    TRY(agree(files, "n_vocab", h->V, c->V));
    TRY(agree(files, "n_ctx", h->maxT, c->maxT));
    TRY(agree(files, "n_embd", h->C, c->C));
    TRY(agree(files, "n_layer", h->L, c->L));
    CHECK(h->NH || c->C % HEAD_SIZE == 0, LLMC_EFORMAT,
          "%s has n_embd=%d, which is no multiple of %d, the size of OpenAI's heads: put the hparams.json that tells "
          "n_head beside it",
          f->path, c->C, HEAD_SIZE);
    c->NH = h->NH ? h->NH : c->C / HEAD_SIZE;
    const int rc = llmc_config_check(c);
    CHECK(rc == 0, LLMC_EFORMAT, "%s: %s; take the right hparams.json, or the file is damaged", f->path,
          llmc_last_error());
    return modelfile_lay_out(f, c->V);
}

/* Whether tensor i is a matrix of a layer, which is stored as (1,C,OC). */
static int is_transposed(const llmc_file *f, int i) {
    const llmc_tensor *t = &f->layout.table[i];
    return t->layers && t->rank == 2;
}

/* ---- with an index: find tensors by name ---- */

static int layer_count(const TfIndex *index) {
    int most = 0, layer, read;
    for (int i = 0; i < index->n; i++) {
        read = 0;
        if (sscanf(index->tensors[i].name, "model/h%8d/%n", &layer, &read) == 1 && read && layer >= most)
            most = layer + 1;
    }
    return most;
}

static int shape_of(const TfIndex *index, const Files *files, const char *name, int *rows, int *columns) {
    const TfTensor *t = tfindex_find(index, name);
    CHECK(t, LLMC_EFORMAT, "%s lacks %s: it is not OpenAI's GPT-2", files->index, name);
    CHECK(t->rank == 2 && t->shape[0] > 0 && t->shape[0] < INT_MAX && t->shape[1] > 0 && t->shape[1] < INT_MAX,
          LLMC_EFORMAT, "%s: %s has no two dimensions that can be: it is not OpenAI's GPT-2", files->index, name);
    *rows = (int)t->shape[0], *columns = (int)t->shape[1];
    return LLMC_OK;
}

static int config_of_index(llmc_file *f, const Files *files, const TfIndex *index) {
    llmc_config *c = &f->config;
    int wpe_C = 0;
    CHECK(index->shards == 1 && index->endian == 0, LLMC_EFORMAT,
          "%s describes %lld files%s, expected one, little-endian; merge them with TensorFlow", files->index,
          (long long)index->shards, index->endian ? ", big-endian" : "");
    TRY(shape_of(index, files, "model/wte", &c->V, &c->C));
    TRY(shape_of(index, files, "model/wpe", &c->maxT, &wpe_C));
    CHECK(wpe_C == c->C, LLMC_EFORMAT, "%s: model/wte has %d channels, model/wpe %d: it is not OpenAI's GPT-2",
          files->index, c->C, wpe_C);
    c->L = layer_count(index);
    CHECK(c->L >= 1 && c->L <= index->n, LLMC_EFORMAT,
          "%s has %d tensors, too few for %d layers: it is not OpenAI's "
          "GPT-2",
          files->index, index->n, c->L);
    return LLMC_OK;
}

static void print_shape(char *text, size_t size, int64_t rank, const int64_t *shape) {
    int n = snprintf(text, size, "(");
    for (int64_t i = 0; i < rank && i < TF_RANK && n < (int)size; i++)
        n += snprintf(text + n, size - (size_t)n, i ? ",%lld" : "%lld", (long long)shape[i]);
    if (n < (int)size) snprintf(text + n, size - (size_t)n, rank > TF_RANK ? ",...)" : ")");
}

/* Fills in the shape that a tensor must have in the file, and returns its rank. */
static int expected_shape(const llmc_file *f, int i, int64_t *shape) {
    const llmc_tensor *t = &f->layout.table[i];
    if (is_transposed(f, i)) {
        shape[0] = 1, shape[1] = t->shape[1], shape[2] = t->shape[0];
        return 3;
    }
    shape[0] = layout_is_padded(i) ? f->config.V : t->shape[0], shape[1] = t->shape[1];
    return t->rank;
}

static int check_entry(const llmc_file *f, const Files *files, const TfTensor *t, int i) {
    char expected[96], found[96];
    int64_t shape[TF_RANK] = {0};
    const int rank = expected_shape(f, i, shape);
    CHECK(t->dtype == TF_FLOAT, LLMC_EFORMAT, "%s: %s is of TensorFlow's type %lld, expected 1 (float32)", files->index,
          t->name, (long long)t->dtype);
    print_shape(expected, sizeof expected, rank, shape);
    print_shape(found, sizeof found, t->rank, t->shape);
    CHECK(!strcmp(expected, found), LLMC_EFORMAT, "%s: %s has the shape %s, expected %s", files->index, t->name, found,
          expected);
    CHECK(t->size == 4 * elements_of(f, i), LLMC_EFORMAT, "%s: %s has %lld bytes, expected %lld; copy it again",
          files->index, t->name, (long long)t->size, (long long)(4 * elements_of(f, i)));
    return LLMC_OK;
}

static int find_tensor(llmc_file *f, const Files *files, TfIndex *index, const char *name, int i, int l) {
    TfTensor *t = tfindex_find(index, name);
    CHECK(t, LLMC_EFORMAT, "%s lacks %s of a GPT-2 with %d layers; copy it again", files->index, name, f->config.L);
    TRY(check_entry(f, files, t, i));
    *extent_of(f, i, l) = (Extent){t->offset, 4, is_transposed(f, i), tf_unmask(t->crc)};
    t->used = 1;
    return LLMC_OK;
}

/* Checks that the model uses every tensor, and that the tensors fill the data from its first byte to its last. */
static int check_all_used(llmc_file *f, const Files *files, const TfIndex *index) {
    int64_t end = 0;
    for (const TfTensor *t = index->tensors; t < index->tensors + index->n; t++) {
        CHECK(t->used, LLMC_EFORMAT, "%s has %s, which a GPT-2 with %d layers has not: save the model's tensors alone",
              files->index, t->name, f->config.L);
        CHECK(t->offset == end && t->shard == 0, LLMC_EFORMAT,
              "%s: %s begins at byte %lld, expected %lld, the end of the one before; copy it again", files->index,
              t->name, (long long)t->offset, (long long)end);
        end += t->size;
    }
    f->end = end;
    return LLMC_OK;
}

static int find_by_name(llmc_file *f, const Files *files, TfIndex *index) {
    char name[TF_NAME];
    for (int l = 0; l < f->config.L; l++)
        for (int i = 0; i < IN_LAYER; i++) {
            snprintf(name, sizeof name, "model/h%d/%s", l, in_layer[i].name);
            TRY(find_tensor(f, files, index, name, in_layer[i].tensor, l));
        }
    for (int i = 0; i < AFTER_LAYERS; i++) {
        snprintf(name, sizeof name, "model/%s", after_layers[i].name);
        TRY(find_tensor(f, files, index, name, after_layers[i].tensor, 0));
    }
    f->has_crcs = 1;
    return check_all_used(f, files, index);
}

static int open_by_index(llmc_file *f, const Files *files, const llmc_config *hparams) {
    TfIndex index;
    int rc = tfindex_read(&index, files->index);
    if (rc == 0) rc = config_of_index(f, files, &index);
    if (rc == 0) rc = complete_config(f, files, hparams);
    if (rc == 0) rc = find_by_name(f, files, &index);
    tfindex_free(&index);
    return rc;
}

/* ---- without an index: tell the model by the size of the data ---- */

/* Solves floats = C (V + T + 2 + L (13 + 12 C)) for L; 0 if no whole number fits this C. */
static int64_t layers_for(int64_t floats, int64_t C) {
    const int64_t rest = floats / C - GPT2_V - OPENAI_T - 2, each = 13 + 12 * C;
    return floats % C || rest <= 0 || rest % each ? 0 : rest / each;
}

static int is_released(int64_t L, int64_t C) {
    static const char *const names[] = {"gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"};
    llmc_config known;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (llmc_config_parse(&known, names[i]) == 0 && known.L == L && known.C == C) return 1;
    return 0;
}

/* Looks for an L and a C with which a model of OpenAI's V and T fills the data. Returns how many there are and
 * stores the last. A released model wins at once: 1. */
static int fit_sizes(int64_t bytes, llmc_config *c) {
    const int64_t floats = bytes / 4;
    int found = 0;
    for (int64_t C = HEAD_SIZE; bytes % 4 == 0 && C <= MOST_C && C <= floats / GPT2_V; C += HEAD_SIZE) {
        const int64_t L = layers_for(floats, C);
        if (L < 1 || L > INT_MAX) continue;
        c->L = (int)L, c->C = (int)C, found++;
        if (is_released(L, C)) return 1;
    }
    return found;
}

static int config_of_size(llmc_file *f, const llmc_config *hparams) {
    if (hparams->V && hparams->maxT && hparams->C && hparams->L) return f->config = *hparams, LLMC_OK;
    f->config = (llmc_config){.maxT = OPENAI_T, .V = GPT2_V};
    const int found = fit_sizes(f->file.size, &f->config);
    CHECK(
        found, LLMC_EFORMAT,
        "%s has %lld bytes, which no GPT-2 of V=%d and T=%d makes: it is truncated or has other sizes; copy it again, "
        "or put model.ckpt.index or hparams.json beside it",
        f->path, (long long)f->file.size, GPT2_V, OPENAI_T);
    CHECK(found == 1, LLMC_EFORMAT,
          "%s has %lld bytes, which fit %d sizes of model: put model.ckpt.index or "
          "hparams.json beside it",
          f->path, (long long)f->file.size, found);
    return LLMC_OK;
}

static int by_decimals(const void *a, const void *b) {
    char x[16], y[16];
    snprintf(x, sizeof x, "%d/", *(const int *)a);
    snprintf(y, sizeof y, "%d/", *(const int *)b);
    return strcmp(x, y);
}

static int64_t put_next(llmc_file *f, int i, int l, int64_t at) {
    *extent_of(f, i, l) = (Extent){at, 4, is_transposed(f, i), 0};
    return at + 4 * elements_of(f, i);
}

/* Puts the tensors one after the other. The layers come in the order of their names: 0 1 10 11 2 ... */
static int line_up(llmc_file *f) {
    const int L = f->config.L;
    int *layers = malloc((size_t)L * sizeof *layers);
    CHECK(layers, LLMC_ENOMEM, "no memory for the order of the layers in %s", f->path);
    for (int l = 0; l < L; l++) layers[l] = l;
    qsort(layers, (size_t)L, sizeof *layers, by_decimals);
    f->end = 0;
    for (int n = 0; n < L; n++)
        for (int i = 0; i < IN_LAYER; i++) f->end = put_next(f, in_layer[i].tensor, layers[n], f->end);
    for (int i = 0; i < AFTER_LAYERS; i++) f->end = put_next(f, after_layers[i].tensor, 0, f->end);
    free(layers);
    return LLMC_OK;
}

static int open_by_size(llmc_file *f, const Files *files, const llmc_config *hparams) {
    TRY(config_of_size(f, hparams));
    const double least = 48.0 * f->config.L * f->config.C * f->config.C;
    CHECK(
        least < (double)f->file.size, LLMC_EFORMAT,
        "%s is too small for n_layer=%d and n_embd=%d of %s: expected more than %.0f bytes, found %lld; copy it again",
        f->path, f->config.L, f->config.C, files->hparams, least, (long long)f->file.size);
    TRY(complete_config(f, files, hparams));
    return line_up(f);
}

int tfbundle_open(llmc_file *f, const char *path) {
    Files *files = calloc(1, sizeof *files);
    llmc_config hparams = {0};
    CHECK(files, LLMC_ENOMEM, "no memory to open %s", path);
    find_files(path, files);
    int rc = modelfile_open(f, files->data);
    if (rc == 0) rc = read_hparams(files, &hparams);
    if (rc == 0) rc = *files->index ? open_by_index(f, files, &hparams) : open_by_size(f, files, &hparams);
    if (rc == 0 && f->end != f->file.size)
        rc = llmc_fail(LLMC_EFORMAT, "%s: expected %lld bytes, found %lld; copy it again", f->path, (long long)f->end,
                       (long long)f->file.size);
    free(files);
    return rc;
}

void tfbundle_describe(const llmc_file *f, char *text, size_t size) {
    snprintf(text, size, "OpenAI TensorFlow checkpoint %s",
             f->has_crcs ? "with its index" : "without an index, told by its size");
}
