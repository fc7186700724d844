/* Device memory: ordinary memory that begins as NaN and is watched. With PYLLMC_EMU_PROTECT=1 the host cannot touch it
 * but through the runtime, so that a forgotten copy is a segmentation fault here as well. */
#include <map>
#include <sys/mman.h>
#include <unistd.h>
#include "emu_check.h"

namespace emu {

/* ---- what is allocated ---- */

struct Memory {
    std::map<const char *, size_t> device, pinned; /* begin, bytes */
    size_t used = 0;
    int open = 0; /* how many OpenMemory live */
};
static Memory &memory() {
    static Memory *m = new Memory;
    return *m;
}
std::recursive_mutex &runtime_lock() {
    static std::recursive_mutex *m = new std::recursive_mutex;
    return *m;
}

static bool inside(const std::map<const char *, size_t> &ranges, const void *p, size_t bytes) {
    const char *c = static_cast<const char *>(p);
    auto it = ranges.upper_bound(c);
    if (it == ranges.begin()) return false;
    --it;
    return c + bytes <= it->first + it->second;
}
bool is_device(const void *p, size_t bytes) { return inside(memory().device, p, bytes); }
bool is_pinned(const void *p, size_t bytes) { return inside(memory().pinned, p, bytes); }

static size_t mapped(size_t bytes) { return (bytes + 65535) / 65536 * 65536; }
static void protect(int how) {
    if (!options().protect) return;
    for (auto &[begin, bytes] : memory().device) mprotect(const_cast<char *>(begin), mapped(bytes), how);
}
OpenMemory::OpenMemory() {
    if (!memory().open++) protect(PROT_READ | PROT_WRITE);
}
OpenMemory::~OpenMemory() {
    if (!--memory().open) protect(PROT_NONE);
}

static size_t device_bytes() {
    const char *text = getenv("PYLLMC_EMU_MEMORY");
    if (text) return (size_t)strtoull(text, nullptr, 10);
    return (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
}

static cudaError_t allocate(void **p, size_t bytes) {
    Memory &m = memory();
    if (bytes > device_bytes() - std::min(device_bytes(), m.used))
        return set_error(cudaErrorMemoryAllocation, std::to_string(bytes) + " bytes asked for, " +
                                                        std::to_string(m.used) + " of " +
                                                        std::to_string(device_bytes()) + " in use");
    void *memory = mmap(nullptr, mapped(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return set_error(cudaErrorMemoryAllocation, "the system has no more");
    OpenMemory open;
    memset(memory, 0xFF, bytes);
    m.device[static_cast<char *>(memory)] = bytes;
    m.used += bytes;
    check_allocated(memory, bytes);
    *p = memory;
    return cudaSuccess;
}

static void release(void *p, size_t bytes) {
    check_freed(p);
    munmap(p, mapped(bytes));
    memory().device.erase(static_cast<char *>(p));
    memory().used -= bytes;
}

/* ---- copies ---- */

static cudaError_t check_direction(const void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind == cudaMemcpyDefault) return cudaSuccess;
    if (to_device != is_device(to, bytes))
        return set_error(cudaErrorInvalidValue, to_device ? "a copy to the device does not fit an allocation"
                                                          : "a copy to the host has its target on the device");
    if (from_device != is_device(from, bytes))
        return set_error(cudaErrorInvalidValue, from_device ? "a copy from the device does not fit an allocation"
                                                            : "a copy from the host has its source on the device");
    return cudaSuccess;
}

static void move(void *to, const void *from, size_t bytes) {
    if (sticky_error()) return;
    OpenMemory open;
    memmove(to, from, bytes);
    if (is_device(to, bytes)) check_written(to, bytes);
}

/* Memory that is not pinned is staged: read before the call returns, or written before it does (API, "Synchronous"). */
static cudaError_t copy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    cudaError_t error = check_direction(to, from, bytes, kind);
    if (error || !bytes) return error;
    bool captured = is_capturing(stream);
    if (!captured && !is_device(from, bytes) && !is_pinned(from, bytes)) {
        const char *first = static_cast<const char *>(from);
        std::vector<char> staged(first, first + bytes);
        return submit(stream, [=] { move(to, staged.data(), bytes); });
    }
    error = submit(stream, [=] { move(to, from, bytes); });
    if (!captured && !is_device(to, bytes) && !is_pinned(to, bytes)) finish_stream(stream);
    return error ? error : sticky_error();
}

static cudaError_t fill(void *p, int byte, size_t bytes, cudaStream_t stream) {
    if (!is_device(p, bytes)) return set_error(cudaErrorInvalidValue, "cudaMemset does not fit an allocation");
    return submit(stream, [=] {
        if (sticky_error()) return;
        OpenMemory open;
        memset(p, byte, bytes);
        check_written(p, bytes);
    });
}

static cudaError_t pin(void **p, size_t bytes) {
    *p = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (!*p) return set_error(cudaErrorMemoryAllocation, "no pinned memory");
    memory().pinned[static_cast<char *>(*p)] = bytes;
    return cudaSuccess;
}
} // namespace emu

using namespace emu;

cudaError_t cudaMalloc(void **p, size_t bytes) {
    Locked lock(runtime_lock());
    *p = nullptr;
    cudaError_t error = forbidden_in_capture("cudaMalloc");
    if (error || !bytes) return error;
    return allocate(p, bytes);
}
cudaError_t cudaFree(void *p) {
    Locked lock(runtime_lock());
    cudaError_t error = forbidden_in_capture("cudaFree");
    if (error || !p) return error;
    finish_all();
    auto it = memory().device.find(static_cast<char *>(p));
    if (it == memory().device.end())
        return set_error(cudaErrorInvalidValue, "cudaFree of what cudaMalloc did not give");
    release(p, it->second);
    return sticky_error();
}
cudaError_t cudaMallocHost(void **p, size_t bytes) {
    Locked lock(runtime_lock());
    cudaError_t error = forbidden_in_capture("cudaMallocHost");
    return error ? error : pin(p, bytes);
}
cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned) { return cudaMallocHost(p, bytes); }
cudaError_t cudaFreeHost(void *p) {
    Locked lock(runtime_lock());
    if (!p) return cudaSuccess;
    finish_all();
    if (!memory().pinned.erase(static_cast<char *>(p)))
        return set_error(cudaErrorInvalidValue, "cudaFreeHost of what cudaMallocHost did not give");
    free(p);
    return sticky_error();
}
cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned) {
    Locked lock(runtime_lock());
    memory().pinned[static_cast<char *>(p)] = bytes;
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *p) {
    Locked lock(runtime_lock());
    finish_all();
    if (!memory().pinned.erase(static_cast<char *>(p))) return set_error(cudaErrorInvalidValue, "it is not registered");
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    Locked lock(runtime_lock());
    return copy(to, from, bytes, kind, stream);
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    Locked lock(runtime_lock());
    cudaError_t error = forbidden_in_capture("cudaMemcpy");
    if (!error) error = copy(to, from, bytes, kind, 0);
    finish_stream(0);
    return error ? error : sticky_error();
}
cudaError_t cudaMemsetAsync(void *p, int byte, size_t bytes, cudaStream_t stream) {
    Locked lock(runtime_lock());
    return bytes ? fill(p, byte, bytes, stream) : cudaSuccess;
}
/* It is asynchronous to the host, as CUDA's is. */
cudaError_t cudaMemset(void *p, int byte, size_t bytes) { return cudaMemsetAsync(p, byte, bytes, 0); }

cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
    Locked lock(runtime_lock());
    *total = device_bytes();
    *free = *total - std::min(*total, memory().used);
    return sticky_error();
}
cudaError_t cudaDeviceReset() {
    Locked lock(runtime_lock());
    finish_all();
    while (!memory().device.empty()) {
        auto [begin, bytes] = *memory().device.begin();
        release(const_cast<char *>(begin), bytes);
    }
    forget_errors();
    return cudaSuccess;
}
