/* Streams, events and the device. Work runs at once unless streams are deferred (emu_options): then it waits until the
 * host synchronises, and streams that nothing orders run in the order of the schedule. */
#include <algorithm>
#include <ctime>
#include <unistd.h>
#include "emu_stream.h"

namespace emu {

std::vector<CUstream_st *> &streams() {
    static auto *all = new std::vector<CUstream_st *>{new CUstream_st}; /* the first is the legacy default stream */
    return *all;
}
static CUstream_st *legacy() { return streams().front(); }
CUstream_st *stream_of(cudaStream_t stream) {
    if (!stream) return legacy();
    auto &all = streams();
    return std::find(all.begin(), all.end(), stream) == all.end() ? nullptr : stream;
}

/* ---- which work may run next ---- */

/* The legacy stream waits for all blocking streams, and they for it (API, "Stream synchronization behavior"). */
static bool in_its_way(const CUstream_st *mine, const CUstream_st *other) {
    if (mine == other || !mine->blocking || !other->blocking) return false;
    return mine == legacy() || other == legacy();
}
static bool may_run(const CUstream_st *s) {
    if (s->queue.empty()) return false;
    const Item &item = s->queue.front();
    for (const CUstream_st *other : streams())
        if (in_its_way(s, other) && !other->queue.empty() && other->queue.front().number < item.number) return false;
    return !item.event || item.event->done >= item.until;
}

static CUstream_st *choose() {
    std::vector<CUstream_st *> able;
    for (CUstream_st *s : streams())
        if (may_run(s)) able.push_back(s);
    if (able.empty()) return nullptr;
    auto by_age = [](CUstream_st *a, CUstream_st *b) { return a->queue.front().number < b->queue.front().number; };
    std::sort(able.begin(), able.end(), by_age);
    if (options().schedule == Schedule::in_order) return able.front();
    if (options().schedule == Schedule::reversed) return able.back();
    return able[options().streams.below((unsigned)able.size())];
}

static void run_until(const std::function<bool()> &finished) {
    synchronisations += 1;
    while (!finished()) {
        CUstream_st *s = choose();
        if (!s) {
            set_error(cudaErrorLaunchFailure, "streams wait for each other for ever");
            for (CUstream_st *all : streams()) all->queue.clear();
            return;
        }
        Item item = std::move(s->queue.front());
        s->queue.pop_front();
        item.run();
    }
}
void finish_all() {
    run_until([] {
        auto &all = streams();
        return std::all_of(all.begin(), all.end(), [](CUstream_st *s) { return s->queue.empty(); });
    });
}
void finish_stream(cudaStream_t stream) {
    CUstream_st *s = stream_of(stream);
    if (s) run_until([s] { return s->queue.empty(); });
}

static uint64_t next_number() {
    static uint64_t number;
    return ++number;
}
static cudaError_t queue_or_run(CUstream_st *s, Work work) {
    if (options().defer) s->queue.push_back({next_number(), std::move(work), nullptr, 0});
    else work();
    return sticky_error();
}

cudaError_t submit(cudaStream_t stream, Work work) {
    Locked lock(runtime_lock());
    CUstream_st *s = stream_of(stream);
    if (!s) return set_error(cudaErrorInvalidResourceHandle, "no such stream");
    if (s->graph) return capture(s, std::move(work));
    if (s == legacy()) {
        cudaError_t error = forbidden_beside_capture();
        if (error) return error;
    }
    return queue_or_run(s, std::move(work));
}

static double now_ms() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}
} // namespace emu

using namespace emu;

/* ---- streams ---- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    Locked lock(runtime_lock());
    *stream = new CUstream_st;
    (*stream)->blocking = !(flags & cudaStreamNonBlocking);
    streams().push_back(*stream);
    return sticky_error();
}
cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    Locked lock(runtime_lock());
    if (!stream || !stream_of(stream)) return set_error(cudaErrorInvalidResourceHandle, "no such stream");
    finish_stream(stream);
    streams().erase(std::find(streams().begin(), streams().end(), stream));
    delete stream;
    return sticky_error();
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    Locked lock(runtime_lock());
    cudaError_t error = forbidden_in_capture("cudaStreamSynchronize");
    if (error) return error;
    if (!stream_of(stream)) return set_error(cudaErrorInvalidResourceHandle, "no such stream");
    finish_stream(stream);
    return sticky_error();
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
    Locked lock(runtime_lock());
    CUstream_st *s = stream_of(stream);
    if (!s) return set_error(cudaErrorInvalidResourceHandle, "no such stream");
    return s->queue.empty() ? sticky_error() : cudaErrorNotReady;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, void (*call)(void *), void *data) {
    return submit(stream, [=] { call(data); });
}

/* ---- events ---- */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    *event = new CUevent_st;
    return sticky_error();
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    Locked lock(runtime_lock());
    finish_all(); /* work that waits for it may be queued */
    delete event;
    return sticky_error();
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    Locked lock(runtime_lock());
    CUstream_st *s = stream_of(stream);
    if (s && s->graph) return capture_record(event, s);
    uint64_t number = ++event->recorded;
    event->stream = stream;
    event->graph = nullptr;
    return submit(stream, [=] {
        event->done = number;
        event->ms = now_ms();
    });
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    Locked lock(runtime_lock());
    CUstream_st *s = stream_of(stream);
    if (!s) return set_error(cudaErrorInvalidResourceHandle, "no such stream");
    if (event->graph) return capture_wait(s, event);
    if (s->graph || event->done >= event->recorded) return sticky_error();
    s->queue.push_back({next_number(), [] {}, event, event->recorded});
    return sticky_error();
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    Locked lock(runtime_lock());
    return event->done >= event->recorded ? sticky_error() : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    Locked lock(runtime_lock());
    cudaError_t error = forbidden_in_capture("cudaEventSynchronize");
    if (error) return error;
    run_until([=] { return event->done >= event->recorded; });
    return sticky_error();
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) {
    Locked lock(runtime_lock());
    if (from->done < from->recorded || to->done < to->recorded) return cudaErrorNotReady;
    if (!from->done || !to->done) return set_error(cudaErrorInvalidResourceHandle, "an event that was not recorded");
    *ms = (float)(to->ms - from->ms);
    return sticky_error();
}

/* ---- the device ---- */

cudaError_t cudaDeviceSynchronize() {
    Locked lock(runtime_lock());
    cudaError_t error = forbidden_in_capture("cudaDeviceSynchronize");
    if (error) return error;
    finish_all();
    return sticky_error();
}
cudaError_t cudaGetDeviceCount(int *count) {
    *count = 1;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    return device ? set_error(cudaErrorInvalidDevice, "the emulator is device 0") : sticky_error();
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
    if (device) return set_error(cudaErrorInvalidDevice, "the emulator is device 0");
    *p = {};
    snprintf(p->name, sizeof p->name, "CPU emulation");
    size_t unused;
    cudaMemGetInfo(&unused, &p->totalGlobalMem);
    p->sharedMemPerBlock = shared_default;
    p->sharedMemPerBlockOptin = p->sharedMemPerMultiprocessor = shared_most;
    p->major = 9;
    p->multiProcessorCount = 4;
    p->warpSize = (int)warp_size;
    p->maxThreadsPerBlock = (int)max_threads;
    p->maxThreadsPerMultiProcessor = 2048;
    p->regsPerBlock = 65536;
    p->l2CacheSize = 1 << 20;
    return sticky_error();
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp p;
    cudaError_t error = cudaGetDeviceProperties(&p, device);
    if (error) return error;
    switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)p.sharedMemPerBlockOptin; return cudaSuccess;
    }
    return set_error(cudaErrorInvalidValue, "an attribute the emulator does not know");
}
cudaError_t cudaDriverGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) { return cudaDriverGetVersion(version); }
