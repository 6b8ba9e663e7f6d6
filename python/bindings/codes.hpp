// 8-bit moments from and to float32 ones, on the host: for state dicts.
#pragma once

#include <nanobind/nanobind.h>

namespace radam::python {

// One-dimensional arrays without gaps: float32 values, int8 codes of exp_avg or uint8 ones of exp_avg_sq, and a float32
// scale for each block. To nearest; decoded and encoded again, codes and scales are the same
// (but for blocks of zeros and subnormal numbers alone, whose scale may differ).
void encode_blocks(nanobind::handle values, nanobind::handle codes, nanobind::handle scales);
void decode_blocks(nanobind::handle codes, nanobind::handle scales, nanobind::handle values);

}  // namespace radam::python
