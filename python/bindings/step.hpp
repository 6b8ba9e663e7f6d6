// One step over the arrays of Python: check everything, then run.
#pragma once

#include <nanobind/nanobind.h>
#include <radam/schedule.hpp>

#include <cstddef>
#include <string>

#include "clip.hpp"

namespace radam::python {

// groups: a tuple with one tuple per parameter group,
//   (hyperparameters, lrs, params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, names, numbers, stored)
// where lrs is None or a dict from step number to learning rate, the arrays are tuples of equal length (a grad may be
// None: that parameter is skipped; max_exp_avg_sqs is None without amsgrad), steps holds the steps each parameter has
// taken, which the call advances: a writable int64 array, or a tuple of writable arrays of one float32 or float64, each
// on the CPU or on its parameter's device; names is None or a tuple; and numbers is None or a dict from a CUDA device
// to (lr, beta1, beta2), arrays of one number there that stand in for the hyperparameters, or None. nonfinite:
// "propagate", "skip" or "raise". commit: None, or called once nothing can fail any more and nothing has changed yet.
// amp: None, or a dict from a CUDA device to (grad_scale, found_inf, skipped), as in cuda::Work. Returns false when the
// step was skipped, as far as the host knows. Devices step on the current streams of the frameworks, and nobody waits
// for them, but for nonfinite, which must know.
//
// numbers and stored may be left out. stored: None, or what the group has that is stored in fewer bits, a tuple
//   (masters, exp_avg_scales, exp_avg_sq_scales, max_exp_avg_sq_scales, seed, ordinals, shards, stochastic)
// whose tuples have one entry per parameter, or are None, as are entries of parameters that have no such thing.
// masters: the int16 remainders of bfloat16 parameters, the float32 master weights of float16 ones. Scales: one float32
// for each block of 128 elements, in the parameter's memory order, where the moments are codes (int8 exp_avg, uint8
// exp_avg_sq). ordinals: each parameter's number in the optimizer. shards: (shape, offsets) of the whole parameter that
// a parameter is a part of. stochastic: whether 16-bit parameters without master weights are rounded at random. clip:
// None, or how gradients are clipped; its norm is set.
bool step(const nanobind::tuple& groups, const std::string& nonfinite, nanobind::handle commit, nanobind::handle amp,
          Clip* clip);

// Waits for steps in other threads; later ones keep the GIL. To be called when the interpreter ends.
void end_steps();

// In a forked child: the other threads, and their steps, are not there.
void forget_steps() noexcept;

// What parameters alone can fail of the checks of a step: a tuple (params, names) per group.
void check_params(const nanobind::tuple& groups);

// Moves the bytes that step would and computes nothing, for benchmarks. Garbles the arrays.
void limit(const nanobind::tuple& groups);

// (dtype name, shape, dimensions in memory order) of a parameter: what its moments are made after.
nanobind::tuple describe(nanobind::handle array, nanobind::handle names, std::size_t group, std::size_t index);

}  // namespace radam::python
