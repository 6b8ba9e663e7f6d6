// The threads of the compiled library: one pool for the whole process, which survives forks.
#pragma once

#include <radam/executor.hpp>

namespace radam::parallel {

// When the pool is taken by another caller, or no thread can be had, the calling thread does all parts.
void run(const Parts& parts) noexcept;

}  // namespace radam::parallel
