// From hyperparameters and a step number to the coefficients of the law, in double, exact at every beta2 and step.
#pragma once

#include <cstdint>
#include <limits>

#include "update.hpp"

namespace radam {

enum class EpsOn { sqrt_v, sqrt_v_hat };       // eps is added to sqrt(v), or to sqrt(v / bc2)
enum class Warmup { momentum, moments_only };  // what a step does while it is not rectified

// What the steps of a group are computed from.
struct Hyperparameters {
    double lr = 1e-3;
    double beta1 = 0.9, beta2 = 0.999;
    double eps = 1e-8, eps_root = 0.0;
    double weight_decay = 0.0;
    double grad_scale = 1.0;  // AMP unscaling x clipping
    bool decoupled_weight_decay = false;
    bool maximize = false, amsgrad = false, nesterov = false;
    bool rectify = true;                // false: Adam, r = 1 from the first step
    double threshold = 5.0;             // rectified when rho > threshold,
    bool rectify_at_threshold = false;  // or already when rho >= threshold
    Warmup warmup = Warmup::momentum;
    EpsOn eps_on = EpsOn::sqrt_v;
};

// The first rule that a hyperparameter breaks; name is null when none does.
struct Violation {
    const char* name = nullptr;
    const char* rule = nullptr;
    double value = 0.0;
};

inline Violation violation(const Hyperparameters& h) noexcept {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    const auto not_negative = [](double x) { return x >= 0.0 && x < infinity; };
    const auto is_beta = [](double x) { return x >= 0.0 && x < 1.0; };
    constexpr const char* size = "a finite number, at least 0";
    constexpr const char* unit = "at least 0 and below 1";
    if (!not_negative(h.lr)) return {"lr", size, h.lr};
    if (!is_beta(h.beta1)) return {"beta1", unit, h.beta1};
    if (!is_beta(h.beta2)) return {"beta2", unit, h.beta2};
    if (!not_negative(h.eps)) return {"eps", size, h.eps};
    if (!not_negative(h.eps_root)) return {"eps_root", size, h.eps_root};
    if (!not_negative(h.weight_decay)) return {"weight_decay", size, h.weight_decay};
    if (!(h.grad_scale > -infinity && h.grad_scale < infinity)) return {"grad_scale", "a finite number", h.grad_scale};
    if (!not_negative(h.threshold)) return {"threshold", size, h.threshold};
    return {};
}

// s0 = sum_{k<t} beta^k and s1 = sum_{k<t} (k+1) beta^k: sums of positive terms, so nothing cancels.
struct PowerSums {
    double s0, s1;
};

// By doubling from the top bit of t, with + and * alone: O(log t), the same bits on every compiler and GPU.
RADAM_INLINE PowerSums power_sums(double beta, std::int64_t t) noexcept {
    int bit = 0;
    while ((t >> bit) > 1) ++bit;
    double s0 = 1.0, s1 = 1.0;
    while (bit-- > 0) {
        const double n = static_cast<double>(t >> (bit + 1));
        double power = fma(-(1.0 - beta), s0, 1.0);  // beta^n
        if (power < 0x1p-52) power = 0.0;            // else its residue, times n, would swamp s1
        s1 = fma(power, fma(n, s0, s1), s1);
        s0 = fma(power, s0, s0);
        if ((t >> bit) & 1) {
            s0 = fma(beta, s0, 1.0);
            s1 = fma(beta, s1, s0);
        }
    }
    return {s0, s1};
}

RADAM_INLINE double one_minus_power(double beta, std::int64_t t) noexcept {
    return (1.0 - beta) * power_sums(beta, t).s0;
}

RADAM_INLINE double rho_infinity(double beta2) noexcept { return 2.0 / (1.0 - beta2) - 1.0; }

RADAM_INLINE double rho(const PowerSums& sums) noexcept { return fma(2.0, sums.s1 / sums.s0, -1.0); }

RADAM_INLINE bool is_rectified(const Hyperparameters& h, double rho_t) noexcept {
    return rho_t > h.threshold || (h.rectify_at_threshold && rho_t >= h.threshold);
}

// Where rho is at most 4 (a threshold below it lets such a step through) the variance has no closed form: r is 0.
RADAM_INLINE double rectification(double rho_t, double rho_inf) noexcept {
    if (!(rho_t > 4.0)) return 0.0;
    return sqrt((rho_t - 4.0) / (rho_inf - 4.0) * ((rho_t - 2.0) / (rho_inf - 2.0)) * (rho_inf / rho_t));
}

// One step of one group as the sweep needs it: the form of the law and its numbers for fp64 and for fp32.
struct ScheduledStep {
    std::int64_t t = 0;
    Mode mode = Mode::moments_only;
    bool coupled = false, amsgrad = false, nesterov = false;
    static constexpr bool flushes = true;
    Coefficients<double> f64;
    Coefficients<float> f32;
};

// The largest number below x > 0; zero for zero.
RADAM_INLINE float next_below(float x) noexcept { return x * 0x1.fffffep-1f; }
RADAM_INLINE double next_below(double x) noexcept { return x * 0x1.fffffffffffffp-1; }

// fp32 arithmetic: float(beta) and float(1 - beta) do not add up to one; beta_low holds what is missing. That of beta2
// is above zero wherever beta2 is: v is infinite once the square of a finite gradient was, and 0 * inf would be NaN. v
// is flushed only where the rounded eps, or eps_root, hides any v below the smallest normal number: where that is less
// than half an ulp of eps after the root, or of eps_root before it.
RADAM_INLINE Coefficients<float> round_to_float(const Coefficients<double>& c) noexcept {
    Coefficients<float> f;
    f.grad_scale = static_cast<float>(c.grad_scale);
    f.coupled_decay = static_cast<float>(c.coupled_decay);
    f.beta1 = static_cast<float>(c.beta1);
    f.beta1_low = static_cast<float>(c.beta1 - static_cast<double>(f.beta1));
    f.one_minus_beta1 = static_cast<float>(c.one_minus_beta1);
    const double beta2 = c.beta2 + c.beta2_low;
    f.beta2 = static_cast<float>(beta2);
    if (static_cast<double>(f.beta2) >= beta2) f.beta2 = next_below(f.beta2);
    f.beta2_low = static_cast<float>(beta2 - static_cast<double>(f.beta2));
    f.one_minus_beta2 = static_cast<float>(c.one_minus_beta2);
    f.nesterov_m = static_cast<float>(c.nesterov_m);
    f.nesterov_g = static_cast<float>(c.nesterov_g);
    f.param_decay = static_cast<float>(c.param_decay);
    f.step_size = static_cast<float>(c.step_size);
    f.eps = static_cast<float>(c.eps);
    f.eps_root = static_cast<float>(c.eps_root);
    f.m_floor = 0x1p-126f;
    f.v_floor = (f.eps_root == 0.0f && f.eps >= 0x1p-39f) || f.eps_root >= 0x1p-102f ? 0x1p-126f : 0.0f;
    return f;
}

// False where hyperparameters that are finite in double give coefficients that are not, in double or rounded to float.
template <class T>
RADAM_HOST_INLINE bool is_finite(const Coefficients<T>& c) noexcept {
    constexpr T most = std::numeric_limits<T>::max();
    return abs(c.grad_scale) <= most && abs(c.coupled_decay) <= most && abs(c.param_decay) <= most &&
           abs(c.step_size) <= most && c.eps <= most && c.eps_root <= most;
}

// The step numbered t (the first is 1).
RADAM_INLINE ScheduledStep schedule(const Hyperparameters& h, std::int64_t t) noexcept {
    const PowerSums sums1 = power_sums(h.beta1, t), sums2 = power_sums(h.beta2, t);
    const double bc1 = (1.0 - h.beta1) * sums1.s0;
    const double root_bc2 = sqrt((1.0 - h.beta2) * sums2.s0);
    const double rho_t = rho(sums2);

    ScheduledStep step;
    step.t = t;
    if (!h.rectify || is_rectified(h, rho_t))
        step.mode = Mode::rectified;
    else
        step.mode = h.warmup == Warmup::momentum ? Mode::momentum : Mode::moments_only;
    step.coupled = h.weight_decay != 0.0 && !h.decoupled_weight_decay;
    step.amsgrad = h.amsgrad;
    step.nesterov = h.nesterov;

    Coefficients<double>& c = step.f64;
    c.grad_scale = h.maximize ? -h.grad_scale : h.grad_scale;
    c.coupled_decay = step.coupled ? h.weight_decay : 0.0;
    c.beta1 = h.beta1;
    c.beta1_low = 0.0;
    c.one_minus_beta1 = 1.0 - h.beta1;
    c.beta2 = next_below(h.beta2);
    c.beta2_low = h.beta2 - c.beta2;
    c.one_minus_beta2 = 1.0 - h.beta2;
    c.nesterov_m = h.nesterov ? h.beta1 * bc1 / one_minus_power(h.beta1, t + 1) : 1.0;
    c.nesterov_g = h.nesterov ? 1.0 - h.beta1 : 0.0;
    c.param_decay = h.decoupled_weight_decay ? fma(-h.lr, h.weight_decay, 1.0) : 1.0;
    if (step.mode == Mode::rectified) {
        const double r = h.rectify ? rectification(rho_t, rho_infinity(h.beta2)) : 1.0;
        c.step_size = h.lr * r * root_bc2 / bc1;
    } else {
        c.step_size = h.lr / bc1;
    }
    c.eps = h.eps_on == EpsOn::sqrt_v ? h.eps : h.eps * root_bc2;
    c.eps_root = h.eps_on == EpsOn::sqrt_v ? h.eps_root : h.eps_root * ((1.0 - h.beta2) * sums2.s0);
    c.m_floor = 0x1p-1022;
    c.v_floor = (c.eps_root == 0.0 && c.eps >= 0x1p-458) || c.eps_root >= 0x1p-969 ? 0x1p-1022 : 0.0;
    step.f32 = round_to_float(c);
    return step;
}

// The same step of gradients that are this many times as large.
RADAM_INLINE void scale_gradients(ScheduledStep& step, double factor) noexcept {
    step.f64.grad_scale = step.f64.grad_scale * factor;
    step.f32.grad_scale = static_cast<float>(step.f64.grad_scale);
}

namespace detail {

template <Mode mode, class F>
RADAM_HOST_INLINE void visit_flags(const ScheduledStep& step, F f) noexcept {
    constexpr bool moves = mode != Mode::moments_only;  // nesterov changes p alone
    switch ((step.coupled ? 1 : 0) | (step.amsgrad ? 2 : 0) | (moves && step.nesterov ? 4 : 0)) {
        case 0: return f(Form<mode, false, false, false>{});
        case 1: return f(Form<mode, true, false, false>{});
        case 2: return f(Form<mode, false, true, false>{});
        case 3: return f(Form<mode, true, true, false>{});
        case 4: return f(Form<mode, false, false, moves>{});
        case 5: return f(Form<mode, true, false, moves>{});
        case 6: return f(Form<mode, false, true, moves>{});
        case 7: return f(Form<mode, true, true, moves>{});
    }
}

}  // namespace detail

// Calls f(Form<...>{}) for the form of the law that a step takes.
template <class F>
RADAM_HOST_INLINE void visit_form(const ScheduledStep& step, F f) noexcept {
    switch (step.mode) {
        case Mode::rectified: return detail::visit_flags<Mode::rectified>(step, f);
        case Mode::momentum: return detail::visit_flags<Mode::momentum>(step, f);
        case Mode::moments_only: return detail::visit_flags<Mode::moments_only>(step, f);
    }
}

}  // namespace radam
