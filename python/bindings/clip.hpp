// How a step clips its gradients, and the norm that it found.
#pragma once

#include <nanobind/nanobind.h>

#include <optional>

namespace radam::python {

struct Clip {
    enum class Kind { norm, tensor, value };  // of all gradients; of each; each element

    Kind kind = Kind::norm;
    double most = 0.0;
    // Adds up the sums of squares of all gradients, where some are elsewhere (in other processes): called with a list.
    nanobind::object reduce = nanobind::none();
    // None, or by CUDA device one float64 there, where a device that has all parameters leaves the norm.
    nanobind::object norms = nanobind::none();
    std::optional<double> norm;  // of all gradients before clipping

    bool needs_norm() const noexcept { return kind != Kind::value; }
};

}  // namespace radam::python
