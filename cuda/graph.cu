/* CUDA graphs: calls that come again with the same arguments are recorded, and hundreds of kernels start at once. The first
 * time the calls are made as they are, which also loads their kernels; the second time they are recorded. Calls that never
 * came again, as those whose scale depends on a batch's masks, make room for others. */
#include <cstdlib>
#include <cstring>
#include "device.cuh"

enum { MOST = 32 }; /* the most graphs; further calls run without one */

struct Graphs {
    struct {
        int64_t key[4];
        cudaGraphExec_t graph; /* NULL: the calls were seen once */
    } seen[MOST];
    int count, recording; /* recording: the number of the graph that is being recorded, or -1 */
    int turn;             /* the place that was used again last */
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

/* A place for calls that are seen for the first time: a new one, or the next whose calls were seen once; -1: all have graphs. */
static int place(Graphs *g) {
    if (g->count < MOST) return g->count++;
    for (int i = 0; i < MOST; i++) {
        g->turn = (g->turn + 1) % MOST;
        if (!g->seen[g->turn].graph) return g->turn;
    }
    return -1;
}

int gpu_replay(Context *ctx, const int64_t key[4]) {
    Device *d = device_of(ctx);
    Graphs *g = graphs_of(d);
    int i = g ? find(g, key) : -1;
    if (i >= 0 && g->seen[i].graph) {
        note(d, cudaGraphLaunch(g->seen[i].graph, d->stream));
        return 1;
    }
    if (i >= 0 && cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess) g->recording = i;
    if (g && i < 0 && (i = place(g)) >= 0) memcpy(g->seen[i].key, key, sizeof g->seen[i].key);
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
