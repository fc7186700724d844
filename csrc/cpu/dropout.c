/* Dropout of rows, alone. */
#include "dropout.h"
#include "isa.h"
#include "threads.h"

typedef struct Dropped {
    floatX *out;
    const floatX *inp;
    const Dropout *dropout;
    int C;
} Dropped;
static void drop_rows(const void *given, Part rows) {
    const Dropped a = *(const Dropped *)given;
    const Dropout d = *a.dropout;
    for (int64_t row = rows.from; row < rows.to; row++)
        drop_columns(a.out + row * a.C, a.inp + row * a.C, &d, (uint32_t)row, 0, a.C);
}

void K(dropout)(Context *ctx, floatX *out, const floatX *inp, const Dropout *dropout, int B, int T, int C) {
    const int64_t rows = (int64_t)B * T;
    parallel_static(threads_among(ctx, rows, rows * C), rows, drop_rows, &(Dropped){out, inp, dropout, C});
}
