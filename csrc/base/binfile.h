/* Reading binary files of any origin: only regular files are opened, and only bytes that are there are read. Nothing is
 * mapped, because a mapped file that shrinks crashes the process. The header of all of llm.c's formats is here, too:
 * 256 int32, little-endian. */
#ifndef BINFILE_H
#define BINFILE_H
#include "pyllmc.h"

enum { HEADER_INTS = 256, HEADER_BYTES = 4 * HEADER_INTS };
enum { MODEL_MAGIC = 20240326, TOKENIZER_MAGIC = 20240328, UINT16_MAGIC = 20240520, UINT32_MAGIC = 20240801 };
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the formats are little-endian");

typedef struct BinFile {
    const char *path; /* belongs to the caller; messages name it */
    int fd;
    int64_t size;
} BinFile;
/* 1 if `path`, or the target of a link there, is a folder */
int is_folder(const char *path);
/* 1 if both paths lead to the same file or folder, however they are spelled */
int is_same_file(const char *a, const char *b);
int binfile_open(BinFile *f, const char *path);
void binfile_close(BinFile *f);
/* Reads all n bytes from offset `at`. If fewer are there, the file changed after it was measured: an error. */
int binfile_read(const BinFile *f, void *to, int64_t n, int64_t at);
/* The kind of llm.c file that begins with this magic, "big-endian" if its bytes are reversed, NULL if none does */
const char *magic_name(int32_t magic);
#endif
