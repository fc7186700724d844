/* From --model and --tokenizer to files, and to a model that writes. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/binfile.h"
#include "base/error.h"
#include "base/growing.h"
#include "base/quote.h"
#include "write/locate.h"
#include "files/state.h"
#include "files/tfbundle.h"

#define DEVICE(name, program) ", " #name
static const char DEVICES[] = "auto"
#include "devices.def"
    ;

/* The program that was built for a device, as the end of a remedy; NULL: there is no such device. */
static const char *program_of(const char *device) {
#define DEVICE(name, program) \
    if (!strcmp(device, #name)) return program;
#include "devices.def"
    return strcmp(device, "auto") ? NULL : "";
}

int source_check_device(const char *device) {
    const char *built = llmc_backend(), *program = program_of(device);
    CHECK(program, LLMC_EDEVICE, "device '%s' is not one of %s", device, DEVICES);
    CHECK(!strcmp(device, "auto") || !strcmp(device, built), LLMC_EDEVICE,
          "this was built for device=%s, not '%s': run python -m pyllmc.train --device=%s%s", built, device, device,
          program);
    return llmc_kernels(NULL) ? LLMC_OK : LLMC_EDEVICE; /* before the data is read */
}

int source_is_file(const char *model, char *path, size_t size) {
    const char *formats[] = {"%s/best.ckpt", "%s/last.ckpt", "%s"}; /* the last: what llmc_model_load takes */
    llmc_config config;
    if (llmc_config_parse(&config, model) == 0) return 0; /* a size comes first: a file called d12 does not hide it */
    for (int i = 0; i < 3; i++) {
        snprintf(path, size, formats[i], model);
        if (access(path, F_OK) == 0) return 1;
    }
    return tfbundle_is(model);
}

/* 1 if a run folder has a checkpoint of that name, and then its path, its step and its validation loss, NaN if unknown. */
static int look_into(const char *run, const char *name, const char *loss, char *path, size_t size, double *step,
                     double *val_loss) {
    char state[STATE_TEXT];
    snprintf(path, size, "%s/%s", run, name);
    if (access(path, R_OK) < 0) return 0;
    TRY(state_read(path, state));
    *step = state_number(state, "step", 0);
    *val_loss = state_number(state, loss, NAN);
    return 1;
}

int llmc_run_told(const char *model, const char *before, const char *after, char *text, size_t size) {
    char best[2 * OPTION_TEXT], last[2 * OPTION_TEXT], quoted[QUOTED];
    double best_step = 0, best_loss = NAN, step = 0, loss = NAN;
    *text = 0;
    if (!is_folder(model)) return LLMC_OK;
    const int has_best = look_into(model, "best.ckpt", "best_val_loss", best, sizeof best, &best_step, &best_loss);
    TRY(has_best);
    const int has_last = look_into(model, "last.ckpt", "val_loss", last, sizeof last, &step, &loss);
    TRY(has_last);
    if (!has_best && has_last) snprintf(text, size, "%s: the last step, %.0f", last, step);
    if (!has_best) return LLMC_OK;
    Growing told = {0};
    growing_add(&told, "%s: step %.0f", best, best_step);
    if (isfinite(best_loss)) growing_add(&told, ", val loss %.4f, the best", best_loss);
    if (has_last && loss > best_loss) {
        quote(last, quoted);
        growing_add(&told, "; the last step, %.0f, ended worse with %.4f: %s%s%s", step, loss, before, quoted, after);
    }
    const int n = growing_copy(&told, text, size);
    return n < 0 ? n : LLMC_OK;
}

int source_find(const llmc_options *o, char *path, size_t size) {
    CHECK(*o->model_file || strncmp(o->model, "hub:", 4), LLMC_EINVAL,
          "--model=%s is of the hub, and Python fetches it: python -m pyllmc.%s --model=%s, or python -m "
          "pyllmc.convert %s model.bin and then --model=model.bin",
          o->model, o->program == FOR_CHAT ? "chat" : "train", o->model, o->model);
    if (!*o->model_file) return source_is_file(o->model, path, size);
    snprintf(path, size, "%s", o->model_file);
    return 1;
}

int source_own_tokenizer(llmc_tokenizer **k, const char *weights) {
    const int size = llmc_checkpoint_text(weights, "TOKENIZR", NULL, 0);
    if (size <= 0) return size;
    char *bytes = malloc((size_t)size);
    CHECK(bytes, LLMC_ENOMEM, "no memory for the tokenizer of %s", weights);
    int rc = llmc_checkpoint_text(weights, "TOKENIZR", bytes, size);
    if (rc > 0) rc = llmc_tokenizer_read(k, bytes, size, weights);
    free(bytes);
    return rc < 0 ? rc : LLMC_OK;
}

/* a file, which may be another model's */
static int foreign_tokenizer(llmc_tokenizer **k, const char *path, int V) {
    TRY(llmc_tokenizer_open(k, path));
    return llmc_tokenizer_fits(*k, V, path);
}

/* in the folder of the weights */
static int tokenizer_beside(llmc_tokenizer **k, const char *weights, int V) {
    const char *names[] = {"tokenizer.bin", "vocab.bpe"}, *slash = strrchr(weights, '/');
    const int folder = is_folder(weights) ? (int)strlen(weights) : slash ? (int)(slash - weights) : 0;
    char path[2 * OPTION_TEXT];
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%.*s%s%s", folder, weights, folder ? "/" : "", names[i]);
        if (access(path, F_OK) == 0) return foreign_tokenizer(k, path, V);
    }
    FAIL(LLMC_EINVAL,
         "%s carries no tokenizer, and beside it lies none: name a tokenizer.bin or vocab.bpe with --tokenizer",
         weights);
}

static int open_tokenizer(llmc_tokenizer **k, const char *asked, const char *weights, int V) {
    *k = NULL;
    if (*asked) return foreign_tokenizer(k, asked, V);
    TRY(source_own_tokenizer(k, weights)); /* of a model with room for more ids, too: --vocab_size */
    return *k ? LLMC_OK : tokenizer_beside(k, weights, V);
}

static int open_model(const llmc_options *o, llmc_model **m, const char *weights, const llmc_config *config) {
    const llmc_room room = {.B = 1, .T = config->maxT};
    TRY(llmc_model_create(m, config, &room, (int)o->threads));
    TRY(llmc_model_set_precision(*m, o->precision));
    TRY(llmc_model_load(*m, weights));
    return llmc_model_compress(*m, o->weights);
}

/* that it is none, or that the tokenizer is: they are easily confused */
static int read_config(const llmc_options *o, const char *weights, llmc_config *config) {
    llmc_config other;
    const int rc = llmc_model_read_config(weights, config);
    if (rc != LLMC_EFORMAT || !*o->tokenizer) return rc;
    if (llmc_model_read_config(o->tokenizer, &other) == 0)
        FAIL(rc, "%s is not a model, and %s is one: the model comes first, then the tokenizer", o->model, o->tokenizer);
    return llmc_model_read_config(weights, config); /* to say again why not */
}

int source_open(const llmc_options *o, llmc_model **m, llmc_tokenizer **k) {
    char weights[2 * OPTION_TEXT];
    TRY(source_check_device(o->device));
    CHECK(o->model_given, LLMC_EINVAL, "no model is named: give a run folder or a weight file; --help says more");
    llmc_config config;
    CHECK(llmc_config_parse(&config, o->model) < 0, LLMC_EINVAL,
          "%s is a size of model, whose weights are fresh, and only trained ones write: give a run folder or a weight "
          "file",
          o->model);
    const int found = source_find(o, weights, sizeof weights);
    TRY(found);
    CHECK(found, LLMC_EIO, "there is no run folder or weight file %s: check the path", o->model);
    TRY(read_config(o, weights, &config));
    TRY(open_tokenizer(k, o->tokenizer, weights, config.V));
    return open_model(o, m, weights, &config);
}
