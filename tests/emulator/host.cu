/* The runtime API for a test without a compiler: device memory, errors, options. */
#include "ptx.cuh"
#include "emu.h"
#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void *device_alloc(size_t bytes) {
    void *p;
    return cudaMalloc(&p, bytes) ? nullptr : p;
}
EXPORT int device_free(void *p) { return cudaFree(p); }
EXPORT int copy_in(void *device, const void *host, size_t bytes) {
    return cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice);
}
EXPORT int copy_out(void *host, const void *device, size_t bytes) {
    return cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost);
}
EXPORT const char *error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }
EXPORT int last_error() { return cudaGetLastError(); }
EXPORT int reset() { return cudaDeviceReset(); }
EXPORT int options(const char *schedule, uint64_t seed, int defer) { return emu_options(schedule, seed, defer); }
EXPORT void workers(int n) { emu_workers(n); }
EXPORT void skip_barrier(const char *file_line) { emu_skip_barrier(file_line); }
EXPORT int report(char *text, size_t size) { return emu_report(text, size); }
EXPORT void statistics(uint64_t counts[5]) { emu_statistics(counts); }
