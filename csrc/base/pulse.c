/* Signs of life: each thread has one callback. */
#include "base/pulse.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "base/error.h"

static _Thread_local llmc_pulse *receiver;
static _Thread_local void *context;
static _Thread_local char told[1024]; /* the last line told */

void llmc_on_pulse(llmc_pulse *call, void *with) {
    receiver = call, context = with;
    *told = 0;
}

/* Gives a text to the receiver. It may show it on a terminal, so control characters, which a path can hold, are
 * replaced. */
static int tell(char *text) {
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 127) *c = '?';
    return receiver(context, text) ? llmc_fail(LLMC_STOPPED, "stopped") : LLMC_OK;
}

int pulse(const char *format, ...) {
    va_list arguments;
    if (!receiver) return LLMC_OK;
    va_start(arguments, format);
    vsnprintf(told, sizeof told, format, arguments);
    va_end(arguments);
    return tell(told);
}

int pulse_part(const char *format, ...) {
    char text[2 * sizeof told];
    va_list arguments;
    if (!receiver) return LLMC_OK;
    const int n = snprintf(text, sizeof text, "%s%s", told, *told ? ", " : "");
    va_start(arguments, format);
    vsnprintf(text + n, sizeof text - (size_t)n, format, arguments);
    va_end(arguments);
    return tell(text);
}

int pulse_share(Share *s, int64_t more) {
    s->done += more;
    const int percent = s->done < s->all ? (int)(100.0 * (double)s->done / (double)s->all) : 100;
    if (percent == s->percent) return LLMC_OK;
    s->percent = percent;
    return pulse("%s%s%s: %d %%", s->what, *s->path ? " " : "", s->path, percent);
}
