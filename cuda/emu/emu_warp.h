/* Barriers, shuffles, votes and reductions (CUDA C++ Programming Guide, "Warp Shuffle Functions" and after). */
#pragma once
#include "emu.h"

inline void __syncthreads(EMU_AT) { emu::barrier(false, "__syncthreads", at); }
inline int __syncthreads_count(int p, EMU_AT) { return emu::barrier(p, "__syncthreads_count", at).count; }
inline int __syncthreads_and(int p, EMU_AT) { return emu::barrier(p, "__syncthreads_and", at).all; }
inline int __syncthreads_or(int p, EMU_AT) { return emu::barrier(p, "__syncthreads_or", at).count != 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu, EMU_AT) { emu::meet(mask, "__syncwarp", nullptr, 0, at); }

namespace emu {
/* The value that a lane brought. On a GPU, too, a lane that is not there has no value. */
template <class T> EMU_UNSEEN inline T brought_by(const Meeting &m, unsigned lane, const char *name, Place at) {
    if (!(m.present >> lane & 1)) absent(name, lane, at);
    T value;
    memcpy(&value, m.slots[lane], sizeof value);
    return value;
}

/* A lane gets the value of lane source(lane) if that is in its own segment of `width` lanes, else it keeps its own. */
template <class T, class Source>
inline T shuffle(unsigned mask, T value, Source source, int width, const char *name, Place at) {
    static_assert(std::is_arithmetic_v<T> ? sizeof(T) >= 4 : sizeof(T) <= 4, "CUDA has no shuffle of this type");
    Meeting m = meet(mask, name, &value, sizeof value, at);
    int lane = (int)m.lane, first = lane & ~(width - 1), from = source(lane);
    bool inside = from >= first && from < first + width;
    return inside && from != lane ? brought_by<T>(m, (unsigned)from, name, at) : value;
}

template <class T, class F> inline T reduce(unsigned mask, T value, F combine, const char *name, Place at) {
    Meeting m = meet(mask, name, &value, sizeof value, at);
    unsigned lane = (unsigned)__builtin_ctz(m.present);
    T sum = brought_by<T>(m, lane, name, at);
    while (++lane < 32)
        if (m.present >> lane & 1) sum = combine(sum, brought_by<T>(m, lane, name, at));
    return sum;
}
} // namespace emu

template <class T> inline T __shfl_sync(unsigned mask, T v, int source, int width = 32, EMU_AT) {
    auto from = [=](int lane) { return (lane & ~(width - 1)) + (source & (width - 1)); };
    return emu::shuffle(mask, v, from, width, "__shfl_sync", at);
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, EMU_AT) {
    return emu::shuffle(mask, v, [=](int lane) { return lane ^ bits; }, width, "__shfl_xor_sync", at);
}
template <class T> inline T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32, EMU_AT) {
    return emu::shuffle(mask, v, [=](int lane) { return lane + (int)by; }, width, "__shfl_down_sync", at);
}
template <class T> inline T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32, EMU_AT) {
    return emu::shuffle(mask, v, [=](int lane) { return lane - (int)by; }, width, "__shfl_up_sync", at);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EMU_AT) {
    auto vote = emu::meet(mask, "__ballot_sync", &predicate, sizeof predicate, at);
    unsigned votes = 0;
    for (unsigned lane = 0; lane < 32; lane++)
        if ((vote.present >> lane & 1) && emu::brought_by<int>(vote, lane, "__ballot_sync", at)) votes |= 1u << lane;
    return votes;
}
inline int __any_sync(unsigned mask, int predicate, EMU_AT) { return __ballot_sync(mask, predicate, at) != 0; }
inline int __all_sync(unsigned mask, int predicate, EMU_AT) { return __ballot_sync(mask, !predicate, at) == 0; }

#define EMU_REDUCE(name, T, formula)                                                       \
    inline T name(unsigned mask, T value, EMU_AT) {                                        \
        return emu::reduce(mask, value, [](T a, T b) { return (T)(formula); }, #name, at); \
    }
EMU_REDUCE(__reduce_add_sync, int, (unsigned)a + (unsigned)b)
EMU_REDUCE(__reduce_add_sync, unsigned, a + b)
EMU_REDUCE(__reduce_max_sync, int, a > b ? a : b)
EMU_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
EMU_REDUCE(__reduce_min_sync, int, a < b ? a : b)
EMU_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
EMU_REDUCE(__reduce_and_sync, unsigned, a &b)
EMU_REDUCE(__reduce_or_sync, unsigned, a | b)
#undef EMU_REDUCE
