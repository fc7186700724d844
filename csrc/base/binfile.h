/* Reading binary files that may be anything: only regular files, only what is there, never a mapping that a shrinking
 * file could turn into a crash. And the head that all of llm.c's formats share: 256 int32, little-endian. */
#ifndef BINFILE_H
#define BINFILE_H
#include "pyllmc.h"

enum { HEADER_INTS = 256, HEADER_BYTES = 4 * HEADER_INTS };
enum { MODEL_MAGIC = 20240326, TOKENIZER_MAGIC = 20240328, UINT16_MAGIC = 20240520, UINT32_MAGIC = 20240801 };
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the formats are little-endian");

typedef struct BinFile {
    const char *path; /* the caller's, for messages */
    int fd;
    int64_t size;
} BinFile;
/* whether a path, or what it links to, is a folder */
int is_folder(const char *path);
int binfile_open(BinFile *f, const char *path);
void binfile_close(BinFile *f);
/* n bytes from `at`, all of them: fewer mean that the file changed after it was measured */
int binfile_read(const BinFile *f, void *to, int64_t n, int64_t at);
/* the kind of llm.c file that bears this magic, "big-endian ...", or NULL */
const char *magic_name(int32_t magic);
#endif
