/* The reports of the checked build, and file and line of an address in the code (by addr2line, which comes with gcc). */
#include <cstdio>
#include <map>
#include <set>
#include <sstream>
#include <tuple>
#include "emu_shadow.h"
#include "emu_symbols.h"

namespace emu {

/* ---- places ---- */

constexpr Where place_bit = 0x80000000u;
static std::vector<Place> &places() {
    static auto *all = new std::vector<Place>;
    return *all;
}
Where where_is(Place at) {
    std::vector<Place> &all = places();
    for (size_t i = all.size(); i-- > 0;)
        if (all[i].file == at.file && all[i].line == at.line) return place_bit | (Where)i;
    all.push_back(at);
    return place_bit | (Where)(all.size() - 1);
}
Where where_is(const void *pc) {
    static const uintptr_t base = this_module().base;
    return (Where)((uintptr_t)pc - base - 1); /* a return address is behind its call */
}

static bool is_ours(const std::string &file) { /* the emulator's headers and the system's are not what erred */
    std::string name = file.substr(file.rfind('/') + 1);
    return name.rfind("emu", 0) == 0 || name.rfind("cuda_", 0) == 0 || file.rfind("/usr/", 0) == 0;
}
static std::string first_line(const std::string &lines) {
    std::istringstream stream(lines);
    std::string first;
    for (std::string line; std::getline(stream, line);) {
        std::string at = line.substr(0, line.find(" (discriminator"));
        if (first.empty()) first = at;
        if (!is_ours(at)) return at.substr(at.rfind('/') + 1);
    }
    return first.substr(first.rfind('/') + 1);
}
static std::string lines_of(Where where) {
    char command[600], chunk[256];
    snprintf(command, sizeof command, "addr2line -i -e '%s' %#x 2>/dev/null", this_module().path.c_str(), where);
    std::string lines;
    FILE *out = popen(command, "r");
    if (!out) return "";
    while (fgets(chunk, sizeof chunk, out)) lines += chunk;
    pclose(out);
    return lines;
}
std::string describe(Where where) {
    if (where & place_bit) return location(places()[where & ~place_bit]);
    static auto *known = new std::map<Where, std::string>;
    auto [it, is_new] = known->insert({where, ""});
    if (is_new) it->second = first_line(lines_of(where));
    if (it->second.empty()) it->second = "code offset " + std::to_string(where);
    return it->second;
}

/* ---- reports ---- */

struct Reports {
    std::mutex lock;
    std::vector<std::string> texts;
    std::set<std::tuple<std::string, Where, Where>> told;
};
static Reports &reports() {
    static auto *r = new Reports;
    return *r;
}
bool is_new_report(const char *kind, Where here, Where there) {
    std::lock_guard<std::mutex> guard(reports().lock);
    return reports().texts.size() < 100 && reports().told.insert({kind, here, there}).second;
}
void add_report(const std::string &text) {
    std::lock_guard<std::mutex> guard(reports().lock);
    reports().texts.push_back(text);
}
} // namespace emu

int emu_report(char *text, size_t size) {
    emu::Reports &r = emu::reports();
    std::lock_guard<std::mutex> guard(r.lock);
    std::string all;
    for (const std::string &t : r.texts) all += t + "\n";
    if (text && size) snprintf(text, size, "%s", all.c_str());
    int count = (int)r.texts.size();
    r.texts.clear();
    r.told.clear();
    return count;
}
