// What a step of an optimizer like PyTorch's starts with: each parameter's gradient and the entries of its state.
#pragma once

#include <nanobind/nanobind.h>

namespace radam::python {

// (grads, one tuple per key, fresh, count): tuples parallel to params with what param.grad and state[param][key] hold.
// A parameter without a gradient has None throughout. fresh lists the indices of those with a gradient whose state
// lacks a key, None in those tuples too; count says how many have a gradient.
nanobind::tuple collect(const nanobind::list& params, nanobind::handle state, const nanobind::tuple& keys);

}  // namespace radam::python
