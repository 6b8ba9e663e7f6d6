// The conventions in the wild: how each framework's RAdam differs, as numbers that the one law takes; and what a user
// says of a group of parameters, read in one of them.
#pragma once

#include <optional>

#include "schedule.hpp"

namespace radam {

enum class Decay { none, coupled, decoupled };

// One framework's reading of RAdam. Copy one of the table below and change what you want else.
struct Convention {
    const char* name = "torch";
    double threshold = 5.0;             // a step is rectified where rho is above this,
    bool rectify_at_threshold = false;  // or already where it equals it
    Warmup warmup = Warmup::momentum;   // what a step does while it is not rectified
    EpsOn eps_on = EpsOn::sqrt_v;       // eps is added to sqrt(v), or to sqrt(v / (1 - beta2^t))
    Decay decay = Decay::coupled;       // its own kind of weight decay,
    bool other_decay = true;            // and whether it knows the other kind too
    double eps = 1e-8;                  // the default
    double eps_root = 0.0;              // added to v / (1 - beta2^t) inside the root (eps on sqrt(v): to v)
    bool nesterov = false;
    bool rectify = true;  // false: Adam, r = 1 from the first step
};

// The table. Python's radam.CONVENTIONS is made from it.
inline constexpr Convention conventions[] = {
    {"torch"},
    {"paddle", 5.0, false, Warmup::momentum, EpsOn::sqrt_v, Decay::coupled, false},
    {"mindspore", 5.0, false, Warmup::momentum, EpsOn::sqrt_v, Decay::coupled, false},
    {"lucid"},
    {"lucid_docs", 4.0, false, Warmup::momentum, EpsOn::sqrt_v_hat, Decay::coupled, false},
    {"author", 5.0, true, Warmup::moments_only, EpsOn::sqrt_v, Decay::decoupled, false},
    {"optax", 5.0, true, Warmup::momentum, EpsOn::sqrt_v_hat, Decay::none, false},
    {"tfa", 5.0, true, Warmup::momentum, EpsOn::sqrt_v_hat, Decay::decoupled, false, 1e-7},
};

// Adam is no convention of RAdam, but the same law: with decoupled weight decay AdamW.
inline constexpr Convention adam = {
    "adam", 5.0, false, Warmup::momentum, EpsOn::sqrt_v_hat, Decay::coupled, true, 1e-8, 0.0, false, false};

// One of the table, or adam, by its name; null where there is none.
inline const Convention* find_convention(const char* name) noexcept {
    const auto same = [](const char* a, const char* b) noexcept {
        while (*a != '\0' && *a == *b) ++a, ++b;
        return *a == *b;
    };
    for (const Convention& convention : conventions)
        if (same(convention.name, name)) return &convention;
    return same(adam.name, name) ? &adam : nullptr;
}

// What a user says of a group of parameters.
struct Options {
    double lr = 1e-3;
    double beta1 = 0.9, beta2 = 0.999;
    std::optional<double> eps = {};  // the convention's own
    double weight_decay = 0.0;
    std::optional<bool> decoupled_weight_decay = {};  // the convention's own kind
    bool maximize = false, amsgrad = false;
};

inline Hyperparameters hyperparameters(const Options& options, const Convention& convention) noexcept {
    Hyperparameters h;
    h.lr = options.lr;
    h.beta1 = options.beta1;
    h.beta2 = options.beta2;
    h.eps = options.eps.value_or(convention.eps);
    h.eps_root = convention.eps_root;
    h.weight_decay = options.weight_decay;
    h.decoupled_weight_decay = options.decoupled_weight_decay.value_or(convention.decay == Decay::decoupled);
    h.maximize = options.maximize;
    h.amsgrad = options.amsgrad;
    h.nesterov = convention.nesterov;
    h.rectify = convention.rectify;
    h.threshold = convention.threshold;
    h.rectify_at_threshold = convention.rectify_at_threshold;
    h.warmup = convention.warmup;
    h.eps_on = convention.eps_on;
    return h;
}

// The first rule that options break in a convention.
inline Violation violation(const Options& options, const Convention& convention) noexcept {
    const bool wants = options.decoupled_weight_decay.has_value();
    const bool decoupled = options.decoupled_weight_decay.value_or(convention.decay == Decay::decoupled);
    const bool own = convention.decay == (decoupled ? Decay::decoupled : Decay::coupled);
    if (wants && !own && !convention.other_decay)
        return {"decoupled_weight_decay", "left to the convention, which has no such weight decay",
                decoupled ? 1.0 : 0.0};
    if (!wants && convention.decay == Decay::none && options.weight_decay != 0.0)
        return {"weight_decay", "0 in a convention without weight decay", options.weight_decay};
    return violation(hyperparameters(options, convention));
}

// Whether beta2 is so small that no step is ever rectified (2/3 and less where the threshold is 5): then only momentum
// moves the parameters, or nothing does. Python warns of it. Never of Adam.
inline bool never_rectifies(const Options& options, const Convention& convention) noexcept {
    const Hyperparameters h = hyperparameters(options, convention);
    return h.rectify && !is_rectified(h, rho_infinity(h.beta2));
}

}  // namespace radam
