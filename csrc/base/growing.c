/* A text without a fixed limit, so that no fixed buffer can cut it off */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "base/growing.h"

static int reserve(Growing *g, size_t more) {
    if (g->size + more <= g->capacity) return 0;
    const size_t capacity = 2 * (g->size + more);
    char *text = realloc(g->text, capacity);
    if (!text) return g->failed = 1, -1;
    g->text = text, g->capacity = capacity;
    return 0;
}

void growing_add(Growing *g, const char *format, ...) {
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    const int n = vsnprintf(NULL, 0, format, arguments);
    if (n >= 0 && reserve(g, (size_t)n + 1) == 0)
        g->size += (size_t)vsnprintf(g->text + g->size, (size_t)n + 1, format, again);
    va_end(again);
    va_end(arguments);
}

char *growing_end(Growing *g) {
    growing_add(g, "%s", "");
    if (!g->failed) return g->text;
    free(g->text);
    return llmc_fail(LLMC_ENOMEM, "no memory for a text"), NULL;
}

int growing_copy(Growing *g, char *text, size_t size) {
    char *whole = growing_end(g);
    const int n = whole ? (int)strlen(whole) : LLMC_ENOMEM;
    if (whole && size) snprintf(text, size, "%s", whole);
    free(whole);
    return n;
}
