/* Reads a file that nobody vouches for, within bounds. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/binfile.h"
#include "base/error.h"

int is_folder(const char *path) {
    struct stat s;
    return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

int is_same_file(const char *a, const char *b) {
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static int measure(BinFile *f) {
    struct stat s;
    CHECK(fstat(f->fd, &s) == 0, LLMC_EIO, "%s cannot be measured: %s", f->path, strerror(errno));
    CHECK(!S_ISDIR(s.st_mode), LLMC_EIO, "%s is a directory: name a file", f->path);
    CHECK(S_ISREG(s.st_mode), LLMC_EIO, "%s is not a regular file: copy its content into one", f->path);
    f->size = s.st_size;
    return LLMC_OK;
}

int binfile_open(BinFile *f, const char *path) {
    f->path = path;
    f->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* opening a pipe must not wait for a writer */
    const char *remedy =
        errno == EMFILE || errno == ENFILE ? remedy_for(errno) : "; check the path and its permissions";
    CHECK(f->fd >= 0, LLMC_EIO, "%s cannot be opened: %s%s", path, strerror(errno), remedy);
    const int rc = measure(f);
    if (rc < 0) binfile_close(f);
    return rc;
}

void binfile_close(BinFile *f) {
    if (f->fd >= 0) close(f->fd);
    f->fd = -1;
}

int binfile_read(const BinFile *f, void *to, int64_t n, int64_t at) {
    for (int64_t done = 0; done < n;) {
        const ssize_t got = pread(f->fd, (char *)to + done, (size_t)(n - done), at + done);
        if (got < 0 && errno == EINTR) continue;
        CHECK(got >= 0, LLMC_EIO, "%s cannot be read at byte %lld: %s", f->path, (long long)(at + done),
              strerror(errno));
        CHECK(got > 0, LLMC_EFORMAT,
              "%s ends at byte %lld, but %lld more are needed: it is truncated, or was changed while "
              "it was read; write it again",
              f->path, (long long)(at + done), (long long)(n - done));
        done += got;
    }
    return LLMC_OK;
}

static const struct Magic {
    int32_t value;
    const char *name;
} magics[] = {{MODEL_MAGIC, "model"},        {20240327, "debug state"},  {TOKENIZER_MAGIC, "tokenizer"},
              {UINT16_MAGIC, "token"},       {UINT32_MAGIC, "token"},    {20240522, "evaluation"},
              {20240527, "optimizer state"}, {20240803, "llama-3 model"}};

const char *magic_name(int32_t magic) {
    for (size_t i = 0; i < sizeof magics / sizeof *magics; i++) {
        if (magics[i].value == magic) return magics[i].name;
        if ((int32_t)__builtin_bswap32((uint32_t)magics[i].value) == magic) return "big-endian";
    }
    return NULL;
}
