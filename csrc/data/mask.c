/* Reads a loss mask, and checks that it belongs to its token file. */
#include "data/mask.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/crc32.h"
#include "base/error.h"
#include "base/pulse.h"

#define AGAIN "prepare the data again with python -m pyllmc.prepro, or remove the mask to learn every token"

static int crc_of_file(const BinFile *f, uint32_t *value) {
    enum { BLOCK = 1 << 18 };
    Crc32 crc;
    Share told = {.what = "checking", .path = f->path, .all = f->size, .percent = -1};
    char *block = malloc(BLOCK);
    int rc = block ? LLMC_OK : llmc_fail(LLMC_ENOMEM, "no memory to check %s", f->path);
    crc32_start(&crc, CRC_ZLIB);
    for (int64_t at = 0; rc == 0 && at < f->size; at += BLOCK) {
        const int64_t n = f->size - at < BLOCK ? f->size - at : BLOCK;
        rc = binfile_read(f, block, n, at);
        if (rc == 0) crc32_add(&crc, block, n), rc = pulse_share(&told, n);
    }
    free(block);
    *value = crc.value;
    return rc;
}

static int check_header(const BinFile *f, const BinFile *tokens, int64_t n, uint32_t *crc_of_bits) {
    unsigned char head[MASK_HEADER];
    int32_t magic, version;
    int64_t count;
    uint32_t expected, found;
    CHECK(f->size >= MASK_HEADER, LLMC_EFORMAT, "%s is truncated: it has %lld bytes; " AGAIN, f->path,
          (long long)f->size);
    TRY(binfile_read(f, head, MASK_HEADER, 0));
    memcpy(&magic, head, 4), memcpy(&version, head + 4, 4), memcpy(&count, head + 8, 8);
    memcpy(&expected, head + 16, 4), memcpy(crc_of_bits, head + 20, 4);
    CHECK(magic == MASK_MAGIC && version == MASK_VERSION, LLMC_EFORMAT,
          "%s is no loss mask: expected magic %d and version %d, found %d and %d; " AGAIN, f->path, MASK_MAGIC,
          MASK_VERSION, magic, version);
    CHECK(count == n, LLMC_EFORMAT, "%s is the mask of %lld tokens, and %s has %lld; " AGAIN, f->path, (long long)count,
          tokens->path, (long long)n);
    CHECK(f->size == MASK_HEADER + (n + 7) / 8, LLMC_EFORMAT,
          "%s: expected %lld bytes for %lld tokens, found %lld; " AGAIN, f->path,
          (long long)(MASK_HEADER + (n + 7) / 8), (long long)n, (long long)f->size);
    TRY(crc_of_file(tokens, &found));
    CHECK(found == expected, LLMC_EFORMAT,
          "%s is the mask of other tokens: it expects a file of checksum %08x, and %s has %08x; " AGAIN, f->path,
          (unsigned)expected, tokens->path, (unsigned)found);
    return LLMC_OK;
}

static int read_bits(Mask *mask, const BinFile *f, int64_t n, uint32_t expected) {
    const int64_t bytes = (n + 7) / 8;
    Crc32 crc;
    mask->bits = malloc((size_t)bytes + 1);
    CHECK(mask->bits, LLMC_ENOMEM, "no memory for the %lld bytes of %s", (long long)bytes, f->path);
    TRY(binfile_read(f, mask->bits, bytes, MASK_HEADER));
    crc32_start(&crc, CRC_ZLIB);
    crc32_add(&crc, mask->bits, bytes);
    CHECK(crc.value == expected, LLMC_EFORMAT, "%s is damaged: expected checksum %08x, found %08x; " AGAIN, f->path,
          (unsigned)expected, (unsigned)crc.value);
    for (int64_t i = 1; i < n; i++) mask->learnt += mask_at(mask, i);
    return LLMC_OK;
}

static int open_mask(Mask *mask, const char *path, const BinFile *tokens, int64_t n) {
    BinFile f;
    uint32_t crc_of_bits = 0;
    if (access(path, F_OK) < 0) return LLMC_OK;
    TRY(binfile_open(&f, path));
    int rc = check_header(&f, tokens, n, &crc_of_bits);
    if (rc == 0) rc = read_bits(mask, &f, n, crc_of_bits);
    binfile_close(&f);
    return rc;
}

int mask_open(Mask *mask, const BinFile *tokens, int64_t n) {
    const size_t size = strlen(tokens->path) + sizeof ".mask";
    char *path = malloc(size);
    CHECK(path, LLMC_ENOMEM, "no memory for the path of a mask");
    snprintf(path, size, "%s.mask", tokens->path);
    const int rc = open_mask(mask, path, tokens, n);
    free(path);
    return rc;
}

void mask_free(Mask *mask) {
    free(mask->bits);
    mask->bits = NULL;
}
