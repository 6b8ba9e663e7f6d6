#include "call.hpp"

#include <nanobind/stl/string.h>
#include <radam/dispatch.hpp>

#include <algorithm>
#include <stdexcept>
#include <string>

namespace nb = nanobind;

namespace radam::python {
namespace {

constexpr const char* counter_name = "the step count of parameter";

std::string shape_text(const Layout& layout) {
    std::string text = "(";
    for (int d = 0; d < layout.ndim; ++d) text += (d > 0 ? ", " : "") + std::to_string(layout.shape[d]);
    return text + (layout.ndim == 1 ? ",)" : ")");
}

void fill(Slot& slot, const Entry& entry, const ScheduledStep* step) {
    slot.param = entry.arrays[param].data;
    slot.grad = entry.arrays[grad].data;
    slot.exp_avg = entry.arrays[exp_avg].data;
    slot.exp_avg_sq = entry.arrays[exp_avg_sq].data;
    slot.max_exp_avg_sq = entry.arrays[max_exp_avg_sq].data;
    slot.size = element_count(entry.arrays[param].layout);
    slot.step = step;
    slot.param_dtype = entry.arrays[param].dtype;
    slot.grad_dtype = entry.arrays[grad].dtype;
}

}  // namespace

nb::object of_device(nb::handle by_device, int device) {
    if (by_device.is_none()) return nb::none();
    const nb::object key = nb::int_(device);
    const nb::dict dict = nb::cast<nb::dict>(by_device);
    return dict.contains(key) ? nb::object(dict[key]) : nb::none();
}

void Call::add_array(Entry& entry, Role role, const nb::tuple& arrays) {
    PyObject* const object = PyTuple_GetItem(arrays.ptr(), static_cast<Py_ssize_t>(entry.index));
    if (object == nullptr) throw nb::python_error();
    Array& array = entry.at(role);
    const Access access = role == grad ? Access::read : role == param ? Access::write : Access::write_integers;
    array = imports_.add(object, access, where(role, entry));
    if (role != grad && overlaps_itself(array.layout))
        refuse_value(where(role, entry),
                     "has elements that share memory (an expanded or overlapping view); hand in a copy of it");
    overlaps_.add(array.layout, array.data, static_cast<std::uint32_t>(entries_.size() - 1), role);
}

void Call::check_arrays(const Entry& entry, bool amsgrad) const {
    const Array& p = entry.arrays[param];
    const Array& g = entry.arrays[grad];
    if (!is_pair(p.dtype, g.dtype))
        refuse_value(where(grad, entry),
                     std::string("has dtype ") + name_of(g.dtype) + ", the parameter " + name_of(p.dtype) +
                         "; float64 goes with float64 only, float32, bfloat16 and float16 with each other");
    for (const Role role : {grad, exp_avg, exp_avg_sq, max_exp_avg_sq, master}) {
        if ((role == max_exp_avg_sq && !amsgrad) || (role == master && entry.stored == nullptr)) continue;
        const Array& array = entry.at(role);
        if (role == master && array.layout.shape == nullptr && array.data == nullptr) continue;
        if (array.device != p.device)
            refuse_value(where(role, entry), "is on " + device_text(array.device) + ", the parameter on " +
                                                 device_text(p.device) + "; move it there");
        if (!same_shape(array.layout, p.layout))
            refuse_value(where(role, entry),
                         "has shape " + shape_text(array.layout) + ", the parameter " + shape_text(p.layout));
    }
    check_moments(entry, amsgrad);
}

const ScheduledStep* Call::scheduled(const Hyperparameters& h, nb::handle lrs, std::int64_t t, std::size_t group) {
    if (schedules_.empty() || schedules_.back().t != t || schedules_.back().group != group) {
        Hyperparameters at_t = h;
        if (!lrs.is_none()) at_t.lr = nb::cast<double>(lrs[nb::int_(t)]);
        if (const Violation found = violation(at_t); found.name != nullptr)
            throw nb::value_error(("group " + std::to_string(group) + ": " + message(found)).c_str());
        const ScheduledStep step = schedule(at_t, t);
        schedules_.push_back({group, t, step, is_finite(step.f64), is_finite(step.f32)});
    }
    return &schedules_.back().step;
}

void Call::add_params(std::size_t group, const nb::tuple& parts) {
    if (parts.size() < 2) throw nb::value_error("a group must be (params, names)");
    const nb::tuple params = nb::cast<nb::tuple>(parts[0]);
    names_.push_back(nb::handle(parts[1]).ptr());
    for (std::size_t i = 0; i < params.size(); ++i) {
        entries_.push_back({{}, group, i, {}, nullptr, 0, nullptr});
        add_array(entries_.back(), param, params);
    }
}

void Call::add_group(std::size_t group, const nb::tuple& parts) {
    if (parts.size() < 9) throw nb::value_error("a group must be a tuple as step.hpp says");
    const Hyperparameters& h = nb::cast<const Hyperparameters&>(parts[0]);
    const nb::handle lrs = parts[1];
    const nb::tuple arrays[main_roles] = {nb::cast<nb::tuple>(parts[2]), nb::cast<nb::tuple>(parts[3]),
                                          nb::cast<nb::tuple>(parts[4]), nb::cast<nb::tuple>(parts[5]),
                                          h.amsgrad ? nb::cast<nb::tuple>(parts[6]) : nb::tuple()};
    names_.push_back(nb::handle(parts[8]).ptr());
    const std::size_t count = arrays[param].size();
    const int used = h.amsgrad ? main_roles : max_exp_avg_sq;
    for (int role = 0; role < used; ++role)
        if (arrays[role].size() != count)
            throw nb::value_error(("group " + std::to_string(group) + " has " + std::to_string(count) +
                                   " parameters but " + std::to_string(arrays[role].size()) + " entries for " +
                                   role_names[role])
                                      .c_str());
    const nb::handle counts = parts[7];
    const nb::handle numbers = parts.size() > 9 ? nb::handle(parts[9]) : nb::handle(Py_None);
    const nb::handle stored = parts.size() > 10 ? nb::handle(parts[10]) : nb::handle(Py_None);
    const bool one_each = PyTuple_Check(counts.ptr());
    if (one_each && nb::len(counts) != count) throw nb::value_error("there must be one step count per parameter");
    std::int64_t* const taken = one_each ? nullptr : imports_.add_counters(counts.ptr(), count);

    for (std::size_t i = 0; i < count; ++i) {
        if (PyTuple_GetItem(arrays[grad].ptr(), static_cast<Py_ssize_t>(i)) == Py_None) continue;
        entries_.push_back({{}, group, i, {}, nullptr, 0, nullptr});
        Entry& entry = entries_.back();
        for (int role = 0; role < used; ++role) add_array(entry, static_cast<Role>(role), arrays[role]);
        if (!stored.is_none()) add_stored(entry, stored, h.amsgrad);
        check_arrays(entry, h.amsgrad);
        const Where at{counter_name, group, i, names_[group]};
        const Count count = one_each ? imports_.add_count(PyTuple_GetItem(counts.ptr(), static_cast<Py_ssize_t>(i)), at)
                                     : Count{Counter(taken + i, Counter::Kind::int64), {}};
        if (count.device != Array::on_cpu && count.device != entry.device())
            refuse_value(at, "is on " + device_text(count.device) + ", the parameter on " +
                                 device_text(entry.device()) + "; move it there, or to the CPU");
        entry.count = count.number;
        if (count.device == Array::on_cpu) {
            counters_.push_back(count.counter);
            const std::int64_t t = count.counter.read(), most = count.counter.most();
            if (t < 0 || t > most)
                refuse_value(at, (t < 0 ? "is no whole number of steps" : "is " + std::to_string(t)) +
                                     "; it must lie between 0 and " + std::to_string(most));
            entry.taken = t;
        }
        if (entry.device() != Array::on_cpu) {
            any_device_ = true;
            entry.schedule = scheduled_there(entry, h, numbers);
        }
        Slot& slot = slots_.emplace_back();
        fill(slot, entry, entry.schedule != nullptr ? nullptr : check_schedule(entry, h, lrs, entry.taken + 1));
        if (entry.stored != nullptr) place_stored(entry, slot);
        if (clip_ != nullptr && clip_->kind == Clip::Kind::value) slot.grad_limit = clip_->most;
    }
}

const ScheduledStep* Call::check_schedule(const Entry& entry, const Hyperparameters& h, nb::handle lrs,
                                          std::int64_t t) {
    const ScheduledStep* const step = scheduled(h, lrs, t, entry.group);
    const bool wide = entry.arrays[param].dtype == DType::fp64;
    if (wide ? !schedules_.back().is_finite64 : !schedules_.back().is_finite32)
        refuse_value(where(param, entry), std::string("would be stepped by numbers too large for ") +
                                              (wide ? "float64" : "float32") + " arithmetic; lower lr or weight_decay");
    return step;
}

// Null where all that a schedule needs is on the host.
const cuda::Schedule* Call::scheduled_there(const Entry& entry, const Hyperparameters& h, nb::handle numbers) {
    const int device = entry.device();
    const AmpNumbers* const amp = amp_of(entry);
    const nb::object found = of_device(numbers, device);
    if (amp != nullptr && amp->found_inf.data != nullptr && entry.count.data == nullptr)
        refuse_value(
            {counter_name, entry.group, entry.index, names_[entry.group]},
            "is on the CPU, where nobody knows whether the device skips the step; move it to " + device_text(device));
    if (entry.count.data == nullptr && found.is_none() && (amp == nullptr || amp->grad_scale.data == nullptr))
        return nullptr;
    if (device_schedules_.empty() || device_schedules_.back().group != entry.group ||
        device_schedules_.back().device != device) {
        if (const Violation broken = violation(h); broken.name != nullptr)
            throw nb::value_error(("group " + std::to_string(entry.group) + ": " + message(broken)).c_str());
        device_schedules_.push_back({entry.group, device, {h, {}, {}, {}}});
        if (!found.is_none()) {
            cuda::Schedule& schedule = device_schedules_.back().schedule;
            const auto number = [&](int i, const char* name) {
                return imports_.add_number(nb::object(found[i]).ptr(), device,
                                           {name, entry.group, entry.index, names_[entry.group]});
            };
            schedule.lr = number(0, "lr, for parameter");
            schedule.beta1 = number(1, "betas[0], for parameter");
            schedule.beta2 = number(2, "betas[1], for parameter");
        }
    }
    return &device_schedules_.back().schedule;
}

const AmpNumbers* Call::amp_of(const Entry& entry) {
    const int device = entry.device();
    for (const DeviceAmp& known : device_amps_)
        if (known.device == device) return &known.numbers;
    const nb::object found = of_device(amp_, device);
    if (found.is_none()) return nullptr;
    const auto number = [&](int i, const char* name) {
        return imports_.add_number(nb::object(found[i]).ptr(), device,
                                   {name, entry.group, entry.index, names_[entry.group]});
    };
    device_amps_.push_back({device,
                            {number(0, "grad_scale, for parameter"), number(1, "found_inf, for parameter"),
                             number(2, "the count of skipped steps, for parameter")}});
    return &device_amps_.back().numbers;
}

void Call::check_capture() const {
    if (!any_device_) return;
    const bool any_here =
        std::any_of(entries_.begin(), entries_.end(), [](const Entry& entry) { return entry.count.data == nullptr; });
    const bool any_other = !imports_.streams().others().empty();
    if (!(any_here || any_other) || !is_capturing(imports_.streams())) return;
    throw std::runtime_error(
        any_here
            ? "a CUDA stream is being captured into a graph, whose replays would not step what is on the CPU, "
              "parameters or step counts: take this step outside of the capture, or use radam.torch with "
              "capturable=True and parameters on CUDA devices alone"
            : "a CUDA stream is being captured into a graph, but some arrays are of another framework, which works "
              "on another stream: make it work on the same one, or take this step outside of the capture");
}

void Call::prepare() {
    for (std::size_t k = 0; k < entries_.size(); ++k) {
        const Entry& entry = entries_[k];
        bool plain = true;
        for (const Array& array : entry.arrays) plain = plain && array.layout.strides == nullptr;
        if (entry.stored != nullptr)
            plain = plain && entry.at(master).layout.strides == nullptr && entry.stored->whole_shape.empty();
        if (plain) continue;

        const std::vector<int> order = slot_order(entry.arrays[param].layout);
        if (entry.stored != nullptr) number_elements(entry, slots_[k], order);
        void** const places[roles] = {&slots_[k].param,          nullptr,
                                      &slots_[k].exp_avg,        &slots_[k].exp_avg_sq,
                                      &slots_[k].max_exp_avg_sq, &slots_[k].master};
        for (const Role role : {param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, master}) {
            if (role == master && entry.stored == nullptr) continue;
            const Array& array = entry.at(role);
            if (array.data == nullptr || is_dense(array.layout, order)) continue;
            StandIn made{k, role, order, nullptr, nullptr};
            if (array.device != Array::on_cpu) {
                made.on_device = std::make_unique<DeviceStandIn>(array.device, imports_.streams().of(array.device),
                                                                 array.layout, array.data, order);
            } else {
                const std::int64_t bytes = slots_[k].size * array.layout.itemsize;
                made.buffer.reset(new char[static_cast<std::size_t>(bytes)]);
                gather(array.layout, array.data, order, made.buffer.get());
            }
            stand_ins_.push_back(std::move(made));
            void* const buffer = stand_ins_.back().data();
            if (role == grad)
                slots_[k].grad = buffer;
            else
                *places[role] = buffer;
        }
    }
    if (!any_device_) return;
    std::size_t kept = 0;
    for (std::size_t k = 0; k < entries_.size(); ++k) {
        const Entry& entry = entries_[k];
        if (entry.device() == Array::on_cpu) {
            on_cpu_.push_back(k);
            slots_[kept++] = slots_[k];
            continue;
        }
        const AmpNumbers* amp = nullptr;
        for (const DeviceAmp& known : device_amps_)
            if (known.device == entry.device()) amp = &known.numbers;
        on_devices_.add(entry.device(), imports_.streams().of(entry.device()), amp != nullptr ? *amp : AmpNumbers{},
                        {slots_[k], entry.schedule, entry.taken, entry.count}, k);
    }
    slots_.resize(kept);
    if (norm_there_.data != nullptr)
        on_devices_.clip_alone(clip_->kind == Clip::Kind::norm ? cuda::Clip::all : cuda::Clip::each, clip_->most,
                               norm_there_);
}

std::optional<std::size_t> Call::first_nonfinite(bool raises) {
    if (any_device_ && is_capturing(imports_.streams())) {
        if (raises)
            throw std::runtime_error("nonfinite='raise' cannot raise from a CUDA graph; use nonfinite='skip' there");
        if (!on_devices_.can_skip_alone())
            throw std::runtime_error("nonfinite='skip' in a CUDA graph needs all parameters on one device");
        on_devices_.skip_alone();
        return std::nullopt;
    }
    std::optional<std::size_t> first;
    const std::size_t here = radam::first_nonfinite(slots_.data(), slots_.size());
    if (here < slots_.size()) first = any_device_ ? on_cpu_[here] : here;
    if (any_device_) {
        const std::optional<std::size_t> there = on_devices_.first_nonfinite();
        if (there && (!first || *there < *first)) first = there;
    }
    return first;
}

void Call::refuse_nonfinite(std::size_t entry) const {
    const std::string text =
        where(grad, entries_[entry]).text() + " holds an inf or a NaN; nothing was changed (nonfinite='raise')";
    PyErr_SetString(PyExc_FloatingPointError, text.c_str());
    throw nb::python_error();
}

bool Call::run(cuda::Failure* failure) noexcept {
    // Devices first: they work while the CPU does.
    if (any_device_ && !on_devices_.start(failure)) return false;
    radam::step(slots_.data(), slots_.size());
    bool all_well = true;
    for (const StandIn& s : stand_ins_) {
        const Array& array = entries_[s.entry].at(s.role);
        if (s.role == grad) continue;
        if (s.on_device != nullptr)
            all_well = s.on_device->write_back(failure) && all_well;
        else
            scatter(array.layout, array.data, s.order, s.buffer.get());
    }
    all_well = on_devices_.let_wait(imports_.streams().others(), failure) && all_well;
    advance();
    return all_well;
}

void Call::advance() const noexcept {
    for (const Counter& counter : counters_) counter.write(counter.read() + 1);
}

void Call::run_limit() const {
    radam::limit(slots_.data(), slots_.size());
    on_devices_.run_limit();
}

void Call::clear() noexcept {
    stand_ins_.clear();
    on_devices_.clear();
    imports_.release();
    entries_.clear();
    stored_.clear();
    clip_ = nullptr;
    norm_there_ = {};
    clipped_.clear();
    clipped_there_.clear();
    slots_.clear();
    on_cpu_.clear();
    any_device_ = false;
    counters_.clear();
    overlaps_.clear();
    schedules_.clear();
    device_schedules_.clear();
    device_amps_.clear();
    amp_ = Py_None;
    names_.clear();
}

std::string message(const Violation& found) {
    std::string name = found.name;
    if (name == "beta1") name = "betas[0]";  // as Python has them
    if (name == "beta2") name = "betas[1]";
    return name + " must be " + found.rule + ", got " + nb::cast<std::string>(nb::repr(nb::float_(found.value)));
}

}  // namespace radam::python
