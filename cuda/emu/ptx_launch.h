/* Launching translated kernels (ptx.py) by their names. */
#pragma once
#include "ptx_run.h"

namespace ptx {
struct Kernel {
    const char *name;
    void (*body)(const void *);
    unsigned shared_bytes;
};
extern const Kernel kernels[]; /* the last has no name */
} // namespace ptx

/* Launches a kernel whose parameters lie as PTX lays them out. Returns 0 or a cudaError_t; -1: there is no such kernel. */
extern "C" __attribute__((visibility("default"))) inline __attribute__((used)) int ptx_launch(
    const char *name, const unsigned grid[3], const unsigned block[3], unsigned dynamic, const void *parameters,
    size_t bytes) {
    for (const ptx::Kernel *k = ptx::kernels; k->name; k++) {
        if (strcmp(k->name, name)) continue;
        const void *body = reinterpret_cast<const void *>(k->body);
        emu::Shape shape{{grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, k->shared_bytes + dynamic, 0};
        emu::set_function_attribute(body, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 << 10);
        emu::launch(name, body, shape, k->body, parameters, bytes);
        return cudaGetLastError();
    }
    return -1;
}
