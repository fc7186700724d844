/* Every fallible function returns 0 or a negative llmc_status; the reason and the remedy wait in llmc_last_error(). */
#ifndef ERROR_H
#define ERROR_H
#include "pyllmc.h"
int llmc_fail(int status, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The remedy for an errno, as the end of a message: "; free some space ..."; "" where none is certain. */
const char *remedy_for(int error);
/* The ending of a plural: "" for 1, "s" for any other count */
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
