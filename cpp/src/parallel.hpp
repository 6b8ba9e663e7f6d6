// A persistent pool of threads that runs one job at a time, cut into parts that never move between threads.
#pragma once

namespace radam::parallel {

// The cores that this process may run on.
int available_cores() noexcept;

// Calls part(context, index, count) for every index below count: 0 on the calling thread, the others on the pool.
// When the pool is taken by another caller, or no thread can be had, the calling thread does all of them.
void run(int count, void (*part)(void* context, int index, int count), void* context) noexcept;

}  // namespace radam::parallel
