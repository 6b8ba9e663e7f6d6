// What a kernel reads: all tensors of a device in one block of memory without pointers into itself, cut into tiles.
#pragma once

#include <radam/cuda.hpp>
#include <radam/norm.hpp>

#include <cstring>
#include <type_traits>
#include <vector>

namespace radam::cuda {

// One parameter, as a thread block meets it.
struct Entry {
    void* param;
    const void* grad;
    void *exp_avg, *exp_avg_sq, *max_exp_avg_sq;
    std::int64_t size;
    void* count;  // null where the host keeps it
    std::int64_t taken;
    std::uint32_t first_tile;
    std::uint32_t schedule;  // which ScheduledStep, or which Schedule where the device schedules
    DType param_dtype, grad_dtype, count_dtype;
    bool on_device;
    // Elements before the first at which all streams stand at 16 bytes; not_together where there is none.
    std::uint8_t head;
};
constexpr std::uint8_t not_together = 0xff;

// How an entry is stored, and what its random bits depend on. Tables in which any entry is staged have one for each
// entry, and all their tiles begin at whole blocks.
struct Storing {
    void* master;
    float *exp_avg_scale, *exp_avg_sq_scale, *max_exp_avg_sq_scale;
    double grad_limit;
    std::uint64_t seed;
    std::int64_t first;  // of Positions, as ndim; shape and strides are in the table
    std::uint32_t ordinal, ndim, dims_at;
    Moments moments;
    Weights weights;
};

// Chunks that a block adds at a time.
constexpr std::int64_t least_norm_tile = 8, most_norm_tile = 512;

// What adding up squares takes, in the device's memory: null where nobody adds.
struct Norms {
    double* of_tiles;
    double* of_entries;       // sums of squares
    double* scaled;           // the same of gradients times their scale, then their sum
    double* factors;          // what clipping multiplies gradients with: one for all, or one for each entry
    std::uint32_t* finished;  // blocks that are done with their entries
    std::uint32_t tiles, tile_chunks;
    Clip clip;
    double most;
    Number norm;
};

struct Header {
    std::uint32_t entries, tiles;
    std::int64_t tile_size;                // elements
    std::uint32_t schedules_at, steps_at;  // bytes from the header on
    std::uint32_t storings_at, norms_at;   // 0 where there are none
    Number grad_scale, found_inf, skipped;
    std::uint32_t* done;          // blocks that have read all counts; null where none is advanced
    std::uint32_t* first_broken;  // the first entry whose gradient is not finite; null where nobody looked
    Norms norms;
};

template <class... T>
constexpr bool fit_into_tables = ((std::is_trivially_copyable_v<T> && alignof(T) <= 8) && ...);
static_assert(fit_into_tables<Header, Entry, Storing, Schedule, ScheduledStep>);

// The table as a kernel sees it, wherever it lies.
struct TableView {
    const Header* header;

    RADAM_INLINE const Entry* entries() const noexcept { return reinterpret_cast<const Entry*>(header + 1); }
    RADAM_INLINE const Schedule* schedules() const noexcept { return at<Schedule>(header->schedules_at); }
    RADAM_INLINE const ScheduledStep* steps() const noexcept { return at<ScheduledStep>(header->steps_at); }
    RADAM_INLINE const Storing* storings() const noexcept { return at<Storing>(header->storings_at); }
    // The first tile of each entry as norms are added, and the number of all.
    RADAM_INLINE const std::uint32_t* norm_tiles() const noexcept { return at<std::uint32_t>(header->norms_at); }
    RADAM_INLINE Positions positions(const Storing& storing) const noexcept {
        const std::int64_t* const dims = at<std::int64_t>(storing.dims_at);
        return {storing.first, static_cast<int>(storing.ndim), dims, dims + storing.ndim};
    }

    // The entry that holds a tile. Those without elements share their first tile with the next one, and come before it.
    RADAM_INLINE std::uint32_t entry_of(std::uint32_t tile) const noexcept {
        const Entry* const all = entries();
        return last_from(tile, [all](std::uint32_t i) noexcept { return all[i].first_tile; });
    }
    RADAM_INLINE std::uint32_t entry_of_norm_tile(std::uint32_t tile) const noexcept {
        const std::uint32_t* const all = norm_tiles();
        return last_from(tile, [all](std::uint32_t i) noexcept { return all[i]; });
    }

private:
    template <class T>
    RADAM_INLINE const T* at(std::uint32_t byte) const noexcept {
        return reinterpret_cast<const T*>(reinterpret_cast<const char*>(header) + byte);
    }

    // The last entry whose first tile is not beyond this one.
    template <class F>
    RADAM_INLINE std::uint32_t last_from(std::uint32_t tile, F first_tile) const noexcept {
        std::uint32_t low = 0, high = header->entries;
        while (high - low > 1) {
            const std::uint32_t middle = low + (high - low) / 2;
            if (first_tile(middle) <= tile)
                low = middle;
            else
                high = middle;
        }
        return low;
    }
};

// Elements until all streams of a slot stand at 16 bytes at once. Tiles of staged tables begin at whole blocks: there
// it is the first element or none.
inline std::uint8_t head_of(const Slot& slot, bool staged_table) noexcept {
    const auto address = [](const void* data) { return reinterpret_cast<std::uintptr_t>(data); };
    const int p = size_of(slot.param_dtype), g = size_of(slot.grad_dtype);
    const int m = size_of(moment_dtype(slot.param_dtype, slot.moments, false));
    const struct {
        std::uintptr_t address;
        int itemsize;
    } streams[] = {{address(slot.param), p},          {address(slot.grad), g},
                   {address(slot.exp_avg), m},        {address(slot.exp_avg_sq), m},
                   {address(slot.max_exp_avg_sq), m}, {address(slot.master), size_of(slot.weights)}};
    for (int head = 0; head < (staged_table ? 1 : 8); ++head) {  // 16-bit numbers meet 16 bytes again after 8 elements
        bool together = true;
        for (const auto& stream : streams)
            together = together && (stream.address == 0 ||
                                    (stream.address + static_cast<std::uintptr_t>(head * stream.itemsize)) % 16 == 0);
        if (together) return static_cast<std::uint8_t>(head);
    }
    return not_together;
}

// Builds tables, in memory that it keeps.
class TableBuilder {
public:
    // blocks: how many run at once. Every one should get many tiles of a large step, for an even end, and tiles should
    // not be so small that finding them takes time. adds: whether anybody adds up squares.
    void build(const Work& work, std::int64_t blocks, bool adds) {
        std::int64_t elements = 0;
        bool staged = false;
        for (std::size_t i = 0; i < work.size; ++i) {
            elements += work.slots[i].slot.size;
            staged = staged || is_staged(work.slots[i].slot);
        }
        std::int64_t tile_size = least_tile;
        while (tile_size < most_tile && elements / (tile_size * blocks) > tiles_per_block) tile_size *= 2;
        while (elements / tile_size > most_tiles) tile_size *= 2;
        std::int64_t tile_chunks = least_norm_tile;
        while (tile_chunks < most_norm_tile && elements / (tile_chunks * norm_chunk * blocks) > tiles_per_block)
            tile_chunks *= 2;

        entries_.clear();
        storings_.clear();
        norm_tiles_.clear();
        dims_.clear();
        schedules_.clear();
        steps_.clear();
        const Schedule* last_schedule = nullptr;
        const ScheduledStep* last_step = nullptr;
        std::int64_t tiles = 0, norm_tiles = 0;
        for (std::size_t i = 0; i < work.size; ++i) {
            const DeviceSlot& from = work.slots[i];
            const Slot& slot = from.slot;
            const bool on_device = slot.step == nullptr;
            if (on_device && from.schedule != last_schedule) schedules_.push_back(*(last_schedule = from.schedule));
            if (!on_device && slot.step != last_step) steps_.push_back(*(last_step = slot.step));
            Entry entry{};
            entry.param = slot.param;
            entry.grad = slot.grad;
            entry.exp_avg = slot.exp_avg;
            entry.exp_avg_sq = slot.exp_avg_sq;
            entry.max_exp_avg_sq = slot.max_exp_avg_sq;
            entry.size = slot.size;
            entry.count = from.count.data;
            entry.taken = from.taken;
            entry.first_tile = static_cast<std::uint32_t>(tiles);
            entry.schedule = static_cast<std::uint32_t>((on_device ? schedules_.size() : steps_.size()) - 1);
            entry.param_dtype = slot.param_dtype;
            entry.grad_dtype = slot.grad_dtype;
            entry.count_dtype = from.count.dtype;
            entry.on_device = on_device;
            entry.head = head_of(slot, staged);
            entries_.push_back(entry);
            // The head belongs to the first tile, so that all others begin at 16 bytes.
            const std::int64_t body = slot.size - (entry.head == not_together ? 0 : entry.head);
            tiles += slot.size == 0 ? 0 : body <= tile_size ? 1 : (body + tile_size - 1) / tile_size;
            if (staged) add_storing(slot);
            if (adds) norm_tiles_.push_back(static_cast<std::uint32_t>(norm_tiles));
            norm_tiles += (norm_chunks(slot.size) + tile_chunks - 1) / tile_chunks;
        }
        if (adds) norm_tiles_.push_back(static_cast<std::uint32_t>(norm_tiles));
        if (norm_tiles_.size() % 2 != 0) norm_tiles_.push_back(0);  // what follows stands at 8 bytes

        Header header{};
        header.entries = static_cast<std::uint32_t>(entries_.size());
        header.tiles = static_cast<std::uint32_t>(tiles);
        header.tile_size = tile_size;
        header.grad_scale = work.grad_scale;
        header.found_inf = work.found_inf;
        header.skipped = work.skipped;
        header.norms.tiles = static_cast<std::uint32_t>(norm_tiles);
        header.norms.tile_chunks = static_cast<std::uint32_t>(tile_chunks);
        header.norms.clip = work.clip;
        header.norms.most = work.most;
        header.norms.norm = work.norm;

        bytes_.clear();
        append(&header, 1);
        append(entries_.data(), entries_.size());
        const std::uint32_t dims_at = append(dims_.data(), dims_.size());
        for (Storing& storing : storings_) storing.dims_at += dims_at;
        header.storings_at = append(storings_.data(), storings_.size());
        header.norms_at = append(norm_tiles_.data(), norm_tiles_.size());
        header.schedules_at = append(schedules_.data(), schedules_.size());
        header.steps_at = append(steps_.data(), steps_.size());
        if (!staged) header.storings_at = 0;
        if (!adds) header.norms_at = 0;
        this->header() = header;
    }

    Header& header() noexcept { return *reinterpret_cast<Header*>(bytes_.data()); }
    bool is_staged_table() noexcept { return header().storings_at != 0; }
    const char* data() const noexcept { return bytes_.data(); }
    std::size_t size() const noexcept { return bytes_.size(); }

    // Numbers that adding up squares takes, and where they are: `room` in the device's memory.
    std::size_t norm_numbers() noexcept {
        const Header& h = header();
        return h.norms_at == 0 ? 0 : h.norms.tiles + 3 * std::size_t{h.entries} + 1;
    }
    void add_in(double* room, std::uint32_t* finished) noexcept {
        Norms& norms = header().norms;
        norms.of_tiles = room;
        norms.of_entries = norms.of_tiles + norms.tiles;
        norms.scaled = norms.of_entries + header().entries;
        norms.factors = norms.scaled + header().entries;
        norms.finished = finished;
    }

private:
    void add_storing(const Slot& slot) {
        Storing storing{};
        storing.master = slot.master;
        storing.exp_avg_scale = slot.exp_avg_scale;
        storing.exp_avg_sq_scale = slot.exp_avg_sq_scale;
        storing.max_exp_avg_sq_scale = slot.max_exp_avg_sq_scale;
        storing.grad_limit = slot.grad_limit;
        storing.seed = slot.seed;
        storing.ordinal = slot.ordinal;
        storing.moments = slot.moments;
        storing.weights = slot.weights;
        storing.first = slot.positions.first;
        storing.ndim = static_cast<std::uint32_t>(slot.positions.ndim);
        storing.dims_at = static_cast<std::uint32_t>(dims_.size() * sizeof(std::int64_t));
        for (const std::int64_t* of : {slot.positions.shape, slot.positions.strides})
            dims_.insert(dims_.end(), of, of + storing.ndim);
        storings_.push_back(storing);
    }

    // Where it is: bytes from the header on.
    template <class T>
    std::uint32_t append(const T* from, std::size_t count) {
        const std::size_t at = bytes_.size();
        bytes_.resize(at + count * sizeof(T));
        if (count > 0) std::memcpy(bytes_.data() + at, from, count * sizeof(T));
        return static_cast<std::uint32_t>(at);
    }

    static constexpr std::int64_t least_tile = 4096, most_tile = 65536, tiles_per_block = 16;
    static constexpr std::int64_t most_tiles = std::int64_t{1} << 30;
    std::vector<Entry> entries_;
    std::vector<Storing> storings_;
    std::vector<std::uint32_t> norm_tiles_;
    std::vector<std::int64_t> dims_;
    std::vector<Schedule> schedules_;
    std::vector<ScheduledStep> steps_;
    std::vector<char> bytes_;
};

}  // namespace radam::cuda
