/* What the programs share. */
#ifndef PROGRAM_H
#define PROGRAM_H
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "pyllmc.h"

enum { INTERRUPTED = 130 };

static inline int fail(const char *program, int status) {
    fprintf(stderr, "%s: %s\n", program, llmc_last_error());
    return 1 - status; /* EINVAL 2, ENOMEM 3, EFORMAT 4, EIO 5, EDEVICE 6, ENUMERIC 7 */
}

static int lost; /* errno of the first write to stdout that failed */

static inline void show(const char *text, int64_t size) {
    errno = 0;
    fwrite(text, 1, (size_t)size, stdout);
    fflush(stdout);
    if (ferror(stdout) && !lost) lost = errno ? errno : EIO;
}

/* The exit code: what nobody could read is not done. A reader that left has what it wanted. */
static inline int settle_output(const char *program, int code) {
    show("", 0);
    if (code || !lost || lost == EPIPE) return code;
    fprintf(stderr, "%s: standard output could not be written: %s; free some room or name another file\n", program,
            strerror(lost));
    return 1 - LLMC_EIO;
}

/* --help or --version, as the parser says */
static inline int tell_about(int parsed, const char *about, const llmc_options *options) {
    static char text[1 << 16];
    const int n = parsed == 2 ? snprintf(text, sizeof text, "pyllmc %s\n", llmc_version())
                              : snprintf(text, sizeof text, "%s\n\n", about);
    if (parsed != 2) llmc_options_help(options, text + n, sizeof text - (size_t)n);
    show(text, (int64_t)strlen(text));
    return 0;
}
#endif
