// Saved states that do not fit are refused, and the optimizer is then what it was, to the bit.
#include "saved_runs.hpp"

namespace {

void a_header_that_does_not_fit_is_refused() {
    const std::string good = in_folder("good"), bad = in_folder("bad");
    Run run(plain);
    for (int t = 1; t <= 4; ++t) run.step(t);
    radam::save(run.optimizer, good);
    run.step(5);
    const std::string deep = std::string(1000000, '[');
    const struct {
        std::string from, to, words;
    } cases[] = {
        {"\"version\": 2", "\"version\": 3", "has version 3; this radam reads versions 1 to 2"},
        {"\"version\": 2", "\"version\": true", "has version true"},
        {"\"version\": 2, ", "", "has no 'version'"},
        {"\"RAdam\"", "\"Adam\"",
         "optimizer: the state dict is of \"Adam\", this optimizer of \"RAdam\"; they step otherwise"},
        {"\"threshold\": 5.0", "\"threshold\": 4.0", "convention: the state dict is of {\"threshold\": 4.0"},
        {"\"nesterov\": false", "\"nesterov\": false, \"more\": 1", "convention: the state dict is of"},
        {"\"nesterov\": false", "\"threshold\\u0000\": 5.0", "convention: the state dict is of"},
        {"[\"coupled\"]", "[\"decoupled\"]", "convention: the state dict is of"},
        {"\"precision\": {", "\"precision\": 3, \"x\": {", "precision has no 'master_weights'"},
        {"\"master_weights\": false", "\"master_weights\": 2", "master_weights must be true or false"},
        {"\"master_weights\": false, \"stochastic_rounding\": false",
         "\"master_weights\": true, \"stochastic_rounding\": true", "exclude each other"},
        {"\"state_dtype\": \"float32\"", "\"state_dtype\": \"float16\"", "state_dtype must be"},
        {"\"min_8bit_size\": 100", "\"min_8bit_size\": -1", "min_8bit_size must be"},
        {"\"min_8bit_size\": 100", "\"min_8bit_size\": 9223372036854775808", "min_8bit_size must be"},
        {"\"seed\": 18364758544493064720", "\"seed\": 18446744073709551616", "seed must be"},
        {"\"seed\": 18364758544493064720", "\"seed\": 1.0", "seed must be"},
        {"\"param_groups\": [", "\"param_groups\": [{}, ", "param_groups: the state dict must hold 2 groups"},
        {"\"param_groups\": [", "\"param_groups\": 3, \"x\": [", "param_groups: the state dict must hold 2 groups"},
        {"\"params\": [0, 1, 2]", "\"params\": [0, 1]", "param_groups[0]['params'] must list 3 parameters"},
        {"\"params\": [0, 1, 2]", "\"params\": 3", "param_groups[0]['params'] must list 3 parameters"},
        {"\"params\": [0, 1, 2]", "\"params\": [0, 1, 1]", "holds 1, which is no index, or one used before"},
        {"\"params\": [3, 4]", "\"params\": [3, 0]", "holds 0, which is no index, or one used before"},
        {"\"params\": [0, 1, 2]", "\"params\": [0, 1, -2]", "holds -2, which is no index"},
        {"\"params\": [0, 1, 2]", "\"params\": [0, 1, 2.0]", "holds 2.0, which is no index"},
        {"\"params\": [0, 1, 2]", "\"params\": [0, 1, 7]", "state[2] belongs to no parameter"},
        {"\"p0\\u00e9\"", "\"q\"", "param_groups[0]['param_names'] is [\"q\", "},
        {"\"lr\": 0.01", "\"lR\": 0.01", "param_groups[0] has no 'lr'"},
        {"\"lr\": 0.01", "\"lr\": \"a\"", "param_groups[0]['lr'] must be a number, got \"a\""},
        {"\"lr\": 0.01", "\"lr\": -1", "lr must be"},
        {"\"lr\": 0.05", "\"lr\": NaN", "lr must be"},
        {"\"lr\": 0.05", "\"lr\": Infinity", "lr must be"},
        {"\"lr\": 0.05", "\"lr\": 1e999", "['lr'] must be a number"},
        {"[0.9, 0.99]", "[0.9, 1.0]", "beta2 must be"},
        {"[0.9, 0.99]", "[0.9]", "['betas'] must be two numbers"},
        {"[0.9, 0.99]", "[0.9, null]", "['betas'][1] must be a number"},
        {"\"eps\": 1e-08", "\"eps\": null", "['eps'] must be a number"},
        {"\"decoupled_weight_decay\": null", "\"decoupled_weight_decay\": \"no\"", "must be true or false"},
        {"\"maximize\": false", "\"maximize\": 0.5", "['maximize'] must be true or false"},
        {"\"steps\": {\"0\": 4", "\"steps\": {\"0\": 0",
         "state[0]['step'] must be a whole number from 1 to 2^62, got 0"},
        {"\"steps\": {\"0\": 4", "\"steps\": {\"0\": 4611686018427387905", "from 1 to 2^62"},
        {"\"steps\": {\"0\": 4", "\"steps\": {\"0\": 4.0", "from 1 to 2^62"},
        {"\"steps\": {\"0\": 4", "\"steps\": {\"0\": true", "from 1 to 2^62"},
        {"\"steps\": {\"0\": 4", "\"steps\": {\"9\": 4", "state[9] belongs to no parameter"},
        {"\"steps\": {\"0\": 4", "\"steps\": {\"00\": 4", "state[00] belongs to no parameter"},
        {"\"steps\": {\"0\": 4, ", "\"steps\": {", "of a parameter without a step count"},
        {"\"steps\": {", "\"steps\": 3, \"x\": {", "steps must be an object"},
        {"\"steps\": {", "\"step\": {", "has no 'steps'"},
        {"\"steps\": {\"0\": 4", "\"steps\": {\"0\": 4, \"0\": 5", "comes twice"},
        {"\"block_orders\": {", "\"block_orders\": {\"3\": [0]", "block_orders has '3'"},
        {"\"block_orders\": {}", "\"block_orders\": []", "block_orders must be an object"},
        {"{", "", "cannot be read as a saved radam state"},
        {"\"block_orders\": {}", "\"mine\": " + deep, "nest too deep"},
        {"\"steps\": {\"0\": 4", "\"steps\": {\"3\": 1, \"0\": 4", "state[3] has no 'exp_avg'"},
    };
    for (const auto& c : cases) {
        Content content(good);
        content.replace(c.from, c.to);
        content.write(bad);
        refused(run, bad, c.words);
    }
    Content(good).write(bad);
    radam::load(run.optimizer, bad);

    radam::write_safetensors(bad, {{"other", "x"}}, {});
    refused(run, bad, "was not saved by radam");
    radam::write_safetensors(bad, {{"radam", "[]"}}, {});
    refused(run, bad, "it is no object");
    refused(run, in_folder("none"), "no such file");
}

void tensors_that_do_not_fit_are_refused() {
    using Edit = std::function<void(Content&)>;
    const std::string good = in_folder("good"), bad = in_folder("bad");
    const auto refuse = [&](Run& run, const Edit& edit, const char* words) {
        for (int t = 1; t <= 4; ++t) run.step(t);
        radam::save(run.optimizer, good);
        run.step(5);
        Content content(good);
        edit(content);
        content.write(bad);
        refused(run, bad, words);
        radam::load(run.optimizer, good);
    };
    const struct {
        Kind kind;
        Edit edit;
        const char* words;
    } cases[] = {
        {plain, [](Content& c) { c.drop("0.exp_avg"); }, "state[0] has no 'exp_avg'"},
        {plain, [](Content& c) { c.drop("4.exp_avg_sq"); }, "state[4] has no 'exp_avg_sq'"},
        {with(DType::fp32, StateDType::float32, true), [](Content& c) { c.drop("1.max_exp_avg_sq"); },
         "state[1] has no 'max_exp_avg_sq'"},
        {plain, [](Content& c) { c.add("w", "F32", {1}); }, "holds 'w' of a parameter without a step count"},
        {plain, [](Content& c) { c.add("3.exp_avg", "F32", {1}); }, "holds '3.exp_avg'"},
        {plain, [](Content& c) { c.add("0.other", "F32", {1}); },
         "state[0] has 'other', which this radam does not know"},
        {plain, [](Content& c) { c["0.exp_avg"].shape = {13, 15}; },
         "state[0]['exp_avg'] has shape (13, 15), the parameter (15, 13)"},
        {plain, [](Content& c) { c["1.exp_avg"].shape = {1, 300}; }, "has shape (1, 300), the parameter (300,)"},
        {plain, [](Content& c) { c["1.exp_avg_sq"].shape = {299}; }, "has shape (299,)"},
        {plain, [](Content& c) { c["1.exp_avg"].dtype = "I32"; }, "has dtype I32; the moments here are float32"},
        {with(DType::fp64, StateDType::float32), [](Content& c) { c["1.exp_avg"].dtype = "F32"; },
         "has dtype F32; the moments here are float64"},
        {with(DType::fp64, StateDType::float32), [](Content& c) { c.put("1.exp_avg_sq", -1e-300); },
         "a negative number"},
        {plain, [](Content& c) { c.put("1.exp_avg_sq", -1e-30f); },
         "state[1]['exp_avg_sq'] holds a negative number, but it is an average of squares"},
        {with(DType::fp32, StateDType::bfloat16), [](Content& c) { c.put("1.exp_avg_sq", std::uint16_t{0x8001}); },
         "a negative number"},
        {with(DType::fp32, StateDType::eight_bit), [](Content& c) { c.drop("1.exp_avg_scale"); },
         "state[1] has no 'exp_avg_scale'"},
        {with(DType::fp32, StateDType::eight_bit), [](Content& c) { c.drop("1.exp_avg_sq_code"); },
         "state[1] has 'exp_avg_sq_scale' but no 'exp_avg_sq_code'"},
        {with(DType::fp32, StateDType::eight_bit), [](Content& c) { c.add("1.exp_avg", "F32", {300}); },
         "state[1] has both 'exp_avg' and 'exp_avg_code'"},
        {with(DType::fp32, StateDType::eight_bit), [](Content& c) { c["1.exp_avg_scale"].shape = {4}; },
         "300 elements have float32 scales of shape (3,)"},
        {with(DType::fp32, StateDType::eight_bit), [](Content& c) { c["1.exp_avg_scale"].dtype = "I32"; },
         "300 elements have float32 scales of shape (3,)"},
        {with(DType::fp32, StateDType::eight_bit), [](Content& c) { c.put("1.exp_avg_scale", -1.0f); }, "is no scale"},
        {with(DType::fp32, StateDType::eight_bit),
         [](Content& c) { c.put("1.exp_avg_scale", std::numeric_limits<float>::quiet_NaN()); }, "is no scale"},
        {with(DType::fp32, StateDType::eight_bit), [](Content& c) { c["1.exp_avg_code"].dtype = "U8"; },
         "has dtype U8; it must be int8"},
        {with(DType::fp64, StateDType::eight_bit),
         [](Content& c) {
             c.drop("1.exp_avg"), c.add("1.exp_avg_code", "I8", {300}), c.add("1.exp_avg_scale", "F32", {3});
         },
         "state[1] has 'exp_avg_code'; the moments here are float64"},
        {with(DType::bf16, StateDType::float32, false, true), [](Content& c) { c["1.remainder"].dtype = "U16"; },
         "has dtype U16; it must be int16"},
        {with(DType::fp16, StateDType::float32, false, true), [](Content& c) { c["1.master"].shape = {3}; },
         "has shape (3,)"},
    };
    for (const auto& c : cases) {
        Run run(c.kind);
        refuse(run, c.edit, c.words);
    }
    for (const char* order :
         {"[0]", "[0, 0]", "[0, 2]", "[0, 1, 2]", "3", "[0, true]", "[0, 1.0]", "null", "{\"a\": 0, \"b\": 1}"}) {
        Run run(with(DType::fp32, StateDType::eight_bit));
        const auto edit = [&](Content& c) {
            c.replace("\"block_orders\": {", std::string("\"block_orders\": {\"0\": ") + order);
        };
        refuse(run, edit, "state[0]['block_order'] must list the axes 0 to 1");
    }
}

}  // namespace

int main() {
    fs::create_directory(folder);
    a_header_that_does_not_fit_is_refused();
    tensors_that_do_not_fit_are_refused();
    fs::remove_all(folder);
    return failures == 0 ? 0 : 1;
}
