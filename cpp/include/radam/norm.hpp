// The sum of squares of a gradient, added up in double along a fixed tree: the same bits whoever adds.
#pragma once

#include <cstdint>

#include "update.hpp"

namespace radam {

// Elements are added in chunks, counted from the slot's first. Within a chunk, element i goes to accumulator i % 64, in
// order; then the accumulators are added in halves. Sums of chunks, and then of slots, are added in pairs.
constexpr std::int64_t norm_chunk = 4096;
constexpr int norm_accumulators = 64;

RADAM_INLINE constexpr std::int64_t norm_chunks(std::int64_t size) noexcept {
    return (size + norm_chunk - 1) / norm_chunk;
}

// The accumulators in halves: 0 with 32, ..., then 0 with 16, ...
RADAM_INLINE double add_halves(double* accumulators) noexcept {
    for (int half = norm_accumulators / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) accumulators[i] = accumulators[i] + accumulators[i + half];
    return accumulators[0];
}

// In pairs: 0 with 1, 2 with 3, ..., an odd last one alone; and so on. Overwrites them.
RADAM_INLINE double add_pairs(double* sums, std::int64_t count) noexcept {
    if (count == 0) return 0.0;
    for (; count > 1; count = (count + 1) / 2) {
        for (std::int64_t i = 0; i < count / 2; ++i) sums[i] = sums[2 * i] + sums[2 * i + 1];
        if (count % 2 != 0) sums[count / 2] = sums[count - 1];
    }
    return sums[0];
}

// How much smaller gradients become by clipping, as torch.nn.utils.clip_grad_norm_ has it; NaN for a norm that is. No
// limit clips nothing, also where the norm is too large to be a number.
RADAM_INLINE double clip_factor(double norm, double most) noexcept {
    if (most > 0x1.fffffffffffffp1023) return 1.0;
    const double factor = most / (norm + 1e-6);
    return factor > 1.0 ? 1.0 : factor;
}

}  // namespace radam
