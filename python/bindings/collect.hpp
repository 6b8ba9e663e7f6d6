// What a step of an optimizer like PyTorch's starts with: each parameter's gradient and the entries of its state.
#pragma once

#include <nanobind/nanobind.h>

namespace radam::python {

// (params, grads, one tuple per key, fresh, count): the parameters, and parallel to them what param.grad and
// state[param][key] hold; None where there is no gradient, and in the tuples of keys where there is no such entry.
// A key may be a tuple of alternatives, of which the first one that is there counts; one that ends with None may be
// missing. fresh lists the indices of those with a gradient whose state lacks a key; count says how many have a
// gradient.
nanobind::tuple collect(nanobind::handle params, nanobind::handle state, const nanobind::tuple& keys);

}  // namespace radam::python
