// Gradients made smaller: the norms, and the steps that follow from them.
#include <radam/dispatch.hpp>
#include <radam/norm.hpp>

#include <cmath>
#include <stdexcept>

#include "call.hpp"
#include "cuda_library.hpp"

namespace nb = nanobind;

namespace radam::python {

// A device that has all parameters, keeps the norm and needs nobody else for it clips alone.
void Call::prepare_clip() {
    if (clip_ == nullptr || !clip_->needs_norm() || !any_device_) return;
    const int device = entries_.front().device();
    bool alone = clip_->reduce.is_none() && !clip_->norms.is_none();
    for (const Entry& entry : entries_) alone = alone && entry.device() == device;
    if (alone) {
        const nb::object found = of_device(clip_->norms, device);
        if (!found.is_none()) {
            norm_there_ = imports_.add_number(found.ptr(), device, {"the norm, for parameter", 0, 0, nullptr});
            if (norm_there_.dtype != DType::fp64) throw nb::value_error("the norm on a device must be a float64");
        }
    }
    if (norm_there_.data == nullptr && is_capturing(imports_.streams()))
        throw std::runtime_error(
            "clipping by a norm in a CUDA graph needs all parameters on one device, which radam.torch with "
            "capturable=True leaves it to: take this step outside of the capture");
}

// What an entry's gradient is multiplied by before all else.
double Call::scale_of(std::size_t entry) const {
    const Entry& e = entries_[entry];
    if (e.schedule == nullptr) return 0.0;
    double scale = std::abs(e.schedule->hyperparameters.grad_scale);
    for (const DeviceAmp& amp : device_amps_) {
        if (amp.device != e.device() || amp.numbers.grad_scale.data == nullptr) continue;
        cuda::Failure failure;
        double value = 1.0;
        if (!cuda_library()->read(e.device(), imports_.streams().of(e.device()), amp.numbers.grad_scale, &value,
                                  &failure))
            throw CudaError(failure);
        scale = scale / value;
    }
    return scale;
}

void Call::add_up() {
    sums_.assign(entries_.size(), 0.0);
    norms_.resize(slots_.size());
    chunks_.resize(square_chunks(slots_.data(), slots_.size()));
    radam::sums_of_squares(slots_.data(), slots_.size(), chunks_.data(), norms_.data());
    for (std::size_t i = 0; i < slots_.size(); ++i) {
        const double scale = std::abs(slots_[i].step->f64.grad_scale);
        sums_[any_device_ ? on_cpu_[i] : i] = norms_[i] * (scale * scale);
    }
    if (!any_device_) return;
    norms_.resize(entries_.size());
    on_devices_.sums_of_squares(norms_.data());
    on_devices_.for_each([&](const cuda::Work&, const cuda::DeviceSlot& slot, std::size_t index) {
        const double scale = slot.slot.step != nullptr ? std::abs(slot.slot.step->f64.grad_scale) : scale_of(index);
        sums_[index] = norms_[index] * (scale * scale);
    });
}

bool Call::clip(Clip& clip) {
    norms_.assign(sums_.begin(), sums_.end());
    double total = add_pairs(norms_.data(), static_cast<std::int64_t>(norms_.size()));
    if (!clip.reduce.is_none()) {
        nb::list sums;
        for (const double sum : sums_) sums.append(sum);
        const nb::object reduce = clip.reduce, found = reduce(sums);  // which may put another one in its place
        total = PyFloat_AsDouble(found.ptr());
        if (total == -1.0 && PyErr_Occurred() != nullptr) throw nb::python_error();
    }
    const double norm = std::sqrt(total);
    clip.norm = norm;
    if (clip.kind == Clip::Kind::norm) {
        const double factor = clip_factor(norm, clip.most);
        for (Schedule& schedule : schedules_) scale_gradients(schedule.step, factor);
        for (DeviceSchedule& there : device_schedules_)
            there.schedule.hyperparameters.grad_scale = there.schedule.hyperparameters.grad_scale * factor;
        return std::isfinite(total);
    }
    const auto smaller = [&](std::size_t entry) { return clip_factor(std::sqrt(sums_[entry]), clip.most); };
    const auto scaled = [&](const ScheduledStep& step, double factor) {
        clipped_.push_back(step);
        scale_gradients(clipped_.back(), factor);
        return &clipped_.back();
    };
    for (std::size_t i = 0; i < slots_.size(); ++i) {
        const double factor = smaller(any_device_ ? on_cpu_[i] : i);
        if (factor != 1.0) slots_[i].step = scaled(*slots_[i].step, factor);
    }
    on_devices_.for_each([&](const cuda::Work&, cuda::DeviceSlot& slot, std::size_t index) {
        const double factor = smaller(index);
        if (factor == 1.0) return;
        if (slot.slot.step != nullptr) {
            slot.slot.step = scaled(*slot.slot.step, factor);
        } else {
            clipped_there_.push_back(*slot.schedule);
            clipped_there_.back().hyperparameters.grad_scale *= factor;
            slot.schedule = &clipped_there_.back();
        }
    });
    return std::isfinite(total);
}

}  // namespace radam::python
