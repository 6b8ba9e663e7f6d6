// Random bits from counters (Philox4x32-10): what is asked for decides them, not who asks, or in which order.
#pragma once

#include <cstdint>

#include "update.hpp"

namespace radam {

struct Words {
    std::uint32_t x[4];

    // By choices: an index would move the words from a GPU's registers to its memory.
    RADAM_INLINE std::uint32_t at(std::uint64_t i) const noexcept {
        return i < 2 ? (i == 0 ? x[0] : x[1]) : (i == 2 ? x[2] : x[3]);
    }
};

// Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3".
RADAM_INLINE Words philox(Words counter, std::uint32_t key0, std::uint32_t key1) noexcept {
    std::uint32_t a = counter.x[0], b = counter.x[1], c = counter.x[2], d = counter.x[3];
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t first = std::uint64_t{0xd2511f53u} * a, second = std::uint64_t{0xcd9e8d57u} * c;
        a = static_cast<std::uint32_t>(second >> 32) ^ b ^ key0;
        b = static_cast<std::uint32_t>(second);
        c = static_cast<std::uint32_t>(first >> 32) ^ d ^ key1;
        d = static_cast<std::uint32_t>(first);
        key0 += 0x9e3779b9u;
        key1 += 0xbb67ae85u;
    }
    return {{a, b, c, d}};
}

// What the bits are for: each use has its own.
enum class Use : std::uint32_t { weights, moments };

// The bits of one step of one parameter for one use, numbered.
class Draws {
public:
    Draws() = default;
    RADAM_INLINE Draws(std::uint64_t seed, std::uint32_t ordinal, std::int64_t t, Use use) noexcept {
        const auto step = static_cast<std::uint64_t>(t);
        key_ = philox({{low(step), high(step), ordinal, static_cast<std::uint32_t>(use)}}, low(seed), high(seed));
    }

    // Four words: those of a counter.
    RADAM_INLINE Words four(std::uint64_t counter) const noexcept {
        return philox({{low(counter), high(counter), key_.x[2], key_.x[3]}}, key_.x[0], key_.x[1]);
    }

    // Word i of a group of 64 is word i / 16 of its counter i % 16: so vectors of 16 counters give them in order.
    static constexpr int group = 64;
    RADAM_INLINE std::uint32_t one(std::uint64_t number) const noexcept {
        return four(number / group * 16 + number % 16).at(number / 16 % 4);
    }
    RADAM_INLINE void many(std::uint64_t which_group, std::uint32_t* words) const noexcept {
        for (std::uint32_t i = 0; i < 16; ++i) {
            const Words drawn = four(which_group * 16 + i);
            words[i] = drawn.x[0];
            words[i + 16] = drawn.x[1];
            words[i + 32] = drawn.x[2];
            words[i + 48] = drawn.x[3];
        }
    }

    // One word for a whole block of elements.
    RADAM_INLINE std::uint32_t of_block(std::uint64_t block) const noexcept { return four(block / 4).at(block % 4); }

private:
    RADAM_INLINE static std::uint32_t low(std::uint64_t x) noexcept { return static_cast<std::uint32_t>(x); }
    RADAM_INLINE static std::uint32_t high(std::uint64_t x) noexcept { return static_cast<std::uint32_t>(x >> 32); }

    Words key_{};
};

}  // namespace radam
