// The loop over a tile whose slot is stored in fewer bits, or whose gradients are cut: block by block, what is stored
// is decoded into the nearest cache, stepped there by the law, and encoded again.
#pragma once

#include <initializer_list>

#include "blocks.hpp"

RADAM_LOOPS_BEGIN

namespace radam {

namespace detail {

// ---- one block of a slot

// Everything about a slot's blocks that stays the same from one to the next.
template <class Isa, class T>
class Stage {
public:
    explicit Stage(const Slot& slot) noexcept
        : slot_(slot), size_(slot), cuts_(slot.grad_limit < std::numeric_limits<double>::infinity()) {
        if (slot.weights == Weights::stochastic) weights_ = Draws(slot.seed, slot.ordinal, slot.step->t, Use::weights);
        if (slot.moments != Moments::full) moments_ = Draws(slot.seed, slot.ordinal, slot.step->t, Use::moments);
    }

    // The numbers of elements i to i + n.
    RADAM_APART Computed<T> decode(std::int64_t i, std::int64_t n) noexcept {
        stored_ = stored_at(slot_, size_, i);
        n_ = n;
        if (i + staged_ahead < slot_.size) prefetch_block(stored_, size_);
        if (n < block) {
            padded_ = Padded{};
            there_ = stored_;
            stored_ = {
                padded_.p,     padded_.g, padded_.m, padded_.v, there_.v_max == nullptr ? nullptr : padded_.v_max,
                padded_.master};
            for_each_stream(size_, stored_, there_, [n](char* to, const char* from, std::int64_t itemsize) noexcept {
                std::memcpy(to, from, static_cast<std::size_t>(n * itemsize));
            });
        }
        Computed<T> c;
        if constexpr (std::is_same_v<T, double>) {
            c = direct();
        } else {
            c.p = params(stored_.p);
            c.g = numbers(slot_.grad_dtype, stored_.g, buffers_.g);
            c.m = moments(stored_.m, buffers_.m);
            c.v = moments(stored_.v, buffers_.v);
            c.v_max = stored_.v_max == nullptr ? buffers_.v_max : moments(stored_.v_max, buffers_.v_max);
        }
        if (cuts_) {
            T* const cut = buffers_.g;
            const T most = cut_at(slot_.grad_limit, grad_scale());
            RADAM_INDEPENDENT
            for (int k = 0; k < block; ++k) {
                const T g = isa::portable::get(c.g + k);
                cut[k] = g > most ? most : g < T(-1) * most ? T(-1) * most : g;
            }
            c.g = cut;
        }
        return c;
    }

    // What the law made of them.
    RADAM_APART void encode(std::int64_t i, const Computed<T>& c) noexcept {
        if constexpr (std::is_same_v<T, float>) {
            if (slot_.step->mode != Mode::moments_only) keep_params(i, c.p);
            if (slot_.moments == Moments::bf16) round_all_moments(i, c);
        }
    }

    // Puts what the last block made back where it belongs.
    RADAM_APART void finish() noexcept {
        if (n_ == block) return;
        char* const g = there_.g;
        for_each_stream(size_, there_, stored_, [&](char* to, const char* from, std::int64_t itemsize) noexcept {
            if (to != g) std::memcpy(to, from, static_cast<std::size_t>(n_ * itemsize));
        });
    }

    const Stored& stored() const noexcept { return stored_; }

    // What the moments of the block at element i are rounded by.
    std::uint32_t word_of(std::int64_t i) noexcept {
        const auto number = static_cast<std::uint64_t>(i / block);
        if (number / 4 != known_) words_ = moments_.four(known_ = number / 4);  // one drawing has those of four blocks
        return words_.x[number % 4];
    }

private:
    Computed<T> direct() const noexcept {
        const auto typed = [](char* bytes) noexcept { return reinterpret_cast<T*>(bytes); };
        return {typed(stored_.p), typed(stored_.g), typed(stored_.m), typed(stored_.v), typed(stored_.v_max)};
    }

    T grad_scale() const noexcept {
        if constexpr (std::is_same_v<T, double>)
            return abs(slot_.step->f64.grad_scale);
        else
            return abs(slot_.step->f32.grad_scale);
    }

    float* numbers(DType dtype, char* from, float* buffer) const noexcept {
        if (dtype == DType::fp32) return reinterpret_cast<float*>(from);
        if (dtype == DType::bf16)
            widen_block<Isa, bf16>(from, buffer);
        else
            widen_block<Isa, fp16>(from, buffer);
        return buffer;
    }

    float* params(char* from) noexcept {
        if (slot_.weights == Weights::plain || slot_.weights == Weights::stochastic)
            return numbers(slot_.param_dtype, from, buffers_.p);
        join_block<Isa>(slot_.weights, from, stored_.master, buffers_.p);
        return buffers_.p;
    }

    // Codes are decoded by the law's own loop.
    float* moments(char* from, float* buffer) const noexcept {
        if (slot_.moments == Moments::full) return reinterpret_cast<float*>(from);
        if (slot_.moments == Moments::bf16) widen_block<Isa, bf16>(from, buffer);
        return buffer;
    }

    void keep_params(std::int64_t i, const float* p) noexcept {
        if (slot_.weights == Weights::split || slot_.weights == Weights::master) {
            part_block<Isa>(slot_.weights, p, stored_.p, stored_.master);
        } else if (slot_.weights == Weights::stochastic && size_of(slot_.param_dtype) == 2) {
            std::uint32_t words[block];
            random_words<Isa>(weights_, slot_.positions, i, words);
            round_weights<Isa>(slot_.param_dtype, p, words, stored_.p);
        } else if (slot_.param_dtype == DType::bf16) {
            narrow_block<bf16>(p, stored_.p);
        } else if (slot_.param_dtype == DType::fp16) {
            narrow_block<fp16>(p, stored_.p);
        }
    }

    template <class Storage>
    static void narrow_block(const float* from, char* to) noexcept {
        for (std::int64_t k = 0; k < block; k += lanes<Isa, float>())
            store<Isa>(reinterpret_cast<Storage*>(to) + k, load<Isa>(from + k));
    }

    void round_all_moments(std::int64_t i, const Computed<T>& c) noexcept {
        std::uint32_t words[block];
        spread_words<Isa>(moments_, slot_.positions, i, words);
        round_moments<Isa>(c.m, words, false, stored_.m);
        round_moments<Isa>(c.v, words, true, stored_.v);
        if (stored_.v_max != nullptr) round_moments<Isa>(c.v_max, words, true, stored_.v_max);
    }

    const Slot& slot_;
    Sizes size_;
    bool cuts_;
    Draws weights_, moments_;
    Words words_{};
    std::uint64_t known_ = ~std::uint64_t{0};
    Stored stored_{}, there_{};
    std::int64_t n_ = 0;
    Buffers<T> buffers_;
    Padded padded_;
};

template <class Isa, class F, class T>
void sweep_staged_form(const Tile& tile) noexcept {
    using V = Vector<Isa, T>;
    Coefficients<V> c;
    if constexpr (std::is_same_v<T, double>)
        c = Coefficients<V>(tile.slot->step->f64);
    else
        c = Coefficients<V>(tile.slot->step->f32);
    Stage<Isa, T> stage(*tile.slot);
    for (std::int64_t i = tile.begin; i < tile.end; i += block) {
        const Computed<T> at = stage.decode(i, tile.end - i < block ? tile.end - i : block);
        for (std::int64_t k = 0; k < block; k += lanes<Isa, T>()) {
            V p = load<Isa>(at.p + k), m = load<Isa>(at.m + k), v = load<Isa>(at.v + k), v_max = v;
            if constexpr (F::amsgrad) v_max = load<Isa>(at.v_max + k);
            update(F{}, p, V(load<Isa>(at.g + k)), m, v, v_max, c);
            if constexpr (F::mode != Mode::moments_only) store<Isa>(at.p + k, p);
            store<Isa>(at.m + k, m);
            store<Isa>(at.v + k, v);
            if constexpr (F::amsgrad) store<Isa>(at.v_max + k, v_max);
        }
        stage.encode(i, at);
    }
    stage.finish();
}

// ---- coded moments

// One kind of moments of one block while the law goes over it: decoded from codes, then held as numbers.
template <class Isa, class Code>
class Decoded {
public:
    using V = Float<Isa>;

    RADAM_HOST_INLINE Decoded(const char* codes, const float* scale, float* held) noexcept
        : codes_(codes), held_(held), most_(0u) {
        const float unit = codes == nullptr ? 0.0f : Code::unit(isa::portable::get(scale));
        unit_ = V(unit);
        unit_lift_ = V(-Code::lift * unit);
    }
    RADAM_HOST_INLINE V load(std::int64_t k) const noexcept {
        const auto code = load_bits<Isa, std::uint8_t>(codes_, k);
        return is_signed ? decode_signed(code, unit_, unit_lift_) : decode_square(code, unit_, unit_lift_);
    }
    RADAM_HOST_INLINE void hold(std::int64_t k, const V& x) noexcept {
        store<Isa>(held_ + k, x);
        most_ = greater(most_, is_signed ? magnitude_bits(x) : bits_of(x));
    }
    RADAM_HOST_INLINE std::uint32_t most() const noexcept {
        std::uint32_t lane[lanes<Isa, float>()], most = 0;
        Isa::store(lane, most_.x);
        for (const std::uint32_t bits : lane) most = greater(most, bits);
        return most;
    }

private:
    static constexpr bool is_signed = std::is_same_v<Code, SignedCode>;
    const char* codes_;
    float* held_;
    V unit_, unit_lift_;
    BitVector<Isa> most_;
};

// The largest magnitudes of a block's moments, as bits.
struct Most {
    std::uint32_t m, v, v_max;
};

// The same without the elements that are lost, whose m is taken away.
template <class Isa>
RADAM_APART Most without_lost(Buffers<float>& held, bool amsgrad) noexcept {
    Most most{};
    for (int k = 0; k < block; ++k) {
        if (is_lost(held.m[k], amsgrad ? held.v_max[k] : held.v[k])) {
            held.m[k] = 0.0f;
            held.v[k] = held.v_max[k] = number_of(infinity_bits);
            continue;
        }
        most.m = greater(most.m, magnitude_bits(held.m[k]));
        most.v = greater(most.v, magnitude_bits(held.v[k]));
        if (amsgrad) most.v_max = greater(most.v_max, magnitude_bits(held.v_max[k]));
    }
    return most;
}

// One kind of moments of a block that the law is through with, on the way back to codes.
template <class Isa, class Code>
struct ToCode {
    char* codes = nullptr;
    const float* held = nullptr;
    float inverse = 0.0f;

    RADAM_HOST_INLINE void encode(std::int64_t k, const BitVector<Isa>& fraction) const noexcept {
        const Float<Isa> x = load<Isa>(held + k), by(inverse);
        store_bits<Isa, std::uint8_t>(
            codes, k,
            std::is_same_v<Code, SignedCode> ? encode_signed(x, by, fraction) : encode_square(x, by, fraction));
    }
};

template <class Isa, bool amsgrad>
struct AllToCode {
    ToCode<Isa, SignedCode> m;
    ToCode<Isa, SquareCode> v, v_max;
    std::uint32_t word = 0;

    RADAM_HOST_INLINE void encode(std::int64_t k, const Fractions<Isa>& random) const noexcept {
        const BitVector<Isa> fraction = random.at(k, word);
        m.encode(k, fraction);
        v.encode(k, fraction);
        if constexpr (amsgrad) v_max.encode(k, fraction);
    }
};

// A block is coded while the next one is stepped: the processor divides for the one and shifts for the other.
template <class Isa, class F>
void sweep_coded_form(const Tile& tile) noexcept {
    using V = Float<Isa>;
    const Slot& slot = *tile.slot;
    const Coefficients<V> c(slot.step->f32);
    const Fractions<Isa> random;
    Stage<Isa, float> stage(slot);
    Buffers<float> held[2];
    std::memset(&held[1], 0, sizeof held[1]);
    char nowhere[block];
    AllToCode<Isa, F::amsgrad> before;
    before.m.codes = before.v.codes = before.v_max.codes = nowhere;
    before.m.held = held[1].m;
    before.v.held = before.v_max.held = held[1].v;
    int turn = 0;
    for (std::int64_t i = tile.begin; i < tile.end; i += block, turn ^= 1) {
        const Computed<float> at = stage.decode(i, tile.end - i < block ? tile.end - i : block);
        const Stored& codes = stage.stored();
        const std::int64_t b = i / block;
        float* const scales[] = {slot.exp_avg_scale + b, slot.exp_avg_sq_scale + b,
                                 F::amsgrad ? slot.max_exp_avg_sq_scale + b : nullptr};
        Decoded<Isa, SignedCode> now_m(codes.m, scales[0], held[turn].m);
        Decoded<Isa, SquareCode> now_v(codes.v, scales[1], held[turn].v);
        Decoded<Isa, SquareCode> now_v_max(F::amsgrad ? codes.v_max : nullptr, scales[2], held[turn].v_max);
        for (std::int64_t k = 0; k < block; k += lanes<Isa, float>()) {
            V p = load<Isa>(at.p + k), m = now_m.load(k), v = now_v.load(k), v_max = v;
            if constexpr (F::amsgrad) v_max = now_v_max.load(k);
            update(WithoutFlush<F>{}, p, V(load<Isa>(at.g + k)), m, v, v_max, c);
            if constexpr (F::mode != Mode::moments_only) store<Isa>(at.p + k, p);
            now_m.hold(k, m);
            now_v.hold(k, v);
            if constexpr (F::amsgrad) now_v_max.hold(k, v_max);
            before.encode(k, random);
        }
        Most most{now_m.most(), now_v.most(), F::amsgrad ? now_v_max.most() : 0u};
        if (greater(most.m, greater(most.v, most.v_max)) >= infinity_bits)
            most = without_lost<Isa>(held[turn], F::amsgrad);
        const auto finish = [](auto code, auto& to, char* to_codes, const float* numbers, float* scale,
                               std::uint32_t most_bits) noexcept {
            isa::portable::put(scale, scale_of(most_bits));
            to = {to_codes, numbers, decltype(code)::inverse(scale_of(most_bits))};
        };
        finish(SignedCode{}, before.m, codes.m, held[turn].m, scales[0], most.m);
        finish(SquareCode{}, before.v, codes.v, held[turn].v, scales[1], most.v);
        if constexpr (F::amsgrad)
            finish(SquareCode{}, before.v_max, codes.v_max, held[turn].v_max, scales[2], most.v_max);
        before.word = stage.word_of(i);
        stage.encode(i, at);
    }
    for (std::int64_t k = 0; k < block; k += lanes<Isa, float>()) before.encode(k, random);
    stage.finish();
}

}  // namespace detail

// One step of the law over a tile that begins at a whole block.
template <class Isa>
void sweep_staged(const Tile& tile) noexcept {
    visit_form(*tile.slot->step, [&](auto form) noexcept {
        if (tile.slot->param_dtype == DType::fp64)
            detail::sweep_staged_form<Isa, decltype(form), double>(tile);
        else if (tile.slot->moments == Moments::coded)
            detail::sweep_coded_form<Isa, decltype(form)>(tile);
        else
            detail::sweep_staged_form<Isa, decltype(form), float>(tile);
    });
}

// The limit of such a step: the same streams read and written, nothing computed.
template <class Isa>
void limit_staged(const Tile& tile) noexcept {
    using Word = std::uint64_t;
    const Slot& slot = *tile.slot;
    const detail::Sizes size(slot);
    const auto change = [](char* bytes, std::int64_t count) noexcept {
        Word* const words = reinterpret_cast<Word*>(bytes);
        for (std::int64_t k = 0; k < count / 8; ++k) isa::portable::put(words + k, ~isa::portable::get(words + k));
    };
    for (std::int64_t i = tile.begin; i < tile.end; i += block_size) {
        const std::int64_t n = tile.end - i < block_size ? tile.end - i : block_size;
        const detail::Stored at = detail::stored_at(slot, size, i);
        if (i + detail::staged_ahead < tile.end) detail::prefetch_block(at, size);
        Word seen = 0;
        const Word* const g = reinterpret_cast<const Word*>(at.g);
        for (std::int64_t k = 0; k < n * size.g / 8; ++k) seen ^= isa::portable::get(g + k);
        change(at.p, n * size.p);
        change(at.m, n * size.m);
        change(at.v, n * size.m);
        if (size.master > 0) change(at.master, n * size.master);
        if (n * size.p >= 8) {  // so that the gradient counts
            Word* const p = reinterpret_cast<Word*>(at.p);
            isa::portable::put(p, isa::portable::get(p) ^ seen);
        }
        if (slot.moments != Moments::coded) continue;
        for (float* const scale : {slot.exp_avg_scale + i / block_size, slot.exp_avg_sq_scale + i / block_size}) {
            std::uint32_t* const bits = reinterpret_cast<std::uint32_t*>(scale);
            isa::portable::put(bits, isa::portable::get(bits) ^ 1u);
        }
    }
}

}  // namespace radam

RADAM_LOOPS_END
