// What the LibTorch optimizer is told of a group, and what it keeps of a parameter; both go through torch archives.
#pragma once

#include <torch/optim/optimizer.h>
#include <torch/optim/serialize.h>
#include <torch/serialize/archive.h>

#include <cstdint>
#include <tuple>

#include "../conventions.hpp"

namespace radam::torch {

// As TORCH_ARG, and knows whether somebody has set it.
#define RADAM_TORCH_ARG(T, name, initial)                                                            \
public:                                                                                              \
    RAdamOptions& name(const T& value) {                                                             \
        name##_ = value;                                                                             \
        name##_is_set_ = true;                                                                       \
        return *this;                                                                                \
    }                                                                                                \
    const T& name() const noexcept { return name##_; }                                               \
    T& name() noexcept { return name##_; }                                                           \
                                                                                                     \
private:                                                                                             \
    bool name##_has_been_set() const { return name##_is_set_ || name##_ != RAdamOptions().name##_; } \
    T name##_ = initial;                                                                             \
    bool name##_is_set_ = false

// The hyperparameters of a group, with the names and defaults of torch.optim.RAdam; and amsgrad.
class RAdamOptions : public ::torch::optim::OptimizerCloneableOptions<RAdamOptions> {
public:
    using betas_t = std::tuple<double, double>;
    RAdamOptions() = default;
    RAdamOptions(double lr) { this->lr(lr); }  // NOLINT: LibTorch's own convert too

    RADAM_TORCH_ARG(double, lr, 1e-3);
    RADAM_TORCH_ARG(betas_t, betas, std::make_tuple(0.9, 0.999));
    RADAM_TORCH_ARG(double, eps, 1e-8);
    RADAM_TORCH_ARG(double, weight_decay, 0.0);
    RADAM_TORCH_ARG(bool, decoupled_weight_decay, false);
    RADAM_TORCH_ARG(bool, maximize, false);
    RADAM_TORCH_ARG(bool, amsgrad, false);

public:
    double get_lr() const override { return lr(); }
    void set_lr(const double value) override { lr(value); }

    // These for a group, where nothing else has been set for it.
    RAdamOptions with_defaults(const RAdamOptions& defaults) const {
        RAdamOptions merged = *this;
        const auto inherit = [](auto& value, bool& is_set, bool has_been_set, const auto& inherited) {
            if (!has_been_set) value = inherited;
            is_set = true;
        };
        inherit(merged.lr_, merged.lr_is_set_, lr_has_been_set(), defaults.lr_);
        inherit(merged.betas_, merged.betas_is_set_, betas_has_been_set(), defaults.betas_);
        inherit(merged.eps_, merged.eps_is_set_, eps_has_been_set(), defaults.eps_);
        inherit(merged.weight_decay_, merged.weight_decay_is_set_, weight_decay_has_been_set(), defaults.weight_decay_);
        inherit(merged.decoupled_weight_decay_, merged.decoupled_weight_decay_is_set_,
                decoupled_weight_decay_has_been_set(), defaults.decoupled_weight_decay_);
        inherit(merged.maximize_, merged.maximize_is_set_, maximize_has_been_set(), defaults.maximize_);
        inherit(merged.amsgrad_, merged.amsgrad_is_set_, amsgrad_has_been_set(), defaults.amsgrad_);
        return merged;
    }

    friend bool operator==(const RAdamOptions& a, const RAdamOptions& b) {
        return a.lr_ == b.lr_ && a.betas_ == b.betas_ && a.eps_ == b.eps_ && a.weight_decay_ == b.weight_decay_ &&
               a.decoupled_weight_decay_ == b.decoupled_weight_decay_ && a.maximize_ == b.maximize_ &&
               a.amsgrad_ == b.amsgrad_;
    }
    friend bool operator!=(const RAdamOptions& a, const RAdamOptions& b) { return !(a == b); }

    void serialize(::torch::serialize::OutputArchive& archive) const override {
        archive.write("lr", lr());
        archive.write("betas", betas());
        archive.write("eps", eps());
        archive.write("weight_decay", weight_decay());
        archive.write("decoupled_weight_decay", decoupled_weight_decay());
        archive.write("maximize", maximize());
        archive.write("amsgrad", amsgrad());
    }
    void serialize(::torch::serialize::InputArchive& archive) override {
        const auto read = [&](const char* key) {
            c10::IValue value;
            archive.read(key, value);
            return value;
        };
        lr(read("lr").toDouble());
        betas(read("betas").to<betas_t>());
        eps(read("eps").toDouble());
        weight_decay(read("weight_decay").toDouble());
        decoupled_weight_decay(read("decoupled_weight_decay").toBool());
        maximize(read("maximize").toBool());
        amsgrad(read("amsgrad").toBool());
    }
};

#undef RADAM_TORCH_ARG

// What radam's core is told of a group. A decay of 0 leaves its kind to the convention.
inline Options options_of(const RAdamOptions& options) {
    Options o;
    o.lr = options.lr();
    std::tie(o.beta1, o.beta2) = options.betas();
    o.eps = options.eps();
    o.weight_decay = options.weight_decay();
    if (options.decoupled_weight_decay() || options.weight_decay() != 0.0)
        o.decoupled_weight_decay = options.decoupled_weight_decay();
    o.maximize = options.maximize();
    o.amsgrad = options.amsgrad();
    return o;
}

// What is kept of one parameter. Moments are float32 (float64 and complex for such parameters), bfloat16, or codes
// (int8 for exp_avg, uint8) with float32 scales for each 128 elements. master: int16, the lower half of each weight,
// behind a bfloat16 parameter, float32 weights behind a float16 one. Tensors that it has no use for are undefined.
struct RAdamParamState : ::torch::optim::OptimizerCloneableParamState<RAdamParamState> {
    TORCH_ARG(std::int64_t, step) = 0;
    TORCH_ARG(::torch::Tensor, exp_avg);
    TORCH_ARG(::torch::Tensor, exp_avg_sq);
    TORCH_ARG(::torch::Tensor, max_exp_avg_sq);
    TORCH_ARG(::torch::Tensor, exp_avg_scale);
    TORCH_ARG(::torch::Tensor, exp_avg_sq_scale);
    TORCH_ARG(::torch::Tensor, max_exp_avg_sq_scale);
    TORCH_ARG(::torch::Tensor, master);

public:
    // Calls f(key, tensor) for each of them.
    template <class State, class F>
    static void for_each(State& state, F f) {
        f("exp_avg", state.exp_avg_);
        f("exp_avg_sq", state.exp_avg_sq_);
        f("max_exp_avg_sq", state.max_exp_avg_sq_);
        f("exp_avg_scale", state.exp_avg_scale_);
        f("exp_avg_sq_scale", state.exp_avg_sq_scale_);
        f("max_exp_avg_sq_scale", state.max_exp_avg_sq_scale_);
        f("master", state.master_);
    }

    void serialize(::torch::serialize::OutputArchive& archive) const override {
        archive.write("step", step());
        for_each(*this, [&](const char* key, const ::torch::Tensor& tensor) {
            if (tensor.defined()) archive.write(key, tensor, /*is_buffer=*/true);
        });
    }
    void serialize(::torch::serialize::InputArchive& archive) override {
        c10::IValue count;
        archive.read("step", count);
        step(count.toInt());
        for_each(*this, [&](const char* key, ::torch::Tensor& tensor) {
            ::torch::Tensor read;
            tensor = archive.try_read(key, read, /*is_buffer=*/true) ? read : ::torch::Tensor();
        });
    }

    friend bool operator==(const RAdamParamState& a, const RAdamParamState& b) {
        const auto same = [](const ::torch::Tensor& x, const ::torch::Tensor& y) {
            return x.defined() == y.defined() && (!x.defined() || ::torch::equal(x, y));
        };
        return a.step_ == b.step_ && same(a.exp_avg_, b.exp_avg_) && same(a.exp_avg_sq_, b.exp_avg_sq_) &&
               same(a.max_exp_avg_sq_, b.max_exp_avg_sq_) && same(a.exp_avg_scale_, b.exp_avg_scale_) &&
               same(a.exp_avg_sq_scale_, b.exp_avg_sq_scale_) &&
               same(a.max_exp_avg_sq_scale_, b.max_exp_avg_sq_scale_) && same(a.master_, b.master_);
    }
};

}  // namespace radam::torch
