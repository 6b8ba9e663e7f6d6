// Fewer bits: every instruction set and thread count gives the same, and each way of storing does what it promises.
#include <radam/codec.hpp>
#include <radam/dispatch.hpp>
#include <radam/norm.hpp>
#include <radam/random.hpp>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "expect.hpp"

namespace {

using namespace radam;

// Random123's known answers for Philox4x32-10.
void philox_gives_the_published_words() {
    const auto same = [](const Words& a, const Words& b) { return std::memcmp(&a, &b, sizeof a) == 0; };
    constexpr std::uint32_t all = 0xffffffffu;
    EXPECT(same(philox({{0, 0, 0, 0}}, 0, 0), {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}));
    EXPECT(same(philox({{all, all, all, all}}, all, all), {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}));
    EXPECT(same(philox({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0),
                {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}));
    const Draws draws(7, 3, 11, Use::weights);
    std::uint32_t group[Draws::group];
    draws.many(5, group);
    for (std::uint64_t i = 0; i < Draws::group; ++i) EXPECT(group[i] == draws.one(5 * Draws::group + i));
}

void both_ends_of_a_code_come_back() {
    for (const float scale : {1.0f, 0.7f, 3e-20f, 1.9999999f, 2e37f}) {
        const float unit = SignedCode::unit(scale), inverse = SignedCode::inverse(scale);
        for (const std::uint32_t fraction : {0u, half_code, 0xfffffu}) {
            EXPECT((encode_signed(scale, inverse, fraction) & 0xffu) == SignedCode::last);
            EXPECT((encode_signed(-scale, inverse, fraction) & 0xffu) == (SignedCode::last | 0x80u));
            EXPECT((encode_signed(0.0f, inverse, fraction) & 0xffu) == 0);
            EXPECT((encode_square(scale, SquareCode::inverse(scale), fraction) & 0xffu) == SquareCode::last);
            EXPECT((encode_square(0.0f, SquareCode::inverse(scale), fraction) & 0xffu) == 0);
            EXPECT((encode_square(1e-38f, SquareCode::inverse(scale), fraction) & 0xffu) >= 1);
        }
        EXPECT(decode_signed(0u, unit, -2.0f * unit) == 0.0f);
        float last = 0.0f;
        for (std::uint32_t code = 0; code <= SignedCode::last; ++code) {
            const float x = decode_signed(code, unit, -2.0f * unit);
            EXPECT(code == 0 || x > last);
            EXPECT((encode_signed(x, inverse, half_code) & 0xffu) == code);
            EXPECT((encode_signed(-x, inverse, half_code) & 0xffu) == (code == 0 ? 0x80u : code | 0x80u));
            last = x;
        }
        const float square_unit = SquareCode::unit(scale);
        for (std::uint32_t code = 0; code <= SquareCode::last; ++code) {
            const float x = decode_square(code, square_unit, -2.0f * square_unit);
            EXPECT((encode_square(x, SquareCode::inverse(scale), half_code) & 0xffu) == code);
        }
    }
}

std::uint32_t with_sign(std::int16_t remainder) { return static_cast<std::uint32_t>(std::int32_t{remainder}); }

void a_bf16_parameter_and_its_remainder_hold_every_weight() {
    for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += 4099) {
        const float weight = bit_cast<float>(static_cast<std::uint32_t>(bits)), kept = quiet(weight);
        const std::uint32_t upper = upper_half(kept), lower = lower_half(kept);
        const float joined = join_bf16(upper, with_sign(static_cast<std::int16_t>(lower)));
        EXPECT(weight == weight ? bit_cast<std::uint32_t>(joined) == bits
                                : bit_cast<std::uint32_t>(joined) == 0x7fc00000u && lower == 0);
        if (!(std::fabs(weight) < 3e38f)) continue;
        const double below = to_float(bf16{static_cast<std::uint16_t>(bits >> 16)});
        const double above = to_float(bf16{static_cast<std::uint16_t>((bits >> 16) + 1)});
        const bool is_upper = std::fabs(weight - below) >= std::fabs(above - weight);  // ties go away from zero
        EXPECT(to_float(bf16{static_cast<std::uint16_t>(upper)}) == (is_upper ? above : below));
    }
    // What somebody else wrote over a parameter stands, whatever remainder was left.
    for (const std::uint32_t param : {0u, 0x8000u, 0x7f80u, 0xff80u})
        for (const std::uint32_t remainder : {0u, 1u, 0x7fffu, 0x8000u, 0xffffu}) {
            const float joined = join_bf16(param, with_sign(static_cast<std::int16_t>(remainder)));
            EXPECT(joined == joined);
            EXPECT(upper_half(joined) == param);
        }
}

// The mean over all fractions is the number itself.
void random_rounding_has_no_bias() {
    for (const float x : {1.0001f, -3.14159f, 1e-3f, 65000.3f, 6.1e-5f, 3.3e-6f, -2.5e-8f, 7e-10f}) {
        double bf16_sum = 0.0, fp16_sum = 0.0;
        constexpr std::uint32_t count = 1u << 16;
        for (std::uint32_t i = 0; i < count; ++i) {
            bf16_sum += static_cast<double>(to_float(bf16{static_cast<std::uint16_t>(random_bf16(x, i << 16))}));
            fp16_sum += static_cast<double>(to_float(fp16{static_cast<std::uint16_t>(random_fp16(x, i << 16))}));
        }
        const double ulp16 = std::max(std::ldexp(1.0, std::ilogb(x) - 10), std::ldexp(1.0, -24));
        EXPECT(std::fabs(bf16_sum / count - static_cast<double>(x)) <= 1e-12 * std::fabs(static_cast<double>(x)));
        EXPECT(std::fabs(fp16_sum / count - static_cast<double>(x)) <= ulp16 * 0x1p-13);
    }
    constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    for (const std::uint32_t word : {0u, 0xffffffffu}) {
        EXPECT(random_bf16(inf, word) == 0x7f80u && random_bf16(-inf, word) == 0xff80u);
        EXPECT(random_fp16(inf, word) == 0x7c00u && random_fp16(-1e9f, word) == 0xfc00u);
        EXPECT((random_bf16(nan, word) & 0x7fffu) > 0x7f80u && (random_fp16(nan, word) & 0x7fffu) > 0x7c00u);
        EXPECT(random_fp16(0.0f, word) == 0u && random_fp16(-0.0f, word) == 0x8000u &&
               random_bf16(-0.0f, word) == 0x8000u);
        EXPECT(random_bf16(1.5f, word) == 0x3fc0u && random_fp16(0x1p-24f, word) == 1u);
    }
}

// ---- whole steps

struct Kind {
    Moments moments;
    Weights weights;
    DType param, grad;
    double limit;
};

struct Buffer {
    std::vector<char> bytes;
    void resize(std::int64_t size) { bytes.assign(static_cast<std::size_t>(size) + 8, 0); }
    char* data() { return bytes.data() + 1; }  // nothing is aligned
};

constexpr std::int64_t sizes[] = {1, 127, 128, 129, 70001, 5000};

// Some tensors of one kind, whose gradients the step number decides.
struct Model {
    struct Tensor {
        Buffer p, g, m, v, v_max, master;
        std::vector<float> scales[3];
        Slot slot;
    };
    std::vector<Tensor> tensors;
    std::vector<Slot> slots;

    explicit Model(const Kind& kind) : tensors(std::size(sizes)) {
        for (std::size_t i = 0; i < tensors.size(); ++i) {
            Tensor& t = tensors[i];
            const std::int64_t n = sizes[i];
            t.p.resize(n * size_of(kind.param));
            t.g.resize(n * size_of(kind.grad));
            const int width = size_of(moment_dtype(kind.param, kind.moments, false));
            for (Buffer* buffer : {&t.m, &t.v, &t.v_max}) buffer->resize(n * width);
            t.master.resize(n * 4);
            for (auto& scales : t.scales) scales.assign(static_cast<std::size_t>(blocks_of(n)), 0.0f);
            for (std::int64_t k = 0; k < n; ++k)
                put(t.p.data(), kind.param, k, 0.001f * static_cast<float>(k % 977) - 0.4f);
            Slot& slot = t.slot;
            slot.param = t.p.data();
            slot.grad = t.g.data();
            slot.exp_avg = t.m.data();
            slot.exp_avg_sq = t.v.data();
            slot.max_exp_avg_sq = t.v_max.data();
            slot.size = n;
            slot.param_dtype = kind.param;
            slot.grad_dtype = kind.grad;
            slot.moments = kind.moments;
            slot.weights = kind.weights;
            slot.master = t.master.data();
            slot.exp_avg_scale = t.scales[0].data();
            slot.exp_avg_sq_scale = t.scales[1].data();
            slot.max_exp_avg_sq_scale = t.scales[2].data();
            slot.grad_limit = kind.limit;
            slot.seed = 99;
            slot.ordinal = static_cast<std::uint32_t>(i);
        }
    }

    static void put(char* to, DType dtype, std::int64_t k, float x) {
        if (dtype == DType::fp64) {
            const double wide = static_cast<double>(x);
            std::memcpy(to + 8 * k, &wide, 8);
        } else if (dtype == DType::fp32) {
            std::memcpy(to + 4 * k, &x, 4);
        } else {
            const std::uint16_t bits = dtype == DType::bf16 ? to_bf16(x).bits : to_fp16(x).bits;
            std::memcpy(to + 2 * k, &bits, 2);
        }
    }

    void train(const Hyperparameters& h, int steps) {
        for (int t = 1; t <= steps; ++t) {
            const ScheduledStep step = schedule(h, t);
            slots.clear();
            for (Tensor& tensor : tensors) {
                for (std::int64_t k = 0; k < tensor.slot.size; ++k) {
                    const float wave = static_cast<float>((k * 7919 + t * 131) % 4001) * 0.0005f - 1.0f;
                    put(tensor.g.data(), tensor.slot.grad_dtype, k, k % 5 == 0 ? 0.0f : wave * wave * wave);
                }
                tensor.slot.step = &step;
                slots.push_back(tensor.slot);
            }
            radam::step(slots.data(), slots.size());
        }
    }

    bool operator==(const Model& other) const {
        for (std::size_t i = 0; i < tensors.size(); ++i) {
            const Tensor &a = tensors[i], &b = other.tensors[i];
            for (const auto member : {&Tensor::p, &Tensor::m, &Tensor::v, &Tensor::v_max, &Tensor::master})
                if ((a.*member).bytes != (b.*member).bytes) return false;
            for (int k = 0; k < 3; ++k)
                if (a.scales[k] != b.scales[k]) return false;
        }
        return true;
    }
};

std::vector<Kind> kinds() {
    constexpr double none = std::numeric_limits<double>::infinity();
    std::vector<Kind> all;
    for (const Moments moments : {Moments::full, Moments::bf16, Moments::coded})
        for (const DType grad : {DType::fp32, DType::bf16, DType::fp16}) {
            all.push_back({moments, Weights::plain, DType::fp32, grad, grad == DType::fp16 ? 0.3 : none});
            all.push_back({moments, Weights::split, DType::bf16, grad, none});
            all.push_back({moments, Weights::stochastic, DType::bf16, grad, none});
            all.push_back({moments, Weights::stochastic, DType::fp16, grad, none});
            all.push_back({moments, Weights::master, DType::fp16, grad, none});
        }
    all.push_back({Moments::full, Weights::plain, DType::fp64, DType::fp64, 0.3});
    return all;
}

void every_machine_gives_the_same_bits() {
    Hyperparameters plain, other;
    other.amsgrad = other.maximize = true;
    other.weight_decay = 0.01;
    other.eps_on = EpsOn::sqrt_v_hat;
    other.warmup = Warmup::moments_only;
    for (const Kind& kind : kinds())
        for (const Hyperparameters& h : {plain, other}) {
            set_isa("portable");
            set_num_threads(1);
            Model expected(kind);
            expected.train(h, 7);
            for (const std::string& isa : isas()) {
                set_isa(isa);
                for (const int threads : {1, 3}) {
                    set_num_threads(threads);
                    Model model(kind);
                    model.train(h, 7);
                    EXPECT(model == expected);
                }
            }
        }
}

void split_weights_follow_the_fp32_trajectory() {
    constexpr double none = std::numeric_limits<double>::infinity();
    for (const Moments moments : {Moments::full, Moments::bf16, Moments::coded}) {
        Model whole({moments, Weights::plain, DType::fp32, DType::bf16, none});
        Model split({moments, Weights::split, DType::bf16, DType::bf16, none});
        Model master({moments, Weights::master, DType::fp16, DType::bf16, none});
        for (std::size_t i = 0; i < std::size(sizes); ++i)  // the same start: what bf16, or fp16, holds
            for (std::int64_t k = 0; k < sizes[i]; ++k) {
                const float start = static_cast<float>(k % 100) * 0.0625f;
                Model::put(whole.tensors[i].p.data(), DType::fp32, k, start);
                Model::put(split.tensors[i].p.data(), DType::bf16, k, start);
                Model::put(master.tensors[i].p.data(), DType::fp16, k, start);
            }
        for (Model* model : {&whole, &split, &master}) model->train({}, 12);
        for (std::size_t i = 0; i < std::size(sizes); ++i)
            for (std::int64_t k = 0; k < sizes[i]; ++k) {
                float weight, copy;
                std::uint16_t param, half;
                std::int16_t remainder;
                std::memcpy(&weight, whole.tensors[i].p.data() + 4 * k, 4);
                std::memcpy(&param, split.tensors[i].p.data() + 2 * k, 2);
                std::memcpy(&remainder, split.tensors[i].master.data() + 2 * k, 2);
                std::memcpy(&half, master.tensors[i].p.data() + 2 * k, 2);
                std::memcpy(&copy, master.tensors[i].master.data() + 4 * k, 4);
                const float joined = join_bf16(std::uint32_t{param}, with_sign(remainder));
                EXPECT(std::memcmp(&joined, &weight, 4) == 0);
                EXPECT(std::memcmp(&copy, &weight, 4) == 0 && half == to_fp16(weight).bits);
            }
    }
}

// Parts of a parameter draw what the whole one does.
void a_shard_rounds_as_the_whole_does() {
    constexpr double none = std::numeric_limits<double>::infinity();
    const Kind kind{Moments::full, Weights::stochastic, DType::bf16, DType::fp32, none};
    Model whole(kind), parts(kind);
    whole.train({}, 3);
    constexpr std::int64_t cut = 12347;
    std::vector<Slot> slots;
    for (int t = 1; t <= 3; ++t) {
        const ScheduledStep step = schedule({}, t);
        slots.clear();
        for (Model::Tensor& tensor : parts.tensors) {
            for (std::int64_t k = 0; k < tensor.slot.size; ++k) {
                const float wave = static_cast<float>((k * 7919 + t * 131) % 4001) * 0.0005f - 1.0f;
                Model::put(tensor.g.data(), DType::fp32, k, k % 5 == 0 ? 0.0f : wave * wave * wave);
            }
            Slot first = tensor.slot, second = tensor.slot;
            first.step = second.step = &step;
            if (tensor.slot.size > cut) {
                first.size = cut;
                second.param = tensor.p.data() + 2 * cut;
                second.grad = tensor.g.data() + 4 * cut;
                second.exp_avg = tensor.m.data() + 4 * cut;
                second.exp_avg_sq = tensor.v.data() + 4 * cut;
                second.size = tensor.slot.size - cut;
                second.positions.first = cut;
                slots.push_back(second);
            }
            slots.push_back(first);
        }
        radam::step(slots.data(), slots.size());
    }
    EXPECT(parts == whole);
}

}  // namespace

int main() {
    philox_gives_the_published_words();
    both_ends_of_a_code_come_back();
    a_bf16_parameter_and_its_remainder_hold_every_weight();
    random_rounding_has_no_bias();
    every_machine_gives_the_same_bits();
    split_weights_follow_the_fp32_trajectory();
    a_shard_rounds_as_the_whole_does();
    return failures == 0 ? 0 : 1;
}
