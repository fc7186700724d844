/* Reads the file of options that --config names: a line is name=value; blank lines and # comments are skipped. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/error.h"
#include "options/options.h"

static const char BLANKS[] = " \t\r\n";
enum { LARGEST = 1 << 20 }; /* bytes of the largest file */

static char *trimmed(char *text) {
    text += strspn(text, BLANKS);
    size_t n = strlen(text);
    while (n && strchr(BLANKS, text[n - 1])) n--;
    text[n] = 0;
    return text;
}

/* Cuts a comment off. A # begins a comment at the start of the text or after a blank. */
static void cut_comment(char *text) {
    for (char *c = text; *c; c++)
        if (*c == '#' && (c == text || c[-1] == ' ' || c[-1] == '\t')) *c = 0, c--;
}

/* Replaces a quoted text by its content. \" and \\ stand for the second character. */
static int unquote(char *text) {
    char *to = text, *from = text + 1;
    for (; *from && *from != '"'; from++) {
        if (*from == '\\' && (from[1] == '"' || from[1] == '\\')) from++;
        *to++ = *from;
    }
    CHECK(*from, LLMC_EINVAL, "a closing \" is missing");
    cut_comment(from + 1);
    CHECK(!*trimmed(from + 1), LLMC_EINVAL, "nothing but a # comment may stand behind the closing \"");
    *to = 0;
    return LLMC_OK;
}

static int take_line(llmc_options *options, char *line, unsigned char *seen) {
    const Option *o = NULL;
    char *name = trimmed(line), *value = strchr(name, '=');
    if (!*name || *name == '#') return LLMC_OK;
    CHECK(value, LLMC_EINVAL, "'%.40s' is no line name=value", name);
    *value++ = 0;
    name = trimmed(name), value = trimmed(value);
    if (*value == '"') TRY(unquote(value));
    else cut_comment(value), value = trimmed(value);
    TRY(option_find(options, name, &o));
    CHECK(o->offset != offsetof(llmc_options, config), LLMC_EINVAL, "a file of options cannot name another one");
    CHECK(!seen[o - option_table]++, LLMC_EINVAL, "--%s stands here a second time", o->name);
    /* an option of the call wins over the file, but the file's value must be valid, too */
    llmc_options aside = *options;
    llmc_options *to = *option_given(options, o) == BY_CALL ? &aside : options;
    TRY(option_assign(to, o, value));
    if (o->offset == offsetof(llmc_options, model)) memcpy(options->file_model, to->model, sizeof to->model);
    if (to == options) *option_given(options, o) = BY_FILE;
    return LLMC_OK;
}

/* Undoes an earlier file completely. */
static void forget_file(llmc_options *options) {
    char initial[OPTION_TEXT];
    *options->file_model = 0;
    for (EACH_OPTION(o, options)) {
        if (*option_given(options, o) != BY_FILE) continue;
        option_default(o, initial);
        option_assign(options, o, initial);
        *option_given(options, o) = 0;
    }
}

static int take_lines(llmc_options *options, char *text, size_t size, const char *path, unsigned char *seen) {
    char reason[1024], *line = text, *next;
    int rc = LLMC_OK;
    if (size >= 3 && !memcmp(text, "\xef\xbb\xbf", 3)) line += 3; /* a byte order mark */
    for (int number = 1; rc == 0 && line < text + size; number++, line = next) {
        char *end = memchr(line, '\n', (size_t)(text + size - line));
        if (!end) end = text + size;
        *end = 0, next = end + 1;
        rc = line + strlen(line) < end ? llmc_fail(LLMC_EINVAL, "a NUL byte: this is no text")
                                       : take_line(options, line, seen);
        if (rc == 0) continue;
        snprintf(reason, sizeof reason, "%s", llmc_last_error());
        llmc_fail(rc, "%s:%d: %s", path, number, reason);
    }
    return rc;
}

/* Reads the whole file first, because it may be a pipe. A file that is too long, or never ends, is refused. */
static int take_file(llmc_options *options, FILE *file, const char *path, unsigned char *seen) {
    char *text = malloc(LARGEST + 1);
    CHECK(text, LLMC_ENOMEM, "no memory to read %s", path);
    const size_t size = fread(text, 1, LARGEST + 1, file);
    const int rc =
        ferror(file) ? llmc_fail(LLMC_EIO, "the options in %s cannot be read: %s; name a file or a run's folder", path,
                                 strerror(errno))
        : size > LARGEST ? llmc_fail(LLMC_EINVAL, "%s is longer than 1 MiB: this is no file of options", path)
                         : take_lines(options, text, size, path, seen);
    free(text);
    return rc;
}

/* A pipe that this process has open, as a shell's <(command) is, has its writer; a named one may never get any. */
static int check_has_writer(const char *path) {
    static const char *const open_pipes[] = {"/dev/stdin", "/dev/fd/", "/proc/self/fd/"};
    struct stat s;
    if (stat(path, &s) < 0 || !S_ISFIFO(s.st_mode)) return LLMC_OK;
    for (size_t i = 0; i < sizeof open_pipes / sizeof *open_pipes; i++)
        if (!strncmp(path, open_pipes[i], strlen(open_pipes[i]))) return LLMC_OK;
    FAIL(LLMC_EIO,
         "--config=%s cannot be read: it is a named pipe, which nobody may ever write into; name a file, or pipe it "
         "into "
         "--config=/dev/stdin",
         path);
}

int options_read(llmc_options *options, const char *path) {
    char inside[OPTION_TEXT + 16];
    llmc_options fresh = *options;
    snprintf(inside, sizeof inside, "%s/config.txt", path); /* `path` may be the folder of a run */
    if (access(inside, F_OK) == 0) path = inside;
    TRY(check_has_writer(path));
    unsigned char *seen = calloc((size_t)option_rows, 1);
    CHECK(seen, LLMC_ENOMEM, "no memory to read %s", path);
    FILE *file = fopen(path, "r");
    int rc = file ? LLMC_OK
                  : llmc_fail(LLMC_EIO, "--config=%s cannot be read: %s%s", path, strerror(errno), remedy_for(errno));
    forget_file(&fresh);
    if (file) rc = take_file(&fresh, file, path, seen);
    if (file) fclose(file);
    free(seen);
    if (rc == 0) *options = fresh;
    return rc;
}
