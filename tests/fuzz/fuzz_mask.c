/* Loss masks: {u8 how; u8 B, T; int32 eot; u8 n; n ids of a byte each; the mask}. Unless AS_IS the mask's first four int32 are its
 * header, as mask.h has it, to which the right checksums are added; CHECKSUM: and as many tokens as there are. */
#include "data/mask.h"
#include "fuzz.h"

static Input token_file(Input ids) {
    static uint8_t file[HEADER_BYTES + 2 * 255];
    const int32_t header[] = {UINT16_MAGIC, 1, (int32_t)ids.left};
    memcpy(file, header, sizeof header);
    for (size_t i = 0; i < ids.left; i++) file[HEADER_BYTES + 2 * i] = ids.at[i];
    return (Input){file, HEADER_BYTES + 2 * ids.left};
}

static Input mask_file(Input in, int how, Input tokens, int64_t n) {
    static uint8_t file[MASK_HEADER + FUZZ_FILE];
    if (how & AS_IS) return in;
    take(&in, file, 16);
    if (how & CHECKSUM) memcpy(file + 8, &n, sizeof n);
    const Input bits = take_input(&in, FUZZ_FILE);
    const uint32_t crcs[] = {fuzz_crc(tokens), fuzz_crc(bits)};
    memcpy(file + 16, crcs, sizeof crcs);
    if (bits.left) memcpy(file + MASK_HEADER, bits.at, bits.left);
    return (Input){file, MASK_HEADER + bits.left};
}

static void read_windows(llmc_loader *d, Input ids, int n) {
    int *inputs = malloc((size_t)n * sizeof *inputs), *targets = malloc((size_t)n * sizeof *targets);
    fuzz_expect(inputs && targets && llmc_loader_learnt(d) < (int64_t)ids.left);
    for (int step = 0; step < 3; step++) {
        const int rc = fuzz_status(llmc_loader_next(d, inputs, targets));
        for (int i = 0; rc == 0 && i < n; i++) fuzz_expect(targets[i] >= -1 && targets[i] < 256 && inputs[i] >= 0);
    }
    free(inputs);
    free(targets);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static char *path;
    Input in = {data, size};
    const int how = take_byte(&in), B = 1 + take_byte(&in) % 4, T = 1 + take_byte(&in) % 16, eot = take_int(&in);
    const Input ids = take_input(&in, (size_t)take_byte(&in)), tokens = token_file(ids);
    fuzz_path(0, tokens);
    fuzz_path(1, mask_file(in, how, tokens, (int64_t)ids.left));
    if (!path) path = strdup(fuzz_link(0, "masked.bin")), fuzz_link(1, "masked.bin.mask");
    fuzz_expect(path);
    llmc_loader *d;
    const int rc = fuzz_status(llmc_loader_open(&d, path, "train", B, T, 0, 0, 0, 1, 0, eot));
    fuzz_expect(!d == (rc < 0));
    if (d) read_windows(d, ids, B * T);
    llmc_loader_free(d);
    return 0;
}
