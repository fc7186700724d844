/* Finds the files that --model and --tokenizer name, and makes of them a model that writes. */
#include "write/locate.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/binfile.h"
#include "base/error.h"
#include "base/growing.h"
#include "base/quote.h"
#include "files/filetokenizer.h"
#include "files/state.h"
#include "write/template.h"

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

int locate_check_device(const llmc_options *o) {
    const char *device = o->device, *built = llmc_backend(), *program = program_of(device);
    const int chats = o->program == FOR_CHAT;
    CHECK(program, LLMC_EDEVICE, "device '%s' is not one of %s", device, DEVICES);
    CHECK(!strcmp(device, "auto") || !strcmp(device, built), LLMC_EDEVICE,
          "this was built for device=%s, not '%s': run python -m pyllmc.%s --device=%s%s", built, device,
          chats ? "chat" : "train", device, chats ? "" : program);
    /* A device that is missing is told before the data is read. */
    return llmc_kernels(NULL, LLMC_AUTO) ? LLMC_OK : LLMC_EDEVICE;
}

/* ---- what a run folder holds, told to people ---- */

typedef struct Checkpoint {
    char path[2 * OPTION_TEXT];
    int64_t step;
    double val_loss; /* NaN if unknown */
} Checkpoint;

/* Reads about a checkpoint in a run folder: 1, or 0 if the folder has none of this name. `loss` is the name of its loss in STATE. */
static int look_into(const char *run, const char *name, const char *loss, Checkpoint *c) {
    char state[STATE_TEXT];
    snprintf(c->path, sizeof c->path, "%s/%s", run, name);
    if (access(c->path, R_OK) < 0) return 0;
    TRY(state_read_by_path(c->path, state));
    c->step = state_whole(state, "step", 0);
    c->val_loss = state_number(state, loss, NAN);
    return 1;
}

int llmc_run_told(const char *model, const char *before, const char *after, char *text, size_t size) {
    Checkpoint best, last;
    char quoted[QUOTED];
    *text = 0;
    if (!is_folder(model)) return LLMC_OK;
    const int has_best = look_into(model, "best.ckpt", "best_val_loss", &best);
    TRY(has_best);
    const int has_last = look_into(model, "last.ckpt", "val_loss", &last);
    TRY(has_last);
    if (!has_best && has_last) snprintf(text, size, "%s: the last step, %lld", last.path, (long long)last.step);
    if (!has_best) return LLMC_OK;
    Growing told = {0};
    growing_add(&told, "%s: step %lld", best.path, (long long)best.step);
    if (isfinite(best.val_loss)) growing_add(&told, ", val loss %.4f, the best", best.val_loss);
    if (has_last && last.val_loss > best.val_loss) {
        quote(last.path, quoted);
        growing_add(&told, "; the last step, %lld, ended worse with %.4f: %s%s%s", (long long)last.step, last.val_loss,
                    before, quoted, after);
    }
    const int n = growing_copy(&told, text, size);
    return n < 0 ? n : LLMC_OK;
}

/* ---- the files ---- */

int locate_weight_file(const llmc_options *o, char *path, size_t size) {
    llmc_config known;
    CHECK(*o->model_file || strncmp(o->model, "hub:", 4), LLMC_EINVAL,
          "--model=%s is of the hub, and Python fetches it: python -m pyllmc.%s --model=%s, or python -m "
          "pyllmc.convert %s model.bin and then --model=model.bin",
          o->model, o->program == FOR_CHAT ? "chat" : "train", o->model, o->model);
    if (*o->model_file) return snprintf(path, size, "%s", o->model_file), 1;
    if (llmc_config_parse(&known, o->model) == 0) return 0; /* d12 is a size, even if there is a file of this name */
    return llmc_file_find(o->model, path, size) || is_folder(o->model); /* opening a folder tells what it lacks */
}

/* Opens the weight file. If it is no model but --tokenizer is one, the two arguments were probably swapped, and
 * the error says so. */
static int open_file(const llmc_options *o, const char *path, llmc_file **file) {
    char reason[1024];
    llmc_file *other;
    const int rc = llmc_file_open(file, path);
    if (rc != LLMC_EFORMAT || !*o->tokenizer) return rc;
    snprintf(reason, sizeof reason, "%s", llmc_last_error());
    CHECK(llmc_file_open(&other, o->tokenizer) == 0, rc, "%s", reason);
    llmc_file_free(other);
    FAIL(rc, "%s is not a model, and %s is one: the model comes first, then the tokenizer", o->model, o->tokenizer);
}

static int open_tokenizer(const llmc_options *o, const llmc_file *file, llmc_tokenizer **t) {
    if (*o->tokenizer) return filetokenizer_open(t, o->tokenizer, llmc_file_config(file)->V);
    TRY(llmc_file_tokenizer(file, 1, t));
    CHECK(*t, LLMC_EINVAL,
          "%s carries no tokenizer, and beside it lies none: name a tokenizer.bin or vocab.bpe with --tokenizer",
          llmc_file_path(file));
    return LLMC_OK;
}

int locate_base(const llmc_options *o, llmc_file *file) {
    return *o->base_file && llmc_file_adapters(file, NULL, 0) ? llmc_file_set_base(file, o->base_file) : LLMC_OK;
}

static int open_model(const llmc_options *o, llmc_file *file, llmc_model **m) {
    const llmc_config *config = llmc_file_config(file);
    const llmc_room room = {.B = 1, .T = config->maxT, .precision = llmc_precision(o->precision)};
    TRY(room.precision);
    TRY(llmc_model_create(m, config, &room, (int)o->threads));
    TRY(locate_base(o, file));
    TRY(llmc_model_load_from(*m, file));
    return llmc_model_compress(*m, o->weights);
}

int locate_open(const llmc_options *o, llmc_model **m, llmc_tokenizer **t, char line[OPTION_TEXT]) {
    char path[2 * OPTION_TEXT];
    llmc_file *file;
    llmc_config size;
    TRY(locate_check_device(o));
    TRY(template_check(o->template));
    CHECK(o->model_given, LLMC_EINVAL, "no model is named: give a run folder or a weight file; --help says more");
    CHECK(llmc_config_parse(&size, o->model) < 0, LLMC_EINVAL,
          "%s is a size of model, whose weights are fresh, and only trained ones write: give a run folder or a weight "
          "file",
          o->model);
    const int found = locate_weight_file(o, path, sizeof path);
    TRY(found);
    CHECK(found, LLMC_EIO, "there is no run folder or weight file %s: check the path", o->model);
    TRY(open_file(o, path, &file));
    int rc = open_tokenizer(o, file, t);
    if (rc == 0) rc = open_model(o, file, m);
    if (rc == 0) rc = template_of_file(file, line);
    llmc_file_free(file);
    return rc;
}
