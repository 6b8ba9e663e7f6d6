// The law: one RAdam update, written once for scalars, SIMD vectors and GPU threads.
// docs/design.md says why each line is as it is; schedule.hpp computes the coefficients.
#pragma once

#include "arithmetic.hpp"

namespace radam {

enum class Mode { rectified, momentum, moments_only };

// What is chosen once per call, never per element: 0 * inf must not make a NaN. For vectors at compile time, by this;
// anything else that says the same, a ScheduledStep for one, chooses at run time.
template <Mode mode_, bool coupled_, bool amsgrad_, bool nesterov_>
struct Form {
    static constexpr Mode mode = mode_;
    static constexpr bool coupled = coupled_;
    static constexpr bool amsgrad = amsgrad_;
    static constexpr bool nesterov = nesterov_;
    static constexpr bool flushes = true;  // moments below the smallest normal number become zero
};

// The same where the moments are coded: no code stands for numbers so small.
template <class F>
struct WithoutFlush : F {
    static constexpr bool flushes = false;
};

// Everything that depends on the step number or the hyperparameters. V is double as scheduled,
// float as rounded for fp32 arithmetic, or a vector that holds one number in every lane.
template <class V>
struct Coefficients {
    V grad_scale, coupled_decay;
    V beta1, beta1_low, one_minus_beta1;
    V beta2, beta2_low, one_minus_beta2;
    V nesterov_m, nesterov_g;
    V param_decay, step_size, eps, eps_root;
    V m_floor, v_floor;  // moments below these become zero

    Coefficients() = default;

    template <class U>
    RADAM_INLINE explicit Coefficients(const Coefficients<U>& c)
        : grad_scale(c.grad_scale),
          coupled_decay(c.coupled_decay),
          beta1(c.beta1),
          beta1_low(c.beta1_low),
          one_minus_beta1(c.one_minus_beta1),
          beta2(c.beta2),
          beta2_low(c.beta2_low),
          one_minus_beta2(c.one_minus_beta2),
          nesterov_m(c.nesterov_m),
          nesterov_g(c.nesterov_g),
          param_decay(c.param_decay),
          step_size(c.step_size),
          eps(c.eps),
          eps_root(c.eps_root),
          m_floor(c.m_floor),
          v_floor(c.v_floor) {}
};

template <class F, class V>
RADAM_INLINE void update(const F& form, V& p, V g, V& m, V& v, V& v_max, const Coefficients<V>& c) noexcept {
    g = c.grad_scale * g;
    if (form.coupled) g = fma(c.coupled_decay, p, g);

    m = fma(c.beta1, m, fma(c.beta1_low, m, c.one_minus_beta1 * g));
    v = fma(c.beta2, v, fma(c.beta2_low, v, (c.one_minus_beta2 * g) * g));
    if (form.flushes) {
        m = select(abs(m) < c.m_floor, V(0), m);
        v = select(v < c.v_floor, V(0), v);
    }
    if (form.amsgrad) v_max = select(v_max >= v, v_max, v);

    if (form.mode != Mode::moments_only) {
        V n = m;
        if (form.nesterov) n = fma(c.nesterov_m, m, c.nesterov_g * g);
        if (form.mode == Mode::rectified) n = n / (sqrt((form.amsgrad ? v_max : v) + c.eps_root) + c.eps);
        // Not -c.step_size: xsimd's minus on AVX-512 is 0 - x, which loses the sign of zero.
        p = fma(V(-1) * c.step_size, n, c.param_decay * p);
    }
}

}  // namespace radam
