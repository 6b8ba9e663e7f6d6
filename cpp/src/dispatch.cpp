// Picks the instruction set, cuts the slots into one tile list per thread, and runs it.
#include <radam/dispatch.hpp>
#include <radam/float_mode.hpp>
#include <radam/norm.hpp>

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "parallel.hpp"

#if defined(RADAM_HAS_X86)
#include <initializer_list>
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

// Each instruction set is compiled in an object of its own (sweep_isa.cpp); only their names are known here.
namespace radam {
namespace isa {
struct portable;
struct avx2;
struct avx512;
struct neon;
}  // namespace isa
template <class Isa>
void sweep(const Tile&) noexcept;
template <class Isa>
bool sweep_finite(const Tile&) noexcept;
template <class Isa>
void sweep_limit(const Tile&) noexcept;
template <class Isa>
void sweep_squares(const Tile&, double*) noexcept;
}  // namespace radam

namespace radam {
namespace {

#if defined(RADAM_HAS_X86)
struct CpuId {
    unsigned eax, ebx, ecx, edx;
};

CpuId cpuid(unsigned leaf) noexcept {
#if defined(_MSC_VER)
    int r[4];
    __cpuidex(r, static_cast<int>(leaf), 0);
    return {static_cast<unsigned>(r[0]), static_cast<unsigned>(r[1]), static_cast<unsigned>(r[2]),
            static_cast<unsigned>(r[3])};
#else
    CpuId r{};
    __get_cpuid_count(leaf, 0, &r.eax, &r.ebx, &r.ecx, &r.edx);  // leaves zeros where there is no such leaf
    return r;
#endif
}

bool has(unsigned word, std::initializer_list<int> bits) noexcept {
    for (const int bit : bits)
        if (((word >> bit) & 1u) == 0) return false;
    return true;
}

// Whether the system saves these vector registers when it switches threads.
bool system_saves(unsigned state) noexcept {
    if (!has(cpuid(1).ecx, {27})) return false;  // OSXSAVE
#if defined(_MSC_VER)
    return (static_cast<unsigned>(_xgetbv(0)) & state) == state;
#else
    unsigned low, high;
    __asm__ __volatile__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & state) == state;
#endif
}

// FMA, AVX, F16C; AVX2, BMI1, BMI2 (which /arch:AVX2 uses too); LZCNT.
bool has_avx2() noexcept {
    return system_saves(0x6) && has(cpuid(1).ecx, {12, 28, 29}) && has(cpuid(7).ebx, {3, 5, 8}) &&
           has(cpuid(0x80000001u).ecx, {5});
}

// AVX-512 F, DQ, CD, BW, VL.
bool has_avx512() noexcept { return has_avx2() && system_saves(0xe6) && has(cpuid(7).ebx, {16, 17, 28, 30, 31}); }
#endif

struct Sweeps {
    const char* name;
    void (*step)(const Tile&) noexcept;
    bool (*finite)(const Tile&) noexcept;
    void (*limit)(const Tile&) noexcept;
    void (*squares)(const Tile&, double*) noexcept;
    bool (*runs_here)() noexcept;
};

bool always() noexcept { return true; }

// Best first.
constexpr Sweeps compiled[] = {
#if defined(RADAM_HAS_X86)
    {"avx512", sweep<isa::avx512>, sweep_finite<isa::avx512>, sweep_limit<isa::avx512>, sweep_squares<isa::avx512>,
     has_avx512},
    {"avx2", sweep<isa::avx2>, sweep_finite<isa::avx2>, sweep_limit<isa::avx2>, sweep_squares<isa::avx2>, has_avx2},
#endif
#if defined(RADAM_HAS_NEON)
    {"neon", sweep<isa::neon>, sweep_finite<isa::neon>, sweep_limit<isa::neon>, sweep_squares<isa::neon>, always},
#endif
    {"portable", sweep<isa::portable>, sweep_finite<isa::portable>, sweep_limit<isa::portable>,
     sweep_squares<isa::portable>, always},
};

std::string list_of_isas() {
    std::string list;
    for (const std::string& name : isas()) list += (list.empty() ? "" : ", ") + name;
    return list;
}

const Sweeps* find(const std::string& name, const std::string& what) {
    for (const Sweeps& sweeps : compiled) {
        if (name != sweeps.name) continue;
        if (sweeps.runs_here()) return &sweeps;
        throw std::invalid_argument(what + "=" + name + ": this processor has no " + name +
                                    "; it takes: " + list_of_isas());
    }
    throw std::invalid_argument(what + "=" + name + ": no such instruction set; this machine takes: " + list_of_isas());
}

const Sweeps* from_environment() {
    if (const char* wanted = std::getenv("RADAM_ISA"); wanted != nullptr && *wanted != '\0')
        return find(wanted, "RADAM_ISA");
    for (const Sweeps& sweeps : compiled)
        if (sweeps.runs_here()) return &sweeps;
    return nullptr;  // not reached: portable runs everywhere
}

std::atomic<const Sweeps*> chosen{nullptr};
std::atomic<int> threads{0};

const Sweeps& sweeps() {
    const Sweeps* found = chosen.load(std::memory_order_acquire);
    if (found == nullptr) chosen.store(found = from_environment(), std::memory_order_release);
    return *found;
}

constexpr int most_threads = 1024;
constexpr std::int64_t tile_alignment = 128;     // elements: whole blocks, and two threads share one cache line at most
constexpr std::int64_t alone_below = 64 * 1024;  // elements: less than this, waking a thread costs more

// One parallel region: a thread meets the same memory in every step, because the partition depends on sizes alone.
struct Region {
    const Slot* slots;
    std::size_t count;
    std::int64_t bytes, alignment;
    void (*visit)(void* self, const Tile& tile, std::size_t slot);
    void* self;
};

void run_part(void* context, int index, int parts) noexcept {
    const Region& region = *static_cast<const Region*>(context);
    const DefaultFloatMode mode;
    // This part's bytes of the flat list: bytes * i / parts, without overflow.
    const auto cut = [&](std::int64_t i) { return region.bytes / parts * i + region.bytes % parts * i / parts; };
    const std::int64_t first = cut(index), last = cut(index + 1);
    std::int64_t at = 0;
    for (std::size_t i = 0; i < region.count && at < last; ++i) {
        const Slot& slot = region.slots[i];
        const std::int64_t width = bytes_per_element(slot), end = at + slot.size * width;
        if (end > first) {
            const auto element = [&](std::int64_t byte) {  // where a cut at this byte falls in the slot
                if (byte <= at) return std::int64_t{0};
                if (byte >= end) return slot.size;
                return (byte - at) / width / region.alignment * region.alignment;
            };
            const Tile tile{&slot, element(first), element(last)};
            if (tile.begin < tile.end) region.visit(region.self, tile, i);
        }
        at = end;
    }
}

template <class F>
void for_each_tile(const Slot* slots, std::size_t count, F f, std::int64_t alignment = tile_alignment) noexcept {
    std::int64_t elements = 0, bytes = 0;
    for (std::size_t i = 0; i < count; ++i) {
        elements += slots[i].size;
        bytes += slots[i].size * bytes_per_element(slots[i]);
    }
    Region region{slots,
                  count,
                  bytes,
                  alignment,
                  [](void* self, const Tile& tile, std::size_t slot) { (*static_cast<F*>(self))(tile, slot); },
                  &f};
    const int parts = elements < alone_below ? 1 : threads.load(std::memory_order_relaxed);
    parallel::run(parts, run_part, &region);
}

int checked_threads(const std::string& what, const std::string& given, long count) {
    if (count >= 1 && count <= most_threads) return static_cast<int>(count);
    throw std::invalid_argument(what + " must be a whole number from 1 to " + std::to_string(most_threads) + ", got " +
                                given);
}

}  // namespace

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const Sweeps& sweeps : compiled)
        if (sweeps.runs_here()) names.emplace_back(sweeps.name);
    return names;
}

std::string current_isa() { return sweeps().name; }

void set_isa(const std::string& name) { chosen.store(find(name, "isa"), std::memory_order_release); }

int num_threads() {
    int count = threads.load(std::memory_order_relaxed);
    if (count == 0) {
        if (const char* wanted = std::getenv("RADAM_NUM_THREADS"); wanted != nullptr && *wanted != '\0') {
            char* end = nullptr;
            const long value = std::strtol(wanted, &end, 10);
            count = checked_threads("RADAM_NUM_THREADS", std::string("'") + wanted + "'", *end == '\0' ? value : 0);
        } else {
            count = parallel::available_cores() < most_threads ? parallel::available_cores() : most_threads;
        }
        threads.store(count, std::memory_order_relaxed);
    }
    return count;
}

void set_num_threads(int count) {
    threads.store(checked_threads("the number of threads", std::to_string(count), count), std::memory_order_relaxed);
}

void step(const Slot* slots, std::size_t count) noexcept {
    for_each_tile(slots, count, [run = sweeps().step](const Tile& tile, std::size_t) { run(tile); });
}

std::size_t first_nonfinite(const Slot* slots, std::size_t count) noexcept {
    std::atomic<std::size_t> first{count};
    for_each_tile(slots, count, [&, finite = sweeps().finite](const Tile& tile, std::size_t slot) {
        if (slot >= first.load(std::memory_order_relaxed) || finite(tile)) return;
        std::size_t found = first.load();
        while (slot < found && !first.compare_exchange_weak(found, slot)) {
        }
    });
    return first.load();
}

std::size_t square_chunks(const Slot* slots, std::size_t count) noexcept {
    std::size_t chunks = 0;
    for (std::size_t i = 0; i < count; ++i) chunks += static_cast<std::size_t>(norm_chunks(slots[i].size));
    return chunks;
}

void sums_of_squares(const Slot* slots, std::size_t count, double* chunks, double* sums) noexcept {
    double start = 0.0;  // where a slot's chunks begin: kept in its sum until that is known
    for (std::size_t i = 0; i < count; ++i) {
        sums[i] = start;
        start += static_cast<double>(norm_chunks(slots[i].size));
    }
    for_each_tile(
        slots, count,
        [&, squares = sweeps().squares](const Tile& tile, std::size_t slot) {
            squares(tile, chunks + static_cast<std::int64_t>(sums[slot]) + tile.begin / norm_chunk);
        },
        norm_chunk);
    double* next = chunks;
    for (std::size_t i = 0; i < count; ++i) {
        const std::int64_t n = norm_chunks(slots[i].size);
        sums[i] = add_pairs(next, n);
        next += n;
    }
}

void limit(const Slot* slots, std::size_t count) noexcept {
    for_each_tile(slots, count, [run = sweeps().limit](const Tile& tile, std::size_t) { run(tile); });
}

}  // namespace radam
