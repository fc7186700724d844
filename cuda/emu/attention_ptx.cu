/* The kernels of attention that the second gate runs as nvcc's PTX of them (cuda.mk): heads of 64, without dropout forward, and
 * backward for the gradient of queries. attention.cu has sixty kernels, for which nvcc takes ten times as long. */
#include "attention_mma_backward.cuh"

namespace mma {
template __global__ void forward<64, false, false>(Attention, floatX *);
template __global__ void backward<64, false, false, false>(AttentionGradient);
template __global__ void backward<64, false, false, true>(AttentionGradient);
template __global__ void backward<64, false, true, false>(AttentionGradient);
template __global__ void backward<64, false, true, true>(AttentionGradient);
} // namespace mma
