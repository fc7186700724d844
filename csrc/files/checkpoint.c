/* Writes a checkpoint, whose format is in llmcfile.h. A crash, a full disk or a kill at any moment leaves the old file or the
 * new one, whole, because the new one is written beside the old, flushed to the disk and then renamed. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/crc32.h"
#include "base/error.h"
#include "model/team.h"
#include "files/adapterfile.h"
#include "files/modelfile.h"
#include "files/state.h"
#include "base/pulse.h"

typedef struct Output {
    const char *path;
    char *tmp;
    int fd;
    Crc32 crc;
    Share share;
    float x[AT_A_TIME];
} Output;

static int system_error(const Output *o, const char *what) {
    const int error = errno;
    return llmc_fail(LLMC_EIO, "%s cannot be %s: %s%s. No half-written file is left", o->path, what, strerror(error),
                     remedy_for(error));
}

static int put(Output *o, const void *data, int64_t n) {
    crc32_add(&o->crc, data, n);
    for (int64_t done = 0; done < n;) {
        const ssize_t wrote = write(o->fd, (const char *)data + done, (size_t)(n - done));
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) return system_error(o, "written");
        done += wrote;
    }
    return LLMC_OK;
}

/* ---- the contents, in order ---- */

static int put_header(Output *o, const llmc_model *m, int with_moments) {
    const llmc_config *c = &m->config;
    const int plain = m->room.outer && with_moments ? OUTER_VERSION : checkpoint_version(c);
    const int version = m->room.lora_rank ? ADAPTER_VERSION : plain;
    int32_t header[HEADER_INTS] = {MODEL_MAGIC, version, c->maxT, c->V, c->L, c->NH, c->C, c->Vp, c->window};
    char text[ADAPTER_TEXT];
    if (version != 3) {
        header[9] = c->untied;
        memcpy(header + PATTERN_AT, c->pattern, sizeof c->pattern);
    }
    if (version != ADAPTER_VERSION) return put(o, header, sizeof header);
    TRY(header[TEXT_AT] = adapterfile_text(m, text));
    TRY(put(o, header, sizeof header));
    return put(o, text, header[TEXT_AT]);
}

/* Writes the n floats of o->x. */
static int put_part(Output *o, const char *what, const char *name, int64_t n) {
    const int64_t bad = gpt2_find_nonfinite(o->x, n);
    CHECK(bad < 0, LLMC_ENUMERIC,
          "%s is not written: the %s of %s hold %g; go back to the last checkpoint, with a lower lr", o->path, what,
          name, o->x[bad]);
    TRY(put(o, o->x, n * 4));
    pulse_share(&o->share, n); /* its answer is ignored: a stop waits until the file is written */
    return LLMC_OK;
}

/* Writes n floats of a block, which begin at element `at`. */
static int put_floats(Output *o, llmc_model *m, const char *what, const char *name, const float *block, int64_t at,
                      int64_t n) {
    for (int64_t i = 0; i < n; i += AT_A_TIME) {
        const int64_t turn = next_turn(n - i);
        TRY(gpt2_get(m, o->x, block, at + i, turn));
        TRY(put_part(o, what, name, turn));
    }
    return LLMC_OK;
}

/* Writes what is trained of a block: parameters, or the moments, which lie as the gradients do. */
static int put_trained(Output *o, llmc_model *m, const char *what, const float *block) {
    for (int i = 0; i < NUM_TRAINABLE; i++)
        for (int l = 0; l < layers_stored(&m->layout.table[i]); l++) {
            const llmc_tensor *t = &m->layout.table[i];
            const int64_t g = gradient_at(m, i, l), at = block == m->params ? t->offset + l * t->stride : g;
            if (g >= 0) TRY(put_floats(o, m, what, t->name, block, at, t->size));
        }
    return LLMC_OK;
}

static int put_weights(Output *o, llmc_model *m) {
    if (m->room.lora_rank) return put_trained(o, m, "weights", m->params);
    for (int i = 0; i < NUM_PARAM_TENSORS; i++) {
        const llmc_tensor *t = &m->layout.table[i];
        TRY(put_floats(o, m, "weights", t->name, m->params, t->offset, t->size * layers_stored(t)));
    }
    return LLMC_OK;
}

static int put_section_header(Output *o, int section, int64_t size) {
    TRY(put(o, section_tags[section], TAG_BYTES));
    return put(o, &size, sizeof size);
}

static int put_section(Output *o, int section, const void *data, int64_t size) {
    if (!data || !size) return LLMC_OK;
    TRY(put_section_header(o, section, size));
    return put(o, data, size);
}

/* Writes the caller's lines, after a line with the model's step if they do not say it, and one with what is trained. */
static int put_state(Output *o, const char *state, const llmc_model *m) {
    char line[STATE_TEXT / 2] = "";
    if (!state) state = "";
    if (!state_value(state, "step")) snprintf(line, sizeof line, "step=%lld\n", (long long)m->step);
    const size_t n = strlen(line);
    if (*m->train_only) snprintf(line + n, sizeof line - n, "train_only=%s\n", m->train_only);
    const int64_t size = (int64_t)(strlen(line) + strlen(state));
    CHECK(size < STATE_TEXT, LLMC_EINVAL, "the state of %s has %lld bytes: a checkpoint holds at most %d of it",
          o->path, (long long)size, STATE_TEXT - 1);
    TRY(put_section_header(o, STATE, size));
    TRY(put(o, line, (int64_t)strlen(line)));
    return put(o, state, (int64_t)strlen(state));
}

/* ---- moments of other processes: shared out by ZeRO-1, or apart by DiLoCo ---- */

/* Moves n floats of a block of rank `from`, from element `at` on, to rank 0, into x: both call this, and no other rank does. */
static int move_part(llmc_model *m, float *x, const float *block, int64_t at, int64_t n, int from) {
    const int own = m->team->rank == from;
    if (own) TRY(gpt2_get(m, x, block, at, n));
    if (own && !from) return LLMC_OK;
    return m->team->fetch(m->team->self, x, n, from) == 0 ? LLMC_OK : team_lost(m->team);
}

/* Takes n elements of a block, the first of which is number `at`, from their rank and writes them. After an error `rc` of the
 * file they are only taken, because the other processes go on sending. */
static int put_share(Output *o, llmc_model *m, const float *block, int64_t at, int64_t n, int from, int rc) {
    for (int64_t i = 0; i < n; i += AT_A_TIME) {
        const int64_t turn = next_turn(n - i);
        const int moved = move_part(m, o->x, block, at + i, turn, from);
        if (moved < 0) return rc < 0 ? rc : moved;
        if (rc == 0) rc = put_part(o, "moments", "a process", turn);
    }
    return rc;
}

static int put_shares(Output *o, llmc_model *m) {
    int rc = LLMC_OK;
    const int64_t each = moments_each(m->layout.num_trained, &m->room);
    const float *const blocks[] = {m->m, m->v};
    for (int b = 0; b < 2; b++) {
        for (int rank = 0; rank < m->room.shards; rank++) rc = put_share(o, m, blocks[b], 0, each, rank, rc);
        rc = put_share(o, m, blocks[b], each, m->layout.num_moments - each, 0, rc);
    }
    return rc;
}

/* The blocks of OUTER: the outer step's momentum, and two for each process but rank 0. */
static int64_t outer_blocks(const llmc_model *m) { return 2 * (int64_t)(m->team ? m->team->world : 1) - 1; }

/* Writes what OUTER holds. After an error `rc` the moments are only taken, as in put_share. */
static int put_outer(Output *o, llmc_model *m, int rc) {
    const int64_t n = m->layout.num_trained;
    const float *const blocks[] = {m->m, m->v};
    if (rc == 0) rc = put_section_header(o, OUTER, outer_blocks(m) * n * 4);
    if (rc == 0) rc = put_floats(o, m, "momentum", "the outer step", team_momentum(m), 0, n);
    for (int rank = 1; m->team && rank < m->team->world; rank++)
        for (int b = 0; b < 2; b++) rc = put_share(o, m, blocks[b], 0, n, rank, rc);
    return rc;
}

int llmc_checkpoint_send(llmc_model *m) {
    const int64_t each = moments_each(m->layout.num_trained, &m->room);
    const float *const blocks[] = {m->m, m->v};
    CHECK(team_has_moments(m), LLMC_EINVAL, "this model's moments are those of rank 0: there is nothing to send");
    float *x = malloc(AT_A_TIME * sizeof *x);
    int rc = team_ready(m, x ? LLMC_OK : llmc_fail(LLMC_ENOMEM, "no memory to send moments"));
    for (int b = 0; b < 2; b++)
        for (int64_t i = 0; rc == 0 && i < each; i += AT_A_TIME)
            rc = move_part(m, x, blocks[b], i, next_turn(each - i), m->team->rank);
    free(x);
    return rc;
}

static int put_moments(Output *o, llmc_model *m) {
    if (m->room.shards > 1) return put_shares(o, m);
    TRY(put_trained(o, m, "moments", m->m));
    return put_trained(o, m, "moments", m->v);
}

static int put_all_moments(Output *o, llmc_model *m) {
    const int rc = put_moments(o, m);
    return m->room.outer ? put_outer(o, m, rc) : rc;
}

static int put_crc(Output *o) {
    const uint32_t crc = o->crc.value;
    return put_section(o, CRC32, &crc, sizeof crc);
}

/* ---- all or nothing ---- */

static int flush_folder(const Output *o) {
    const char *slash = strrchr(o->path, '/');
    char *folder = slash ? strndup(o->path, (size_t)(slash - o->path) + 1) : strdup(".");
    CHECK(folder, LLMC_ENOMEM, "no memory for the path %s", o->path);
    const int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(folder);
    int rc = fd < 0 ? -1 : fsync(fd);
    if (rc < 0 && errno == EINVAL) rc = 0; /* some network file systems cannot flush folders */
    if (rc < 0) rc = system_error(o, "made sure to be on the disk");
    if (fd >= 0) close(fd);
    return rc;
}

static int commit(Output *o) {
    if (fsync(o->fd) < 0) return system_error(o, "flushed to the disk");
    const int fd = o->fd;
    o->fd = -1;
    if (close(fd) < 0) return system_error(o, "closed");
    if (rename(o->tmp, o->path) < 0) return system_error(o, "put in place");
    return flush_folder(o);
}

static int open_beside(Output *o, const char *path) {
    const size_t size = strlen(path) + sizeof ".tmp";
    o->path = path, o->fd = -1;
    CHECK(*path, LLMC_EINVAL, "a checkpoint needs a file name");
    o->tmp = malloc(size);
    CHECK(o->tmp, LLMC_ENOMEM, "no memory for the path %s", path);
    snprintf(o->tmp, size, "%s.tmp", path);
    unlink(o->tmp); /* a killed process may have left one, and a link must not lead the writing elsewhere */
    o->fd = open(o->tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (o->fd < 0) return system_error(o, "written");
    crc32_start(&o->crc, CRC_ZLIB);
    o->share = (Share){.what = "saving", .path = path, .percent = -1};
    return LLMC_OK;
}

static int close_output(Output *o, int rc) {
    if (o->fd >= 0) close(o->fd);
    if (o->tmp && rc < 0) unlink(o->tmp); /* after the rename it is gone */
    free(o->tmp);
    free(o);
    return rc;
}

/* Opens the file and writes what comes before the moments. */
static int put_beginning(Output *o, llmc_model *m, const char *path, const char *options, const char *state,
                         const void *tokenizer, int64_t tokenizer_size, int with_moments) {
    TRY(open_beside(o, path));
    o->share.all = (m->room.lora_rank ? m->layout.num_trained : m->layout.num_params) +
                   (with_moments ? 2 * m->layout.num_trained : 0) +
                   (with_moments && m->room.outer ? outer_blocks(m) * m->layout.num_trained : 0);
    TRY(put_header(o, m, with_moments));
    TRY(put_weights(o, m));
    TRY(put_section(o, OPTIONS, options, options ? (int64_t)strlen(options) : 0));
    TRY(put_state(o, state, m));
    TRY(put_section(o, TOKENIZR, tokenizer, tokenizer_size));
    return with_moments ? put_section_header(o, MOMENTS, 2 * m->layout.num_trained * 4) : LLMC_OK;
}

/* Whatever fails before the moments are sent, the processes that would send them learn it. */
int llmc_checkpoint_save(llmc_model *m, const char *path, const char *options, const char *state, const void *tokenizer,
                         int64_t tokenizer_size, int with_moments) {
    CHECK(!with_moments || m->room.training, LLMC_EINVAL,
          "this model was made without moments (training=False): save without");
    CHECK(!gpt2_is_compressed(m), LLMC_EINVAL,
          "compressed weights cannot be saved: make the model with weights in fp32");
    Output *o = calloc(1, sizeof *o);
    int rc = o ? LLMC_OK : llmc_fail(LLMC_ENOMEM, "no memory to write %s", path);
    if (o) o->fd = -1;
    if (rc == 0) rc = put_beginning(o, m, path, options, state, tokenizer, tokenizer_size, with_moments);
    if (with_moments && team_has_moments(m)) rc = team_ready(m, rc);
    if (rc == 0 && with_moments) rc = put_all_moments(o, m);
    if (rc == 0) rc = put_crc(o);
    if (rc == 0) rc = commit(o);
    pulse("%s", "");
    return o ? close_output(o, rc) : rc;
}
