/* Errors as in CUDA: a fault in a kernel is sticky, others are reported once. The emulator never prints;
 * cudaGetErrorString says more than CUDA's. */
#include <map>
#include "emu_worker.h"

namespace emu {
struct Errors {
    std::mutex lock;
    cudaError_t sticky = cudaSuccess, last = cudaSuccess;
    std::map<cudaError_t, std::string> texts; /* the text of the latest error of each kind, for cudaGetErrorString */
};
static Errors &errors() {
    static Errors *e = new Errors;
    return *e;
}

struct Known {
    cudaError_t error;
    const char *name, *text;
};
static const Known known[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection", "invalid copy direction for memcpy"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver", "the driver is older than the runtime"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined", "a captured stream was not joined"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit",
     "operation would make the legacy stream depend on a capturing blocking stream"},
};
static const Known &lookup(cudaError_t error) {
    for (const Known &k : known)
        if (k.error == error) return k;
    static const Known unknown = {cudaSuccess, "cudaErrorUnknown", "unrecognized error code"};
    return unknown;
}

/* The first fault is kept, because later ones are its consequences. */
cudaError_t set_error(cudaError_t error, const std::string &detail) {
    Errors &e = errors();
    std::lock_guard<std::mutex> guard(e.lock);
    if (e.sticky) return e.sticky;
    if (error == cudaErrorLaunchFailure) e.sticky = error;
    e.last = error;
    e.texts[error] = std::string(lookup(error).text) + ": " + detail;
    return error;
}
cudaError_t sticky_error() {
    std::lock_guard<std::mutex> guard(errors().lock);
    return errors().sticky;
}
void forget_errors() {
    Errors &e = errors();
    std::lock_guard<std::mutex> guard(e.lock);
    e.sticky = e.last = cudaSuccess;
    e.texts.clear();
}
} // namespace emu

cudaError_t cudaPeekAtLastError() {
    std::lock_guard<std::mutex> guard(emu::errors().lock);
    return emu::errors().last;
}
cudaError_t cudaGetLastError() {
    emu::Errors &e = emu::errors();
    std::lock_guard<std::mutex> guard(e.lock);
    cudaError_t last = e.last;
    e.last = e.sticky;
    return last;
}
const char *cudaGetErrorName(cudaError_t error) { return emu::lookup(error).name; }
/* The text is valid until the next error of its kind. */
const char *cudaGetErrorString(cudaError_t error) {
    emu::Errors &e = emu::errors();
    std::lock_guard<std::mutex> guard(e.lock);
    auto it = e.texts.find(error);
    return it == e.texts.end() ? emu::lookup(error).text : it->second.c_str();
}
