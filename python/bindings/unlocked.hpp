// Work without the GIL, also while the interpreter ends or a process forks.
#pragma once

#include <Python.h>
#include <nanobind/nanobind.h>

#include <atomic>
#include <chrono>
#include <thread>

namespace radam::python {

// Lets other Python threads run, unless the interpreter is ending: then a thread that asks for the GIL back never
// returns, and unwinding it through C++ would end the process.
class Unlocked {
public:
    Unlocked() : thread_(nullptr) {
        ++running;
        if (!ending) thread_ = PyEval_SaveThread();
    }
    Unlocked(const Unlocked&) = delete;
    Unlocked& operator=(const Unlocked&) = delete;
    ~Unlocked() {
        if (thread_ != nullptr) PyEval_RestoreThread(thread_);
        --running;
    }

    static void end() {
        ending = true;
        const nanobind::gil_scoped_release release;
        while (running > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }

    static void forget() noexcept { running = 0; }

private:
    static inline std::atomic<bool> ending{false};
    static inline std::atomic<int> running{0};
    PyThreadState* thread_;
};

}  // namespace radam::python
