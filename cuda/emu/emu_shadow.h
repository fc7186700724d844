/* Inside the checked build: the record that is kept for every two bytes, and how a report is made. */
#pragma once
#include "emu_check.h"

namespace emu {

/* ---- marks: who touched it last (emu_check.cpp) ---- */

/* A place in the code: an offset in our library's file or, with the highest bit set, an index of places(). */
typedef uint32_t Where;
Where where_is(const void *pc);
Where where_is(Place at);
std::string describe(Where where); /* "file.cu:12" */

enum class Kind : uint8_t { none, plain, atomic, pending };
/* The others, beside `thread`, that have touched it with nothing to order them. */
enum class Others : uint8_t { nobody, lanes, warps, blocks };

struct Mark {
    uint32_t block = 0; /* counts blocks over all launches; 0: nobody, 1: the host */
    Where where = 0;
    uint32_t lanes = 0; /* the lanes, for Others::lanes */
    uint16_t epoch = 0; /* barriers the block had passed */
    uint16_t clock = 0; /* the latest __syncwarp of the lane, in its warp's count */
    uint16_t thread = 0;
    Kind kind = Kind::none;
    Others others = Others::nobody;
};
struct Cell {
    Mark write, read;
};

/* ---- regions: device allocations and shared variables (emu_check_memory.cpp) ---- */

constexpr size_t cell_bytes = 2; /* the smallest element a kernel writes */

struct Region {
    char *begin;
    size_t bytes;
    bool shared;
    std::string name;
    Cell *cells;
    char *end() const { return begin + bytes; }
    size_t offset(const void *p) const { return (size_t)(static_cast<const char *>(p) - begin); }
};
Region *find_region(const void *p);
/* The region that ends nearest before p, or nullptr. */
Region *region_before(const void *p);
void add_region(char *begin, size_t bytes, bool shared, const std::string &name);
void remove_region(char *begin);
void watch_shared(Worker &w);
/* Whether p is memory of the emulator or of the program itself, which kernels may read. */
bool is_unwatched(const Worker &w, const void *p);

/* ---- reports (emu_check_report.cpp) ---- */

/* True once per pair of places and kind. text says what happened; the threads are added to it. */
bool is_new_report(const char *kind, Where here, Where there);
void add_report(const std::string &text);
} // namespace emu
