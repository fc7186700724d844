/* Streams, events and graphs from inside (emu_stream.cpp, emu_graph.cpp). */
#pragma once
#include <deque>
#include "emu_worker.h"

struct CUgraph_st { /* the captured work, in the order of the calls, which respects every dependency */
    std::vector<emu::Work> work;
    cudaStream_t origin = nullptr;
    bool relaxed = false, invalid = false;
};
struct CUgraphExec_st {
    std::vector<emu::Work> work;
};

struct CUevent_st {
    uint64_t recorded = 0, done = 0; /* counts of cudaEventRecord */
    double ms = 0;
    cudaStream_t stream = nullptr;
    CUgraph_st *graph = nullptr; /* the graph whose capture recorded this event, */
    size_t at = 0;               /* and the amount of its work then */
};

namespace emu {
struct Item { /* an entry of a queue; with an event: wait until it was recorded `until` times */
    uint64_t number;
    Work run;
    cudaEvent_t event;
    uint64_t until;
};
} // namespace emu

struct CUstream_st {
    std::deque<emu::Item> queue;
    bool blocking = true;        /* in step with the legacy stream */
    CUgraph_st *graph = nullptr; /* being captured into */
    size_t latest = 0;           /* its work in the graph ends here */
    size_t joined = 0;           /* the origin waits for its work up to here */
};

namespace emu {
std::vector<CUstream_st *> &streams();
CUstream_st *stream_of(cudaStream_t stream); /* nullptr if there is none such */

cudaError_t capture(CUstream_st *stream, Work work);
cudaError_t capture_record(cudaEvent_t event, CUstream_st *stream);
cudaError_t capture_wait(CUstream_st *stream, cudaEvent_t event);
/* An error if work for the legacy stream would make it wait for a stream that is being captured. */
cudaError_t forbidden_beside_capture();
} // namespace emu
