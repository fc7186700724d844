/* TensorFlow checkpoints: {u8 how; u16 bytes of hparams.json, of the index, of the data; each of them}.
 *
 * The data is zeros behind what the input gives. An index that is not AS_IS is entries only: {u16 of the first block; the
 * entries of two blocks}, around which their restarts and checksums, the block of their places and the footer are made. */
#include "base/crc32.h"
#include "fuzz.h"

enum { NO_INDEX = 4, ROOM = FUZZ_FILE + 1024 };

static void put(Input *file, uint8_t *bytes, const void *data, size_t n) {
    if (n) memcpy(bytes + file->left, data, n);
    file->left += n;
}

/* A varint of three bytes, even for a small number. */
static void put_varint(Input *file, uint8_t *bytes, size_t n) {
    const uint8_t three[] = {(uint8_t)(n | 128), (uint8_t)(n >> 7 | 128), (uint8_t)(n >> 14 & 127)};
    put(file, bytes, three, sizeof three);
}

/* Writes a block: entries, their one restart, no compression, the masked checksum. Its handle goes to `handle`. */
static void put_block(Input *file, uint8_t *bytes, Input entries, Input *handles, uint8_t *handle) {
    static Crc32 crc;
    static const uint32_t restarts[] = {0, 1};
    if (!crc.table[0][1]) crc32_start(&crc, CRC_CASTAGNOLI);
    const size_t at = file->left;
    put(file, bytes, entries.at, entries.left);
    put(file, bytes, restarts, sizeof restarts);
    const size_t size = file->left - at;
    put(file, bytes, "", 1);
    crc.value = 0;
    crc32_add(&crc, bytes + at, (int64_t)size + 1);
    const uint32_t masked = (crc.value >> 15 | crc.value << 17) + 0xa282ead8u;
    put(file, bytes, &masked, sizeof masked);
    put_varint(handles, handle, at);
    put_varint(handles, handle, size);
}

static Input assemble(Input in) {
    static uint8_t bytes[ROOM];
    static const uint8_t magic[] = {0x57, 0xfb, 0x80, 0x8b, 0x24, 0x75, 0x47, 0xdb}, zeros[40];
    uint8_t places[32], footer[8] = {0};
    uint16_t first;
    take(&in, &first, sizeof first);
    const Input blocks[] = {take_input(&in, first), in};
    Input file = {bytes, 0}, table = {places, 0}, end = {footer, 2}; /* the meta-index is empty */
    for (int i = 0; i < 2; i++) {
        put(&table, places, "\0\1\6z", 4);
        put_block(&file, bytes, blocks[i], &table, places);
    }
    put_block(&file, bytes, table, &end, footer);
    put(&file, bytes, footer, sizeof footer);
    put(&file, bytes, zeros, sizeof zeros - sizeof footer);
    put(&file, bytes, magic, sizeof magic);
    return file;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static uint8_t bytes[ROOM];
    static const char *path, *alone;
    Input in = {data, size};
    uint16_t sizes[3];
    if (!path) {
        fuzz_link(0, "hparams.json");
        fuzz_link(1, "model.ckpt.index");
        alone = strdup(fuzz_link(2, "alone.data-00000-of-00001"));
        path = fuzz_link(2, "model.ckpt.data-00000-of-00001");
    }
    const int how = take_byte(&in);
    take(&in, sizes, sizeof sizes);
    fuzz_path(0, take_input(&in, sizes[0]));
    const Input index = take_input(&in, sizes[1]);
    fuzz_path(1, how & AS_IS ? index : assemble(index));
    take(&in, bytes, sizes[2]);
    fuzz_path(2, (Input){bytes, sizes[2]});
    fuzz_load(how & NO_INDEX ? alone : path, 0);
    return 0;
}
