// Which CUDA streams the work of a call goes onto.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "dlpack.hpp"

namespace radam::python {

// For each device the current stream of the framework whose array came first; those of others wait for it, or it for
// them. A null stream is the legacy default one, which waits for all others and they for it.
class Streams {
public:
    // Takes this stream for the device. False where another one leads there already.
    bool follow(int device, void* stream, const dlpack::ExchangeApi* api);

    // The same with the current stream of a framework that describes its tensors by this table.
    bool follow_current(int device, const dlpack::ExchangeApi& api);

    void* of(int device) const noexcept;
    void forget() noexcept { known_.clear(); }

    // As DLPack numbers streams, where 0 is none.
    static std::uintptr_t number(void* stream) noexcept {
        return stream == nullptr ? 1 : reinterpret_cast<std::uintptr_t>(stream);
    }

private:
    struct Known {
        int device;
        void* stream;
        const dlpack::ExchangeApi* api;  // of the framework whose stream it is, where that has one
    };
    const Known* find(int device) const noexcept;

    std::vector<Known> known_;
};

// The CUDA device that an array with __dlpack__ lies on, if it does.
std::optional<int> cuda_device_of(const nanobind::object& array);

// The stream that the framework of an array works on now; null where nothing is known of it.
void* current_stream(const nanobind::object& array, int device);

}  // namespace radam::python
