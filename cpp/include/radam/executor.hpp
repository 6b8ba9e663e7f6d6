// Who runs the parts of a step: the calling thread, a pool, or whatever threads an embedder has.
#pragma once

#include <memory>
#include <utility>

namespace radam {

// The parts of one job. Call it once with each index below count(), in any order, on any threads.
class Parts {
public:
    using Function = void (*)(void* context, int index, int count) noexcept;

    Parts(int count, Function part, void* context) noexcept : count_(count), part_(part), context_(context) {}
    int count() const noexcept { return count_; }
    void operator()(int index) const noexcept { part_(context_, index, count_); }

private:
    int count_;
    Function part_;
    void* context_;
};

// Copies share the callable. One that was moved from is only to be assigned to, or destroyed.
class Executor {
public:
    static constexpr int most_threads = 1024;

    // The calling thread alone.
    Executor() = default;

    // run(parts) calls every part of a `const Parts&` and returns when all are done; it must not throw. threads: how
    // many parts there are at most; one for less than that, most_threads for more.
    template <class F>
    Executor(int threads, F run)
        : threads_(within(threads)),
          run_([](void* callable, const Parts& parts) { (*static_cast<F*>(callable))(parts); }),
          callable_(std::make_shared<F>(std::move(run))) {}

    // The same of a function, which is nothing to keep.
    template <void (*run)(const Parts&) noexcept>
    static Executor of(int threads) noexcept {
        Executor executor;
        executor.threads_ = within(threads);
        executor.run_ = [](void*, const Parts& parts) { run(parts); };
        return executor;
    }

    int threads() const noexcept { return threads_; }

    // Runs the parts, on the calling thread where there is one.
    void operator()(const Parts& parts) const noexcept {
        if (run_ != nullptr && parts.count() > 1) return run_(callable_.get(), parts);
        for (int index = 0; index < parts.count(); ++index) parts(index);
    }

private:
    static int within(int threads) noexcept {
        return threads < 1 ? 1 : threads > most_threads ? most_threads : threads;
    }

    int threads_ = 1;
    void (*run_)(void* callable, const Parts& parts) = nullptr;
    std::shared_ptr<void> callable_;
};

}  // namespace radam
