// Saved states: a run goes on with the same bits after save and load, whatever moments and weights are kept in, and
// takes what fits: other kinds of moments, other memory orders, what only a Python user has.
#include "saved_runs.hpp"

namespace {

std::vector<Kind> every_kind() {
    std::vector<Kind> kinds;
    const radam::Convention* const torch = &radam::conventions[0];
    for (const DType dtype : {DType::fp64, DType::fp32, DType::bf16, DType::fp16})
        for (const StateDType state : {StateDType::float32, StateDType::bfloat16, StateDType::eight_bit})
            for (const bool amsgrad : {false, true}) {
                kinds.push_back({dtype, precision_of(state), amsgrad, torch});
                kinds.push_back({dtype, precision_of(state, true), amsgrad, torch});
                kinds.push_back({dtype, precision_of(state, false, true), amsgrad, torch});
            }
    for (const radam::Convention& convention : radam::conventions)
        kinds.push_back({DType::fp32, precision_of(StateDType::float32), false, &convention});
    kinds.push_back({DType::fp32, precision_of(StateDType::float32), true, &radam::adam});
    return kinds;
}

void a_run_goes_on_with_the_same_bits() {
    const std::string path = in_folder("state");
    for (const Kind& kind : every_kind()) {
        Run whole(kind);
        for (int t = 1; t <= 7; ++t) whole.step(t);
        radam::save(whole.optimizer, path);

        Run other(kind);
        other.step(1);  // has a state, which gives way
        other.params = whole.params;
        for (std::size_t i = 0; i < sizes.size(); ++i) {
            void* const place = other.params[i].data();
            other.optimizer.set_param(i, place);
        }
        other.optimizer.set_lr(1.0);
        radam::load(other.optimizer, path);
        EXPECT(other.bits() == whole.bits());
        for (int t = 8; t <= 10; ++t) whole.step(t), other.step(t);
        EXPECT(other.bits() == whole.bits());
        EXPECT(other.optimizer.steps(0) == 10 && other.optimizer.steps(2) == 7 && other.optimizer.steps(3) == 0);
    }
}

template <class T>
std::vector<T> numbers_at(const void* data, std::int64_t size) {
    std::vector<T> numbers(static_cast<std::size_t>(size));
    if (size > 0) std::memcpy(numbers.data(), data, numbers.size() * sizeof(T));
    return numbers;
}

// The numbers of a moment that is fp32, bf16 or coded.
std::vector<float> moment_of(const radam::Slot& slot, bool squared) {
    const void* const data = squared ? slot.exp_avg_sq : slot.exp_avg;
    const float* const scales = squared ? slot.exp_avg_sq_scale : slot.exp_avg_scale;
    std::vector<float> numbers(static_cast<std::size_t>(slot.size));
    if (slot.moments == radam::Moments::full) return numbers_at<float>(data, slot.size);
    if (slot.moments == radam::Moments::coded)
        radam::decode_blocks(static_cast<const std::uint8_t*>(data), scales, slot.size, squared, numbers.data());
    if (slot.moments == radam::Moments::bf16)
        for (std::size_t k = 0; k < numbers.size(); ++k)
            numbers[k] = radam::to_float(static_cast<const radam::bf16*>(data)[k]);
    return numbers;
}

// What numbers become that are kept in another kind.
std::vector<float> rounded(std::vector<float> numbers, radam::Moments kept, bool squared) {
    const auto size = static_cast<std::int64_t>(numbers.size());
    std::vector<std::uint8_t> codes(numbers.size());
    std::vector<float> scales(static_cast<std::size_t>(radam::blocks_of(size)));
    if (kept == radam::Moments::bf16)
        for (float& x : numbers) x = radam::to_float(radam::to_bf16(x));
    if (kept == radam::Moments::coded) {
        radam::encode_blocks(numbers.data(), size, squared, codes.data(), scales.data());
        radam::decode_blocks(codes.data(), scales.data(), size, squared, numbers.data());
    }
    return numbers;
}

void moments_of_any_kind_become_those_that_are_kept() {
    const std::string path = in_folder("kinds");
    const StateDType all[] = {StateDType::float32, StateDType::bfloat16, StateDType::eight_bit};
    for (const StateDType from : all)
        for (const StateDType to : all) {
            Run a(with(DType::bf16, from, true, true)), b(with(DType::bf16, to, true));
            for (int t = 1; t <= 7; ++t) a.step(t);
            radam::save(a.optimizer, path);
            radam::load(b.optimizer, path);
            for (std::size_t i = 0; i < sizes.size(); ++i)
                for (const bool squared : {false, true}) {
                    const radam::Slot &x = a.optimizer.slot(i), &y = b.optimizer.slot(i);
                    EXPECT(moment_of(y, squared) == rounded(moment_of(x, squared), y.moments, squared));
                }
            // What nobody saved begins as the parameters are.
            radam::save(b.optimizer, path);
            radam::load(a.optimizer, path);
            for (const std::int16_t x : numbers_at<std::int16_t>(a.optimizer.slot(0).master, sizes[0])) EXPECT(x == 0);
        }
}

void codes_cut_in_another_memory_order_keep_their_numbers() {
    const std::string path = in_folder("order");
    for (const StateDType to : {StateDType::float32, StateDType::eight_bit}) {
        Run a(with(DType::fp32, StateDType::eight_bit)), b(with(DType::fp32, to));
        for (int t = 1; t <= 4; ++t) a.step(t);
        radam::save(a.optimizer, path);
        Content content(path);
        content.replace("\"block_orders\": {", "\"block_orders\": {\"0\": [1, 0], \"1\": [0]");
        // The codes as they were, but cut into blocks where element (i, j) is number 15 j + i.
        std::vector<std::uint8_t> codes = numbers_at<std::uint8_t>(a.optimizer.slot(0).exp_avg, sizes[0]),
                                  cut(codes.size());
        for (std::size_t i = 0; i < 15; ++i)
            for (std::size_t j = 0; j < 13; ++j) cut[15 * j + i] = codes[13 * i + j];
        std::vector<float> numbers(codes.size()), expected(codes.size());
        radam::decode_blocks(cut.data(), a.optimizer.slot(0).exp_avg_scale, sizes[0], false, numbers.data());
        for (std::size_t i = 0; i < 15; ++i)
            for (std::size_t j = 0; j < 13; ++j) expected[13 * i + j] = numbers[15 * j + i];
        content.write(path);
        radam::load(b.optimizer, path);
        EXPECT(moment_of(b.optimizer.slot(0), false) == rounded(expected, b.optimizer.slot(0).moments, false));
        EXPECT(moment_of(b.optimizer.slot(1), false) == moment_of(a.optimizer.slot(1), false));
    }
}

void a_parameter_without_a_shape_takes_the_file_s() {
    const std::string path = in_folder("shape");
    Run a(plain), b(plain, false, false), c(plain, false, true);
    for (int t = 1; t <= 4; ++t) a.step(t), b.step(t);
    radam::save(a.optimizer, path);
    Content content(path);
    for (const char* name : {"2.exp_avg", "2.exp_avg_sq"}) content[name].shape = {1, 7, 1};
    content.write(path);
    radam::load(b.optimizer, path);
    radam::save(b.optimizer, in_folder("again"));
    const Content again(in_folder("again"));
    EXPECT(again.tensors.size() == content.tensors.size());
    for (std::size_t i = 0; i < again.tensors.size(); ++i) EXPECT(again.tensors[i].shape == content.tensors[i].shape);
    EXPECT(!says(again.header, "param_names"));
    refused(a, path, "has shape (1, 7, 1), the parameter (7,)");

    float weight = 1, gradient = 1;
    radam::Optimizer scalar;
    scalar.add_param(&weight, &gradient, 1);
    scalar.step();
    radam::save(scalar, path);
    Content no_dims(path);
    for (radam::TensorToStore& tensor : no_dims.tensors) tensor.shape = {};
    no_dims.write(path);
    radam::load(scalar, path);
    EXPECT(scalar.shape(0).empty());
    radam::save(scalar, path);
    EXPECT(Content(path).tensors[0].shape.empty());
}

void what_a_user_of_python_has_there_is_no_hindrance() {
    const std::string path = in_folder("python");
    Run run(plain);
    for (int t = 1; t <= 4; ++t) run.step(t);
    radam::save(run.optimizer, path);
    Content content(path);
    content.replace("\"lr\": 0.01", "\"lr\": null, \"mine\": [1, {\"a\": [NaN, 123456789012345678901234567890]}]");
    content.replace("\"eps\": 1e-08", "\"eps\": 0");
    content.replace("\"maximize\": false", "\"maximize\": 1");
    content.replace("\"decoupled_weight_decay\": null", "\"decoupled_weight_decay\": true");
    content.replace("\"threshold\": 5.0", "\"threshold\": 5");
    content.replace("\"params\": [3, 4]", "\"params\": [99, 4]");
    content.write(path);
    run.optimizer.set_lr(0.125);
    radam::load(run.optimizer, path);
    const radam::Options& options = run.optimizer.options(0);
    EXPECT(options.lr == 0.125 && run.optimizer.options(1).lr == 0.05 && options.eps == 0.0 && options.maximize);
    EXPECT(options.decoupled_weight_decay == true && !run.optimizer.options(1).decoupled_weight_decay.has_value());

    // A state of version 1 knew no precision; the optimizer's own seed stays.
    const std::size_t at = content.header.find("\"precision\""), end = content.header.find("\"param_groups\"");
    content.header.erase(at, end - at);
    content.replace("\"version\": 2", "\"version\": 1");
    content.replace(", \"block_orders\": {}", "");
    content.write(path);
    radam::load(run.optimizer, path);
    EXPECT(run.optimizer.precision().seed == plain.precision.seed);
}

void an_embedder_s_own_buffers_are_filled() {
    const std::string path = in_folder("own");
    Run run(with(DType::fp32, StateDType::float32, true));
    for (int t = 1; t <= 4; ++t) run.step(t);
    float weights[4] = {1, 2, 3, 4}, gradients[4] = {1, 1, 1, 1}, m[4] = {}, v[4] = {}, max[4] = {};
    radam::Options amsgrad;
    amsgrad.amsgrad = true;
    radam::Optimizer saved(amsgrad);
    saved.add_param(weights, gradients, 4);
    saved.step();
    radam::save(saved, path);
    Content content(path);
    content.replace("\"amsgrad\": true", "\"amsgrad\": false");
    content.write(path);
    for (const bool has_room : {true, false}) {
        float other[4] = {1, 2, 3, 4};
        radam::ParamOptions own;
        own.state.exp_avg = m;
        own.state.exp_avg_sq = v;
        own.state.max_exp_avg_sq = has_room ? max : nullptr;
        radam::Optimizer optimizer;
        optimizer.add_param(other, gradients, 4, own);
        radam::load(optimizer, path);
        EXPECT(std::memcmp(m, saved.slot(0).exp_avg, sizeof m) == 0 && m[0] != 0.0f);
        EXPECT(std::memcmp(v, saved.slot(0).exp_avg_sq, sizeof v) == 0);
        EXPECT(std::memcmp(max, saved.slot(0).max_exp_avg_sq, sizeof max) == 0);
        radam::save(optimizer, in_folder("again"));
        EXPECT(Content(in_folder("again")).tensors.size() == (has_room ? 3 : 2));  // the maximum outlives amsgrad
    }
    saved.set_options(0, amsgrad);
    saved.step();
    radam::save(saved, path);
    radam::ParamOptions small;
    small.state.exp_avg = m;
    small.state.exp_avg_sq = v;
    radam::Optimizer optimizer;
    optimizer.add_param(weights, gradients, 4, small);
    const float before = m[0];
    EXPECT(says(why([&] { radam::load(optimizer, path); }), "max_exp_avg_sq"));
    EXPECT(m[0] == before && optimizer.steps(0) == 0 && !optimizer.options().amsgrad);
}

}  // namespace

int main() {
    fs::create_directory(folder);
    a_run_goes_on_with_the_same_bits();
    moments_of_any_kind_become_those_that_are_kept();
    codes_cut_in_another_memory_order_keep_their_numbers();
    a_parameter_without_a_shape_takes_the_file_s();
    what_a_user_of_python_has_there_is_no_hindrance();
    an_embedder_s_own_buffers_are_filled();
    fs::remove_all(folder);
    return failures == 0 ? 0 : 1;
}
