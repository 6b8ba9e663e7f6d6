// What is stored in fewer bits, from and to float32, on the host: for state dicts.
#pragma once

#include <nanobind/nanobind.h>

namespace radam::python {

// One-dimensional arrays without gaps: float32 values, int8 codes of exp_avg or uint8 ones of exp_avg_sq, and a float32
// scale for each block. To nearest; decoded and encoded again, codes and scales are the same
// (but for blocks of zeros and subnormal numbers alone, whose scale may differ).
void encode_blocks(nanobind::handle values, nanobind::handle codes, nanobind::handle scales);
void decode_blocks(nanobind::handle codes, nanobind::handle scales, nanobind::handle values);

// float32 weights from 16-bit parameters and what a state keeps of them (int16 remainders beside bfloat16, float32
// masters beside float16), and those from the weights. One-dimensional arrays without gaps.
void join_weights(nanobind::handle params, nanobind::handle kept, nanobind::handle weights);
void split_weights(nanobind::handle weights, nanobind::handle params, nanobind::handle kept);

}  // namespace radam::python
