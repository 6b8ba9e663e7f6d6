#include "on_devices.hpp"

#include <algorithm>

#include "cuda_library.hpp"

namespace radam::python {
namespace {

void check(bool succeeded, const cuda::Failure& failure) {
    if (!succeeded) throw CudaError(failure);
}

}  // namespace

void OnDevices::add(int device, void* stream, const AmpNumbers& amp, const cuda::DeviceSlot& slot, std::size_t index) {
    auto found =
        std::find_if(devices_.begin(), devices_.end(), [&](const OnOne& d) { return d.work.device == device; });
    if (found == devices_.end()) {
        cuda::Work work;
        work.device = device;
        work.stream = stream;
        work.grad_scale = amp.grad_scale;
        work.found_inf = amp.found_inf;
        work.skipped = amp.skipped;
        // By number: threads that step several devices then take them in one order, and never wait for each other.
        found = std::find_if(devices_.begin(), devices_.end(), [&](const OnOne& d) { return d.work.device > device; });
        found = devices_.insert(found, {work, {}, {}});
    }
    found->slots.push_back(slot);
    found->indices.push_back(index);
}

std::vector<cuda::Work> OnDevices::works() const {
    std::vector<cuda::Work> all;
    for (const OnOne& one : devices_) {
        all.push_back(one.work);
        all.back().slots = one.slots.data();
        all.back().size = one.slots.size();
    }
    return all;
}

bool is_capturing(const Streams& streams) {
    for (const Streams::Used& leading : streams.leading()) {
        cuda::Failure failure;
        bool capturing = false;
        check(cuda_library()->is_capturing(leading.device, leading.stream, &capturing, &failure), failure);
        if (capturing) return true;
    }
    return false;
}

std::optional<std::size_t> OnDevices::first_nonfinite() const {
    std::optional<std::size_t> first;
    const std::vector<cuda::Work> all = works();
    for (std::size_t i = 0; i < all.size(); ++i) {
        cuda::Failure failure;
        std::size_t found = 0;
        check(cuda_library()->first_nonfinite(all[i], &found, &failure), failure);
        if (found == all[i].size) continue;
        const std::size_t index = devices_[i].indices[found];
        if (!first || index < *first) first = index;
    }
    return first;
}

void OnDevices::sums_of_squares(double* sums) const {
    const std::vector<cuda::Work> all = works();
    std::vector<double> found;
    for (std::size_t i = 0; i < all.size(); ++i) {
        cuda::Failure failure;
        found.resize(all[i].size);
        check(cuda_library()->sums_of_squares(all[i], found.data(), &failure), failure);
        for (std::size_t k = 0; k < found.size(); ++k) sums[devices_[i].indices[k]] = found[k];
    }
}

void OnDevices::clip_alone(cuda::Clip clip, double most, const cuda::Number& norm) noexcept {
    cuda::Work& work = devices_.front().work;
    work.clip = clip;
    work.most = most;
    work.norm = norm;
}

bool OnDevices::start(cuda::Failure* failure) const noexcept {
    const std::vector<cuda::Work> all = works();
    return cuda_library()->step(all.data(), all.size(), failure);
}

bool OnDevices::let_wait(const std::vector<Streams::Used>& others, cuda::Failure* failure) const noexcept {
    for (const Streams::Used& other : others)
        for (const OnOne& one : devices_)
            if (one.work.device == other.device &&
                !cuda_library()->join(other.device, one.work.stream, other.stream, failure))
                return false;
    return true;
}

void OnDevices::run_limit() const {
    for (const cuda::Work& work : works()) {
        cuda::Failure failure;
        check(cuda_library()->limit(work, &failure), failure);
    }
}

DeviceStandIn::DeviceStandIn(int device, void* stream, const Layout& layout, void* array,
                             const std::vector<int>& order) {
    for (const int d : order) {
        shape_.push_back(layout.shape[d]);
        strides_.push_back(layout.strides != nullptr ? layout.strides[d] : 0);
    }
    if (layout.strides == nullptr) {  // C order
        std::vector<std::int64_t> c_strides(static_cast<std::size_t>(layout.ndim));
        std::int64_t next = layout.itemsize;
        for (int d = layout.ndim; d-- > 0; next *= layout.shape[d]) c_strides[static_cast<std::size_t>(d)] = next;
        for (std::size_t i = 0; i < order.size(); ++i) strides_[i] = c_strides[static_cast<std::size_t>(order[i])];
    }
    copy_.device = device;
    copy_.stream = stream;
    copy_.ndim = static_cast<int>(order.size());
    copy_.shape = shape_.data();
    copy_.strides = strides_.data();
    copy_.itemsize = layout.itemsize;
    copy_.array = array;
    cuda::Failure failure;
    const auto bytes = static_cast<std::size_t>(element_count(layout) * layout.itemsize);
    check(cuda_library()->allocate(device, stream, bytes, &copy_.buffer, &failure), failure);
    if (!cuda_library()->gather(copy_, &failure)) {
        cuda::Failure ignored;
        cuda_library()->release(device, stream, copy_.buffer, &ignored);
        check(false, failure);
    }
}

DeviceStandIn::~DeviceStandIn() {
    cuda::Failure ignored;  // an error of the device's shows in the next call
    cuda_library()->release(copy_.device, copy_.stream, copy_.buffer, &ignored);
}

bool DeviceStandIn::write_back(cuda::Failure* failure) const noexcept {
    return cuda_library()->scatter(copy_, failure);
}

}  // namespace radam::python
