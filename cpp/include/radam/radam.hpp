// radam, header-only: what an embedder includes.
#pragma once

#include "sweep.hpp"

namespace radam {

// Steps one parameter on the calling thread, on the best instruction set that this file is compiled for.
// The floating-point mode must be the default one (round to nearest, subnormal numbers kept).
inline void step(const Slot& slot) noexcept { sweep<isa::native>({&slot, 0, slot.size}); }

}  // namespace radam
