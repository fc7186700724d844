/* What the fuzz targets share. A target takes an input apart, hands it to one parser, and expects of the outcome what a
 * sanitizer cannot see: fuzz_expect(). The main function is libFuzzer's, or driver.c's where only gcc is there. */
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
/* rc itself; if it is an error, it is one of llmc_status and has its message, one line */
int fuzz_status(int rc);

/* ---- an input, eaten from the front; what is missing is zero ---- */
typedef struct Input {
    const uint8_t *at;
    size_t left;
} Input;
void take(Input *in, void *to, size_t n);
int take_byte(Input *in);
int32_t take_int(Input *in);
int64_t take_long(Input *in);
double take_double(Input *in);
/* the bytes up to a line break or the end, as a string in memory of exactly its size: free() it */
char *take_line(Input *in);
/* a front of the input with at most n bytes */
Input take_input(Input *in, size_t n);

/* ---- a file ---- */
enum { FUZZ_FILE = 1 << 16 }; /* bytes of one at most */
/* The file that an input stands for. AS_IS: its own bytes. Else its first `ints` int32 become a header of 1,024 bytes, so
 * that mutations hit what is read. CHECKSUM: a section CRC32 that is right follows. */
enum { AS_IS = 1, CHECKSUM = 2 };
Input fuzz_file(Input in, int how, int ints);
/* writes it to file 0, 1 or 2 in memory, whose path this returns */
const char *fuzz_path(int which, Input file);
#define TWO_PATHS "/proc/self/fd/10[01]"
/* a path in the folder $TMPDIR/fuzz, which is there; the text is kept for each `which` of 0 to 2 */
const char *fuzz_place(int which, const char *name);
/* the same, a link to file `which` in memory */
const char *fuzz_link(int which, const char *name);

/* The options before any was set, of a chat or of training, in memory of their own: free() it. */
struct llmc_options *fuzz_options(int chat);
/* Into a tiny model: what was loaded is finite, what was refused changed nothing. other: the model has other sizes. */
void fuzz_load(const char *path, int other);
#endif
