// What a kernel reads: all tensors of a device in one block of memory without pointers into itself, cut into tiles.
#pragma once

#include <radam/cuda.hpp>

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

struct Header {
    std::uint32_t entries, tiles;
    std::int64_t tile_size;                // elements
    std::uint32_t schedules_at, steps_at;  // bytes from the header on
    Number grad_scale, found_inf, skipped;
    std::uint32_t* done;          // blocks that have read all counts; null where none is advanced
    std::uint32_t* first_broken;  // the first entry whose gradient is not finite; null where nobody looked
};

static_assert(std::is_trivially_copyable_v<Entry> && std::is_trivially_copyable_v<Header> &&
              std::is_trivially_copyable_v<Schedule> && std::is_trivially_copyable_v<ScheduledStep>);
static_assert(alignof(Header) <= 8 && alignof(Entry) <= 8 && alignof(Schedule) <= 8 && alignof(ScheduledStep) <= 8);

// The table as a kernel sees it, wherever it lies.
struct TableView {
    const Header* header;

    RADAM_INLINE const Entry* entries() const noexcept { return reinterpret_cast<const Entry*>(header + 1); }
    RADAM_INLINE const Schedule* schedules() const noexcept { return at<Schedule>(header->schedules_at); }
    RADAM_INLINE const ScheduledStep* steps() const noexcept { return at<ScheduledStep>(header->steps_at); }

    // The entry that holds a tile. Those without elements share their first tile with the next one, and come before it.
    RADAM_INLINE std::uint32_t entry_of(std::uint32_t tile) const noexcept {
        std::uint32_t low = 0, high = header->entries;
        while (high - low > 1) {
            const std::uint32_t middle = low + (high - low) / 2;
            if (entries()[middle].first_tile <= tile)
                low = middle;
            else
                high = middle;
        }
        return low;
    }

private:
    template <class T>
    RADAM_INLINE const T* at(std::uint32_t byte) const noexcept {
        return reinterpret_cast<const T*>(reinterpret_cast<const char*>(header) + byte);
    }
};

// Elements until all streams of a slot stand at 16 bytes at once.
inline std::uint8_t head_of(const Slot& slot) noexcept {
    const auto address = [](const void* data) { return reinterpret_cast<std::uintptr_t>(data); };
    const int p = size_of(slot.param_dtype), g = size_of(slot.grad_dtype), m = size_of(moment_dtype(slot.param_dtype));
    const struct {
        std::uintptr_t address;
        int itemsize;
    } streams[] = {{address(slot.param), p},
                   {address(slot.grad), g},
                   {address(slot.exp_avg), m},
                   {address(slot.exp_avg_sq), m},
                   {address(slot.max_exp_avg_sq), m}};
    for (int head = 0; head < 8; ++head) {  // 16-bit numbers meet 16 bytes again after 8 elements, others sooner
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
    // not be so small that finding them takes time.
    void build(const Work& work, std::int64_t blocks) {
        std::int64_t elements = 0;
        for (std::size_t i = 0; i < work.size; ++i) elements += work.slots[i].slot.size;
        std::int64_t tile_size = least_tile;
        while (tile_size < most_tile && elements / (tile_size * blocks) > tiles_per_block) tile_size *= 2;
        while (elements / tile_size > most_tiles) tile_size *= 2;

        entries_.clear();
        schedules_.clear();
        steps_.clear();
        const Schedule* last_schedule = nullptr;
        const ScheduledStep* last_step = nullptr;
        std::int64_t tiles = 0;
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
            entry.head = head_of(slot);
            entries_.push_back(entry);
            // The head belongs to the first tile, so that all others begin at 16 bytes.
            const std::int64_t body = slot.size - (entry.head == not_together ? 0 : entry.head);
            tiles += slot.size == 0 ? 0 : body <= tile_size ? 1 : (body + tile_size - 1) / tile_size;
        }

        Header header{};
        header.entries = static_cast<std::uint32_t>(entries_.size());
        header.tiles = static_cast<std::uint32_t>(tiles);
        header.tile_size = tile_size;
        const std::size_t schedules_at = sizeof(Header) + entries_.size() * sizeof(Entry);
        const std::size_t steps_at = schedules_at + schedules_.size() * sizeof(Schedule);
        header.schedules_at = static_cast<std::uint32_t>(schedules_at);
        header.steps_at = static_cast<std::uint32_t>(steps_at);
        header.grad_scale = work.grad_scale;
        header.found_inf = work.found_inf;
        header.skipped = work.skipped;
        bytes_.resize(steps_at + steps_.size() * sizeof(ScheduledStep));
        copy(0, &header, 1);
        copy(sizeof(Header), entries_.data(), entries_.size());
        copy(schedules_at, schedules_.data(), schedules_.size());
        copy(steps_at, steps_.data(), steps_.size());
    }

    Header& header() noexcept { return *reinterpret_cast<Header*>(bytes_.data()); }
    const char* data() const noexcept { return bytes_.data(); }
    std::size_t size() const noexcept { return bytes_.size(); }

private:
    template <class T>
    void copy(std::size_t at, const T* from, std::size_t count) noexcept {
        if (count > 0) std::memcpy(bytes_.data() + at, from, count * sizeof(T));
    }

    static constexpr std::int64_t least_tile = 4096, most_tile = 65536, tiles_per_block = 16;
    static constexpr std::int64_t most_tiles = std::int64_t{1} << 30;
    std::vector<Entry> entries_;
    std::vector<Schedule> schedules_;
    std::vector<ScheduledStep> steps_;
    std::vector<char> bytes_;
};

}  // namespace radam::cuda
