/* 32-bit cyclic redundancy checks; bits run from the lowest to the highest */
#ifndef CRC32_H
#define CRC32_H
#include <stdint.h>
#define CRC_ZLIB 0xedb88320u       /* as zlib, PNG and Ethernet compute it */
#define CRC_CASTAGNOLI 0x82f63b78u /* "crc32c", as LevelDB, TensorFlow and iSCSI compute it */
enum { CRC_STRIDE = 16 };
typedef struct Crc32 {
    uint32_t value; /* the checksum of all bytes added so far; 0 begins a new one */
    uint32_t table[CRC_STRIDE][256];
} Crc32;
void crc32_start(Crc32 *crc, uint32_t polynomial);
void crc32_add(Crc32 *crc, const void *data, int64_t n);
#endif
