/* The terminal of the programs: its width, and a line that is rewritten while work goes on. */
#include "programs/terminal.h"
#include "base/signals.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST = 256 }; /* bytes that the line has at most */

static volatile sig_atomic_t live_width; /* the bytes of the line that are shown */

int terminal_columns(int descriptor) {
#ifdef TIOCGWINSZ
    struct winsize size;
    if (isatty(descriptor) && ioctl(descriptor, TIOCGWINSZ, &size) == 0) return size.ws_col;
#endif
    (void)descriptor;
    return 0;
}

int help_columns(void) {
    const char *said = getenv("COLUMNS");
    const int wanted = said ? atoi(said) : 0, columns = wanted > 0 ? wanted : terminal_columns(STDOUT_FILENO);
    return columns ? columns : 100;
}

/* Whether the line may be shown. Not if stdout is a pipe, because its lines may come out on the same terminal (| tee). */
static int has_live_line(void) {
    struct stat out;
    return isatty(STDERR_FILENO) && (fstat(STDOUT_FILENO, &out) < 0 || !S_ISFIFO(out.st_mode));
}

static void put_error(const char *text, size_t size) {
    while (size && write(STDERR_FILENO, text, size) < 0 && errno == EINTR) {
    }
}

void clear_live(void) {
    char blank[MOST + 2];
    const size_t n = (size_t)live_width;
    if (!n) return;
    memset(blank, ' ', sizeof blank);
    blank[0] = blank[n + 1] = '\r';
    put_error(blank, n + 2);
    live_width = 0;
}

static int is_inside_character(char c) { return ((unsigned char)c & 0xc0) == 0x80; }

/* Fits text into `most` bytes. The middle is left out, where a path is, because the end tells how far the work is. */
static int fit(char *line, const char *text, int most) {
    const int n = (int)strlen(text);
    if (n <= most) return memcpy(line, text, (size_t)n), n;
    int front = most / 4, from = n - (most - front - 2);
    while (is_inside_character(text[from])) from++;
    while (front && is_inside_character(text[front])) front--;
    memcpy(line, text, (size_t)front);
    memcpy(line + front, "..", 2);
    memcpy(line + front + 2, text + from, (size_t)(n - from));
    return front + 2 + n - from;
}

void show_live(const char *text) {
    char line[MOST + 2];
    if (!*text || !has_live_line()) {
        clear_live();
        return;
    }
    const int columns = terminal_columns(STDERR_FILENO), fits = columns > 8 ? columns - 1 : 79;
    const int most = fits < MOST ? fits : MOST;
    memset(line, ' ', sizeof line);
    line[0] = '\r';
    const int n = fit(line + 1, text, most), old = (int)live_width, width = n > old ? n : old;
    live_width = n;
    put_error(line, (size_t)(width < most ? width : most) + 1);
}

void answer_signal(const char *text) {
    if (live_width) clear_live();
    else if (isatty(STDERR_FILENO)) put_error("\n", 1); /* the cursor is behind a text or ^C */
    put_error(text, strlen(text));
    put_error("\n", 1);
}
