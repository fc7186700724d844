/* CRC-32 as zlib, PNG and Ethernet compute it. */
#ifndef CRC32_H
#define CRC32_H
#include <stdint.h>
enum { CRC_STRIDE = 16 };
typedef struct Crc32 {
    uint32_t value; /* of what has been added so far */
    uint32_t table[CRC_STRIDE][256];
} Crc32;
void crc32_start(Crc32 *crc);
void crc32_add(Crc32 *crc, const void *data, int64_t n);
#endif
