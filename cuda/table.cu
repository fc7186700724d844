/* Fills struct Kernels for the GPU, and tells which device this library is for. */
#include <cstring>
#include "device.cuh"
extern "C" {
#include "../csrc/base/error.h"
}

static int64_t workspace_bytes(int B, int T, int C, int NH, int Vp, int threads) {
    (void)threads;
    const int64_t needs[] = {gpu_encoder_workspace(B, T, C, Vp), gpu_layernorm_workspace(B, T, C),
                             gpu_matmul_workspace(B, T, C, Vp), gpu_attention_workspace(B, T, C, NH),
                             gpu_adamw_workspace()};
    int64_t most = 0;
    for (int64_t need : needs) most = need > most ? need : most;
    return divide_up(most, (int64_t)256) * 256;
}

static Kernels make_table(void) {
    Kernels k = {};
    k.name = BACKEND;
    k.supported = gpu_present;
    k.element = std::is_same<floatX, float>::value ? LLMC_FP32 : LLMC_BF16;
    k.memory_available = gpu_memory_available, k.open = gpu_open, k.close = gpu_close;
    k.alloc = gpu_alloc, k.free = gpu_free, k.workspace_bytes = workspace_bytes;
    k.sync = gpu_sync, k.replay = gpu_replay, k.recorded = gpu_recorded;
    k.fill = gpu_fill, k.copy_in = gpu_copy_in, k.copy_out = gpu_copy_out;
#define ENTRY(entry) k.entry = gpu_##entry;
    EACH_KERNEL(ENTRY)
    return k;
}

extern "C" const char *llmc_backend(void) { return BACKEND; }
extern "C" const char *llmc_refused(void) { return ""; }
extern "C" const char *llmc_blas(void) { return ""; }   // cuBLASLt is found at run time
extern "C" int llmc_default_threads(void) { return 1; } /* host threads: one is enough to give the device its work */
extern "C" int llmc_start_threads(int threads) { return threads; }

static const char *name_of(int element) { return element == LLMC_FP32 ? "fp32" : "bf16"; }

extern "C" const Kernels *llmc_kernels(const char *isa, int element) {
    static const Kernels table = make_table();
    if (isa && *isa && strcmp(isa, table.name)) {
        llmc_fail(LLMC_EDEVICE, "no kernels called '%s': this library has '%s'; name that, or none", isa, table.name);
        return NULL;
    }
    if (element != LLMC_AUTO && element != table.element) {
        llmc_fail(
            LLMC_EDEVICE,
            "%s was built for %s, and its build for %s is another library: choose the precision %s or auto, or run "
            "python -m pyllmc.train, which finds both",
            table.name, name_of(table.element), name_of(element), name_of(table.element));
        return NULL;
    }
    return table.supported() ? &table : NULL;
}
