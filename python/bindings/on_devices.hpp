// The part of a step that CUDA devices do.
#pragma once

#include <radam/cuda.hpp>
#include <radam/layout.hpp>

#include <cstddef>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "streams.hpp"

namespace radam::python {

// What CUDA itself could not do; RuntimeError's subclass CudaError in Python.
struct CudaError : std::runtime_error {
    explicit CudaError(const cuda::Failure& failure)
        : std::runtime_error(std::string("CUDA failed: ") + failure.text) {}
};

// Numbers of a whole step that lie on a device, for torch.amp's GradScaler: see cuda::Work.
struct AmpNumbers {
    cuda::Number grad_scale, found_inf, skipped;
};

// Whether a leading stream is being captured into a graph, so that nothing may wait for its device.
bool is_capturing(const Streams& streams);

// Parameters by device. What fails throws CudaError, and then nothing has changed.
class OnDevices {
public:
    bool empty() const noexcept { return devices_.empty(); }

    // index: the parameter's place among all of the call.
    void add(int device, void* stream, const AmpNumbers& amp, const cuda::DeviceSlot& slot, std::size_t index);

    // The place among all of the first parameter whose gradient holds an inf or a NaN.
    std::optional<std::size_t> first_nonfinite() const;

    // Leave it to the device to skip the step: for one device that keeps all counts itself.
    bool can_skip_alone() const noexcept { return devices_.size() == 1; }
    void skip_alone() noexcept { devices_.front().work.skip_nonfinite = true; }

    // The sum of squares of each parameter's gradient, at its place among all.
    void sums_of_squares(double* sums) const;
    // Leave the clipping to the device: for one device that has all parameters.
    void clip_alone(cuda::Clip clip, double most, const cuda::Number& norm) noexcept;

    // Calls f(work, slot, place among all) for every parameter.
    template <class F>
    void for_each(F f) {
        for (OnOne& one : devices_)
            for (std::size_t i = 0; i < one.slots.size(); ++i) f(one.work, one.slots[i], one.indices[i]);
    }

    // Starts the step on all devices. Does not wait for it, and does not need the GIL.
    bool start(cuda::Failure* failure) const noexcept;

    // Lets other streams wait for the step.
    bool let_wait(const std::vector<Streams::Used>& others, cuda::Failure* failure) const noexcept;

    void run_limit() const;
    void clear() noexcept { devices_.clear(); }

private:
    struct OnOne {
        cuda::Work work;  // without its slots
        std::vector<cuda::DeviceSlot> slots;
        std::vector<std::size_t> indices;
    };
    std::vector<cuda::Work> works() const;

    std::vector<OnOne> devices_;
};

// An array of a device, its elements gathered without gaps into memory of that device until this dies.
class DeviceStandIn {
public:
    DeviceStandIn(int device, void* stream, const Layout& layout, void* array, const std::vector<int>& order);
    DeviceStandIn(const DeviceStandIn&) = delete;
    DeviceStandIn& operator=(const DeviceStandIn&) = delete;
    ~DeviceStandIn();

    void* buffer() const noexcept { return copy_.buffer; }
    bool write_back(cuda::Failure* failure) const noexcept;

private:
    std::vector<std::int64_t> shape_, strides_;
    cuda::Copy copy_;
};

}  // namespace radam::python
