// Counts what is allocated. In a file of its own, so that no compiler sees through it.
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

std::atomic<long> allocations{0};

#if defined(__GLIBC__)
// Everything goes through these: operator new, LibTorch's tensors, and OpenMP.
extern "C" {
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t count, std::size_t size);
void* __libc_realloc(void* memory, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);

void* malloc(std::size_t size) {
    ++allocations;
    return __libc_malloc(size);
}
void* calloc(std::size_t count, std::size_t size) {
    ++allocations;
    return __libc_calloc(count, size);
}
void* realloc(void* memory, std::size_t size) {
    ++allocations;
    return __libc_realloc(memory, size);
}
int posix_memalign(void** memory, std::size_t alignment, std::size_t size) {
    ++allocations;
    *memory = __libc_memalign(alignment, size);
    return *memory == nullptr ? 12 : 0;  // ENOMEM
}
}
#else
void* operator new(std::size_t bytes) {
    ++allocations;
    if (void* const found = std::malloc(bytes)) return found;
    throw std::bad_alloc();
}
void operator delete(void* data) noexcept { std::free(data); }
void operator delete(void* data, std::size_t) noexcept { std::free(data); }
#endif
