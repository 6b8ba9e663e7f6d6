// What XLA calls in a jitted step, on threads of its own and without the GIL. Nothing here touches Python.
#pragma once

#include "xla_ffi.hpp"

namespace radam::python::jax {

// Both take what they need to know of the hyperparameters from three attributes:
//   flags     int64: see Flag
//   numbers   an array of float64, in the order of Number; of those that are operands, what it holds is not read
//   operands  int64: bit k is set where number k is an operand, in that order behind the first operand
// An operand that is a number has dtype float32 or float64, or is three uint32 for programs without float64: the halves
// of a float64 as they lie in memory, and the nearest float32, which is not read here.
enum Flag { rectify_at_threshold = 1, moments_only = 2, eps_on_sqrt_v_hat = 4, nesterov = 8, decoupled = 16 };
enum Number { lr, b1, b2, eps, eps_root, threshold, weight_decay, numbers };

// (t, numbers ...) -> (coefficients, rectified): those of step t (int32 or int64, 1 for the first), in the order of
// radam::Coefficients along a last dimension, float32 or float64, and a pred. All may have the same leading dimensions.
xla::Error* coefficients(xla::CallFrame* frame) noexcept;

// (count, numbers ..., params ..., grads ..., exp_avgs ..., exp_avg_sqs ..., anything)
//   -> (count, params ..., exp_avgs ..., exp_avg_sqs ...)
// One step of all leaves, after count steps (int32 or int64). A result may be its operand's buffer; where it is
// another, the operand is not written. An error has written nothing. lr may be any number, as in Optax: what it makes
// of the parameters is what the law says; the others are held to their ranges.
xla::Error* step(xla::CallFrame* frame) noexcept;

// The same on a CUDA device, where everything but the attributes is, on XLA's stream and without waiting for it. In
// place of the count, and of its result, is a count for each leaf, of float32. Numbers but lr, b1 and b2 are no
// operands. Every result is its operand's buffer.
xla::Error* step_on_cuda(xla::CallFrame* frame) noexcept;

}  // namespace radam::python::jax
