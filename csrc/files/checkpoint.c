/* Writing a checkpoint so that a crash, a full disk or a kill at any moment leaves the old file or the new one, whole:
 * to a file beside it, which is flushed to the disk and then renamed. The format is in modelfile.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/crc32.h"
#include "base/error.h"
#include "model/gpt2.h"
#include "files/modelfile.h"
#include "base/pulse.h"

typedef struct Writer {
    const char *path;
    char *tmp;
    int fd;
    Crc32 crc;
    Share share;
    float x[AT_A_TIME];
} Writer;

static int system_error(const Writer *w, const char *what) {
    const int error = errno;
    return llmc_fail(LLMC_EIO, "%s cannot be %s: %s%s. No half-written file is left", w->path, what, strerror(error),
                     remedy_for(error));
}

static int put(Writer *w, const void *data, int64_t n) {
    crc32_add(&w->crc, data, n);
    for (int64_t done = 0; done < n;) {
        const ssize_t wrote = write(w->fd, (const char *)data + done, (size_t)(n - done));
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) return system_error(w, "written");
        done += wrote;
    }
    return LLMC_OK;
}

/* ---- the parts ---- */

static int put_header(Writer *w, const llmc_config *c) {
    int32_t head[HEADER_INTS] = {MODEL_MAGIC, 3, c->maxT, c->V, c->L, c->NH, c->C, c->Vp, c->window};
    return put(w, head, sizeof head);
}

static int put_block(Writer *w, llmc_model *m, const char *what, const float *block) {
    const int64_t n = m->layout.num_params;
    for (int64_t i = 0; i < n; i += AT_A_TIME) {
        const int64_t piece = n - i < AT_A_TIME ? n - i : AT_A_TIME;
        m->k->copy_out(&m->ctx, w->x, block + i, piece * 4);
        TRY(m->k->sync(&m->ctx));
        const int64_t bad = gpt2_find_nonfinite(w->x, piece);
        CHECK(bad < 0, LLMC_ENUMERIC,
              "%s is not written: the %s of %s hold %g; go back to the last checkpoint, with a lower lr", w->path, what,
              layout_tensor_at(&m->layout, i + bad), w->x[bad]);
        TRY(put(w, w->x, piece * 4));
        pulse_share(&w->share, piece); /* a stop waits for the file */
    }
    return LLMC_OK;
}

static int put_section_head(Writer *w, int section, int64_t size) {
    TRY(put(w, section_tags[section], TAG_BYTES));
    return put(w, &size, sizeof size);
}

static int put_section(Writer *w, int section, const void *data, int64_t size) {
    if (!data || !size) return LLMC_OK;
    TRY(put_section_head(w, section, size));
    return put(w, data, size);
}

/* the caller's lines, and the model's step if they do not say it */
static int put_state(Writer *w, const char *state, int64_t step) {
    char line[32] = "";
    if (!state) state = "";
    if (strncmp(state, "step=", 5) && !strstr(state, "\nstep="))
        snprintf(line, sizeof line, "step=%lld\n", (long long)step);
    const int64_t size = (int64_t)(strlen(line) + strlen(state));
    TRY(put_section_head(w, STATE, size));
    TRY(put(w, line, (int64_t)strlen(line)));
    return put(w, state, (int64_t)strlen(state));
}

static int put_moments(Writer *w, llmc_model *m) {
    TRY(put_section_head(w, MOMENTS, 2 * m->layout.num_params * 4));
    TRY(put_block(w, m, "moments", m->m));
    return put_block(w, m, "moments", m->v);
}

static int put_crc(Writer *w) {
    const uint32_t crc = w->crc.value;
    return put_section(w, CRC32, &crc, sizeof crc);
}

/* ---- all or nothing ---- */

static int flush_folder(const Writer *w) {
    const char *slash = strrchr(w->path, '/');
    char *folder = slash ? strndup(w->path, (size_t)(slash - w->path) + 1) : strdup(".");
    CHECK(folder, LLMC_ENOMEM, "no memory for the path %s", w->path);
    const int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(folder);
    int rc = fd < 0 ? -1 : fsync(fd);
    if (rc < 0 && errno == EINVAL) rc = 0; /* some network file systems flush no folders */
    if (rc < 0) rc = system_error(w, "made sure to be on the disk");
    if (fd >= 0) close(fd);
    return rc;
}

static int commit(Writer *w) {
    if (fsync(w->fd) < 0) return system_error(w, "flushed to the disk");
    const int fd = w->fd;
    w->fd = -1;
    if (close(fd) < 0) return system_error(w, "closed");
    if (rename(w->tmp, w->path) < 0) return system_error(w, "put in place");
    return flush_folder(w);
}

static int open_beside(Writer *w, const char *path) {
    const size_t size = strlen(path) + sizeof ".tmp";
    w->path = path, w->fd = -1;
    CHECK(*path, LLMC_EINVAL, "a checkpoint needs a file name");
    w->tmp = malloc(size);
    CHECK(w->tmp, LLMC_ENOMEM, "no memory for the path %s", path);
    snprintf(w->tmp, size, "%s.tmp", path);
    unlink(w->tmp); /* of a process that was killed; and never write through a link */
    w->fd = open(w->tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (w->fd < 0) return system_error(w, "written");
    crc32_start(&w->crc, CRC_ZLIB);
    w->share = (Share){.what = "saving", .path = path, .percent = -1};
    return LLMC_OK;
}

static int close_writer(Writer *w, int rc) {
    if (w->fd >= 0) close(w->fd);
    if (w->tmp && rc < 0) unlink(w->tmp); /* after the rename there is none */
    free(w->tmp);
    free(w);
    return rc;
}

int llmc_checkpoint_save(llmc_model *m, const char *path, const char *options, const char *state, const void *tokenizer,
                         int64_t tokenizer_size, int with_moments) {
    CHECK(!with_moments || m->room.training, LLMC_EINVAL,
          "this model was made without moments (training=False): save without");
    CHECK(m->ctx.weights == LLMC_FP32, LLMC_EINVAL,
          "compressed weights cannot be saved: save before llmc_model_compress");
    Writer *w = calloc(1, sizeof *w);
    CHECK(w, LLMC_ENOMEM, "no memory to write %s", path);
    int rc = open_beside(w, path);
    w->share.all = m->layout.num_params * (with_moments ? 3 : 1);
    if (rc == 0) rc = put_header(w, &m->config);
    if (rc == 0) rc = put_block(w, m, "weights", m->params);
    if (rc == 0) rc = put_section(w, OPTIONS, options, options ? (int64_t)strlen(options) : 0);
    if (rc == 0) rc = put_state(w, state, m->step);
    if (rc == 0) rc = put_section(w, TOKENIZR, tokenizer, tokenizer_size);
    if (rc == 0 && with_moments) rc = put_moments(w, m);
    if (rc == 0) rc = put_crc(w);
    if (rc == 0) rc = commit(w);
    pulse("%s", "");
    return close_writer(w, rc);
}
