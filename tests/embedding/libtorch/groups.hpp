// What belongs to which group, and which hyperparameters and parameters are refused.
#pragma once

#include <limits>

#include "watched.hpp"

namespace promises {

inline void groups_inherit_what_is_not_set_for_them() {
    const RAdamOptions defaults =
        RAdamOptions(0.5).betas({0.8, 0.9}).eps(1e-6).weight_decay(0.1).decoupled_weight_decay(true).maximize(true);
    std::vector<Group> groups;
    groups.emplace_back(std::vector<Tensor>{numbers({3}, 1)});
    groups.emplace_back(std::vector<Tensor>{numbers({3}, 2)},
                        std::make_unique<RAdamOptions>(RAdamOptions(1e-3).maximize(false).amsgrad(true)));
    RAdam optimizer(groups, defaults);
    EXPECT(options_of(optimizer, 0) == defaults);
    // What equals the constructor's default is set all the same where somebody said so.
    EXPECT(options_of(optimizer, 1) == RAdamOptions(defaults).lr(1e-3).maximize(false).amsgrad(true));

    RAdamOptions written;
    written.lr() = 0.25;  // by reference
    optimizer.add_param_group({{numbers({3}, 3)}, std::make_unique<RAdamOptions>(written)});
    EXPECT(options_of(optimizer, 2) == RAdamOptions(defaults).lr(0.25));
    EXPECT(options_of(optimizer, 2).get_lr() == 0.25);

    // Options of a group are complete: another optimizer's group gets them as they are.
    RAdam other({Group({numbers({3}, 4)}, std::make_unique<RAdamOptions>(options_of(optimizer, 1)))},
                RAdamOptions(7.0));
    EXPECT(options_of(other, 0) == options_of(optimizer, 1));

    // LibTorch's own function, which is not virtual, knows its own optimizers' options only.
    torch::optim::Optimizer& base = optimizer;
    base.add_param_group({{numbers({3}, 5)}, std::make_unique<RAdamOptions>(RAdamOptions(0.125))});
    EXPECT(options_of(optimizer, 3) == defaults);
}

inline void groups_come_between_steps() {
    const std::vector<Tensor> all = params(), twins = params();
    RAdam late({all[0]}, RAdamOptions(0.01)), early({twins[0]}, RAdamOptions(0.01)),
        alone({twins[1]}, RAdamOptions(0.1));
    take_steps(late, 0, 6);
    take_steps(early, 0, 6);
    late.add_param_group({{all[1]}, std::make_unique<RAdamOptions>(RAdamOptions(0.1))});
    take_steps(late, 6, 12);
    take_steps(early, 6, 12);
    take_steps(alone, 6, 12);
    EXPECT(same_bits(all[0], twins[0]));
    EXPECT(same_bits(all[1], twins[1]));
    EXPECT(state_of(late, all[0]).step() == 12 && state_of(late, all[1]).step() == 6);
}

inline void groups_that_are_never_rectified_are_warned_of() {
    struct Noted : c10::WarningHandler {
        void process(const c10::Warning& warning) override { text += warning.msg(); }
        std::string text;
    } noted;
    const c10::WarningUtils::WarningHandlerGuard guard(&noted);
    const RAdamOptions never = RAdamOptions().betas({0.9, 0.625});
    RAdam optimizer({numbers({3}, 1)});
    RAdam adam({numbers({3}, 2)}, never, radam::adam);
    EXPECT(noted.text.empty());
    optimizer.add_param_group({{numbers({3}, 3)}, std::make_unique<RAdamOptions>(never)});
    EXPECT(noted.text.find("group 1: with beta2 0.625 no step is ever rectified") != std::string::npos);
    noted.text.clear();
    RAdam warned({numbers({3}, 4)}, never);
    EXPECT(noted.text.find("group 0: with beta2 0.625") != std::string::npos);
}

inline void wrong_hyperparameters_are_refused() {
    const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
    const std::pair<RAdamOptions, const char*> table[] = {
        {RAdamOptions(-1.0), "lr must be"},
        {RAdamOptions(nan), "lr must be"},
        {RAdamOptions().betas({1.0, 0.9}), "beta1 must be"},
        {RAdamOptions().betas({0.9, -0.1}), "beta2 must be"},
        {RAdamOptions().eps(inf), "eps must be"},
        {RAdamOptions().weight_decay(-1e-9), "weight_decay must be"},
    };
    for (const auto& [options, message] : table) {
        EXPECT(refuses([&, &o = options] { RAdam(params(), o); }, {message, "group 0"}));
        const std::vector<Tensor> mine = params();
        RAdam optimizer({mine[0]});
        const Everything before(optimizer);
        EXPECT(refuses([&, &o = options] { optimizer.add_param_group({{mine[1]}, std::make_unique<RAdamOptions>(o)}); },
                       {message, "group 1"}));
        EXPECT(before == Everything(optimizer));
        take_steps(optimizer, 0, 2);
        options_of(optimizer, 0) = options;
        const Everything then(optimizer);
        EXPECT(refuses([&] { optimizer.step(); }, {message, "group 0"}));
        EXPECT(then.tensors.size() == 1 && same_bits(then.tensors[0], mine[0]) &&
               state_of(optimizer, mine[0]).step() == 2);
    }
    EXPECT(refuses([] { RAdam(params(), RAdamOptions().weight_decay(0.1), *radam::find_convention("optax")); },
                   {"decoupled_weight_decay"}));
    RAdam optimizer(params());
    EXPECT(refuses([&] { optimizer.set_max_grad_norm(-1.0); }, {"max_grad_norm"}));
    EXPECT(refuses([&] { optimizer.set_grad_scale(std::numeric_limits<double>::infinity()); }, {"grad_scale"}));
    radam::Precision both;
    both.master_weights = both.stochastic_rounding = true;
    EXPECT(refuses([&] { optimizer.set_precision(both); }, {"stochastic_rounding must be"}));
    take_steps(optimizer, 0, 1);
    EXPECT(refuses([&] { optimizer.set_precision({}); }, {"before the first step"}));
}

inline void wrong_groups_are_refused() {
    const std::vector<Tensor> mine = params();
    RAdam optimizer({mine[0], mine[1]});
    const Tensor computed = mine[2] * 2;
    const std::pair<std::vector<Tensor>, const char*> table[] = {
        {{mine[2], mine[2]}, "parameter 1 of group 1 is in the optimizer already"},
        {{mine[1]}, "parameter 0 of group 1 is in the optimizer already"},
        {{computed}, "parameter 0 of group 1 is no leaf"},
        {{mine[2], Tensor()}, "parameter 1 of group 1 is undefined"},
    };
    for (const auto& [some, message] : table) {
        EXPECT(refuses([&, &s = some] { optimizer.add_param_group(s); }, {message}));
        EXPECT(optimizer.param_groups().size() == 1);
    }
    EXPECT(refuses([&] { optimizer.add_param_group({{mine[2]}, std::make_unique<torch::optim::SGDOptions>(0.1)}); },
                   {"RAdamOptions"}));
}

inline void options_and_states_compare_and_are_cloned() {
    const RAdamOptions options = RAdamOptions(0.1).amsgrad(true);
    const torch::optim::OptimizerOptions& base = options;
    EXPECT(static_cast<const RAdamOptions&>(*base.clone()) == options);
    EXPECT(options != RAdamOptions(0.1));
    RAdam optimizer({numbers({3}, 1)});
    take_steps(optimizer, 0, 1);
    const torch::optim::OptimizerParamState& state = *optimizer.state().begin()->second;
    EXPECT(static_cast<const RAdamParamState&>(*state.clone()) == static_cast<const RAdamParamState&>(state));
    EXPECT(!(static_cast<const RAdamParamState&>(state) == RAdamParamState()));
}

}  // namespace promises
