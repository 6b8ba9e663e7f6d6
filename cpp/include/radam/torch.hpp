// RAdam for LibTorch, the C++ front end of PyTorch: radam::torch::RAdam is a torch::optim::Optimizer.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>

#include <atomic>
#include <cmath>
#include <exception>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "dispatch.hpp"
#include "sweep.hpp"
#include "torch/call.hpp"
#include "torch/options.hpp"
#include "torch/saved.hpp"

namespace radam::torch {

// LibTorch's own threads, at::get_num_threads() of them. (at::parallel_for is compiled where it is called, and runs on
// one thread there without -fopenmp; a TensorIterator's loop runs inside of LibTorch.)
inline Executor libtorch_threads() {
    const int threads = ::at::get_num_threads();
    if (threads < 2) return {};
    ::at::Tensor numbers = ::at::empty({threads}, ::at::TensorOptions(c10::kByte));
    const char* const first = static_cast<const char*>(numbers.const_data_ptr());
    auto iterator = std::make_shared<::at::TensorIterator>(::at::TensorIterator::nullary_op(numbers));
    return Executor(threads, [iterator, first](const Parts& parts) {
        iterator->for_each(
            [&](char** data, const std::int64_t*, std::int64_t count) {
                const auto begin = static_cast<int>(*data - first);
                for (int index = begin; index < begin + static_cast<int>(count); ++index)
                    if (index < parts.count()) parts(index);
            },
            1);
    });
}

// Everything of the optimizer that is not compiled for an instruction set.
class RAdamBase : public ::torch::optim::Optimizer {
public:
    // Adds a group; options that are not set for it are the optimizer's. (Optimizer::add_param_group, called through a
    // reference to that class, knows LibTorch's own options only: the group would have the optimizer's.)
    // c10::Error, and nothing changed, where a hyperparameter is out of range or a parameter is none or here already.
    void add_param_group(const ::torch::optim::OptimizerParamGroup& group) {
        const Turn turn(*work_);
        ::torch::optim::OptimizerParamGroup made(group.params());
        const auto& defaults = static_cast<const RAdamOptions&>(*defaults_);
        RAdamOptions options = RAdamOptions().with_defaults(defaults);
        const std::size_t number = param_groups_.size();
        if (group.has_options()) options = detail::options_in(group, number).with_defaults(defaults);
        detail::Call::checked(options, settings_, number);
        check_params(group.params());
        if (never_rectifies(options_of(options), settings_.convention))
            TORCH_WARN("radam: group ", number, ": with beta2 ", std::get<1>(options.betas()),
                       " no step is ever rectified in convention \"", settings_.convention.name, "\"");
        made.set_options(std::make_unique<RAdamOptions>(options));
        param_groups_.push_back(std::move(made));
    }

    // One step of every parameter that has a gradient, on the CPU, wholly or not at all. closure computes the gradients
    // anew and returns the loss, which is returned. c10::Error that names what a step cannot take.
    ::torch::Tensor step(LossClosure closure = nullptr) override {
        ::torch::Tensor loss;
        if (closure != nullptr) {
            const ::at::AutoGradMode with_grad(true);
            loss = closure();
        }
        take_step();
        return loss;
    }

    // ---- options of the whole optimizer

    const Precision& precision() const noexcept { return settings_.precision; }
    const Convention& convention() const noexcept { return settings_.convention; }

    // All gradients together are scaled down to this norm, as torch::nn::utils::clip_grad_norm_ does; infinity only
    // measures. Gradients are not written.
    void set_max_grad_norm(double most) { set_clip(Clip::norm, most, "max_grad_norm"); }
    // The gradient of each parameter by itself.
    void set_max_tensor_grad_norm(double most) { set_clip(Clip::tensor, most, "max_tensor_grad_norm"); }
    void set_no_clipping() {
        const Turn turn(*work_);
        settings_.clipping.kind = Clip::none;
    }
    // Of all gradients of the last step, before clipping; NaN before the first one that clips by a norm.
    double grad_norm() const noexcept { return settings_.clipping.norm; }

    // A step is left out, and changes nothing, where a gradient holds an inf or a NaN.
    void skip_nonfinite(bool skip) {
        const Turn turn(*work_);
        settings_.skips = skip;
    }
    std::int64_t skipped_steps() const noexcept { return skipped_; }

    // What every gradient is multiplied by before all else: 1 / the scale of a loss, say.
    void set_grad_scale(double scale) {
        const Turn turn(*work_);
        TORCH_CHECK(std::isfinite(scale), "radam: grad_scale must be a finite number, got ", scale);
        settings_.grad_scale = scale;
    }

    // Other threads than LibTorch's, libtorch_threads().
    void set_executor(Executor executor) {
        const Turn turn(*work_);
        executor_ = std::move(executor);
        has_own_executor_ = true;
    }

    // ---- archives: torch::save(optimizer, path), torch::load(optimizer, path)

    void save(::torch::serialize::OutputArchive& archive) const override {
        const Turn turn(*work_);
        detail::write_archive(archive, param_groups_, state_, settings_);
    }

    // States in fewer bits and in more load into each other. c10::Error, and nothing changed, where something does not
    // fit.
    void load(::torch::serialize::InputArchive& archive) override {
        const Turn turn(*work_);
        std::vector<RAdamOptions*> options;
        for (auto& group : param_groups_) options.push_back(&detail::options_in(group, options.size()));
        detail::Loaded loaded;
        try {
            loaded = detail::read_archive(archive, param_groups_, settings_);
        } catch (const c10::Error&) {
            throw;
        } catch (const std::bad_alloc&) {
            throw;
        } catch (const std::exception& error) {  // LibTorch's own of a broken archive; a key that is no number
            TORCH_CHECK(false, "radam: this is no archive of an optimizer (", error.what(), ")");
        }
        for (std::size_t g = 0; g < options.size(); ++g) *options[g] = loaded.options[g];
        state_.swap(loaded.states);
        settings_.precision.seed = loaded.seed;
    }

protected:
    RAdamBase(const std::vector<::torch::optim::OptimizerParamGroup>& groups, const RAdamOptions& defaults,
              const Convention& convention, const Sweeps& (*of_pair)(DType, DType))
        : Optimizer(std::vector<::torch::optim::OptimizerParamGroup>(), std::make_unique<RAdamOptions>(defaults)),
          work_(std::make_unique<Work>()) {
        settings_.convention = convention;
        settings_.of_pair = of_pair;
        detail::Call::checked(defaults, settings_, 0);
        for (const auto& group : groups) add_param_group(group);
    }

    void set_precision(const Precision& precision, const Sweeps& staged) {
        const Turn turn(*work_);
        TORCH_CHECK(state_.empty(), "radam: set_precision comes before the first step, which makes the states");
        const Violation found = violation(precision);
        TORCH_CHECK(found.name == nullptr, "radam: ", found.name, " must be ", found.rule, ", got ", found.value);
        settings_.precision = precision;
        settings_.staged = &staged;
    }
    void set_max_grad_value(double most, const Sweeps& staged) {
        set_clip(Clip::value, most, "max_grad_value", &staged);
    }

private:
    // On the heap, so that an optimizer can be moved.
    struct Work {
        std::atomic<bool> is_taken{false};
        detail::Call call;
    };

    // One call at a time; the vectors of a step are emptied afterwards, and keep their memory.
    class Turn {
    public:
        explicit Turn(Work& work) : work_(work) {
            TORCH_CHECK(!work_.is_taken.exchange(true), "radam: another call of this optimizer is under way");
        }
        Turn(const Turn&) = delete;
        Turn& operator=(const Turn&) = delete;
        ~Turn() {
            work_.call.clear();
            work_.is_taken.store(false);
        }

    private:
        Work& work_;
    };

    void take_step() {
        const ::at::NoGradGuard no_grad;
        const DefaultFloatMode mode;
        const Turn turn(*work_);
        detail::Call& call = work_->call;
        for (const auto& group : param_groups_) call.add_group(group, state_, settings_);
        if (call.is_empty()) return;
        call.check_overlaps();
        call.prepare(settings_);
        if (!has_own_executor_ && executor_.threads() != ::at::get_num_threads()) executor_ = libtorch_threads();
        if (!call.clip(executor_, settings_)) {
            ++skipped_;
            return;
        }
        call.keep_states(state_);
        call.run(executor_);
    }

    void check_params(const std::vector<::at::Tensor>& params) const {
        ska::flat_hash_map<const void*, bool> known;
        for (const auto& group : param_groups_)
            for (const ::at::Tensor& param : group.params()) known[param.unsafeGetTensorImpl()] = true;
        for (std::size_t i = 0; i < params.size(); ++i) {
            const detail::Where where{detail::param, param_groups_.size(), i};
            if (!params[i].defined()) detail::refuse(where, "is undefined");
            if (!params[i].is_leaf()) detail::refuse(where, "is no leaf: it is computed from others, hand in those");
            bool& is_known = known[params[i].unsafeGetTensorImpl()];
            if (is_known) detail::refuse(where, "is in the optimizer already; hand in each parameter once");
            is_known = true;
        }
    }

    void set_clip(Clip clip, double most, const char* name, const Sweeps* staged = nullptr) {
        const Turn turn(*work_);
        TORCH_CHECK(most >= 0.0, "radam: ", name, " must be a number, at least 0, got ", most);
        settings_.clipping.kind = clip;
        settings_.clipping.most = most;
        if (staged != nullptr) settings_.staged = staged;
    }

    detail::Settings settings_;
    std::int64_t skipped_ = 0;
    Executor executor_;
    bool has_own_executor_ = false;
    std::unique_ptr<Work> work_;
};

// Rectified Adam over tensors on the CPU, with the arguments of torch.optim.RAdam and the bits of radam.torch.RAdam.
//
//     radam::torch::RAdam optimizer(model->parameters(), radam::torch::RAdamOptions(1e-3).weight_decay(0.01));
//     loss.backward();
//     optimizer.step();
//
// Loops: who compiles the arithmetic; RAdam and dispatched::RAdam below.
template <class Loops>
class BasicRAdam : public RAdamBase {
public:
    // c10::Error where a hyperparameter is out of range. convention: whose reading of RAdam (conventions.hpp).
    explicit BasicRAdam(const std::vector<::torch::optim::OptimizerParamGroup>& groups, RAdamOptions defaults = {},
                        const Convention& convention = conventions[0])
        : RAdamBase(groups, defaults, convention, &of_pair) {}
    explicit BasicRAdam(std::vector<::at::Tensor> params, RAdamOptions defaults = {},
                        const Convention& convention = conventions[0])
        : BasicRAdam({::torch::optim::OptimizerParamGroup(std::move(params))}, std::move(defaults), convention) {}

    // Fewer bits for weights and moments. Before the first step. Compiled only where it is used.
    void set_precision(const Precision& precision) { RAdamBase::set_precision(precision, Loops::staged()); }

    // Each element of the gradients is cut to at most this, either way. Compiled only where it is used.
    void set_max_grad_value(double most) { RAdamBase::set_max_grad_value(most, Loops::staged()); }

private:
    static const Sweeps& of_pair(DType param, DType grad) {
        const Sweeps* found = nullptr;
        visit_pair(param, grad, [&](auto p, auto g) noexcept {
            found = &Loops::template of_pair<typename decltype(p)::type, typename decltype(g)::type>();
        });
        return *found;
    }
};

// The loops compiled here, for the processor that this file is compiled for.
using RAdam = BasicRAdam<HeaderOnly<>>;

// Those of the compiled library radam::dispatch, for the processor that it runs on.
namespace dispatched {
using RAdam = BasicRAdam<Dispatched>;
}  // namespace dispatched

}  // namespace radam::torch
