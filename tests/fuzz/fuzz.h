/* Shared by the fuzz targets. A target takes an input apart, gives it to one parser, and checks the outcome where no
 * sanitizer can: fuzz_expect(). The main function is libFuzzer's, or driver.c's if only gcc is there. */
#ifndef FUZZ_H
#define FUZZ_H
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "pyllmc.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define fuzz_expect(condition)                                                   \
    do {                                                                         \
        if (!(condition)) fuzz_failed(__FILE__, __LINE__, #condition, __func__); \
    } while (0)
void fuzz_failed(const char *file, int line, const char *condition, const char *function) __attribute__((noreturn));
/* Returns rc. If it is an error, it must be one of llmc_status with a message of one line. */
int fuzz_status(int rc);

/* ---- an input, eaten from the front; missing bytes are zero ---- */
typedef struct Input {
    const uint8_t *at;
    size_t left;
} Input;
void take(Input *in, void *to, size_t n);
int take_byte(Input *in);
int32_t take_int(Input *in);
int64_t take_long(Input *in);
double take_double(Input *in);
/* The bytes up to a line break or the end, as a string in memory of exactly its size: free() it. */
char *take_line(Input *in);
/* A front part of the input, at most n bytes. */
Input take_input(Input *in, size_t n);

/* ---- a file ---- */
uint32_t fuzz_crc(Input x);   /* zlib's checksum */
enum { FUZZ_FILE = 1 << 16 }; /* the most bytes of a file */
/* The file that an input stands for. AS_IS: its own bytes. Else its first `ints` int32 become a header of 1,024 bytes,
 * so that mutations hit bytes that are read. CHECKSUM: a right CRC32 section follows. */
enum { AS_IS = 1, CHECKSUM = 2 };
Input fuzz_file(Input in, int how, int ints);
/* Writes it to file 0, 1 or 2 in memory, and returns the path of that file. */
const char *fuzz_path(int which, Input file);
#define TWO_PATHS "/proc/self/fd/10[01]"
/* A path in the folder $TMPDIR/fuzz, which exists. The text is kept for each `which` of 0 to 2. */
const char *fuzz_place(int which, const char *name);
/* The same, as a link to file `which` in memory. */
const char *fuzz_link(int which, const char *name);

/* Unset options for a chat or for training, in memory of their own: free() it. */
struct llmc_options *fuzz_options(int chat);
/* Loads a file into a tiny model: loaded weights are finite, and a refused file changes nothing. other: a model of
 * other sizes. */
void fuzz_load(const char *path, int other);
#endif
