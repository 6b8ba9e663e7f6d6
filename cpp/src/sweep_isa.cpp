// Compiled once per instruction set, with -DRADAM_ISA=avx2 and the flags that its run-time check proves.
#include <radam/sweep.hpp>

template void radam::sweep<radam::isa::RADAM_ISA>(const radam::Tile&) noexcept;
template bool radam::sweep_finite<radam::isa::RADAM_ISA>(const radam::Tile&) noexcept;
template void radam::sweep_limit<radam::isa::RADAM_ISA>(const radam::Tile&) noexcept;
template void radam::sweep_squares<radam::isa::RADAM_ISA>(const radam::Tile&, double*) noexcept;
