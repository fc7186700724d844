/* Atomics. They are relaxed, as CUDA's are, and return the old value. */
#pragma once
#include "emu.h"

namespace emu {
void fence();

template <class T, class F> EMU_UNSEEN inline T update(T *p, F change) {
    static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8);
    typedef std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>> Word;
    EMU_NOTE(p, sizeof(T), atomic);
    Word *word = reinterpret_cast<Word *>(p), old = __atomic_load_n(word, __ATOMIC_RELAXED), next;
    T before, after;
    do {
        memcpy(static_cast<void *>(&before), &old, sizeof old);
        after = change(before);
        memcpy(&next, &after, sizeof next);
    } while (!__atomic_compare_exchange_n(word, &old, next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return before;
}
} // namespace emu

#define EMU_ATOMIC(name, formula)                                     \
    template <class T> inline T name(T *p, std::common_type_t<T> v) { \
        return emu::update(p, [&](T old) { return (T)(formula); });   \
    }
EMU_ATOMIC(atomicAdd, old + v)
EMU_ATOMIC(atomicSub, old - v)
EMU_ATOMIC(atomicMax, old > v ? old : v)
EMU_ATOMIC(atomicMin, old < v ? old : v)
EMU_ATOMIC(atomicAnd, old &v)
EMU_ATOMIC(atomicOr, old | v)
EMU_ATOMIC(atomicXor, old ^ v)
EMU_ATOMIC(atomicInc, old >= v ? T(0) : old + 1)
EMU_ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1)
#undef EMU_ATOMIC
template <class T> inline T atomicExch(T *p, std::common_type_t<T> v) {
    return emu::update(p, [&](T) { return v; });
}
template <class T> inline T atomicCAS(T *p, std::common_type_t<T> expected, std::common_type_t<T> v) {
    return emu::update(p, [&](T old) { return old == expected ? v : old; });
}

inline void __threadfence() { emu::fence(); }
inline void __threadfence_block() { emu::fence(); }
inline void __threadfence_system() { emu::fence(); }
