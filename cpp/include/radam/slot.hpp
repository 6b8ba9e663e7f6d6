// One parameter: its buffers, its size, how they are stored, and the scheduled step it takes.
#pragma once

#include <cstdint>
#include <limits>

#include "dtype.hpp"
#include "schedule.hpp"

namespace radam {

// The numbers of a slot's elements, in row-major order, within a whole parameter: element k of a slot that is part of a
// sharded or permuted one. Dimensions are in the slot's own order; none: element k is number first + k.
struct Positions {
    std::int64_t first = 0;
    int ndim = 0;
    const std::int64_t* shape = nullptr;
    const std::int64_t* strides = nullptr;  // in elements of the whole parameter
};

// The number of element i of a slot in the whole parameter; some number for none, beyond the end.
RADAM_INLINE std::uint64_t number_of_element(const Positions& positions, std::int64_t i) noexcept {
    if (positions.ndim == 0) return static_cast<std::uint64_t>(positions.first + i);
    std::int64_t number = positions.first;
    for (int d = positions.ndim; d-- > 0; i /= positions.shape[d])
        number += i % positions.shape[d] * positions.strides[d];
    return static_cast<std::uint64_t>(number);
}

// Every buffer holds `size` elements in the same order, at any alignment. Moments are fp32, or fp64 for fp64, unless
// `moments` says otherwise: then bf16, or codes (int8 for m, uint8 for v) with a scale for each block of 128 elements.
struct Slot {
    void* param = nullptr;
    const void* grad = nullptr;
    void* exp_avg = nullptr;
    void* exp_avg_sq = nullptr;
    void* max_exp_avg_sq = nullptr;  // amsgrad only
    std::int64_t size = 0;
    const ScheduledStep* step = nullptr;
    DType param_dtype = DType::fp32, grad_dtype = DType::fp32;

    Moments moments = Moments::full;  // fp64 and its moments are always full and plain
    Weights weights = Weights::plain;
    void* master = nullptr;  // split: int16, the lower half of each weight; master: fp32 weights
    float *exp_avg_scale = nullptr, *exp_avg_sq_scale = nullptr, *max_exp_avg_sq_scale = nullptr;  // coded only
    double grad_limit = std::numeric_limits<double>::infinity();  // gradients beyond it, either way, are cut to it
    // What random bits depend on, besides the step: see random.hpp.
    std::uint64_t seed = 0;
    std::uint32_t ordinal = 0;  // the parameter's number in the optimizer
    Positions positions;
};

// Whether something of a slot is stored otherwise than it is computed, or its gradient cut: see staged.hpp.
inline bool is_staged(const Slot& slot) noexcept {
    return slot.moments != Moments::full || slot.weights != Weights::plain ||
           slot.grad_limit < std::numeric_limits<double>::infinity();
}

// Where gradients that are multiplied by this are cut for the product to stay within a limit; infinity for no limit.
constexpr double no_limit = std::numeric_limits<double>::infinity();
template <class T>
constexpr T largest_number = std::numeric_limits<T>::max();
template <class T>
RADAM_INLINE T cut_at(double limit, T scale) noexcept {
    if (!(limit < no_limit && scale > T(0))) return static_cast<T>(no_limit);
    const T wanted = limit > static_cast<double>(largest_number<T>) ? largest_number<T> : static_cast<T>(limit);
    const T at = wanted / scale;
    return at > largest_number<T> ? largest_number<T> : at;
}

RADAM_INLINE constexpr DType moment_dtype(DType param, Moments moments, bool squared) noexcept {
    if (moments == Moments::bf16) return DType::bf16;
    if (moments == Moments::coded) return squared ? DType::uint8 : DType::int8;
    return moment_dtype(param);
}

RADAM_INLINE constexpr int size_of(Weights weights) noexcept {  // of an element of Slot::master
    return weights == Weights::split ? 2 : weights == Weights::master ? 4 : 0;
}

// The elements begin to end of one slot: what one thread does of it.
struct Tile {
    const Slot* slot;
    std::int64_t begin, end;
};

// Bytes that a step of one element touches, each read or written byte once: what the parallel partition balances.
inline std::int64_t bytes_per_element(const Slot& slot) noexcept {
    const std::int64_t moments = slot.step != nullptr && slot.step->amsgrad ? 3 : 2;
    return size_of(slot.param_dtype) + size_of(slot.grad_dtype) + size_of(slot.weights) +
           moments * size_of(moment_dtype(slot.param_dtype, slot.moments, false));
}

}  // namespace radam
