/* The index of a TensorFlow checkpoint. It is a table in LevelDB's format, from names of tensors to descriptions, which are
 * protocol buffers.
 *
 *     blocks: entries {varint shared, rest, value size; rest of the key; value}, uint32 restarts[n], uint32 n
 *             then a byte for the compression (0: none) and uint32 masked crc32c of the block and that byte
 *     footer: the last 48 bytes: varint offset and size of the meta-index, and of the index, whose values are the offset and
 *             size of each block; zeros; uint64 magic */
#ifndef TFINDEX_H
#define TFINDEX_H
#include <stdint.h>
enum { TF_NAME = 96, TF_RANK = 4, TF_FLOAT = 1 };

typedef struct TfTensor {
    char name[TF_NAME]; /* a longer name is cut */
    int64_t dtype, rank, shape[TF_RANK];
    int64_t shard, offset, size; /* the data file's number; bytes from its start */
    uint32_t crc;                /* crc32c of the data, masked */
    int used;                    /* for the caller, who marks the tensors that it has found */
} TfTensor;
typedef struct TfIndex {
    TfTensor *tensors; /* sorted by name */
    int n, capacity;
    int64_t shards, endian; /* endian 0: little */
} TfIndex;
/* Reads the index. Free it with tfindex_free, even after an error. */
int tfindex_read(TfIndex *index, const char *path);
void tfindex_free(TfIndex *index);
TfTensor *tfindex_find(const TfIndex *index, const char *name); /* NULL if the index has no such name */
uint32_t tf_unmask(uint32_t crc);                               /* undoes the masking of a stored checksum */
#endif
