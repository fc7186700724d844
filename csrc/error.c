/* The thread's last error. */
#include <stdarg.h>
#include <stdio.h>
#include "error.h"

static _Thread_local char message[1024];

const char *llmc_last_error(void) { return message; }

int llmc_fail(int status, const char *format, ...) {
    char text[sizeof message]; /* an argument may be the old message itself */
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    snprintf(message, sizeof message, "%s", text);
    return status;
}
