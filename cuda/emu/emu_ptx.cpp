/* Tensor-core products, ldmatrix and cp.async. Fragments are laid out as cuda/ptx.cuh says. */
#include "emu_check.h"
#include "cuda_bf16.h"
#include "cuda_fp16.h"

namespace emu {

/* ---- mma: the lane that comes last computes the product of the whole warp ---- */

struct Fragments {
    uint32_t a[4], b[2];
    float d[4];
};
static_assert(sizeof(Fragments) <= Meeting::slot_bytes);

static float bf16_value(uint32_t pair, int high) { return bits_as<float>(high ? pair & 0xffff0000u : pair << 16); }
static float f16_value(uint32_t pair, int high) { return half_value((uint16_t)(high ? pair >> 16 : pair)); }
static float tf32_value(uint32_t bits) { return bits_as<float>(bits & 0xffffe000u); }

constexpr int M = 16, N = 8;

/* d(16,8) += a(16,K) b(K,8). Sums are in the order of k; a tensor core has an order of its own. */
template <int K> static void multiply(float (&d)[M][N], const float (&a)[M][K], const float (&b)[K][N]) {
    for (int m = 0; m < M; m++)
        for (int k = 0; k < K; k++)
            for (int n = 0; n < N; n++) d[m][n] += a[m][k] * b[k][n];
}

/* The same for K elements along k, `pair` of them in a register. value(register, index in the pair) is an element. */
template <int K, int pair, class Value> static void multiply_fragments(Meeting &all, Value value) {
    float a[M][K], b[K][N], d[M][N];
    for (int lane = 0; lane < 32; lane++) {
        const Fragments &f = *reinterpret_cast<Fragments *>(all.slots[lane]);
        int g = lane / 4, t = lane % 4;
        for (int r = 0; r < 4; r++)
            for (int e = 0; e < pair; e++) a[g + r % 2 * 8][pair * t + e + r / 2 * (K / 2)] = value(f.a[r], e);
        for (int r = 0; r < 2; r++)
            for (int e = 0; e < pair; e++) b[pair * t + e + r * (K / 2)][g] = value(f.b[r], e);
        for (int i = 0; i < 4; i++) d[g + i / 2 * 8][2 * t + i % 2] = f.d[i];
    }
    multiply(d, a, b);
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++)
            reinterpret_cast<Fragments *>(all.slots[lane])->d[i] = d[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
}

static const Combine combines[] = {
    [](Meeting &all) { multiply_fragments<16, 2>(all, bf16_value); },
    [](Meeting &all) { multiply_fragments<16, 2>(all, f16_value); },
    [](Meeting &all) { multiply_fragments<8, 1>(all, [](uint32_t bits, int) { return tf32_value(bits); }); },
};

static void need_whole_warp(const char *name, Place at) {
    const Warp &warp = worker->warps[worker->self->warp];
    if ((warp.exists & ~warp.returned) != all_lanes) fault(at, "%s needs all 32 lanes of the warp", name);
}

void mma(Operands kind, float *d, const uint32_t *a, const uint32_t *b, const char *name, Place at) {
    need_whole_warp(name, at);
    Fragments f;
    memcpy(f.a, a, sizeof f.a);
    memcpy(f.b, b, sizeof f.b);
    memcpy(f.d, d, sizeof f.d);
    Meeting m = meet(all_lanes, name, &f, sizeof f, at, combines[(int)kind]);
    memcpy(d, reinterpret_cast<Fragments *>(m.slots[lane_id()])->d, sizeof f.d);
}

/* ---- ldmatrix ---- */

bool is_shared(const Worker &w, const void *p, size_t bytes) {
    const unsigned char *c = static_cast<const unsigned char *>(p);
    if (c >= w.dynamic && c + bytes <= w.dynamic + w.launch->shape.shared_bytes) return true;
    size_t begin = (size_t)(static_cast<const char *>(p) - w.static_shared);
    for (const Range &r : shared_variables())
        if (begin >= r.begin && begin + bytes <= r.end) return true;
    return false;
}

static void read_row(unsigned char *row, const void *from, const char *name, Place at) {
    if ((uintptr_t)from % 16) fault(at, "%s: a row that is not 16-byte aligned", name);
    if (!is_shared(*worker, from, 16)) fault(at, "%s: a row that is not in shared memory", name);
    note_at(from, 16, Access::read, at);
    memcpy(row, from, 16);
}

void ldmatrix(uint32_t *r, const void *row, unsigned matrices, bool transposed, const char *name, Place at) {
    need_whole_warp(name, at);
    unsigned lane = lane_id(), g = lane / 4, t = lane % 4;
    unsigned char mine[16] = {};
    if (lane < 8 * matrices) read_row(mine, row, name, at);
    Meeting m = meet(all_lanes, name, mine, sizeof mine, at);
    auto element = [&](unsigned matrix, unsigned i, unsigned j) {
        uint16_t e;
        memcpy(&e, m.slots[8 * matrix + i] + 2 * j, sizeof e);
        return (uint32_t)e;
    };
    for (unsigned i = 0; i < matrices; i++)
        r[i] = transposed ? element(i, 2 * t, g) | element(i, 2 * t + 1, g) << 16
                          : element(i, g, 2 * t) | element(i, g, 2 * t + 1) << 16;
}

/* ---- cp.async: the copy happens as late as it may, at the wait; until then its target is NaN ---- */

static void check_copy(const Copy &c) {
    uintptr_t size = (uintptr_t)c.size;
    if (c.bytes < 0 || c.bytes > c.size) fault(c.at, "cp_async_%d of %d bytes", c.size, c.bytes);
    if ((uintptr_t)c.to % size || (c.bytes && (uintptr_t)c.from % size))
        fault(c.at, "cp_async_%d: an address that is not %d-byte aligned", c.size, c.size);
    if (!is_shared(*worker, c.to, size)) fault(c.at, "cp_async_%d: the target is not in shared memory", c.size);
    if (c.bytes && !is_device(c.from, (size_t)c.bytes))
        fault(c.at, "cp_async_%d: the source is not in device memory", c.size);
}

void cp_async(void *smem, const void *global, int size, int bytes, Place at) {
    Thread &me = *worker->self;
    Copy c{smem, global, size, bytes, me.copy_group, at};
    check_copy(c);
    if (bytes) note_at(global, (unsigned)bytes, Access::read, at);
    note_at(smem, (unsigned)size, Access::write, at);
    check_pending(smem, (size_t)size);
    memset(smem, 0xFF, (size_t)size);
    me.copies.push_back(c);
}

void cp_async_close() { worker->self->copy_group++; }

static void finish(const Copy &c) {
    if (c.bytes) note_at(c.from, (unsigned)c.bytes, Access::read, c.at);
    note_at(c.to, (unsigned)c.size, Access::write, c.at);
    memset(c.to, 0, (size_t)c.size);
    memcpy(c.to, c.from, (size_t)c.bytes);
}
void cp_async_finish(int groups_left) {
    Thread &me = *worker->self;
    size_t kept = 0;
    for (const Copy &c : me.copies)
        if (c.group < me.copy_group - groups_left) finish(c);
        else me.copies[kept++] = c;
    me.copies.resize(kept);
}
} // namespace emu
