/* Computes 32-bit CRCs of 16 bytes at a time, one table for each of them ("slicing", Kounavis and Berry 2005). A disk
 * is no faster. */
#include <string.h>
#include "base/crc32.h"

void crc32_start(Crc32 *crc, uint32_t polynomial) {
    crc->value = 0;
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t c = byte;
        for (int bit = 0; bit < 8; bit++) c = c >> 1 ^ (c & 1 ? polynomial : 0);
        crc->table[0][byte] = c;
    }
    for (int i = 1; i < CRC_STRIDE; i++)
        for (int byte = 0; byte < 256; byte++) {
            const uint32_t c = crc->table[i - 1][byte];
            crc->table[i][byte] = c >> 8 ^ crc->table[0][c & 255];
        }
}

void crc32_add(Crc32 *crc, const void *data, int64_t n) {
    const unsigned char *p = data;
    uint32_t c = ~crc->value;
    for (; n >= CRC_STRIDE; n -= CRC_STRIDE, p += CRC_STRIDE) {
        unsigned char block[CRC_STRIDE];
        memcpy(block, p, CRC_STRIDE);
        for (int i = 0; i < 4; i++) block[i] ^= (unsigned char)(c >> 8 * i);
        c = 0;
#pragma GCC unroll 16
        for (int i = 0; i < CRC_STRIDE; i++) c ^= crc->table[CRC_STRIDE - 1 - i][block[i]];
    }
    for (; n > 0; n--) c = c >> 8 ^ crc->table[0][(c ^ *p++) & 255];
    crc->value = ~c;
}
