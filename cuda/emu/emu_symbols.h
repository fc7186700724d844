/* The data that the emulator reads from its own library file (emu_symbols.cpp). */
#pragma once
#include "emu_worker.h"

namespace emu {
struct Module {
    std::string path;
    uintptr_t base = 0;
};
const Module &this_module();
std::string mapped_file(uintptr_t address);

struct Variable {
    std::string name; /* mangled */
    Range range;
};
struct Symbols {
    std::vector<Variable> shared; /* static __shared__ variables, by address */
    std::vector<Variable> guards; /* gcc's own, one beside a variable whose type has a constructor */
};
const Symbols &symbols();
} // namespace emu
