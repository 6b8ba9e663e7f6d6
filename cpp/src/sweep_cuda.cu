// The kernels around cuda_sweep.hpp, and what launching them takes: tables in parameters or in a ring of buffers,
// streams, graphs that are being captured.
#include "cuda_sweep.hpp"

#include <cuda_runtime.h>

#include <cstdio>
#include <memory>
#include <mutex>

namespace radam::cuda {
namespace {

constexpr int threads_per_block = 256, blocks_per_multiprocessor = 4;  // so that a thread has 64 registers

// ---- kernels

struct GpuBlock {
    __device__ std::uint32_t index() const noexcept { return blockIdx.x; }
    __device__ std::uint32_t blocks() const noexcept { return gridDim.x; }

    // Asked for anew every time, rather than kept in a register all along.
    __device__ static int thread() noexcept {
        int index;
        asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
        return index;
    }

    template <class F>
    __device__ void each(F f) const noexcept {
        f(thread(), threads_per_block);
    }

    // One thread does it: after what the others did before, and before what they do next.
    template <class F>
    __device__ void one(F f) const noexcept {
        __syncthreads();
        if (thread() == 0) f();
        __syncthreads();
    }

    // True in the last block of a launch that gets here; the counter is zero again for the next launch.
    __device__ bool is_last(std::uint32_t* counter) const noexcept {
        bool last = false;
        if (thread() == 0) {
            __threadfence();
            last = atomicAdd(counter, 1u) == gridDim.x - 1;
            if (last) *counter = 0;
        }
        return __syncthreads_or(last);
    }

    template <class T>
    __device__ void add_one(T* number) const noexcept {
        atomicAdd(number, T(1));
    }
    __device__ void lower(std::uint32_t* number, std::uint32_t to) const noexcept { atomicMin(number, to); }
};

// Where a table lies: in the kernel's parameters, of which 4 KiB cost nothing and 32 KiB are the most, or in the
// device's memory.
template <int bytes>
struct Table {
    const Header* elsewhere;  // null: here
    alignas(16) char here[bytes];
    static constexpr std::size_t size = bytes;
    __device__ TableView view() const noexcept {
        return {elsewhere != nullptr ? elsewhere : reinterpret_cast<const Header*>(here)};
    }
};
using Small = Table<4000>;
using Large = Table<32512>;

// Bytes: what is shared has no constructor.
struct Shared {
    alignas(Scratch) char bytes[sizeof(Scratch)];
    __device__ Scratch* get() noexcept { return reinterpret_cast<Scratch*>(bytes); }
};

template <class AnyTable>
__global__ void __launch_bounds__(threads_per_block, blocks_per_multiprocessor)
    step_kernel(const __grid_constant__ AnyTable table) {
    __shared__ Shared scratch;
    step_table(table.view(), GpuBlock{}, *scratch.get());
}

__global__ void __launch_bounds__(threads_per_block, blocks_per_multiprocessor)
    find_broken_kernel(const Header* table) {
    __shared__ Shared scratch;
    find_broken({table}, GpuBlock{}, *scratch.get());
}

__global__ void __launch_bounds__(threads_per_block, blocks_per_multiprocessor) limit_kernel(const Header* table) {
    __shared__ Shared scratch;
    limit_table({table}, GpuBlock{}, *scratch.get());
}

template <class Word>
__global__ void __launch_bounds__(threads_per_block, blocks_per_multiprocessor)
    copy_kernel(const __grid_constant__ Strides strides, std::int64_t size, char* array, void* buffer, bool to_buffer) {
    copy_strided(strides, size, array, static_cast<Word*>(buffer), to_buffer, GpuBlock{});
}

// ---- errors

struct Error {
    cudaError_t code;
    const char* doing;
};

void check(cudaError_t code, const char* doing) {
    if (code == cudaSuccess) return;
    cudaGetLastError();  // what is not fatal must not be found by whoever asks next
    throw Error{code, doing};
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

// The current device while it lives; then the one from before.
class OnDevice {
public:
    explicit OnDevice(int device) {
        check(cudaGetDevice(&before_), "asking for the current CUDA device");
        if (device == before_) return;
        check(cudaSetDevice(device), "switching to the tensors' CUDA device");
        changed_ = true;
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;
    ~OnDevice() {
        if (changed_) cudaSetDevice(before_);
    }

private:
    int before_ = 0;
    bool changed_ = false;
};

// Lets this thread allocate and wait while some stream is being captured; what goes onto that stream is captured still.
class DuringCapture {
public:
    DuringCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
    DuringCapture(const DuringCapture&) = delete;
    DuringCapture& operator=(const DuringCapture&) = delete;
    ~DuringCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }

private:
    cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

cudaStream_t stream_of(void* stream) noexcept { return static_cast<cudaStream_t>(stream); }

// The graph that a stream is captured into, or null.
cudaGraph_t graph_of(cudaStream_t stream) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    cudaGraph_t graph = nullptr;
    check(cudaStreamGetCaptureInfo(stream, &status, nullptr, &graph), "looking at the stream");
    if (status == cudaStreamCaptureStatusInvalidated)
        throw Error{cudaErrorStreamCaptureInvalidated, "looking at the stream"};
    return status == cudaStreamCaptureStatusActive ? graph : nullptr;
}

// What a launch needs in the device's memory besides the tensors.
struct Cells {
    std::uint32_t done;  // zero between launches
    std::uint32_t first_broken;
};

// Memory on the device and its twin on the host, for one launch at a time.
struct Buffer {
    char* device = nullptr;  // Cells, then a table
    char* host = nullptr;    // a table
    std::size_t capacity = 0;
    cudaEvent_t free = nullptr;  // when the device has read it

    Cells* cells() const noexcept { return reinterpret_cast<Cells*>(device); }
    char* table() const noexcept { return device + table_at; }
    static constexpr std::size_t table_at = 16;
};

class DeviceState {
public:
    explicit DeviceState(int device) : device_(device) {
        check(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device),
              "looking at the CUDA device");
        // Its own stream, which waits for no other and which no other waits for.
        check(cudaStreamCreateWithFlags(&side_, cudaStreamNonBlocking), "making a CUDA stream");
    }

    std::mutex mutex;  // from the taking of a buffer to its event

    std::int64_t blocks() const noexcept { return std::int64_t{multiprocessors_} * blocks_per_multiprocessor; }

    // A buffer that no launch uses, on this device. In turn, so that it is seldom waited for.
    Buffer* take(std::size_t bytes) {
        take_back_from_graphs();
        Buffer*& buffer = ring_[next_];
        next_ = (next_ + 1) % ring_size;
        if (buffer == nullptr) buffer = make(bytes).release();
        check(cudaEventSynchronize(buffer->free), "waiting for an earlier step");
        grow(*buffer, bytes);
        return buffer;
    }

    // One that belongs to a graph until that is destroyed: replays find it as it is.
    Buffer* take_for(cudaGraph_t graph, std::size_t bytes) {
        take_back_from_graphs();
        std::unique_ptr<Buffer> buffer;
        if (spare_.empty()) {
            buffer = make(bytes);
        } else {
            buffer.reset(spare_.back());
            spare_.pop_back();
            grow(*buffer, bytes);
        }
        auto returns = std::make_unique<Returns>(Returns{this, buffer.get()});
        cudaUserObject_t object = nullptr;
        // The last one who lets go of the graph calls this, on any thread; CUDA cannot be called there.
        const auto give_back = [](void* content) {
            const std::unique_ptr<Returns> from(static_cast<Returns*>(content));
            const std::lock_guard lock(from->state->returned_mutex_);
            from->state->returned_.push_back(from->buffer);
        };
        {
            const std::lock_guard lock(returned_mutex_);
            returned_.reserve(++lent_);  // so that giving back allocates nothing
        }
        check(cudaUserObjectCreate(&object, returns.get(), give_back, 1, cudaUserObjectNoDestructorSync),
              "tying memory to a CUDA graph");
        returns.release();
        Buffer* const out = buffer.release();
        if (const cudaError_t code = cudaGraphRetainUserObject(graph, object, 1, cudaGraphUserObjectMove)) {
            cudaUserObjectRelease(object, 1);
            check(code, "tying memory to a CUDA graph");
        }
        return out;
    }

    // Fills a buffer now, also where the stream that will use it is being captured.
    void fill_now(Buffer& buffer, const TableBuilder& table) {
        std::memcpy(buffer.host, table.data(), table.size());
        check(cudaMemcpyAsync(buffer.table(), buffer.host, table.size(), cudaMemcpyHostToDevice, side_),
              "copying a table to the device");
        check(cudaStreamSynchronize(side_), "copying a table to the device");
    }

private:
    struct Returns {
        DeviceState* state;
        Buffer* buffer;
    };

    std::unique_ptr<Buffer> make(std::size_t bytes) {
        auto buffer = std::make_unique<Buffer>();
        check(cudaEventCreateWithFlags(&buffer->free, cudaEventDisableTiming), "making a CUDA event");
        grow(*buffer, bytes);
        return buffer;
    }

    void grow(Buffer& buffer, std::size_t bytes) {
        if (bytes <= buffer.capacity && buffer.device != nullptr) return;
        const std::size_t capacity = bytes + bytes / 2;
        char *device = nullptr, *host = nullptr;
        check(cudaMalloc(&device, Buffer::table_at + capacity), "allocating memory for a table");
        cudaError_t code = cudaMallocHost(&host, capacity > 0 ? capacity : 1);
        if (code == cudaSuccess) code = cudaMemsetAsync(device, 0, sizeof(Cells), side_);
        if (code == cudaSuccess) code = cudaStreamSynchronize(side_);
        if (code != cudaSuccess) {
            cudaFree(device);
            cudaFreeHost(host);
            check(code, "allocating memory for a table");
        }
        cudaFree(buffer.device);
        cudaFreeHost(buffer.host);
        buffer.device = device;
        buffer.host = host;
        buffer.capacity = capacity;
    }

    void take_back_from_graphs() {
        const std::lock_guard lock(returned_mutex_);
        spare_.insert(spare_.end(), returned_.begin(), returned_.end());
        returned_.clear();
    }

    static constexpr int ring_size = 8;
    int device_, multiprocessors_ = 0, next_ = 0;
    cudaStream_t side_ = nullptr;
    Buffer* ring_[ring_size] = {};
    std::vector<Buffer*> spare_;
    std::size_t lent_ = 0;
    std::mutex returned_mutex_;
    std::vector<Buffer*> returned_;
};

// Never destroyed: the driver may be gone by then.
DeviceState& state_of(int device) {
    static std::mutex mutex;
    static auto& states = *new std::vector<std::unique_ptr<DeviceState>>;
    const std::lock_guard lock(mutex);
    const auto index = static_cast<std::size_t>(device);
    if (states.size() <= index) states.resize(index + 1);
    if (states[index] == nullptr) states[index] = std::make_unique<DeviceState>(device);
    return *states[index];
}

// ---- launches

enum class Kernel { step, find_broken, limit };

// One device's part of a step: what can fail is done when it is made; then `start` launches it.
class Launch {
public:
    Launch(const Work& work, Kernel kernel)
        : state_(state_of(work.device)),
          stream_(stream_of(work.stream)),
          kernel_(kernel),
          looks_(work.skip_nonfinite || kernel == Kernel::find_broken),
          lock_(state_.mutex) {
        const cudaGraph_t graph = graph_of(stream_);
        table_.build(work, state_.blocks());
        bool counts = false;
        for (std::size_t i = 0; i < work.size; ++i) counts = counts || work.slots[i].count.data != nullptr;
        const bool in_memory = table_.size() > Large::size || kernel != Kernel::step || looks_;
        if (in_memory || counts || looks_) {
            const DuringCapture mode;
            const std::size_t bytes = in_memory ? table_.size() : 0;
            buffer_ = graph != nullptr ? state_.take_for(graph, bytes) : state_.take(bytes);
            Cells* const cells = buffer_->cells();
            if (counts && kernel == Kernel::step) table_.header().done = &cells->done;
            if (looks_) table_.header().first_broken = &cells->first_broken;
            if (in_memory) {
                if (graph != nullptr)
                    state_.fill_now(*buffer_, table_);
                else
                    std::memcpy(buffer_->host, table_.data(), table_.size());
            }
        }
        uploads_ = in_memory && graph == nullptr;
        in_ring_ = buffer_ != nullptr && graph == nullptr;
        in_memory_ = in_memory;
    }

    Buffer* buffer() const noexcept { return buffer_; }

    void start() {
        if (uploads_)
            check(cudaMemcpyAsync(buffer_->table(), buffer_->host, table_.size(), cudaMemcpyHostToDevice, stream_),
                  "copying a table to the device");
        if (looks_)
            check(cudaMemsetAsync(&buffer_->cells()->first_broken, 0xff, sizeof(std::uint32_t), stream_),
                  "preparing a look at the gradients");
        if (looks_ && kernel_ != Kernel::find_broken) run(Kernel::find_broken);
        run(kernel_);
        if (in_ring_) check(cudaEventRecord(buffer_->free, stream_), "noting the end of a step");
    }

private:
    void run(Kernel kernel) {
        const std::int64_t tiles = table_.header().tiles, most = state_.blocks();
        const auto blocks = static_cast<unsigned>(tiles < 1 ? 1 : tiles < most ? tiles : most);
        const auto* const there = in_memory_ ? reinterpret_cast<const Header*>(buffer_->table()) : nullptr;
        switch (kernel) {
            case Kernel::find_broken: find_broken_kernel<<<blocks, threads_per_block, 0, stream_>>>(there); break;
            case Kernel::limit: limit_kernel<<<blocks, threads_per_block, 0, stream_>>>(there); break;
            case Kernel::step:
                if (in_memory_ || table_.size() <= Small::size)
                    step_kernel<<<blocks, threads_per_block, 0, stream_>>>(in_parameters<Small>(there));
                else
                    step_kernel<<<blocks, threads_per_block, 0, stream_>>>(in_parameters<Large>(there));
        }
        check(cudaGetLastError(), "launching the step on the CUDA device");
    }

    template <class AnyTable>
    const AnyTable& in_parameters(const Header* there) {
        thread_local AnyTable table;
        table.elsewhere = there;
        if (there == nullptr) std::memcpy(table.here, table_.data(), table_.size());
        return table;
    }

    DeviceState& state_;
    cudaStream_t stream_;
    Kernel kernel_;
    bool looks_;
    std::unique_lock<std::mutex> lock_;
    TableBuilder table_;
    Buffer* buffer_ = nullptr;
    bool uploads_ = false, in_ring_ = false, in_memory_ = false;
};

// ---- the functions of the library

int devices(Failure* why) noexcept {
    int count = 0;
    succeeds(why, [&] {
        check(cudaGetDeviceCount(&count), "looking for CUDA devices");
        if (count == 0) throw Error{cudaErrorNoDevice, "looking for CUDA devices"};
    });
    return count;
}

bool describe(int device, Device* out, Failure* failure) noexcept {
    return succeeds(failure, [&] {
        cudaDeviceProp properties;
        check(cudaGetDeviceProperties(&properties, device), "looking at the CUDA device");
        std::snprintf(out->name, sizeof out->name, "%s", properties.name);
        out->major = properties.major;
        out->minor = properties.minor;
    });
}

bool step(const Work* works, std::size_t size, Failure* failure) noexcept {
    return succeeds(failure, [&] {
        // In the order of the devices, so that two threads never wait for each other's buffers.
        std::vector<std::unique_ptr<Launch>> launches(size);
        for (std::size_t i = 0; i < size; ++i) {
            const OnDevice current(works[i].device);
            launches[i] = std::make_unique<Launch>(works[i], Kernel::step);
        }
        for (std::size_t i = 0; i < size; ++i) {
            const OnDevice current(works[i].device);
            launches[i]->start();
        }
    });
}

bool first_nonfinite(const Work& work, std::size_t* out, Failure* failure) noexcept {
    return succeeds(failure, [&] {
        const OnDevice current(work.device);
        Launch launch(work, Kernel::find_broken);
        launch.start();
        std::uint32_t first = none_broken;
        check(cudaMemcpyAsync(&first, &launch.buffer()->cells()->first_broken, sizeof first, cudaMemcpyDeviceToHost,
                              stream_of(work.stream)),
              "looking at the gradients");
        check(cudaStreamSynchronize(stream_of(work.stream)), "looking at the gradients");
        *out = first == none_broken ? work.size : first;
    });
}

bool limit(const Work& work, Failure* failure) noexcept {
    return succeeds(failure, [&] {
        const OnDevice current(work.device);
        Launch(work, Kernel::limit).start();
    });
}

bool allocate(int device, void* stream, std::size_t bytes, void** out, Failure* failure) noexcept {
    return succeeds(failure, [&] {
        const OnDevice current(device);
        check(cudaMallocAsync(out, bytes, stream_of(stream)), "allocating memory for a strided array");
    });
}

bool release(int device, void* stream, void* memory, Failure* failure) noexcept {
    return succeeds(failure, [&] {
        const OnDevice current(device);
        check(cudaFreeAsync(memory, stream_of(stream)), "freeing the memory of a strided array");
    });
}

void copy(const Copy& copy, bool to_buffer) {
    const OnDevice current(copy.device);
    Strides strides{};
    strides.ndim = copy.ndim;
    std::int64_t size = 1;
    for (int d = 0; d < copy.ndim; ++d) {
        strides.shape[d] = copy.shape[d];
        strides.bytes[d] = copy.strides[d];
        size *= copy.shape[d];
    }
    if (size == 0) return;
    const std::int64_t wanted = (size + threads_per_block - 1) / threads_per_block;
    const std::int64_t most = state_of(copy.device).blocks();
    const auto grid = static_cast<unsigned>(wanted < most ? wanted : most);
    char* const array = static_cast<char*>(copy.array);
    const cudaStream_t stream = stream_of(copy.stream);
    switch (copy.itemsize) {
        case 2:
            copy_kernel<std::uint16_t>
                <<<grid, threads_per_block, 0, stream>>>(strides, size, array, copy.buffer, to_buffer);
            break;
        case 4:
            copy_kernel<std::uint32_t>
                <<<grid, threads_per_block, 0, stream>>>(strides, size, array, copy.buffer, to_buffer);
            break;
        default:
            copy_kernel<std::uint64_t>
                <<<grid, threads_per_block, 0, stream>>>(strides, size, array, copy.buffer, to_buffer);
    }
    check(cudaGetLastError(), "copying a strided array on the CUDA device");
}

bool gather(const Copy& c, Failure* failure) noexcept {
    return succeeds(failure, [&] { copy(c, true); });
}

bool scatter(const Copy& c, Failure* failure) noexcept {
    return succeeds(failure, [&] { copy(c, false); });
}

bool join(int device, void* stream, void* waiting, Failure* failure) noexcept {
    return succeeds(failure, [&] {
        const OnDevice current(device);
        cudaEvent_t event = nullptr;
        check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making a CUDA event");
        cudaError_t code = cudaEventRecord(event, stream_of(stream));
        if (code == cudaSuccess) code = cudaStreamWaitEvent(stream_of(waiting), event);
        cudaEventDestroy(event);  // when it is over
        check(code, "letting another stream wait for the step");
    });
}

bool read(int device, void* stream, Number number, double* out, Failure* failure) noexcept {
    return succeeds(failure, [&] {
        const OnDevice current(device);
        union {
            double wide;
            float narrow;
        } value;
        const std::size_t bytes = number.dtype == DType::fp64 ? sizeof(double) : sizeof(float);
        check(cudaMemcpyAsync(&value, number.data, bytes, cudaMemcpyDeviceToHost, stream_of(stream)),
              "reading a number from the CUDA device");
        check(cudaStreamSynchronize(stream_of(stream)), "reading a number from the CUDA device");
        *out = number.dtype == DType::fp64 ? value.wide : static_cast<double>(value.narrow);
    });
}

bool is_capturing(int device, void* stream, bool* out, Failure* failure) noexcept {
    return succeeds(failure, [&] {
        const OnDevice current(device);
        *out = graph_of(stream_of(stream)) != nullptr;
    });
}

constexpr Library library{
    interface_version, devices, describe, step,        first_nonfinite, limit, allocate, release, gather,
    scatter,           join,    read,     is_capturing};

}  // namespace
}  // namespace radam::cuda

#if defined(_WIN32)
extern "C" __declspec(dllexport) const radam::cuda::Library* radam_cuda_library() { return &radam::cuda::library; }
#else
extern "C" __attribute__((visibility("default"))) const radam::cuda::Library* radam_cuda_library() {
    return &radam::cuda::library;
}
#endif
