// radam on the threads that a program already has: a pool of its own, std::async or OpenMP, all through one callable.
// However a step is shared out, it has the bits of a step on one thread.

#include <condition_variable>
#include <cstdio>
#include <functional>
#include <future>
#include <mutex>
#include <radam/radam.hpp>
#include <thread>
#include <vector>

// Stands for the pool of your program: some threads that wait for work, which is a function of a number.
class Crew {
public:
    explicit Crew(int threads) {
        for (int i = 1; i < threads; ++i) threads_.emplace_back([this] { wait_for_work(); });
    }
    ~Crew() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            ends_ = true;
        }
        wake_.notify_all();
        for (std::thread& thread : threads_) thread.join();
    }
    int size() const { return static_cast<int>(threads_.size()) + 1; }  // with the thread that calls for_each

    // Calls work(0) to work(count - 1) on any of the threads, and returns when all is done.
    void for_each(int count, const std::function<void(int)>& work) {
        std::unique_lock<std::mutex> lock(mutex_);
        work_ = &work;
        next_ = 0;
        count_ = left_ = count;
        wake_.notify_all();
        while (next_ < count_) take_one(lock);
        done_.wait(lock, [this] { return left_ == 0; });
    }

private:
    void wait_for_work() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [this] { return ends_ || next_ < count_; });
            if (ends_) return;
            take_one(lock);
        }
    }
    void take_one(std::unique_lock<std::mutex>& lock) {
        const int number = next_++;
        lock.unlock();
        (*work_)(number);
        lock.lock();
        if (--left_ == 0) done_.notify_one();
    }

    std::mutex mutex_;
    std::condition_variable wake_, done_;
    const std::function<void(int)>* work_ = nullptr;
    int next_ = 0, count_ = 0, left_ = 0;
    bool ends_ = false;
    std::vector<std::thread> threads_;
};

// Twenty steps down the slope of sum(w^2), some w four times as steep as others.
std::vector<float> train(const radam::Executor& executor) {
    std::vector<float> w(200'000, 1.0f), gradient(w.size());
    radam::Optimizer optimizer({0.02});  // the learning rate
    optimizer.set_executor(executor);
    optimizer.add_param(w.data(), gradient.data(), static_cast<std::int64_t>(w.size()), {"w"});
    for (int step = 0; step < 20; ++step) {
        for (std::size_t i = 0; i < w.size(); ++i) gradient[i] = (i % 4 == 0 ? 8.0f : 2.0f) * w[i];
        optimizer.step();
    }
    return w;
}

int main() {
    Crew crew(4);
    const radam::Executor on_crew(crew.size(), [&crew](const radam::Parts& parts) {
        crew.for_each(parts.count(), [&parts](int index) { parts(index); });
    });

    // The shortest way, with threads that are new at each step. Where the system has none to give, std::async throws,
    // which ends the program: a step lets no exception out.
    const radam::Executor on_async(4, [](const radam::Parts& parts) {
        std::vector<std::future<void>> rest;
        for (int index = 1; index < parts.count(); ++index)
            rest.push_back(std::async(std::launch::async, [&parts, index] { parts(index); }));
        parts(0);
        for (std::future<void>& part : rest) part.wait();
    });

    // With -fopenmp; without it the loop runs on the calling thread, and is as right.
    const radam::Executor on_openmp(4, [](const radam::Parts& parts) {
#ifdef _OPENMP
#pragma omp parallel for schedule(static, 1)
#endif
        for (int index = 0; index < parts.count(); ++index) parts(index);
    });

    const std::vector<float> alone = train(radam::Executor());
    const bool same = train(on_crew) == alone && train(on_async) == alone && train(on_openmp) == alone;
    std::printf("crew, std::async and OpenMP give the bits of one thread: %s\n", same ? "yes" : "no");
    return same && alone[0] != 1.0f ? 0 : 1;
}
