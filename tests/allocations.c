/* Lets every allocation of the engine fail once: ./allocations DATA OUT. It is linked with --wrap, so it sees the calls
 * of the library's objects, but not those inside the C library. tests/files/test_allocations.py builds and runs it. */
#include <dirent.h>
#include <errno.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "pyllmc.h"

/* ---- the shim: the k-th call since `arm` fails ---- */

static long calls, failing, live; /* live: blocks that are not freed */
static int soft; /* the call that failed need not end in ENOMEM: another size would do, or it opens a file */

static int fails(int is_soft) {
    if (!failing || ++calls != failing) return 0;
    soft = is_soft;
    errno = ENOMEM;
    return 1;
}

static void *counted(void *p) { return live += p != NULL, p; }

#define WRAP(type, name, parameters, ...) \
    type __real_##name parameters;        \
    type __wrap_##name parameters;        \
    type __wrap_##name parameters { __VA_ARGS__ }
WRAP(void *, malloc, (size_t n), return fails(0) ? NULL : counted(__real_malloc(n));)
WRAP(void *, calloc, (size_t n, size_t size), return fails(0) ? NULL : counted(__real_calloc(n, size));)
WRAP(char *, strdup, (const char *s), return fails(0) ? NULL : counted(__real_strdup(s));)
WRAP(char *, strndup, (const char *s, size_t n), return fails(0) ? NULL : counted(__real_strndup(s, n));)
WRAP(void *, realloc, (void *p, size_t n),
     return fails(1) ? NULL
            : p      ? __real_realloc(p, n)
                     : counted(__real_malloc(n));)
WRAP(void, free, (void *p), live -= p != NULL; __real_free(p);)
WRAP(int, posix_memalign, (void **p, size_t align, size_t n), if (fails(0)) return ENOMEM;
     const int rc = __real_posix_memalign(p, align, n); counted(rc ? NULL : *p); return rc;)
WRAP(FILE *, fopen, (const char *path, const char *mode), return fails(1) ? NULL : __real_fopen(path, mode);)
WRAP(DIR *, opendir, (const char *path), return fails(1) ? NULL : __real_opendir(path);)
WRAP(int, glob, (const char *pattern, int flags, int (*f)(const char *, int), glob_t *found),
     return fails(0) ? GLOB_NOSPACE : __real_glob(pattern, flags, f, found);)

static int open_files(void) {
    int n = 0;
    DIR *dir = __real_opendir("/proc/self/fd");
    while (dir && readdir(dir)) n++;
    if (dir) closedir(dir);
    return n;
}

/* ---- the work ---- */

static const char *data, *out;
#define TRY(expression)       \
    do {                      \
        rc = (expression);    \
        if (rc < 0) goto end; \
    } while (0)

static const char *in(const char *folder, const char *name) {
    static char path[4][4096];
    static int i;
    char *p = path[i++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", folder, name);
    return p;
}

static const llmc_config tiny = {.maxT = 8, .V = 37, .L = 2, .NH = 2, .C = 16};

static int create(llmc_model **model) {
    llmc_config config = tiny;
    const int rc = llmc_config_check(&config);
    const llmc_room room = {.B = 2, .T = 8, .training = 1, .logits = 1, .precision = LLMC_AUTO};
    return rc < 0 ? rc : llmc_model_create(model, &config, &room, 1);
}

static int train_a_model(void) {
    llmc_model *model = NULL;
    const int ids[16] = {1, 2, 3}, targets[16] = {2, 3, 4};
    const llmc_adamw hyper = {1e-3, 0.9, 0.95, 1e-8, 0.1, 0};
    const llmc_sampling how = {.temperature = 1, .top_k = 5};
    char name[64];
    float loss, norm, logits[8] = {1, 2, 3};
    int made[20], rc;
    TRY(create(&model));
    TRY(llmc_model_init(model, 1, 0));
    TRY(llmc_model_zero_grad(model));
    TRY(llmc_model_forward(model, ids, targets, NULL, 2, 8, &loss));
    TRY(llmc_model_backward(model, 1));
    TRY(llmc_model_grad_norm(model, 1, &norm));
    TRY(llmc_model_update(model, &hyper, 1));
    TRY(llmc_model_find_nonfinite(model, name, sizeof name));
    TRY(llmc_model_generate(model, ids, 1, 3, 20, &how, made, -1));
    TRY(llmc_sample(logits, 8, &how, 0.5));
end:
    llmc_model_free(model);
    return rc;
}

static int save_and_load(void) {
    llmc_model *model = NULL;
    char text[64];
    llmc_config config;
    int rc;
    TRY(create(&model));
    TRY(llmc_model_init(model, 1, 0));
    TRY(llmc_checkpoint_save(model, in(out, "model.ckpt"), "lr=1", "step=3", "tok", 3, 1));
    TRY(llmc_checkpoint_text(in(out, "model.ckpt"), "OPTIONS ", text, sizeof text));
    TRY(llmc_model_read_config(in(out, "model.ckpt"), &config));
    TRY(llmc_model_load(model, in(out, "model.ckpt")));
end:
    llmc_model_free(model);
    return rc;
}

/* Loads OpenAI's TensorFlow checkpoint. */
static int load_bundle(const char *folder) {
    llmc_model *model = NULL;
    llmc_config config;
    const llmc_room room = {.B = 1, .T = 1, .precision = LLMC_AUTO};
    int rc;
    TRY(llmc_model_read_config(folder, &config));
    TRY(llmc_model_create(&model, &config, &room, 1));
    TRY(llmc_model_load(model, folder));
end:
    llmc_model_free(model);
    return rc;
}

static int load_by_index(void) { return load_bundle(in(out, "bundle")); }
static int load_by_size(void) { return load_bundle(in(out, "bare")); }

static int tokenize_as(const char *path) {
    llmc_tokenizer *tokenizer = NULL, *again = NULL;
    int ids[64], rc;
    int64_t size;
    char text[64];
    TRY(llmc_tokenizer_open(&tokenizer, path));
    TRY(llmc_tokenizer_encode(tokenizer, "the cat", 7, ids, 64));
    TRY(llmc_tokenizer_decode(tokenizer, ids, rc, text, 64));
    const void *bytes = llmc_tokenizer_bytes(tokenizer, &size);
    TRY(llmc_tokenizer_read(&again, bytes, size, "again"));
end:
    llmc_tokenizer_free(again);
    llmc_tokenizer_free(tokenizer);
    return rc;
}

static int tokenize(void) { return tokenize_as(in(data, "tokenizer.bin")); }
static int tokenize_byte_pairs(void) { return tokenize_as(in(out, "vocab.bpe")); }

static int read_tokens(const char *paths) {
    llmc_loader *loader = NULL;
    int inputs[14], targets[14], rc;
    TRY(llmc_loader_open(&loader, paths, "train", 2, 7, 1, 1, 0, 1, 0, 0));
    for (int i = 0; i < 20; i++) TRY(llmc_loader_next(loader, inputs, targets));
end:
    llmc_loader_free(loader);
    return rc;
}

static int read_a_folder(void) { return read_tokens(data); }
static int read_a_glob(void) { return read_tokens(in(data, "train*.bin")); }

/* A run: plan, steps, evaluation, sample, checkpoints. */
static int run_trainer(const char *const *arguments, int n) {
    llmc_options *options = llmc_options_new();
    llmc_trainer *trainer = NULL;
    llmc_event event;
    int rc = options ? llmc_options_parse(options, n, arguments) : LLMC_ENOMEM;
    if (rc == 0) rc = llmc_trainer_new(&trainer, options);
    if (rc == 0)
        while ((rc = llmc_trainer_next(trainer, &event)) > 0) {
        }
    llmc_trainer_free(trainer);
    llmc_options_free(options);
    return rc;
}

static int run_and_resume(void) {
    const char *first[] = {"--data",
                           data,
                           "--model=gpt-nano",
                           "--max_seq_len=16",
                           "--B=2",
                           "--T=7",
                           "--max_steps=1",
                           "--sample_tokens=3",
                           "--overwrite",
                           "--threads=1",
                           "--out",
                           in(out, "run")};
    const char *more[] = {"--max_steps=2", "--resume", in(out, "run")};
    const int rc = run_trainer(first, sizeof first / sizeof *first);
    return rc < 0 ? rc : run_trainer(more, 3);
}

/* Talks with the model of that run. */
static int talk_as(const char *const *arguments, int n) {
    llmc_options *options = llmc_options_new_chat();
    llmc_chat *chat = NULL;
    const char *piece;
    int64_t size;
    int rc = options ? llmc_options_parse(options, n, arguments) : LLMC_ENOMEM;
    if (rc == 0) rc = llmc_chat_new(&chat, options);
    for (int turn = 0; rc >= 0 && turn < 4; turn++) {
        rc = llmc_chat_say(chat, "t", 1);
        while (rc >= 0 && (rc = llmc_chat_next(chat, &piece, &size)) > 0) {
        }
    }
    llmc_chat_free(chat);
    llmc_options_free(options);
    return rc;
}

static int talk(void) {
    const char *arguments[] = {in(out, "run"), "--threads=1", "--sample_tokens=3", "--template=chat",
                               "--user=a",     "--bot=t",     "--system="};
    return talk_as(arguments, sizeof arguments / sizeof *arguments);
}

/* ---- each piece of work with each call failing ---- */

static int wrong(const char *name, const char *what, int rc) {
    printf("%s: call %ld fails: %s (status %d, %ld blocks, %s)\n", name, failing, what, rc, live, llmc_last_error());
    return 1;
}

static int fail_each_call(const char *name, int (*work)(void)) {
    int errors = 0;
    const int unarmed = work();
    if (unarmed < 0) return wrong(name, "it does not even work when nothing fails", unarmed);
    for (failing = 1;; failing++) {
        const int files = open_files();
        calls = 0;
        const int rc = work();
        if (calls < failing) {
            errors += rc < 0 ? wrong(name, "after all were counted", rc) : 0;
            break;
        }
        if (soft ? rc != LLMC_EIO && rc < 0 && rc != LLMC_ENOMEM : rc != LLMC_ENOMEM)
            errors += wrong(name, "not LLMC_ENOMEM", rc);
        if (rc < 0 && !*llmc_last_error()) errors += wrong(name, "without a message", rc);
        if (live) errors += wrong(name, "memory is lost", rc), live = 0;
        if (open_files() != files) errors += wrong(name, "files stay open", rc);
    }
    printf("%s: %ld calls\n", name, failing - 1);
    failing = 0;
    return errors;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    data = argv[1], out = argv[2];
    return fail_each_call("model", train_a_model) + fail_each_call("checkpoint", save_and_load) +
                   fail_each_call("index", load_by_index) + fail_each_call("size", load_by_size) +
                   fail_each_call("tokenizer", tokenize) + fail_each_call("bpe", tokenize_byte_pairs) +
                   fail_each_call("folder", read_a_folder) + fail_each_call("glob", read_a_glob) +
                   fail_each_call("trainer", run_and_resume) + fail_each_call("chat", talk)
               ? 1
               : 0;
}
