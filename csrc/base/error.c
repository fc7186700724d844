/* Keeps the last error of each thread, the version, and the checksum of the headers that the library was built from. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include "base/error.h"

static _Thread_local char message[1024];

const char *llmc_last_error(void) { return message; }

const char *llmc_headers(void) { return TABLES_CKSUM; }
const char *llmc_version(void) { return VERSION; }

int llmc_fail(int status, const char *format, ...) {
    char text[sizeof message]; /* an argument may point into the old message */
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    /* the message stays one line and gives a terminal no commands, whatever an argument holds */
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 127) *c = '?';
    snprintf(message, sizeof message, "%s", text);
    return status;
}

const char *s_of(int64_t count) { return count == 1 ? "" : "s"; }

const char *remedy_for(int error) {
    switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG: return "; free some space or name another folder";
    case EACCES:
    case EPERM:
    case EROFS: return "; name a folder that may be written";
    case ENOENT:
    case ENOTDIR:
    case ENAMETOOLONG:
    case ELOOP: return "; check the path";
    case EMFILE:
    case ENFILE: return "; close some files (ulimit -n)";
    default: return "";
    }
}
