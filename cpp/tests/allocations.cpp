// After its first step an optimizer asks for no memory: with any executor, kept in any number of bits, clipped or not.
#include <radam/dispatch.hpp>
#include <radam/radam.hpp>
#include <radam/thread_pool.hpp>

#include <atomic>
#include <limits>
#include <vector>

#include "expect.hpp"

extern std::atomic<long> allocations;  // counted_memory.cpp

namespace {

using namespace radam;

constexpr std::int64_t large = 70001, small = 4999;  // enough for threads to have something to do

// Parameters of every dtype, with gradients.
struct Memory {
    std::vector<float> p, g;
    std::vector<double> wide_p, wide_g;
    std::vector<bf16> brain_p, brain_g;
    std::vector<fp16> half_p, half_g;

    Memory()
        : p(large, 1.0f),
          g(large, 0.5f),
          wide_p(small, 1.0),
          wide_g(small, 0.5),
          brain_p(small, to_bf16(1.0f)),
          brain_g(small, to_bf16(0.5f)),
          half_p(small, to_fp16(1.0f)),
          half_g(small, to_fp16(0.5f)) {}
};

enum class Clips { nothing, norm, tensors, values };

template <class Optimizer>
void asks_for_nothing(const Executor& executor, const Precision& precision, Clips clips) {
    Memory memory;
    Options options;
    const long before = allocations;
    Optimizer optimizer(options, *find_convention("author"), executor);
    optimizer.set_precision(precision);
    optimizer.add_param(memory.p.data(), memory.g.data(), large);
    optimizer.add_param(memory.wide_p.data(), memory.wide_g.data(), small);
    options.amsgrad = true;
    options.weight_decay = 0.1;
    optimizer.add_group(options);
    optimizer.add_param(memory.brain_p.data(), memory.brain_g.data(), small);
    optimizer.add_param(memory.half_p.data(), memory.half_g.data(), small);
    EXPECT(allocations > before);  // so that it counts

    if (clips == Clips::norm) optimizer.set_max_grad_norm(1.0);
    if (clips == Clips::tensors) optimizer.set_max_tensor_grad_norm(1.0);
    if (clips == Clips::values) optimizer.set_max_grad_value(0.1);
    optimizer.skip_nonfinite(true);
    optimizer.step();
    for (int t = 2; t <= 9; ++t) {  // rectified from the sixth on
        optimizer.set_lr(1e-3 / t);
        optimizer.set_grad(0, t == 4 ? nullptr : memory.g.data());  // so that counts of steps differ
        memory.g[7] = t == 7 ? std::numeric_limits<float>::infinity() : 0.5f;
        const long allocations_before = allocations;
        EXPECT(optimizer.step() == (t != 7));
        EXPECT(allocations == allocations_before);
    }
}

}  // namespace

int main() {
    ThreadPool pool(3);
    const Executor backwards(4, [](const Parts& parts) {
        for (int index = parts.count(); index-- > 0;) parts(index);
    });
    Precision eight_bit, sixteen_bit, random;
    eight_bit.state_dtype = StateDType::eight_bit;
    eight_bit.master_weights = true;
    sixteen_bit.state_dtype = StateDType::bfloat16;
    random.stochastic_rounding = true;
    set_num_threads(3);
    for (const Executor& executor : {Executor(), pool.executor(), backwards, dispatched_executor()})
        for (const Precision& precision : {Precision{}, eight_bit, sixteen_bit, random})
            for (const Clips clips : {Clips::nothing, Clips::norm, Clips::tensors, Clips::values}) {
                asks_for_nothing<dispatched::Optimizer>(executor, precision, clips);
                asks_for_nothing<BasicOptimizer<HeaderOnly<isa::portable>>>(executor, precision, clips);
            }
    return failures == 0 ? 0 : 1;
}
