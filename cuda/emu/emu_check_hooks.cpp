/* The functions that gcc calls in kernels compiled with -fsanitize=thread (before each access) and with
 * -fsanitize=alignment,bounds,... (when something is wrong). They replace a sanitizer's library. */
#include "emu_shadow.h"

using emu::Access;
#define HERE __builtin_return_address(0)

extern "C" {
#define EMU_HOOKS(n)                                                                       \
    void __tsan_read##n(void *p) { emu::note_access(p, n, Access::read, HERE); }           \
    void __tsan_write##n(void *p) { emu::note_access(p, n, Access::write, HERE); }         \
    void __tsan_unaligned_read##n(void *p) { emu::note_access(p, n, Access::read, HERE); } \
    void __tsan_unaligned_write##n(void *p) { emu::note_access(p, n, Access::write, HERE); }
EMU_HOOKS(1)
EMU_HOOKS(2)
EMU_HOOKS(4)
EMU_HOOKS(8)
EMU_HOOKS(16)
void __tsan_read_range(void *p, unsigned long n) { emu::note_access(p, (unsigned)n, Access::read, HERE); }
void __tsan_write_range(void *p, unsigned long n) { emu::note_access(p, (unsigned)n, Access::write, HERE); }
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}

/* The hooks of std::atomic and of the guards of static variables, in the host's code. */
#define EMU_ATOMIC_HOOKS(bits)                                                                          \
    uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t *p, int) {                  \
        return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                    \
    }                                                                                                   \
    void __tsan_atomic##bits##_store(volatile uint##bits##_t *p, uint##bits##_t v, int) {               \
        __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                                       \
    }                                                                                                   \
    uint##bits##_t __tsan_atomic##bits##_exchange(volatile uint##bits##_t *p, uint##bits##_t v, int) {  \
        return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);                                             \
    }                                                                                                   \
    uint##bits##_t __tsan_atomic##bits##_fetch_add(volatile uint##bits##_t *p, uint##bits##_t v, int) { \
        return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);                                              \
    }                                                                                                   \
    int __tsan_atomic##bits##_compare_exchange_strong(volatile uint##bits##_t *p, uint##bits##_t *old,  \
                                                      uint##bits##_t v, int, int) {                     \
        return __atomic_compare_exchange_n(p, old, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);       \
    }
EMU_ATOMIC_HOOKS(8)
EMU_ATOMIC_HOOKS(32)
EMU_ATOMIC_HOOKS(64)

/* Every record of the undefined-behaviour hooks begins with its place. */
struct Source {
    const char *file;
    uint32_t line, column;
};
}

static void wrong(const Source *at, const char *kind, const std::string &what) {
    emu::Place place{at->file, (int)at->line};
    if (!emu::is_new_report(kind, emu::where_is(place), 0)) return;
    emu::Worker *w = emu::worker;
    std::string who = w && w->self ? emu::who_runs(*w) : "host";
    emu::add_report(who + ": " + kind + ": " + emu::location(place) + ": " + what);
}

extern "C" {
struct Mismatch {
    Source at;
    void *type;
    unsigned char log_alignment, kind;
};
void __ubsan_handle_type_mismatch_v1(Mismatch *m, void *p) {
    wrong(&m->at, "misaligned",
          "an address that is not " + std::to_string(1 << m->log_alignment) + "-byte aligned (" +
              std::to_string((uintptr_t)p % (1u << m->log_alignment)) + " bytes off)");
}
void __ubsan_handle_out_of_bounds(Source *at, void *index) {
    wrong(at, "out of bounds", "index " + std::to_string((intptr_t)index) + " of an array");
}
void __ubsan_handle_shift_out_of_bounds(Source *at, void *, void *by) {
    wrong(at, "shift", "by " + std::to_string((intptr_t)by));
}
void __ubsan_handle_divrem_overflow(Source *at, void *, void *) { wrong(at, "division", "by zero"); }
}
