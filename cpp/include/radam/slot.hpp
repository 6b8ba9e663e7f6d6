// One parameter: its buffers, its size, its storage types, and the scheduled step it takes.
#pragma once

#include <cstdint>

#include "dtype.hpp"
#include "schedule.hpp"

namespace radam {

// Every buffer holds `size` elements in the same order, at any alignment. Moments are fp32, or fp64 for fp64.
struct Slot {
    void* param = nullptr;
    const void* grad = nullptr;
    void* exp_avg = nullptr;
    void* exp_avg_sq = nullptr;
    void* max_exp_avg_sq = nullptr;  // amsgrad only
    std::int64_t size = 0;
    const ScheduledStep* step = nullptr;
    DType param_dtype = DType::fp32, grad_dtype = DType::fp32;
};

// The elements begin to end of one slot: what one thread does of it.
struct Tile {
    const Slot* slot;
    std::int64_t begin, end;
};

// Bytes that a step of one element touches, each read or written byte once: what the parallel partition balances.
inline std::int64_t bytes_per_element(const Slot& slot) noexcept {
    const std::int64_t moments = slot.step != nullptr && slot.step->amsgrad ? 3 : 2;
    return size_of(slot.param_dtype) + size_of(slot.grad_dtype) + moments * size_of(moment_dtype(slot.param_dtype));
}

}  // namespace radam
