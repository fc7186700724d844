/* The parts that both programs share: streams, errors and --help. */
#ifndef PROGRAM_H
#define PROGRAM_H
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "pyllmc.h"
#include "base/error.h"
#include "base/signals.h"
#include "programs/terminal.h"

enum { INTERRUPTED = 130 };

/* Keeps the numbers of closed streams from being given to files, because output would then be written into such a file. */
static inline void hold_streams(void) {
    /* a stream is opened in the wrong direction, so that using it fails as before */
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) < 0) return;
}

/* Lets a function answer a signal (SIG_IGN: nothing does); restart: what was being read or written then goes on. */
static inline void on_signal(int number, void (*answer)(int), int restart) {
#ifdef __wasi__ /* it has no signals, so no program is interrupted there */
    (void)number, (void)answer, (void)restart;
#else
    sigaction(number, &(struct sigaction){.sa_handler = answer, .sa_flags = restart ? SA_RESTART : 0}, NULL);
#endif
}

/* Reports the last error on one line, and returns the exit code. */
static inline int fail(const char *program, int status) {
    clear_live();
    if (status == LLMC_STOPPED) return INTERRUPTED; /* the signal handler has answered already */
    fprintf(stderr, "%s: %s\n", program, llmc_last_error());
    return 1 - status; /* EINVAL 2, ENOMEM 3, EFORMAT 4, EIO 5, EDEVICE 6, ENUMERIC 7 */
}

static int lost; /* the errno of the first write to stdout that failed */

static inline void show(const char *text, int64_t size) {
    clear_live();
    errno = 0;
    fwrite(text, 1, (size_t)size, stdout);
    fflush(stdout);
    if (ferror(stdout) && !lost) lost = errno ? errno : EIO;
}

/* Returns the exit code of the program. It is an error if output was lost, but not if its reader left, who has read enough. */
static inline int finish_output(const char *program, int code) {
    show("", 0);
    if (code || !lost || lost == EPIPE) return code;
    fprintf(stderr, "%s: standard output could not be written: %s; free some room or name another file\n", program,
            strerror(lost));
    return 1 - LLMC_EIO;
}

/* Shows --help, or --version if the parser returned 2. */
static inline int show_about(int parsed, const char *command, const llmc_options *options) {
    if (parsed == 2) {
        printf("pyllmc %s\n", llmc_version());
        return 0;
    }
    const int width = help_columns(), n = llmc_options_help(options, command, width, NULL, 0);
    char *text = n < 0 ? NULL : malloc((size_t)n + 1);
    if (!text) return fail(command, n < 0 ? n : llmc_fail(LLMC_ENOMEM, "no memory for the help"));
    llmc_options_help(options, command, width, text, (size_t)n + 1);
    show(text, n);
    free(text);
    return 0;
}
#endif
