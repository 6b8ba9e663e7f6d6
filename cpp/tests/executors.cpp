// Executors: every part of a job runs once, whoever runs it; the pool outlives jobs, callers and forks.
#include <radam/thread_pool.hpp>

#include <array>
#include <atomic>

#if !defined(_WIN32)
#include <sys/wait.h>
#endif

#include "expect.hpp"

namespace {

struct Job {
    std::array<std::atomic<int>, 64> runs{};

    static void part(void* self, int index, int) noexcept {
        ++static_cast<Job*>(self)->runs[static_cast<std::size_t>(index)];
    }
    radam::Parts parts(int count) { return radam::Parts(count, part, this); }
    bool ran_once(int count) const {
        for (int i = 0; i < 64; ++i)
            if (runs[static_cast<std::size_t>(i)] != (i < count ? 1 : 0)) return false;
        return true;
    }
};

bool runs_once(const radam::Executor& executor, int count) {
    Job job;
    executor(job.parts(count));
    return job.ran_once(count);
}

void every_part_runs_once() {
    radam::ThreadPool pool(4);
    EXPECT(pool.executor().threads() == 4 && radam::Executor().threads() == 1);
    for (const int count : {0, 1, 2, 3, 4, 9, 64, 2}) {
        EXPECT(runs_once(pool.executor(), count));
        EXPECT(runs_once(radam::Executor(), count));
    }
    EXPECT(radam::ThreadPool(0).threads() == 1);
    EXPECT(radam::Executor(1 << 30, [](const radam::Parts&) {}).threads() == radam::Executor::most_threads);
    EXPECT(radam::available_cores() >= 1);
}

void a_pool_runs_many_jobs_and_ends() {
    for (int round = 0; round < 20; ++round) {
        radam::ThreadPool pool(3);
        for (int job = 0; job < 50; ++job) EXPECT(runs_once(pool.executor(), 3));
    }
}

void callers_at_the_same_time_do_not_wait_for_each_other_for_ever() {
    radam::ThreadPool pool(3);
    std::vector<std::thread> callers;
    std::atomic<int> wrong{0};
    for (int i = 0; i < 4; ++i)
        callers.emplace_back([&] {
            for (int job = 0; job < 200; ++job) wrong += runs_once(pool.executor(), 3) ? 0 : 1;
        });
    for (std::thread& caller : callers) caller.join();
    EXPECT(wrong == 0);
}

void a_callable_gets_the_parts() {
    int calls = 0;
    const radam::Executor executor(7, [&calls](const radam::Parts& parts) {
        ++calls;
        for (int i = 0; i < parts.count(); ++i) parts(i);
    });
    const radam::Executor copy = executor;
    EXPECT(copy.threads() == 7 && runs_once(copy, 7) && calls == 1);
    EXPECT(runs_once(copy, 1) && calls == 1);  // one part needs nobody else
}

void a_forked_child_goes_on_alone() {
#if !defined(_WIN32)
    auto pool = std::make_unique<radam::ThreadPool>(3);
    EXPECT(runs_once(pool->executor(), 3));
    const pid_t child = fork();
    if (child == 0) {
        const bool well = runs_once(pool->executor(), 3);
        pool.reset();  // waits for no thread that is not there
        _exit(well ? 0 : 1);
    }
    int status = -1;
    EXPECT(waitpid(child, &status, 0) == child && status == 0);
    EXPECT(runs_once(pool->executor(), 3));
#endif
}

}  // namespace

int main() {
    every_part_runs_once();
    a_pool_runs_many_jobs_and_ends();
    callers_at_the_same_time_do_not_wait_for_each_other_for_ever();
    a_callable_gets_the_parts();
    a_forked_child_goes_on_alone();
    return failures == 0 ? 0 : 1;
}
