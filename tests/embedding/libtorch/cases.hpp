// Runs the cases that test_libtorch.py describes, and writes what came out of them for it to compare.
//
// A case is some lines of words: "case NAME", then options of the optimizer ("precision", "clip", "skip", "scale",
// "convention"), "group" with what is set for it, "param" with its dtype, its gradient's, layouts and sizes, and "run"
// with a number of steps. Numbers of parameters and gradients come from the formula that the test has too.
#pragma once

#include <ATen/ATen.h>
#include <torch/serialize.h>

#include <fstream>
#include <map>
#include <radam/torch.hpp>
#include <sstream>
#include <string>
#include <vector>

namespace cases {

using at::Tensor;

// Number k of a stream, from -0.5 to 0.5, a multiple of 2^-24.
inline float value(std::uint32_t k, std::uint32_t stream) {
    std::uint32_t x = k * 2654435761u + stream * 2246822519u + 12345u;
    x ^= x >> 15;
    x *= 2654435761u;
    return static_cast<float>(x >> 8) * 0x1p-24f - 0.5f;
}

inline at::ScalarType dtype_of(const std::string& name) {
    static const std::map<std::string, at::ScalarType> known{
        {"float64", at::kDouble},           {"float32", at::kFloat},
        {"bfloat16", at::kBFloat16},        {"float16", at::kHalf},
        {"complex128", at::kComplexDouble}, {"complex64", at::kComplexFloat},
        {"complex32", at::kComplexHalf}};
    return known.at(name);
}

// The stream's numbers in these sizes, lying in memory as layout says: plain, transposed, strided or expanded.
inline Tensor numbers(const std::vector<std::int64_t>& sizes, at::ScalarType dtype, const std::string& layout,
                      std::uint32_t stream) {
    const bool complex = at::isComplexType(dtype);
    std::vector<std::int64_t> real = sizes;
    if (complex) real.push_back(2);
    Tensor made = at::empty(real, at::kFloat);
    for (std::int64_t k = 0; k < made.numel(); ++k)
        made.mutable_data_ptr<float>()[k] = value(static_cast<std::uint32_t>(k), stream);
    if (complex) made = at::complex(made.select(-1, 0), made.select(-1, 1));
    made = made.to(dtype);
    if (layout == "transposed") {
        std::vector<std::int64_t> order(sizes.size());
        for (std::size_t d = 0; d < order.size(); ++d) order[d] = static_cast<std::int64_t>(order.size() - 1 - d);
        return made.permute(order).contiguous().permute(order);
    }
    if (layout == "strided") {
        std::vector<std::int64_t> wide = sizes;
        wide.back() *= 2;
        return at::zeros(wide, made.options()).slice(-1, 0, wide.back(), 2).copy_(made);
    }
    if (layout == "expanded") return made.select(0, 0).expand(sizes);
    return made;
}

struct Param {
    Tensor tensor;
    std::vector<std::int64_t> sizes;
    at::ScalarType grad_dtype;
    std::string grad_layout;
};

struct Case {
    std::string name;
    std::vector<std::vector<std::string>> options;
    std::vector<torch::optim::OptimizerParamGroup> groups;
    std::vector<Param> params;
};

inline radam::torch::RAdamOptions group_options(const std::vector<std::string>& words) {
    std::map<std::string, double> said;
    for (std::size_t i = 1; i + 1 < words.size(); i += 2) said[words[i]] = std::stod(words[i + 1]);
    radam::torch::RAdamOptions o;
    if (said.count("lr") != 0) o.lr(said["lr"]);
    if (said.count("beta1") != 0) o.betas({said["beta1"], said["beta2"]});
    if (said.count("eps") != 0) o.eps(said["eps"]);
    if (said.count("weight_decay") != 0) o.weight_decay(said["weight_decay"]);
    if (said.count("decoupled") != 0) o.decoupled_weight_decay(said["decoupled"] != 0);
    if (said.count("maximize") != 0) o.maximize(said["maximize"] != 0);
    if (said.count("amsgrad") != 0) o.amsgrad(said["amsgrad"] != 0);
    return o;
}

template <class RAdam>
void set(RAdam& optimizer, const std::vector<std::string>& words) {
    if (words[0] == "precision") {
        radam::Precision p;
        p.master_weights = words[1] == "1";
        p.stochastic_rounding = words[2] == "1";
        p.state_dtype = words[3] == "8bit"       ? radam::StateDType::eight_bit
                        : words[3] == "bfloat16" ? radam::StateDType::bfloat16
                                                 : radam::StateDType::float32;
        p.min_8bit_size = std::stoll(words[4]);
        p.seed = std::stoull(words[5]);
        optimizer.set_precision(p);
    }
    if (words[0] == "max_grad_norm") optimizer.set_max_grad_norm(std::stod(words[1]));
    if (words[0] == "max_tensor_grad_norm") optimizer.set_max_tensor_grad_norm(std::stod(words[1]));
    if (words[0] == "max_grad_value") optimizer.set_max_grad_value(std::stod(words[1]));
}

// Takes the steps of a case; every fifth gradient of one with gaps is missing.
template <class RAdam>
void run(Case& which, int steps, bool gaps, c10::Dict<std::string, Tensor>& out) {
    const radam::Convention* convention = &radam::conventions[0];
    for (const auto& words : which.options)
        if (words[0] == "convention") convention = radam::find_convention(words[1].c_str());
    RAdam optimizer(which.groups, {}, *convention);
    for (const auto& words : which.options) set(optimizer, words);
    for (int t = 0; t < steps; ++t) {
        for (std::size_t i = 0; i < which.params.size(); ++i) {
            Param& p = which.params[i];
            const auto stream = static_cast<std::uint32_t>(1000 + 100 * static_cast<std::size_t>(t) + i);
            const bool missing = gaps && (static_cast<std::size_t>(t) + i) % 5 == 4;
            p.tensor.mutable_grad() = missing ? Tensor() : numbers(p.sizes, p.grad_dtype, p.grad_layout, stream);
        }
        optimizer.step();
    }
    const auto copy = [](const Tensor& x) {  // complex numbers as pairs: Python cannot read complex32
        const Tensor plain = x.detach().clone(at::MemoryFormat::Contiguous);
        return plain.is_complex() ? at::view_as_real(plain) : plain;
    };
    for (std::size_t i = 0; i < which.params.size(); ++i) {
        const std::string key = which.name + "/" + std::to_string(i) + "/";
        out.insert(key + "param", copy(which.params[i].tensor));
        const auto found = optimizer.state().find(which.params[i].tensor.unsafeGetTensorImpl());
        if (found == optimizer.state().end()) continue;
        const auto& state = static_cast<const radam::torch::RAdamParamState&>(*found->second);
        out.insert(key + "step", at::scalar_tensor(state.step(), at::kLong));
        radam::torch::RAdamParamState::for_each(state, [&](const char* name, const Tensor& tensor) {
            if (tensor.defined()) out.insert(key + name, copy(tensor));
        });
    }
    out.insert(which.name + "/norm", at::scalar_tensor(optimizer.grad_norm(), at::kDouble));
}

// Reads cases from one file and writes a dict of tensors, which torch.load reads, to another.
template <class RAdam>
int run_all(const char* from, const char* to) {
    std::ifstream file(from);
    c10::Dict<std::string, Tensor> out;
    Case now;
    for (std::string line; std::getline(file, line);) {
        std::istringstream stream(line);
        std::vector<std::string> words;
        for (std::string word; stream >> word;) words.push_back(word);
        if (words.empty()) continue;
        if (words[0] == "case") {
            now = {};
            now.name = words[1];
        } else if (words[0] == "group") {
            now.groups.emplace_back(std::vector<Tensor>(),
                                    std::make_unique<radam::torch::RAdamOptions>(group_options(words)));
        } else if (words[0] == "param") {
            std::vector<std::int64_t> sizes;
            for (std::size_t i = 5; i < words.size(); ++i) sizes.push_back(std::stoll(words[i]));
            const auto stream_of = static_cast<std::uint32_t>(now.params.size());
            Tensor made = numbers(sizes, dtype_of(words[1]), words[3], stream_of);
            now.params.push_back({made, sizes, dtype_of(words[2]), words[4]});
            now.groups.back().params().push_back(made);
        } else if (words[0] == "run") {
            run<RAdam>(now, std::stoi(words[1]), words[2] == "gaps", out);
        } else {
            now.options.push_back(words);
        }
    }
    const std::vector<char> bytes = torch::pickle_save(out);
    std::ofstream(to, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return 0;
}

}  // namespace cases
