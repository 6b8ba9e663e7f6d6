// How weights and moments are kept in fewer bits: the options of an optimizer, and what a parameter has because of
// them.
#pragma once

#include "codec.hpp"
#include "slot.hpp"

namespace radam {

// What moments are kept in.
enum class StateDType { float32, bfloat16, eight_bit };

// What of an optimizer is kept in fewer bits, and how it is rounded.
struct Precision {
    bool master_weights = false;       // keep what rounding a 16-bit parameter loses
    bool stochastic_rounding = false;  // or round it at random
    StateDType state_dtype = StateDType::float32;
    std::int64_t min_8bit_size = 4096;  // parameters with fewer elements keep fp32 moments
    std::uint64_t seed = 0;             // of all that is rounded at random
};

inline bool is_plain(const Precision& precision) noexcept {
    return !precision.master_weights && !precision.stochastic_rounding && precision.state_dtype == StateDType::float32;
}

inline Violation violation(const Precision& precision) noexcept {
    if (precision.master_weights && precision.stochastic_rounding)
        return {"stochastic_rounding", "false where master_weights is true, which is another way to the same end", 1.0};
    if (precision.min_8bit_size < 0)
        return {"min_8bit_size", "at least 0", static_cast<double>(precision.min_8bit_size)};
    return {};
}

// What a parameter's moments are kept in.
inline Moments moments_of(const Precision& precision, DType dtype, std::int64_t size) noexcept {
    if (dtype == DType::fp64) return Moments::full;
    if (precision.state_dtype == StateDType::bfloat16) return Moments::bf16;
    const bool coded = precision.state_dtype == StateDType::eight_bit && size >= precision.min_8bit_size;
    return coded ? Moments::coded : Moments::full;
}

// What becomes of its weights.
inline Weights weights_of(const Precision& precision, DType dtype) noexcept {
    if (size_of(dtype) != 2) return Weights::plain;
    if (precision.stochastic_rounding) return Weights::stochastic;
    if (!precision.master_weights) return Weights::plain;
    return dtype == DType::bf16 ? Weights::split : Weights::master;
}

// The bytes of a parameter's moment, of one moment's scales, and of what is kept of its weights.
inline std::int64_t moment_bytes(DType dtype, Moments moments, std::int64_t size) noexcept {
    return size * size_of(moment_dtype(dtype, moments, false));
}
inline std::int64_t scale_bytes(Moments moments, std::int64_t size) noexcept {
    return moments == Moments::coded ? blocks_of(size) * static_cast<std::int64_t>(sizeof(float)) : 0;
}
inline std::int64_t master_bytes(Weights weights, std::int64_t size) noexcept { return size * size_of(weights); }

}  // namespace radam
