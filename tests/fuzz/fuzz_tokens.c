/* Token files: {u8 how; int32 B, T, V, eot, rank, world; int64 position, seed; u16 bytes of the first file; both files}, see
 * fuzz_file(). how & 4: only one; & 8: shuffled. */
#include "fuzz.h"

typedef struct Asked {
    int B, T, V, eot, rank, world;
} Asked;

static void read_batches(llmc_loader *d, const Asked *a, int64_t position) {
    const size_t n = (size_t)a->B * (size_t)a->T;
    int *inputs = malloc(n * sizeof *inputs), *targets = malloc(n * sizeof *targets);
    fuzz_expect(inputs && targets && llmc_loader_windows(d) > 0 && llmc_loader_tokens(d) > a->T);
    fuzz_status(llmc_loader_set_position(d, position));
    for (int step = 0; step < 3; step++) {
        const int64_t before = llmc_loader_position(d);
        const int rc = fuzz_status(llmc_loader_next(d, inputs, targets));
        fuzz_expect(rc < 0 || llmc_loader_position(d) == before + (int64_t)a->world * a->B);
        for (size_t i = 0; rc == 0 && i < n; i++) {
            fuzz_expect(inputs[i] >= 0 && targets[i] >= 0);
            if (a->V) fuzz_expect(inputs[i] < a->V && targets[i] < a->V);
            if ((i + 1) % (size_t)a->T) fuzz_expect(targets[i] == inputs[i + 1]);
        }
    }
    free(inputs);
    free(targets);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Input in = {data, size};
    const int how = take_byte(&in);
    Asked a;
    take(&in, &a, sizeof a);
    const int64_t position = take_long(&in), seed = take_long(&in);
    uint16_t first;
    take(&in, &first, sizeof first);
    const char *path = fuzz_path(0, fuzz_file(take_input(&in, first), how & AS_IS, 3));
    fuzz_path(1, fuzz_file(in, how & AS_IS, 3));
    llmc_loader *d;
    const int rc = fuzz_status(llmc_loader_open(&d, how & 4 ? path : TWO_PATHS, "train", a.B, a.T, !!(how & 8), seed,
                                                a.rank, a.world, a.V, a.eot));
    fuzz_expect(!d == (rc < 0));
    if (d && (int64_t)a.B * a.T <= 4096) read_batches(d, &a, position);
    llmc_loader_free(d);
    return 0;
}
