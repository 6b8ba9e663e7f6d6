// Takes steps as a plan says: main PLAN. The plan is a safetensors file with parameters and gradients, and the rest of
// it in JSON: which optimizer, which state to load, which to save, where to leave the parameters.
#include <radam/radam.hpp>
#include <radam/saved.hpp>

#include <clocale>
#include <cstdio>
#include <exception>
#include <map>
#include <string>
#include <vector>

namespace {

using radam::Json;

struct Array {
    std::vector<std::int64_t> shape;
    std::string dtype;
    std::vector<char> bytes;
    std::int64_t size = 1;
};

double number(const Json& of, const char* key) {
    return radam::detail::read_number(radam::detail::entry(of, key, key), key);
}
bool flag(const Json& of, const char* key) { return radam::detail::read_flag(radam::detail::entry(of, key, key), key); }
const std::string& text(const Json& of, const char* key) { return radam::detail::entry(of, key, key).text; }
std::uint64_t whole(const Json& of, const char* key) {
    std::uint64_t found = 0;
    if (!radam::json::read_whole(text(of, key), found))
        throw std::runtime_error(std::string(key) + " is no whole number");
    return found;
}

radam::Options options_of(const Json& group) {
    radam::Options o;
    o.lr = number(group, "lr");
    o.beta1 = number(group, "beta1");
    o.beta2 = number(group, "beta2");
    o.weight_decay = number(group, "weight_decay");
    if (group.find("decoupled") != nullptr) o.decoupled_weight_decay = flag(group, "decoupled");
    o.maximize = flag(group, "maximize");
    o.amsgrad = flag(group, "amsgrad");
    return o;
}

radam::Precision precision_of(const Json& found) {
    radam::Precision p;
    p.master_weights = flag(found, "master_weights");
    p.stochastic_rounding = flag(found, "stochastic_rounding");
    p.min_8bit_size = static_cast<std::int64_t>(whole(found, "min_8bit_size"));
    p.seed = whole(found, "seed");
    const std::string& dtype = text(found, "state_dtype");
    p.state_dtype = dtype == "8bit"       ? radam::StateDType::eight_bit
                    : dtype == "bfloat16" ? radam::StateDType::bfloat16
                                          : radam::StateDType::float32;
    return p;
}

void add_param(radam::Optimizer& optimizer, const std::string& dtype, Array& param, const radam::ParamOptions& about) {
    const auto add = [&](auto number) {
        auto* const data = reinterpret_cast<decltype(number)*>(param.bytes.data());
        optimizer.add_param(data, nullptr, param.size, about);
    };
    if (dtype == "float64") add(double{});
    if (dtype == "float32") add(float{});
    if (dtype == "bfloat16") add(radam::bf16{});
    if (dtype == "float16") add(radam::fp16{});
}

void follow(const std::string& path) {
    const radam::SafetensorsFile file(path);
    const Json plan = radam::json::parse(*file.metadata("plan"));
    std::map<std::string, Array> arrays;
    for (const radam::StoredTensor& tensor : file.tensors()) {
        Array& array = arrays[tensor.name];
        array.shape = tensor.shape;
        array.dtype = tensor.dtype;
        for (const std::int64_t n : tensor.shape) array.size *= n;
        array.bytes.resize(static_cast<std::size_t>(tensor.end - tensor.begin) + 1);  // at an address, if it is empty
        file.read(tensor, array.bytes.data());
    }

    const std::vector<Json>& groups = plan.find("groups")->items;
    radam::Optimizer optimizer(options_of(groups[0]), *radam::find_convention(text(plan, "convention").c_str()));
    optimizer.set_precision(precision_of(*plan.find("precision")));
    std::size_t count = 0;
    for (std::size_t g = 0; g < groups.size(); ++g) {
        if (g > 0) optimizer.add_group(options_of(groups[g]));
        for (const Json& name : groups[g].find("names")->items) {
            Array& param = arrays.at("param." + std::to_string(count++));
            radam::ParamOptions about;
            about.name = name.text;
            if (flag(plan, "shaped")) about.shape = param.shape;
            add_param(optimizer, text(plan, "dtype"), param, about);
        }
    }
    if (!text(plan, "load").empty()) radam::load(optimizer, text(plan, "load"));
    for (std::uint64_t t = 0; t < whole(plan, "steps"); ++t) {
        for (std::size_t i = 0; i < count; ++i) {
            const auto grad = arrays.find("grad." + std::to_string(t) + "." + std::to_string(i));
            const void* const place = grad == arrays.end() ? nullptr : grad->second.bytes.data();
            optimizer.set_grad(i, place);
        }
        optimizer.step();
    }
    if (!text(plan, "save").empty()) radam::save(optimizer, text(plan, "save"));
    std::vector<radam::TensorToStore> params;
    for (std::size_t i = 0; i < count; ++i) {
        const std::string name = "param." + std::to_string(i);
        const Array& param = arrays.at(name);
        params.push_back({name, param.dtype, param.shape, param.bytes.data()});
    }
    radam::write_safetensors(text(plan, "out"), {}, params);
}

}  // namespace

int main(int argc, char** argv) {
    std::setlocale(LC_ALL, "");  // which must not matter
    try {
        for (int i = 1; i < argc; ++i) follow(argv[i]);
    } catch (const std::exception& error) {
        std::puts(error.what());
        return 1;
    }
    return 0;
}
