/* What the programs share. */
#ifndef PROGRAM_H
#define PROGRAM_H
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>
#include "pyllmc.h"

enum { INTERRUPTED = 130 };

/* A stream that was closed stays so: no file may take its number, or what is told would land in it. */
static inline void hold_streams(void) {
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) /* opened the other way round: its use fails, as before */
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) < 0) return;
}

/* ---- a line on the terminal that is rewritten, and goes before anything else is shown ---- */

static volatile sig_atomic_t live_width; /* bytes of it that are shown */

/* not before the lines of a pipe, which may come out on the same terminal (| tee) */
static inline int has_live_line(void) {
    struct stat out;
    return isatty(STDERR_FILENO) && (fstat(STDOUT_FILENO, &out) < 0 || !S_ISFIFO(out.st_mode));
}

static inline void put_error(const char *text, size_t size) {
    while (size && write(STDERR_FILENO, text, size) < 0 && errno == EINTR) {
    }
}

/* also from a signal handler */
static inline void clear_live(void) {
    char blank[258];
    const size_t n = (size_t)live_width;
    if (!n) return;
    memset(blank, ' ', sizeof blank);
    blank[0] = blank[n + 1] = '\r';
    put_error(blank, n + 2);
    live_width = 0;
}

/* text in at most `most` bytes: the path in its middle gives way to how far it is, at its end */
static inline int fit_live(char *line, const char *text, int most) {
    const int n = (int)strlen(text), head = most / 4;
    if (n <= most) return memcpy(line, text, (size_t)n), n;
    int from = n - (most - head - 2);
    while (((unsigned char)text[from] & 0xc0) == 0x80) from++; /* a character is cut whole */
    int to = head;
    while (to && ((unsigned char)text[to] & 0xc0) == 0x80) to--;
    memcpy(line, text, (size_t)to);
    memcpy(line + to, "..", 2);
    memcpy(line + to + 2, text + from, (size_t)(n - from));
    return to + 2 + n - from;
}

/* A pulse's text (llmc_pulse): "" takes the line away. */
static inline void show_live(const char *text) {
    char line[258];
    struct winsize window;
    if (!*text || !has_live_line()) {
        clear_live();
        return;
    }
    int most = ioctl(STDERR_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 8 ? window.ws_col - 1 : 79;
    if (most > 256) most = 256;
    memset(line, ' ', sizeof line);
    line[0] = '\r';
    const int n = fit_live(line + 1, text, most), old = (int)live_width, width = n > old ? n : old;
    live_width = n;
    put_error(line, (size_t)(width < most ? width : most) + 1);
}

/* From a signal handler: the answer to a first Ctrl-C, on a line of its own. */
static inline void answer_signal(const char *text) {
    if (live_width) clear_live();
    else if (isatty(STDERR_FILENO)) put_error("\n", 1); /* behind a text, or ^C */
    put_error(text, strlen(text));
    put_error("\n", 1);
}

static inline int fail(const char *program, int status) {
    clear_live();
    if (status == LLMC_STOPPED) return INTERRUPTED; /* which was answered when it came */
    fprintf(stderr, "%s: %s\n", program, llmc_last_error());
    return 1 - status; /* EINVAL 2, ENOMEM 3, EFORMAT 4, EIO 5, EDEVICE 6, ENUMERIC 7 */
}

static int lost; /* errno of the first write to stdout that failed */

static inline void show(const char *text, int64_t size) {
    clear_live();
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
