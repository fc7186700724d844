/* Shared by the fuzz targets: see fuzz.h. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/binfile.h"
#include "base/crc32.h"
#include "fuzz.h"
#include "model/gpt2.h"
#include "options/options.h"

/* Limits the memory that the library may ask for at once, and may hold. Freed memory stays unused for some megabytes,
 * which is many executions. */
const char *__asan_default_options(void);
__attribute__((visibility("default"))) const char *__asan_default_options(void) {
    return "max_allocation_size_mb=64:hard_rss_limit_mb=1024:quarantine_size_mb=8:handle_abort=1:strict_string_checks="
           "1";
}

void fuzz_failed(const char *file, int line, const char *condition, const char *function) {
    fprintf(stderr, "%s:%d: %s expected %s; the last error of the library: %s\n", file, line, function, condition,
            llmc_last_error());
    abort();
}

int fuzz_status(int rc) {
    if (rc >= 0) return rc;
    const char *message = llmc_last_error();
    fuzz_expect(rc >= LLMC_ENUMERIC && *message);
    for (; *message; message++) fuzz_expect((unsigned char)*message >= ' ' && *message != 127);
    return rc;
}

/* ---- inputs ---- */

void take(Input *in, void *to, size_t n) {
    const size_t there = n < in->left ? n : in->left;
    memset(to, 0, n);
    if (there) memcpy(to, in->at, there);
    in->at += there, in->left -= there;
}

int take_byte(Input *in) {
    uint8_t x;
    return take(in, &x, sizeof x), x;
}

int32_t take_int(Input *in) {
    int32_t x;
    return take(in, &x, sizeof x), x;
}

int64_t take_long(Input *in) {
    int64_t x;
    return take(in, &x, sizeof x), x;
}

double take_double(Input *in) {
    double x;
    return take(in, &x, sizeof x), x;
}

Input take_input(Input *in, size_t n) {
    const Input front = {in->at, n < in->left ? n : in->left};
    in->at += front.left, in->left -= front.left;
    return front;
}

char *take_line(Input *in) {
    const uint8_t *end = in->left ? memchr(in->at, '\n', in->left) : NULL;
    const Input line = take_input(in, end ? (size_t)(end - in->at) : in->left);
    char *text = malloc(line.left + 1);
    fuzz_expect(text);
    if (line.left) memcpy(text, line.at, line.left);
    text[line.left] = 0;
    if (end) take_byte(in);
    return text;
}

/* ---- files ---- */

uint32_t fuzz_crc(Input x) {
    static Crc32 crc;
    if (!crc.table[0][1]) crc32_start(&crc, CRC_ZLIB);
    crc.value = 0;
    crc32_add(&crc, x.at, (int64_t)x.left);
    return crc.value;
}

Input fuzz_file(Input in, int how, int ints) {
    static uint8_t bytes[2][HEADER_BYTES + FUZZ_FILE + 20];
    static int turn;
    uint8_t *file = bytes[turn ^= 1], *end = file;
    if (!(how & AS_IS)) {
        memset(file, 0, HEADER_BYTES);
        take(&in, file, 4 * (size_t)ints);
        end += HEADER_BYTES;
    }
    const Input rest = take_input(&in, FUZZ_FILE);
    if (rest.left) memcpy(end, rest.at, rest.left);
    end += rest.left;
    if (how & CHECKSUM) {
        const uint32_t crc = fuzz_crc((Input){file, (size_t)(end - file)});
        memcpy(end, "CRC32   \4\0\0\0\0\0\0", 16);
        memcpy(end + 16, &crc, 4);
        end += 20;
    }
    return (Input){file, (size_t)(end - file)};
}

const char *fuzz_path(int which, Input file) {
    static const char *const paths[] = {"/proc/self/fd/100", "/proc/self/fd/101", "/proc/self/fd/102"};
    static int ready[3];
    const int fd = 100 + which;
    if (!ready[which]) {
        const int made = memfd_create("fuzz", MFD_CLOEXEC);
        fuzz_expect(made >= 0 && dup2(made, fd) == fd);
        close(made);
        ready[which] = 1;
    }
    fuzz_expect(pwrite(fd, file.at, file.left, 0) == (ssize_t)file.left && ftruncate(fd, (off_t)file.left) == 0);
    return paths[which];
}

const char *fuzz_place(int which, const char *name) {
    static char path[3][512];
    const char *tmp = getenv("TMPDIR");
    const int folder = snprintf(path[which], 256, "%s/fuzz", tmp ? tmp : "/tmp");
    fuzz_expect(folder < 256 && (mkdir(path[which], 0700) == 0 || errno == EEXIST));
    snprintf(path[which] + folder, 256, "/%s", name);
    return path[which];
}

const char *fuzz_link(int which, const char *name) {
    const char *path = fuzz_place(which, name);
    fuzz_expect(symlink(fuzz_path(which, (Input){NULL, 0}), path) == 0 || errno == EEXIST);
    return path;
}

/* ---- options ---- */

llmc_options *fuzz_options(int chat) {
    static llmc_options *fresh[2];
    if (!fresh[!!chat]) fresh[!!chat] = chat ? llmc_options_new_chat() : llmc_options_new();
    llmc_options *o = malloc(sizeof *o);
    fuzz_expect(o && fresh[!!chat]);
    *o = *fresh[!!chat];
    return o;
}

/* ---- weights ---- */

/* A model is made once for each size. Before each execution its struct and all its memory are restored. */
typedef struct Kept {
    llmc_model *model, as_made;
    char *memory;
} Kept;

static void make(Kept *kept, const llmc_config *config) {
    static const llmc_room room = {.B = 1, .T = 1, .training = 1, .recompute = 2};
    llmc_model_free(kept->model);
    free(kept->memory);
    fuzz_expect(fuzz_status(llmc_model_create(&kept->model, config, &room, 1)) == 0);
    fuzz_expect(fuzz_status(llmc_model_reset_moments(kept->model)) == 0);
    fuzz_expect(fuzz_status(llmc_model_init(kept->model, 1, 0)) == 0);
    kept->as_made = *kept->model;
    kept->memory = malloc((size_t)kept->model->bytes);
    fuzz_expect(kept->memory);
    memcpy(kept->memory, kept->model->arena, (size_t)kept->model->bytes);
}

static const Kept *kept_for(const llmc_config *config) {
    static Kept all[8];
    static int oldest;
    Kept *kept = all;
    while (kept < all + 8 && !(kept->model && !memcmp(&kept->as_made.config, config, sizeof *config))) kept++;
    if (kept == all + 8) make(kept = &all[oldest++ % 8], config);
    *kept->model = kept->as_made;
    memcpy(kept->model->arena, kept->memory, (size_t)kept->model->bytes);
    return kept;
}

static int is_as_made(const Kept *kept) {
    return !memcmp(kept->model, &kept->as_made, sizeof *kept->model) &&
           !memcmp(kept->model->arena, kept->memory, (size_t)kept->model->bytes);
}

static void expect_finite(const llmc_model *m) {
    const float *blocks[] = {m->params, m->m, m->v};
    for (int i = 0; i < 3; i++) fuzz_expect(gpt2_find_nonfinite(blocks[i], m->layout.num_params) < 0);
    fuzz_expect(m->step >= 0);
}

void fuzz_load(const char *path, int other) {
    llmc_config config;
    if (fuzz_status(llmc_model_read_config(path, &config)) < 0) return;
    fuzz_expect(llmc_config_check(&config) == 0 && config.C % config.NH == 0);
    config.V += !!other;
    fuzz_expect(llmc_config_check(&config) == 0);
    const Kept *kept = kept_for(&config);
    const int rc = fuzz_status(llmc_model_load(kept->model, path));
    fuzz_expect(rc < 0 ? is_as_made(kept) : !other);
    expect_finite(kept->model);
}
