/* Fibers. Each has a stack; a switch saves the registers that a called function must keep (x86-64: System V; aarch64:
 * AAPCS64). */
#include <sys/mman.h>
#include "emu_worker.h"

extern "C" void emu_switch(void **save, void *to);

#if defined(__x86_64__)
asm(R"(.text
.hidden emu_switch
.globl emu_switch
.type emu_switch,@function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emu_switch,.-emu_switch
)");
/* Fills a stack as if entry had just been called: six saved registers, its address, and no caller. */
static void *first_frame(char *top, void (*entry)()) {
    void **sp = reinterpret_cast<void **>(top);
    *--sp = nullptr;
    *--sp = reinterpret_cast<void *>(entry);
    for (int i = 0; i < 6; i++) *--sp = nullptr;
    return sp;
}
#elif defined(__aarch64__)
asm(R"(.text
.hidden emu_switch
.globl emu_switch
.type emu_switch,%function
emu_switch:
    sub sp, sp, #160
    stp x19, x20, [sp]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size emu_switch,.-emu_switch
)");
static void *first_frame(char *top, void (*entry)()) {
    void **sp = reinterpret_cast<void **>(top - 160);
    memset(static_cast<void *>(sp), 0, 160);
    sp[11] = reinterpret_cast<void *>(entry); /* x30, the return address */
    return sp;
}
#else
#error "cuda/emu: add the context switch of this processor"
#endif

namespace emu {
void switch_fiber(Fiber *from, Fiber *to) { emu_switch(&from->stack_pointer, to->stack_pointer); }

/* Stacks begin at different offsets: at the same offset of their pages all of them would fight for a few cache lines. */
void restart_fiber(Fiber *fiber, void (*entry)(), unsigned number) {
    fiber->stack_pointer = first_frame(fiber->stack + stack_bytes - 192 * (number % 61), entry);
}

Fiber *new_fiber(void (*entry)(), unsigned number) {
    constexpr size_t guard = 64 << 10; /* a page of any machine: running over the end is caught, not silent */
    void *memory =
        mmap(nullptr, guard + stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    mprotect(memory, guard, PROT_NONE);
    Fiber *fiber = new Fiber;
    fiber->stack = static_cast<char *>(memory) + guard;
    restart_fiber(fiber, entry, number);
    return fiber;
}
} // namespace emu
