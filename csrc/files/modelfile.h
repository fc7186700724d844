/* A file of weights that is open: its sizes, and where each tensor lies in it, whatever its format is. formats.c finds the
 * format and opens the file, load.c checks and loads the content of all formats alike. */
#ifndef MODELFILE_H
#define MODELFILE_H
#include "base/binfile.h"
#include "model/layout.h"

/* The versions of a checkpoint whose model llm.c's version 3 cannot say, and of one that holds OUTER, whatever its model is. Older
 * readers refuse them by their numbers. */
enum { OWN_VERSION = 103, OUTER_VERSION };
/* The version that a checkpoint of this model has without OUTER: 3 wherever that says all, as it does if odd layers are the banded ones. */
static inline int checkpoint_version(const llmc_config *config) {
    return config->untied || !config_has_usual_pattern(config) ? OWN_VERSION : 3;
}
/* The number of the header at which the pattern begins, and behind it the length of an adapter file's text. */
enum { PATTERN_AT = 10, TEXT_AT = 42 };

/* The sections of a checkpoint (llmcfile.h); files of other formats have none. */
enum { OPTIONS, STATE, TOKENIZR, MOMENTS, OUTER, CRC32, NUM_SECTIONS };
enum { TAG_BYTES = 8, SECTION_HEADER = TAG_BYTES + 8 };
extern const char *const section_tags[NUM_SECTIONS];

/* At most so many elements are read or written at a time. A build for fuzzing takes few, so that small inputs need several
 * turns. */
#ifdef FUZZING
enum { AT_A_TIME = 64 };
#else
enum { AT_A_TIME = 1 << 18 };
#endif
/* The elements of the next turn, if `left` are left. */
static inline int64_t next_turn(int64_t left) { return left < AT_A_TIME ? left : AT_A_TIME; }

typedef struct Section { /* its payload */
    int64_t at, size;    /* bytes; at = 0: the file has no such section */
} Section;

typedef struct Extent { /* where one layer of a tensor lies in the file */
    int64_t at;         /* the first byte */
    int width;          /* bytes of an element: 4 for float, 2 for bfloat16 */
    int transposed;     /* the weight (OC, C) of a matrix product is stored as (C, OC) */
    uint32_t crc;       /* crc32c of the bytes; only if the file has_crcs */
} Extent;

/* About a file that holds LoRA's adapters, and what else was trained, instead of a model. */
typedef struct Adapters {
    char *text;        /* lines name=value, see adapterfile.h */
    char *name, *base; /* the file of the model that they belong to; and where it is read, see llmc_file_set_base */
    int is_copy;       /* base is a copy of that model, whose path tells users nothing */
    char *train_only;  /* room.train_only points here */
    uint32_t base_crc;
    llmc_room room; /* its fields of LoRA */
} Adapters;

struct llmc_file {
    BinFile file;
    char *path; /* file.path points here */
    const struct Format *format;
    llmc_config config;
    Layout layout;
    Extent *extents;        /* NUM_PARAM_TENSORS x L, see extent_of; NUM_TRAINABLE x L if there are adapters */
    Adapters *adapters;     /* NULL: the file holds a model */
    int64_t padded, params; /* elements in the file: those of a tensor that memory pads, such as wte; and all */
    int64_t begin, end;     /* the bytes before `begin` are a header, the parameters end at `end` */
    int version;            /* the version of llm.c's format, 1 to 5, or one of those above, or that of adapterfile.h */
    int has_crcs;           /* each extent has its checksum; there is none of the whole file */
    Section sections[NUM_SECTIONS];
};
/* Opens the bytes at `path`, which is copied. The format then fills in the rest. */
int modelfile_open(llmc_file *f, const char *path);
/* Works out the layout of f->config, which has been checked, and allocates an extent for each tensor. rows: those that wte and
 * the head have in the file. */
int modelfile_lay_out(llmc_file *f, int rows);
/* As llmc_file_section, by number. */
int modelfile_section(const llmc_file *f, int section, char *out, int64_t size);
/* The number of a section, or -1 if no section has this tag of TAG_BYTES bytes. */
int modelfile_find_section(const char *tag);

/* Layer l of row i in the table of tensors. */
static inline Extent *extent_of(const llmc_file *f, int i, int l) { return f->extents + (int64_t)i * f->config.L + l; }
static inline int layers_of(const llmc_file *f, int i) {
    return f->layout.table[i].layers ? f->layout.table[i].layers : 1;
}
/* True if the file holds layer l of row i: a model holds all, a file of adapters what was trained. */
static inline int holds(const llmc_file *f, int i, int l) {
    return f->adapters ? l < layers_stored(&f->layout.table[i]) && extent_of(f, i, l)->at
                       : i < NUM_PARAM_TENSORS && l < layers_stored(&f->layout.table[i]);
}
/* The elements of one layer in the file, where wte and the head may have fewer rows than in memory. */
static inline int64_t elements_of(const llmc_file *f, int i) {
    const int64_t size = f->layout.table[i].size;
    return size && layout_is_padded(i) ? f->padded : size;
}
#endif
