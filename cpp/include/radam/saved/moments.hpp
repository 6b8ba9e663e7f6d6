// Moments as saved files hold them, and the ways between the kinds: 64, 32 and 16 bits, and blocks of 8-bit codes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../codec.hpp"
#include "../layout.hpp"

namespace radam::detail {

// How safetensors calls a dtype.
constexpr const char* stored_name(DType dtype) noexcept {
    switch (dtype) {
        case DType::fp64: return "F64";
        case DType::fp32: return "F32";
        case DType::bf16: return "BF16";
        case DType::fp16: return "F16";
        case DType::int8: return "I8";
        case DType::uint8: return "U8";
        case DType::int16: return "I16";
    }
    return "";
}

// ---- bytes, and the numbers that they are

template <class T>
std::vector<T> numbers_of(const std::vector<char>& bytes) {
    std::vector<T> numbers(bytes.size() / sizeof(T));
    if (!bytes.empty()) std::memcpy(numbers.data(), bytes.data(), bytes.size());
    return numbers;
}
template <class T>
std::vector<char> bytes_of(const std::vector<T>& numbers) {
    std::vector<char> bytes(numbers.size() * sizeof(T));
    if (!bytes.empty()) std::memcpy(bytes.data(), numbers.data(), bytes.size());
    return bytes;
}

inline std::vector<float> floats_of(const std::vector<char>& bytes, DType dtype) {  // fp32 or bf16
    if (dtype != DType::bf16) return numbers_of<float>(bytes);
    std::vector<float> numbers;
    numbers.reserve(bytes.size() / sizeof(bf16));
    for (const bf16 x : numbers_of<bf16>(bytes)) numbers.push_back(to_float(x));
    return numbers;
}

// Whether some number, of fp64, fp32 or bf16, is below zero.
inline bool has_negative(const std::vector<char>& bytes, DType dtype) {
    const auto is_negative = [](auto x) { return x < 0; };
    if (dtype == DType::fp64) {
        const std::vector<double> numbers = numbers_of<double>(bytes);
        return std::any_of(numbers.begin(), numbers.end(), is_negative);
    }
    const std::vector<float> numbers = floats_of(bytes, dtype);
    return std::any_of(numbers.begin(), numbers.end(), is_negative);
}

// ---- blocks

using Shape = std::vector<std::int64_t>;

// Whether elements lie as in C order where memory has the axes in this order, the outermost first.
inline bool is_c_order(const Shape& shape, const std::vector<int>& order) noexcept {
    int last = -1;
    for (const int axis : order) {
        if (shape[static_cast<std::size_t>(axis)] == 1) continue;
        if (axis < last) return std::find(shape.begin(), shape.end(), 0) != shape.end();
        last = axis;
    }
    return true;
}

// The numbers that codes stand for. These and the numbers are in C order; the blocks are cut in the order of axes.
inline std::vector<float> decoded(const std::vector<char>& codes, const std::vector<char>& scales, const Shape& shape,
                                  const std::vector<int>& order, bool squared) {
    const Layout of_codes{static_cast<int>(shape.size()), shape.data(), nullptr, 1};
    const Layout of_values{of_codes.ndim, shape.data(), nullptr, sizeof(float)};
    std::vector<std::uint8_t> in_blocks(codes.size());
    std::vector<float> from(codes.size()), values(codes.size());
    gather(of_codes, codes.data(), order, in_blocks.data());
    decode_blocks(in_blocks.data(), numbers_of<float>(scales).data(), static_cast<std::int64_t>(codes.size()), squared,
                  from.data());
    scatter(of_values, values.data(), order, from.data());
    return values;
}

// ---- what an optimizer keeps

struct Kept {
    std::vector<char> values, scales;  // scales of codes only
};

// Numbers rounded to nearest, to fp32, bf16 or codes.
inline Kept kept(const std::vector<float>& values, DType dtype) {
    if (dtype == DType::fp32) return {bytes_of(values), {}};
    if (dtype == DType::bf16) {
        std::vector<bf16> rounded;
        rounded.reserve(values.size());
        for (const float x : values) rounded.push_back(to_bf16(x));
        return {bytes_of(rounded), {}};
    }
    const auto size = static_cast<std::int64_t>(values.size());
    std::vector<std::uint8_t> codes(values.size());
    std::vector<float> scales(static_cast<std::size_t>(blocks_of(size)));
    encode_blocks(values.data(), size, dtype == DType::uint8, codes.data(), scales.data());
    return {bytes_of(codes), bytes_of(scales)};
}

}  // namespace radam::detail
