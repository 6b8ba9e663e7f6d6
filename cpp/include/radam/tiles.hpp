// Steps over many slots at once: cut into tiles by bytes, one list of tiles for each thread of an executor.
#pragma once

#include <atomic>
#include <cstddef>

#include "executor.hpp"
#include "float_mode.hpp"
#include "norm.hpp"
#include "slot.hpp"

namespace radam {

// The loops over a tile, on one instruction set, for the dtypes that they were made for: see sweep.hpp.
struct Sweeps {
    void (*step)(const Tile&) noexcept;
    bool (*finite)(const Tile&) noexcept;
    void (*squares)(const Tile&, double*) noexcept;
    void (*limit)(const Tile&) noexcept;
};

// Which loops a slot takes: the same for all slots, or each its own.
class SweepsOf {
public:
    SweepsOf(const Sweeps& all) noexcept : all_(&all) {}           // NOLINT: the same, said shorter
    SweepsOf(const Sweeps* const* each) noexcept : each_(each) {}  // NOLINT
    const Sweeps& operator()(std::size_t slot) const noexcept { return all_ != nullptr ? *all_ : *each_[slot]; }

private:
    const Sweeps* all_ = nullptr;
    const Sweeps* const* each_ = nullptr;
};

namespace detail {

constexpr std::int64_t tile_alignment = 128;     // elements: whole blocks, and two threads share one cache line at most
constexpr std::int64_t alone_below = 64 * 1024;  // elements: less than this, waking a thread costs more

// One parallel region: a thread meets the same memory in every step, because the partition depends on sizes alone.
template <class F>
struct Region {
    const Slot* slots;
    std::size_t count;
    std::int64_t bytes, alignment;
    F* visit;  // (tile, the slot's number)

    static void run_part(void* context, int index, int parts) noexcept {
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
                if (tile.begin < tile.end) (*region.visit)(tile, i);
            }
            at = end;
        }
    }
};

template <class F>
void for_each_tile(const Executor& executor, const Slot* slots, std::size_t count, F visit,
                   std::int64_t alignment = tile_alignment) noexcept {
    std::int64_t elements = 0, bytes = 0;
    for (std::size_t i = 0; i < count; ++i) {
        elements += slots[i].size;
        bytes += slots[i].size * bytes_per_element(slots[i]);
    }
    Region<F> region{slots, count, bytes, alignment, &visit};
    executor(Parts(elements < alone_below ? 1 : executor.threads(), Region<F>::run_part, &region));
}

}  // namespace detail

// Steps all slots. Their buffers must not overlap, but for gradients that are only read.
inline void step(const Executor& executor, SweepsOf sweeps, const Slot* slots, std::size_t count) noexcept {
    detail::for_each_tile(executor, slots, count, [sweeps](const Tile& tile, std::size_t i) { sweeps(i).step(tile); });
}

// The index of the first slot whose gradient holds an inf or a NaN; count where all are finite.
inline std::size_t first_nonfinite(const Executor& executor, SweepsOf sweeps, const Slot* slots,
                                   std::size_t count) noexcept {
    std::atomic<std::size_t> first{count};
    detail::for_each_tile(executor, slots, count, [&](const Tile& tile, std::size_t slot) {
        if (slot >= first.load(std::memory_order_relaxed) || sweeps(slot).finite(tile)) return;
        std::size_t found = first.load();
        while (slot < found && !first.compare_exchange_weak(found, slot)) {
        }
    });
    return first.load();
}

// How many numbers sums_of_squares needs room for.
inline std::size_t square_chunks(const Slot* slots, std::size_t count) noexcept {
    std::size_t chunks = 0;
    for (std::size_t i = 0; i < count; ++i) chunks += static_cast<std::size_t>(norm_chunks(slots[i].size));
    return chunks;
}

// The sum of squares of each slot's gradient, as norm.hpp adds them.
inline void sums_of_squares(const Executor& executor, SweepsOf sweeps, const Slot* slots, std::size_t count,
                            double* chunks, double* sums) noexcept {
    double start = 0.0;  // where a slot's chunks begin: kept in its sum until that is known
    for (std::size_t i = 0; i < count; ++i) {
        sums[i] = start;
        start += static_cast<double>(norm_chunks(slots[i].size));
    }
    detail::for_each_tile(
        executor, slots, count,
        [&](const Tile& tile, std::size_t slot) {
            sweeps(slot).squares(tile, chunks + static_cast<std::int64_t>(sums[slot]) + tile.begin / norm_chunk);
        },
        norm_chunk);
    double* next = chunks;
    for (std::size_t i = 0; i < count; ++i) {
        const std::int64_t n = norm_chunks(slots[i].size);
        sums[i] = add_pairs(next, n);
        next += n;
    }
}

// Reads and writes what step does and computes nothing: the limit that benchmarks compare with.
// Moves the contents of the buffers about; slots need a step for their form.
inline void limit(const Executor& executor, SweepsOf sweeps, const Slot* slots, std::size_t count) noexcept {
    detail::for_each_tile(executor, slots, count, [sweeps](const Tile& tile, std::size_t i) { sweeps(i).limit(tile); });
}

}  // namespace radam
