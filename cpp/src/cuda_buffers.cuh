// What launching on a CUDA device takes besides kernels: errors, the current device, streams that are being captured,
// and memory that holds tables while a device reads them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda_table.hpp"

namespace radam::cuda {

// ---- errors

struct Error {
    cudaError_t code;
    const char* doing;
};

inline void check(cudaError_t code, const char* doing) {
    if (code == cudaSuccess) return;
    cudaGetLastError();  // what is not fatal must not be found by whoever asks next
    throw Error{code, doing};
}

// Where nothing can be done about a failure.
inline void ignore(cudaError_t code) noexcept {
    if (code != cudaSuccess) cudaGetLastError();
}

// Runs f, which throws Error.
template <class F>
bool succeeds(Failure* failure, F f) noexcept {
    try {
        f();
        return true;
    } catch (const Error& error) {
        std::snprintf(failure->text, sizeof failure->text, "%s: %s (%s)", error.doing, cudaGetErrorString(error.code),
                      cudaGetErrorName(error.code));
    } catch (const std::exception& error) {
        std::snprintf(failure->text, sizeof failure->text, "%s", error.what());
    }
    return false;
}

// ---- devices and streams

// The driver's own functions for contexts: the runtime would make one on device 0 where a thread has none yet.
struct Contexts {
    int (*current)(void** context) = nullptr;
    int (*make_current)(void* context) = nullptr;

    static const Contexts& get() {
        static const Contexts found = [] {
            Contexts contexts;
            void *current = nullptr, *make_current = nullptr;
            constexpr const char* doing = "asking the CUDA driver for its functions";
            check(cudaGetDriverEntryPointByVersion("cuCtxGetCurrent", &current, 12000, cudaEnableDefault), doing);
            check(cudaGetDriverEntryPointByVersion("cuCtxSetCurrent", &make_current, 12000, cudaEnableDefault), doing);
            contexts.current = reinterpret_cast<int (*)(void**)>(current);
            contexts.make_current = reinterpret_cast<int (*)(void*)>(make_current);
            return contexts;
        }();
        return found;
    }
};

// The current device while it lives; then whatever was current before, also nothing.
class OnDevice {
public:
    explicit OnDevice(int device) {
        check(static_cast<cudaError_t>(Contexts::get().current(&before_)), "asking for the current CUDA context");
        int current = 0;
        if (before_ != nullptr) check(cudaGetDevice(&current), "asking for the current CUDA device");
        if (before_ != nullptr && current == device) return;
        check(cudaSetDevice(device), "switching to the tensors' CUDA device");
        changed_ = true;
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;
    ~OnDevice() {
        if (changed_) Contexts::get().make_current(before_);
    }

private:
    void* before_ = nullptr;
    bool changed_ = false;
};

// Lets this thread allocate and wait while some stream is being captured; what goes onto that stream is captured still.
class DuringCapture {
public:
    DuringCapture() { ignore(cudaThreadExchangeStreamCaptureMode(&mode_)); }
    DuringCapture(const DuringCapture&) = delete;
    DuringCapture& operator=(const DuringCapture&) = delete;
    ~DuringCapture() { ignore(cudaThreadExchangeStreamCaptureMode(&mode_)); }

private:
    cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

inline cudaStream_t stream_of(void* stream) noexcept { return static_cast<cudaStream_t>(stream); }

// The graph that a stream is captured into, or null.
inline cudaGraph_t graph_of(cudaStream_t stream) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    cudaGraph_t graph = nullptr;
    check(cudaStreamGetCaptureInfo(stream, &status, nullptr, &graph), "looking at the stream");
    if (status == cudaStreamCaptureStatusInvalidated)
        throw Error{cudaErrorStreamCaptureInvalidated, "looking at the stream"};
    return status == cudaStreamCaptureStatusActive ? graph : nullptr;
}

// ---- memory

// What a launch needs in the device's memory besides the tensors.
struct Cells {
    std::uint32_t done, added;  // zero between launches
    std::uint32_t first_broken;
};

// Memory for one launch at a time: cells, and room for a table on the device and on the host.
struct Buffer {
    Cells* cells = nullptr;
    char *device = nullptr, *host = nullptr;
    std::size_t capacity = 0;
    cudaEvent_t free = nullptr;  // when the device has read it
};

// The buffers of one device, to be called with that device current and while this thread may allocate in a capture.
class Buffers {
public:
    Buffers() {
        // Its own stream, which waits for no other and which no other waits for.
        check(cudaStreamCreateWithFlags(&side_, cudaStreamNonBlocking), "making a CUDA stream");
        Cells* const cells = make_cells(ring_size);
        for (int i = 0; i < ring_size; ++i) {
            ring_[i].cells = cells + i;
            check(cudaEventCreateWithFlags(&ring_[i].free, cudaEventDisableTiming), "making a CUDA event");
        }
    }

    // A buffer that no launch uses. In turn, so that it is seldom waited for; but a table larger than all before it
    // waits for all.
    Buffer* take(std::size_t bytes) {
        if (bytes > ring_[0].capacity) grow_ring(bytes);
        Buffer* const buffer = &ring_[next_];
        next_ = (next_ + 1) % ring_size;
        check(cudaEventSynchronize(buffer->free), "waiting for an earlier step");
        return buffer;
    }

    // One that belongs to a graph until that is destroyed: replays find it as it is.
    Buffer* take_for(cudaGraph_t graph, std::size_t bytes) {
        take_back_from_graphs();
        auto loan = std::make_unique<Loan>(Loan{this, fitting(bytes)});
        Buffer* const buffer = loan->buffer;
        cudaUserObject_t object = nullptr;
        // The last one who lets go of the graph calls this, on any thread; CUDA cannot be called there.
        const auto give_back = [](void* content) {
            const std::unique_ptr<Loan> ended(static_cast<Loan*>(content));
            const std::lock_guard lock(ended->of->returned_mutex_);
            ended->of->returned_.push_back(ended->buffer);
        };
        {
            const std::lock_guard lock(returned_mutex_);
            returned_.reserve(++lent_);  // so that giving back allocates nothing
        }
        constexpr const char* doing = "tying memory to a CUDA graph";
        if (const cudaError_t code =
                cudaUserObjectCreate(&object, loan.get(), give_back, 1, cudaUserObjectNoDestructorSync)) {
            give_back(loan.release());
            check(code, doing);
        }
        loan.release();
        if (const cudaError_t code = cudaGraphRetainUserObject(graph, object, 1, cudaGraphUserObjectMove)) {
            ignore(cudaUserObjectRelease(object, 1));
            check(code, doing);
        }
        return buffer;
    }

    // Fills a buffer now, also where the stream that will use it is being captured.
    void fill_now(const Buffer& buffer, const TableBuilder& table) {
        std::memcpy(buffer.host, table.data(), table.size());
        check(cudaMemcpyAsync(buffer.device, buffer.host, table.size(), cudaMemcpyHostToDevice, side_),
              "copying a table to the device");
        check(cudaStreamSynchronize(side_), "copying a table to the device");
    }

private:
    struct Loan {
        Buffers* of;
        Buffer* buffer;
    };

    Cells* make_cells(int count) {
        Cells* cells = nullptr;
        const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(Cells);
        check(cudaMalloc(&cells, bytes), making_room);
        cudaError_t code = cudaMemsetAsync(cells, 0, bytes, side_);
        if (code == cudaSuccess) code = cudaStreamSynchronize(side_);
        if (code != cudaSuccess) {
            ignore(cudaFree(cells));
            check(code, making_room);
        }
        return cells;
    }

    static void make_room(std::size_t bytes, char** device, char** host) {
        check(cudaMalloc(device, bytes), making_room);
        if (const cudaError_t code = cudaMallocHost(host, bytes)) {
            ignore(cudaFree(*device));
            check(code, making_room);
        }
    }

    // One piece of memory for all, so that it is allocated, which may wait for the device, once and not at every step.
    void grow_ring(std::size_t bytes) {
        const std::size_t capacity = ((bytes > least_room ? 2 * bytes : least_room) + 15) / 16 * 16;
        char *device = nullptr, *host = nullptr;
        make_room(capacity * ring_size, &device, &host);
        for (const Buffer& buffer : ring_)
            if (const cudaError_t code = cudaEventSynchronize(buffer.free)) {
                ignore(cudaFree(device));
                ignore(cudaFreeHost(host));
                check(code, "waiting for an earlier step");
            }
        ignore(cudaFree(ring_[0].device));
        ignore(cudaFreeHost(ring_[0].host));
        for (std::size_t i = 0; i < ring_size; ++i) {
            ring_[i].device = device + i * capacity;
            ring_[i].host = host + i * capacity;
            ring_[i].capacity = capacity;
        }
    }

    // One that a graph gave back and that is large enough, or a new one.
    Buffer* fitting(std::size_t bytes) {
        for (auto spare = spare_.begin(); spare != spare_.end(); ++spare)
            if ((*spare)->capacity >= bytes) {
                Buffer* const found = *spare;
                spare_.erase(spare);
                return found;
            }
        auto made = std::make_unique<Buffer>();
        made->cells = make_cells(1);
        if (bytes > 0) make_room(bytes, &made->device, &made->host);
        made->capacity = bytes;
        return made.release();
    }

    void take_back_from_graphs() {
        const std::lock_guard lock(returned_mutex_);
        spare_.insert(spare_.end(), returned_.begin(), returned_.end());
        lent_ -= returned_.size();
        returned_.clear();
    }

    static constexpr const char* making_room = "allocating memory for a step";
    static constexpr int ring_size = 8;
    static constexpr std::size_t least_room = 256 * 1024;
    cudaStream_t side_ = nullptr;
    Buffer ring_[ring_size];
    int next_ = 0;
    std::vector<Buffer*> spare_;
    std::size_t lent_ = 0;
    std::mutex returned_mutex_;
    std::vector<Buffer*> returned_;
};

}  // namespace radam::cuda
