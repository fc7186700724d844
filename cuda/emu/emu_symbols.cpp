/* Finds the static __shared__ variables. They are the only thread-local variables of functions: the symbol table has
 * them as thread-local (STT_TLS) with a mangled name that begins with _ZZ, "entity of a function". */
#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <link.h>
#include "emu_symbols.h"

namespace emu {

/* The file that this code was loaded from, and its address. */
const Module &this_module() {
    static const Module module = [] {
        Module found;
        auto visit = [](dl_phdr_info *info, size_t, void *out) {
            uintptr_t here = reinterpret_cast<uintptr_t>(&this_module);
            for (int i = 0; i < info->dlpi_phnum; i++) {
                const ElfW(Phdr) &p = info->dlpi_phdr[i];
                uintptr_t begin = info->dlpi_addr + p.p_vaddr;
                if (p.p_type == PT_LOAD && here >= begin && here < begin + p.p_memsz) {
                    static_cast<Module *>(out)->base = info->dlpi_addr;
                    return 1;
                }
            }
            return 0;
        };
        dl_iterate_phdr(visit, &found);
        found.path = mapped_file(reinterpret_cast<uintptr_t>(&this_module));
        return found;
    }();
    return module;
}

/* Reads /proc/self/maps, because the loader's own name may be relative to a directory that we have left. */
std::string mapped_file(uintptr_t address) {
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
        uintptr_t begin = 0, end = 0;
        if (sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR, &begin, &end) != 2) continue;
        size_t slash = line.find('/');
        if (address >= begin && address < end && slash != std::string::npos) return line.substr(slash);
    }
    return "";
}

static bool begins(const char *name, const char *prefix) { return !strncmp(name, prefix, strlen(prefix)); }

static void collect(const std::vector<char> &file, Symbols &out) {
    auto *header = reinterpret_cast<const ElfW(Ehdr) *>(file.data());
    auto *sections = reinterpret_cast<const ElfW(Shdr) *>(file.data() + header->e_shoff);
    for (int i = 0; i < header->e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB) continue;
        const char *names = file.data() + sections[sections[i].sh_link].sh_offset;
        auto *symbol = reinterpret_cast<const ElfW(Sym) *>(file.data() + sections[i].sh_offset);
        for (auto *end = symbol + sections[i].sh_size / sizeof *symbol; symbol < end; symbol++) {
            if (ELF64_ST_TYPE(symbol->st_info) != STT_TLS) continue;
            const char *name = names + symbol->st_name;
            Variable v{name, {symbol->st_value, symbol->st_value + symbol->st_size}};
            if (begins(name, "_ZZ")) out.shared.push_back(v);
            if (begins(name, "_ZGVZ")) out.guards.push_back(v);
        }
    }
}

const Symbols &symbols() {
    static const Symbols all = [] {
        std::ifstream stream(this_module().path, std::ios::binary);
        std::vector<char> file((std::istreambuf_iterator<char>(stream)), {});
        Symbols found;
        if (file.size() > sizeof(ElfW(Ehdr))) collect(file, found);
        std::sort(found.shared.begin(), found.shared.end(),
                  [](const Variable &a, const Variable &b) { return a.range.begin < b.range.begin; });
        return found;
    }();
    return all;
}

/* Neighbours are joined to one range. */
const std::vector<Range> &shared_variables() {
    static const std::vector<Range> ranges = [] {
        std::vector<Range> joined;
        for (const Variable &v : symbols().shared)
            if (!joined.empty() && v.range.begin <= joined.back().end)
                joined.back().end = std::max(joined.back().end, v.range.end);
            else joined.push_back(v.range);
        return joined;
    }();
    return ranges;
}

char *thread_local_memory() {
    void *memory = nullptr;
    auto visit = [](dl_phdr_info *info, size_t, void *out) {
        if (info->dlpi_addr != this_module().base) return 0;
        *static_cast<void **>(out) = info->dlpi_tls_data;
        return 1;
    };
    asm volatile("" ::"r"(&worker)); /* asking for one of them makes this CPU thread's copy exist */
    dl_iterate_phdr(visit, &memory);
    return static_cast<char *>(memory);
}
} // namespace emu
