// What the blocks of a launch do with a table. A Block says who they are and how they wait for each other: threads of a
// GPU in sweep_cuda.cu, one after the other on a CPU in the tests, where the same lines run.
#pragma once

#include <radam/layout.hpp>

#include "cuda_table.hpp"

#if defined(__CUDACC__)
#define RADAM_KERNEL_INLINE __device__ __forceinline__
#define RADAM_UNROLL _Pragma("unroll")
#define RADAM_NO_UNROLL _Pragma("unroll 1")
#else
#define RADAM_KERNEL_INLINE inline
#define RADAM_UNROLL
#define RADAM_NO_UNROLL
#endif

namespace radam::cuda {

// ---- 16 bytes at a time

// A pointer that the compiler knows to be one into the device's own memory.
template <class T>
RADAM_KERNEL_INLINE T* on_device(T* pointer) noexcept {
#if defined(__CUDA_ARCH__)
    __builtin_assume(__isGlobal(pointer));
#endif
    return pointer;
}

struct alignas(16) Sixteen {
    std::uint32_t words[4];
};

// Some elements of a stream in registers, read and written by 16 bytes where there are as many, and one by one else.
template <class Storage, int width>
struct Pack {
    Storage x[width];

    RADAM_KERNEL_INLINE static Pack load(const Storage* from) noexcept {
        Pack pack;
        if constexpr (by_sixteen) {
            RADAM_UNROLL
            for (int i = 0; i < width; i += per_sixteen) {
                const Sixteen part = *reinterpret_cast<const Sixteen*>(from + i);
                std::memcpy(pack.x + i, &part, sizeof part);
            }
        } else {
            static_assert(width == 1);
            pack.x[0] = *from;
        }
        return pack;
    }
    RADAM_KERNEL_INLINE void store(Storage* to) const noexcept {
        if constexpr (by_sixteen) {
            RADAM_UNROLL
            for (int i = 0; i < width; i += per_sixteen) {
                Sixteen part;
                std::memcpy(&part, x + i, sizeof part);
                *reinterpret_cast<Sixteen*>(to + i) = part;
            }
        } else {
            *to = x[0];
        }
    }

private:
    static constexpr int per_sixteen = static_cast<int>(16 / sizeof(Storage));
    static constexpr bool by_sixteen = width % per_sixteen == 0;
};

RADAM_KERNEL_INLINE float widen(float x) noexcept { return x; }
RADAM_KERNEL_INLINE double widen(double x) noexcept { return x; }
RADAM_KERNEL_INLINE float widen(bf16 x) noexcept { return to_float(x); }
RADAM_KERNEL_INLINE float widen(fp16 x) noexcept { return to_float(x); }
RADAM_KERNEL_INLINE void narrow(float& to, float x) noexcept { to = x; }
RADAM_KERNEL_INLINE void narrow(double& to, double x) noexcept { to = x; }
RADAM_KERNEL_INLINE void narrow(bf16& to, float x) noexcept { to = to_bf16(x); }
RADAM_KERNEL_INLINE void narrow(fp16& to, float x) noexcept { to = to_fp16(x); }

// ---- one tile

// The part of an entry that one block does at a time: `size` elements, packs from `body` on, if there are any. Its
// streams begin where it does.
struct Part {
    void* param;
    const void* grad;
    void *exp_avg, *exp_avg_sq, *max_exp_avg_sq;
    std::int32_t body, size;
    DType param_dtype, grad_dtype;
};

RADAM_KERNEL_INLINE Part part_of(const Entry& entry, std::uint32_t tile, std::int64_t tile_size) noexcept {
    const std::int64_t head = entry.head == not_together ? 0 : entry.head;
    const std::int64_t first = tile == 0 ? 0 : head + tile * tile_size,
                       end = head + (tile + std::int64_t{1}) * tile_size;
    const auto size = static_cast<std::int32_t>((end < entry.size ? end : entry.size) - first);
    const auto body = entry.head == not_together ? size : tile == 0 ? static_cast<std::int32_t>(head) : 0;
    const std::int64_t p = first * size_of(entry.param_dtype), g = first * size_of(entry.grad_dtype);
    const std::int64_t m = first * size_of(moment_dtype(entry.param_dtype));
    return {static_cast<char*>(entry.param) + p,
            static_cast<const char*>(entry.grad) + g,
            static_cast<char*>(entry.exp_avg) + m,
            static_cast<char*>(entry.exp_avg_sq) + m,
            entry.max_exp_avg_sq == nullptr ? nullptr : static_cast<char*>(entry.max_exp_avg_sq) + m,
            body < size ? body : size,
            size,
            entry.param_dtype,
            entry.grad_dtype};
}

// Calls f(width_is<n>, i) for what this thread does of a part: n elements from i on.
template <int n>
struct width_is {
    static constexpr int width = n;
};

template <int width, class F>
RADAM_KERNEL_INLINE void for_each_pack(const Part& part, int thread, int threads, F f) noexcept {
    const std::int32_t body = part.body, size = part.size, tail = size - (size - body) % width;
    for (std::int32_t i = body + thread * width; i < tail; i += threads * width) f(width_is<width>{}, i);
    for (std::int32_t i = thread; i < body; i += threads) f(width_is<1>{}, i);
    for (std::int32_t i = tail + thread; i < size; i += threads) f(width_is<1>{}, i);
}

template <class Param, class Grad>
constexpr int width_of = static_cast<int>(16 / (sizeof(Grad) < sizeof(Param) ? sizeof(Grad) : sizeof(Param)));

// Keeps the compiler from holding in registers, or compiling a loop for each value of, what lies in shared memory.
RADAM_KERNEL_INLINE void read_again() noexcept {
#if defined(__CUDA_ARCH__)
    asm volatile("" ::: "memory");
#endif
}

// Moments in registers at once: 16 bytes of each. More of them would spill.
template <class T>
constexpr int most_at_once = static_cast<int>(16 / sizeof(T));

// The streams of a part with their types back.
template <class Param, class Grad>
struct Streams {
    using T = Compute<Param>;
    const Part& part;

    RADAM_KERNEL_INLINE Param* p() const noexcept { return on_device(static_cast<Param*>(part.param)); }
    RADAM_KERNEL_INLINE const Grad* g() const noexcept { return on_device(static_cast<const Grad*>(part.grad)); }
    RADAM_KERNEL_INLINE T* m() const noexcept { return on_device(static_cast<T*>(part.exp_avg)); }
    RADAM_KERNEL_INLINE T* v() const noexcept { return on_device(static_cast<T*>(part.exp_avg_sq)); }
    RADAM_KERNEL_INLINE T* v_max() const noexcept { return on_device(static_cast<T*>(part.max_exp_avg_sq)); }
};

template <class T>
RADAM_KERNEL_INLINE const Coefficients<T>& coefficients_of(const ScheduledStep& step) noexcept {
    if constexpr (std::is_same_v<T, double>)
        return step.f64;
    else
        return step.f32;
}

// A form of the law in registers.
struct ChosenForm {
    Mode mode;
    bool coupled, amsgrad, nesterov;
    static constexpr bool flushes = true;
};

// The form is chosen at run time, alike for all threads: a hundred forms compiled would not be faster than memory.
template <class Param, class Grad>
RADAM_KERNEL_INLINE void step_part(const Part& part, const ScheduledStep& step, int thread, int threads) noexcept {
    using T = Compute<Param>;
    const Streams<Param, Grad> s{part};
    const Coefficients<T>& c = coefficients_of<T>(step);
    for_each_pack<width_of<Param, Grad>>(part, thread, threads, [&](auto n, std::int32_t i) noexcept {
        read_again();
        const ChosenForm form{step.mode, step.coupled, step.amsgrad, step.nesterov};
        constexpr int width = decltype(n)::width, some = width < most_at_once<T> ? width : most_at_once<T>;
        auto p = Pack<Param, width>::load(s.p() + i);
        const auto g = Pack<Grad, width>::load(s.g() + i);
        RADAM_UNROLL
        for (int at = 0; at < width; at += some) {
            auto m = Pack<T, some>::load(s.m() + i + at);
            auto v = Pack<T, some>::load(s.v() + i + at);
            Pack<T, some> v_max{};
            if (form.amsgrad) v_max = Pack<T, some>::load(s.v_max() + i + at);
            RADAM_UNROLL
            for (int k = 0; k < some; ++k) {
                if constexpr (!(sizeof(Param) == 4 && sizeof(Grad) == 4)) read_again();  // those have registers enough
                T p_k = widen(p.x[at + k]);
                update(form, p_k, T(widen(g.x[at + k])), m.x[k], v.x[k], v_max.x[k], c);
                narrow(p.x[at + k], p_k);
            }
            m.store(s.m() + i + at);
            v.store(s.v() + i + at);
            if (form.amsgrad) v_max.store(s.v_max() + i + at);
        }
        if (form.mode != Mode::moments_only) p.store(s.p() + i);
    });
}

// The same streams read and written, nothing computed.
template <class Param, class Grad>
RADAM_KERNEL_INLINE void limit_part(const Part& part, int thread, int threads) noexcept {
    using T = Compute<Param>;
    const Streams<Param, Grad> s{part};
    for_each_pack<width_of<Param, Grad>>(part, thread, threads, [&](auto n, std::int32_t i) noexcept {
        constexpr int width = decltype(n)::width;
        const auto p = Pack<Param, width>::load(s.p() + i);
        const auto g = Pack<Grad, width>::load(s.g() + i);
        const auto m = Pack<T, width>::load(s.m() + i);
        auto v = Pack<T, width>::load(s.v() + i);
        Pack<Param, width> p_new;
        RADAM_UNROLL
        for (int k = 0; k < width; ++k) {
            narrow(p_new.x[k], T(widen(g.x[k])));
            v.x[k] = v.x[k] + T(widen(p.x[k]));  // one sum, so that all four loads count
        }
        p_new.store(s.p() + i);
        v.store(s.m() + i);
        m.store(s.v() + i);
    });
}

template <class Param, class Grad>
RADAM_KERNEL_INLINE bool part_is_finite(const Part& part, int thread, int threads) noexcept {
    using T = Compute<Param>;
    const Grad* const g = on_device(static_cast<const Grad*>(part.grad));
    T sum(0);  // 0 * g is NaN for inf and NaN, and one NaN makes a sum NaN
    for_each_pack<width_of<Param, Grad>>(part, thread, threads, [&](auto n, std::int32_t i) noexcept {
        const auto pack = Pack<Grad, decltype(n)::width>::load(g + i);
        RADAM_UNROLL
        for (const Grad x : pack.x) sum = fma(T(0), T(widen(x)), sum);
    });
    return sum == T(0);
}

// ---- schedules on the device

RADAM_KERNEL_INLINE double value_of(const Number& number, double otherwise) noexcept {
    if (number.data == nullptr) return otherwise;
    return number.dtype == DType::fp64 ? *static_cast<const double*>(number.data)
                                       : static_cast<double>(*static_cast<const float*>(number.data));
}

// The number of an entry's next step, the first one for a count that is none.
RADAM_KERNEL_INLINE std::int64_t next_step(const Entry& entry) noexcept {
    if (entry.count == nullptr) return entry.taken + 1;
    const double count = value_of({entry.count, entry.count_dtype}, 0.0);
    return count >= 0.0 && count < 0x1p53 ? static_cast<std::int64_t>(count) + 1 : 1;
}

// What a block keeps in shared memory rather than every thread in registers: one tile, and one scheduled step.
struct Scratch {
    TableView table;
    Part part;
    std::uint32_t tile, entry;
    bool from_device;
    std::uint32_t schedule;
    std::int64_t t;  // of a step that the device schedules; 0 for none
    Hyperparameters hyperparameters;
    ScheduledStep step;
    double grad_scale;  // of the step before clipping
};

RADAM_KERNEL_INLINE double grad_scale_of(const Schedule& schedule, const Header& header) noexcept {
    const double scale = schedule.hyperparameters.grad_scale;
    return header.grad_scale.data == nullptr ? scale : scale / value_of(header.grad_scale, 1.0);
}

// The step that the device schedules for an entry.
RADAM_KERNEL_INLINE void schedule_on_device(const Entry& entry, Scratch& scratch) noexcept {
    const Schedule& from = scratch.table.schedules()[entry.schedule];
    Hyperparameters& h = scratch.hyperparameters;
    h = from.hyperparameters;
    h.lr = value_of(from.lr, h.lr);
    h.beta1 = value_of(from.beta1, h.beta1);
    h.beta2 = value_of(from.beta2, h.beta2);
    h.grad_scale = grad_scale_of(from, *scratch.table.header);
    // Not what would only be kept in registers all along: these, and t.
    scratch.step.amsgrad = h.amsgrad;
    scratch.step.nesterov = h.nesterov;
    read_again();
    const ScheduledStep step = schedule(h, scratch.t);
    scratch.step.mode = step.mode;
    scratch.step.coupled = step.coupled;
    scratch.step.f64 = step.f64;
    scratch.step.f32 = step.f32;
}

RADAM_KERNEL_INLINE void take_step(const Entry& entry, Scratch& scratch) noexcept {
    const std::int64_t t = entry.on_device ? next_step(entry) : 1;
    if (scratch.t != t || scratch.from_device != entry.on_device || scratch.schedule != entry.schedule) {
        scratch.from_device = entry.on_device;
        scratch.schedule = entry.schedule;
        scratch.t = t;
        if (entry.on_device)
            schedule_on_device(entry, scratch);
        else
            scratch.step = scratch.table.steps()[entry.schedule];
        read_again();
        scratch.grad_scale = scratch.step.f64.grad_scale;
    }
    const Norms& norms = scratch.table.header->norms;
    if (norms.clip == Clip::none) return;
    scratch.step.f64.grad_scale = scratch.grad_scale;
    scale_gradients(scratch.step, norms.factors[norms.clip == Clip::each ? scratch.entry : 0]);
}

// ---- whole tables

// A block does tiles index, index + blocks, ... of all. prepare(entry, tile of the entry) is called by one thread, then
// all() for the block.
template <class Block, class P, class A>
RADAM_KERNEL_INLINE void for_each_tile(const TableView& table, const Block& block, Scratch& scratch, P prepare,
                                       A all) noexcept {
    block.one([&]() noexcept {
        scratch.table = table;
        scratch.tile = block.index();
        scratch.t = 0;
    });
    while (scratch.tile < scratch.table.header->tiles) {
        block.one([&]() noexcept {
            scratch.entry = scratch.table.entry_of(scratch.tile);
            const Entry& entry = scratch.table.entries()[scratch.entry];
            prepare(entry, scratch.tile - entry.first_tile);
        });
        all();
        block.one([&]() noexcept { scratch.tile += block.blocks(); });
    }
}

// The same, and f(type_is<Param>, type_is<Grad>, thread, threads) for each thread.
template <class Block, class P, class F>
RADAM_KERNEL_INLINE void for_each_part(const TableView& table, const Block& block, Scratch& scratch, P prepare,
                                       F f) noexcept {
    for_each_tile(
        table, block, scratch,
        [&](const Entry& entry, std::uint32_t tile) noexcept {
            scratch.part = part_of(entry, tile, scratch.table.header->tile_size);
            prepare(entry);
        },
        [&]() noexcept {
            block.each([&](int thread, int threads) noexcept {
                visit_pair(scratch.part.param_dtype, scratch.part.grad_dtype,
                           [&](auto p, auto g) noexcept { f(p, g, thread, threads); });
            });
        });
}

constexpr std::uint32_t none_broken = 0xffffffffu;

RADAM_KERNEL_INLINE bool skips(const Header& header) noexcept {
    return value_of(header.found_inf, 0.0) != 0.0 ||
           (header.first_broken != nullptr && *header.first_broken != none_broken);
}

// At once for all others: several parameters may share a count.
template <class Block>
RADAM_KERNEL_INLINE void add_one(const Number& number, const Block& block) noexcept {
    if (number.data == nullptr) return;
    if (number.dtype == DType::fp64)
        block.add_one(static_cast<double*>(number.data));
    else
        block.add_one(static_cast<float*>(number.data));
}

// A step that is not skipped: the tiles, by all_tiles(), and the counts.
template <class Block, class T>
RADAM_KERNEL_INLINE void step_unless_skipped(const TableView& table, const Block& block, Scratch& scratch,
                                             T all_tiles) noexcept {
    if (skips(*table.header)) {
        if (block.index() == 0) block.one([&]() noexcept { add_one(table.header->skipped, block); });
        return;
    }
    all_tiles();
    // Counts advance when every block has read them.
    const TableView& same = scratch.table;
    if (same.header->done == nullptr || !block.is_last(same.header->done)) return;
    block.each([&](int thread, int threads) noexcept {
        for (auto i = static_cast<std::uint32_t>(thread); i < same.header->entries;
             i += static_cast<std::uint32_t>(threads)) {
            const Entry& entry = same.entries()[i];
            add_one({entry.count, entry.count_dtype}, block);
        }
    });
}

template <class Block>
RADAM_KERNEL_INLINE void step_table(const TableView& table, const Block& block, Scratch& scratch) noexcept {
    step_unless_skipped(table, block, scratch, [&]() noexcept {
        for_each_part(
            table, block, scratch, [&](const Entry& entry) noexcept { take_step(entry, scratch); },
            [&](auto p, auto g, int thread, int threads) noexcept {
                step_part<typename decltype(p)::type, typename decltype(g)::type>(scratch.part, scratch.step, thread,
                                                                                  threads);
            });
    });
}

// Notes the first entry whose gradient holds an inf or a NaN.
template <class Block>
RADAM_KERNEL_INLINE void find_broken(const TableView& table, const Block& block, Scratch& scratch) noexcept {
    for_each_part(
        table, block, scratch, [](const Entry&) noexcept {},
        [&](auto p, auto g, int thread, int threads) noexcept {
            using Param = typename decltype(p)::type;
            using Grad = typename decltype(g)::type;
            if (!part_is_finite<Param, Grad>(scratch.part, thread, threads))
                block.lower(scratch.table.header->first_broken, scratch.entry);
        });
}

template <class Block>
RADAM_KERNEL_INLINE void limit_table(const TableView& table, const Block& block, Scratch& scratch) noexcept {
    for_each_part(
        table, block, scratch, [](const Entry&) noexcept {},
        [&](auto p, auto g, int thread, int threads) noexcept {
            limit_part<typename decltype(p)::type, typename decltype(g)::type>(scratch.part, thread, threads);
        });
}

// ---- strided arrays

struct Strides {
    int ndim;
    std::int64_t shape[most_dims], bytes[most_dims];
};

// Element number i in the order of the dimensions, as bytes from the array's first.
RADAM_KERNEL_INLINE std::int64_t offset_of(const Strides& strides, std::int64_t i) noexcept {
    std::int64_t offset = 0;
    for (int d = strides.ndim; d-- > 0; i /= strides.shape[d]) offset += i % strides.shape[d] * strides.bytes[d];
    return offset;
}

template <class Word, class Block>
RADAM_KERNEL_INLINE void copy_strided(const Strides& strides, std::int64_t size, char* array, Word* buffer,
                                      bool to_buffer, const Block& block) noexcept {
    block.each([&](int thread, int threads) noexcept {
        const std::int64_t step = static_cast<std::int64_t>(threads) * block.blocks();
        for (std::int64_t i = static_cast<std::int64_t>(threads) * block.index() + thread; i < size; i += step) {
            Word* const element = reinterpret_cast<Word*>(array + offset_of(strides, i));
            if (to_buffer)
                buffer[i] = *element;
            else
                *element = buffer[i];
        }
    });
}

}  // namespace radam::cuda
