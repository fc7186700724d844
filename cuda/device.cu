/* The device: how it is opened, its memory, and the copies to and from it. Of these, only sync waits for the device, and
 * copy_in if the host is far ahead. */
#include <cstdlib>
#include <cstring>
#include "device.cuh"
#include "gemm.cuh"
extern "C" {
#include "../csrc/base/error.h"
}

static const char *remedy(cudaError_t error) {
    if (error == cudaErrorMemoryAllocation)
        return "end other processes on it, which nvidia-smi lists, or choose a smaller B";
    if (error == cudaErrorNoKernelImageForDevice)
        return "it must have compute capability 8.0 or later; with an older one take --device=cpu";
    return "nvidia-smi and dmesg may tell what the device met; start again, from the last checkpoint";
}
static int fail(cudaError_t error, const char *what) {
    return llmc_fail(LLMC_EDEVICE, "%s: %s failed: %s; %s", llmc_backend(), what, cudaGetErrorString(error),
                     remedy(error));
}

int gpu_present(void) {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess && count > 0) return 1;
    cudaGetLastError(); /* reported here, so that no later call meets it */
    llmc_fail(LLMC_EDEVICE, "no CUDA device: %s. Without a GPU take --device=cpu, or ./train_gpt2",
              error == cudaSuccess ? "the driver lists none" : cudaGetErrorString(error));
    return 0;
}

/* ---- copies to the device: through pinned memory; one half is filled while the other is on its way ---- */

constexpr int64_t HALF = 1 << 20;

/* ---- copies from the device: a few numbers go to pinned memory first, and reach their place in sync; so the request does
 * not wait ---- */

constexpr int FEW = 64, ASKED = 1024; /* the bytes of such a request; the most requests before a sync */

struct Staging {
    char *half[2];
    cudaEvent_t gone[2]; /* when the copy from each half has arrived */
    int now;
    int64_t used;
    char (*few)[FEW];
    struct {
        void *host;
        int64_t bytes;
    } asked[ASKED];
    int count;
};

static void deliver(const Staging *s, int count) {
    for (int i = 0; i < count; i++) memcpy(s->asked[i].host, s->few[i], (size_t)s->asked[i].bytes);
}

static cudaError_t open_staging(Staging *s) {
    void *memory = NULL;
    cudaError_t error = cudaMallocHost(&memory, 2 * HALF + FEW * ASKED);
    s->half[0] = (char *)memory, s->half[1] = s->half[0] + HALF, s->few = (char (*)[FEW])(s->half[1] + HALF);
    for (int i = 0; error == cudaSuccess && i < 2; i++) error = cudaEventCreate(&s->gone[i]);
    return error;
}

static void close_staging(Staging *s) {
    for (int i = 0; i < 2; i++)
        if (s->gone[i]) cudaEventDestroy(s->gone[i]);
    if (s->half[0]) cudaFreeHost(s->half[0]);
}

/* Returns room for n <= HALF bytes that may be written at once. */
static char *stage(Staging *s, int64_t n, cudaStream_t stream) {
    if (s->used + n > HALF) {
        cudaEventRecord(s->gone[s->now], stream);
        s->now = !s->now, s->used = 0;
        cudaEventSynchronize(s->gone[s->now]);
    }
    char *at = s->half[s->now] + s->used;
    s->used += n;
    return at;
}

void gpu_copy_in(Context *ctx, void *dst, const void *host, int64_t bytes) {
    Staging *s = device_of(ctx)->staging;
    for (int64_t done = 0, n; done < bytes; done += n) {
        n = bytes - done < HALF ? bytes - done : HALF;
        char *pinned = stage(s, n, stream_of(ctx));
        memcpy(pinned, (const char *)host + done, (size_t)n);
        cudaMemcpyAsync((char *)dst + done, pinned, (size_t)n, cudaMemcpyHostToDevice, stream_of(ctx));
    }
}

void gpu_copy_out(Context *ctx, void *host, const void *src, int64_t bytes) {
    Staging *s = device_of(ctx)->staging;
    if (bytes <= FEW && s->count < ASKED) {
        s->asked[s->count].host = host, s->asked[s->count].bytes = bytes;
        host = s->few[s->count++];
    }
    cudaMemcpyAsync(host, src, (size_t)bytes, cudaMemcpyDeviceToHost, stream_of(ctx));
}

void gpu_fill(Context *ctx, void *dst, int byte, int64_t bytes) {
    if (bytes > 0) cudaMemsetAsync(dst, byte, (size_t)bytes, stream_of(ctx));
}

int gpu_sync(Context *ctx) {
    Device *d = device_of(ctx);
    const cudaError_t launched = cudaGetLastError(), ran = cudaStreamSynchronize(d->stream), noted = d->failed;
    const int asked = d->staging->count;
    d->failed = cudaSuccess, d->staging->count = 0; /* after an error the places asked for may be gone */
    if (noted != cudaSuccess) return fail(noted, "a graph");
    if (launched != cudaSuccess) return fail(launched, "a kernel's launch");
    if (ran != cudaSuccess) return fail(ran, "a kernel");
    deliver(d->staging, asked);
    return LLMC_OK;
}

/* ---- the device ---- */

static cudaError_t open_device(Device *d) {
    cudaDeviceProp device;
    cudaError_t error = cudaGetDeviceProperties(&device, 0);
    if (error != cudaSuccess) return error;
    d->multiprocessors = device.multiProcessorCount;
    error = cudaStreamCreate(&d->stream);
    return error == cudaSuccess ? open_staging(d->staging) : error;
}

int gpu_open(Context *ctx) {
    if (!gpu_present()) return LLMC_EDEVICE;
    Device *d = (Device *)calloc(1, sizeof *d);
    if (d) d->staging = (Staging *)calloc(1, sizeof *d->staging);
    ctx->device = d;
    CHECK(d && d->staging, LLMC_ENOMEM, "no memory to describe the device");
    const cudaError_t error = open_device(d);
    if (error != cudaSuccess) return fail(error, "opening the device");
    gemm_cublas_open(ctx);
    return LLMC_OK;
}

void gpu_close(Context *ctx) {
    Device *d = device_of(ctx);
    if (!d) return;
    graphs_close(d);
    gemm_cublas_close(d);
    if (d->staging) close_staging(d->staging);
    if (d->stream) cudaStreamDestroy(d->stream);
    free(d->staging);
    free(d);
    ctx->device = NULL;
}

int64_t gpu_memory_available(void) {
    size_t available = 0, total = 0;
    return cudaMemGetInfo(&available, &total) == cudaSuccess ? (int64_t)available : -1;
}

void *gpu_alloc(int64_t bytes) {
    void *memory = NULL;
    if (cudaMalloc(&memory, (size_t)bytes) == cudaSuccess) return memory;
    cudaGetLastError(); /* NULL reports it */
    return NULL;
}

void gpu_free(void *memory, int64_t bytes) {
    (void)bytes;
    cudaFree(memory);
}
