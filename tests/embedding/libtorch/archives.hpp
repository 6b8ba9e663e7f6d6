// States through torch archives.
#pragma once

#include <cfenv>
#include <sstream>

#include "watched.hpp"

namespace promises {

inline radam::Precision precision(bool master, bool stochastic, radam::StateDType moments, std::uint64_t seed = 3) {
    radam::Precision p;
    p.master_weights = master;
    p.stochastic_rounding = stochastic;
    p.state_dtype = moments;
    p.min_8bit_size = 0;
    p.seed = seed;
    return p;
}

inline std::string saved(const RAdam& optimizer) {
    std::ostringstream stream;
    torch::save(optimizer, stream);
    return stream.str();
}
inline void load(RAdam& optimizer, const std::string& bytes) {
    std::istringstream stream(bytes);
    torch::load(optimizer, stream);
}

inline void training_goes_on_from_an_archive_with_the_same_bits() {
    using radam::StateDType;
    const std::pair<at::ScalarType, radam::Precision> table[] = {
        {at::kFloat, {}},
        {at::kDouble, {}},
        {at::kComplexFloat, {}},
        {at::kBFloat16, precision(true, false, StateDType::float32)},
        {at::kHalf, precision(true, false, StateDType::bfloat16)},
        {at::kBFloat16, precision(false, true, StateDType::eight_bit)},
    };
    for (const auto& [dtype, kept] : table) {
        const RAdamOptions options = RAdamOptions(0.02).betas({0.8, 0.9}).weight_decay(0.1).amsgrad(true);
        const std::vector<Tensor> mine = params(dtype);
        RAdam optimizer(mine, options);
        optimizer.set_precision(kept);
        take_steps(optimizer, 0, 7);

        std::vector<Tensor> copies;
        for (const Tensor& p : mine) copies.push_back(p.detach().clone().requires_grad_());
        RAdam other(copies, RAdamOptions(7.0));
        radam::Precision reseeded = kept;
        reseeded.seed = 99;  // the archive brings its own
        other.set_precision(reseeded);
        load(other, saved(optimizer));
        EXPECT(options_of(other, 0) == options && other.precision().seed == kept.seed);
        EXPECT(state_of(other, copies[0]).step() == 7);
        take_steps(optimizer, 7, 14);
        take_steps(other, 7, 14);
        EXPECT(Everything(optimizer) == Everything(other));
    }
}

inline void states_load_into_more_and_fewer_bits() {
    using radam::StateDType;
    const std::vector<Tensor> mine = params();
    RAdam wide(mine, RAdamOptions(0.01));
    take_steps(wide, 0, 3);
    RAdam coded(mine);
    coded.set_precision(precision(false, false, StateDType::eight_bit));
    load(coded, saved(wide));
    const RAdamParamState& codes = state_of(coded, mine[0]);
    EXPECT(codes.exp_avg().scalar_type() == at::kChar && codes.exp_avg_sq_scale().numel() == 2);
    RAdam again(mine);
    load(again, saved(coded));
    const Tensor m = state_of(wide, mine[0]).exp_avg(), back = state_of(again, mine[0]).exp_avg();
    EXPECT(back.scalar_type() == at::kFloat && !same_bits(m, back));
    EXPECT((m - back).abs().max().item<float>() <= m.abs().max().item<float>() / 30);
    RAdam twice(mine);  // codes of decoded codes are the same
    twice.set_precision(precision(false, false, StateDType::eight_bit));
    load(twice, saved(again));
    EXPECT(same_bits(codes.exp_avg(), state_of(twice, mine[0]).exp_avg()));
    EXPECT(same_bits(codes.exp_avg_sq(), state_of(twice, mine[0]).exp_avg_sq()));
    RAdam half(mine);
    half.set_precision(precision(false, false, StateDType::bfloat16));
    load(half, saved(wide));
    EXPECT(state_of(half, mine[0]).exp_avg().scalar_type() == at::kBFloat16);
    take_steps(half, 3, 4);
}

inline void a_load_has_the_same_bits_in_any_floating_point_mode() {
    using radam::StateDType;
    const std::vector<Tensor> mine = params();
    const auto loaded = [&](const std::string& bytes, StateDType kept) {
        RAdam made(mine);
        made.set_precision(precision(false, false, kept));
        load(made, bytes);
        return std::make_pair(saved(made), Everything(made));
    };
    RAdam wide(mine);
    take_steps(wide, 0, 3);
    state_of(wide, mine[2]).exp_avg().mul_(1e-38f);  // subnormal
    state_of(wide, mine[2]).exp_avg_sq().mul_(1e-36f);
    const std::string of_numbers = saved(wide), of_codes = loaded(of_numbers, StateDType::eight_bit).first;
    const std::pair<std::function<void()>, std::function<void()>> modes[] = {
        {[] { at::globalContext().setFlushDenormal(true); }, [] { at::globalContext().setFlushDenormal(false); }},
        {[] { std::fesetround(FE_UPWARD); }, [] { std::fesetround(FE_TONEAREST); }},
    };
    for (const std::string& bytes : {of_numbers, of_codes})
        for (const StateDType kept : {StateDType::float32, StateDType::eight_bit})
            for (const auto& [begin, end] : modes) {
                const Everything expected = loaded(bytes, kept).second;
                begin();
                const Everything found = loaded(bytes, kept).second;
                end();
                EXPECT(expected == found);
            }
}

inline void foreign_options_and_states_are_neither_saved_nor_loaded_over() {
    struct Foreign {
        const char* message;
        std::function<void(RAdam&)> make;
        bool loads;  // over a state, whatever it is
    };
    const Foreign table[] = {
        {"the options of group 1 must be radam::torch::RAdamOptions",
         [](RAdam& o) { o.param_groups()[1].set_options(std::make_unique<torch::optim::SGDOptions>(0.1)); }, false},
        {"the options of group 1 must be radam::torch::RAdamOptions",
         [](RAdam& o) { o.param_groups()[1] = Group(o.param_groups()[1].params()); }, false},
        {"parameter 0 of group 1 has a state that is no RAdamParamState",
         [](RAdam& o) {
             o.state()[o.param_groups()[1].params()[0].unsafeGetTensorImpl()] =
                 std::make_unique<torch::optim::SGDParamState>();
         },
         true},
    };
    const auto two_groups = [](double lr) {
        return std::make_unique<RAdam>(std::vector<Group>{{{numbers({3}, 1)}}, {{numbers({3}, 2)}}}, RAdamOptions(lr));
    };
    const auto good = two_groups(0.5);
    take_steps(*good, 0, 2);
    for (const Foreign& foreign : table) {
        const auto optimizer = two_groups(0.25);
        take_steps(*optimizer, 0, 3);
        foreign.make(*optimizer);
        EXPECT(refuses([&] { saved(*optimizer); }, {foreign.message}));
        if (foreign.loads) {
            load(*optimizer, saved(*good));
            EXPECT(Everything(*optimizer).states[1] == Everything(*good).states[1]);
        } else {
            EXPECT(refuses([&] { load(*optimizer, saved(*good)); }, {foreign.message}));
            const Tensor first = optimizer->param_groups()[0].params()[0];
            EXPECT(options_of(*optimizer, 0).lr() == 0.25 && state_of(*optimizer, first).step() == 3);
        }
    }
}

inline void states_of_parameters_that_have_left_are_not_saved() {
    const std::vector<Tensor> mine = params();
    RAdam optimizer(mine), resumed({mine[0], mine[1]});
    take_steps(optimizer, 0, 3);
    optimizer.param_groups()[0].params().pop_back();
    load(resumed, saved(optimizer));
    EXPECT(optimizer.state().size() == 3 && resumed.state().size() == 2);
    EXPECT(state_of(resumed, mine[1]) == state_of(optimizer, mine[1]));
}

// Run where LibTorch has one.
inline void archives_can_be_loaded_to_a_gpu() {
    using radam::StateDType;
    const std::vector<Tensor> mine = params();
    RAdam coded(mine);
    coded.set_precision(precision(false, false, StateDType::eight_bit));
    take_steps(coded, 0, 3);
    for (const StateDType kept : {StateDType::float32, StateDType::eight_bit}) {
        RAdam there(mine), here(mine);
        for (RAdam* optimizer : {&there, &here}) optimizer->set_precision(precision(false, false, kept));
        std::istringstream stream(saved(coded));
        torch::load(there, stream, torch::Device(torch::kCUDA));
        load(here, saved(coded));
        EXPECT(Everything(there) == Everything(here));
        there.step();
    }
}

inline void a_load_that_does_not_fit_changes_nothing() {
    const std::vector<Tensor> mine = params();
    const auto archive_of = [](const std::function<void(torch::serialize::OutputArchive&)>& write) {
        torch::serialize::OutputArchive archive;
        write(archive);
        std::ostringstream stream;
        archive.save_to(stream);
        return stream.str();
    };
    const auto of_other = [](std::vector<Tensor> some, const std::function<void(RAdam&)>& edit = nullptr) {
        RAdam made(std::move(some));
        take_steps(made, 0, 2);
        if (edit) edit(made);
        return saved(made);
    };
    // As LibTorch writes an optimizer, which looks at nothing.
    const auto as_it_is = [&](const std::function<void(RAdam&)>& edit) {
        return archive_of([&](torch::serialize::OutputArchive& archive) {
            RAdam made(params());
            take_steps(made, 0, 2);
            edit(made);
            torch::optim::serialize<RAdamParamState, RAdamOptions>(archive, made);
            radam::torch::detail::write_marks(archive, {});
        });
    };
    torch::optim::Adam adam(params());
    std::ostringstream adam_archive;
    torch::save(adam, adam_archive);
    std::vector<Tensor> shapes = params(), complex = params();
    shapes[2] = numbers({8}, 1);
    complex[2] = numbers({7}, 1, at::kComplexFloat);
    const auto third = [](RAdam& o) -> RAdamParamState& { return state_of(o, o.param_groups()[0].params()[2]); };
    const std::pair<std::string, const char*> table[] = {
        {of_other({params()[0]}), "group 0 has 1 parameters in the archive"},
        {of_other(shapes), "exp_avg of parameter 2 of group 0 has shape [8] in the archive, the parameter [7]"},
        {of_other(complex), "is ComplexFloat in the archive, the parameter Float"},
        {of_other(params(), [&](RAdam& o) { third(o).exp_avg(Tensor()); }), "no exp_avg of parameter 2 of group 0"},
        {of_other(params(), [&](RAdam& o) { third(o).exp_avg_sq(-at::ones({7})); }), "holds a negative number"},
        {of_other(params(), [&](RAdam& o) { third(o).step(-3); }), "must be from 0 to 2^62, got -3"},
        {of_other(params(), [&](RAdam& o) { third(o).step((std::int64_t{1} << 62) + 1); }), "must be from 0 to 2^62"},
        {of_other(params(), [&](RAdam& o) { third(o).exp_avg(at::zeros({7}, at::kChar).to_sparse()); }),
         "exp_avg of parameter 2 of group 0 has layout Sparse in the archive"},
        {as_it_is([](RAdam& o) { o.state()[nullptr] = std::make_unique<RAdamParamState>(); }),
         "a state of no parameter"},
        {as_it_is([](RAdam& o) { o.param_groups()[0].params()[2] = o.param_groups()[0].params()[1]; }),
         "parameter 2 of group 0 shares its state"},
        {of_other(params(), [&](RAdam& o) { third(o).exp_avg(at::zeros({7}, at::kChar)); }), "exp_avg_scale"},
        {of_other(params(), [&](RAdam& o) { options_of(o, 0).lr(-1.0); }), "lr must be"},
        {of_other(params(), [&](RAdam& o) { o.add_param_group({{numbers({2}, 1)}}); }), "2 parameter groups"},
        {adam_archive.str(), "of another optimizer"},
        {archive_of([](auto& archive) { archive.write("x", at::ones({1})); }), "of another optimizer"},
        {std::string("no archive at all"), ""},
    };
    for (const auto& [bytes, message] : table) {
        RAdam optimizer(mine, RAdamOptions(0.01));
        take_steps(optimizer, 0, 3);
        const Everything before(optimizer);
        EXPECT(refuses([&, &b = bytes] { load(optimizer, b); }, {message}));
        EXPECT(before == Everything(optimizer));
    }
    RAdam author(params(), {}, *radam::find_convention("author"));
    EXPECT(refuses([&] { load(author, saved(RAdam(params()))); }, {"convention \"torch\"", "they step otherwise"}));
}

}  // namespace promises
