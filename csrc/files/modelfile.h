/* A file of weights, opened and measured: llm.c's model .bin, our checkpoints, which begin with one, and OpenAI's TensorFlow
 * checkpoint (tfbundle.h). Whatever it is, it says where each tensor lies; load.c checks and loads them all alike.
 *
 *     256 int32: magic, version, maxT, V, L, NH, C, Vp, window (ours), 0 ...
 *     parameters in the table's order              version 1: float, wte (V,C); 3: float, wte (Vp,C); 5: bf16, wte (Vp,C);
 *                                                  2, 4: as 1, 3 in bf16, but the norms in float
 *     sections, version 3 only: {char tag[8]; int64 size; payload}, closed by CRC32 over all bytes before it */
#ifndef MODELFILE_H
#define MODELFILE_H
#include "base/binfile.h"
#include "model/layout.h"

enum { TAG_BYTES = 8, SECTION_HEAD = TAG_BYTES + 8 };
/* Elements are moved so many at a time; in a build for fuzzing so few that small inputs have several pieces. */
#ifdef FUZZING
enum { PIECE = 64 };
#else
enum { PIECE = 1 << 18 };
#endif
enum { OPTIONS, STATE, TOKENIZR, MOMENTS, CRC32, NUM_SECTIONS };
extern const char *const section_tags[NUM_SECTIONS];

typedef struct Section {
    int64_t at, size; /* of the payload in the file; at 0: there is none */
} Section;

typedef struct Place { /* of a tensor of one layer */
    int64_t at;        /* byte in the file */
    int width;         /* bytes of an element: 4 float, 2 bfloat16 */
    int turned;        /* a matrix product's weight (OC, C) is stored as (C, OC) */
    uint32_t crc;      /* of its bytes, where the file has one for each tensor */
} Place;

typedef struct ModelFile {
    BinFile file;
    char *path; /* file.path, where it is not the caller's own */
    llmc_config config;
    Layout layout;
    Place *places;       /* NUM_PARAM_TENSORS x L, see place_of */
    int64_t wte, params; /* elements in the file: of wte, of all */
    int version;         /* of a model .bin; 0: TensorFlow's */
    int checksums;       /* each place has one: TensorFlow's index was there */
    int64_t end;         /* of the parameters, in bytes */
    Section sections[NUM_SECTIONS];
} ModelFile;
/* Checks the header and that every byte is accounted for; reads no weights. */
int modelfile_open(ModelFile *f, const char *path);
void modelfile_close(ModelFile *f);
/* The layout of f->config, which has been checked, and a place for each tensor. */
int modelfile_lay_out(ModelFile *f);
/* A section's bytes and how many; 0 if there is none. out NULL: only the size. Adds a 0 if there is room. */
int modelfile_section(const ModelFile *f, int section, char *out, int64_t size);

/* of layer l of row i; NULL places: no memory for them */
static inline Place *place_of(const ModelFile *f, int i, int l) { return f->places + (int64_t)i * f->config.L + l; }
static inline int layers_of(const ModelFile *f, int i) {
    return f->layout.table[i].layers ? f->layout.table[i].layers : 1;
}
/* elements of one layer in the file */
static inline int64_t elements_of(const ModelFile *f, int i) { return i == P_wte ? f->wte : f->layout.table[i].size; }
/* The parameter tensor that holds an element of the block. */
const char *tensor_at(const Layout *layout, int64_t element);
/* The first of x[n] that is NaN or infinite, or -1. */
int64_t find_nonfinite(const float *x, int64_t n);
#endif
