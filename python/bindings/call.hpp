// One call of a step: its arrays checked, then made ready, then run.
#pragma once

#include <nanobind/nanobind.h>
#include <radam/cuda.hpp>
#include <radam/overlaps.hpp>
#include <radam/schedule.hpp>
#include <radam/slot.hpp>

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "clip.hpp"
#include "import_array.hpp"
#include "on_devices.hpp"

namespace radam::python {

enum Role {
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    max_exp_avg_sq,
    main_roles,
    master = main_roles,  // from here on only where something is stored in fewer bits
    exp_avg_scale,
    exp_avg_sq_scale,
    max_exp_avg_sq_scale,
    roles
};
static_assert(roles <= Overlaps::most_roles);
constexpr const char* role_names[roles] = {
    "parameter",
    "the gradient of parameter",
    "exp_avg of parameter",
    "exp_avg_sq of parameter",
    "max_exp_avg_sq of parameter",
    "the master weight of parameter",
    "exp_avg_scale of parameter",
    "exp_avg_sq_scale of parameter",
    "max_exp_avg_sq_scale of parameter",
};

// What only parameters have that are stored in fewer bits, or whose elements are rounded at random.
struct Stored {
    Array arrays[roles - main_roles];
    bool stochastic = false;
    std::uint64_t seed = 0;
    std::uint32_t ordinal = 0;
    std::vector<std::int64_t> whole_shape, offsets;  // of a shard: the whole parameter, and where this part begins
    std::vector<std::int64_t> shape, strides;        // of Positions
};

struct Entry {
    Array arrays[main_roles];
    std::size_t group, index;
    cuda::Number count = {};  // on the device, as is the schedule: else null
    const cuda::Schedule* schedule = nullptr;
    std::int64_t taken = 0;
    Stored* stored = nullptr;

    int device() const noexcept { return arrays[param].device; }
    Array& at(Role role) noexcept { return role < main_roles ? arrays[role] : stored->arrays[role - main_roles]; }
    const Array& at(Role role) const noexcept { return const_cast<Entry*>(this)->at(role); }
};

// An array whose layout is not that of its slot, with the buffer that stands in for it during the run.
struct StandIn {
    std::size_t entry;
    Role role;
    std::vector<int> order;
    std::unique_ptr<char[]> buffer;
    std::unique_ptr<DeviceStandIn> on_device;  // in its place

    void* data() const noexcept { return on_device != nullptr ? on_device->buffer() : buffer.get(); }
};

// Everything that one call needs. Kept between calls, empty, so that a step allocates nothing after the first.
class Call {
public:
    // The whole check of one group but for overlaps.
    void add_group(std::size_t group, const nanobind::tuple& parts);
    void add_params(std::size_t group, const nanobind::tuple& parts);
    void add_amp(nanobind::handle amp) { amp_ = amp; }
    void add_clip(const Clip* clip) { clip_ = clip; }
    void prepare_clip();
    void check_overlaps();
    // A graph's replays must not miss what happens on the CPU, or on streams that it does not capture.
    void check_capture() const;
    // Gives every array that does not lie as its slot needs it a buffer that does, and every slot to its device.
    void prepare();
    // The parameter whose gradient holds an inf or a NaN, if the step is not to happen because of it.
    std::optional<std::size_t> first_nonfinite(bool raises);
    [[noreturn]] void refuse_nonfinite(std::size_t entry) const;
    // The norms that clipping needs, unless a device does it alone; then, with the GIL, what follows from them: false
    // where they are not finite.
    bool clips() const noexcept { return clip_ != nullptr && clip_->needs_norm() && norm_there_.data == nullptr; }
    void add_up();
    bool clip(Clip& clip);
    // False where a device could not start, and then nothing has changed, or not finish.
    bool run(cuda::Failure* failure) noexcept;
    void advance() const noexcept;
    void run_limit() const;
    void clear() noexcept;

private:
    Where where(Role role, const Entry& entry) const {
        return {role_names[role], entry.group, entry.index, names_[entry.group]};
    }
    void add_array(Entry& entry, Role role, const nanobind::tuple& arrays);
    void check_arrays(const Entry& entry, bool amsgrad) const;
    const ScheduledStep* scheduled(const Hyperparameters& h, nanobind::handle lrs, std::int64_t t, std::size_t group);
    const ScheduledStep* check_schedule(const Entry& entry, const Hyperparameters& h, nanobind::handle lrs,
                                        std::int64_t t);
    const cuda::Schedule* scheduled_there(const Entry& entry, const Hyperparameters& h, nanobind::handle numbers);
    const AmpNumbers* amp_of(const Entry& entry);
    // stored.cpp
    void add_stored(Entry& entry, nanobind::handle parts, bool amsgrad);
    void check_moments(const Entry& entry, bool amsgrad) const;
    void check_master(const Entry& entry) const;
    void check_order(const Entry& entry, bool amsgrad) const;
    void check_scale(const Entry& entry, Role role) const;
    void place_stored(const Entry& entry, Slot& slot) const;
    void number_elements(const Entry& entry, Slot& slot, const std::vector<int>& order) const;
    // clip.cpp
    double scale_of(std::size_t entry) const;

    struct Schedule {
        std::size_t group;
        std::int64_t t;
        ScheduledStep step;
        bool is_finite64, is_finite32;
    };

    struct DeviceSchedule {
        std::size_t group;
        int device;
        cuda::Schedule schedule;
    };

    struct DeviceAmp {
        int device;
        AmpNumbers numbers;
    };

    Imports imports_;
    std::vector<Entry> entries_;
    std::deque<Stored> stored_;
    const Clip* clip_ = nullptr;
    cuda::Number norm_there_;
    std::vector<double> chunks_, sums_, norms_;
    std::deque<ScheduledStep> clipped_;  // of gradients that are clipped by themselves
    std::deque<cuda::Schedule> clipped_there_;
    std::vector<Slot> slots_;          // of every entry; later those of the CPU, for which
    std::vector<std::size_t> on_cpu_;  // these are the entries, unless it is all of them
    OnDevices on_devices_;
    bool any_device_ = false;
    std::vector<Counter> counters_;
    Overlaps overlaps_;
    std::deque<Schedule> schedules_;
    std::deque<DeviceSchedule> device_schedules_;
    std::deque<DeviceAmp> device_amps_;
    nanobind::handle amp_ = Py_None;
    std::deque<StandIn> stand_ins_;
    std::vector<PyObject*> names_;  // of each group, borrowed
};

// What a dict says of a device: a tuple or an array, or None.
nanobind::object of_device(nanobind::handle by_device, int device);

// What a user is told of a hyperparameter that breaks a rule.
std::string message(const Violation& found);

}  // namespace radam::python
