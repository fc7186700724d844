/* tokenizer.bin, and text through it: {u8 how; u8 bytes of text; text; the file}, see fuzz_file(). */
#include "fuzz.h"

/* Decodes into memory of exactly the size that is asked for. */
static char *decode(const llmc_tokenizer *k, const int *ids, int n, int *size) {
    *size = fuzz_status(llmc_tokenizer_decode(k, ids, n, NULL, 0));
    char *text = malloc((size_t)(*size > 0 ? *size : 1));
    if (*size >= 0) fuzz_expect(text && llmc_tokenizer_decode(k, ids, n, text, *size) == *size);
    return text;
}

static void encode(const llmc_tokenizer *k, Input text) {
    int size;
    const int n = fuzz_status(llmc_tokenizer_encode(k, (const char *)text.at, (int64_t)text.left, NULL, 0));
    if (n < 0) return;
    int *ids = malloc((size_t)n * sizeof *ids + 1);
    fuzz_expect(ids && llmc_tokenizer_encode(k, (const char *)text.at, (int64_t)text.left, ids, n) == n);
    for (int i = 0; i < n; i++) fuzz_expect(ids[i] != llmc_tokenizer_eot(k));
    char *back = decode(k, ids, n, &size);
    fuzz_expect(size == (int)text.left && (!size || !memcmp(back, text.at, text.left)));
    free(back);
    free(ids);
}

static void decode_all(const llmc_tokenizer *k) {
    const int V = llmc_tokenizer_size(k);
    for (int id = -1, size; id <= V; id++) {
        free(decode(k, &id, 1, &size));
        fuzz_expect((size >= 1) == (id >= 0 && id < V));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Input in = {data, size};
    llmc_tokenizer *k;
    const int how = take_byte(&in);
    const Input text = take_input(&in, (size_t)take_byte(&in));
    const Input file = fuzz_file(in, how & AS_IS, 9); /* 9 integers of the header: up to the third added id */
    void *exact = malloc(file.left + !file.left);
    fuzz_expect(exact);
    memcpy(exact, file.at, file.left);
    const int rc = fuzz_status(llmc_tokenizer_read(&k, exact, (int64_t)file.left, "tokenizer.bin"));
    free(exact);
    fuzz_expect(!k == (rc < 0));
    if (rc < 0) return 0;
    int64_t kept;
    const void *bytes = llmc_tokenizer_bytes(k, &kept);
    fuzz_expect(kept == (int64_t)file.left && !memcmp(bytes, file.at, file.left));
    fuzz_expect(llmc_tokenizer_eot(k) >= -1 && llmc_tokenizer_eot(k) < llmc_tokenizer_size(k));
    decode_all(k);
    encode(k, text);
    llmc_tokenizer_free(k);
    return 0;
}
