// A library with the symbol of radam::cuda that runs the kernels' bodies on the host, block after block and thread
// after thread, over host memory: what stands in for a GPU in tests. It also notes what it was asked for, captures
// steps for a replay, and fails when told to.
#define radam_cuda_EXPORTS  // as CMake has it for the library itself
#include "../src/cuda_norm.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>
#include <vector>

namespace radam::cuda {
namespace {

constexpr int warps_per_block = 2, threads_per_block = warps_per_block * warp_size;
constexpr std::uint32_t most_blocks = 5;

struct HostWarp {
    int index_;

    int index() const noexcept { return index_; }
    int warps() const noexcept { return warps_per_block; }
    template <class F>
    void each(F f) const noexcept {
        for (int lane = 0; lane < warp_size; ++lane) f(lane);
    }
    template <class Kept, class B, class A>
    void keeps(bool wants_most, B before, A after) const noexcept {
        Kept kept[warp_size];
        for (int lane = 0; lane < warp_size; ++lane) before(lane, kept[lane]);
        if (wants_most) {
            Kept& all = kept[0];
            for (const Kept& one : kept)
                for (std::size_t i = 0; i < std::size(all.most); ++i) all.most[i] = greater(all.most[i], one.most[i]);
            for (Kept& one : kept) std::copy(std::begin(all.most), std::end(all.most), std::begin(one.most));
        }
        for (int lane = 0; lane < warp_size; ++lane) after(lane, kept[lane]);
    }
};

struct HostBlock {
    std::uint32_t index_, blocks_;

    std::uint32_t index() const noexcept { return index_; }
    std::uint32_t blocks() const noexcept { return blocks_; }
    template <class F>
    void each(F f) const noexcept {
        for (int thread = 0; thread < threads_per_block; ++thread) f(thread, threads_per_block);
    }
    template <class F>
    void each_warp(F f) const noexcept {
        for (int warp = 0; warp < warps_per_block; ++warp) f(HostWarp{warp});
    }
    void wait() const noexcept {}
    template <class F>
    void one(F f) const noexcept {
        f();
    }
    bool is_last(std::uint32_t* counter) const noexcept {
        if (++*counter < blocks_) return false;
        *counter = 0;
        return true;
    }
    template <class T>
    void add_one(T* number) const noexcept {
        *number += T(1);
    }
    void lower(std::uint32_t* number, std::uint32_t to) const noexcept { *number = std::min(*number, to); }
};

// Work as a launch would find it, with memory of its own: the same kernels in the same order.
struct Recorded {
    TableBuilder table;
    bool adds, looks, wide = false;
    std::uint32_t done = 0, added = 0, first_broken = none_broken;
    std::vector<double> numbers;

    Recorded(const Work& work, bool look, bool add) : adds(add || work.clip != Clip::none), looks(look) {
        table.build(work, most_blocks, adds);
        numbers.resize(table.norm_numbers());
        for (std::size_t i = 0; i < work.size; ++i) wide = wide || work.slots[i].slot.grad_dtype == DType::fp64;
    }

    template <class S, class F>
    void for_each_block(std::uint32_t tiles, F f) {
        const std::uint32_t blocks = std::max(1u, std::min(tiles, most_blocks));
        S scratch;
        std::memset(static_cast<void*>(&scratch), 0x5a, sizeof scratch);  // as shared memory begins with anything
        for (std::uint32_t i = 0; i < blocks; ++i) f(TableView{&table.header()}, HostBlock{i, blocks}, scratch);
    }

    void add() {
        table.add_in(numbers.data(), &added);
        for_each_block<NormScratch>(table.header().norms.tiles, [](auto&&... args) { add_tiles(args...); });
        for_each_block<NormScratch>(table.header().entries,
                                    [](auto&& view, auto&& block, auto&&) { add_entries(view, block); });
    }
    void look() {
        for_each_block<Scratch>(table.header().tiles, [](auto&&... args) { find_broken(args...); });
    }
    void prepare() {
        first_broken = none_broken;
        if (looks) table.header().first_broken = &first_broken;
        if (adds) add();
        if (looks && (!adds || wide)) look();
    }
    void step() {
        prepare();
        table.header().done = &done;
        if (table.is_staged_table())
            for_each_block<StagedScratch>(table.header().tiles, [](auto&&... args) { step_staged_table(args...); });
        else
            for_each_block<Scratch>(table.header().tiles, [](auto&&... args) { step_table(args...); });
    }
    void limit() {
        if (table.is_staged_table())
            for_each_block<StagedScratch>(table.header().tiles, [](auto&&... args) { limit_staged_table(args...); });
        else
            for_each_block<Scratch>(table.header().tiles, [](auto&&... args) { limit_table(args...); });
    }
};

std::string log;
std::vector<Recorded> captured;
bool capturing = false;
int fail_after = -1;  // calls

void note(const char* what, int device, void* stream, std::size_t slots) {
    log += std::string(what) + " device=" + std::to_string(device) +
           " stream=" + std::to_string(reinterpret_cast<std::uintptr_t>(stream)) + " slots=" + std::to_string(slots) +
           "\n";
}

bool may(const char* what, int device, void* stream, std::size_t slots, Failure* failure) {
    if (fail_after == 0) {
        fail_after = -1;
        std::snprintf(failure->text, sizeof failure->text, "%s: told to fail", what);
        return false;
    }
    if (fail_after > 0) --fail_after;
    note(what, device, stream, slots);
    return true;
}

int devices(Failure*) noexcept { return 2; }

bool describe(int device, Device* out, Failure*) noexcept {
    std::snprintf(out->name, sizeof out->name, "stand-in %d", device);
    out->major = 9;
    return true;
}

bool step(const Work* works, std::size_t size, Failure* failure) noexcept {
    for (std::size_t i = 0; i < size; ++i)
        if (!may("step", works[i].device, works[i].stream, works[i].size, failure)) return false;
    for (std::size_t i = 0; i < size; ++i) {
        Recorded work(works[i], works[i].skip_nonfinite, false);
        if (capturing)
            captured.push_back(work);
        else
            work.step();
    }
    return true;
}

bool first_nonfinite(const Work& work, std::size_t* out, Failure* failure) noexcept {
    if (!may("first_nonfinite", work.device, work.stream, work.size, failure)) return false;
    Recorded recorded(work, true, false);
    recorded.prepare();
    *out = recorded.first_broken == none_broken ? work.size : recorded.first_broken;
    return true;
}

bool sums_of_squares(const Work& work, double* sums, Failure* failure) noexcept {
    if (!may("sums_of_squares", work.device, work.stream, work.size, failure)) return false;
    Recorded recorded(work, false, true);
    recorded.prepare();
    const double* const found = recorded.table.header().norms.of_entries;
    std::copy(found, found + work.size, sums);
    return true;
}

bool limit(const Work& work, Failure* failure) noexcept {
    if (!may("limit", work.device, work.stream, work.size, failure)) return false;
    Recorded(work, false, false).limit();
    return true;
}

bool allocate(int device, void* stream, std::size_t bytes, void** out, Failure* failure) noexcept {
    if (!may("allocate", device, stream, bytes, failure)) return false;
    *out = std::malloc(bytes);
    return true;
}

bool release(int device, void* stream, void* memory, Failure*) noexcept {
    note("release", device, stream, 0);
    std::free(memory);
    return true;
}

bool copy(const char* what, const Copy& copy, bool to_buffer, Failure* failure) {
    if (!may(what, copy.device, copy.stream, 0, failure)) return false;
    Strides strides{};
    strides.ndim = copy.ndim;
    std::int64_t size = 1;
    for (int d = 0; d < copy.ndim; ++d) {
        strides.shape[d] = copy.shape[d];
        strides.bytes[d] = copy.strides[d];
        size *= copy.shape[d];
    }
    char* const array = static_cast<char*>(copy.array);
    for (std::uint32_t i = 0; i < most_blocks; ++i) {
        const HostBlock block{i, most_blocks};
        if (copy.itemsize == 2)
            copy_strided(strides, size, array, static_cast<std::uint16_t*>(copy.buffer), to_buffer, block);
        else if (copy.itemsize == 4)
            copy_strided(strides, size, array, static_cast<std::uint32_t*>(copy.buffer), to_buffer, block);
        else
            copy_strided(strides, size, array, static_cast<std::uint64_t*>(copy.buffer), to_buffer, block);
    }
    return true;
}

bool gather(const Copy& c, Failure* failure) noexcept { return copy("gather", c, true, failure); }
bool scatter(const Copy& c, Failure* failure) noexcept { return copy("scatter", c, false, failure); }

bool join(int device, void* stream, void* waiting, Failure* failure) noexcept {
    if (!may("join", device, stream, 0, failure)) return false;
    note("waits", device, waiting, 0);
    return true;
}

bool read(int device, void* stream, Number number, double* out, Failure* failure) noexcept {
    if (!may("read", device, stream, 0, failure)) return false;
    *out = value_of(number, 0.0);
    return true;
}

bool is_capturing(int, void*, bool* out, Failure*) noexcept {
    *out = capturing;
    return true;
}

constexpr Library library{interface_version, devices, describe, step,        first_nonfinite,
                          sums_of_squares,   limit,   allocate, release,     gather,
                          scatter,           join,    read,     is_capturing};

}  // namespace
}  // namespace radam::cuda

const radam::cuda::Library* radam_cuda_library() { return &radam::cuda::library; }

// For tests.
extern "C" RADAM_CUDA_API const char* stand_in_log() { return radam::cuda::log.c_str(); }
extern "C" RADAM_CUDA_API void stand_in_forget() {
    radam::cuda::log.clear();
    radam::cuda::captured.clear();
    radam::cuda::capturing = false;
    radam::cuda::fail_after = -1;
}
extern "C" RADAM_CUDA_API void stand_in_fail_after(int calls) { radam::cuda::fail_after = calls; }
extern "C" RADAM_CUDA_API void stand_in_capture(int on) { radam::cuda::capturing = on != 0; }
extern "C" RADAM_CUDA_API void stand_in_replay() {
    for (auto& recorded : radam::cuda::captured) recorded.step();
}
