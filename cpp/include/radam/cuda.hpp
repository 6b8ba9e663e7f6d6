// The library radam::cuda: steps over parameters in the memory of CUDA devices, one launch for each device.
// Nothing here needs a CUDA header.
#pragma once

#include <cstddef>
#include <cstdint>

#include "slot.hpp"

namespace radam::cuda {

// One number in a device's memory, fp32 or fp64; null data where there is none.
struct Number {
    void* data = nullptr;
    DType dtype = DType::fp32;
};

// What is scheduled on the device: hyperparameters, of which those that lie there stand in for the ones of their name.
struct Schedule {
    Hyperparameters hyperparameters;
    Number lr, beta1, beta2;
};

// One parameter. Either slot.step holds what the host scheduled, or it is null and `schedule` says how the device does:
// after the steps already taken, which `count` holds, or `taken` where there is no count.
struct DeviceSlot {
    Slot slot;
    const Schedule* schedule = nullptr;
    std::int64_t taken = 0;
    Number count;  // the step adds one, also where slot.step is given
};

// Gradients are made smaller where the norm of all of a work's, or of each tensor's, is above a number.
enum class Clip : std::uint8_t { none, all, each };

// Everything that one device does in a step.
struct Work {
    int device = 0;
    void* stream = nullptr;  // a cudaStream_t
    const DeviceSlot* slots = nullptr;
    std::size_t size = 0;
    Number grad_scale;            // gradients are divided by it too; only where the device schedules
    Number found_inf;             // where it is not zero, the step changes nothing
    Number skipped;               // but adds one to this
    bool skip_nonfinite = false;  // look at the gradients first: an inf or a NaN does the same
    Clip clip = Clip::none;       // by the norm of gradients times their scale, with clip_factor of norm.hpp
    double most = 0.0;
    Number norm;  // fp64: the norm of all of the work's gradients is written there, where anything is clipped
};

// A strided array in a device's memory and a buffer that holds its elements without gaps, in the order of these
// dimensions. Strides are in bytes.
struct Copy {
    int device = 0;
    void* stream = nullptr;
    int ndim = 0;
    const std::int64_t* shape = nullptr;
    const std::int64_t* strides = nullptr;
    std::int64_t itemsize = 1;
    void* array = nullptr;
    void* buffer = nullptr;
};

struct Failure {
    char text[512] = {};
};

struct Device {
    char name[256] = {};
    int major = 0, minor = 0;  // compute capability
};

// The functions of the library. Each but the first two returns false, and says why, where it could not do its work.
// Work goes onto the streams; nothing waits for it unless it says so. The current device is the same afterwards.
struct Library {
    int version;
    // Devices that can be used; 0 where there are none, which `why` explains.
    int (*devices)(Failure* why) noexcept;
    bool (*describe)(int device, Device* out, Failure*) noexcept;
    // All or nothing: whatever can fail is done for every device before the first one starts. One work a device.
    bool (*step)(const Work* works, std::size_t size, Failure*) noexcept;
    // The index of the first slot whose gradient holds an inf or a NaN, or size. Waits for the stream.
    bool (*first_nonfinite)(const Work& work, std::size_t* out, Failure*) noexcept;
    // The sum of squares of each slot's gradient, as norm.hpp adds them. Waits for the stream.
    bool (*sums_of_squares)(const Work& work, double* sums, Failure*) noexcept;
    // Moves what a step does and computes nothing: the limit that benchmarks compare with. Garbles the buffers.
    bool (*limit)(const Work& work, Failure*) noexcept;
    // Memory in the order of the stream.
    bool (*allocate)(int device, void* stream, std::size_t bytes, void** out, Failure*) noexcept;
    bool (*release)(int device, void* stream, void* memory, Failure*) noexcept;
    bool (*gather)(const Copy& copy, Failure*) noexcept;   // from the array to the buffer
    bool (*scatter)(const Copy& copy, Failure*) noexcept;  // and back
    // Lets another stream wait for all that the first one has to do by now; not for a stream that is being captured.
    bool (*join)(int device, void* stream, void* waiting, Failure*) noexcept;
    // One number, after all that the stream has to do.
    bool (*read)(int device, void* stream, Number number, double* out, Failure*) noexcept;
    bool (*is_capturing)(int device, void* stream, bool* out, Failure*) noexcept;
};

// Who finds another number in the library must not call it. The first term changes with what the sizes do not show.
constexpr int interface_version =
    2 + 100 * static_cast<int>(sizeof(Library) + sizeof(Work) + sizeof(DeviceSlot) + sizeof(Schedule) + sizeof(Copy) +
                               sizeof(ScheduledStep) + sizeof(Failure) + sizeof(Device));

}  // namespace radam::cuda

#if !defined(_WIN32)
#define RADAM_CUDA_API __attribute__((visibility("default")))
#elif defined(radam_cuda_EXPORTS)
#define RADAM_CUDA_API __declspec(dllexport)
#else
#define RADAM_CUDA_API
#endif

// The one symbol of the library, for those who load it at run time.
extern "C" RADAM_CUDA_API const radam::cuda::Library* radam_cuda_library();
