// The kernels' bodies, run on the host over their own tables, give the bits of the CPU sweep: every dtype pair and
// form, any alignment and size, scheduled here or there, and a step that is skipped changes nothing.
#include <radam/cuda.hpp>
#include <radam/layout.hpp>
#include <radam/sweep.hpp>

#include <limits>
#include <string>
#include <vector>

#include "../src/cuda_sweep.hpp"
#include "streams.hpp"

namespace {

using namespace radam;

struct Param {
    DType p_dtype, g_dtype;
    std::int64_t size;
    bool amsgrad;
    Stream p, g, m, v, v_max;

    Param(DType param, DType grad, std::int64_t n, bool with_max, const int (&shifts)[5])
        : p_dtype(param),
          g_dtype(grad),
          size(n),
          amsgrad(with_max),
          p(param, n, shifts[0], false),
          g(grad, n, shifts[1], false),
          m(moment_dtype(param), n, shifts[2], false),
          v(moment_dtype(param), n, shifts[3], true),
          v_max(moment_dtype(param), n, shifts[4], true) {}

    Slot slot(const ScheduledStep* step) {
        Slot s;
        s.param = p.data();
        s.grad = g.data();
        s.exp_avg = m.data();
        s.exp_avg_sq = v.data();
        s.max_exp_avg_sq = amsgrad ? v_max.data() : nullptr;
        s.size = size;
        s.step = step;
        s.param_dtype = p_dtype;
        s.grad_dtype = g_dtype;
        return s;
    }
    bool operator==(const Param& o) const { return p == o.p && g == o.g && m == o.m && v == o.v && v_max == o.v_max; }
};

void sweep_all(std::vector<Param>& params, const ScheduledStep& step) {
    for (Param& param : params) {
        const Slot slot = param.slot(&step);
        sweep<isa::native>({&slot, 0, slot.size});
    }
}

std::vector<cuda::DeviceSlot> on_device(std::vector<Param>& params, const ScheduledStep* step,
                                        const cuda::Schedule* schedule, std::int64_t taken, cuda::Number count) {
    std::vector<cuda::DeviceSlot> slots;
    for (Param& param : params) slots.push_back({param.slot(step), schedule, taken, count});
    return slots;
}

constexpr DType dtypes[] = {DType::fp64, DType::fp32, DType::bf16, DType::fp16};

void every_pair_and_form_has_the_bits_of_the_cpu() {
    const int shifts[][5] = {{0, 0, 0, 0, 0}, {1, 1, 1, 1, 1}, {3, 7, 3, 3, 3}, {1, 2, 3, 0, 1}};
    for (const DType p : dtypes)
        for (const DType g : dtypes) {
            if (!is_pair(p, g)) continue;
            for (int flags = 0; flags < 16; ++flags)
                for (const std::int64_t t : {std::int64_t{1}, std::int64_t{7}, std::int64_t{1} << 40}) {
                    Hyperparameters h;
                    h.weight_decay = flags & 1 ? 0.01 : 0.0;
                    h.decoupled_weight_decay = (flags & 1) && t == 7;
                    h.amsgrad = flags & 2;
                    h.nesterov = flags & 4;
                    h.maximize = flags & 8;
                    h.warmup = flags & 8 ? Warmup::moments_only : Warmup::momentum;
                    h.eps_on = flags & 4 ? EpsOn::sqrt_v_hat : EpsOn::sqrt_v;
                    const ScheduledStep step = schedule(h, t);
                    std::vector<Param> here;
                    int i = 0;
                    for (const std::int64_t size : {0, 1, 15, 4096, 4099, 0, 9001, 0})
                        here.emplace_back(p, g, size, h.amsgrad, shifts[i++ % 4]);
                    std::vector<Param> there(here), there_too(here);
                    sweep_all(here, step);
                    const std::string name = std::string(name_of(p)) + ", " + name_of(g) + ", flags " +
                                             std::to_string(flags) + ", step " + std::to_string(t);
                    run(work_of(on_device(there, &step, nullptr, 0, {})), name);
                    expect(here == there, name + ": scheduled on the host");
                    const cuda::Schedule in_memory{h, {}, {}, {}};
                    run(work_of(on_device(there_too, nullptr, &in_memory, t - 1, {})), name);
                    expect(here == there_too, name + ": scheduled on the device");
                }
        }
}

constexpr int aligned[5] = {};

std::vector<Param> some_params() {
    std::vector<Param> params;
    params.emplace_back(DType::fp32, DType::fp32, 5000, false, aligned);
    params.emplace_back(DType::bf16, DType::fp16, 0, false, aligned);
    params.emplace_back(DType::bf16, DType::bf16, 77, false, aligned);
    params.emplace_back(DType::fp64, DType::fp64, 300, false, aligned);
    return params;
}

void a_large_step_in_larger_tiles_has_the_bits_of_the_cpu() {
    std::vector<Param> here;
    here.emplace_back(DType::fp32, DType::bf16, 700001, false, aligned);
    here.emplace_back(DType::fp32, DType::fp32, 3, false, aligned);
    std::vector<Param> there(here);
    const ScheduledStep step = schedule({}, 9);
    sweep_all(here, step);
    run(work_of(on_device(there, &step, nullptr, 0, {})), "a large step");
    expect(here == there, "a large step");
}

void counts_rates_and_betas_in_memory_give_the_bits_of_numbers() {
    Hyperparameters h;
    double beta1 = h.beta1, beta2 = h.beta2;
    float lr = 0, scale = 0, first = 0;
    double second = 0;
    cuda::Schedule in_memory{h, {&lr, DType::fp32}, {&beta1, DType::fp64}, {&beta2, DType::fp64}};
    in_memory.hyperparameters.lr = in_memory.hyperparameters.beta1 = in_memory.hyperparameters.beta2 = 0.5;
    std::vector<Param> here = some_params(), there(here);
    std::vector<cuda::DeviceSlot> slots = on_device(there, nullptr, &in_memory, 0, {&first, DType::fp32});
    slots[0].count = slots[2].count = {&second, DType::fp64};
    cuda::Work work = work_of(slots);
    work.grad_scale = {&scale, DType::fp32};
    for (int t = 1; t <= 12; ++t) {
        lr = 0.01f / static_cast<float>(t);
        scale = t < 8 ? 3.0f : 1024.0f;
        h.lr = static_cast<double>(lr);
        h.grad_scale = 1.0 / static_cast<double>(scale);
        // Two parameters share each count, which advances once for each.
        for (std::size_t k = 0; k < here.size(); ++k) {
            const ScheduledStep step = schedule(h, 2 * t - 1);
            const Slot slot = here[k].slot(&step);
            sweep<isa::native>({&slot, 0, slot.size});
        }
        run(work, "numbers in memory");
        expect(here == there, "numbers in memory, step " + std::to_string(t));
        expect(first == static_cast<float>(2 * t) && second == 2.0 * t, "counts after step " + std::to_string(t));
    }
}

void a_skipped_step_changes_nothing_but_the_count_of_such() {
    const cuda::Schedule in_memory{{}, {}, {}, {}};
    float count = 4, found_inf = 1, skipped = 10;
    std::vector<Param> params = some_params();
    const std::vector<Param> before(params);
    const std::vector<cuda::DeviceSlot> slots = on_device(params, nullptr, &in_memory, 0, {&count, DType::fp32});
    cuda::Work work = work_of(slots);
    work.found_inf = {&found_inf, DType::fp32};
    work.skipped = {&skipped, DType::fp32};
    run(work, "found_inf");
    expect(params == before && count == 4 && skipped == 11, "found_inf leaves all as it was");

    found_inf = 0;
    work.skip_nonfinite = true;
    const double infinity = std::numeric_limits<double>::infinity();
    write_number(static_cast<char*>(params[2].g.data()) + 2 * 76, DType::bf16, -infinity);
    std::size_t broken = 0;
    cuda::Failure failure;
    expect(radam_cuda_library()->first_nonfinite(work, &broken, &failure) && broken == 2,
           "the broken gradient is found");
    const std::vector<Param> broken_before(params);
    run(work, "an inf");
    expect(params == broken_before && count == 4 && skipped == 12, "an inf leaves all as it was");

    write_number(static_cast<char*>(params[2].g.data()) + 2 * 76, DType::bf16, 1.0);
    expect(radam_cuda_library()->first_nonfinite(work, &broken, &failure) && broken == params.size(), "all are finite");
    run(work, "no inf");
    expect(!(params[0] == before[0]) && count == 8 && skipped == 12, "a finite step happens");
}

void a_huge_tensor_is_cut_without_overflow() {
    const std::int64_t size = (std::int64_t{1} << 45) + 5;
    const ScheduledStep step = schedule({}, 1);
    cuda::DeviceSlot slot;
    char* const base = reinterpret_cast<char*>(std::uintptr_t{1} << 20);
    slot.slot.param = slot.slot.exp_avg = slot.slot.exp_avg_sq = base;
    slot.slot.grad = base;
    slot.slot.size = size;
    slot.slot.step = &step;
    cuda::Work work;
    work.slots = &slot;
    work.size = 1;
    cuda::TableBuilder table;
    table.build(work, 528, false);
    const cuda::TableView view{&table.header()};
    const std::uint32_t last = view.header->tiles - 1;
    const cuda::Part part = cuda::part_of(view.entries()[view.entry_of(last)], last, view.header->tile_size);
    expect(static_cast<char*>(part.param) + 4 * part.size == base + 4 * size,
           "the last tile ends where the tensor does");
    const cuda::Part middle = cuda::part_of(view.entries()[0], last / 2, view.header->tile_size);
    expect(static_cast<char*>(middle.exp_avg) == base + 4 * (last / 2) * view.header->tile_size, "tiles are adjacent");
}

void strided_copies_go_there_and_back() {
    for (const std::int64_t itemsize : {2, 4, 8}) {
        std::vector<char> memory(4096), copy_of_it;
        for (char& byte : memory) byte = static_cast<char>(random_bits());
        copy_of_it = memory;
        std::vector<char> buffer(static_cast<std::size_t>(3 * 1 * 5 * itemsize));
        const std::int64_t shape[] = {3, 1, 5}, strides[] = {itemsize, 1, 7 * itemsize};
        cuda::Copy copy;
        copy.ndim = 3;
        copy.shape = shape;
        copy.strides = strides;
        copy.itemsize = itemsize;
        copy.array = memory.data() + 16;
        copy.buffer = buffer.data();
        cuda::Failure failure;
        expect(radam_cuda_library()->gather(copy, &failure), "gather");
        std::vector<char> expected(buffer.size());
        gather({3, shape, strides, itemsize}, memory.data() + 16, {0, 1, 2}, expected.data());
        expect(buffer == expected, "gathered as on the CPU");
        for (char& byte : buffer) byte = static_cast<char>(byte + 1);
        expect(radam_cuda_library()->scatter(copy, &failure), "scatter");
        scatter({3, shape, strides, itemsize}, copy_of_it.data() + 16, {0, 1, 2}, buffer.data());
        expect(memory == copy_of_it, "scattered as on the CPU");
    }
}

}  // namespace

int main() {
    every_pair_and_form_has_the_bits_of_the_cpu();
    a_large_step_in_larger_tiles_has_the_bits_of_the_cpu();
    counts_rates_and_betas_in_memory_give_the_bits_of_numbers();
    a_skipped_step_changes_nothing_but_the_count_of_such();
    a_huge_tensor_is_cut_without_overflow();
    strided_copies_go_there_and_back();
    return failures == 0 ? 0 : 1;
}
