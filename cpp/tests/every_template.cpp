// Every template of the headers with every type, for compilers to look at: nobody runs this.
#include <radam/codec.hpp>
#include <radam/radam.hpp>
#if defined(__cpp_exceptions)
#include <radam/dispatch.hpp>
#include <radam/thread_pool.hpp>
#endif

namespace {

using namespace radam;

template <class Loops>
void use_loops(Slot& slot) {
    const Executor alone;
    step(alone, Loops::of_any(), &slot, 1);
    step(alone, Loops::staged(), &slot, 1);
    visit_pair(slot.param_dtype, slot.grad_dtype, [&](auto p, auto g) noexcept {
        step(alone, Loops::template of_pair<typename decltype(p)::type, typename decltype(g)::type>(), &slot, 1);
    });
}

#if defined(__cpp_exceptions)
template <class Loops>
void use_optimizer(Slot& slot) {
    ThreadPool pool(2);
    BasicOptimizer<Loops> optimizer({}, conventions[0], pool.executor());
    optimizer.set_precision({});
    optimizer.add_param(slot.param, slot.param_dtype, slot.grad, slot.grad_dtype, slot.size);
    visit_pair(slot.param_dtype, slot.grad_dtype, [&](auto p, auto g) {
        using Param = typename decltype(p)::type;
        using Grad = typename decltype(g)::type;
        optimizer.add_param(static_cast<Param*>(slot.param), static_cast<const Grad*>(slot.grad), slot.size);
    });
    optimizer.set_max_grad_value(1.0);
    optimizer.step();
}
#endif

}  // namespace

void use_everything(Slot& slot);
void use_everything(Slot& slot) {
    radam::step(slot);
    use_loops<HeaderOnly<>>(slot);
    use_loops<HeaderOnly<isa::portable>>(slot);
#if defined(__cpp_exceptions)
    use_loops<Dispatched>(slot);
    use_optimizer<HeaderOnly<>>(slot);
    use_optimizer<Dispatched>(slot);
#endif
}
