#include "parallel.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__linux__)
#include <sched.h>

#include <vector>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#include <signal.h>
#endif

namespace radam::parallel {
namespace {

void leave_signals_to_others() noexcept {
#if !defined(_WIN32)
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
#endif
}

struct Pool {
    std::mutex busy;  // held by the caller whose job is running
    std::mutex mutex;
    std::condition_variable start, done;
    std::uint64_t generation = 0;
    void (*part)(void*, int, int) = nullptr;
    void* context = nullptr;
    int count = 0, pending = 0, workers = 0;

    void work(int index, std::uint64_t seen) noexcept {
        leave_signals_to_others();
        std::unique_lock lock(mutex);
        for (;;) {
            start.wait(lock, [&] { return generation != seen; });
            seen = generation;
            if (index >= count) continue;
            const auto job = part;
            void* const with = context;
            const int parts = count;
            lock.unlock();
            job(with, index, parts);
            lock.lock();
            if (--pending == 0) done.notify_one();
        }
    }

    // Threads for parts 1 to count - 1; fewer where the system refuses.
    int grow(int wanted) noexcept {
        while (workers < wanted) {
            try {
                std::thread([this, index = workers + 1, seen = generation] { work(index, seen); }).detach();
                ++workers;
            } catch (const std::exception&) {
                break;
            }
        }
        return std::min(workers, wanted);
    }

    void run(int parts, void (*job)(void*, int, int), void* with) noexcept {
        const int helped = grow(parts - 1);
        if (helped > 0) {
            const std::lock_guard lock(mutex);
            part = job;
            context = with;
            count = parts;
            pending = helped;
            ++generation;
        }
        if (helped > 0) start.notify_all();
        job(with, 0, parts);
        for (int index = helped + 1; index < parts; ++index) job(with, index, parts);
        if (helped > 0) {
            std::unique_lock lock(mutex);
            done.wait(lock, [&] { return pending == 0; });
        }
    }
};

// Never destroyed: its threads sleep in it until the process ends. A forked child has no such threads, so it takes a
// new pool and forgets the old one, whose mutexes may be held by threads that are not there.
std::atomic<Pool*> current{nullptr};

Pool* pool() {
    Pool* found = current.load(std::memory_order_acquire);
    if (found != nullptr) return found;
#if !defined(_WIN32)
    static const int registered = pthread_atfork(nullptr, nullptr, [] { current.store(nullptr); });
    static_cast<void>(registered);
#endif
    Pool* fresh = new Pool;
    if (current.compare_exchange_strong(found, fresh)) return fresh;
    delete fresh;
    return found;
}

}  // namespace

int available_cores() noexcept {
#if defined(__linux__)
    try {
        for (int cpus = 1024; cpus <= 1 << 20; cpus *= 2) {
            std::vector<cpu_set_t> set(static_cast<std::size_t>(cpus) / CPU_SETSIZE);
            const std::size_t bytes = set.size() * sizeof(cpu_set_t);
            if (sched_getaffinity(0, bytes, set.data()) == 0) return std::max(1, CPU_COUNT_S(bytes, set.data()));
        }
    } catch (const std::exception&) {
    }
#endif
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

void run(int count, void (*part)(void*, int, int), void* context) noexcept {
    if (count > 1) {
        try {
            Pool* const shared = pool();
            const std::unique_lock lock(shared->busy, std::try_to_lock);
            if (lock.owns_lock()) return shared->run(count, part, context);
        } catch (const std::exception&) {
        }
    }
    for (int index = 0; index < count; ++index) part(context, index, count);
}

}  // namespace radam::parallel
