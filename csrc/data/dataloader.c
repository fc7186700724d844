/* Batches from token files. The order of windows follows from a seed and one number, the position, so a resumed run
 * needs nothing else. Windows are read with pread. A mapping would not be faster at these sizes, because a window takes
 * a few microseconds and a training step far longer; and it would crash the process when a file shrinks. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include "base/binfile.h"
#include "base/error.h"
#include "data/mask.h"
#include "data/shards.h"
#include "base/pulse.h"
#include "data/rawids.h"
#include "base/rng.h"
#include "data/windows.h"

typedef struct Shard {
    const char *path;
    int64_t start, ntok;  /* where the ids begin in the file, and how many there are */
    int64_t first_window; /* its first window's number in the epoch */
    int64_t *starts;      /* where its windows begin; NULL: every T ids */
    Mask mask;            /* if it has one, its windows are those of windows_part */
    int width, raw;       /* width: bytes of an id; raw: the file has no header */
} Shard;

enum { OPEN_FILES = 64 };

struct llmc_loader {
    int B, T, shuffle, rank, world, V, eot, pack;
    int64_t seed, position, windows, tokens;
    int64_t learnt, cut; /* targets that are learnt; documents that a window cuts, in shards with a mask */
    int masked;          /* at least one shard has a mask */
    Shards files;
    Shard *shards;            /* one for each of `files` */
    BinFile open[OPEN_FILES]; /* shard s keeps its file in slot s % OPEN_FILES */
    int open_shard[OPEN_FILES];
    void *ids; /* one window, as it lies in the file */
};

/* ---- token formats ---- */

static const struct Format {
    int32_t magic, version;
    int width;
} formats[] = {{UINT16_MAGIC, 1, 2}, {UINT32_MAGIC, 7, 4}};

static int inspect_headered(Shard *shard, const BinFile *f, const struct Format *format) {
    int32_t head[3];
    const char *path = f->path;
    CHECK(f->size >= HEADER_BYTES, LLMC_EFORMAT,
          "%s is truncated: expected a header of %d bytes, found %lld; write it again", path, HEADER_BYTES,
          (long long)f->size);
    TRY(binfile_read(f, head, sizeof head, 0));
    CHECK(head[1] == format->version, LLMC_EFORMAT, "%s: expected version %d, found %d; write it again", path,
          format->version, head[1]);
    CHECK(head[2] > 0, LLMC_EFORMAT, "%s: its header counts %d tokens; write it again", path, head[2]);
    const int64_t expected = HEADER_BYTES + (int64_t)head[2] * format->width;
    CHECK(f->size == expected, LLMC_EFORMAT, "%s %s: expected %lld bytes for %d tokens, found %lld; write it again",
          path, f->size < expected ? "is truncated" : "has trailing bytes", (long long)expected, head[2],
          (long long)f->size);
    shard->start = HEADER_BYTES, shard->ntok = head[2], shard->width = format->width;
    return LLMC_OK;
}

#define CONVERT "python -m pyllmc.prepro --input %.*s makes a data set"

/* Refuses a file that is not an int32 stream. Without a header only its length and the ids themselves tell. */
static int refuse_other_raw(const BinFile *f, int32_t magic) {
    unsigned char head[RAW_SAMPLE];
    const int64_t n = f->size < RAW_SAMPLE ? f->size : RAW_SAMPLE;
    TRY(binfile_read(f, head, n, 0));
    const char *kind = rawids_kind(head, n, f->size), *slash = strrchr(f->path, '/');
    CHECK(strcmp(kind, "uint16"), LLMC_EFORMAT,
          "%s: it has no header and looks like uint16 ids, as nanoGPT writes them: " CONVERT, f->path,
          slash ? (int)(slash - f->path) : 1, slash ? f->path : ".");
    CHECK(*kind, LLMC_EFORMAT,
          "%s is no token file: expected magic %d or %d, found %d, and %lld bytes are no raw int32 stream "
          "either; " CONVERT,
          f->path, UINT16_MAGIC, UINT32_MAGIC, magic, (long long)f->size, 4, "TEXT");
    CHECK(!strcmp(kind, "int32"), LLMC_EFORMAT,
          "%s is no token file: expected magic %d or %d, found %d, and %s; " CONVERT, f->path, UINT16_MAGIC,
          UINT32_MAGIC, magic, kind, 4, "TEXT");
    return LLMC_OK;
}

/* Accepts llm.c's first format: int32 ids from the first byte on. Its length and a sample of its ids are checked here,
 * each id when it is read. */
static int inspect_raw(Shard *shard, const BinFile *f, int32_t magic) {
    const char *name = magic_name(magic);
    CHECK(!name, LLMC_EFORMAT,
          "%s is a %s file, not a little-endian token file: pass the tokens that the data "
          "preparation wrote",
          f->path, name);
    TRY(refuse_other_raw(f, magic));
    shard->start = 0, shard->ntok = f->size / 4, shard->width = 4, shard->raw = 1;
    return LLMC_OK;
}

static int inspect(Shard *shard, const BinFile *f) {
    int32_t magic = 0;
    CHECK(f->size > 0, LLMC_EFORMAT, "%s is empty: a token file was expected; write it again", f->path);
    TRY(binfile_read(f, &magic, f->size < 4 ? f->size : 4, 0));
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (magic == formats[i].magic) return inspect_headered(shard, f, &formats[i]);
    return inspect_raw(shard, f, magic);
}

/* ---- open and close ---- */

static int count_windows(llmc_loader *d, Shard *shard, const BinFile *f, int64_t *n) {
    TRY(inspect(shard, f));
    TRY(mask_open(&shard->mask, f, shard->ntok));
    const IdRange ids = {f, shard->start, shard->ntok, shard->width};
    const int masked = shard->mask.bits && shard->ntok > 1;
    *n = (shard->ntok - 1) / d->T;
    if (!masked && (d->eot < 0 || !*n)) return LLMC_OK;
    TRY(pulse("looking for documents in %s", shard->path));
    if (masked) {
        int64_t cut = 0;
        TRY(windows_part(&shard->starts, n, &cut, &ids, d->T, d->eot, d->pack));
        return d->cut += cut, LLMC_OK;
    }
    return windows_find(&shard->starts, n, &ids, d->T, d->eot);
}

static int check_something_is_learnt(const llmc_loader *d) {
    CHECK(d->learnt, LLMC_EINVAL,
          "%s%s: the loss mask lets no token be learnt: prepare the data again with python -m pyllmc.prepro",
          d->shards[0].path, d->files.n > 1 ? " and the others" : "");
    return LLMC_OK;
}

static int inspect_shards(llmc_loader *d) {
    int64_t longest = 0;
    for (int i = 0; i < d->files.n; i++) {
        Shard *shard = &d->shards[i];
        int64_t n;
        BinFile f;
        shard->path = d->files.names[i];
        TRY(binfile_open(&f, shard->path));
        const int rc = count_windows(d, shard, &f, &n);
        binfile_close(&f);
        TRY(rc);
        shard->first_window = d->windows;
        d->windows += n;
        d->tokens += shard->ntok;
        d->learnt += shard->mask.bits ? shard->mask.learnt : shard->ntok - 1;
        d->masked |= shard->mask.bits != NULL;
        if (shard->ntok > longest) longest = shard->ntok;
    }
    CHECK(d->windows, LLMC_EINVAL,
          "%s: the longest of %d token file%s has %lld token%s, but T=%d needs %d: use more data or a "
          "smaller T",
          d->shards[0].path, d->files.n, s_of(d->files.n), (long long)longest, s_of(longest), d->T, d->T + 1);
    return check_something_is_learnt(d);
}

static int loader_open(llmc_loader *d, const char *paths, const char *split) {
    TRY(shards_find(&d->files, paths, split));
    TRY(shards_check(&d->files, paths, split));
    d->shards = calloc((size_t)d->files.n, sizeof *d->shards);
    CHECK(d->shards, LLMC_ENOMEM, "no memory for a list of %d token files", d->files.n);
    TRY(inspect_shards(d));
    d->ids = malloc(((size_t)d->T + 1) * 4); /* a file holds so many ids, so T is not absurdly large */
    CHECK(d->ids, LLMC_ENOMEM, "no memory for windows of %d tokens", d->T + 1);
    return LLMC_OK;
}

static int open_loader(llmc_loader **out, const char *paths, const char *split, int B, int T, int shuffle, int64_t seed,
                       int rank, int world, int V, int eot, int pack) {
    *out = NULL;
    CHECK(B >= 1 && T >= 1 && T < INT32_MAX, LLMC_EINVAL, "B=%d T=%d: both must be at least 1", B, T);
    CHECK(rank >= 0 && rank < world, LLMC_EINVAL, "rank %d of %d: expected 0 <= rank < world", rank, world);
    CHECK(V >= 0, LLMC_EINVAL, "V=%d: a vocabulary has at least one token (0: do not check)", V);
    CHECK(eot >= -1, LLMC_EINVAL, "eot=%d: expected an id, or -1 to look for no documents", eot);
    llmc_loader *d = calloc(1, sizeof *d);
    CHECK(d, LLMC_ENOMEM, "no memory for a data loader");
    *d = (llmc_loader){.B = B,
                       .T = T,
                       .shuffle = shuffle,
                       .rank = rank,
                       .world = world,
                       .V = V,
                       .eot = eot,
                       .pack = pack,
                       .seed = seed};
    for (int i = 0; i < OPEN_FILES; i++) d->open_shard[i] = d->open[i].fd = -1;
    const int rc = loader_open(d, paths, split);
    pulse("%s", "");
    if (rc < 0) llmc_loader_free(d);
    else *out = d;
    return rc;
}

int llmc_loader_open(llmc_loader **out, const char *paths, const char *split, int B, int T, int shuffle, int64_t seed,
                     int rank, int world, int V, int eot) {
    return open_loader(out, paths, split, B, T, shuffle, seed, rank, world, V, eot, 0);
}
int llmc_loader_open_packed(llmc_loader **out, const char *paths, const char *split, int B, int T, int shuffle,
                            int64_t seed, int rank, int world, int V, int eot) {
    return open_loader(out, paths, split, B, T, shuffle, seed, rank, world, V, eot, 1);
}

void llmc_loader_free(llmc_loader *d) {
    if (!d) return;
    for (int i = 0; i < OPEN_FILES; i++) binfile_close(&d->open[i]);
    for (int i = 0; d->shards && i < d->files.n; i++) free(d->shards[i].starts), mask_free(&d->shards[i].mask);
    free(d->shards);
    shards_free(&d->files);
    free(d->ids);
    free(d);
}

/* ---- the order of windows ---- */

int64_t llmc_permute(int64_t i, int64_t N, int64_t seed, int64_t epoch) {
    enum { ROUNDS = 4 };
    CHECK(i >= 0 && i < N, LLMC_EINVAL, "index %lld is outside [0, %lld)", (long long)i, (long long)N);
    int h = 1;
    while (h < 31 && INT64_C(1) << 2 * h < N) h++;
    const uint64_t mask = (UINT64_C(1) << h) - 1, key = mix64((uint64_t)seed * GOLDEN + (uint64_t)epoch + 1);
    uint64_t x = (uint64_t)i;
    do {
        uint64_t left = x >> h, right = x & mask;
        for (uint64_t r = 0; r < ROUNDS; r++) {
            const uint64_t mixed = left ^ (mix64(right + key + r * GOLDEN) & mask);
            left = right, right = mixed;
        }
        x = left << h | right;
    } while (x >= (uint64_t)N);
    return (int64_t)x;
}

/* The shard that holds a window. Shards without windows are passed over, because the next one begins with the same
 * number. */
static int shard_of(const llmc_loader *d, int64_t window) {
    int low = 0, high = d->files.n;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (d->shards[middle].first_window <= window) low = middle;
        else high = middle;
    }
    return low;
}

/* ---- reading ---- */

static int open_shard(llmc_loader *d, int s, const BinFile **file) {
    BinFile *f = &d->open[s % OPEN_FILES];
    *file = f;
    if (d->open_shard[s % OPEN_FILES] == s) return LLMC_OK;
    binfile_close(f);
    d->open_shard[s % OPEN_FILES] = -1;
    TRY(binfile_open(f, d->shards[s].path));
    const int64_t expected = d->shards[s].start + d->shards[s].ntok * d->shards[s].width;
    CHECK(f->size == expected, LLMC_EFORMAT, "%s changed while it was in use: it had %lld bytes, now %lld; start again",
          f->path, (long long)expected, (long long)f->size);
    d->open_shard[s % OPEN_FILES] = s;
    return LLMC_OK;
}

/* Widens the ids of a window to int32. An unsigned id that int32 cannot hold becomes negative. */
static void widen(int *to, const void *from, int width, int64_t n) {
    if (width == 4) memcpy(to, from, (size_t)n * 4);
    else
        for (int64_t i = 0; i < n; i++) to[i] = ((const uint16_t *)from)[i];
}

static int check_ids(const llmc_loader *d, const Shard *shard, const int *ids, int64_t n, int64_t first) {
    const int64_t limit = d->V ? d->V : INT64_C(1) << 31;
    for (int64_t i = 0; i < n; i++)
        CHECK(ids[i] >= 0 && ids[i] < limit, LLMC_EFORMAT,
              "%s: id %lld at token %lld is outside [0, %lld)%s: the data and "
              "the model have different vocabularies",
              shard->path, shard->raw ? (long long)ids[i] : (long long)(uint32_t)ids[i], (long long)(first + i),
              (long long)limit, shard->raw ? " (read as raw int32: is it a token file?)" : "");
    return LLMC_OK;
}

/* Window i of a shard with a mask. What lies behind its last target is padding, which nothing learns from: the documents that
 * follow, or the window's first id where the file ends. */
static int load_masked(llmc_loader *d, const Shard *shard, const BinFile *f, int64_t i, int *inputs, int *targets) {
    const int64_t first = shard->starts[i], last = shard->starts[i + 1], left = shard->ntok - first;
    const int64_t n = left < d->T ? left : d->T, m = left - 1 < n ? left - 1 : n; /* inputs and targets in the file */
    TRY(binfile_read(f, d->ids, (m + 1) * shard->width, shard->start + first * shard->width));
    widen(inputs, d->ids, shard->width, n);
    widen(targets, (char *)d->ids + shard->width, shard->width, m);
    TRY(check_ids(d, shard, inputs, n, first));
    TRY(check_ids(d, shard, targets + m - 1, 1, first + m));
    for (int64_t t = n; t < d->T; t++) inputs[t] = inputs[0];
    for (int64_t t = 0; t < d->T; t++)
        if (first + 1 + t > last || !mask_at(&shard->mask, first + 1 + t)) targets[t] = -1;
    return LLMC_OK;
}

static int load_window(llmc_loader *d, int64_t window, int *inputs, int *targets) {
    const int s = shard_of(d, window);
    const Shard *shard = &d->shards[s];
    const int64_t i = window - shard->first_window, first = shard->starts ? shard->starts[i] : i * d->T;
    const BinFile *f;
    TRY(open_shard(d, s, &f));
    if (shard->mask.bits) return load_masked(d, shard, f, i, inputs, targets);
    TRY(binfile_read(f, d->ids, ((int64_t)d->T + 1) * shard->width, shard->start + first * shard->width));
    widen(inputs, d->ids, shard->width, d->T);
    widen(targets, (char *)d->ids + shard->width, shard->width, d->T);
    TRY(check_ids(d, shard, inputs, d->T, first));
    return check_ids(d, shard, targets + d->T - 1, 1, first + d->T);
}

int llmc_loader_next(llmc_loader *d, int *inputs, int *targets) {
    const int64_t N = d->windows, first = d->position + (int64_t)d->rank * d->B;
    for (int b = 0; b < d->B; b++) {
        const int64_t epoch = (first + b) / N, i = (first + b) % N, at = (int64_t)b * d->T;
        TRY(load_window(d, d->shuffle ? llmc_permute(i, N, d->seed, epoch) : i, inputs + at, targets + at));
    }
    d->position += (int64_t)d->world * d->B;
    return LLMC_OK;
}

int64_t llmc_loader_position(const llmc_loader *d) { return d->position; }
int llmc_loader_set_position(llmc_loader *d, int64_t position) {
    CHECK(position >= 0 && position < INT64_MAX / 4, LLMC_EINVAL, "data position %lld: it counts windows from 0",
          (long long)position);
    d->position = position;
    return LLMC_OK;
}
int64_t llmc_loader_windows(const llmc_loader *d) { return d->windows; }
int64_t llmc_loader_tokens(const llmc_loader *d) { return d->tokens; }
int llmc_loader_num_shards(const llmc_loader *d) { return d->files.n; }
int64_t llmc_loader_learnt(const llmc_loader *d) { return d->masked ? d->learnt : -1; }
int64_t llmc_loader_cut(const llmc_loader *d) { return d->cut; }
