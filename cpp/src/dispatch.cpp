// Picks the instruction set and the number of threads.
#include <radam/dispatch.hpp>
#include <radam/thread_pool.hpp>

#include <algorithm>
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

struct Compiled {
    const char* name;
    Sweeps sweeps;
    bool (*runs_here)() noexcept;
};

template <class Isa>
constexpr Sweeps sweeps_on{sweep<Isa>, sweep_finite<Isa>, sweep_squares<Isa>, sweep_limit<Isa>};

bool always() noexcept { return true; }

// Best first.
constexpr Compiled compiled[] = {
#if defined(RADAM_HAS_X86)
    {"avx512", sweeps_on<isa::avx512>, has_avx512},
    {"avx2", sweeps_on<isa::avx2>, has_avx2},
#endif
#if defined(RADAM_HAS_NEON)
    {"neon", sweeps_on<isa::neon>, always},
#endif
    {"portable", sweeps_on<isa::portable>, always},
};

std::string list_of_isas() {
    std::string list;
    for (const std::string& name : isas()) list += (list.empty() ? "" : ", ") + name;
    return list;
}

const Compiled* find(const std::string& name, const std::string& what) {
    for (const Compiled& one : compiled) {
        if (name != one.name) continue;
        if (one.runs_here()) return &one;
        throw std::invalid_argument(what + "=" + name + ": this processor has no " + name +
                                    "; it takes: " + list_of_isas());
    }
    throw std::invalid_argument(what + "=" + name + ": no such instruction set; this machine takes: " + list_of_isas());
}

const Compiled* from_environment() {
    if (const char* wanted = std::getenv("RADAM_ISA"); wanted != nullptr && *wanted != '\0')
        return find(wanted, "RADAM_ISA");
    for (const Compiled& one : compiled)
        if (one.runs_here()) return &one;
    return nullptr;  // not reached: portable runs everywhere
}

std::atomic<const Compiled*> chosen{nullptr};
std::atomic<int> threads{0};

const Compiled& in_use() {
    const Compiled* found = chosen.load(std::memory_order_acquire);
    if (found == nullptr) chosen.store(found = from_environment(), std::memory_order_release);
    return *found;
}

constexpr int most_threads = Executor::most_threads;
int checked_threads(const std::string& what, const std::string& given, long count) {
    if (count >= 1 && count <= most_threads) return static_cast<int>(count);
    throw std::invalid_argument(what + " must be a whole number from 1 to " + std::to_string(most_threads) + ", got " +
                                given);
}

}  // namespace

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const Compiled& one : compiled)
        if (one.runs_here()) names.emplace_back(one.name);
    return names;
}

std::string current_isa() { return in_use().name; }

void set_isa(const std::string& name) { chosen.store(find(name, "isa"), std::memory_order_release); }

int num_threads() {
    int count = threads.load(std::memory_order_relaxed);
    if (count == 0) {
        if (const char* wanted = std::getenv("RADAM_NUM_THREADS"); wanted != nullptr && *wanted != '\0') {
            char* end = nullptr;
            const long value = std::strtol(wanted, &end, 10);
            count = checked_threads("RADAM_NUM_THREADS", std::string("'") + wanted + "'", *end == '\0' ? value : 0);
        } else {
            count = std::min(available_cores(), most_threads);
        }
        threads.store(count, std::memory_order_relaxed);
    }
    return count;
}

void set_num_threads(int count) {
    threads.store(checked_threads("the number of threads", std::to_string(count), count), std::memory_order_relaxed);
}

namespace {

// Of the loops in use at the time: set_isa may come between two steps.
constexpr Sweeps whatever_is_in_use{
    [](const Tile& tile) noexcept { in_use().sweeps.step(tile); },
    [](const Tile& tile) noexcept { return in_use().sweeps.finite(tile); },
    [](const Tile& tile, double* sums) noexcept { in_use().sweeps.squares(tile, sums); },
    [](const Tile& tile) noexcept { in_use().sweeps.limit(tile); },
};

Executor pool() noexcept { return Executor::of<parallel::run>(threads.load(std::memory_order_relaxed)); }

}  // namespace

const Sweeps& dispatched_sweeps() {
    in_use();
    return whatever_is_in_use;
}

Executor dispatched_executor() {
    num_threads();
    return pool();
}

void step(const Slot* slots, std::size_t count) noexcept { step(pool(), in_use().sweeps, slots, count); }

std::size_t first_nonfinite(const Slot* slots, std::size_t count) noexcept {
    return first_nonfinite(pool(), in_use().sweeps, slots, count);
}

void sums_of_squares(const Slot* slots, std::size_t count, double* chunks, double* sums) noexcept {
    sums_of_squares(pool(), in_use().sweeps, slots, count, chunks, sums);
}

void limit(const Slot* slots, std::size_t count) noexcept { limit(pool(), in_use().sweeps, slots, count); }

}  // namespace radam
