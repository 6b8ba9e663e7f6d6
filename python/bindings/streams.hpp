// Which CUDA streams the work of a call goes onto.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "dlpack.hpp"

namespace radam::python {

// For each device the current stream of the framework whose array came first leads. Those of other frameworks are
// waited for, by what __dlpack__ does, and wait for the work in turn. A null stream is the legacy default one, which
// waits for all others and they for it, but for those made not to.
class Streams {
public:
    // Whether the stream of a framework leads on a device. The framework, by a pointer that is its own, is asked once a
    // call: f() returns its current stream.
    template <class F>
    bool follow(int device, const void* framework, F f) {
        for (const Asked& asked : asked_)
            if (asked.device == device && asked.framework == framework) return asked.leads;
        void* const stream = f();
        const Used* const leading = find(device);
        const bool leads = leading == nullptr || leading->stream == stream;
        if (leading == nullptr) leading_.push_back({device, stream});
        if (!leads) others_.push_back({device, stream});
        asked_.push_back({device, framework, leads});
        return leads;
    }

    // Where no framework was asked.
    void follow_default(int device) {
        if (find(device) == nullptr) leading_.push_back({device, nullptr});
    }

    void* of(int device) const noexcept {
        const Used* const leading = find(device);
        return leading != nullptr ? leading->stream : nullptr;
    }

    struct Used {
        int device;
        void* stream;
    };
    const std::vector<Used>& leading() const noexcept { return leading_; }
    // Streams of other frameworks than those that lead.
    const std::vector<Used>& others() const noexcept { return others_; }

    void forget() noexcept {
        leading_.clear();
        others_.clear();
        asked_.clear();
    }

    // As DLPack numbers streams, where 0 is none.
    static std::uintptr_t number(void* stream) noexcept {
        return stream == nullptr ? 1 : reinterpret_cast<std::uintptr_t>(stream);
    }

private:
    struct Asked {
        int device;
        const void* framework;
        bool leads;
    };
    const Used* find(int device) const noexcept {
        for (const Used& used : leading_)
            if (used.device == device) return &used;
        return nullptr;
    }

    std::vector<Used> leading_, others_;
    std::vector<Asked> asked_;
};

// The CUDA device that an array with __dlpack__ lies on, if it does.
std::optional<int> cuda_device_of(const nanobind::object& array);

// array.__dlpack__(**options), with the array's device current where its framework asks for that.
nanobind::object exported(const nanobind::object& array, std::optional<int> device, const nanobind::dict& options);

// The stream that the framework of an array works on now; null where nothing is known of it.
void* current_stream(const nanobind::object& array, int device);

// The same of a framework that describes its tensors by this table.
void* current_stream(const dlpack::ExchangeApi& api, int device);

}  // namespace radam::python
