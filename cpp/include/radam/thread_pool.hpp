// A persistent pool of threads that runs one job at a time, cut into parts that never move between threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#include <signal.h>
#include <unistd.h>
#endif

#include "executor.hpp"

namespace radam {

// The cores that this process may run on.
inline int available_cores() noexcept {
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

// Its threads are started by the first job that needs them and sleep between jobs. In a forked child, which has none of
// them, and where the system refuses threads, the calling thread does what they would. Outlives every Executor of it.
class ThreadPool {
public:
    // threads: the calling one included, so that one fewer is started.
    explicit ThreadPool(int threads = available_cores())
        : threads_(threads < 1 ? 1 : threads), shared_(std::make_unique<Shared>()) {}
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;
    ~ThreadPool() {
        if (is_forked())
            shared_.release();  // to end what threads wait for that are not there would take for ever
        else
            shared_->end();
    }

    int threads() const noexcept { return threads_; }

    Executor executor() {
        return Executor(threads_, [this](const Parts& parts) { run(parts); });
    }

    // Part 0 on the calling thread, the others on the pool, those beyond its threads on the calling one too. While
    // another job has the pool, a job runs on its caller's thread alone.
    void run(const Parts& parts) noexcept {
        if (parts.count() > 1 && !is_forked()) {
            if (!shared_->busy.test_and_set(std::memory_order_acquire)) {
                shared_->run(parts, threads_);
                return shared_->busy.clear(std::memory_order_release);
            }
        }
        for (int index = 0; index < parts.count(); ++index) parts(index);
    }

private:
    struct Shared {
        std::atomic_flag busy =
            ATOMIC_FLAG_INIT;  // while a job is running; a mutex must not be tried twice by its owner
        std::mutex mutex;
        std::condition_variable start, done;
        std::uint64_t generation = 0;
        const Parts* job = nullptr;
        int pending = 0;
        bool ends = false;
        std::vector<std::thread> workers;

        void work(int index, std::uint64_t seen) noexcept {
            leave_signals_to_others();
            std::unique_lock<std::mutex> lock(mutex);
            for (;;) {
                start.wait(lock, [&] { return generation != seen || ends; });
                if (ends) return;
                seen = generation;
                if (job == nullptr || index >= job->count()) continue;
                const Parts parts = *job;
                lock.unlock();
                parts(index);
                lock.lock();
                if (--pending == 0) done.notify_one();
            }
        }

        // Threads for parts 1 to count - 1; fewer where the system refuses.
        int grow(int wanted) noexcept {
            while (static_cast<int>(workers.size()) < wanted) {
                try {
                    workers.reserve(static_cast<std::size_t>(wanted));
                    const int index = static_cast<int>(workers.size()) + 1;
                    workers.emplace_back([this, index, seen = generation] { work(index, seen); });
                } catch (const std::exception&) {
                    break;
                }
            }
            return std::min(static_cast<int>(workers.size()), wanted);
        }

        void run(const Parts& parts, int threads) noexcept {
            const int helped = grow(std::min(parts.count(), threads) - 1);
            if (helped > 0) {
                {
                    const std::lock_guard<std::mutex> lock(mutex);
                    job = &parts;
                    pending = helped;
                    ++generation;
                }
                start.notify_all();
            }
            parts(0);
            for (int index = helped + 1; index < parts.count(); ++index) parts(index);
            if (helped > 0) {
                std::unique_lock<std::mutex> lock(mutex);
                done.wait(lock, [&] { return pending == 0; });
                job = nullptr;
            }
        }

        void end() {
            {
                const std::lock_guard<std::mutex> lock(mutex);
                ends = true;
            }
            start.notify_all();
            for (std::thread& worker : workers) worker.join();
        }
    };

#if defined(_WIN32)
    static void leave_signals_to_others() noexcept {}
    bool is_forked() const noexcept { return false; }
#else
    static void leave_signals_to_others() noexcept {
        sigset_t all;
        sigfillset(&all);
        for (const int own : {SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGPROF, SIGSEGV, SIGTRAP}) sigdelset(&all, own);
        pthread_sigmask(SIG_BLOCK, &all, nullptr);
    }
    bool is_forked() const noexcept { return process_ != getpid(); }
    const pid_t process_ = getpid();
#endif

    const int threads_;
    std::unique_ptr<Shared> shared_;
};

}  // namespace radam
