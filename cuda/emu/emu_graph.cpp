/* Graphs: while a stream is captured its work is kept instead of run; a launch replays it. Other streams join a capture
 * by waiting for an event recorded in it, and must be joined again before it ends. */
#include <algorithm>
#include "emu_stream.h"

namespace emu {

static std::vector<CUgraph_st *> captured_now() {
    std::vector<CUgraph_st *> graphs;
    for (CUstream_st *s : streams())
        if (s->graph && s == s->graph->origin) graphs.push_back(s->graph);
    return graphs;
}

cudaError_t capture(CUstream_st *stream, Work work) {
    stream->graph->work.push_back(std::move(work));
    stream->latest = stream->graph->work.size();
    return sticky_error();
}
cudaError_t capture_record(cudaEvent_t event, CUstream_st *stream) {
    event->graph = stream->graph;
    event->stream = stream;
    event->at = stream->graph->work.size();
    return sticky_error();
}
cudaError_t capture_wait(CUstream_st *stream, cudaEvent_t event) {
    std::vector<CUgraph_st *> now = captured_now();
    if (std::find(now.begin(), now.end(), event->graph) == now.end())
        return set_error(cudaErrorInvalidValue, "an event of a capture that has ended");
    if (stream->graph && stream->graph != event->graph)
        return set_error(cudaErrorStreamCaptureInvalidated, "an event of another capture");
    if (!stream->graph) stream->latest = stream->joined = 0;
    stream->graph = event->graph;
    CUstream_st *recorded = stream_of(event->stream);
    if (recorded && stream == event->graph->origin) recorded->joined = std::max(recorded->joined, event->at);
    return sticky_error();
}

bool is_capturing(cudaStream_t stream) {
    CUstream_st *s = stream_of(stream);
    return s && s->graph;
}
cudaError_t forbidden_in_capture(const char *function) {
    bool forbidden = false;
    for (CUgraph_st *g : captured_now())
        if (!g->relaxed) g->invalid = forbidden = true;
    return forbidden ? set_error(cudaErrorStreamCaptureUnsupported, std::string(function) + " during a capture")
                     : cudaSuccess;
}
cudaError_t forbidden_beside_capture() {
    for (CUgraph_st *g : captured_now()) {
        if (!g->origin->blocking) continue;
        g->invalid = true;
        return set_error(cudaErrorStreamCaptureImplicit, "work for the default stream during a capture");
    }
    return cudaSuccess;
}

static void replay(const std::vector<Work> &work) {
    for (const Work &w : work) w();
}
} // namespace emu

using namespace emu;

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    Locked lock(runtime_lock());
    CUstream_st *s = stream_of(stream);
    if (!stream || !s) return set_error(cudaErrorStreamCaptureUnsupported, "the default stream cannot be captured");
    if (s->graph) return set_error(cudaErrorInvalidValue, "the stream is being captured already");
    s->graph = new CUgraph_st;
    s->graph->origin = s;
    s->graph->relaxed = mode == cudaStreamCaptureModeRelaxed;
    s->latest = s->joined = 0;
    return sticky_error();
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    Locked lock(runtime_lock());
    CUstream_st *s = stream_of(stream);
    *graph = nullptr;
    if (!s || !s->graph || s->graph->origin != s)
        return set_error(cudaErrorInvalidValue, "this stream did not begin a capture");
    CUgraph_st *g = s->graph;
    bool unjoined = false;
    for (CUstream_st *other : streams()) {
        if (other->graph != g) continue;
        unjoined |= other != s && other->joined < other->latest;
        other->graph = nullptr;
    }
    if (unjoined) return set_error(cudaErrorStreamCaptureUnjoined, "the first stream does not wait for another's work");
    if (g->invalid)
        return set_error(cudaErrorStreamCaptureInvalidated, "what was forbidden in it is in its first error");
    *graph = g;
    return sticky_error();
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
    Locked lock(runtime_lock());
    *status = is_capturing(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return sticky_error();
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, CUgraphNode_st **nodes, size_t *count) {
    if (nodes) return set_error(cudaErrorNotSupported, "the emulator only counts the nodes of a graph");
    *count = graph->work.size();
    return sticky_error();
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    *exec = new CUgraphExec_st{graph->work};
    return sticky_error();
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    graphs += 1;
    return submit(stream, [work = exec->work] { replay(work); });
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return sticky_error(); }
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return sticky_error();
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    return sticky_error();
}
