/* A vocabulary: id -> bytes, as they lie in the file, and bytes -> id by a hash */
#ifndef VOCAB_H
#define VOCAB_H
#include "pyllmc.h"

enum { UNKNOWN, LONGEST, GPT2, KINDS }; /* header[4] of a tokenizer.bin: how text becomes ids */
enum { MAX_PIECE = 255 };               /* bytes; the file has one byte for the length */
/* The size of GPT-2's vocabulary. A build for fuzzing has a smaller one, so that an input can hold all of it. */
#ifdef FUZZING
enum { GPT2_V = 457 };
#else
enum { GPT2_V = 50257 };
#endif

typedef struct Vocab {
    char *bytes; /* the whole file */
    int64_t size;
    int n;
    uint32_t *start; /* (n) where each piece begins in the file; the byte before it is its length */
    uint64_t *slots; /* (capacity), a power of two: the high half of the hash, then id + 1; 0: free */
    uint32_t capacity;
    int longest; /* bytes of the longest piece in the hash */
} Vocab;

static inline const char *vocab_piece(const Vocab *v, int id) { return v->bytes + v->start[id]; }
static inline int vocab_length(const Vocab *v, int id) { return (unsigned char)v->bytes[v->start[id] - 1]; }

int vocab_reserve(Vocab *v, int n);                          /* makes an empty hash for n pieces; -1: no memory */
int vocab_add(Vocab *v, int id);                             /* -1, or the id that has the same bytes already */
int vocab_find(const Vocab *v, const char *text, int64_t n); /* the id, or -1 */
void vocab_free(Vocab *v);
#endif
