// What a step does with tensors, threads and memory.
#pragma once

#include <atomic>
#include <mutex>
#include <set>
#include <thread>

#include "archives.hpp"
#include "watched.hpp"

extern std::atomic<long> allocations;  // counted_memory.cpp

namespace promises {

inline void gradients_are_only_read() {
    const std::vector<Tensor> mine = params();
    RAdam optimizer(mine, RAdamOptions(0.1).maximize(true).weight_decay(0.1));
    optimizer.set_max_grad_norm(0.01);
    set_grads(mine, 1);
    std::vector<Tensor> before;
    for (const Tensor& p : mine) before.push_back(p.grad().clone());
    optimizer.step();
    for (std::size_t i = 0; i < mine.size(); ++i) {
        EXPECT(same_bits(mine[i].grad(), before[i]) && mine[i].grad()._version() == 0);
        EXPECT(!mine[i].grad().requires_grad() && mine[i].requires_grad() && mine[i].is_leaf());
    }
    optimizer.zero_grad();
    EXPECT(!mine[0].grad().defined());
}

inline void autograd_notices_a_step() {
    const std::vector<Tensor> mine = params();
    RAdam optimizer(mine);
    set_grads(mine, 1);
    optimizer.step();
    const auto param = mine[0]._version(), moment = state_of(optimizer, mine[0]).exp_avg()._version();
    const Tensor loss = (mine[0] * mine[0]).sum();
    optimizer.step();
    EXPECT(mine[0]._version() == param + 1);
    EXPECT(state_of(optimizer, mine[0]).exp_avg()._version() == moment + 1);
    EXPECT(refuses([&] { loss.backward(); }, {"modified by an inplace operation"}));
}

inline void a_closure_computes_gradients_anew() {
    const Tensor p = at::ones({3}).requires_grad_();
    RAdam optimizer({p}, RAdamOptions(0.1));
    const at::NoGradGuard outside;  // the closure needs gradients all the same
    const Tensor loss = optimizer.step([&] {
        optimizer.zero_grad();
        Tensor made = (p * p).sum();
        made.backward();
        return made;
    });
    EXPECT(loss.item<float>() == 3.0f);
    EXPECT(p.detach()[0].item<float>() == 1.0f - 0.1f * 2.0f);
    EXPECT(!optimizer.step().defined());
}

inline void schedulers_of_libtorch_set_the_learning_rate() {
    const std::vector<Tensor> mine = params(), twins = params();
    RAdam optimizer(mine, RAdamOptions(0.5)), twin(twins, RAdamOptions(0.5));
    torch::optim::StepLR scheduler(optimizer, 2, 0.5);
    for (std::uint32_t t = 0; t < 6; ++t) {
        take_steps(optimizer, t, t + 1);
        scheduler.step();
        options_of(twin, 0).lr(t < 3 ? 0.5 : t < 5 ? 0.25 : 0.125 /* as LibTorch counts */);
        take_steps(twin, t, t + 1);
    }
    EXPECT(options_of(optimizer, 0).get_lr() == 0.125);
    for (std::size_t i = 0; i < mine.size(); ++i) EXPECT(same_bits(mine[i], twins[i]));
    torch::optim::ReduceLROnPlateauScheduler plateau(optimizer, torch::optim::ReduceLROnPlateauScheduler::min, 0.5f, 0);
    for (int i = 0; i < 2; ++i) plateau.step(1.0f);
    EXPECT(options_of(optimizer, 0).get_lr() == 0.0625);
}

inline void any_number_of_threads_gives_the_same_bits() {
    Tensor first;
    for (const int threads : {1, 2, 3}) {
        at::set_num_threads(threads);
        const Tensor p = numbers({300, 1001}, 1);
        RAdam optimizer({p}, RAdamOptions(0.01));
        optimizer.set_max_grad_norm(0.5);
        take_steps(optimizer, 0, 3);
        if (threads == 1) first = p;
        EXPECT(same_bits(first, p));
    }
    at::set_num_threads(2);
}

inline void the_default_threads_are_libtorchs() {
    at::set_num_threads(2);
    const radam::Executor executor = radam::torch::libtorch_threads();
    std::mutex mutex;
    std::multiset<int> parts;
    std::set<std::thread::id> threads;
    bool parallel = true;
    auto note = [&](int index) {
        const std::lock_guard<std::mutex> lock(mutex);
        parts.insert(index);
        threads.insert(std::this_thread::get_id());
        parallel = parallel && at::in_parallel_region();
    };
    struct Context {
        decltype(note)* f;
    } context{&note};
    const auto part = [](void* given, int index, int) noexcept { (*static_cast<Context*>(given)->f)(index); };
    EXPECT(executor.threads() == 2);
    executor(radam::Parts(2, part, &context));
    EXPECT(parts == std::multiset<int>({0, 1}) && threads.size() == 2 && parallel);
}

inline void an_executor_of_ones_own_runs_the_parts() {
    const std::vector<Tensor> mine{numbers({100000}, 1)}, twins{numbers({100000}, 1)};
    RAdam optimizer(mine), twin(twins);
    int calls = 0;
    optimizer.set_executor(radam::Executor(5, [&](const radam::Parts& parts) {
        ++calls;
        for (int index = parts.count(); index-- > 0;) parts(index);
    }));
    take_steps(optimizer, 0, 3);
    take_steps(twin, 0, 3);
    EXPECT(calls == 3 && same_bits(mine[0], twins[0]));
}

inline void an_optimizer_serves_one_call_at_a_time() {
    const std::vector<Tensor> mine{numbers({100000}, 1)}, twins{numbers({100000}, 1)};
    RAdam optimizer(mine), twin(twins);
    const std::string archive = saved(optimizer);
    const std::vector<std::function<void()>> calls{
        [&] { optimizer.step(); },
        [&] { saved(optimizer); },
        [&] { load(optimizer, archive); },
        [&] { optimizer.add_param_group({{numbers({3}, 2)}}); },
        [&] { optimizer.set_precision({}); },
        [&] { optimizer.set_max_grad_norm(1.0); },
        [&] { optimizer.set_max_tensor_grad_norm(1.0); },
        [&] { optimizer.set_max_grad_value(1.0); },
        [&] { optimizer.set_no_clipping(); },
        [&] { optimizer.skip_nonfinite(true); },
        [&] { optimizer.set_grad_scale(0.5); },
        [&] { optimizer.set_executor({}); },
    };
    std::size_t refused = 0;
    optimizer.set_executor(radam::Executor(2, [&](const radam::Parts& parts) {
        for (const auto& call : calls) refused += refuses(call, {"another call of this optimizer is under way"});
        for (int index = 0; index < parts.count(); ++index) parts(index);
    }));
    take_steps(optimizer, 0, 3);
    take_steps(twin, 0, 3);
    EXPECT(refused == 3 * calls.size() && same_bits(mine[0], twins[0]));
}

inline void gradients_of_a_scaled_loss_are_unscaled() {
    const std::vector<Tensor> mine = params(), twins = params();
    RAdam optimizer(mine), twin(twins);
    optimizer.set_grad_scale(1.0 / 1024);
    for (std::uint32_t t = 0; t < 6; ++t) {
        set_grads(mine, t);
        for (const Tensor& p : mine) p.mutable_grad().mul_(1024);
        optimizer.step();
        take_steps(twin, t, t + 1);
    }
    for (std::size_t i = 0; i < mine.size(); ++i) EXPECT(same_bits(mine[i], twins[i]));
}

inline void lazy_gradients_step_as_what_they_stand_for() {
    const auto step = [](const std::function<Tensor(const Tensor&)>& grad) {
        const Tensor p = numbers({7}, 1, at::kComplexFloat);
        RAdam optimizer({p}, RAdamOptions(0.1));
        p.mutable_grad() = grad(numbers({7}, 5, at::kComplexFloat));
        optimizer.step();
        return p;
    };
    EXPECT(same_bits(step([](const Tensor& g) { return g.conj(); }),
                     step([](const Tensor& g) { return g.conj().resolve_conj(); })));
    EXPECT(same_bits(step([](const Tensor& g) { return at::_efficientzerotensor(g.sizes(), g.options()); }),
                     step([](const Tensor& g) { return at::zeros_like(g); })));
}

inline void steps_work_in_inference_mode() {
    const c10::InferenceMode mode;
    const Tensor p = numbers({7}, 1);
    RAdam optimizer({p}, RAdamOptions(0.1));
    take_steps(optimizer, 0, 2);
    EXPECT(p.is_inference() && !same_bits(p, numbers({7}, 1)));
    EXPECT(!state_of(optimizer, p).exp_avg().is_inference());
}

inline void an_optimizer_can_be_moved() {
    const std::vector<Tensor> mine = params(), twins = params();
    RAdam first(mine), twin(twins);
    take_steps(first, 0, 3);
    RAdam second = std::move(first);
    take_steps(second, 3, 6);
    take_steps(twin, 0, 6);
    for (std::size_t i = 0; i < mine.size(); ++i) EXPECT(same_bits(mine[i], twins[i]));
}

inline void a_step_allocates_nothing_after_the_first() {
    at::set_num_threads(2);
    std::vector<Tensor> mine;
    for (std::uint32_t i = 0; i < 50; ++i) mine.push_back(numbers({2000}, i));
    mine.push_back(numbers({4, 3, 5, 5}, 60).contiguous(at::MemoryFormat::ChannelsLast));
    RAdam optimizer(mine);
    set_grads(mine, 0);
    mine.back().mutable_grad() = mine.back().grad().contiguous(at::MemoryFormat::ChannelsLast);
    optimizer.step();
    const long before = allocations.load();
    for (int i = 0; i < 10; ++i) optimizer.step();
    EXPECT(allocations.load() == before);
}

}  // namespace promises
