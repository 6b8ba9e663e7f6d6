#include "parallel.hpp"

#include <radam/thread_pool.hpp>

#include <atomic>
#include <exception>

#if defined(_WIN32)
#if !defined(NOMINMAX)
#define NOMINMAX
#endif
#include <windows.h>
#elif defined(__APPLE__)
#include <dlfcn.h>
#endif

namespace radam::parallel {
namespace {

// Never destroyed: its threads sleep in it until the process ends. A forked child has no such threads, so it takes a
// new pool and forgets the old one, whose mutexes may be held by threads that are not there.
std::atomic<ThreadPool*> current{nullptr};

// Its threads sleep in the library, which must not be unloaded under them. On Linux the linker sees to that.
void stay_loaded() noexcept {
#if defined(_WIN32)
    HMODULE library = nullptr;
    GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_PIN | GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS,
                       reinterpret_cast<LPCWSTR>(&current), &library);
#elif defined(__APPLE__)
    Dl_info library;
    if (dladdr(&current, &library) != 0) dlopen(library.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);
#endif
}

ThreadPool* pool() {
    ThreadPool* found = current.load(std::memory_order_acquire);
    if (found != nullptr) return found;
#if !defined(_WIN32)
    static const int registered = pthread_atfork(nullptr, nullptr, [] { current.store(nullptr); });
    static_cast<void>(registered);
#endif
    static const bool stays = (stay_loaded(), true);  // once: not again in a forked child
    static_cast<void>(stays);
    ThreadPool* fresh = new ThreadPool(Executor::most_threads);
    if (current.compare_exchange_strong(found, fresh)) return fresh;
    delete fresh;
    return found;
}

}  // namespace

void run(const Parts& parts) noexcept {
    if (parts.count() > 1) {
        try {
            return pool()->run(parts);
        } catch (const std::exception&) {
        }
    }
    for (int index = 0; index < parts.count(); ++index) parts(index);
}

}  // namespace radam::parallel
