// What a step needs of parameters whose moments or weights are stored in fewer bits.
#include <nanobind/stl/string.h>
#include <radam/codec.hpp>

#include <string>

#include "call.hpp"

namespace nb = nanobind;

namespace radam::python {
namespace {

constexpr const char* moments_are = "; the moments of a ";
// Where somebody changed a parameter after its state was made.
const std::string load_anew = "; load the state anew: optimizer.load_state_dict(optimizer.state_dict())";

bool is_given(const Array& array) { return array.layout.ndim > 0 || array.data != nullptr; }

std::vector<std::int64_t> numbers(nb::handle sequence) {
    std::vector<std::int64_t> out;
    for (const nb::handle number : sequence) out.push_back(nb::cast<std::int64_t>(number));
    return out;
}

// How the moments of an entry are stored, by what exp_avg is.
Moments moments_of(const Entry& entry) {
    switch (entry.at(exp_avg).dtype) {
        case DType::bf16: return Moments::bf16;
        case DType::int8: return Moments::coded;
        default: return Moments::full;
    }
}

}  // namespace

// parts: (masters, exp_avg_scales, exp_avg_sq_scales, max_exp_avg_sq_scales, seed, ordinals, shards, stochastic).
void Call::add_stored(Entry& entry, nb::handle parts, bool amsgrad) {
    if (!nb::isinstance<nb::tuple>(parts) || nb::len(parts) != 8)
        throw nb::value_error("what is stored of a group must be a tuple of 8, as step.hpp says");
    const nb::tuple tuple = nb::borrow<nb::tuple>(parts);
    const auto part = [&](std::size_t i) -> nb::object {  // of this parameter, or None
        const nb::object all = tuple[i];
        if (all.is_none()) return nb::none();
        if (!nb::isinstance<nb::tuple>(all) || nb::len(all) <= entry.index)
            throw nb::value_error("what is stored of a group must have one entry per parameter");
        return nb::borrow<nb::tuple>(all)[entry.index];
    };
    const auto add = [&](Role role, std::size_t i) {
        if (!part(i).is_none()) add_array(entry, role, nb::borrow<nb::tuple>(tuple[i]));
    };
    stored_.emplace_back();
    Stored& stored = stored_.back();
    entry.stored = &stored;
    add(master, 0);
    add(exp_avg_scale, 1);
    add(exp_avg_sq_scale, 2);
    if (amsgrad) add(max_exp_avg_sq_scale, 3);
    stored.seed = nb::cast<std::uint64_t>(tuple[4]);
    const nb::object ordinal = part(5);
    if (!ordinal.is_none()) stored.ordinal = nb::cast<std::uint32_t>(ordinal);
    stored.stochastic = nb::cast<bool>(tuple[7]);

    const nb::object shard = part(6);
    if (shard.is_none()) return;
    stored.whole_shape = numbers(shard[0]);
    stored.offsets = numbers(shard[1]);
    const Layout& p = entry.at(param).layout;
    const auto ndim = static_cast<std::size_t>(p.ndim);
    bool fits = stored.whole_shape.size() == ndim && stored.offsets.size() == ndim;
    for (std::size_t d = 0; fits && d < ndim; ++d)
        fits = stored.offsets[d] >= 0 && (p.shape[d] == 0 || stored.offsets[d] + p.shape[d] <= stored.whole_shape[d]);
    if (!fits)
        refuse_value(where(param, entry), "does not lie within the whole parameter that it is said to be part of");
}

void Call::check_moments(const Entry& entry, bool amsgrad) const {
    const DType p = entry.at(param).dtype;
    const Moments moments = moments_of(entry);
    const bool wide = p == DType::fp64;
    if (moments != Moments::full && entry.stored == nullptr)
        refuse_value(where(exp_avg, entry), std::string("has dtype ") + name_of(entry.at(exp_avg).dtype) + moments_are +
                                                name_of(p) + " parameter are " + name_of(moment_dtype(p)) + load_anew);
    for (const Role role : {exp_avg, exp_avg_sq, max_exp_avg_sq}) {
        if (role == max_exp_avg_sq && !amsgrad) continue;
        const DType found = entry.at(role).dtype;
        const DType wanted = moment_dtype(p, wide ? Moments::full : moments, role != exp_avg);
        if (found == wanted) continue;
        std::string text = std::string("has dtype ") + name_of(found) + moments_are + name_of(p) + " parameter are ";
        if (wide || moments == Moments::full)
            text += name_of(moment_dtype(p));
        else
            text += std::string("all stored alike, and this one as ") + name_of(wanted);
        refuse_value(where(role, entry), text + load_anew);
    }
    if (entry.stored == nullptr) return;
    check_master(entry);
    if (moments != Moments::coded) return;
    check_order(entry, amsgrad);
    check_scale(entry, exp_avg_scale);
    check_scale(entry, exp_avg_sq_scale);
    if (amsgrad) check_scale(entry, max_exp_avg_sq_scale);
}

void Call::check_master(const Entry& entry) const {
    const Array& found = entry.at(master);
    if (!is_given(found)) return;
    const DType p = entry.at(param).dtype;
    const bool fits =
        (p == DType::bf16 && found.dtype == DType::int16) || (p == DType::fp16 && found.dtype == DType::fp32);
    if (!fits)
        refuse_value(where(master, entry), std::string("has dtype ") + name_of(found.dtype) + ", the parameter " +
                                               name_of(p) + "; it is int16 for bfloat16 and float32 for float16" +
                                               load_anew);
    if (entry.stored->stochastic)
        refuse_value(where(master, entry), "leaves nothing to be rounded at random; choose one of the two");
}

// The blocks that share a scale are cut in the order of the parameter's memory, in which the codes lie too.
void Call::check_order(const Entry& entry, bool amsgrad) const {
    const Layout& p = entry.at(param).layout;
    bool plain = p.strides == nullptr;
    for (const Role role : {exp_avg, exp_avg_sq}) plain = plain && entry.at(role).layout.strides == nullptr;
    if (plain && !(amsgrad && entry.at(max_exp_avg_sq).layout.strides != nullptr)) return;
    const std::vector<int> order = slot_order(p);
    for (const Role role : {exp_avg, exp_avg_sq, max_exp_avg_sq}) {
        if (role == max_exp_avg_sq && !amsgrad) continue;
        if (!is_dense(entry.at(role).layout, order))
            refuse_value(where(role, entry),
                         "is coded in blocks of another memory order than the parameter's" + load_anew);
    }
}

void Call::check_scale(const Entry& entry, Role role) const {
    const Array& scale = entry.at(role);
    const std::int64_t wanted = blocks_of(element_count(entry.at(param).layout));
    if (scale.layout.ndim != 1 || scale.layout.shape[0] != wanted || scale.layout.strides != nullptr ||
        scale.dtype != DType::fp32)
        refuse_value(where(role, entry),
                     "must be " + std::to_string(wanted) + " float32 without gaps, one for each block of 128 elements");
    if (scale.device != entry.device())
        refuse_value(where(role, entry), "is on " + device_text(scale.device) + ", the parameter on " +
                                             device_text(entry.device()) + "; move it there");
}

void Call::place_stored(const Entry& entry, Slot& slot) const {
    const Stored& stored = *entry.stored;
    const auto scale = [&](Role role) { return static_cast<float*>(entry.at(role).data); };
    slot.moments = moments_of(entry);
    slot.seed = stored.seed;
    slot.ordinal = stored.ordinal;
    if (is_given(entry.at(master))) {
        slot.weights = slot.param_dtype == DType::bf16 ? Weights::split : Weights::master;
        slot.master = entry.at(master).data;
    } else if (stored.stochastic && size_of(slot.param_dtype) == 2) {
        slot.weights = Weights::stochastic;
    }
    slot.exp_avg_scale = scale(exp_avg_scale);
    slot.exp_avg_sq_scale = scale(exp_avg_sq_scale);
    slot.max_exp_avg_sq_scale = scale(max_exp_avg_sq_scale);
}

// The numbers of a slot's elements, which are in this order of the dimensions, in the whole parameter.
void Call::number_elements(const Entry& entry, Slot& slot, const std::vector<int>& order) const {
    Stored& stored = *entry.stored;
    const Layout& p = entry.at(param).layout;
    const std::int64_t* const whole = stored.whole_shape.empty() ? p.shape : stored.whole_shape.data();
    slot.positions.first = 0;
    std::int64_t stride = 1;
    for (int d = p.ndim; d-- > 0; stride *= whole[d])
        if (!stored.offsets.empty()) slot.positions.first += stored.offsets[static_cast<std::size_t>(d)] * stride;
    numbered_dims(p, order, whole, stored.shape, stored.strides);
    if (stored.shape.empty() || (stored.shape.size() == 1 && stored.strides[0] == 1)) return;
    slot.positions.ndim = static_cast<int>(stored.shape.size());
    slot.positions.shape = stored.shape.data();
    slot.positions.strides = stored.strides.data();
}

}  // namespace radam::python
