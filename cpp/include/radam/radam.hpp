// radam, header-only: what an embedder includes. Without exceptions it offers the raw buffers' layer alone.
#pragma once

#include "sweep.hpp"
#if defined(__cpp_exceptions) || defined(_CPPUNWIND)
#include "optimizer.hpp"
#endif

namespace radam {

#if defined(__cpp_exceptions) || defined(_CPPUNWIND)
using Optimizer = BasicOptimizer<HeaderOnly<>>;
#endif

// Steps one parameter on the calling thread, on the best instruction set that this file is compiled for.
// The floating-point mode must be the default one (round to nearest, subnormal numbers kept).
template <class Isa = isa::native>
void step(const Slot& slot) noexcept {
    sweep<Isa>({&slot, 0, slot.size});
}

}  // namespace radam
