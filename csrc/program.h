/* What the programs share. */
#ifndef PROGRAM_H
#define PROGRAM_H
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "pyllmc.h"

enum { INTERRUPTED = 130 };

/* OpenMP reads its settings before main: start again with them */
static inline void settle_threads(char **argv) {
    char count[16];
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY")) return;
    snprintf(count, sizeof count, "%d", LLMC_SPIN);
    if (setenv("GOMP_SPINCOUNT", count, 1) == 0) execv("/proc/self/exe", argv); /* if that fails, go on as we are */
}

static inline int fail(const char *program, int status) {
    fprintf(stderr, "%s: %s\n", program, llmc_last_error());
    return 1 - status; /* EINVAL 2, ENOMEM 3, EFORMAT 4, EIO 5, EDEVICE 6, ENUMERIC 7 */
}

/* --help or --version, as the parser says */
static inline int tell_about(int parsed, const char *about, const llmc_options *options) {
    static char text[1 << 16];
    llmc_options_help(options, text, sizeof text);
    if (parsed == 2) printf("pyllmc %s\n", llmc_version());
    else printf("%s\n\n%s", about, text);
    return 0;
}

static inline void show(const char *text, int64_t size) {
    fwrite(text, 1, (size_t)size, stdout);
    fflush(stdout);
}
#endif
