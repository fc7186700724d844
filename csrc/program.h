/* What the programs share. */
#ifndef PROGRAM_H
#define PROGRAM_H
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
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

/* of the terminal, or what reads well */
static inline int help_width(void) {
    const char *columns = getenv("COLUMNS");
    struct winsize terminal = {0};
    if (columns && atoi(columns) > 0) return atoi(columns);
    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &terminal) == 0 && terminal.ws_col ? terminal.ws_col : 100;
}

/* --help or --version, as the parser says */
static inline int tell_about(int parsed, const char *command, const llmc_options *options) {
    if (parsed == 2) {
        printf("pyllmc %s\n", llmc_version());
        return 0;
    }
    const int width = help_width(), n = llmc_options_help(options, command, width, NULL, 0);
    char *text = n < 0 ? NULL : malloc((size_t)n + 1);
    if (!text) return fail(command, LLMC_ENOMEM);
    llmc_options_help(options, command, width, text, (size_t)n + 1);
    show(text, n);
    free(text);
    return 0;
}
#endif
