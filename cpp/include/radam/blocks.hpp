// Blocks of 128 elements on one instruction set: where their bytes lie, and the ways between what is stored and floats.
#pragma once

#include "codec.hpp"
#include "lanes.hpp"
#include "slot.hpp"

// A function that is not worth a copy in each of the forms of the law.
#if defined(__GNUC__)
#define RADAM_APART __attribute__((noinline))
#elif defined(_MSC_VER)
#define RADAM_APART __declspec(noinline)
#else
#define RADAM_APART
#endif

RADAM_LOOPS_BEGIN

namespace radam {

namespace detail {

constexpr int block = static_cast<int>(block_size);

// The stored bytes of one block, in the arrays themselves or, at the end of a slot, in copies of full length.
struct Stored {
    char *p, *g, *m, *v, *v_max, *master;
};

// What the law computes with: numbers of type T, in the arrays themselves where these hold such, else in buffers.
template <class T>
struct Computed {
    T *p, *g, *m, *v, *v_max;
};

template <class T>
struct alignas(64) Buffers {
    T p[block], g[block], m[block], v[block], v_max[block];
};

// Copies for the last block of a slot, padded with zeros.
struct alignas(64) Padded {
    char p[block * 8], g[block * 8], m[block * 8], v[block * 8], v_max[block * 8], master[block * 4];
};

struct Sizes {
    std::int64_t p, g, m, master;
    RADAM_HOST_INLINE explicit Sizes(const Slot& slot) noexcept
        : p(size_of(slot.param_dtype)),
          g(size_of(slot.grad_dtype)),
          m(size_of(moment_dtype(slot.param_dtype, slot.moments, false))),
          master(size_of(slot.weights)) {}
};

template <class F>
RADAM_HOST_INLINE void for_each_stream(const Sizes& size, Stored& a, Stored& b, F f) noexcept {
    f(a.p, b.p, size.p);
    f(a.g, b.g, size.g);
    f(a.m, b.m, size.m);
    f(a.v, b.v, size.m);
    if (a.v_max != nullptr) f(a.v_max, b.v_max, size.m);
    if (size.master > 0) f(a.master, b.master, size.master);
}

RADAM_HOST_INLINE Stored stored_at(const Slot& slot, const Sizes& size, std::int64_t i) noexcept {
    const auto at = [i](const void* array, std::int64_t itemsize) noexcept {
        return array == nullptr ? nullptr : static_cast<char*>(const_cast<void*>(array)) + i * itemsize;
    };
    return {at(slot.param, size.p),      at(slot.grad, size.g),           at(slot.exp_avg, size.m),
            at(slot.exp_avg_sq, size.m), at(slot.max_exp_avg_sq, size.m), at(slot.master, size.master)};
}

template <class Isa>
using Float = Vector<Isa, float>;

// How far ahead a block's streams are asked for: what measured best. See docs/design.md.
constexpr std::int64_t staged_ahead = 8 * block_size;

RADAM_HOST_INLINE void prefetch_lines(const char* from, std::int64_t itemsize) noexcept {
    for (int k = 0; k < block; k += 64) prefetch(from + k);
    if (itemsize < 2) return;
    for (int k = block; k < 2 * block; k += 64) prefetch(from + k);
    if (itemsize < 4) return;
    for (int k = 2 * block; k < 4 * block; k += 64) prefetch(from + k);
}

RADAM_HOST_INLINE void prefetch_block(const Stored& at, const Sizes& size) noexcept {
    prefetch_lines(at.p + staged_ahead * size.p, size.p);
    prefetch_lines(at.g + staged_ahead * size.g, size.g);
    prefetch_lines(at.m + staged_ahead * size.m, size.m);
    prefetch_lines(at.v + staged_ahead * size.m, size.m);
    if (at.v_max != nullptr) prefetch_lines(at.v_max + staged_ahead * size.m, size.m);
    if (size.master > 0) prefetch_lines(at.master + staged_ahead * size.master, size.master);
}

// Calls f(i) for the first lanes of each vector of a block.
template <class Isa, class F>
RADAM_HOST_INLINE void for_each_lanes(F f) noexcept {
    RADAM_INDEPENDENT
    for (std::int64_t i = 0; i < block; i += lanes<Isa, float>()) f(i);
}

template <class Isa, class Word>
RADAM_HOST_INLINE BitVector<Isa> load_bits(const char* from, std::int64_t i) noexcept {
    return BitVector<Isa>::of(Isa::widen_bits(reinterpret_cast<const Word*>(from) + i));
}
template <class Isa, class Word>
RADAM_HOST_INLINE void store_bits(char* to, std::int64_t i, const BitVector<Isa>& bits) noexcept {
    Isa::narrow_bits(reinterpret_cast<Word*>(to) + i, bits.x);
}
template <class Isa>
RADAM_HOST_INLINE BitVector<Isa> load_words(const std::uint32_t* from) noexcept {
    return BitVector<Isa>::of(Isa::load(from));
}

// The fractions of codes for every i of a block, a vector at a time. Made once for a tile.
template <class Isa>
class Fractions {
public:
    Fractions() noexcept {
        for (std::uint32_t i = 0; i < block; ++i) of_zero_[i] = spread(0, i) >> fraction_shift;
    }
    RADAM_HOST_INLINE BitVector<Isa> at(std::int64_t i, std::uint32_t word) const noexcept {
        return load_words<Isa>(of_zero_ + i) ^ BitVector<Isa>(word >> fraction_shift);
    }

private:
    alignas(64) std::uint32_t of_zero_[block];
};

// ---- random words

// A word of its own for each of the elements i to i + block.
template <class Isa>
RADAM_APART void random_words(const Draws& draws, const Positions& positions, std::int64_t i,
                              std::uint32_t* words) noexcept {
    if (positions.ndim == 0) {
        const std::uint64_t number = number_of_element(positions, i);
        constexpr std::uint64_t group = Draws::group;
        std::uint32_t whole[block + group];
        const std::uint64_t skipped = number % group;
        for (std::uint64_t at = 0; at < block + skipped; at += group)
            draws.many(number / group + at / group, whole + at);
        std::memcpy(words, whole + skipped, block * sizeof *words);
        return;
    }
    for (int k = 0; k < block; ++k) words[k] = draws.one(number_of_element(positions, i + k));
}

// Words spread from one for each block of the whole parameter.
template <class Isa>
RADAM_APART void spread_words(const Draws& draws, const Positions& positions, std::int64_t i,
                              std::uint32_t* words) noexcept {
    const std::uint64_t first = number_of_element(positions, i);
    if (positions.ndim == 0 && first % block_size == 0) {  // the common case
        const std::uint32_t word = draws.of_block(first / block_size);
        for (std::uint32_t k = 0; k < block; ++k) words[k] = spread(word, k);
        return;
    }
    for (int k = 0; k < block; ++k) {
        const std::uint64_t number = number_of_element(positions, i + k);
        words[k] = spread(draws.of_block(number / block_size), static_cast<std::uint32_t>(number % block_size));
    }
}

// ---- from what is stored to numbers

template <class Isa, class Storage>
RADAM_APART void widen_block(const char* from, float* to) noexcept {
    for_each_lanes<Isa>(
        [&](std::int64_t i) noexcept { store<Isa>(to + i, load<Isa>(reinterpret_cast<const Storage*>(from) + i)); });
}

template <class Isa>
RADAM_APART void join_block(Weights weights, const char* param, const char* master, float* to) noexcept {
    if (weights == Weights::split) {
        for_each_lanes<Isa>([&](std::int64_t i) noexcept {
            const auto remainder = load_bits<Isa, std::int16_t>(master, i);
            store<Isa>(to + i, join_bf16(load_bits<Isa, std::uint16_t>(param, i), remainder));
        });
    } else {
        for (int i = 0; i < block; ++i) {
            const std::uint16_t bits = isa::portable::get(reinterpret_cast<const std::uint16_t*>(param) + i);
            to[i] = join_fp16({bits}, isa::portable::get(reinterpret_cast<const float*>(master) + i));
        }
    }
}

// ---- and back

template <class Isa>
RADAM_APART void round_moments(const float* from, const std::uint32_t* words, bool squared, char* to) noexcept {
    if (squared)
        for_each_lanes<Isa>([&](std::int64_t i) noexcept {
            store_bits<Isa, std::uint16_t>(to, i, random_square_bf16(load<Isa>(from + i), load_words<Isa>(words + i)));
        });
    else
        for_each_lanes<Isa>([&](std::int64_t i) noexcept {
            store_bits<Isa, std::uint16_t>(to, i, random_bf16(load<Isa>(from + i), load_words<Isa>(words + i)));
        });
}

template <class Isa>
RADAM_APART void round_weights(DType dtype, const float* from, const std::uint32_t* words, char* to) noexcept {
    if (dtype == DType::bf16)
        for_each_lanes<Isa>([&](std::int64_t i) noexcept {
            store_bits<Isa, std::uint16_t>(to, i, random_bf16(load<Isa>(from + i), load_words<Isa>(words + i)));
        });
    else
        for_each_lanes<Isa>([&](std::int64_t i) noexcept {
            store_bits<Isa, std::uint16_t>(to, i, random_fp16(load<Isa>(from + i), load_words<Isa>(words + i)));
        });
}

template <class Isa>
RADAM_APART void part_block(Weights weights, const float* from, char* param, char* master) noexcept {
    if (weights == Weights::split)
        for_each_lanes<Isa>([&](std::int64_t i) noexcept {
            const Float<Isa> weight = quiet(load<Isa>(from + i));
            store_bits<Isa, std::uint16_t>(param, i, upper_half(weight));
            store_bits<Isa, std::uint16_t>(master, i, lower_half(weight));
        });
    else
        for_each_lanes<Isa>([&](std::int64_t i) noexcept {
            const Float<Isa> weight = load<Isa>(from + i);
            store<Isa>(reinterpret_cast<fp16*>(param) + i, weight);
            store<Isa>(reinterpret_cast<float*>(master) + i, weight);
        });
}

}  // namespace detail

}  // namespace radam

RADAM_LOOPS_END
