// The sums of squares of gradients as norm.hpp adds them, by thread blocks; and what clipping makes of them.
#pragma once

#include "cuda_staged.hpp"

namespace radam::cuda {

// A block adds a tile of chunks, a warp one chunk at a time. The chunks of a tile are a whole branch of the tree.
struct NormScratch {
    TableView table;
    std::uint32_t tile, entry;
    const void* grad;   // the tile's
    std::int64_t size;  // its elements
    DType dtype;
    double accumulators[most_warps][norm_accumulators];
    double chunks[most_norm_tile];
};

// ---- one chunk

// Two neighbours, which a thread reads at once where the stream stands at both.
template <class Grad>
struct alignas(2 * sizeof(Grad)) Two {
    Grad x[2];
};

// Accumulators 2 lane and 2 lane + 1 of a chunk of n elements.
template <class Grad>
RADAM_KERNEL_INLINE void add_columns(const Grad* grad, std::int32_t n, int lane, double* accumulators) noexcept {
    constexpr std::int32_t row = norm_accumulators;
    const Grad* const from = on_device(grad + 2 * lane);
    double even = 0.0, odd = 0.0;
    const std::int32_t whole = n / row * row;
    if (reinterpret_cast<std::uintptr_t>(from) % sizeof(Two<Grad>) == 0) {
#if defined(__CUDACC__)
#pragma unroll 8
#endif
        for (std::int32_t i = 0; i < whole; i += row) {
            const Two<Grad> two = *reinterpret_cast<const Two<Grad>*>(from + i);
            const double a = static_cast<double>(widen(two.x[0])), b = static_cast<double>(widen(two.x[1]));
            even = fma(a, a, even);  // of 16 and 32 bits the square is exact
            odd = fma(b, b, odd);
        }
    } else {
        for (std::int32_t i = 0; i < whole; i += row) {
            const double a = static_cast<double>(widen(from[i])), b = static_cast<double>(widen(from[i + 1]));
            even = fma(a, a, even);
            odd = fma(b, b, odd);
        }
    }
    if (whole + 2 * lane < n) {
        const double a = static_cast<double>(widen(from[whole]));
        even = fma(a, a, even);
    }
    if (whole + 2 * lane + 1 < n) {
        const double b = static_cast<double>(widen(from[whole + 1]));
        odd = fma(b, b, odd);
    }
    accumulators[2 * lane] = even;
    accumulators[2 * lane + 1] = odd;
}

RADAM_KERNEL_INLINE void add_columns(const NormScratch& scratch, std::int64_t first, int lane,
                                     double* accumulators) noexcept {
    const std::int64_t left = scratch.size - first;
    const auto n = static_cast<std::int32_t>(left < norm_chunk ? left : norm_chunk);
    const auto add = [&](auto type) noexcept {
        using Grad = typename decltype(type)::type;
        add_columns(static_cast<const Grad*>(scratch.grad) + first, n, lane, accumulators);
    };
    if (scratch.dtype == DType::fp64)
        add(type_is<double>{});
    else
        visit_low(scratch.dtype, add);
}

template <class Warp>
RADAM_KERNEL_INLINE void add_chunk(NormScratch& scratch, const Warp& warp, std::int32_t chunk) noexcept {
    double* const accumulators = scratch.accumulators[warp.index()];
    warp.each([&](int lane) noexcept { add_columns(scratch, chunk * norm_chunk, lane, accumulators); });
    for (int half = norm_accumulators / 2; half > 0; half /= 2)
        warp.each([&](int lane) noexcept {
            if (lane < half) accumulators[lane] = accumulators[lane] + accumulators[lane + half];
        });
    warp.each([&](int lane) noexcept {
        if (lane == 0) scratch.chunks[chunk] = accumulators[0];
    });
}

// ---- the sums of tiles, then of entries, then of all

// As add_pairs of norm.hpp does, but every sum stays where its first part is.
template <class Block>
RADAM_KERNEL_INLINE void add_pairs_of(const Block& block, double* sums, std::uint32_t count) noexcept {
    for (std::uint64_t apart = 1; apart < count; apart *= 2) {
        block.wait();
        block.each([&](int thread, int threads) noexcept {
            for (std::uint64_t i = static_cast<std::uint64_t>(thread) * 2 * apart; i + apart < count;
                 i += static_cast<std::uint64_t>(threads) * 2 * apart)
                sums[i] = sums[i] + sums[i + apart];
        });
    }
    block.wait();
}

template <class Block>
RADAM_KERNEL_INLINE void add_tiles(const TableView& table, const Block& block, NormScratch& scratch) noexcept {
    block.one([&]() noexcept {
        scratch.table = table;
        scratch.tile = block.index();
    });
    while (scratch.tile < scratch.table.header->norms.tiles) {
        block.one([&]() noexcept {
            const Header& header = *scratch.table.header;
            scratch.entry = scratch.table.entry_of_norm_tile(scratch.tile);
            const Entry& entry = scratch.table.entries()[scratch.entry];
            const std::int64_t most = header.norms.tile_chunks * norm_chunk;
            const std::int64_t first = (scratch.tile - scratch.table.norm_tiles()[scratch.entry]) * most;
            const std::int64_t left = entry.size - first;
            scratch.grad = static_cast<const char*>(entry.grad) + first * size_of(entry.grad_dtype);
            scratch.dtype = entry.grad_dtype;
            scratch.size = left < most ? left : most;
        });
        const auto chunks = static_cast<std::int32_t>(norm_chunks(scratch.size));
        block.each_warp([&](const auto& warp) noexcept {
            for (std::int32_t chunk = warp.index(); chunk < chunks; chunk += warp.warps())
                add_chunk(scratch, warp, chunk);
        });
        add_pairs_of(block, scratch.chunks, static_cast<std::uint32_t>(chunks));
        block.one([&]() noexcept {
            scratch.table.header->norms.of_tiles[scratch.tile] = scratch.chunks[0];
            scratch.tile += block.blocks();
        });
    }
}

// What an entry's gradient is multiplied with.
RADAM_KERNEL_INLINE double scale_of(const TableView& table, const Entry& entry) noexcept {
    return abs(entry.on_device ? grad_scale_of(table.schedules()[entry.schedule], *table.header)
                               : table.steps()[entry.schedule].f64.grad_scale);
}

// Blocks add the tiles of an entry each; the last one of them adds the entries, and says what clipping does. Where
// somebody looks, an entry whose sum is not finite is noted, but for fp64, whose squares may overflow.
template <class Block>
RADAM_KERNEL_INLINE void add_entries(const TableView& table, const Block& block) noexcept {
    const Norms& norms = table.header->norms;
    for (std::uint32_t i = block.index(); i < table.header->entries; i += block.blocks()) {
        const std::uint32_t first = table.norm_tiles()[i], count = table.norm_tiles()[i + 1] - first;
        add_pairs_of(block, norms.of_tiles + first, count);
        block.one([&]() noexcept {
            const double sum = count > 0 ? norms.of_tiles[first] : 0.0, scale = scale_of(table, table.entries()[i]);
            norms.of_entries[i] = sum;
            norms.scaled[i] = sum * (scale * scale);
            if (norms.clip == Clip::each) norms.factors[i] = clip_factor(sqrt(norms.scaled[i]), norms.most);
            const bool looks = table.header->first_broken != nullptr && table.entries()[i].grad_dtype != DType::fp64;
            if (looks && !(sum < no_limit)) block.lower(table.header->first_broken, i);
        });
    }
    if (norms.clip == Clip::none || !block.is_last(norms.finished)) return;
    add_pairs_of(block, norms.scaled, table.header->entries);
    block.one([&]() noexcept {
        const double norm = sqrt(table.header->entries > 0 ? norms.scaled[0] : 0.0);
        if (norms.norm.data != nullptr) *static_cast<double*>(norms.norm.data) = norm;
        if (norms.clip == Clip::all) norms.factors[0] = clip_factor(norm, norms.most);
    });
}

}  // namespace radam::cuda
