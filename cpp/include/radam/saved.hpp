// States of optimizers in files, in the layout of Python's radam.RAdam.save: each reads what the other wrote.
//
// A file is safetensors. Its tensors are "0.exp_avg", "0.exp_avg_sq" and so on: a parameter's number and what the
// tensor is. All else is JSON in the metadata "radam". A parameter that never took a step is not in it, nor are
// clipping, skip_nonfinite and the gradient scale. What a Python user put into a group, and is no option here, load
// passes over. It reads all of a file before it changes anything: meanwhile memory holds the states two or three times.
#pragma once

#include <cmath>
#include <numeric>

#include "float_mode.hpp"
#include "optimizer.hpp"
#include "saved/header.hpp"
#include "saved/moments.hpp"
#include "saved/safetensors.hpp"

namespace radam {

namespace detail {

static_assert(most_shape <= most_dims, "every shape is a layout's");

constexpr int saved_moments = 3;
constexpr const char* moment_keys[saved_moments] = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"};

inline bool is_state_key(const std::string& key) {
    for (const char* moment : moment_keys)
        for (const char* part : {"", "_code", "_scale"})
            if (key == std::string(moment) + part) return true;
    return key == "remainder" || key == "master";
}

inline void add_saved_state(const OptimizerBase& optimizer, std::size_t index, std::vector<TensorToStore>& to) {
    const Slot& slot = optimizer.slot(index);
    const Shape& shape = optimizer.shape(index);
    const std::string number = std::to_string(index) + ".";
    const void* const moments[] = {slot.exp_avg, slot.exp_avg_sq, slot.max_exp_avg_sq};
    const float* const scales[] = {slot.exp_avg_scale, slot.exp_avg_sq_scale, slot.max_exp_avg_sq_scale};
    const bool amsgrad = optimizer.options(optimizer.group_of(index)).amsgrad;
    for (int m = 0; m < saved_moments; ++m) {
        if (m == 2 && slot.max_exp_avg_sq == nullptr && !(amsgrad && slot.size == 0)) continue;
        const std::string name = number + moment_keys[m];
        const char* const dtype = stored_name(moment_dtype(slot.param_dtype, slot.moments, m > 0));
        if (slot.moments == Moments::coded) {
            to.push_back({name + "_code", dtype, shape, moments[m]});
            to.push_back({name + "_scale", "F32", {blocks_of(slot.size)}, scales[m]});
        } else {
            to.push_back({name, dtype, shape, moments[m]});
        }
    }
    if (slot.weights == Weights::split) to.push_back({number + "remainder", "I16", shape, slot.master});
    if (slot.weights == Weights::master) to.push_back({number + "master", "F32", shape, slot.master});
}

// The states of a file, read and converted to what an optimizer keeps, which is not touched.
class SavedStates {
public:
    SavedStates(const OptimizerBase& optimizer, const SafetensorsFile& file)
        : header(optimizer, metadata_of(file)), states(optimizer.size()), optimizer_(optimizer), file_(file) {
        std::map<const Param*, Tensors> tensors;
        for (const StoredTensor& tensor : file.tensors()) {
            const std::size_t dot = tensor.name.find('.');
            const std::string number = tensor.name.substr(0, dot);
            const Param* const param = dot == std::string::npos ? nullptr : header.stepped(number);
            if (param == nullptr) refuse("it holds '" + tensor.name + "' of a parameter without a step count");
            const std::string key = tensor.name.substr(dot + 1);
            if (!is_state_key(key)) refuse("state[" + number + "] has '" + key + "', which this radam does not know");
            tensors[param][key] = &tensor;
        }
        for (const auto& [number, param] : header.params)
            if (param.step != nullptr) take("state[" + std::to_string(number) + "]", param, tensors[&param]);
    }

    SavedHeader header;
    std::vector<ParamState> states;

private:
    using Param = SavedHeader::Param;
    using Tensors = std::map<std::string, const StoredTensor*>;  // of one parameter, by key

    static const std::string& metadata_of(const SafetensorsFile& file) {
        const std::string* const found = file.metadata("radam");
        if (found == nullptr) refuse("it was not saved by radam: its metadata has no 'radam'");
        return *found;
    }
    static const StoredTensor* find(const Tensors& tensors, const std::string& key) {
        const auto found = tensors.find(key);
        return found == tensors.end() ? nullptr : found->second;
    }

    void take(const std::string& what, const Param& param, const Tensors& saved) {
        const Slot& slot = optimizer_.slot(param.index);
        const bool amsgrad = header.options[optimizer_.group_of(param.index)].amsgrad;
        ParamState& state = states[param.index];
        std::uint64_t step = 0;
        if (!read_whole(*param.step, step) || step < 1 || step > std::uint64_t{1} << 62)
            refuse(what + "['step'] must be a whole number from 1 to 2^62, got " + text_of(*param.step));
        state.steps = static_cast<std::int64_t>(step);
        const Shape shape = shape_of(param, saved);
        for (int m = 0; m < saved_moments; ++m) {
            const std::string name = moment_keys[m];
            // The maximum outlives an amsgrad that is off just now.
            if (m == 2 && !amsgrad && find(saved, name) == nullptr && find(saved, name + "_code") == nullptr) continue;
            Kept made = moment(what, param, saved, m, shape);
            if (m == 2 && !amsgrad && !optimizer_.has_room_for_max(param.index)) continue;
            state.buffers[m] = std::move(made.values);
            state.buffers[m + 3] = std::move(made.scales);
        }
        // Where none is saved, zeros, which a step takes for the parameter as it is; where none is kept, it is let go.
        const std::pair<const char*, DType> masters[] = {{"remainder", DType::int16}, {"master", DType::fp32}};
        for (const auto& [key, dtype] : masters) {
            const StoredTensor* const tensor = find(saved, key);
            if (tensor == nullptr) continue;
            check(what, key, *tensor, dtype, shape);
            if (slot.weights == (dtype == DType::int16 ? Weights::split : Weights::master))
                state.buffers[6] = read(*tensor);
        }
        if (!optimizer_.is_shaped(param.index)) state.shape = shape;
    }

    // A parameter whose shape nobody said has that of its first moment in the file.
    Shape shape_of(const Param& param, const Tensors& saved) const {
        const Shape& mine = optimizer_.shape(param.index);
        const StoredTensor* tensor = find(saved, "exp_avg_code");
        if (tensor == nullptr) tensor = find(saved, "exp_avg");
        if (optimizer_.is_shaped(param.index) || tensor == nullptr || tensor->shape.size() > most_dims) return mine;
        return byte_count(tensor->shape, 1) == optimizer_.slot(param.index).size ? tensor->shape : mine;
    }

    // One moment, in whatever it is kept here.
    Kept moment(const std::string& what, const Param& param, const Tensors& saved, int m, const Shape& shape) const {
        const std::string name = moment_keys[m], code = name + "_code", scale = name + "_scale";
        const Slot& slot = optimizer_.slot(param.index);
        const DType here = moment_dtype(slot.param_dtype, slot.moments, m > 0);
        const StoredTensor *const codes = find(saved, code), *const values = find(saved, name);
        if (codes == nullptr) {
            if (find(saved, scale) != nullptr) refuse(what + " has '" + scale + "' but no '" + code + "'");
            if (values == nullptr) refuse(what + " has no '" + name + "'");
            const bool is_short = here != DType::fp64 && values->dtype == stored_name(DType::bf16);
            const DType stored = here == DType::fp64 ? here : is_short ? DType::bf16 : DType::fp32;
            check(what, name, *values, stored, shape, "the moments here are ");
            std::vector<char> bytes = read(*values);
            if (m > 0 && has_negative(bytes, stored))
                refuse(what + "['" + name + "'] holds a negative number, but it is an average of squares");
            if (stored == here) return {std::move(bytes), {}};
            return kept(floats_of(bytes, stored), here);
        }
        if (values != nullptr) refuse(what + " has both '" + name + "' and '" + code + "'");
        if (here == DType::fp64) refuse(what + " has '" + code + "'; the moments here are float64");
        check(what, code, *codes, m == 0 ? DType::int8 : DType::uint8, shape);
        std::vector<char> scales = scales_of(what, scale, find(saved, scale), slot.size);
        const std::vector<int> order = block_order(what, param.block_order, shape);
        if (slot.moments == Moments::coded && is_c_order(shape, order)) return {read(*codes), std::move(scales)};
        return kept(decoded(read(*codes), scales, shape, order, m > 0), here);
    }

    // The axes of the memory order that blocks were cut in, outermost first.
    static std::vector<int> block_order(const std::string& what, const Json* saved, const Shape& shape) {
        std::vector<int> c_order(shape.size()), found;
        std::iota(c_order.begin(), c_order.end(), 0);
        if (saved == nullptr) return c_order;
        for (const Json& axis : saved->items) {
            std::uint64_t number = 0;
            found.push_back(read_whole(axis, number) && number < shape.size() ? static_cast<int>(number) : -1);
        }
        if (saved->kind != Json::Kind::array ||
            !std::is_permutation(c_order.begin(), c_order.end(), found.begin(), found.end()))
            refuse(what + "['block_order'] must list the axes 0 to " +
                   std::to_string(static_cast<std::int64_t>(shape.size()) - 1) + ", got " + text_of(*saved));
        return found;
    }

    std::vector<char> scales_of(const std::string& what, const std::string& key, const StoredTensor* tensor,
                                std::int64_t size) const {
        if (tensor == nullptr) refuse(what + " has no '" + key + "'");
        const Shape shape{blocks_of(size)};
        if (tensor->dtype != "F32" || tensor->shape != shape)
            refuse(what + "['" + key + "'] is " + tensor->dtype + " and has shape " + text_of(tensor->shape) +
                   ", but " + std::to_string(size) + " elements have float32 scales of shape " + text_of(shape));
        std::vector<char> bytes = read(*tensor);
        for (const float scale : numbers_of<float>(bytes))
            if (!(std::isfinite(scale) && scale >= 0.0f))
                refuse(what + "['" + key + "'] holds a number that is not finite or below zero, so it is no scale");
        return bytes;
    }

    // Refuses a tensor of another dtype than this, or of another shape.
    static void check(const std::string& what, const std::string& key, const StoredTensor& tensor, DType dtype,
                      const Shape& shape, const char* rule = "it must be ") {
        const std::string name = what + "['" + key + "']";
        if (tensor.dtype != stored_name(dtype))
            refuse(name + " has dtype " + tensor.dtype + "; " + rule + name_of(dtype));
        if (tensor.shape != shape)
            refuse(name + " has shape " + text_of(tensor.shape) + ", the parameter " + text_of(shape));
    }
    static std::string text_of(const Shape& shape) {
        std::string text = "(";
        for (const std::int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
        return text + (shape.size() == 1 ? ",)" : ")");
    }
    static std::string text_of(const Json& value) { return detail::text_of(value); }

    std::vector<char> read(const StoredTensor& tensor) const {
        std::vector<char> bytes(static_cast<std::size_t>(tensor.end - tensor.begin));
        file_.read(tensor, bytes.data());
        return bytes;
    }

    const OptimizerBase& optimizer_;
    const SafetensorsFile& file_;
};

}  // namespace detail

// Writes the state of an optimizer to a file. The path holds the whole new file or, after a std::runtime_error, what it
// held before; also when the process is killed meanwhile.
inline void save(const OptimizerBase& optimizer, const std::string& path) {
    std::vector<TensorToStore> tensors;
    std::string header;
    try {
        header = detail::saved_header(optimizer);
    } catch (const detail::Misfit& error) {
        throw std::runtime_error("radam: cannot write " + path + ": " + error.what());
    }
    for (std::size_t i = 0; i < optimizer.size(); ++i)
        if (optimizer.steps(i) > 0) detail::add_saved_state(optimizer, i, tensors);
    write_safetensors(path, {{"radam", header}}, std::move(tensors));
}

// Takes over a state that save wrote, or Python's, into an optimizer that has the same groups of parameters of the same
// sizes. Moments of 32, 16 or 8 bits are converted to what it keeps; master weights that were not saved begin as the
// parameters are. The seed is the file's, so that a run goes on with the same bits. An lr that was a function in Python
// stays what it is here. Parameters that were given no shape take the file's.
// std::runtime_error naming the file and what does not fit; the optimizer is unchanged then.
inline void load(OptimizerBase& optimizer, const std::string& path) {
    const DefaultFloatMode mode;
    const SafetensorsFile file(path);
    try {
        const detail::SavedStates saved(optimizer, file);
        optimizer.restore(saved.header.options, saved.states, saved.header.seed);
    } catch (const detail::Misfit& error) {
        throw std::runtime_error("radam: " + path + ": " + error.what());
    } catch (const std::invalid_argument& error) {  // an option out of range
        throw std::runtime_error("radam: " + path + " does not fit this optimizer: " + error.what());
    }
}

}  // namespace radam
