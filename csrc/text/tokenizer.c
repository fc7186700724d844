/* Ids to text and back. The table comes from llm.c's tokenizer.bin: a header (magic, version, n, EOT id or -1, kind),
 * then n pieces {u8 length, bytes}. Or it comes from OpenAI's vocab.bpe, which is converted to that form. The kind says
 * how text becomes ids; llm.c's own files have 0 there. Text never becomes EOT. A table of byte pairs may have added
 * pieces, which text becomes before the byte pairs: header[5] is their number, and their ids follow, ascending. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/binfile.h"
#include "text/bpe.h"
#include "base/crc32.h"
#include "base/error.h"
#include "text/vocab.h"
#include "base/rng.h"
#include "base/utf8.h"
#include "text/vocabbpe.h"

enum { MAX_FILE = 1 << 30, AT_ADDED = 5, MOST_ADDED = HEADER_INTS - AT_ADDED - 1 };
#define GPT2_CRC 0x4565975d /* the checksum of GPT-2's pieces as they lie in a file */

/* A trie of the pieces in one hash table: an edge is (node, byte) and leads to a node. Node 0 is the root. */
typedef struct Edge {
    uint64_t key; /* (node << 8 | byte) + 1; 0: free */
    uint32_t node;
} Edge;

struct llmc_tokenizer {
    Vocab vocab; /* hashed if the kind is gpt2 */
    int eot, kind;
    int32_t added[MOST_ADDED]; /* (num_added) ids, ascending; only if the kind is gpt2 */
    int num_added;
    Edge *edges; /* (capacity), a power of two; of all pieces if the kind is longest, else of those that are added */
    int *id;     /* (nodes) the piece that ends here, or -1 */
    uint32_t capacity, nodes;
};

/* ---- the trie ---- */

static Edge *edge_of(const llmc_tokenizer *t, uint32_t node, unsigned char byte) {
    const uint64_t key = ((uint64_t)node << 8 | byte) + 1;
    uint32_t slot = (uint32_t)((key * GOLDEN) >> 32) & (t->capacity - 1);
    while (t->edges[slot].key && t->edges[slot].key != key) slot = (slot + 1) & (t->capacity - 1);
    return &t->edges[slot];
}

static int same_pieces(const char *name, int a, int b) {
    FAIL(LLMC_EFORMAT, "%s: pieces %d and %d are the same; write it again", name, a, b);
}

static int add_piece(llmc_tokenizer *t, int id, const char *name) {
    uint32_t node = 0;
    for (int i = 0; i < vocab_length(&t->vocab, id); i++) {
        const unsigned char byte = (unsigned char)vocab_piece(&t->vocab, id)[i];
        Edge *edge = edge_of(t, node, byte);
        if (!edge->key) {
            *edge = (Edge){((uint64_t)node << 8 | byte) + 1, t->nodes};
            t->id[t->nodes++] = -1;
        }
        node = edge->node;
    }
    if (t->id[node] >= 0) return same_pieces(name, t->id[node], id);
    t->id[node] = id;
    return LLMC_OK;
}

/* Makes an empty trie with room for so many bytes of pieces. */
static int make_trie(llmc_tokenizer *t, int64_t bytes, const char *name) {
    const uint32_t most = (uint32_t)bytes + 1; /* nodes: one per byte at worst */
    for (t->capacity = 256; t->capacity < 2 * most; t->capacity *= 2) {
    }
    t->edges = calloc(t->capacity, sizeof *t->edges);
    t->id = malloc(most * sizeof *t->id);
    CHECK(t->edges && t->id, LLMC_ENOMEM, "no memory for the tokenizer %s", name);
    t->id[t->nodes++] = -1;
    return LLMC_OK;
}

static int build_trie(llmc_tokenizer *t, const char *name) {
    TRY(make_trie(t, t->vocab.size - HEADER_BYTES, name));
    for (int id = 0; id < t->vocab.n; id++)
        if (id != t->eot) TRY(add_piece(t, id, name));
    return LLMC_OK;
}

static int build_trie_of_added(llmc_tokenizer *t, const char *name) {
    TRY(make_trie(t, (int64_t)t->num_added * MAX_PIECE, name));
    for (int i = 0; i < t->num_added; i++) TRY(add_piece(t, t->added[i], name));
    return LLMC_OK;
}

/* ---- the file ---- */

static int read_header(llmc_tokenizer *t, const char *name) {
    int32_t header[5];
    CHECK(t->vocab.size >= HEADER_BYTES, LLMC_EFORMAT, "%s: expected a header of %d bytes, found %lld; write it again",
          name, HEADER_BYTES, (long long)t->vocab.size);
    memcpy(header, t->vocab.bytes, sizeof header);
    const char *kind = magic_name(header[0]);
    CHECK(header[0] == TOKENIZER_MAGIC, LLMC_EFORMAT,
          "%s is %s%s%s, not a tokenizer file: expected magic %d, found %d; name a tokenizer.bin or vocab.bpe", name,
          kind ? "a " : "something else", kind ? kind : "", kind ? " file" : "", TOKENIZER_MAGIC, header[0]);
    CHECK(header[1] == 1 || header[1] == 2, LLMC_EFORMAT, "%s: expected version 1 or 2, found %d; write it again", name,
          header[1]);
    t->vocab.n = header[2], t->eot = header[3], t->kind = header[4];
    if (header[1] == 1) { /* llm.c's first files hold GPT-2's table without saying so */
        CHECK(t->vocab.n == GPT2_V, LLMC_EFORMAT, "%s: version 1 has %d pieces, found %d; write it again", name, GPT2_V,
              t->vocab.n);
        t->eot = GPT2_V - 1, t->kind = UNKNOWN;
    }
    CHECK(t->vocab.n >= 1 && t->vocab.n <= t->vocab.size / 2, LLMC_EFORMAT,
          "%s: %d pieces do not fit %lld bytes; write it again", name, t->vocab.n, (long long)t->vocab.size);
    CHECK(t->eot >= -1 && t->eot < t->vocab.n, LLMC_EFORMAT, "%s: EOT id %d is outside [0, %d); write it again", name,
          t->eot, t->vocab.n);
    CHECK(t->kind >= 0 && t->kind < KINDS, LLMC_EFORMAT, "%s: expected a kind in 0..%d, found %d; write it again", name,
          KINDS - 1, t->kind);
    return LLMC_OK;
}

static int read_added(llmc_tokenizer *t, const char *name) {
    int32_t header[HEADER_INTS];
    memcpy(header, t->vocab.bytes, sizeof header);
    const int n = header[AT_ADDED];
    CHECK(n >= 0 && n <= MOST_ADDED, LLMC_EFORMAT, "%s: expected 0..%d added pieces, found %d; write it again", name,
          MOST_ADDED, n);
    memcpy(t->added, header + AT_ADDED + 1, (size_t)n * sizeof *t->added);
    for (int i = 0; i < n; i++) {
        const int id = t->added[i];
        CHECK(id > (i ? t->added[i - 1] : -1) && id < t->vocab.n && id != t->eot, LLMC_EFORMAT,
              "%s: the added id %d does not ascend, is EOT, or is outside [0, %d); write it again", name, id,
              t->vocab.n);
        CHECK(utf8_check(vocab_piece(&t->vocab, id), vocab_length(&t->vocab, id)) == vocab_length(&t->vocab, id),
              LLMC_EFORMAT, "%s: the added piece %d is no UTF-8; write it again", name, id);
    }
    t->num_added = n;
    return n ? build_trie_of_added(t, name) : LLMC_OK;
}

static int find_starts(llmc_tokenizer *t, const char *name) {
    t->vocab.start = malloc((size_t)t->vocab.n * sizeof *t->vocab.start);
    CHECK(t->vocab.start, LLMC_ENOMEM, "no memory for the tokenizer %s", name);
    int64_t at = HEADER_BYTES;
    for (int id = 0; id < t->vocab.n; id++) {
        const int length = at < t->vocab.size ? (unsigned char)t->vocab.bytes[at] : 0;
        CHECK(at + 1 + length <= t->vocab.size, LLMC_EFORMAT,
              "%s is truncated: expected %d pieces, found %d; write it again", name, t->vocab.n, id);
        CHECK(length, LLMC_EFORMAT, "%s: piece %d is empty; write it again", name, id);
        t->vocab.start[id] = (uint32_t)at + 1;
        at += 1 + length;
    }
    CHECK(at == t->vocab.size, LLMC_EFORMAT, "%s has %lld trailing bytes after %d pieces; write it again", name,
          (long long)(t->vocab.size - at), t->vocab.n);
    return LLMC_OK;
}

/* Compares the table's checksum with GPT-2's, because llm.c's own files do not say how they encode. */
static int is_gpt2(const llmc_tokenizer *t) {
    Crc32 crc;
    if (t->vocab.n != GPT2_V || t->eot != GPT2_V - 1) return 0;
    crc32_start(&crc, CRC_ZLIB);
    crc32_add(&crc, t->vocab.bytes + HEADER_BYTES, t->vocab.size - HEADER_BYTES);
    return crc.value == GPT2_CRC;
}

static int hash_pieces(llmc_tokenizer *t, const char *name) {
    CHECK(vocab_reserve(&t->vocab, t->vocab.n) == 0, LLMC_ENOMEM, "no memory for the tokenizer %s", name);
    for (int id = 0, i = 0; id < t->vocab.n; id++) {
        const int is_added = i < t->num_added && t->added[i] == id;
        const int twin = id == t->eot || is_added ? -1 : vocab_add(&t->vocab, id);
        if (twin >= 0) return same_pieces(name, twin, id);
        i += is_added;
    }
    for (int i = 0; i < t->num_added; i++) {
        const int id = t->added[i],
                  twin = vocab_find(&t->vocab, vocab_piece(&t->vocab, id), vocab_length(&t->vocab, id));
        if (twin >= 0) return same_pieces(name, twin, id);
    }
    for (int byte = 0; byte < 256; byte++)
        CHECK(vocab_find(&t->vocab, &(char){(char)byte}, 1) >= 0, LLMC_EFORMAT,
              "%s: a gpt2 table needs all 256 bytes, found none that is %d; write it again", name, byte);
    return LLMC_OK;
}

static int from_vocabbpe(llmc_tokenizer *t, const char *name) {
    char *text = t->vocab.bytes;
    const int rc = vocabbpe_convert(&t->vocab.bytes, &t->vocab.size, text, t->vocab.size, name);
    free(text);
    return rc;
}

static int parse(llmc_tokenizer *t, const char *name) {
    if (vocabbpe_is(t->vocab.bytes, t->vocab.size)) TRY(from_vocabbpe(t, name));
    TRY(read_header(t, name));
    TRY(find_starts(t, name));
    if (t->kind == GPT2) TRY(read_added(t, name));
    if (t->kind == UNKNOWN && is_gpt2(t)) t->kind = GPT2;
    return t->kind == LONGEST ? build_trie(t, name) : t->kind == GPT2 ? hash_pieces(t, name) : LLMC_OK;
}

/* Parses t->vocab.bytes. Success gives t to *out, an error frees it. */
static int parse_or_free(llmc_tokenizer **out, llmc_tokenizer *t, const char *name) {
    const int rc = parse(t, name);
    if (rc < 0) llmc_tokenizer_free(t);
    else *out = t;
    return rc;
}

static int tokenizer_new(llmc_tokenizer **t, int64_t size, const char *name) {
    CHECK(size >= 0 && size <= MAX_FILE, LLMC_EFORMAT,
          "%s has %lld bytes, which no tokenizer has: name a tokenizer.bin or vocab.bpe", name, (long long)size);
    *t = calloc(1, sizeof **t);
    if (*t) (*t)->vocab.bytes = malloc((size_t)size + 1);
    if (*t && (*t)->vocab.bytes) return (*t)->vocab.size = size, LLMC_OK;
    free(*t);
    FAIL(LLMC_ENOMEM, "no memory for the tokenizer %s", name);
}

int llmc_tokenizer_read(llmc_tokenizer **out, const void *bytes, int64_t size, const char *name) {
    llmc_tokenizer *t = NULL;
    *out = NULL;
    TRY(tokenizer_new(&t, size, name));
    memcpy(t->vocab.bytes, bytes, (size_t)size);
    return parse_or_free(out, t, name);
}

static int read_file(llmc_tokenizer **out, const BinFile *f) {
    llmc_tokenizer *t = NULL;
    TRY(tokenizer_new(&t, f->size, f->path));
    const int rc = binfile_read(f, t->vocab.bytes, f->size, 0);
    if (rc == 0) return parse_or_free(out, t, f->path);
    llmc_tokenizer_free(t);
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

void llmc_tokenizer_free(llmc_tokenizer *t) {
    if (!t) return;
    vocab_free(&t->vocab);
    free(t->edges);
    free(t->id);
    free(t);
}

int llmc_tokenizer_size(const llmc_tokenizer *t) { return t->vocab.n; }

/* Here only ids that have no text may be in excess, up to a vocabulary's padding: special tokens that another program has added. Data is
 * held to more (csrc/train/sizes.c), because ids of another tokenizer would be learnt without a word. */
int llmc_tokenizer_fits(const llmc_tokenizer *t, int V, const char *name) {
    const int n = t->vocab.n;
    CHECK(n <= V && V <= (n + 127) / 128 * 128, LLMC_EINVAL,
          "%s has %d ids, the model V=%d: it is another model's tokenizer, name the one it was trained with", name, n,
          V);
    return LLMC_OK;
}
int llmc_tokenizer_eot(const llmc_tokenizer *t) { return t->eot; }
const void *llmc_tokenizer_bytes(const llmc_tokenizer *t, int64_t *size) {
    return *size = t->vocab.size, t->vocab.bytes;
}

/* ---- decode and encode ---- */

int llmc_tokenizer_decode(const llmc_tokenizer *t, const int *ids, int n, char *out, int64_t size) {
    int64_t total = 0;
    for (int i = 0; i < n; i++) {
        CHECK(ids[i] >= 0 && ids[i] < t->vocab.n, LLMC_EINVAL,
              "ids[%d] = %d is outside [0, %d): use the tokenizer the model was "
              "trained with",
              i, ids[i], t->vocab.n);
        const int length = vocab_length(&t->vocab, ids[i]);
        const int64_t left = size - total, fits = left < length ? left : length;
        if (fits > 0) memcpy(out + total, vocab_piece(&t->vocab, ids[i]), (size_t)fits);
        total += length;
    }
    CHECK(total <= INT_MAX, LLMC_EINVAL, "%d ids are too many to decode at once: give fewer", n);
    return (int)total;
}

/* The longest piece at the start of text[0..n), and its length; -1: no piece begins there */
static int longest(const llmc_tokenizer *t, const char *text, int64_t n, int *length) {
    int found = -1;
    uint32_t node = 0;
    for (int i = 0; i < n; i++) {
        const Edge *edge = edge_of(t, node, (unsigned char)text[i]);
        if (!edge->key) break;
        node = edge->node;
        if (t->id[node] >= 0) found = t->id[node], *length = i + 1;
    }
    return found;
}

/* Appends a character, or a byte that begins none, so that it can be seen in one line: a control character or such a
 * byte becomes \n, \t or \xNN. Returns 0 and appends nothing if it does not fit. */
static int show(char *out, size_t size, const char *text, int length) {
    char shown[8];
    const unsigned char c = (unsigned char)*text;
    if (length > 1 || (c >= ' ' && c < 0x7f)) snprintf(shown, sizeof shown, "%.*s", length, text);
    else if (c == '\n' || c == '\t') snprintf(shown, sizeof shown, "\\%c", c == '\n' ? 'n' : 't');
    else snprintf(shown, sizeof shown, "\\x%02x", c);
    if (strlen(out) + strlen(shown) + 1 > size) return 0;
    strcat(out, shown);
    return 1;
}

/* Lists the pieces that are one character, as far as they fit: the alphabet of a character vocabulary. */
static void list_alphabet(const llmc_tokenizer *t, char *out, size_t size) {
    *out = 0;
    for (int id = 0; id < t->vocab.n; id++) {
        uint32_t code;
        const int length = vocab_length(&t->vocab, id);
        if (id == t->eot || utf8_decode(vocab_piece(&t->vocab, id), length, &code) != length) continue;
        if (!show(out, size - 3, vocab_piece(&t->vocab, id), length)) return (void)strcat(out, "...");
    }
}

static int unknown_character(const llmc_tokenizer *t, const char *text, int64_t bytes, int64_t at) {
    char alphabet[400], unknown[20] = "";
    uint32_t code;
    const int length = utf8_decode(text + at, bytes - at, &code);
    list_alphabet(t, alphabet, sizeof alphabet);
    show(unknown, sizeof unknown, text + at, length > 0 ? length : 1);
    FAIL(LLMC_EINVAL,
         "character '%s' (byte %d at byte %lld) is not in the vocabulary; it has only '%s': change the text, or "
         "make the data again with a byte or word tokenizer",
         unknown, (unsigned char)text[at], (long long)at, alphabet);
}

static int encode_longest(const llmc_tokenizer *t, const char *text, int64_t bytes, int *out, int64_t size) {
    int64_t n = 0;
    for (int64_t at = 0; at < bytes; n++) {
        int length;
        const int id = longest(t, text + at, bytes - at, &length);
        if (id < 0) return unknown_character(t, text, bytes, at);
        if (n < size) out[n] = id;
        at += length;
    }
    return (int)n;
}

/* Encodes text up to the first added piece that begins in it, and this piece; *to becomes the place behind it. */
static int64_t encode_up_to_added(const llmc_tokenizer *t, const char *text, int64_t bytes, int64_t *to, int *out,
                                  int64_t size) {
    int id = -1, length = 0;
    int64_t at = 0;
    while (t->num_added && at < bytes && (id = longest(t, text + at, bytes - at, &length)) < 0) at++;
    if (!t->num_added) at = bytes;
    int64_t n = bpe_encode(&t->vocab, text, at, out, size);
    *to = at + length;
    if (id < 0 || n < 0) return n;
    if (n < size) out[n] = id;
    return n + 1;
}

static int64_t encode_pairs(const llmc_tokenizer *t, const char *text, int64_t bytes, int *out, int64_t size) {
    const int64_t bad = utf8_check(text, bytes);
    CHECK(bad == bytes, LLMC_EINVAL, "byte %lld is no UTF-8: give the text in UTF-8, or use a byte tokenizer",
          (long long)bad);
    int64_t n = 0;
    for (int64_t at = 0, length; at < bytes; at += length) {
        const int64_t used = n < size ? n : size;
        const int64_t more =
            encode_up_to_added(t, text + at, bytes - at, &length, out ? out + used : NULL, size - used);
        if (more < 0) return more;
        n += more;
    }
    return n;
}

int llmc_tokenizer_encode(const llmc_tokenizer *t, const char *text, int64_t bytes, int *out, int64_t size) {
    CHECK(t->kind != UNKNOWN, LLMC_EINVAL,
          "this tokenizer file does not say how to encode, nor is its table GPT-2's: pass token ids, or write "
          "another with python -m pyllmc.prepro");
    CHECK(bytes >= 0 && bytes <= INT_MAX, LLMC_EINVAL, "%lld bytes of text: encode at most %d at once",
          (long long)bytes, INT_MAX);
    if (t->kind == GPT2) return (int)encode_pairs(t, text, bytes, out, size);
    return encode_longest(t, text, bytes, out, size);
}
