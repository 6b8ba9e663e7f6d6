// The kernels' bodies for what is stored in fewer bits, run on the host, give the bits of the CPU sweep: every way to
// store moments and weights, every gradient and form, any alignment and size. And norms are added up, and gradients
// clipped, as the CPU does.
#include <radam/codec.hpp>
#include <radam/cuda.hpp>
#include <radam/sweep.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "streams.hpp"

namespace {

using namespace radam;

constexpr double infinity = std::numeric_limits<double>::infinity();

// How a parameter is stored.
struct Kind {
    DType p, g;
    Moments moments;
    Weights weights;
    double limit;

    std::string name() const {
        static const char* const of_moments[] = {"full", "bf16", "coded"};
        static const char* const of_weights[] = {"plain", "stochastic", "split", "master"};
        return std::string(name_of(p)) + ", " + name_of(g) + ", moments " + of_moments[static_cast<int>(moments)] +
               ", weights " + of_weights[static_cast<int>(weights)] + (limit < infinity ? ", cut" : "");
    }
};

// Where the elements of parameters are in larger ones.
constexpr std::int64_t dims[] = {64, 33}, dim_strides[] = {100, 3};
constexpr Positions positions[] = {{0, 0, nullptr, nullptr},
                                   {192, 0, nullptr, nullptr},
                                   {(std::int64_t{1} << 40) + 37, 0, nullptr, nullptr},
                                   {5, 2, dims, dim_strides}};

struct Param {
    Kind kind;
    std::int64_t size;
    std::uint32_t number;
    Stream p, g, m, v, v_max, master, m_scale, v_scale, v_max_scale;

    Param(const Kind& k, std::int64_t n, int shift, std::uint32_t ordinal)
        : kind(k),
          size(n),
          number(ordinal),
          p(k.p, n, shift, false),
          g(k.g, n, shift, false),
          m(moment_dtype(k.p, k.moments, false), n, shift, false),
          v(moment_dtype(k.p, k.moments, true), n, shift, true),
          v_max(moment_dtype(k.p, k.moments, true), n, shift, true),
          master(k.weights == Weights::split ? DType::int16 : DType::fp32, n, shift, false),
          m_scale(DType::fp32, blocks_of(n), shift, true),
          v_scale(DType::fp32, blocks_of(n), shift, true),
          v_max_scale(DType::fp32, blocks_of(n), shift, true) {
        if (k.weights != Weights::master) return;
        for (std::int64_t i = 0; i < n; ++i) {  // most parameters are what their master rounds to
            float weight;
            std::memcpy(&weight, master.data() + 4 * i, sizeof weight);
            const fp16 rounded = to_fp16(weight);
            if (i % 16 != 0) std::memcpy(p.data() + 2 * i, &rounded, sizeof rounded);
        }
    }

    Slot slot(const ScheduledStep* step, bool amsgrad) {
        const auto scale = [](Stream& stream) { return reinterpret_cast<float*>(stream.data()); };
        const bool coded = kind.moments == Moments::coded;
        Slot s;
        s.param = p.data();
        s.grad = g.data();
        s.exp_avg = m.data();
        s.exp_avg_sq = v.data();
        s.max_exp_avg_sq = amsgrad ? v_max.data() : nullptr;
        s.size = size;
        s.step = step;
        s.param_dtype = kind.p;
        s.grad_dtype = kind.g;
        s.moments = kind.moments;
        s.weights = kind.weights;
        s.master = size_of(kind.weights) > 0 ? master.data() : nullptr;
        s.exp_avg_scale = coded ? scale(m_scale) : nullptr;
        s.exp_avg_sq_scale = coded ? scale(v_scale) : nullptr;
        s.max_exp_avg_sq_scale = coded && amsgrad ? scale(v_max_scale) : nullptr;
        s.grad_limit = kind.limit;
        s.seed = 0x123456789abcdefu;
        s.ordinal = number;
        s.positions = positions[number % 4];
        return s;
    }
    bool operator==(const Param& o) const {
        return p == o.p && g == o.g && m == o.m && v == o.v && v_max == o.v_max && master == o.master &&
               m_scale == o.m_scale && v_scale == o.v_scale && v_max_scale == o.v_max_scale;
    }
};

std::vector<Kind> kinds() {
    std::vector<Kind> all;
    const struct {
        DType p;
        Weights weights;
    } pairs[] = {{DType::fp32, Weights::plain}, {DType::bf16, Weights::plain}, {DType::bf16, Weights::stochastic},
                 {DType::bf16, Weights::split}, {DType::fp16, Weights::plain}, {DType::fp16, Weights::stochastic},
                 {DType::fp16, Weights::master}};
    for (const auto& [p, weights] : pairs)
        for (const Moments moments : {Moments::full, Moments::bf16, Moments::coded})
            for (const DType g : {DType::fp32, DType::bf16, DType::fp16})
                for (const double limit : {infinity, 0.3}) all.push_back({p, g, moments, weights, limit});
    all.push_back({DType::fp64, DType::fp64, Moments::full, Weights::plain, 0.3});
    return all;
}

Hyperparameters hyperparameters(int flags) {
    Hyperparameters h;
    h.weight_decay = flags & 1 ? 0.01 : 0.0;
    h.amsgrad = flags & 2;
    h.nesterov = flags & 4;
    h.maximize = flags & 8;
    h.warmup = flags & 8 ? Warmup::moments_only : Warmup::momentum;
    h.grad_scale = flags & 4 ? 0.25 : 1.0;
    return h;
}

void sweep_all(std::vector<Param>& params, const ScheduledStep& step) {
    for (Param& param : params) {
        const Slot slot = param.slot(&step, step.amsgrad);
        sweep<isa::native>({&slot, 0, slot.size});
    }
}

std::vector<cuda::DeviceSlot> on_device(std::vector<Param>& params, const ScheduledStep* step,
                                        const cuda::Schedule* schedule, std::int64_t taken, bool amsgrad) {
    std::vector<cuda::DeviceSlot> slots;
    for (Param& param : params) slots.push_back({param.slot(step, amsgrad), schedule, taken, {}});
    return slots;
}

void compare(std::vector<Param>& here, int flags, std::int64_t t, const std::string& name) {
    const Hyperparameters h = hyperparameters(flags);
    const ScheduledStep step = schedule(h, t);
    std::vector<Param> there(here), there_too(here);
    sweep_all(here, step);
    run(work_of(on_device(there, &step, nullptr, 0, h.amsgrad)), name);
    const cuda::Schedule in_memory{h, {}, {}, {}};
    run(work_of(on_device(there_too, nullptr, &in_memory, t - 1, h.amsgrad)), name);
    for (std::size_t i = 0; i < here.size(); ++i) {
        const std::string which =
            name + here[i].kind.name() + ", flags " + std::to_string(flags) + ", " + std::to_string(here[i].size);
        expect(here[i] == there[i], which + ": scheduled on the host");
        expect(here[i] == there_too[i], which + ": scheduled on the device");
    }
}

void every_kind_and_form_has_the_bits_of_the_cpu() {
    for (const Kind& kind : kinds())
        for (int flags = 0; flags < 16; ++flags)
            for (const std::int64_t t : {std::int64_t{1}, (std::int64_t{1} << 33) + 7}) {
                std::vector<Param> params;
                std::uint32_t number = 0;
                for (const std::int64_t size : {0, 1, 127, 128, 129, 700})
                    params.emplace_back(kind, size, number % 2 == 0 ? 0 : static_cast<int>(number), number), ++number;
                compare(params, flags, t, "");
            }
}

void every_size_and_alignment_has_the_bits_of_the_cpu() {
    for (const Kind& kind : kinds()) {
        std::vector<Param> params;
        std::uint32_t number = 0;
        for (const std::int64_t size : {4095, 4097, 9000}) {
            params.emplace_back(kind, size, static_cast<int>(number % 3), number);
            ++number;
        }
        compare(params, 3, 9, "");
    }
}

void all_kinds_step_together_with_plain_parameters() {
    std::vector<Param> params;
    std::uint32_t number = 0;
    for (const Kind& kind : kinds())
        for (const double limit : {kind.limit, infinity}) {
            Kind one = kind;
            one.limit = limit;
            params.emplace_back(one, 1000 + number, 0, number);
            ++number;
        }
    compare(params, 2, 12, "together: ");
}

void a_large_step_in_larger_tiles_has_the_bits_of_the_cpu() {
    std::vector<Param> params;
    params.emplace_back(Kind{DType::bf16, DType::bf16, Moments::coded, Weights::stochastic, infinity}, 700001, 0, 1);
    params.emplace_back(Kind{DType::bf16, DType::fp32, Moments::coded, Weights::split, infinity}, 70000, 1, 2);
    compare(params, 0, 12, "large: ");
}

// A gradient that is not finite loses its own element, and a block of zeros stays one.
void what_is_not_finite_and_zero_has_the_bits_of_the_cpu() {
    for (const Kind& kind : kinds()) {
        std::vector<Param> params;
        params.emplace_back(kind, 3000, 0, 0);
        const double special[] = {infinity, -infinity, 3e38, -3e38, 1e-38, 0.0, -0.0, 1e30};
        for (int i = 0; i < 8; ++i)
            write_number(params[0].g.data() + (5 + 130 * i) * size_of(kind.g), kind.g, special[i]);
        for (Stream* const stream : {&params[0].m, &params[0].v, &params[0].v_max, &params[0].g}) {
            const int itemsize = size_of(stream == &params[0].g ? kind.g : moment_dtype(kind.p, kind.moments, false));
            std::memset(stream->data() + 2560 * itemsize, 0, static_cast<std::size_t>(128 * itemsize));
        }
        compare(params, 2, 12, "special: ");
    }
}

// ---- norms

std::vector<Param> some_params() {
    std::vector<Param> params;
    const Kind some[] = {{DType::fp32, DType::fp32, Moments::full, Weights::plain, infinity},
                         {DType::bf16, DType::bf16, Moments::coded, Weights::split, infinity},
                         {DType::fp32, DType::fp16, Moments::full, Weights::plain, infinity},
                         {DType::fp64, DType::fp64, Moments::full, Weights::plain, infinity}};
    std::uint32_t number = 0;
    for (const std::int64_t size : {70000, 0, 4096, 4097, 63, 1, 40000, 129}) {
        params.emplace_back(some[number % 4], size, static_cast<int>(number / 4), number);
        ++number;
    }
    return params;
}

std::vector<double> sums_here(std::vector<Param>& params) {
    std::vector<double> sums;
    for (Param& param : params) {
        const Slot slot = param.slot(nullptr, false);
        std::vector<double> chunks(static_cast<std::size_t>(norm_chunks(param.size)));
        sweep_squares<isa::native>({&slot, 0, slot.size}, chunks.data());
        sums.push_back(add_pairs(chunks.data(), static_cast<std::int64_t>(chunks.size())));
    }
    return sums;
}

void sums_of_squares_are_those_of_the_cpu() {
    std::vector<Param> params = some_params();
    // Enough for tiles of several chunks a warp.
    params.emplace_back(Kind{DType::bf16, DType::bf16, Moments::full, Weights::plain, infinity}, 6000001, 0, 9);
    const ScheduledStep step = schedule({}, 1);
    const std::vector<cuda::DeviceSlot> slots = on_device(params, &step, nullptr, 0, false);
    std::vector<double> there(params.size());
    cuda::Failure failure;
    expect(radam_cuda_library()->sums_of_squares(work_of(slots), there.data(), &failure), "sums of squares");
    const std::vector<double> here = sums_here(params);
    for (std::size_t i = 0; i < params.size(); ++i)
        expect(here[i] == there[i] && (here[i] > 0.0) == (params[i].size > 0), "the sum of slot " + std::to_string(i));
}

double norm_of(const std::vector<double>& sums, double scale) {
    std::vector<double> scaled;
    for (const double sum : sums) scaled.push_back(sum * (scale * scale));
    return std::sqrt(add_pairs(scaled.data(), static_cast<std::int64_t>(scaled.size())));
}

void clipping_has_the_bits_of_the_cpu() {
    float amp = 8.0f;
    for (const cuda::Clip clip : {cuda::Clip::all, cuda::Clip::each})
        for (const double most : {0.0, 0.5, 1e9})
            for (const bool device_schedules : {false, true}) {
                std::vector<Param> here = some_params(), there(here);
                Hyperparameters h;
                h.grad_scale = 0.5;
                h.maximize = true;
                const cuda::Schedule in_memory{h, {}, {}, {}};
                const ScheduledStep whole = schedule(h, 9);
                const std::vector<cuda::DeviceSlot> slots = device_schedules
                                                                ? on_device(there, nullptr, &in_memory, 8, false)
                                                                : on_device(there, &whole, nullptr, 0, false);
                double norm = -1.0;
                cuda::Work work = work_of(slots);
                work.clip = clip;
                work.most = most;
                work.norm = {&norm, DType::fp64};
                if (device_schedules) work.grad_scale = {&amp, DType::fp32};
                run(work, "clipping");

                if (device_schedules) h.grad_scale = h.grad_scale / static_cast<double>(amp);
                const std::vector<double> sums = sums_here(here);
                const double all = norm_of(sums, h.grad_scale);
                for (std::size_t i = 0; i < here.size(); ++i) {
                    ScheduledStep step = schedule(h, 9);
                    const double own = std::sqrt(sums[i] * (h.grad_scale * h.grad_scale));
                    scale_gradients(step, clip_factor(clip == cuda::Clip::all ? all : own, most));
                    const Slot slot = here[i].slot(&step, false);
                    sweep<isa::native>({&slot, 0, slot.size});
                    expect(here[i] == there[i], "clipped to " + std::to_string(most) + ": slot " + std::to_string(i));
                }
                expect(norm == all && norm > 0.0, "the norm, clipped to " + std::to_string(most));
            }
}

void a_skipped_step_says_the_norm_and_changes_nothing_else() {
    for (const std::size_t broken : {std::size_t{0}, std::size_t{1}, std::size_t{2}, std::size_t{3}}) {
        std::vector<Param> params = some_params();
        if (params[broken].size == 0) continue;
        const DType dtype = params[broken].kind.g;
        write_number(params[broken].g.data() + (params[broken].size - 1) * size_of(dtype), dtype, -infinity);
        const std::vector<Param> before(params);
        const cuda::Schedule in_memory{{}, {}, {}, {}};
        std::vector<cuda::DeviceSlot> slots = on_device(params, nullptr, &in_memory, 8, false);
        float count = 8, skipped = 0;
        for (cuda::DeviceSlot& slot : slots) slot.count = {&count, DType::fp32};
        double norm = -1.0;
        cuda::Work work = work_of(slots);
        work.clip = cuda::Clip::all;
        work.most = 1.0;
        work.norm = {&norm, DType::fp64};
        work.skip_nonfinite = true;
        work.skipped = {&skipped, DType::fp32};
        run(work, "an inf");
        expect(params == before && count == 8 && skipped == 1 && norm == infinity, "an inf skips the step");
    }
    // Squares of fp64 overflow where the gradient does not: that is no reason to skip.
    std::vector<Param> params = some_params();
    write_number(params[3].g.data(), DType::fp64, 1e200);
    const std::vector<Param> before(params);
    const ScheduledStep step = schedule({}, 9);
    const std::vector<cuda::DeviceSlot> slots = on_device(params, &step, nullptr, 0, false);
    double norm = -1.0;
    cuda::Work work = work_of(slots);
    work.clip = cuda::Clip::each;
    work.most = 1.0;
    work.norm = {&norm, DType::fp64};
    work.skip_nonfinite = true;
    run(work, "1e200");
    expect(!(params[0] == before[0]) && norm == infinity, "a large finite number does not skip the step");
}

void the_limit_writes_what_a_step_does() {
    for (const Kind& kind : kinds()) {
        std::vector<Param> params;
        params.emplace_back(kind, 1000, 0, 0);
        const Param before = params[0];
        const ScheduledStep step = schedule({}, 9);
        const std::vector<cuda::DeviceSlot> slots = on_device(params, &step, nullptr, 0, false);
        cuda::Failure failure;
        expect(radam_cuda_library()->limit(work_of(slots), &failure), "the limit");
        const Param& after = params[0];
        const bool coded = kind.moments == Moments::coded;
        expect(after.g == before.g && after.v_max == before.v_max && after.v_max_scale == before.v_max_scale,
               kind.name() + ": what the limit reads");
        expect(!(after.p == before.p) && !(after.m == before.m) && !(after.v == before.v) &&
                   (after.master == before.master) == (size_of(kind.weights) == 0) &&
                   (after.m_scale == before.m_scale) == !coded && (after.v_scale == before.v_scale) == !coded,
               kind.name() + ": what the limit writes");
    }
}

}  // namespace

int main() {
    every_kind_and_form_has_the_bits_of_the_cpu();
    every_size_and_alignment_has_the_bits_of_the_cpu();
    all_kinds_step_together_with_plain_parameters();
    a_large_step_in_larger_tiles_has_the_bits_of_the_cpu();
    what_is_not_finite_and_zero_has_the_bits_of_the_cpu();
    sums_of_squares_are_those_of_the_cpu();
    clipping_has_the_bits_of_the_cpu();
    a_skipped_step_says_the_norm_and_changes_nothing_else();
    the_limit_writes_what_a_step_does();
    return failures == 0 ? 0 : 1;
}
