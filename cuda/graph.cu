/* CUDA graphs: calls that come again with the same arguments are recorded, and hundreds of kernels start at once. The first
 * time the calls are made as they are, which also loads their kernels; the second time they are recorded. Those that have not
 * come for the longest time make room for others: where a batch's masks give the scale, most never come again. */
#include <cstdlib>
#include <cstring>
#include "device.cuh"

enum { MOST = 32 }; /* the most graphs; further calls run without one */

struct Graphs {
    struct {
        int64_t key[4];
        cudaGraphExec_t graph; /* NULL: the calls were seen once */
        int64_t used;          /* the number of the last call of gpu_replay that asked for it */
    } seen[MOST];
    int count, recording; /* recording: the number of the graph that is being recorded, or -1 */
    int64_t calls;        /* those of gpu_replay so far */
};

static bool wanted(void) {
    const char *setting = getenv("PYLLMC_GRAPHS");
    return !setting || strcmp(setting, "0");
}

static Graphs *graphs_of(Device *d) {
    if (d->graphs || !wanted()) return d->graphs;
    d->graphs = (Graphs *)calloc(1, sizeof *d->graphs);
    if (d->graphs) d->graphs->recording = -1;
    return d->graphs;
}

static void note(Device *d, cudaError_t error) {
    if (d->failed == cudaSuccess) d->failed = error;
}

static int find(const Graphs *g, const int64_t key[4]) {
    for (int i = 0; i < g->count; i++)
        if (!memcmp(g->seen[i].key, key, sizeof g->seen[i].key)) return i;
    return -1;
}

/* A place for calls that are seen for the first time: a new one, or that of the calls that were last asked for longest ago. */
static int place(Device *d, Graphs *g) {
    if (g->count < MOST) return g->count++;
    int oldest = 0;
    for (int i = 1; i < MOST; i++)
        if (g->seen[i].used < g->seen[oldest].used) oldest = i;
    if (g->seen[oldest].graph) {
        note(d, cudaStreamSynchronize(d->stream)); /* it may be running still */
        cudaGraphExecDestroy(g->seen[oldest].graph);
    }
    g->seen[oldest].graph = NULL;
    return oldest;
}

int gpu_replay(Context *ctx, const int64_t key[4]) {
    Device *d = device_of(ctx);
    Graphs *g = graphs_of(d);
    if (!g) return 0;
    const int found = find(g, key), i = found < 0 ? place(d, g) : found;
    memcpy(g->seen[i].key, key, sizeof g->seen[i].key);
    g->seen[i].used = ++g->calls;
    if (found < 0) return 0;
    if (g->seen[i].graph) {
        note(d, cudaGraphLaunch(g->seen[i].graph, d->stream));
        return 1;
    }
    if (cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess) g->recording = i;
    return 0;
}

void gpu_recorded(Context *ctx) {
    Device *d = device_of(ctx);
    Graphs *g = d->graphs;
    if (!g || g->recording < 0) return;
    cudaGraph_t graph = NULL;
    cudaGraphExec_t *ready = &g->seen[g->recording].graph;
    g->recording = -1;
    cudaError_t error = cudaStreamEndCapture(d->stream, &graph);
    if (error == cudaSuccess) error = cudaGraphInstantiate(ready, graph, 0);
    if (graph) cudaGraphDestroy(graph);
    note(d, error == cudaSuccess ? cudaGraphLaunch(*ready, d->stream) : error);
}

void graphs_close(Device *d) {
    for (int i = 0; d->graphs && i < d->graphs->count; i++)
        if (d->graphs->seen[i].graph) cudaGraphExecDestroy(d->graphs->seen[i].graph);
    free(d->graphs);
    d->graphs = NULL;
}
