/* Parses the index of a TensorFlow checkpoint. Nothing in it is trusted: no length may reach beyond what contains it. */
#include <stdlib.h>
#include <string.h>
#include "base/binfile.h"
#include "base/crc32.h"
#include "base/error.h"
#include "files/tfindex.h"

enum { FOOTER = 48, TRAILER = 5, MOST_BYTES = 1 << 22 };
#define MAGIC 0xdb4775248b80fb57u

typedef struct Span {
    const unsigned char *at, *end;
} Span;

typedef struct Reader {
    const char *path;
    Span file;
    TfIndex *index;
    Crc32 crc;
    unsigned char
        key[TF_NAME]; /* the last key that was read; key_size is its true length, of which TF_NAME bytes are kept */
    int64_t key_size;
} Reader;

static int damaged(const Reader *r, const char *what, const unsigned char *at) {
    return llmc_fail(LLMC_EFORMAT,
                     "%s is damaged at byte %lld: %s; copy it again, or take it away to go by the size of the data",
                     r->path, (long long)(at - r->file.at), what);
}

/* ---- numbers ---- */

static uint32_t read32(const unsigned char *p) {
    uint32_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

uint32_t tf_unmask(uint32_t crc) {
    const uint32_t turned = crc - 0xa282ead8u;
    return turned >> 17 | turned << 15;
}

/* Reads a varint: 0, or -1 if it does not end or does not fit 63 bits. */
static int varint(Span *s, int64_t *value) {
    uint64_t x = 0;
    for (int shift = 0; shift < 63 && s->at < s->end; shift += 7) {
        const unsigned char byte = *s->at++;
        x |= (uint64_t)(byte & 127) << shift;
        if (byte & 128) continue;
        *value = (int64_t)x;
        return 0;
    }
    return -1;
}

/* Takes the next n bytes as a span of their own; -1 if there are fewer. */
static int take(Span *s, int64_t n, Span *part) {
    if (n < 0 || n > s->end - s->at) return -1;
    *part = (Span){s->at, s->at + n};
    s->at += n;
    return 0;
}

/* ---- protocol buffers ---- */

typedef struct Field {
    int64_t number, value; /* value: a varint, or 32 bits */
    Span bytes;            /* the content of a field that has a length */
} Field;

/* Reads a field: 1, 0 at the end, or -1 if the bytes are no field. */
static int next_field(Span *s, Field *f) {
    int64_t tag, n;
    Span fixed;
    if (s->at == s->end) return 0;
    if (varint(s, &tag) < 0) return -1;
    f->number = tag >> 3, f->value = 0, f->bytes = (Span){s->at, s->at};
    switch (tag & 7) {
    case 0: return varint(s, &f->value) < 0 ? -1 : 1;
    case 1: return take(s, 8, &f->bytes) < 0 ? -1 : 1;
    case 2: return varint(s, &n) < 0 || take(s, n, &f->bytes) < 0 ? -1 : 1;
    case 5:
        if (take(s, 4, &fixed) < 0) return -1;
        f->value = read32(fixed.at);
        return 1;
    default: return -1;
    }
}

/* Reads TensorShapeProto {2 dim {1 size}}. Dimensions that do not fit t->shape are only counted. */
static int read_shape(Span s, TfTensor *t) {
    Field dim, size;
    int more, inner;
    while ((more = next_field(&s, &dim)) > 0) {
        if (dim.number != 2) continue;
        int64_t n = 0;
        while ((inner = next_field(&dim.bytes, &size)) > 0)
            if (size.number == 1) n = size.value;
        if (inner < 0) return -1;
        if (t->rank < TF_RANK) t->shape[t->rank] = n;
        t->rank++;
    }
    return more;
}

/* Reads BundleEntryProto {1 dtype, 2 shape, 3 shard, 4 offset, 5 size, 6 crc32c}. Slices are ignored, because no tensor of
 * GPT-2 has any. */
static int read_tensor(Span s, TfTensor *t) {
    Field f;
    int more;
    while ((more = next_field(&s, &f)) > 0) {
        if (f.number == 2 && read_shape(f.bytes, t) < 0) return -1;
        if (f.number == 1) t->dtype = f.value;
        if (f.number == 3) t->shard = f.value;
        if (f.number == 4) t->offset = f.value;
        if (f.number == 5) t->size = f.value;
        if (f.number == 6) t->crc = (uint32_t)f.value;
    }
    return more;
}

/* Reads BundleHeaderProto {1 shards, 2 endianness}. */
static int read_header(Span s, TfIndex *index) {
    Field f;
    int more;
    while ((more = next_field(&s, &f)) > 0) {
        if (f.number == 1) index->shards = f.value;
        if (f.number == 2) index->endian = f.value;
    }
    return more;
}

/* ---- the table ---- */

static TfTensor *add(TfIndex *index) {
    if (index->n == index->capacity) {
        const int capacity = index->capacity ? 2 * index->capacity : 256;
        TfTensor *tensors = realloc(index->tensors, (size_t)capacity * sizeof *tensors);
        if (!tensors) return NULL;
        index->tensors = tensors, index->capacity = capacity;
    }
    TfTensor *t = &index->tensors[index->n++];
    memset(t, 0, sizeof *t);
    return t;
}

/* Takes an entry of a data block. The one with an empty key is the header, every other is a tensor. */
static int take_entry(Reader *r, Span value) {
    const int64_t kept = r->key_size < TF_NAME ? r->key_size : TF_NAME - 1;
    if (!r->key_size) return read_header(value, r->index) < 0 ? damaged(r, "no header", value.at) : LLMC_OK;
    TfTensor *t = add(r->index);
    CHECK(t, LLMC_ENOMEM, "no memory for the names in %s", r->path);
    memcpy(t->name, r->key, (size_t)kept);
    if (memchr(t->name, 0, (size_t)kept) || (r->index->n > 1 && strcmp(t[-1].name, t->name) >= 0))
        return damaged(r, "names are not sorted", value.at);
    return read_tensor(value, t) < 0 ? damaged(r, "a tensor is not described", value.at) : LLMC_OK;
}

/* Reads one entry. It stores only the end of its key: the `shared` bytes before are those of the last key. */
static int next_entry(Reader *r, Span *s, Span *value) {
    int64_t shared, rest, size;
    Span tail;
    if (varint(s, &shared) < 0 || varint(s, &rest) < 0 || varint(s, &size) < 0 || take(s, rest, &tail) < 0 ||
        take(s, size, value) < 0 || shared > r->key_size)
        return damaged(r, "an entry does not fit its block", s->at);
    for (int64_t i = 0; i < rest && shared + i < TF_NAME; i++) r->key[shared + i] = tail.at[i];
    r->key_size = shared + rest;
    return LLMC_OK;
}

/* Finds the block of a handle {varint offset, size}, without its trailer, and verifies its checksum. */
static int open_block(Reader *r, Span *handle, Span *block) {
    int64_t offset, size;
    const unsigned char *at = handle->at;
    if (varint(handle, &offset) < 0 || varint(handle, &size) < 0)
        return damaged(r, "a block's offset and size are missing", at);
    Span file = r->file, trailer;
    if (take(&file, offset, block) < 0 || take(&file, size, block) < 0 || take(&file, TRAILER, &trailer) < 0)
        return damaged(r, "a block lies outside the file", at);
    if (*trailer.at) return damaged(r, "the block is compressed, which TensorFlow's are not", trailer.at);
    r->crc.value = 0;
    crc32_add(&r->crc, block->at, size + 1);
    if (r->crc.value != tf_unmask(read32(trailer.at + 1))) return damaged(r, "a block's checksum is wrong", block->at);
    const int64_t restarts = size >= 4 ? read32(block->end - 4) : 0;
    if (size < 4 || restarts > (size - 4) / 4) return damaged(r, "a block has no end", block->end);
    block->end -= 4 + 4 * restarts;
    r->key_size = 0;
    return LLMC_OK;
}

static int read_data_block(Reader *r, Span handle) {
    Span block, value;
    TRY(open_block(r, &handle, &block));
    while (block.at < block.end) {
        TRY(next_entry(r, &block, &value));
        TRY(take_entry(r, value));
    }
    return LLMC_OK;
}

static int read_table(Reader *r) {
    const unsigned char *footer = r->file.end - FOOTER;
    Span handles = {footer, r->file.end - 8}, blocks, value;
    int64_t ignored;
    uint64_t magic;
    memcpy(&magic, r->file.end - 8, sizeof magic);
    if (magic != MAGIC) return damaged(r, "it is not TensorFlow's index", r->file.end - 8);
    if (varint(&handles, &ignored) < 0 || varint(&handles, &ignored) < 0) return damaged(r, "no footer", footer);
    TRY(open_block(r, &handles, &blocks));
    while (blocks.at < blocks.end) {
        TRY(next_entry(r, &blocks, &value));
        const int64_t key_size = r->key_size; /* the data block uses r->key for its own keys */
        unsigned char key[TF_NAME];
        memcpy(key, r->key, sizeof key);
        TRY(read_data_block(r, value));
        memcpy(r->key, key, sizeof key);
        r->key_size = key_size;
    }
    return LLMC_OK;
}

/* ---- the file ---- */

static int read_file(Reader *r, const BinFile *file) {
    CHECK(file->size >= FOOTER && file->size <= MOST_BYTES, LLMC_EFORMAT,
          "%s: an index has %d to %d bytes, found %lld; copy it again", r->path, FOOTER, MOST_BYTES,
          (long long)file->size);
    unsigned char *bytes = malloc((size_t)file->size);
    CHECK(bytes, LLMC_ENOMEM, "no memory to read %s", r->path);
    r->file = (Span){bytes, bytes + file->size};
    int rc = binfile_read(file, bytes, file->size, 0);
    if (rc == 0) rc = read_table(r);
    free(bytes);
    return rc;
}

int tfindex_read(TfIndex *index, const char *path) {
    BinFile file;
    memset(index, 0, sizeof *index);
    TRY(binfile_open(&file, path));
    Reader *r = calloc(1, sizeof *r);
    int rc = r ? LLMC_OK : llmc_fail(LLMC_ENOMEM, "no memory to read %s", path);
    if (r) {
        r->path = path, r->index = index;
        crc32_start(&r->crc, CRC_CASTAGNOLI);
        rc = read_file(r, &file);
    }
    free(r);
    binfile_close(&file);
    return rc;
}

void tfindex_free(TfIndex *index) { free(index->tensors); }

static int by_name(const void *name, const void *tensor) { return strcmp(name, ((const TfTensor *)tensor)->name); }

TfTensor *tfindex_find(const TfIndex *index, const char *name) {
    if (!index->n) return NULL;
    return bsearch(name, index->tensors, (size_t)index->n, sizeof *index->tensors, by_name);
}
