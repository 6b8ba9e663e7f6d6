// radam::Optimizer: what it does to parameters is the law; what does not fit is refused and changes nothing.
#include <radam/radam.hpp>
#include <radam/thread_pool.hpp>

#include <cstring>
#include <functional>

#include "expect.hpp"

namespace {

using radam::Optimizer;
using radam::Options;

constexpr std::int64_t size = 1003;
constexpr double infinity = std::numeric_limits<double>::infinity();

struct Buffers {
    std::vector<float> p, g, m, v, v_max;

    explicit Buffers(std::size_t n = size, int seed = 1) : p(n), g(n), m(n), v(n), v_max(n) {
        for (std::size_t i = 0; i < n; ++i) {
            p[i] = 0.01f * static_cast<float>((i * 37 + static_cast<std::size_t>(seed)) % 101) - 0.5f;
            g[i] = 0.003f * static_cast<float>((i * 53 + static_cast<std::size_t>(seed)) % 97) - 0.15f;
        }
    }
    radam::Slot slot(const radam::ScheduledStep& step) {
        radam::Slot slot;
        slot.param = p.data();
        slot.grad = g.data();
        slot.exp_avg = m.data();
        slot.exp_avg_sq = v.data();
        slot.max_exp_avg_sq = v_max.data();
        slot.size = static_cast<std::int64_t>(p.size());
        slot.step = &step;
        return slot;
    }
    std::int64_t count() const { return static_cast<std::int64_t>(p.size()); }
};

bool same(const void* a, const void* b, std::size_t n) { return n == 0 || std::memcmp(a, b, n) == 0; }
bool same(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && same(a.data(), b.data(), a.size() * sizeof(float));
}

// The text of the std::invalid_argument that a call throws; nothing where it does not.
std::string refusal(const std::function<void()>& call) {
    try {
        call();
    } catch (const std::invalid_argument& error) {
        return error.what();
    }
    return "";
}
bool says(const std::string& text, const char* part) {
    if (text.find(part) != std::string::npos) return true;
    std::fprintf(stderr, "\"%s\" does not say \"%s\"\n", text.c_str(), part);
    return false;
}

Options decayed(bool decoupled, bool amsgrad, bool maximize) {
    Options options;
    options.lr = 0.01;
    options.weight_decay = 0.1;
    options.decoupled_weight_decay = decoupled;
    options.amsgrad = amsgrad;
    options.maximize = maximize;
    return options;
}

void steps_as_the_raw_loops_do() {
    for (const bool decoupled : {false, true})
        for (const bool amsgrad : {false, true})
            for (const bool maximize : {false, true}) {
                const Options options = decayed(decoupled, amsgrad, maximize);
                Buffers a, b;
                Optimizer optimizer(options);
                optimizer.add_param(a.p.data(), a.g.data(), a.count());
                for (int t = 1; t <= 20; ++t) {
                    EXPECT(optimizer.step());
                    const radam::ScheduledStep step =
                        radam::schedule(radam::hyperparameters(options, radam::conventions[0]), t);
                    radam::step(b.slot(step));
                }
                EXPECT(same(a.p, b.p));
                EXPECT(same(optimizer.slot(0).exp_avg, b.m.data(), size * sizeof(float)));
                EXPECT(same(optimizer.slot(0).exp_avg_sq, b.v.data(), size * sizeof(float)));
                EXPECT(optimizer.steps(0) == 20);
            }
}

void every_convention_steps_as_its_coefficients_say() {
    for (const radam::Convention& convention : radam::conventions) {
        EXPECT(radam::find_convention(convention.name) == &convention);
        Buffers a, b;
        Optimizer optimizer({}, convention);
        optimizer.add_param(a.p.data(), a.g.data(), a.count());
        for (int t = 1; t <= 10; ++t) {
            optimizer.step();
            const radam::ScheduledStep step = radam::schedule(radam::hyperparameters({}, convention), t);
            radam::step(b.slot(step));
        }
        EXPECT(same(a.p, b.p));
    }
    EXPECT(radam::find_convention("adam") == &radam::adam);
    EXPECT(radam::find_convention("adamw") == nullptr);
    EXPECT(radam::find_convention("tor") == nullptr);
    EXPECT(says(refusal([] { Optimizer optimizer({}, "tor"); }), "torch, paddle"));
    EXPECT(says(refusal([] { Optimizer optimizer({}, static_cast<const char*>(nullptr)); }), "torch, paddle"));
    EXPECT(Optimizer({}, "optax").convention().eps_on == radam::EpsOn::sqrt_v_hat);
}

void options_that_never_rectify_are_told() {
    radam::Convention above, at;  // rho comes up to 3 where beta2 is 1/2
    above.threshold = at.threshold = 3.0;
    at.rectify_at_threshold = true;
    std::vector<radam::Convention> all(std::begin(radam::conventions), std::end(radam::conventions));
    all.insert(all.end(), {radam::adam, above, at});
    int never = 0;
    for (const radam::Convention& convention : all)
        for (const double beta2 : {0.0, 0.4, 0.5, 0.59, 0.61, 0.66, 0.67, 0.9, 0.999}) {
            Options options;
            options.beta2 = beta2;
            bool rectified = false;
            for (int t = 1; t <= 1000; ++t)
                rectified = rectified || radam::schedule(radam::hyperparameters(options, convention), t).mode ==
                                             radam::Mode::rectified;
            EXPECT(radam::never_rectifies(options, convention) == !rectified);
            never += rectified ? 0 : 1;
        }
    EXPECT(never == 7 * 6 + 4 + 3 + 2);  // threshold 5, lucid_docs, above, at
}

void groups_and_missing_gradients_keep_their_own_counts() {
    Buffers a, b(7, 2), alone_a, alone_b(7, 2);
    Options other;
    other.lr = 0.1;
    Optimizer both, first, second(other);
    EXPECT(both.add_param(a.p.data(), a.g.data(), a.count()) == 0);
    EXPECT(both.add_group(other) == 1);
    EXPECT(both.add_param(b.p.data(), nullptr, b.count()) == 1);
    EXPECT(both.groups() == 2 && both.group_of(0) == 0 && both.group_of(1) == 1);
    first.add_param(alone_a.p.data(), alone_a.g.data(), alone_a.count());
    second.add_param(alone_b.p.data(), alone_b.g.data(), alone_b.count());
    for (int t = 0; t < 12; ++t) {
        both.set_grad(1, t % 2 == 0 ? b.g.data() : nullptr);
        both.step();
        first.step();
        if (t % 2 == 0) second.step();
    }
    EXPECT(both.steps(0) == 12 && both.steps(1) == 6);
    EXPECT(same(a.p, alone_a.p) && same(b.p, alone_b.p));
}

void a_group_without_parameters_gives_way() {
    Options other;
    other.lr = 0.5;
    Optimizer optimizer;
    EXPECT(optimizer.add_group(other) == 0);
    EXPECT(optimizer.groups() == 1 && optimizer.options(0).lr == 0.5);
}

void states_may_be_the_embedder_s() {
    Buffers a, b;
    Optimizer owned, lent;
    owned.add_param(a.p.data(), a.g.data(), a.count());
    radam::ParamOptions options;
    options.state.exp_avg = b.m.data();
    options.state.exp_avg_sq = b.v.data();
    lent.add_param(b.p, b.g, options);
    for (int t = 0; t < 8; ++t) owned.step(), lent.step();
    EXPECT(same(a.p, b.p));
    EXPECT(same(owned.slot(0).exp_avg, b.m.data(), size * sizeof(float)));
    EXPECT(lent.slot(0).exp_avg == b.m.data());
    EXPECT(reinterpret_cast<std::uintptr_t>(owned.slot(0).exp_avg) % 64 == 0);
}

void a_buffer_may_move() {
    Buffers a, b;
    Optimizer moved, stays;
    moved.add_param(a.p.data(), a.g.data(), a.count());
    stays.add_param(b.p.data(), b.g.data(), b.count());
    for (int t = 0; t < 4; ++t) moved.step(), stays.step();
    std::vector<float> elsewhere = a.p;
    moved.set_param(0, elsewhere.data());
    for (int t = 0; t < 4; ++t) moved.step(), stays.step();
    EXPECT(same(elsewhere, b.p) && !same(a.p, b.p));
}

void an_optimizer_may_move() {
    Buffers a, b, c(7, 2), d(7, 2);
    Optimizer stays, first;
    for (auto [optimizer, x, y] : {std::tuple{&stays, &a, &c}, std::tuple{&first, &b, &d}}) {
        optimizer->add_param(x->p, x->g);
        optimizer->add_param(y->p, y->g);
        optimizer->set_max_grad_norm(0.5);
        optimizer->step();
    }
    Optimizer second(std::move(first)), third;
    second.step();
    third = std::move(second);
    std::vector<float> elsewhere = d.g;
    third.set_grad(1, elsewhere.data());
    third.step();
    stays.step();
    stays.step();
    EXPECT(same(a.p, b.p) && same(c.p, d.p) && third.steps(1) == 3);
}

void every_executor_gives_the_same_bits() {
    radam::ThreadPool pool(3);
    std::vector<int> seen;
    const radam::Executor backwards(5, [&seen](const radam::Parts& parts) {
        for (int index = parts.count(); index-- > 0;) parts(index), seen.push_back(index);
    });
    Buffers expected(200001);
    Optimizer plain;
    plain.add_param(expected.p.data(), expected.g.data(), expected.count());
    for (int t = 0; t < 7; ++t) plain.step();
    for (const radam::Executor& executor : {pool.executor(), backwards, radam::Executor()}) {
        Buffers a(200001);
        Optimizer optimizer({}, radam::conventions[0], executor);
        optimizer.add_param(a.p.data(), a.g.data(), a.count());
        for (int t = 0; t < 7; ++t) optimizer.step();
        EXPECT(same(a.p, expected.p));
    }
    EXPECT(seen.size() == 7 * 5 && seen[0] == 4 && seen[4] == 0);
}

void clips_as_the_norm_says() {
    Buffers a, b(7, 2), plain_a, plain_b(7, 2);
    double squares = 0.0;
    for (const Buffers* some : {&a, &b})
        for (const float g : some->g) squares += static_cast<double>(g) * static_cast<double>(g);
    Optimizer clipped, scaled;
    for (auto [optimizer, x, y] : {std::tuple{&clipped, &a, &b}, std::tuple{&scaled, &plain_a, &plain_b}}) {
        optimizer->add_param(x->p.data(), x->g.data(), x->count());
        optimizer->add_param(y->p.data(), y->g.data(), y->count());
    }
    EXPECT(std::isnan(clipped.grad_norm()));
    clipped.set_max_grad_norm(0.25);
    clipped.step();
    EXPECT(std::abs(clipped.grad_norm() - std::sqrt(squares)) < 1e-12 * std::sqrt(squares));
    scaled.set_grad_scale(0.25 / (clipped.grad_norm() + 1e-6));
    scaled.step();
    EXPECT(same(a.p, plain_a.p) && same(b.p, plain_b.p));

    Buffers c, d;  // by value
    for (float& g : d.g) g = std::min(0.1f, std::max(-0.1f, g));
    Optimizer cut, small;
    cut.add_param(c.p.data(), c.g.data(), c.count());
    cut.set_max_grad_value(static_cast<double>(0.1f));
    small.add_param(d.p.data(), d.g.data(), d.count());
    cut.step();
    small.step();
    EXPECT(same(c.p, d.p));

    Buffers e, f, small_e(3, 2), small_f(3, 2);  // each tensor by itself, as an optimizer of its own has it
    Optimizer each, alone, other;
    each.add_param(e.p, e.g);
    each.add_param(small_e.p, small_e.g);
    alone.add_param(f.p, f.g);
    other.add_param(small_f.p, small_f.g);
    each.set_max_tensor_grad_norm(0.3);
    alone.set_max_grad_norm(0.3);
    other.set_max_grad_norm(0.3);
    each.step();
    alone.step();
    other.step();
    EXPECT(alone.grad_norm() > 0.3 && other.grad_norm() < 0.3);
    EXPECT(same(e.p, f.p) && same(small_e.p, small_f.p));
    alone.set_no_clipping();
    other.set_no_clipping();
    each.set_max_grad_norm(infinity);  // only measures
    each.step();
    alone.step();
    other.step();
    EXPECT(same(e.p, f.p) && same(small_e.p, small_f.p) && each.grad_norm() > 0.3);
}

void a_step_with_an_inf_is_left_out_whole() {
    for (const bool clips : {false, true}) {
        Buffers a, b(7, 2);
        const Buffers before_a = a, before_b = b;
        Optimizer optimizer;
        optimizer.add_param(a.p.data(), a.g.data(), a.count());
        optimizer.add_param(b.p.data(), b.g.data(), b.count());
        optimizer.skip_nonfinite(true);
        if (clips) optimizer.set_max_grad_norm(1.0);
        b.g[6] = std::numeric_limits<float>::quiet_NaN();
        EXPECT(!optimizer.step());
        EXPECT(optimizer.skipped_steps() == 1 && optimizer.steps(0) == 0 && optimizer.steps(1) == 0);
        EXPECT(same(a.p, before_a.p) && same(b.p, before_b.p));
        b.g[6] = 1.0f;
        EXPECT(optimizer.step());
        EXPECT(optimizer.steps(0) == 1 && !same(a.p, before_a.p));
    }
}

void precision_says_what_a_state_is() {
    std::vector<radam::bf16> p(5000), g(5000);
    for (std::size_t i = 0; i < p.size(); ++i) {
        p[i] = radam::to_bf16(1.0f);
        g[i] = radam::to_bf16(0.5f);
    }
    radam::Precision precision;
    precision.master_weights = true;
    precision.state_dtype = radam::StateDType::eight_bit;
    Optimizer optimizer;
    optimizer.set_precision(precision);
    optimizer.add_param(p.data(), g.data(), 5000);
    optimizer.add_param(p.data() + 0, g.data(), 0);  // of no elements: it meets nothing
    const radam::Slot& slot = optimizer.slot(0);
    EXPECT(slot.moments == radam::Moments::coded && slot.weights == radam::Weights::split);
    EXPECT(slot.exp_avg_scale != nullptr && slot.master != nullptr && slot.max_exp_avg_sq == nullptr);
    for (int t = 0; t < 300; ++t) optimizer.step();
    EXPECT(radam::to_float(p[0]) < 0.95f);  // plain bfloat16 would stand still
    EXPECT(says(refusal([&] { optimizer.set_precision({}); }), "before the first parameter"));
}

void amsgrad_may_come_later() {
    Buffers a, b;
    Optimizer late, never;
    late.add_param(a.p.data(), a.g.data(), a.count());
    never.add_param(b.p.data(), b.g.data(), b.count());
    for (int t = 0; t < 10; ++t) late.step(), never.step();
    Options options;
    options.amsgrad = true;
    late.set_options(0, options);
    EXPECT(late.slot(0).max_exp_avg_sq != nullptr);
    for (float& g : a.g) g *= 0.01f;
    for (float& g : b.g) g *= 0.01f;
    for (int t = 0; t < 10; ++t) late.step(), never.step();
    EXPECT(!same(a.p, b.p));
}

void restores_a_state_or_nothing() {
    Buffers a, b;
    Optimizer first, second;
    first.add_param(a.p.data(), a.g.data(), a.count());
    second.add_param(b.p.data(), b.g.data(), b.count());
    for (int t = 0; t < 9; ++t) first.step();
    radam::ParamState state;
    state.steps = 9;
    const auto bytes = [](const void* data) {
        return std::vector<char>(static_cast<const char*>(data), static_cast<const char*>(data) + size * 4);
    };
    state.buffers[0] = bytes(first.slot(0).exp_avg);
    state.buffers[1] = bytes(first.slot(0).exp_avg_sq);
    b.p = a.p;
    Options faster;
    faster.lr = -1.0;
    EXPECT(says(refusal([&] { second.restore({faster}, {state}, 7); }), "lr"));
    EXPECT(second.steps(0) == 0 && second.precision().seed == 0);
    radam::ParamState broken = state;
    broken.buffers[1].pop_back();
    EXPECT(says(refusal([&] { second.restore({Options()}, {broken}, 7); }), "exp_avg_sq"));
    radam::ParamState shaped = state;
    shaped.shape = std::vector<std::int64_t>(65, 1);
    EXPECT(says(refusal([&] { second.restore({Options()}, {shaped}, 7); }), "more than 64 dimensions"));
    for (const std::int64_t steps : {std::int64_t{-1}, (std::int64_t{1} << 62) + 1}) {
        radam::ParamState uncountable = state;
        uncountable.steps = steps;
        EXPECT(says(refusal([&] { second.restore({Options()}, {uncountable}, 7); }), "from 0 to 2^62"));
    }
    EXPECT(second.steps(0) == 0 && second.precision().seed == 0);
    second.restore({Options()}, {state}, 7);
    EXPECT(second.steps(0) == 9 && second.precision().seed == 7);
    first.step();
    second.step();
    EXPECT(same(a.p, b.p));
}

void what_does_not_fit_is_refused_and_changes_nothing() {
    const auto option = [](auto set) {
        Options options;
        set(options);
        return refusal([&] { Optimizer optimizer(options); });
    };
    EXPECT(says(option([](Options& o) { o.lr = -1.0; }), "lr must be"));
    EXPECT(says(option([](Options& o) { o.beta1 = 1.0; }), "beta1 must be"));
    EXPECT(says(option([](Options& o) { o.beta2 = -0.1; }), "beta2 must be"));
    EXPECT(says(option([](Options& o) { o.eps = std::nan(""); }), "eps"));
    EXPECT(says(option([](Options& o) { o.weight_decay = infinity; }), "weight_decay"));
    EXPECT(says(option([](Options& o) { o.lr = 1e308, o.beta1 = 0.999; }), "too large for float64"));
    Options huge;  // fine for doubles
    huge.lr = 1e39;
    Optimizer wide_only(huge);
    std::vector<double> numbers(3, 1.0), slopes(3, 1.0);
    std::vector<float> narrow(3), narrow_slopes(3);
    wide_only.add_param(numbers, slopes);
    EXPECT(says(refusal([&] { wide_only.add_param(narrow, narrow_slopes); }), "too large for float32"));
    EXPECT(wide_only.size() == 1);
    wide_only.set_lr(1e-3);
    wide_only.add_param(narrow, narrow_slopes);
    EXPECT(says(refusal([&] { wide_only.set_lr(1e39); }), "too large for float32"));
    Options coupled;
    coupled.weight_decay = 0.1;
    EXPECT(says(refusal([&] { Optimizer optimizer(coupled, *radam::find_convention("optax")); }), "weight_decay"));
    coupled.decoupled_weight_decay = false;
    EXPECT(says(refusal([&] { Optimizer optimizer(coupled, *radam::find_convention("author")); }), "decoupled"));
    radam::Precision both;
    both.master_weights = both.stochastic_rounding = true;
    EXPECT(says(refusal([&] { Optimizer().set_precision(both); }), "stochastic_rounding"));

    Buffers a, b(7, 2), c;
    std::vector<double> wide(7);
    Optimizer optimizer;
    radam::ParamOptions named;
    named.name = "weights";
    optimizer.add_param(a.p.data(), a.g.data(), a.count(), named);
    const auto added = [&](auto... arguments) {
        const std::string text = refusal([&] { optimizer.add_param(arguments...); });
        EXPECT(optimizer.size() == 1);
        return text;
    };
    EXPECT(says(added(a.p.data(), b.g.data(), b.count()), "shares memory with parameter 0"));
    EXPECT(says(added(a.p.data() + size - 1, b.g.data(), b.count()), "shares memory"));
    EXPECT(says(added(a.g.data(), b.g.data(), b.count()), "gradient of parameter 0"));
    EXPECT(says(added(b.p.data(), a.p.data(), b.count()), "give it a buffer of its own"));
    EXPECT(says(added(b.p.data(), b.p.data(), b.count()), "with the parameter itself"));
    EXPECT(says(added(b.p.data(), b.g.data(), std::int64_t{-1}), "at least 0"));
    EXPECT(says(added(b.p.data(), b.g.data(), std::int64_t{1} << 62), "too large"));
    EXPECT(says(added(b.p.data(), b.g.data(), std::numeric_limits<std::int64_t>::max()), "too large"));
    EXPECT(says(added(static_cast<float*>(nullptr), b.g.data(), b.count()), "null"));
    EXPECT(says(added(static_cast<void*>(wide.data()), radam::DType::fp64, static_cast<const void*>(b.g.data()),
                      radam::DType::fp32, std::int64_t{7}),
                "float64 goes with float64"));
    radam::ParamOptions shaped;
    shaped.name = "\xff";
    EXPECT(says(added(b.p.data(), b.g.data(), b.count(), shaped), "parameter 1: its name is not UTF-8"));
    shaped.name = "";
    shaped.shape = {2, 3};
    EXPECT(says(added(b.p.data(), b.g.data(), b.count(), shaped), "shape"));
    shaped.shape.assign(65, 1);
    shaped.shape[0] = b.count();
    EXPECT(says(added(b.p.data(), b.g.data(), b.count(), shaped), "more than 64 dimensions"));
    radam::ParamOptions half;
    half.state.exp_avg = b.m.data();
    EXPECT(says(added(b.p.data(), b.g.data(), b.count(), half), "lacks exp_avg_sq"));
    half.state.exp_avg_sq = b.m.data() + 1;
    EXPECT(says(added(b.p.data(), b.g.data(), b.count(), half), "shares memory with exp_avg"));
    half.state.exp_avg_sq = b.p.data();
    EXPECT(says(added(b.p.data(), b.g.data(), b.count(), half), "exp_avg_sq shares memory"));
    EXPECT(says(refusal([&] { optimizer.set_grad(0, a.p.data()); }), "(\"weights\")"));
    const auto own = [&](int part) { return static_cast<float*>(radam::part_of(optimizer.slot(0), part)); };
    EXPECT(says(added(own(0), b.g.data(), b.count()), "parameter 0 or its state"));
    EXPECT(says(refusal([&] { optimizer.set_grad(0, own(1)); }), "parameter 0 or its state"));
    Options with_max;
    with_max.amsgrad = true;
    optimizer.set_options(0, with_max);
    EXPECT(says(refusal([&] { optimizer.set_grad(0, own(2)); }), "parameter 0 or its state"));
    optimizer.set_options(0, {});
    EXPECT(says(refusal([&] { optimizer.set_param(0, a.g.data()); }), "gradient"));
    EXPECT(says(refusal([&] { optimizer.set_param(0, static_cast<float*>(nullptr)); }), "null"));
    EXPECT(says(refusal([&] { optimizer.set_grad(1, b.g.data()); }), "no parameter 1"));
    std::vector<radam::bf16> brain(size);
    EXPECT(says(refusal([&] { optimizer.set_grad(0, brain.data()); }), "added as float32, and cannot become bfloat16"));
    EXPECT(says(refusal([&] { optimizer.set_param(0, brain.data()); }), "cannot become bfloat16"));
    EXPECT(says(refusal([&] { optimizer.set_lr(3, 0.1); }), "no group 3"));
    EXPECT(says(refusal([&] { optimizer.set_options(1 << 20, {}); }), "no group 1048576"));
    EXPECT(says(refusal([&] { optimizer.set_lr(-0.1); }), "lr"));
    EXPECT(says(refusal([&] { optimizer.set_max_grad_norm(-1.0); }),
                "max_grad_norm must be a number, at least 0, got -1"));
    EXPECT(says(refusal([&] { optimizer.add_param(b.p, c.g); }), "as many"));
    EXPECT(says(refusal([&] { optimizer.set_grad_scale(infinity); }), "grad_scale"));
    EXPECT(optimizer.options(0).lr == 1e-3);

    Optimizer untouched;  // after all that it steps as one that nobody tried
    untouched.add_param(c.p.data(), c.g.data(), c.count());
    optimizer.step();
    untouched.step();
    EXPECT(same(a.p, c.p));
}

}  // namespace

int main() {
    steps_as_the_raw_loops_do();
    every_convention_steps_as_its_coefficients_say();
    options_that_never_rectify_are_told();
    groups_and_missing_gradients_keep_their_own_counts();
    a_group_without_parameters_gives_way();
    states_may_be_the_embedder_s();
    a_buffer_may_move();
    an_optimizer_may_move();
    every_executor_gives_the_same_bits();
    clips_as_the_norm_says();
    a_step_with_an_inf_is_left_out_whole();
    precision_says_what_a_state_is();
    amsgrad_may_come_later();
    restores_a_state_or_nothing();
    what_does_not_fit_is_refused_and_changes_nothing();
    return failures == 0 ? 0 : 1;
}
