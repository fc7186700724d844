/* The entries of struct Kernels that are not layers: the device and its memory. */
#pragma once
#include "common.cuh"
int gpu_present(void); /* 1, or 0 and an error that says what is missing */
int64_t gpu_memory_available(void);
int gpu_open(Context *ctx);
void gpu_close(Context *ctx);
void *gpu_alloc(int64_t bytes);
void gpu_free(void *memory, int64_t bytes);
int gpu_sync(Context *ctx);
int gpu_replay(Context *ctx, const int64_t key[4]);
void gpu_recorded(Context *ctx);
void graphs_close(Device *d);
void gpu_fill(Context *ctx, void *dst, int byte, int64_t bytes);
void gpu_copy_in(Context *ctx, void *dst, const void *host, int64_t bytes);
void gpu_copy_out(Context *ctx, void *host, const void *src, int64_t bytes);
