/* Every fallible function returns 0 or a negative llmc_status; the reason and the remedy wait in llmc_last_error(). */
#ifndef ERROR_H
#define ERROR_H
#include "pyllmc.h"
int llmc_fail(int status, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* What to do about an errno, as the end of a message: "; free some space ..."; "" where nothing is certain. */
const char *remedy_for(int error);
/* The plural's ending: "" of one, "s" of any other count. */
const char *s_of(int64_t count);
#define FAIL(status, ...) return llmc_fail(status, __VA_ARGS__)
#define CHECK(condition, status, ...)                \
    do {                                             \
        if (!(condition)) FAIL(status, __VA_ARGS__); \
    } while (0)
#define TRY(expression)          \
    do {                         \
        int rc_ = (expression);  \
        if (rc_ < 0) return rc_; \
    } while (0)
#endif
