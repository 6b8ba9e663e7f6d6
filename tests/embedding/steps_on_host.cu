// A CUDA program that steps its host memory with radam's headers. RAW_BUFFERS: without the Optimizer.
#include <radam/radam.hpp>

#include <cstdint>

void step_by_slot(float* p, const float* g, float* m, float* v, std::int64_t n, std::int64_t t);
void step_by_slot(float* p, const float* g, float* m, float* v, std::int64_t n, std::int64_t t) {
    const radam::ScheduledStep step = radam::schedule(radam::Hyperparameters{}, t);
    radam::Slot slot;
    slot.param = p;
    slot.grad = g;
    slot.exp_avg = m;
    slot.exp_avg_sq = v;
    slot.size = n;
    slot.step = &step;
    radam::step(slot);
}

#if !defined(RAW_BUFFERS)
void step_by_optimizer(float* p, const float* g, std::int64_t n);
void step_by_optimizer(float* p, const float* g, std::int64_t n) {
    radam::Optimizer optimizer;
    optimizer.add_param(p, g, n);
    optimizer.set_max_grad_norm(1.0);
    optimizer.step();
}
#endif

__global__ void scale(float* x, float by) { x[threadIdx.x] *= by; }
