/* A file of weights, opened and measured: llm.c's model .bin, and our checkpoints, which begin with one.
 *
 *     256 int32: magic, version, maxT, V, L, NH, C, Vp, window (ours), 0 ...
 *     parameters in the table's order              version 1: float, wte (V,C); 3: float, wte (Vp,C); 5: bf16, wte (Vp,C)
 *     sections, version 3 only: {char tag[8]; int64 size; payload}, closed by CRC32 over all bytes before it */
#ifndef MODELFILE_H
#define MODELFILE_H
#include "binfile.h"
#include "layout.h"

enum { TAG_BYTES = 8, SECTION_HEAD = TAG_BYTES + 8, PIECE = 1 << 18 /* elements moved at a time */ };
enum { OPTIONS, STATE, TOKENIZR, MOMENTS, CRC32, NUM_SECTIONS };
extern const char *const section_tags[NUM_SECTIONS];

typedef struct Section {
    int64_t at, size; /* of the payload in the file; at 0: there is none */
} Section;

typedef struct ModelFile {
    BinFile file;
    int version, width; /* bytes of an element */
    llmc_config config;
    Layout layout;
    int64_t wte, params; /* elements in the file: of wte, of all */
    int64_t end;         /* of the parameters, in bytes */
    Section sections[NUM_SECTIONS];
} ModelFile;
/* Checks the header and that every byte is accounted for; reads no weights. */
int modelfile_open(ModelFile *f, const char *path);
void modelfile_close(ModelFile *f);
/* The parameter tensor that holds an element of the block. */
const char *tensor_at(const Layout *layout, int64_t element);
/* The first of x[n] that is NaN or infinite, or -1. */
int64_t find_nonfinite(const float *x, int64_t n);
#endif
