// What a step refuses, and that nothing has changed then.
#pragma once

#include <limits>

#include "watched.hpp"

namespace promises {

inline void wrong_input_changes_nothing() {
    struct Wrong {
        const char* message;
        std::function<void(std::vector<Tensor>&, RAdam&)> make;
    };
    const std::vector<Wrong> table{
        {"the gradient of parameter 2 of group 0 has shape [8], the parameter [7]",
         [](auto& p, auto&) { p[2].mutable_grad() = numbers({8}, 9); }},
        {"the gradient of parameter 2 of group 0 has dtype Double, the parameter Float",
         [](auto& p, auto&) { p[2].mutable_grad() = numbers({7}, 9, at::kDouble); }},
        {"the gradient of parameter 2 of group 0 has dtype ComplexFloat",
         [](auto& p, auto&) { p[2].mutable_grad() = numbers({7}, 9, at::kComplexFloat); }},
        {"the gradient of parameter 2 of group 0 has dtype Long",
         [](auto& p, auto&) { p[2].mutable_grad() = at::zeros({7}, at::kLong); }},
        {"the gradient of parameter 0 of group 0 is sparse",
         [](auto& p, auto&) { p[0].mutable_grad() = p[0].detach().to_sparse(); }},
        {"the gradient of parameter 2 of group 0 is on meta",
         [](auto& p, auto&) { p[2].mutable_grad() = at::zeros({7}, at::TensorOptions(at::kMeta)); }},
        {"the gradient of parameter 0 of group 0 has layout Mkldnn",
         [](auto& p, auto&) { p[0].mutable_grad() = p[0].detach().to_mkldnn(); }},
        {"parameter 2 of group 0 and the gradient of parameter 2 of group 0 share memory",
         [](auto& p, auto&) { p[2].mutable_grad() = p[2].detach(); }},
        {"parameter 0 of group 0 and the gradient of parameter 2 of group 0 share memory",
         [](auto& p, auto&) { p[2].mutable_grad() = p[0].detach().flatten().narrow(0, 3, 7); }},
        {"exp_avg of parameter 2 of group 0 and parameter 2 of group 0 share memory",
         [](auto& p, auto& o) { state_of(o, p[2]).exp_avg(p[2].detach()); }},
        {"exp_avg of parameter 2 of group 0 has shape [6]",
         [](auto& p, auto& o) { state_of(o, p[2]).exp_avg(at::zeros({6})); }},
        {"exp_avg_sq of parameter 2 of group 0 has dtype Double",
         [](auto& p, auto& o) { state_of(o, p[2]).exp_avg_sq(at::zeros({7}, at::kDouble)); }},
        {"exp_avg of parameter 2 of group 0 is on meta",
         [](auto& p, auto& o) { state_of(o, p[2]).exp_avg(at::zeros({7}, at::TensorOptions(at::kMeta))); }},
        {"parameter 2 of group 0 has a step count of -1", [](auto& p, auto& o) { state_of(o, p[2]).step(-1); }},
        {"parameter 2 of group 0 has dtype Int",
         [](auto& p, auto&) {
             p[2] = at::zeros({7}, at::kInt);
             p[2].mutable_grad() = numbers({7}, 9);
         }},
        {"parameter 2 of group 0 has elements that share memory",
         [](auto& p, auto&) {
             p[2] = at::zeros({1}).expand({7});
             p[2].mutable_grad() = numbers({7}, 9);
         }},
        {"parameter 2 of group 0 is an inference tensor",
         [](auto& p, auto&) {
             const c10::InferenceMode mode;
             p[2] = at::zeros({7});
             p[2].mutable_grad() = numbers({7}, 9);
         }},
        {"parameter 2 of group 0 is a lazily conjugated or negated view",
         [](auto& p, auto&) {
             p[2] = numbers({7}, 1, at::kComplexFloat).conj();
             p[2].mutable_grad() = numbers({7}, 9, at::kComplexFloat);
         }},
        {"parameter 0 of group 0 and parameter 2 of group 0 share memory",
         [](auto& p, auto&) {
             p[2] = p[0].detach().select(1, 2);
             p[2].mutable_grad() = numbers({40}, 9);
         }},
        {"parameter 2 of group 0 has lost its memory",
         [](auto& p, auto&) {
             p[2] = at::zeros({7});
             p[2].mutable_grad() = numbers({7}, 9);
             p[2].storage().unsafeGetStorageImpl()->set_nbytes(8);
         }},
        {"lower lr", [](auto&, auto& o) { options_of(o, 0).lr(1e300); }},
        {"must be radam::torch::RAdamOptions",
         [](auto&, auto& o) { o.param_groups()[0].set_options(std::make_unique<torch::optim::SGDOptions>(0.1)); }},
    };
    for (const Wrong& wrong : table) {
        std::vector<Tensor> mine = params();
        RAdam optimizer(mine, RAdamOptions(0.01));
        take_steps(optimizer, 0, 3);
        std::vector<Tensor>& held = optimizer.param_groups()[0].params();
        set_grads(held, 3);
        const std::vector<Tensor> good = held;
        wrong.make(held, optimizer);
        const bool has_options = dynamic_cast<RAdamOptions*>(&optimizer.param_groups()[0].options()) != nullptr;
        std::vector<Tensor> before;
        for (const Tensor& p : good) before.push_back(p.detach().clone());
        EXPECT(refuses([&] { optimizer.step(); }, {wrong.message}));
        for (std::size_t i = 0; i < good.size(); ++i) EXPECT(same_bits(good[i], before[i]));
        for (std::size_t i = 0; i < 2; ++i) EXPECT(state_of(optimizer, good[i]).step() == 3);
        EXPECT(optimizer.state().size() == 3);

        // Set right, it goes on as if nothing had been.
        held = good;
        if (has_options) options_of(optimizer, 0).lr(0.01);
        if (has_options && std::string(wrong.message).find("exp_avg") == std::string::npos &&
            std::string(wrong.message).find("step count") == std::string::npos) {
            const std::vector<Tensor> twins = params();
            RAdam twin(twins, RAdamOptions(0.01));
            take_steps(twin, 0, 6);
            take_steps(optimizer, 3, 6);
            for (std::size_t i = 0; i < good.size(); ++i) EXPECT(same_bits(good[i], twins[i]));
        }
    }
}

inline void the_first_step_makes_no_state_where_it_is_refused() {
    const std::vector<Tensor> mine = params();
    RAdam optimizer(mine);
    set_grads(mine, 0);
    mine[2].mutable_grad() = numbers({8}, 9);
    const Everything before(optimizer);
    EXPECT(refuses([&] { optimizer.step(); }, {"has shape"}));
    EXPECT(before == Everything(optimizer) && optimizer.state().empty());
}

inline void steps_with_inf_or_nan_are_left_out() {
    const std::vector<Tensor> mine = params();
    RAdam optimizer(mine);
    optimizer.skip_nonfinite(true);
    take_steps(optimizer, 0, 2);
    for (const bool clips : {false, true}) {
        if (clips) optimizer.set_max_grad_norm(1.0);
        set_grads(mine, 2);
        mine[2].mutable_grad()[3] = std::numeric_limits<float>::infinity();
        const Everything before(optimizer);
        optimizer.step();
        EXPECT(before == Everything(optimizer));
    }
    EXPECT(optimizer.skipped_steps() == 2 && optimizer.grad_norm() == std::numeric_limits<double>::infinity());
    take_steps(optimizer, 2, 3);
    EXPECT(state_of(optimizer, mine[0]).step() == 3 && optimizer.skipped_steps() == 2);
}

}  // namespace promises
