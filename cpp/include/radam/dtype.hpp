// How a number is stored: fp64, fp32, bf16, fp16; their conversions, round to nearest even; the one switch over them.
// The integers are what codes and remainders are stored as: see codec.hpp.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "update.hpp"

namespace radam {

enum class DType : std::uint8_t { fp64, fp32, bf16, fp16, int8, uint8, int16 };

// How moments are stored: fp32 (fp64 for fp64), bf16, or coded in 8 bits.
enum class Moments : std::uint8_t { full, bf16, coded };

// What becomes of a weight: the parameter is all there is, or a 16-bit parameter is rounded at random, or holds the
// upper half of an fp32 weight (bf16), or is the rounding of one (fp16).
enum class Weights : std::uint8_t { plain, stochastic, split, master };

struct bf16 {
    std::uint16_t bits;
};
struct fp16 {
    std::uint16_t bits;
};

RADAM_INLINE constexpr int size_of(DType dtype) noexcept {
    return dtype == DType::fp64 ? 8 : dtype == DType::fp32 ? 4 : dtype == DType::int8 || dtype == DType::uint8 ? 1 : 2;
}

constexpr const char* name_of(DType dtype) noexcept {
    switch (dtype) {
        case DType::fp64: return "float64";
        case DType::fp32: return "float32";
        case DType::bf16: return "bfloat16";
        case DType::fp16: return "float16";
        case DType::int8: return "int8";
        case DType::uint8: return "uint8";
        case DType::int16: return "int16";
    }
    return "";
}

RADAM_INLINE constexpr bool is_float(DType dtype) noexcept { return dtype <= DType::fp16; }

// fp64 goes with fp64 only; the others in any pair, computed in fp32 with fp32 moments.
constexpr bool is_pair(DType param, DType grad) noexcept {
    return is_float(param) && is_float(grad) && (param == DType::fp64) == (grad == DType::fp64);
}
RADAM_INLINE constexpr DType moment_dtype(DType param) noexcept {
    return param == DType::fp64 ? DType::fp64 : DType::fp32;
}

// The dtype of a storage type.
template <class Storage>
constexpr DType dtype_of() noexcept {
    constexpr bool wide = std::is_same_v<Storage, double>, single = std::is_same_v<Storage, float>;
    constexpr bool brain = std::is_same_v<Storage, bf16>, half = std::is_same_v<Storage, fp16>;
    static_assert(wide || single || brain || half,
                  "parameters and gradients are double, float, radam::bf16 or radam::fp16");
    return wide ? DType::fp64 : single ? DType::fp32 : brain ? DType::bf16 : DType::fp16;
}

// The arithmetic that a storage type is computed in.
template <class Storage>
using Compute = std::conditional_t<std::is_same_v<Storage, double>, double, float>;

RADAM_INLINE float to_float(bf16 x) noexcept { return bit_cast<float>(std::uint32_t{x.bits} << 16); }

RADAM_INLINE float to_float(fp16 x) noexcept {
    const std::uint32_t magnitude = (x.bits & 0x7fffu) << 13;
    // Moving the exponent from bias 15 to 127 by an exact product serves subnormal numbers too.
    const float scaled = bit_cast<float>(magnitude) * 0x1p112f;
    const std::uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;  // inf and NaN keep a full exponent
    return bit_cast<float>(bit_cast<std::uint32_t>(scaled) | special | ((x.bits & 0x8000u) << 16));
}

RADAM_INLINE bf16 to_bf16(float x) noexcept {
    const std::uint32_t bits = bit_cast<std::uint32_t>(x);
    const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const std::uint32_t quiet = (bits >> 16) | 0x40u;
    return {static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded)};
}

RADAM_INLINE fp16 to_fp16(float x) noexcept {
    const std::uint32_t bits = bit_cast<std::uint32_t>(x);
    const std::uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    // Below 2^-14 the result is subnormal: adding 0.5 leaves its bits, rounded, at the end of the sum.
    const std::uint32_t subnormal = bit_cast<std::uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
    const std::uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const std::uint32_t large = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const std::uint32_t result = magnitude >= 0x47800000u ? large : magnitude < 0x38800000u ? subnormal : normal;
    return {static_cast<std::uint16_t>(sign | result)};
}

template <class T>
struct type_is {
    using type = T;
};

RADAM_CALLS_BACK
template <class F>
RADAM_INLINE void visit_low(DType dtype, F f) noexcept {
    if (dtype == DType::fp32) f(type_is<float>{});
    if (dtype == DType::bf16) f(type_is<bf16>{});
    if (dtype == DType::fp16) f(type_is<fp16>{});
}

// Calls f(type_is<Storage>) for a floating-point dtype.
template <class F>
RADAM_HOST_INLINE void visit_float(DType dtype, F f) noexcept {
    if (dtype == DType::fp64) return f(type_is<double>{});
    visit_low(dtype, f);
}

namespace detail {
RADAM_CALLS_BACK
template <class Param, class F>
RADAM_INLINE void visit_low_grad(Param param, DType grad, F& f) noexcept {
    if (grad == DType::fp32) f(param, type_is<float>{});
    if (grad == DType::bf16) f(param, type_is<bf16>{});
    if (grad == DType::fp16) f(param, type_is<fp16>{});
}
}  // namespace detail

// Calls f(type_is<Param>, type_is<Grad>) for a pair that is_pair accepts.
RADAM_CALLS_BACK
template <class F>
RADAM_INLINE void visit_pair(DType param, DType grad, F f) noexcept {
    if (param == DType::fp64) f(type_is<double>{}, type_is<double>{});
    if (param == DType::fp32) detail::visit_low_grad(type_is<float>{}, grad, f);
    if (param == DType::bf16) detail::visit_low_grad(type_is<bf16>{}, grad, f);
    if (param == DType::fp16) detail::visit_low_grad(type_is<fp16>{}, grad, f);
}

}  // namespace radam
