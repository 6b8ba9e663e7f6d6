// The library radam::cuda, a file of its own beside the extension module: loaded when a CUDA array first comes in.
#pragma once

#include <radam/cuda.hpp>

#include <string>
#include <vector>

namespace radam::python {

// Null where CUDA cannot be used.
const cuda::Library* cuda_library();

// Why it cannot be used, and what would help; empty where it can.
std::string why_cuda_is_off();

// A line for each device.
std::vector<std::string> cuda_devices();

// Where the library lies. It is loaded when it is next asked for; what an earlier one gave must no longer be in use.
void set_cuda_library(const std::string& path);

}  // namespace radam::python
