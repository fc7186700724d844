/* The instructions that CUDA offers only in PTX, and two notations that C++ lacks. Only this file depends on the compiler:
 * nvcc takes the inline assembly below, g++ takes cuda/emu, where the same names run on the CPU.
 *
 * A warp computes together; lane = threadIdx.x % 32, g = lane / 4, t = lane % 4. A register holds two bf16 or fp16
 * (the lower half has the lower index) or one tf32. Fragments, from the PTX ISA, "Matrix Fragments for mma":
 *   m16n8k16  a[0] (g, 2t..2t+1)   a[1] (g+8, 2t..)   a[2] (g, 2t+8..)   a[3] (g+8, 2t+8..)      A is 16 x 16 (m, k)
 *             b[0] (2t..2t+1, g)   b[1] (2t+8.., g)                                              B is 16 x 8  (k, n)
 *   m16n8k8   a[0] (g, t)  a[1] (g+8, t)  a[2] (g, t+4)  a[3] (g+8, t+4);   b[0] (t, g)  b[1] (t+4, g)
 *   both      d[0..1] (g, 2t..2t+1)   d[2..3] (g+8, 2t..2t+1)                                    D is 16 x 8  (m, n)
 * Every lane of the warp must call mma and ldmatrix. */
#pragma once
#include <cstdint>
#include <cuda_runtime.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#ifdef __CUDACC__

/* LAUNCH(kernel, grid, block, bytes of dynamic shared memory, stream)(arguments...) launches a kernel. A template with commas
 * stands in parentheses: LAUNCH((kernel<A, B>), ...)(...). */
#define LAUNCH(kernel, grid, block, smem_bytes, stream) kernel<<<(grid), (block), (smem_bytes), (stream)>>>
/* DYNAMIC_SHARED(float, tile) declares float *tile, the dynamic shared memory of this block, 128-byte aligned. */
#define DYNAMIC_SHARED(type, name)                                         \
    extern __shared__ __align__(128) unsigned char dynamic_shared_bytes[]; \
    type *name = reinterpret_cast<type *>(dynamic_shared_bytes)

#define PTX __device__ __forceinline__ void

/* d(16,8) += a(16,16) b(16,8), with bf16 operands and float sums. */
PTX mma_bf16_16816(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* The same with fp16 operands. */
PTX mma_f16_16816(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* d(16,8) += a(16,8) b(8,8), with tf32 operands (see to_tf32). */
PTX mma_tf32_1688(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* The nearest tf32 (10 bits of mantissa, ties away from zero). */
__device__ __forceinline__ uint32_t to_tf32(float x) {
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}

/* 2^x within 2 ulp. Subnormal x and results are 0. */
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ uint32_t shared_address(const void *smem) {
    return (uint32_t)__cvta_generic_to_shared(smem);
}

/* r[i] = this lane's part of the i-th 8 x 8 matrix of 2-byte elements: row g, columns 2t..2t+1 (trans: of the transposed
 * matrix). The address of lane 8i + j is that of row j of matrix i: 16 bytes, 16-byte aligned, in shared memory. x2 reads
 * the addresses of lanes 0..15 only. */
PTX ldmatrix_x4(uint32_t r[4], const void *smem) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(smem))
                 : "memory");
}
PTX ldmatrix_x4_trans(uint32_t r[4], const void *smem) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(smem))
                 : "memory");
}
PTX ldmatrix_x2(uint32_t r[2], const void *smem) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(smem))
                 : "memory");
}
PTX ldmatrix_x2_trans(uint32_t r[2], const void *smem) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(smem))
                 : "memory");
}
/* The same for one matrix. It reads the addresses of lanes 0..7 only. */
PTX ldmatrix_x1(uint32_t r[1], const void *smem) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(shared_address(smem))
                 : "memory");
}

/* Copies of 16, 8 or 4 bytes to shared memory that run beside the computation. Only the first `bytes` of the source are read
 * (0: none, whatever the address); the rest of the target becomes zero. The copying thread must not touch the target until
 * cp_async_wait, other threads not until a barrier after it. Both addresses are aligned to the size. */
PTX cp_async_16(void *smem, const void *global, int bytes = 16) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(smem)), "l"(global),
                 "r"(bytes)
                 : "memory");
}
PTX cp_async_8(void *smem, const void *global, int bytes = 8) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(smem)), "l"(global), "r"(bytes)
                 : "memory");
}
PTX cp_async_4(void *smem, const void *global, int bytes = 4) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(smem)), "l"(global), "r"(bytes)
                 : "memory");
}
/* Closes a group of copies: those of this thread since the last commit. */
PTX cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/* Waits until at most N of this thread's groups are unfinished. */
template <int N> PTX cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

#undef PTX
#else
#include "emu/emu_ptx.h"
#endif
