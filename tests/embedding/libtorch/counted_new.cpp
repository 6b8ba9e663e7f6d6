// Counts what is allocated. In a file of its own, so that no compiler sees through it.
#include <atomic>
#include <cstdlib>
#include <new>

std::atomic<long> allocations{0};

void* operator new(std::size_t bytes) {
    ++allocations;
    if (void* const found = std::malloc(bytes)) return found;
    throw std::bad_alloc();
}
void operator delete(void* data) noexcept { std::free(data); }
void operator delete(void* data, std::size_t) noexcept { std::free(data); }
