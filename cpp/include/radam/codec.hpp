// How moments and weights are stored in fewer bits: 8-bit codes in blocks with a scale, 16-bit numbers rounded at
// random, fp32 weights in two parts. Written once for floats and for vectors of them; staged.hpp and the CUDA kernels
// run it.
#pragma once

#include <utility>

#include "dtype.hpp"
#include "random.hpp"

namespace radam {

// ---- bits: of a float a 32-bit integer, of a vector a vector of such (lanes.hpp)

RADAM_INLINE std::uint32_t bits_of(float x) noexcept { return bit_cast<std::uint32_t>(x); }
RADAM_INLINE float number_of(std::uint32_t bits) noexcept { return bit_cast<float>(bits); }
RADAM_INLINE std::uint32_t lesser(std::uint32_t a, std::uint32_t b) noexcept { return a < b ? a : b; }
RADAM_INLINE std::uint32_t greater(std::uint32_t a, std::uint32_t b) noexcept { return a > b ? a : b; }

template <class V>
using BitsOf = decltype(bits_of(std::declval<V>()));

template <class V>
RADAM_INLINE auto is_number(const V& x) noexcept {  // no NaN
    return x == x;
}

// ---- moments in 8 bits

// Elements that share a scale. The last block of a tensor may be shorter; none belongs to two tensors.
constexpr std::int64_t block_size = 128;
RADAM_INLINE constexpr std::int64_t blocks_of(std::int64_t size) noexcept {
    return (size + block_size - 1) / block_size;
}

// Steps are even near zero and an eighth of an octave far from it: a magnitude over its scale, stretched and lifted by
// 2, is a float from 2 to 2^(octaves + 1), whose exponent's last 5 bits and point's first 3 are the code. (That of 2
// ends with zeros.) Zero is code 0, the scale itself the last code.
template <int octaves>
struct OctaveCode {
    static constexpr int shift = 20;
    static constexpr float lift = 2.0f, range = static_cast<float>((std::uint64_t{1} << (octaves + 1)) - 2);
    static constexpr std::uint32_t lift_bits = 0x40000000u;
    static constexpr std::uint32_t last = octaves * 8;

    // Of a scale. The first a little more than exact, so that the scale is always coded as the last code.
    RADAM_INLINE static float inverse(float scale) noexcept {
        return scale > 0.0f ? range / scale * 0x1.000002p0f : 0.0f;
    }
    RADAM_INLINE static float unit(float scale) noexcept { return scale / range; }

    // The lower 8 bits are the code. fraction: half_code to nearest, a random one below 2^shift at random, without
    // bias.
    template <class V, class U>
    RADAM_INLINE static U encode(const V& magnitude, const V& inverse, const U& fraction) noexcept {
        const U bits = bits_of(fma(magnitude, inverse, V(lift)));
        return lesser((bits + fraction) >> shift, U((lift_bits >> shift) + last));  // the last one for inf and NaN
    }
    // unit_lift: -lift * unit.
    template <class V, class U>
    RADAM_INLINE static V decode(const U& code, const V& unit, const V& unit_lift) noexcept {
        return fma(number_of((code << shift) | U(lift_bits)), unit, unit_lift);
    }
};

// m: a sign and 7 bits. v: 8 bits; the root of v spans half as many octaves.
using SignedCode = OctaveCode<15>;
using SquareCode = OctaveCode<31>;
constexpr std::uint32_t half_code = 1u << 19;

template <class V, class U>
RADAM_INLINE U encode_signed(const V& x, const V& inverse, const U& fraction) noexcept {
    return SignedCode::encode(abs(x), inverse, fraction) | ((bits_of(x) >> 24) & U(0x80u));
}
template <class V, class U>
RADAM_INLINE V decode_signed(const U& code, const V& unit, const V& unit_lift) noexcept {
    const U magnitude = ((code << SignedCode::shift) & U(0x7fu << SignedCode::shift)) | U(SignedCode::lift_bits);
    return number_of(bits_of(fma(number_of(magnitude), unit, unit_lift)) | ((code << 24) & U(0x80000000u)));
}

// A v above zero never becomes zero: m would be divided by eps alone.
template <class V, class U>
RADAM_INLINE U encode_square(const V& x, const V& inverse, const U& fraction) noexcept {
    const U code = SquareCode::encode(x, inverse, fraction);
    const U least = greater(code, U((SquareCode::lift_bits >> SquareCode::shift) + 1u));
    return bits_of(select(V(0.0f) < x, number_of(least), number_of(code)));
}
template <class V, class U>
RADAM_INLINE V decode_square(const U& code, const V& unit, const V& unit_lift) noexcept {
    return SquareCode::decode(code, unit, unit_lift);
}

// A scale is the largest magnitude of a block, but not so small that codes would decode to subnormal numbers, nor so
// large that the last one could round to infinity.
constexpr std::uint32_t least_scale_bits = (127u - 90u) << 23, most_scale_bits = 0x7f7ffff0u,
                        infinity_bits = 0x7f800000u;
RADAM_INLINE float scale_of(std::uint32_t most_bits) noexcept {
    return number_of(most_bits == 0u ? 0u : lesser(greater(most_bits, least_scale_bits), most_scale_bits));
}
template <class V>
RADAM_INLINE BitsOf<V> magnitude_bits(const V& x) noexcept {
    return bits_of(abs(x));
}

// An element whose moments are not finite is lost: it counts in no scale, so that its block goes on, and is stored as
// m = 0 and the largest v, so that it does not move far when finite gradients come again.
RADAM_INLINE bool is_lost(float m, float v) noexcept {
    return greater(magnitude_bits(m), magnitude_bits(v)) >= infinity_bits;
}

// Random words for the elements of a block from one random word: each is uniform, and they are spread evenly. The upper
// 20 bits of one are the fraction of a code.
RADAM_INLINE std::uint32_t spread(std::uint32_t word, std::uint32_t i) noexcept { return word ^ (i * 0x9e3779b9u); }
constexpr int fraction_shift = 12;

// ---- numbers of 16 bits, rounded at random; words: 32 random bits, of which the upper ones decide

template <class V, class U>
RADAM_INLINE U random_bf16(const V& x, const U& words) noexcept {
    const U bits = bits_of(x);
    return bits_of(select(is_number(x), number_of(bits + (words >> 16)), number_of(bits | U(0x400000u)))) >> 16;
}

// The same for v, which must not vanish.
template <class V, class U>
RADAM_INLINE U random_square_bf16(const V& x, const U& words) noexcept {
    return greater(random_bf16(x, words), lesser(bits_of(x), U(1u)));
}

template <class V, class U>
RADAM_INLINE U random_fp16(const V& x, const U& words) noexcept {
    const V magnitude = abs(x);
    const U random = words >> 19;
    // Below 2^-14 numbers are multiples of 2^-24: added to 1024, so many of them and 13 more bits end a float.
    const U subnormal = (bits_of(fma(magnitude, V(0x1p24f), V(1024.0f))) - U(0x44800000u) + random) >> 13;
    const U normal = lesser((bits_of(magnitude) - U(0x38000000u) + random) >> 13, U(0x7c00u));
    const V result = select(magnitude < V(0x1p-14f), number_of(subnormal), number_of(normal));
    return bits_of(select(is_number(x), result, V(bit_cast<float>(0x7e00u)))) | ((bits_of(x) >> 16) & U(0x8000u));
}

// ---- fp32 weights behind 16-bit parameters

// A bf16 parameter is its weight rounded to nearest, ties away from zero: so the rest of the bits is an int16.
// remainder: with its sign in the upper bits.
template <class U>
RADAM_INLINE auto join_bf16(const U& param, const U& remainder) noexcept {
    const U upper = param << 16;
    const auto weight = number_of(upper + remainder);
    // No number has such parts: somebody else wrote the parameter, a zero or an infinity, and is right.
    return select(is_number(weight), weight, number_of(upper));
}

template <class V>
RADAM_INLINE V quiet(const V& weight) noexcept {
    return select(is_number(weight), weight, V(bit_cast<float>(0x7fc00000u)));
}
template <class V>
RADAM_INLINE BitsOf<V> upper_half(const V& quiet_weight) noexcept {
    return (bits_of(quiet_weight) + BitsOf<V>(0x8000u)) >> 16;
}
template <class V>
RADAM_INLINE BitsOf<V> lower_half(const V& quiet_weight) noexcept {
    return bits_of(quiet_weight) & BitsOf<V>(0xffffu);
}

// An fp16 parameter that is not its master rounded has been written by somebody else, who is right.
RADAM_INLINE float join_fp16(fp16 param, float master) noexcept {
    return to_fp16(master).bits == param.bits ? master : to_float(param);
}

// ---- whole arrays on the host, rounded to nearest: for states that are saved or loaded

// values: fp32; codes: of m (int8) or, if squared, of v (uint8); scales: blocks_of(size) of them.
inline void encode_blocks(const float* values, std::int64_t size, bool squared, std::uint8_t* codes,
                          float* scales) noexcept {
    for (std::int64_t first = 0; first < size; first += block_size) {
        const std::int64_t last = size - first < block_size ? size : first + block_size;
        std::uint32_t most = 0;
        for (std::int64_t i = first; i < last; ++i)
            if (!is_lost(values[i], 0.0f)) most = greater(most, magnitude_bits(values[i]));
        const float scale = scale_of(most);
        scales[first / block_size] = scale;
        const float inverse = squared ? SquareCode::inverse(scale) : SignedCode::inverse(scale);
        for (std::int64_t i = first; i < last; ++i)
            codes[i] =
                static_cast<std::uint8_t>(squared                    ? encode_square(values[i], inverse, half_code)
                                          : is_lost(values[i], 0.0f) ? 0u
                                                                     : encode_signed(values[i], inverse, half_code));
    }
}

// The way back; encoded again, the values give the same codes and scales.
inline void decode_blocks(const std::uint8_t* codes, const float* scales, std::int64_t size, bool squared,
                          float* values) noexcept {
    for (std::int64_t i = 0; i < size; ++i) {
        const float scale = scales[i / block_size];
        const float unit = squared ? SquareCode::unit(scale) : SignedCode::unit(scale);
        const std::uint32_t code = codes[i];
        values[i] = squared ? decode_square(code, unit, -2.0f * unit) : decode_signed(code, unit, -2.0f * unit);
        if ((squared ? code : code & 0x7fu) == (squared ? SquareCode::last : SignedCode::last))  // the scale, exactly
            values[i] = squared || (code & 0x80u) == 0 ? scale : -scale;
    }
}

}  // namespace radam
