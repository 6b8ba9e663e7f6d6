// The compiled library radam::dispatch: steps over many parameters, on the instruction set and the threads chosen
// at run time.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "slot.hpp"

namespace radam {

// The names that RADAM_ISA takes on this machine, best first.
std::vector<std::string> isas();

// The one in use: RADAM_ISA, else the best. Throws std::invalid_argument where RADAM_ISA is none of isas().
std::string current_isa();

// Throws std::invalid_argument where name is none of isas(). Not to be called while a step runs.
void set_isa(const std::string& name);

// Threads that a step may use, the calling one included: RADAM_NUM_THREADS, else the cores this process may run on.
// Throws std::invalid_argument where RADAM_NUM_THREADS, or count, is not a number from 1 to 1024.
int num_threads();
void set_num_threads(int count);

// Steps all slots. Their buffers must not overlap, but for gradients that are only read. Call current_isa() and
// num_threads() once before the first step: they read, and refuse, the environment.
void step(const Slot* slots, std::size_t count) noexcept;

// The index of the first slot whose gradient holds an inf or a NaN; count where all are finite.
std::size_t first_nonfinite(const Slot* slots, std::size_t count) noexcept;

// The sum of squares of each slot's gradient, as norm.hpp adds them. chunks: room for square_chunks(slots, count)
// numbers.
std::size_t square_chunks(const Slot* slots, std::size_t count) noexcept;
void sums_of_squares(const Slot* slots, std::size_t count, double* chunks, double* sums) noexcept;

// Reads and writes what step does and computes nothing: the limit that benchmarks compare with.
// Moves the contents of the buffers about; slots need a step for their form.
void limit(const Slot* slots, std::size_t count) noexcept;

}  // namespace radam
