/* Streams, events, graphs: small programs of the host, right ones and wrong ones. */
#include "ptx.cuh"
#include <cstring>
#define EXPORT extern "C" __attribute__((visibility("default")))

__global__ void add(float *x, float by, int n) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) x[i] += by;
}
__global__ void scale(float *x, float by, int n) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) x[i] *= by;
}

constexpr int n = 1000;
constexpr size_t bytes = n * sizeof(float);

struct Arrays { /* on the host (pinned) and on the device */
    float *host, *device;
    cudaStream_t a, b;
    cudaEvent_t event;
    Arrays() {
        cudaMallocHost(&host, bytes);
        cudaMalloc(&device, bytes);
        cudaMemset(device, 0, bytes);
        memset(host, 0, bytes);
        cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking);
        cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking);
        cudaEventCreate(&event);
        cudaDeviceSynchronize();
    }
    ~Arrays() {
        cudaStreamDestroy(a);
        cudaStreamDestroy(b);
        cudaEventDestroy(event);
        cudaFree(device);
        cudaFreeHost(host);
    }
    void copy_back(cudaStream_t s) { cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, s); }
};

/* The host reads after a copy that it waited for (1) or did not wait for (0). */
EXPORT float read_after_copy(int wait) {
    Arrays m;
    LAUNCH(add, 4, 256, 0, m.a)(m.device, 7.f, n);
    m.copy_back(m.a);
    if (wait) cudaStreamSynchronize(m.a);
    float seen = m.host[n - 1];
    cudaDeviceSynchronize();
    return seen;
}

/* The pinned source is changed before its copy was waited for. */
EXPORT float source_reused(int wait) {
    Arrays m;
    m.host[0] = 1;
    cudaMemcpyAsync(m.device, m.host, bytes, cudaMemcpyHostToDevice, m.a);
    if (wait) cudaStreamSynchronize(m.a);
    m.host[0] = 2;
    float seen;
    cudaStreamSynchronize(m.a);
    cudaMemcpy(&seen, m.device, sizeof seen, cudaMemcpyDeviceToHost);
    return seen;
}

/* b adds to a's result, with an event between them or without; (0 + 1) * 3 = 3, 0 * 3 + 1 = 1 */
EXPORT float two_streams(int ordered) {
    Arrays m;
    LAUNCH(add, 4, 256, 0, m.a)(m.device, 1.f, n);
    cudaEventRecord(m.event, m.a);
    if (ordered) cudaStreamWaitEvent(m.b, m.event);
    LAUNCH(scale, 4, 256, 0, m.b)(m.device, 3.f, n);
    m.copy_back(m.b);
    cudaDeviceSynchronize();
    return m.host[0];
}

/* Launches a captured step `times` times: x = (x + by) * 2; the graph copies `by` from the host when it runs. */
EXPORT float replay(int times) {
    Arrays m;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaStreamBeginCapture(m.a, cudaStreamCaptureModeGlobal);
    LAUNCH(add, 4, 256, 0, m.a)(m.device, 1.f, n);
    cudaEventRecord(m.event, m.a); /* a second stream joins, and is joined */
    cudaStreamWaitEvent(m.b, m.event);
    LAUNCH(scale, 4, 256, 0, m.b)(m.device, 2.f, n);
    cudaEventRecord(m.event, m.b);
    cudaStreamWaitEvent(m.a, m.event);
    m.copy_back(m.a);
    if (cudaStreamEndCapture(m.a, &graph)) return -1;
    cudaGraphInstantiate(&exec, graph, 0);
    cudaGraphDestroy(graph);
    if (m.host[0] != 0) return -2; /* nothing has run yet */
    for (int i = 0; i < times; i++) cudaGraphLaunch(exec, m.a);
    cudaStreamSynchronize(m.a);
    cudaGraphExecDestroy(exec);
    return m.host[n - 1];
}

/* Constructs that a capture refuses; 0 if it went well. */
EXPORT int bad_capture(int how) {
    Arrays m;
    cudaGraph_t graph = nullptr;
    void *p;
    cudaError_t error = cudaSuccess;
    if (how == 0) return cudaStreamBeginCapture(0, cudaStreamCaptureModeGlobal);
    cudaStreamBeginCapture(m.a, cudaStreamCaptureModeGlobal);
    LAUNCH(add, 4, 256, 0, m.a)(m.device, 1.f, n);
    if (how == 1) error = cudaStreamSynchronize(m.a);
    if (how == 2) error = cudaMalloc(&p, 16);
    if (how == 3) error = cudaMemcpy(m.host, m.device, bytes, cudaMemcpyDeviceToHost);
    if (how == 4) { /* a fork without its join */
        cudaEventRecord(m.event, m.a);
        cudaStreamWaitEvent(m.b, m.event);
        LAUNCH(add, 4, 256, 0, m.b)(m.device, 1.f, n);
    }
    cudaError_t end = cudaStreamEndCapture(m.a, &graph);
    if (graph) cudaGraphDestroy(graph);
    return error ? error : end;
}
/* The default stream gets work while a blocking stream is captured. */
EXPORT int default_stream_in_capture() {
    Arrays m;
    cudaStream_t s;
    cudaGraph_t graph;
    cudaStreamCreate(&s);
    cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal);
    LAUNCH(add, 4, 256, 0, 0)(m.device, 1.f, n);
    int error = cudaGetLastError();
    cudaStreamEndCapture(s, &graph);
    cudaStreamDestroy(s);
    return error;
}

EXPORT int wrong_direction() {
    Arrays m;
    return cudaMemcpyAsync(m.device, m.host, bytes, cudaMemcpyDeviceToHost, m.a);
}
EXPORT int copy_past_the_end() {
    Arrays m;
    return cudaMemcpyAsync(m.device + 1, m.host, bytes, cudaMemcpyHostToDevice, m.a);
}
EXPORT int free_twice() {
    float *p;
    cudaMalloc(&p, 16);
    cudaFree(p);
    return cudaFree(p);
}
EXPORT int free_memory_shrinks() {
    size_t before, after, total;
    void *p;
    cudaMemGetInfo(&before, &total);
    cudaMalloc(&p, 1 << 20);
    cudaMemGetInfo(&after, &total);
    cudaFree(p);
    return before - after == 1 << 20;
}
EXPORT int too_much_memory() {
    void *p;
    return cudaMalloc(&p, (size_t)1 << 50);
}
EXPORT int more_shared_memory(int kilobytes) {
    int error = cudaFuncSetAttribute(add, cudaFuncAttributeMaxDynamicSharedMemorySize, kilobytes << 10);
    if (error) return error;
    Arrays m;
    LAUNCH(add, 4, 256, (size_t)kilobytes << 10, m.a)(m.device, 1.f, n);
    return cudaGetLastError();
}
EXPORT int properties(char *name, int *numbers) {
    cudaDeviceProp p;
    int devices = 0, error = cudaGetDeviceProperties(&p, 0);
    cudaGetDeviceCount(&devices);
    strcpy(name, p.name);
    numbers[0] = devices;
    numbers[1] = p.warpSize;
    numbers[2] = p.maxThreadsPerBlock;
    return error;
}
