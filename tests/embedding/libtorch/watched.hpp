// What the promises share: parameters, steps, copies of all that an optimizer can change, and what it refuses.
#pragma once

#include <torch/torch.h>

#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "cases.hpp"
#include "expect.hpp"

namespace promises {

using at::Tensor;
using radam::torch::RAdamOptions;
using radam::torch::RAdamParamState;
using RAdam = radam::torch::dispatched::RAdam;
using Group = torch::optim::OptimizerParamGroup;

inline Tensor numbers(std::vector<std::int64_t> sizes, std::uint32_t stream, at::ScalarType dtype = at::kFloat) {
    return cases::numbers(sizes, dtype, "plain", stream);
}

inline std::vector<Tensor> params(at::ScalarType dtype = at::kFloat) {
    std::vector<Tensor> made{numbers({40, 5}, 1, dtype), numbers({}, 2, dtype), numbers({7}, 3, dtype)};
    for (Tensor& tensor : made) tensor.requires_grad_();
    return made;
}

inline void set_grads(const std::vector<Tensor>& of, std::uint32_t t) {
    for (std::size_t i = 0; i < of.size(); ++i)
        of[i].mutable_grad() =
            numbers(of[i].sizes().vec(), 100 * t + static_cast<std::uint32_t>(i), of[i].scalar_type());
}

inline void take_steps(torch::optim::Optimizer& optimizer, std::uint32_t first, std::uint32_t last) {
    for (std::uint32_t t = first; t < last; ++t) {
        for (auto& group : optimizer.param_groups()) set_grads(group.params(), t);
        optimizer.step();
    }
}

inline bool same_bits(const Tensor& a, const Tensor& b) {
    if (!a.defined() || !b.defined()) return a.defined() == b.defined();
    const Tensor x = a.detach().contiguous(), y = b.detach().contiguous();
    return x.sizes() == y.sizes() && x.scalar_type() == y.scalar_type() &&
           (x.numel() == 0 || std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0);
}

inline RAdamParamState& state_of(torch::optim::Optimizer& optimizer, const Tensor& param) {
    return static_cast<RAdamParamState&>(*optimizer.state().at(param.unsafeGetTensorImpl()));
}

inline RAdamOptions& options_of(torch::optim::Optimizer& optimizer, std::size_t group) {
    return static_cast<RAdamOptions&>(optimizer.param_groups()[group].options());
}

// Copies of all that an optimizer can change.
struct Everything {
    explicit Everything(torch::optim::Optimizer& optimizer) {
        for (auto& group : optimizer.param_groups()) {
            options.push_back(static_cast<const RAdamOptions&>(group.options()));
            for (const Tensor& p : group.params()) {
                const bool readable = p.defined() && p.is_cpu() && p.layout() == at::kStrided;
                tensors.push_back(readable ? p.detach().clone() : Tensor());
                const auto found =
                    p.defined() ? optimizer.state().find(p.unsafeGetTensorImpl()) : optimizer.state().end();
                states.emplace_back();
                if (found == optimizer.state().end()) continue;
                states.back() = static_cast<const RAdamParamState&>(*found->second);
                RAdamParamState::for_each(states.back(), [](const char*, Tensor& x) {
                    if (x.defined() && x.is_cpu()) x = x.clone();
                });
            }
        }
        count = optimizer.state().size();
    }
    bool operator==(const Everything& other) const {
        if (options != other.options || count != other.count || tensors.size() != other.tensors.size()) return false;
        for (std::size_t i = 0; i < tensors.size(); ++i)
            if (!same_bits(tensors[i], other.tensors[i]) || !(states[i] == other.states[i])) return false;
        return true;
    }
    std::vector<RAdamOptions> options;
    std::vector<Tensor> tensors;
    std::vector<RAdamParamState> states;
    std::size_t count = 0;
};

// Whether f is refused by an error that says all of this.
inline bool refuses(const std::function<void()>& f, std::vector<std::string> words) {
    try {
        f();
    } catch (const c10::Error& error) {
        for (const std::string& word : words)
            if (std::string(error.what()).find(word) == std::string::npos) {
                std::fprintf(stderr, "no \"%s\" in: %s\n", word.c_str(), error.what_without_backtrace());
                return false;
            }
        return true;
    }
    std::fprintf(stderr, "nothing was refused; expected: %s\n", words.front().c_str());
    return false;
}

}  // namespace promises
