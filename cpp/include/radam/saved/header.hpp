// What a saved file says of an optimizer beside its tensors, as JSON: written, and read against the optimizer at hand.
#pragma once

#include <algorithm>
#include <iterator>
#include <map>

#include "../optimizer.hpp"
#include "json.hpp"

namespace radam::detail {

constexpr int saved_version = 2;  // version 1, which is read too, knew no precision

// Something in a file that is no saved state, or none of this optimizer. Who reads the file puts its name before it.
struct Misfit : std::runtime_error {
    using std::runtime_error::runtime_error;
};
[[noreturn]] inline void refuse(const std::string& why) { throw Misfit(why); }

// ---- writing

template <class T>
std::string text_of(const T& x) {
    std::string text;
    json::write(text, x);
    return text;
}
inline std::string text_of(bool x) { return x ? "true" : "false"; }

// What a state is only good for: it steps otherwise in another optimizer.
inline std::string saved_kind(const Convention& c) { return c.rectify ? "\"RAdam\"" : "\"Adam\""; }
inline std::string saved_convention(const Convention& c) {
    const char* const decay = c.decay == Decay::none      ? "[]"
                              : c.decay == Decay::coupled ? "[\"coupled\"]"
                                                          : "[\"decoupled\"]";
    return "{\"threshold\": " + text_of(c.threshold) +
           ", \"rectify_at_threshold\": " + text_of(c.rectify_at_threshold) +
           ", \"warmup\": " + (c.warmup == Warmup::momentum ? "\"momentum\"" : "\"moments_only\"") +
           ", \"eps_on\": " + (c.eps_on == EpsOn::sqrt_v ? "\"sqrt_v\"" : "\"sqrt_v_hat\"") + ", \"decay\": " + decay +
           ", \"eps_root\": " + text_of(c.eps_root) + ", \"nesterov\": " + text_of(c.nesterov) + "}";
}

constexpr const char* state_dtype_names[] = {"float32", "bfloat16", "8bit"};  // in the order of StateDType

inline std::string saved_precision(const Precision& p) {
    return "{\"master_weights\": " + text_of(p.master_weights) +
           ", \"stochastic_rounding\": " + text_of(p.stochastic_rounding) + ", \"state_dtype\": \"" +
           state_dtype_names[static_cast<int>(p.state_dtype)] +
           "\", \"min_8bit_size\": " + std::to_string(p.min_8bit_size) + ", \"seed\": " + std::to_string(p.seed) + "}";
}

// The names of a group's parameters as a JSON list; nothing where one has none.
inline std::string saved_names(const OptimizerBase& optimizer, std::size_t first, std::size_t last) {
    std::string list;
    for (std::size_t i = first; i < last; ++i) {
        const std::string& name = optimizer.name(i);
        if (name.empty()) return {};
        list += (list.empty() ? "[" : ", ") + text_of(name);
    }
    return list.empty() ? list : list + "]";
}

// One past the last of a group's parameters, the first one given.
inline std::size_t end_of_group(const OptimizerBase& optimizer, std::size_t group, std::size_t first) {
    while (first < optimizer.size() && optimizer.group_of(first) == group) ++first;
    return first;
}

inline std::string saved_group(const OptimizerBase& optimizer, std::size_t group, std::size_t first, std::size_t last) {
    const Options& o = optimizer.options(group);
    const std::string names = saved_names(optimizer, first, last);
    std::string text = names.empty() ? "{" : "{\"param_names\": " + names + ", ";
    text += "\"lr\": " + text_of(o.lr) + ", \"betas\": [" + text_of(o.beta1) + ", " + text_of(o.beta2) +
            "], \"eps\": " + text_of(o.eps.value_or(optimizer.convention().eps)) +
            ", \"weight_decay\": " + text_of(o.weight_decay) + ", \"decoupled_weight_decay\": " +
            (o.decoupled_weight_decay ? text_of(*o.decoupled_weight_decay) : "null") +
            ", \"maximize\": " + text_of(o.maximize) + ", \"amsgrad\": " + text_of(o.amsgrad) + ", \"params\": [";
    for (std::size_t i = first; i < last; ++i) text += (i > first ? ", " : "") + std::to_string(i);
    return text + "]}";
}

inline std::string saved_header(const OptimizerBase& optimizer) {
    std::string groups, steps;
    std::size_t first = 0;
    for (std::size_t g = 0; g < optimizer.groups(); ++g) {
        const std::size_t last = end_of_group(optimizer, g, first);
        groups += (g > 0 ? ", " : "") + saved_group(optimizer, g, first, last);
        first = last;
    }
    for (std::size_t i = 0; i < optimizer.size(); ++i)
        if (optimizer.steps(i) > 0)
            steps += (steps.empty() ? "\"" : ", \"") + std::to_string(i) + "\": " + std::to_string(optimizer.steps(i));
    return "{\"version\": " + std::to_string(saved_version) + ", \"optimizer\": " + saved_kind(optimizer.convention()) +
           ", \"convention\": " + saved_convention(optimizer.convention()) +
           ", \"precision\": " + saved_precision(optimizer.precision()) + ", \"param_groups\": [" + groups +
           "], \"steps\": {" + steps + "}, \"block_orders\": {}}";
}

// ---- reading

inline const Json& entry(const Json& of, const char* key, const std::string& what) {
    const Json* const found = of.find(key);
    if (found == nullptr) refuse(what + " has no '" + key + "'");
    return *found;
}
inline double read_number(const Json& value, const std::string& name) {
    double found = 0.0;
    if (value.kind != Json::Kind::number || !json::read_double(value.text, found))
        refuse(name + " must be a number, got " + text_of(value));
    return found;
}
inline bool read_flag(const Json& value, const std::string& name) {
    if (value.kind == Json::Kind::boolean) return value.boolean;
    if (value.kind == Json::Kind::number && (value.text == "0" || value.text == "1")) return value.text == "1";
    refuse(name + " must be true or false, got " + text_of(value));
}
inline bool read_whole(const Json& value, std::uint64_t& to) noexcept {
    return value.kind == Json::Kind::number && json::read_whole(value.text, to);
}

// Whether two values mean the same: 5 and 5.0 do, and so do objects whose keys come in another order.
inline bool mean_the_same(const Json& a, const Json& b) {
    if (a.kind != b.kind || a.boolean != b.boolean || a.items.size() != b.items.size()) return false;
    double x = 0.0, y = 0.0;
    if (a.kind == Json::Kind::number) return json::read_double(a.text, x) && json::read_double(b.text, y) && x == y;
    if (a.text != b.text) return false;
    for (std::size_t i = 0; i < a.items.size(); ++i) {
        const Json* const other = a.kind == Json::Kind::object ? b.find(a.keys[i]) : &b.items[i];
        if (other == nullptr || !mean_the_same(a.items[i], *other)) return false;
    }
    return true;
}

// The header of a file, found to be of an optimizer like this one.
class SavedHeader {
public:
    // What it has of one parameter.
    struct Param {
        std::size_t index = 0;              // in the optimizer
        const Json* step = nullptr;         // null: it never took one
        const Json* block_order = nullptr;  // null: C order
    };

    SavedHeader(const OptimizerBase& optimizer, const std::string& text) : seed(optimizer.precision().seed) {
        try {
            json_ = json::parse(text);
        } catch (const std::runtime_error& error) {
            refuse(std::string("it cannot be read as a saved radam state: ") + error.what());
        }
        if (json_.kind != Json::Kind::object) refuse("it cannot be read as a saved radam state: it is no object");
        take_version();
        take_kind("optimizer", saved_kind(optimizer.convention()));
        take_kind("convention", saved_convention(optimizer.convention()));
        take_groups(optimizer);
        take_steps();
    }
    SavedHeader(const SavedHeader&) = delete;
    SavedHeader& operator=(const SavedHeader&) = delete;

    // The parameter of a number as the file writes it; null where it has taken no step, or is in no group.
    const Param* stepped(const std::string& number) { return stepped(find(number)); }

    std::vector<Options> options;  // of each group
    std::uint64_t seed;
    std::map<std::uint64_t, Param> params;  // by their numbers in the file

private:
    static const Param* stepped(const Param* param) noexcept {
        return param == nullptr || param->step == nullptr ? nullptr : param;
    }
    Param* find(const std::string& number) {
        std::uint64_t found = 0;
        if (!json::read_whole(number, found)) return nullptr;
        const auto at = params.find(found);
        return at == params.end() ? nullptr : &at->second;
    }

    void take_version() {
        const Json& version = entry(json_, "version", "the state dict");
        std::uint64_t number = 0;
        if (!read_whole(version, number) || number < 1 || number > saved_version)
            refuse("the state dict has version " + text_of(version) + "; this radam reads versions 1 to " +
                   std::to_string(saved_version));
        if (number > 1) take_precision(entry(json_, "precision", "the state dict"));
    }

    // The optimizer keeps its own precision, but for the seed: so that a run goes on with the same bits.
    void take_precision(const Json& saved) {
        const std::string what = "precision";
        const bool master = read_flag(entry(saved, "master_weights", what), "master_weights");
        const bool stochastic = read_flag(entry(saved, "stochastic_rounding", what), "stochastic_rounding");
        if (master && stochastic) refuse("precision: master_weights and stochastic_rounding exclude each other");
        const Json& dtype = entry(saved, "state_dtype", what);
        const auto is_it = [&](const char* name) { return dtype.kind == Json::Kind::string && dtype.text == name; };
        if (std::none_of(std::begin(state_dtype_names), std::end(state_dtype_names), is_it))
            refuse("state_dtype must be 'float32', 'bfloat16' or '8bit', got " + text_of(dtype));
        const Json& size = entry(saved, "min_8bit_size", what);
        std::uint64_t number = 0;
        if (!read_whole(size, number) || number >> 63 != 0)
            refuse("min_8bit_size must be at least 0 and below 2^63, got " + text_of(size));
        const Json& found = entry(saved, "seed", what);
        if (!read_whole(found, seed)) refuse("seed must be at least 0 and below 2^64, got " + text_of(found));
    }

    void take_kind(const char* key, const std::string& mine) const {
        const Json& saved = entry(json_, key, "the state dict");
        if (!mean_the_same(saved, json::parse(mine)))
            refuse(std::string(key) + ": the state dict is of " + text_of(saved) + ", this optimizer of " + mine +
                   "; they step otherwise");
    }

    void take_groups(const OptimizerBase& optimizer) {
        const Json& groups = entry(json_, "param_groups", "the state dict");
        if (groups.kind != Json::Kind::array || groups.items.size() != optimizer.groups())
            refuse("param_groups: the state dict must hold " + std::to_string(optimizer.groups()) +
                   " groups, as the optimizer does");
        std::size_t first = 0;
        for (std::size_t g = 0; g < groups.items.size(); ++g) {
            const Json& group = groups.items[g];
            const std::size_t last = end_of_group(optimizer, g, first);
            const std::string what = "param_groups[" + std::to_string(g) + "]";
            take_params(entry(group, "params", what), what, first, last);
            const Json* const names = group.find("param_names");
            const std::string mine = saved_names(optimizer, first, last);
            if (names != nullptr && !mine.empty() && !mean_the_same(*names, json::parse(mine)))
                refuse(what + "['param_names'] is " + text_of(*names) + ", but the optimizer has " + mine +
                       ", in this order");
            take_options(group, what, optimizer.options(g));
            first = last;
        }
    }

    void take_params(const Json& numbers, const std::string& what, std::size_t first, std::size_t last) {
        if (numbers.kind != Json::Kind::array || numbers.items.size() != last - first)
            refuse(what + "['params'] must list " + std::to_string(last - first) +
                   " parameters, as the optimizer does");
        for (std::size_t i = first; i < last; ++i) {
            std::uint64_t number = 0;
            const Json& saved = numbers.items[i - first];
            if (!read_whole(saved, number) || !params.emplace(number, Param{i, nullptr, nullptr}).second)
                refuse(what + "['params'] holds " + text_of(saved) + ", which is no index, or one used before");
        }
    }

    // What a user of Python put into a group, and is no option here, is passed over.
    void take_options(const Json& group, const std::string& what, const Options& present) {
        const auto value = [&](const char* key) -> const Json& { return entry(group, key, what); };
        const auto name = [&](const char* key) { return what + "['" + key + "']"; };
        const auto number = [&](const char* key) { return read_number(value(key), name(key)); };
        Options o;
        o.lr = value("lr").kind == Json::Kind::null ? present.lr : number("lr");  // null: a function of the step
        const Json& betas = value("betas");
        if (betas.kind != Json::Kind::array || betas.items.size() != 2)
            refuse(name("betas") + " must be two numbers, got " + text_of(betas));
        o.beta1 = read_number(betas.items[0], name("betas") + "[0]");
        o.beta2 = read_number(betas.items[1], name("betas") + "[1]");
        o.eps = number("eps");
        o.weight_decay = number("weight_decay");
        const Json& decoupled = value("decoupled_weight_decay");
        if (decoupled.kind != Json::Kind::null)
            o.decoupled_weight_decay = read_flag(decoupled, name("decoupled_weight_decay"));
        o.maximize = read_flag(value("maximize"), name("maximize"));
        o.amsgrad = read_flag(value("amsgrad"), name("amsgrad"));
        options.push_back(o);
    }

    void take_steps() {
        const Json& steps = entry(json_, "steps", "the state dict");
        if (steps.kind != Json::Kind::object) refuse("steps must be an object, got " + text_of(steps));
        for (std::size_t i = 0; i < steps.items.size(); ++i) {
            Param* const param = find(steps.keys[i]);
            if (param == nullptr) refuse("state[" + steps.keys[i] + "] belongs to no parameter of param_groups");
            param->step = &steps.items[i];
        }
        const Json* const orders = json_.find("block_orders");
        if (orders == nullptr) return;
        if (orders->kind != Json::Kind::object) refuse("block_orders must be an object, got " + text_of(*orders));
        for (std::size_t i = 0; i < orders->items.size(); ++i) {
            Param* const param = find(orders->keys[i]);
            if (stepped(param) == nullptr)
                refuse("block_orders has '" + orders->keys[i] + "', a parameter without a step count");
            param->block_order = &orders->items[i];
        }
    }

    Json json_;
};

}  // namespace radam::detail
