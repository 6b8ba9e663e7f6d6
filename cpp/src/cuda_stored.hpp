// What the threads of a block read and write of a tile whose entry is stored in fewer bits: four elements each of every
// stream, with run-time switches alike for all of them, and the random words that these are rounded by.
#pragma once

#include <radam/codec.hpp>

#include "cuda_sweep.hpp"

namespace radam::cuda {

constexpr int warp_size = 32, most_warps = 8;  // of a thread block
constexpr int fours = 4;                       // elements of a thread
static_assert(block_size == warp_size * fours);

// ---- one tile

// What all threads of a block know of the tile that they do. Its streams begin where it does.
struct StagedPart {
    char *param, *exp_avg, *exp_avg_sq, *max_exp_avg_sq, *master;
    const char* grad;
    float *exp_avg_scale, *exp_avg_sq_scale, *max_exp_avg_sq_scale;
    std::int64_t first;        // its first element in the entry
    std::int64_t first_drawn;  // the number of its first block for the random words of moments
    std::int32_t size;
    DType param_dtype, grad_dtype;
    Moments moments;
    Weights weights;
    bool by_fours;      // whether all streams stand at 16 bytes
    bool spreads_here;  // whether those of its moments are spread from one
    bool draws_here;    // whether the random words of a block's weights are those of two whole groups
    double cut_wide;
    float cut;  // gradients beyond it, either way, are cut to it
    Positions positions;
    Draws of_weights, of_moments;
};

struct WarpScratch {
    std::uint32_t weights[block_size];  // random words of a block's elements
    std::uint32_t moments[warp_size];   // those of a warp's next blocks
    std::uint32_t spread[block_size];   // those of a block's moments, where they are not all of one block's
};

struct StagedScratch {
    Scratch plain;
    StagedPart part;
    WarpScratch warps[most_warps];
};

RADAM_KERNEL_INLINE void take_part(const Entry& entry, std::uint32_t tile, StagedScratch& scratch) noexcept {
    const TableView& table = scratch.plain.table;
    const Storing& storing = table.storings()[scratch.plain.entry];
    const std::int64_t first = tile * table.header->tile_size, left = entry.size - first;
    const auto at = [first](const void* array, int itemsize) noexcept {
        return array == nullptr ? nullptr : static_cast<char*>(const_cast<void*>(array)) + first * itemsize;
    };
    const int m = size_of(moment_dtype(entry.param_dtype, storing.moments, false));
    StagedPart& part = scratch.part;
    part.param = at(entry.param, size_of(entry.param_dtype));
    part.grad = at(entry.grad, size_of(entry.grad_dtype));
    part.exp_avg = at(entry.exp_avg, m);
    part.exp_avg_sq = at(entry.exp_avg_sq, m);
    part.max_exp_avg_sq = at(entry.max_exp_avg_sq, m);
    part.master = at(storing.master, size_of(storing.weights));
    const auto scales_at = [first](float* scales) noexcept {
        return scales == nullptr ? nullptr : scales + first / block_size;
    };
    part.exp_avg_scale = scales_at(storing.exp_avg_scale);
    part.exp_avg_sq_scale = scales_at(storing.exp_avg_sq_scale);
    part.max_exp_avg_sq_scale = scales_at(storing.max_exp_avg_sq_scale);
    part.first = first;
    part.size = static_cast<std::int32_t>(left < table.header->tile_size ? left : table.header->tile_size);
    part.param_dtype = entry.param_dtype;
    part.grad_dtype = entry.grad_dtype;
    part.moments = storing.moments;
    part.weights = storing.weights;
    part.by_fours = entry.head == 0;
    part.positions = table.positions(storing);
    // Blocks of codes count from the slot's first element, those of bf16 from the whole parameter's.
    part.spreads_here = storing.moments != Moments::bf16 || (storing.ndim == 0 && storing.first % block_size == 0);
    part.first_drawn = (storing.moments == Moments::bf16 ? storing.first + first : first) / block_size;
    part.draws_here =
        storing.weights == Weights::stochastic && storing.ndim == 0 && (storing.first + first) % Draws::group == 0;
}

// After take_step, of which nothing but what it left in the scratch is kept.
RADAM_KERNEL_INLINE void take_numbers(StagedScratch& scratch) noexcept {
    read_again();
    const Storing& storing = scratch.plain.table.storings()[scratch.plain.entry];
    const ScheduledStep& step = scratch.plain.step;
    const std::int64_t t = scratch.plain.from_device ? scratch.plain.t : step.t;
    StagedPart& part = scratch.part;
    part.cut = cut_at(storing.grad_limit, abs(step.f32.grad_scale));
    part.cut_wide = cut_at(storing.grad_limit, abs(step.f64.grad_scale));
    if (storing.weights == Weights::stochastic) part.of_weights = Draws(storing.seed, storing.ordinal, t, Use::weights);
    if (storing.moments != Moments::full) part.of_moments = Draws(storing.seed, storing.ordinal, t, Use::moments);
}

// ---- four elements of a stream

// Where a thread's elements are in a part, how many there are, and whether they are read and written at once.
struct Place {
    std::int32_t at, count;
    bool at_once;
};

RADAM_KERNEL_INLINE Place place_of(const StagedPart& part, std::int32_t block, int lane) noexcept {
    const std::int32_t at = block * static_cast<std::int32_t>(block_size) + lane * fours, left = part.size - at;
    return {at, left < 0 ? 0 : left < fours ? left : fours, part.by_fours && left >= fours};
}

template <class Storage>
struct alignas(sizeof(Storage) * fours) Four {
    Storage x[fours];
};

template <class Storage>
RADAM_KERNEL_INLINE Four<Storage> four_from(const char* stream, const Place& place) noexcept {
    const Storage* const from = on_device(reinterpret_cast<const Storage*>(stream) + place.at);
    if (place.at_once) return *reinterpret_cast<const Four<Storage>*>(from);
    Four<Storage> four{};  // zeros beyond the end
    RADAM_UNROLL
    for (int k = 0; k < fours; ++k)
        if (k < place.count) four.x[k] = from[k];
    return four;
}

template <class Storage>
RADAM_KERNEL_INLINE void put_four(const Four<Storage>& four, char* stream, const Place& place) noexcept {
    Storage* const to = on_device(reinterpret_cast<Storage*>(stream) + place.at);
    if (place.at_once) {
        *reinterpret_cast<Four<Storage>*>(to) = four;
        return;
    }
    RADAM_UNROLL
    for (int k = 0; k < fours; ++k)
        if (k < place.count) to[k] = four.x[k];
}

template <class Storage>
RADAM_KERNEL_INLINE void widen_four(const char* stream, const Place& place, float* to) noexcept {
    const auto four = four_from<Storage>(stream, place);
    RADAM_UNROLL
    for (int k = 0; k < fours; ++k) to[k] = widen(four.x[k]);
}

RADAM_KERNEL_INLINE void numbers_from(DType dtype, const char* stream, const Place& place, float* to) noexcept {
    if (dtype == DType::fp32)
        widen_four<float>(stream, place, to);
    else if (dtype == DType::bf16)
        widen_four<bf16>(stream, place, to);
    else
        widen_four<fp16>(stream, place, to);
}

// Storage has 8 or 16 bits, of which f(k) gives element k.
template <class Storage, class F>
RADAM_KERNEL_INLINE void put_bits(char* stream, const Place& place, F f) noexcept {
    Four<Storage> four;
    RADAM_UNROLL
    for (int k = 0; k < fours; ++k) four.x[k] = static_cast<Storage>(f(k));
    put_four(four, stream, place);
}

RADAM_KERNEL_INLINE void put_floats(const float* from, char* stream, const Place& place) noexcept {
    Four<float> four;
    RADAM_UNROLL
    for (int k = 0; k < fours; ++k) four.x[k] = from[k];
    put_four(four, stream, place);
}

// ---- weights

RADAM_KERNEL_INLINE void weights_from(const StagedPart& part, const Place& place, float* to) noexcept {
    if (part.weights == Weights::split) {
        const auto upper = four_from<std::uint16_t>(part.param, place);
        const auto lower = four_from<std::int16_t>(part.master, place);
        RADAM_UNROLL
        for (int k = 0; k < fours; ++k)
            to[k] = join_bf16(std::uint32_t{upper.x[k]}, static_cast<std::uint32_t>(lower.x[k]));
    } else if (part.weights == Weights::master) {
        const auto rounded = four_from<fp16>(part.param, place);
        const auto master = four_from<float>(part.master, place);
        RADAM_UNROLL
        for (int k = 0; k < fours; ++k) to[k] = join_fp16(rounded.x[k], master.x[k]);
    } else {
        numbers_from(part.param_dtype, part.param, place, to);
    }
}

// The random words of a block's moments in bf16, each from its block of the whole parameter.
template <class Warp>
RADAM_KERNEL_INLINE void spread_words(const StagedPart& part, const Warp& warp, std::int64_t first,
                                      std::uint32_t* words) noexcept {
    warp.each([&](int lane) noexcept {
        RADAM_NO_UNROLL
        for (int i = lane; i < block_size; i += warp_size) {
            const auto number = static_cast<std::int64_t>(number_of_element(part.positions, first + i));
            words[i] = spread(part.of_moments.of_block(static_cast<std::uint64_t>(number / block_size)),
                              static_cast<std::uint32_t>(number % block_size));
        }
    });
}

// The random words of a block's weights. Where these are two whole groups, they are the words of 32 counters.
template <class Warp>
RADAM_KERNEL_INLINE void draw_weights(const StagedPart& part, const Warp& warp, std::int64_t first,
                                      std::uint32_t* words) noexcept {
    constexpr std::int64_t group = Draws::group;
    warp.each([&](int lane) noexcept {
        if (part.draws_here) {
            const std::int64_t counter = (part.positions.first + first) / group * 16 + lane;
            const Words drawn = part.of_weights.four(static_cast<std::uint64_t>(counter));
            RADAM_UNROLL
            for (int k = 0; k < 4; ++k) words[lane / 16 * group + lane % 16 + 16 * k] = drawn.x[k];
            return;
        }
        RADAM_NO_UNROLL
        for (int i = lane; i < block_size; i += warp_size) {
            const std::uint64_t number = number_of_element(part.positions, first + i);
            words[i] = part.of_weights.one(number);
        }
    });
}

RADAM_KERNEL_INLINE void put_weights(const StagedPart& part, const WarpScratch& own, const Place& place,
                                     const float* p) noexcept {
    if (part.weights == Weights::split) {
        put_bits<std::uint16_t>(part.param, place, [p](int k) noexcept { return upper_half(quiet(p[k])); });
        put_bits<std::uint16_t>(part.master, place, [p](int k) noexcept { return lower_half(quiet(p[k])); });
    } else if (part.weights == Weights::stochastic) {
        const bool brain = part.param_dtype == DType::bf16;
        put_bits<std::uint16_t>(part.param, place, [&](int k) noexcept {
            const std::uint32_t word = own.weights[place.at % block_size + k];
            return brain ? random_bf16(p[k], word) : random_fp16(p[k], word);
        });
    } else {
        if (part.param_dtype == DType::fp32)
            put_floats(p, part.param, place);
        else if (part.param_dtype == DType::bf16)
            put_bits<std::uint16_t>(part.param, place, [p](int k) noexcept { return to_bf16(p[k]).bits; });
        else
            put_bits<std::uint16_t>(part.param, place, [p](int k) noexcept { return to_fp16(p[k]).bits; });
        if (part.weights == Weights::master) put_floats(p, part.master, place);
    }
}

// ---- moments

template <class Code>
RADAM_KERNEL_INLINE void decode_four(const Four<std::uint8_t>& codes, float scale, float* to) noexcept {
    const float unit = Code::unit(scale), unit_lift = -Code::lift * unit;
    RADAM_UNROLL
    for (int k = 0; k < fours; ++k) {
        const std::uint32_t code = codes.x[k];
        if constexpr (std::is_same_v<Code, SignedCode>)
            to[k] = decode_signed(code, unit, unit_lift);
        else
            to[k] = decode_square(code, unit, unit_lift);
    }
}

RADAM_KERNEL_INLINE void moments_from(const StagedPart& part, const char* stream, const float* scales, bool squared,
                                      const Place& place, float* to) noexcept {
    if (part.moments == Moments::full) return widen_four<float>(stream, place, to);
    if (part.moments == Moments::bf16) return widen_four<bf16>(stream, place, to);
    const auto codes = four_from<std::uint8_t>(stream, place);
    if (squared)
        decode_four<SquareCode>(codes, *on_device(scales + place.at / block_size), to);
    else
        decode_four<SignedCode>(codes, *on_device(scales + place.at / block_size), to);
}

// most: the largest magnitude of the block, as bits. One thread of the block writes the scale.
RADAM_KERNEL_INLINE void put_moments(const StagedPart& part, const WarpScratch& own, char* stream, float* scales,
                                     bool squared, std::uint32_t word, std::uint32_t most, const Place& place,
                                     const float* x) noexcept {
    if (part.moments == Moments::full) return put_floats(x, stream, place);
    const std::uint32_t i = static_cast<std::uint32_t>(place.at % block_size);
    if (part.moments == Moments::bf16)
        return put_bits<std::uint16_t>(stream, place, [&](int k) noexcept {
            const std::uint32_t number = i + static_cast<std::uint32_t>(k);
            const std::uint32_t random = part.spreads_here ? spread(word, number) : own.spread[number];
            return squared ? random_square_bf16(x[k], random) : random_bf16(x[k], random);
        });
    const float scale = scale_of(most), inverse = squared ? SquareCode::inverse(scale) : SignedCode::inverse(scale);
    if (i == 0) *on_device(scales + place.at / block_size) = scale;
    put_bits<std::uint8_t>(stream, place, [&](int k) noexcept {
        const std::uint32_t fraction = spread(word, i + static_cast<std::uint32_t>(k)) >> fraction_shift;
        return squared ? encode_square(x[k], inverse, fraction) : encode_signed(x[k], inverse, fraction);
    });
}

}  // namespace radam::cuda
