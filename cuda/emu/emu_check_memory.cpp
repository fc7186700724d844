/* The regions that the checked build watches: each device allocation, each static __shared__ variable (so that running
 * from one into the next is seen), and the dynamic shared memory of the block that runs. */
#include <cxxabi.h>
#include <link.h>
#include <map>
#include <sys/mman.h>
#include "emu_shadow.h"
#include "emu_symbols.h"

namespace emu {

static std::map<const char *, Region> &regions() {
    static auto *all = new std::map<const char *, Region>;
    return *all;
}
static Region *latest[2]; /* two, as kernels go back and forth between shared and device memory */

static size_t cell_count(size_t bytes) { return bytes / cell_bytes + 1; }

void add_region(char *begin, size_t bytes, bool shared, const std::string &name) {
    void *cells = mmap(nullptr, cell_count(bytes) * sizeof(Cell), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (cells == MAP_FAILED) return;
    regions()[begin] = {begin, bytes, shared, name, static_cast<Cell *>(cells)};
}
void remove_region(char *begin) {
    auto it = regions().find(begin);
    if (it == regions().end()) return;
    munmap(it->second.cells, cell_count(it->second.bytes) * sizeof(Cell));
    regions().erase(it);
    latest[0] = latest[1] = nullptr;
}

Region *region_before(const void *p) {
    auto it = regions().upper_bound(static_cast<const char *>(p));
    return it == regions().begin() ? nullptr : &std::prev(it)->second;
}
Region *find_region(const void *p) {
    const char *c = static_cast<const char *>(p);
    for (Region *r : latest)
        if (r && c >= r->begin && c < r->end()) return r;
    Region *r = region_before(p);
    if (!r || c >= r->end()) return nullptr;
    latest[1] = latest[0];
    return latest[0] = r;
}

static std::string demangled(const std::string &name) {
    int status = 0;
    char *text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
    std::string result = status == 0 ? text : name;
    free(text);
    return "__shared__ " + result;
}
static void watch_static(const Worker &w) {
    static char *watched;
    if (watched == w.static_shared) return;
    watched = w.static_shared;
    for (const Variable &v : symbols().shared) {
        remove_region(w.static_shared + v.range.begin);
        add_region(w.static_shared + v.range.begin, v.range.end - v.range.begin, true, demangled(v.name));
    }
}
void watch_shared(Worker &w) {
    static char *watched;
    static size_t bytes;
    watch_static(w);
    char *dynamic = reinterpret_cast<char *>(w.dynamic);
    if (watched == dynamic && bytes == w.launch->shape.shared_bytes) return;
    if (watched && bytes) remove_region(watched);
    watched = dynamic;
    bytes = w.launch->shape.shared_bytes;
    if (bytes) add_region(dynamic, bytes, true, "dynamic shared memory");
}

/* ---- what kernels may touch without being watched ---- */

static bool inside(const void *p, const void *begin, size_t bytes) { return (uintptr_t)p - (uintptr_t)begin < bytes; }
/* Whether p is a constant or a global variable of our own library. */
static bool in_module(const void *p) {
    static const auto segments = [] {
        std::vector<std::pair<uintptr_t, size_t>> found;
        auto visit = [](dl_phdr_info *info, size_t, void *out) {
            if (info->dlpi_addr != this_module().base) return 0;
            for (int i = 0; i < info->dlpi_phnum; i++)
                if (info->dlpi_phdr[i].p_type == PT_LOAD)
                    static_cast<decltype(found) *>(out)->push_back(
                        {info->dlpi_addr + info->dlpi_phdr[i].p_vaddr, info->dlpi_phdr[i].p_memsz});
            return 1;
        };
        dl_iterate_phdr(visit, &found);
        return found;
    }();
    for (auto &[begin, bytes] : segments)
        if (inside(p, reinterpret_cast<void *>(begin), bytes)) return true;
    return false;
}
static bool is_guard(const Worker &w, const void *p) {
    for (const Variable &v : symbols().guards)
        if (inside(p, w.static_shared + v.range.begin, v.range.end - v.range.begin)) return true;
    return false;
}
bool is_unwatched(const Worker &w, const void *p) {
    if (inside(p, w.current->stack, stack_bytes)) return true;
    if (inside(p, &threadIdx, sizeof threadIdx) || inside(p, &blockIdx, sizeof blockIdx)) return true;
    if (inside(p, &blockDim, sizeof blockDim) || inside(p, &gridDim, sizeof gridDim)) return true;
    if (inside(p, w.launch->arguments.data(), w.launch->arguments.size())) return true;
    return is_pinned(p, 1) || in_module(p) || is_guard(w, p);
}
} // namespace emu
