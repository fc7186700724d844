/* Ids to text and back, from llm.c's tokenizer.bin: a header (magic, version, n, EOT id or -1, kind), then n pieces
 * {u8 length, bytes}. The kind, 0 in llm.c's own files, says how text becomes ids. EOT is never produced from text. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "binfile.h"
#include "error.h"
#include "rng.h"

enum { UNKNOWN, LONGEST, GPT2, KINDS };
enum { GPT2_V = 50257, MAX_FILE = 1 << 30 };

/* A trie of the pieces in one hash table: the edge (node, byte) leads to a node. Node 0 is the root. */
typedef struct Edge {
    uint64_t key; /* (node << 8 | byte) + 1; 0: free */
    uint32_t node;
} Edge;

struct llmc_tokenizer {
    char *bytes; /* the whole file */
    int64_t size;
    int n, eot, kind;
    uint32_t *start; /* (n) where each piece begins in the file; its length is the byte before */
    Edge *edges;     /* (room), a power of two */
    int *id;         /* (nodes) the piece that ends here, or -1 */
    uint32_t room, nodes;
};

static int length_of(const llmc_tokenizer *k, int id) { return (unsigned char)k->bytes[k->start[id] - 1]; }

/* ---- the trie ---- */

static Edge *edge_of(const llmc_tokenizer *k, uint32_t node, unsigned char byte) {
    const uint64_t key = ((uint64_t)node << 8 | byte) + 1;
    uint32_t slot = (uint32_t)((key * GOLDEN) >> 32) & (k->room - 1);
    while (k->edges[slot].key && k->edges[slot].key != key) slot = (slot + 1) & (k->room - 1);
    return &k->edges[slot];
}

static int add_piece(llmc_tokenizer *k, int id, const char *name) {
    uint32_t node = 0;
    for (int i = 0; i < length_of(k, id); i++) {
        const unsigned char byte = (unsigned char)k->bytes[k->start[id] + (uint32_t)i];
        Edge *edge = edge_of(k, node, byte);
        if (!edge->key) {
            *edge = (Edge){((uint64_t)node << 8 | byte) + 1, k->nodes};
            k->id[k->nodes++] = -1;
        }
        node = edge->node;
    }
    CHECK(k->id[node] < 0, LLMC_EFORMAT, "%s: pieces %d and %d are the same; write it again", name, k->id[node], id);
    k->id[node] = id;
    return LLMC_OK;
}

static int build_trie(llmc_tokenizer *k, const char *name) {
    const uint32_t most = (uint32_t)(k->size - HEADER_BYTES) + 1; /* nodes: one per byte at worst */
    for (k->room = 256; k->room < 2 * most; k->room *= 2) {
    }
    k->edges = calloc(k->room, sizeof *k->edges);
    k->id = malloc(most * sizeof *k->id);
    CHECK(k->edges && k->id, LLMC_ENOMEM, "no memory for the tokenizer %s", name);
    k->id[k->nodes++] = -1;
    for (int id = 0; id < k->n; id++)
        if (id != k->eot) TRY(add_piece(k, id, name));
    return LLMC_OK;
}

/* ---- the file ---- */

static int read_header(llmc_tokenizer *k, const char *name) {
    int32_t head[5];
    CHECK(k->size >= HEADER_BYTES, LLMC_EFORMAT, "%s: expected a header of %d bytes, found %lld; write it again", name,
          HEADER_BYTES, (long long)k->size);
    memcpy(head, k->bytes, sizeof head);
    const char *kind = magic_name(head[0]);
    CHECK(head[0] == TOKENIZER_MAGIC, LLMC_EFORMAT, "%s is %s%s%s, not a tokenizer file: expected magic %d, found %d",
          name, kind ? "a " : "something else", kind ? kind : "", kind ? " file" : "", TOKENIZER_MAGIC, head[0]);
    CHECK(head[1] == 1 || head[1] == 2, LLMC_EFORMAT, "%s: expected version 1 or 2, found %d", name, head[1]);
    k->n = head[2], k->eot = head[3], k->kind = head[4];
    if (head[1] == 1) { /* llm.c's first files are GPT-2's and do not say so */
        CHECK(k->n == GPT2_V, LLMC_EFORMAT, "%s: version 1 has %d pieces, found %d", name, GPT2_V, k->n);
        k->eot = GPT2_V - 1, k->kind = UNKNOWN;
    }
    CHECK(k->n >= 1 && k->n <= k->size / 2, LLMC_EFORMAT, "%s: %d pieces do not fit %lld bytes; write it again", name,
          k->n, (long long)k->size);
    CHECK(k->eot >= -1 && k->eot < k->n, LLMC_EFORMAT, "%s: EOT id %d is outside [0, %d)", name, k->eot, k->n);
    CHECK(k->kind >= 0 && k->kind < KINDS, LLMC_EFORMAT, "%s: expected a kind in 0..%d, found %d", name, KINDS - 1,
          k->kind);
    return LLMC_OK;
}

static int find_pieces(llmc_tokenizer *k, const char *name) {
    k->start = malloc((size_t)k->n * sizeof *k->start);
    CHECK(k->start, LLMC_ENOMEM, "no memory for the tokenizer %s", name);
    int64_t at = HEADER_BYTES;
    for (int id = 0; id < k->n; id++) {
        const int length = at < k->size ? (unsigned char)k->bytes[at] : 0;
        CHECK(at + 1 + length <= k->size, LLMC_EFORMAT, "%s is truncated: expected %d pieces, found %d; write it again",
              name, k->n, id);
        CHECK(length, LLMC_EFORMAT, "%s: piece %d is empty; write it again", name, id);
        k->start[id] = (uint32_t)at + 1;
        at += 1 + length;
    }
    CHECK(at == k->size, LLMC_EFORMAT, "%s has %lld trailing bytes after %d pieces; write it again", name,
          (long long)(k->size - at), k->n);
    return LLMC_OK;
}

static int parse(llmc_tokenizer *k, const char *name) {
    TRY(read_header(k, name));
    TRY(find_pieces(k, name));
    return k->kind == LONGEST ? build_trie(k, name) : LLMC_OK;
}

/* takes over k->bytes */
static int finish(llmc_tokenizer **out, llmc_tokenizer *k, const char *name) {
    const int rc = parse(k, name);
    if (rc < 0) llmc_tokenizer_free(k);
    else *out = k;
    return rc;
}

static int make(llmc_tokenizer **k, int64_t size, const char *name) {
    CHECK(size >= 0 && size <= MAX_FILE, LLMC_EFORMAT, "%s has %lld bytes: no tokenizer file does", name,
          (long long)size);
    *k = calloc(1, sizeof **k);
    if (*k) (*k)->bytes = malloc((size_t)size + 1);
    if (*k && (*k)->bytes) return (*k)->size = size, LLMC_OK;
    free(*k);
    FAIL(LLMC_ENOMEM, "no memory for the tokenizer %s", name);
}

int llmc_tokenizer_read(llmc_tokenizer **out, const void *bytes, int64_t size, const char *name) {
    llmc_tokenizer *k = NULL;
    *out = NULL;
    TRY(make(&k, size, name));
    memcpy(k->bytes, bytes, (size_t)size);
    return finish(out, k, name);
}

static int read_file(llmc_tokenizer **out, const BinFile *f) {
    llmc_tokenizer *k = NULL;
    TRY(make(&k, f->size, f->path));
    const int rc = binfile_read(f, k->bytes, f->size, 0);
    if (rc == 0) return finish(out, k, f->path);
    llmc_tokenizer_free(k);
    return rc;
}

int llmc_tokenizer_open(llmc_tokenizer **out, const char *path) {
    BinFile f;
    *out = NULL;
    TRY(binfile_open(&f, path));
    const int rc = read_file(out, &f);
    binfile_close(&f);
    return rc;
}

void llmc_tokenizer_free(llmc_tokenizer *k) {
    if (!k) return;
    free(k->bytes);
    free(k->start);
    free(k->edges);
    free(k->id);
    free(k);
}

int llmc_tokenizer_size(const llmc_tokenizer *k) { return k->n; }
int llmc_tokenizer_eot(const llmc_tokenizer *k) { return k->eot; }
const void *llmc_tokenizer_bytes(const llmc_tokenizer *k, int64_t *size) { return *size = k->size, k->bytes; }

/* ---- decode and encode ---- */

int llmc_tokenizer_decode(const llmc_tokenizer *k, const int *ids, int n, char *out, int64_t size) {
    int64_t total = 0;
    for (int i = 0; i < n; i++) {
        CHECK(ids[i] >= 0 && ids[i] < k->n, LLMC_EINVAL,
              "ids[%d] = %d is outside [0, %d): use the tokenizer the model was "
              "trained with",
              i, ids[i], k->n);
        const int length = length_of(k, ids[i]);
        const int64_t room = size - total < length ? size - total : length;
        if (room > 0) memcpy(out + total, k->bytes + k->start[ids[i]], (size_t)room);
        total += length;
    }
    CHECK(total <= INT_MAX, LLMC_EINVAL, "%d ids are too many to decode at once", n);
    return (int)total;
}

/* the longest piece at the head of text[0..n), and its length; -1 if none */
static int longest(const llmc_tokenizer *k, const char *text, int64_t n, int *length) {
    int found = -1;
    uint32_t node = 0;
    for (int i = 0; i < n; i++) {
        const Edge *edge = edge_of(k, node, (unsigned char)text[i]);
        if (!edge->key) break;
        node = edge->node;
        if (k->id[node] >= 0) found = k->id[node], *length = i + 1;
    }
    return found;
}

/* the pieces that are one character, as far as they fit: what a character vocabulary knows */
static void list_alphabet(const llmc_tokenizer *k, char *out, size_t size) {
    size_t at = 0;
    *out = 0;
    for (int id = 0; id < k->n; id++) {
        const unsigned char *piece = (const unsigned char *)k->bytes + k->start[id];
        const int length = length_of(k, id), lead = piece[0];
        const int expected = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
        if (id == k->eot || length != expected || lead < ' ' || at + 5 > size) continue;
        memcpy(out + at, piece, (size_t)length);
        out[at += (size_t)length] = 0;
    }
}

static int unknown_character(const llmc_tokenizer *k, const char *text, int64_t bytes, int64_t at) {
    char alphabet[512];
    int length = 1;
    while (length < 4 && at + length < bytes && ((unsigned char)text[at + length] & 0xc0) == 0x80) length++;
    list_alphabet(k, alphabet, sizeof alphabet);
    FAIL(LLMC_EINVAL,
         "character '%.*s' (byte %d at byte %lld) is not in the vocabulary; it has only %s: change the text, or "
         "make the data again with a byte or word tokenizer",
         length, text + at, (unsigned char)text[at], (long long)at, alphabet);
}

int llmc_tokenizer_encode(const llmc_tokenizer *k, const char *text, int64_t bytes, int *out, int64_t size) {
    int64_t n = 0;
    CHECK(k->kind != UNKNOWN, LLMC_EINVAL,
          "this tokenizer file does not say how to encode (llm.c's files only decode): pass "
          "token ids, or write another with dev/prepro_tinystories.py");
    CHECK(k->kind != GPT2, LLMC_EINVAL,
          "text of the gpt2 tokenizer cannot be encoded here yet: encode it in Python "
          "(pyllmc.tokenizer) and pass token ids");
    CHECK(bytes >= 0 && bytes <= INT_MAX, LLMC_EINVAL, "%lld bytes of text: encode at most %d at once",
          (long long)bytes, INT_MAX);
    for (int64_t at = 0; at < bytes; n++) {
        int length;
        const int id = longest(k, text + at, bytes - at, &length);
        if (id < 0) return unknown_character(k, text, bytes, at);
        if (n < size) out[n] = id;
        at += length;
    }
    return (int)n;
}
