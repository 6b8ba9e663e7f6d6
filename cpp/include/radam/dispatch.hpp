// The compiled library radam::dispatch: steps over many parameters, on the instruction set and the threads chosen
// at run time.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "optimizer.hpp"
#include "tiles.hpp"

namespace radam {

// The names that RADAM_ISA takes on this machine, best first.
std::vector<std::string> isas();

// The one in use: RADAM_ISA, else the best. Throws std::invalid_argument where RADAM_ISA is none of isas().
std::string current_isa();

// Throws std::invalid_argument where name is none of isas(). Not to be called while a step runs.
void set_isa(const std::string& name);

// Threads that a step may use, the calling one included: RADAM_NUM_THREADS, else the cores this process may run on.
// Throws std::invalid_argument where RADAM_NUM_THREADS, or count, is not a number from 1 to 1024. An optimizer has as
// many as there were when it was made; set_executor(dispatched_executor()) gives it those of now.
int num_threads();
void set_num_threads(int count);

// The loops in use, for any slot, and the library's own pool of num_threads() threads. Both read, and refuse, the
// environment as the functions above do; afterwards the loops follow set_isa.
const Sweeps& dispatched_sweeps();
Executor dispatched_executor();

// The functions of tiles.hpp with these loops and this pool. Call current_isa() and num_threads() once before the first
// step: they read, and refuse, the environment.
void step(const Slot* slots, std::size_t count) noexcept;
std::size_t first_nonfinite(const Slot* slots, std::size_t count) noexcept;
void sums_of_squares(const Slot* slots, std::size_t count, double* chunks, double* sums) noexcept;
void limit(const Slot* slots, std::size_t count) noexcept;

// For optimizers: as HeaderOnly (sweep.hpp), but compiled once, in the library.
struct Dispatched {
    template <class Param, class Grad>
    static const Sweeps& of_pair() {
        return dispatched_sweeps();
    }
    static const Sweeps& of_any() { return dispatched_sweeps(); }
    static const Sweeps& staged() { return dispatched_sweeps(); }
    static Executor executor() { return dispatched_executor(); }
};

namespace dispatched {
using Optimizer = BasicOptimizer<Dispatched>;
}  // namespace dispatched

}  // namespace radam
