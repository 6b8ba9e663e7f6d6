// The kernels around cuda_sweep.hpp, and what launching them takes: tables in parameters or in a ring of buffers,
// streams, graphs that are being captured.
#include <cstdio>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda_buffers.cuh"
#include "cuda_norm.hpp"

// No namespace without a name: nvcc would write a hash of this file's path into each of its symbols, and two builds in
// different folders would differ.
namespace radam::cuda {

constexpr int threads_per_block = 256, blocks_per_multiprocessor = 4;  // so that a thread has 64 registers
static_assert(threads_per_block == most_warps * warp_size);

// ---- kernels

// Asked for anew every time, rather than kept in a register all along.
__device__ int this_thread() noexcept {
    int index;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
    return index;
}

__device__ std::uint32_t most_of_warp(std::uint32_t x) noexcept {
#if __CUDA_ARCH__ >= 800
    return __reduce_max_sync(0xffffffffu, x);
#else
    RADAM_UNROLL
    for (int apart = warp_size / 2; apart > 0; apart /= 2) x = greater(x, __shfl_xor_sync(0xffffffffu, x, apart));
    return x;
#endif
}

struct GpuWarp {
    __device__ int index() const noexcept { return this_thread() / warp_size; }
    __device__ int warps() const noexcept { return most_warps; }

    // All threads of the warp: after what they did before, and before what they do next.
    template <class F>
    __device__ void each(F f) const noexcept {
        __syncwarp();
        f(this_thread() % warp_size);
        __syncwarp();
    }

    // What a thread keeps from before to after; in between, where wanted, kept.most becomes the most of all threads'.
    template <class Kept, class B, class A>
    __device__ void keeps(bool wants_most, B before, A after) const noexcept {
        Kept kept;
        before(this_thread() % warp_size, kept);
        if (wants_most) {
            RADAM_UNROLL
            for (std::uint32_t& most : kept.most) most = most_of_warp(most);
        }
        after(this_thread() % warp_size, kept);
    }
};

struct GpuBlock {
    __device__ std::uint32_t index() const noexcept { return blockIdx.x; }
    __device__ std::uint32_t blocks() const noexcept {
        std::uint32_t count;  // asked for anew too
        asm volatile("mov.u32 %0, %%nctaid.x;" : "=r"(count));
        return count;
    }

    template <class F>
    __device__ void each(F f) const noexcept {
        f(this_thread(), threads_per_block);
    }
    template <class F>
    __device__ void each_warp(F f) const noexcept {
        f(GpuWarp{});
    }
    __device__ void wait() const noexcept { __syncthreads(); }

    // One thread does it: after what the others did before, and before what they do next.
    template <class F>
    __device__ void one(F f) const noexcept {
        __syncthreads();
        if (this_thread() == 0) f();
        __syncthreads();
    }

    // True in the last block of a launch that gets here; the counter is zero again for the next launch.
    __device__ bool is_last(std::uint32_t* counter) const noexcept {
        bool last = false;
        if (this_thread() == 0) {
            __threadfence();
            last = atomicInc(counter, gridDim.x - 1) == gridDim.x - 1;  // which makes it zero
            if (last) __threadfence();
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
template <class T>
struct Shared {
    alignas(T) char bytes[sizeof(T)];
    __device__ T& get() noexcept { return *reinterpret_cast<T*>(bytes); }
};

template <class AnyTable>
__global__ void __launch_bounds__(threads_per_block, blocks_per_multiprocessor)
    step_kernel(const __grid_constant__ AnyTable table) {
    __shared__ Shared<Scratch> scratch;
    step_table(table.view(), GpuBlock{}, scratch.get());
}

template <class AnyTable>
__global__ void __launch_bounds__(threads_per_block, blocks_per_multiprocessor)
    staged_step_kernel(const __grid_constant__ AnyTable table) {
    __shared__ Shared<StagedScratch> scratch;
    step_staged_table(table.view(), GpuBlock{}, scratch.get());
}

__global__ void __launch_bounds__(threads_per_block, blocks_per_multiprocessor) add_tiles_kernel(const Header* table) {
    __shared__ Shared<NormScratch> scratch;
    add_tiles({table}, GpuBlock{}, scratch.get());
}

__global__ void __launch_bounds__(threads_per_block, blocks_per_multiprocessor)
    add_entries_kernel(const Header* table) {
    add_entries({table}, GpuBlock{});
}

__global__ void __launch_bounds__(threads_per_block, blocks_per_multiprocessor)
    find_broken_kernel(const Header* table) {
    __shared__ Shared<Scratch> scratch;
    find_broken({table}, GpuBlock{}, scratch.get());
}

__global__ void __launch_bounds__(threads_per_block, blocks_per_multiprocessor) limit_kernel(const Header* table) {
    __shared__ Shared<Scratch> scratch;
    limit_table({table}, GpuBlock{}, scratch.get());
}

__global__ void __launch_bounds__(threads_per_block, blocks_per_multiprocessor)
    staged_limit_kernel(const Header* table) {
    __shared__ Shared<StagedScratch> scratch;
    limit_staged_table({table}, GpuBlock{}, scratch.get());
}

template <class Word>
__global__ void __launch_bounds__(threads_per_block, blocks_per_multiprocessor)
    copy_kernel(const __grid_constant__ Strides strides, std::int64_t size, char* array, void* buffer, bool to_buffer) {
    copy_strided(strides, size, array, static_cast<Word*>(buffer), to_buffer, GpuBlock{});
}

// ---- launches

enum class Kernel { step, find_broken, limit, add_tiles, add_entries };

// What stays between the launches of a device. Never destroyed: the driver may be gone by then.
class DeviceState {
public:
    explicit DeviceState(int device) {
        int multiprocessors = 0;
        check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
              "looking at the CUDA device");
        blocks_ = std::int64_t{multiprocessors} * blocks_per_multiprocessor;
        // Loads all kernels now: at its first launch a kernel would be loaded in the middle of a step or of a capture.
        for (const void* kernel :
             {kernel_of(step_kernel<Small>), kernel_of(step_kernel<Large>), kernel_of(staged_step_kernel<Small>),
              kernel_of(staged_step_kernel<Large>), kernel_of(find_broken_kernel), kernel_of(add_tiles_kernel),
              kernel_of(add_entries_kernel), kernel_of(limit_kernel), kernel_of(staged_limit_kernel),
              kernel_of(copy_kernel<std::uint16_t>), kernel_of(copy_kernel<std::uint32_t>),
              kernel_of(copy_kernel<std::uint64_t>)}) {
            cudaFuncAttributes attributes;
            check(cudaFuncGetAttributes(&attributes, kernel), "loading radam's kernels onto the CUDA device");
        }
    }

    template <class... Arguments>
    static const void* kernel_of(void (*kernel)(Arguments...)) noexcept {
        return reinterpret_cast<const void*>(kernel);
    }

    std::int64_t blocks() const noexcept { return blocks_; }

    std::mutex mutex;  // from the taking of a buffer to its event
    Buffers buffers;
    TableBuilder table;
    Small small;
    Large large;

private:
    std::int64_t blocks_;
};

DeviceState& state_of(int device) {
    static std::mutex mutex;
    static auto& states = *new std::vector<std::unique_ptr<DeviceState>>;
    const std::lock_guard lock(mutex);
    const auto index = static_cast<std::size_t>(device);
    if (states.size() <= index) states.resize(index + 1);
    if (states[index] == nullptr) {
        const DuringCapture mode;
        states[index] = std::make_unique<DeviceState>(device);
    }
    return *states[index];
}

void launch(const void* kernel, std::int64_t blocks, void** arguments, cudaStream_t stream, const char* doing) {
    check(cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(threads_per_block), arguments, 0, stream),
          doing);
}

// One device's part of a step: what can fail is done when it is made; then `start` launches it.
class Launch {
public:
    Launch(const Work& work, Kernel kernel)
        : state_(state_of(work.device)),
          stream_(stream_of(work.stream)),
          kernel_(kernel),
          adds_(kernel == Kernel::add_tiles || (kernel == Kernel::step && work.clip != Clip::none)),
          looks_((kernel == Kernel::step && work.skip_nonfinite) || kernel == Kernel::find_broken),
          lock_(state_.mutex) {
        const cudaGraph_t graph = graph_of(stream_);
        TableBuilder& table = state_.table;
        table.build(work, state_.blocks(), adds_);
        bool counts = false;
        for (std::size_t i = 0; i < work.size; ++i) {
            counts = counts || work.slots[i].count.data != nullptr;
            wide_ = wide_ || work.slots[i].slot.grad_dtype == DType::fp64;
        }
        in_memory_ = table.size() > Large::size || kernel != Kernel::step || looks_ || adds_;
        if (!in_memory_ && !counts) return;

        const DuringCapture mode;
        const std::size_t numbers_at = (table.size() + 7) / 8 * 8;
        const std::size_t bytes = in_memory_ ? numbers_at + table.norm_numbers() * sizeof(double) : 0;
        buffer_ = graph != nullptr ? state_.buffers.take_for(graph, bytes) : state_.buffers.take(bytes);
        in_ring_ = graph == nullptr;
        if (counts && kernel == Kernel::step) table.header().done = &buffer_->cells->done;
        if (looks_) table.header().first_broken = &buffer_->cells->first_broken;
        if (adds_) table.add_in(reinterpret_cast<double*>(buffer_->device + numbers_at), &buffer_->cells->added);
        if (in_memory_ && !in_ring_) state_.buffers.fill_now(*buffer_, table);
        if (in_memory_ && in_ring_) std::memcpy(buffer_->host, table.data(), table.size());
    }

    const std::uint32_t* first_broken() const noexcept { return &buffer_->cells->first_broken; }
    const double* sums_of_squares() const noexcept { return state_.table.header().norms.of_entries; }

    void start() {
        const NotesEnd when_it_ends{*this};
        if (in_memory_ && in_ring_)
            check(cudaMemcpyAsync(buffer_->device, buffer_->host, state_.table.size(), cudaMemcpyHostToDevice, stream_),
                  "copying a table to the device");
        if (looks_)
            check(cudaMemsetAsync(&buffer_->cells->first_broken, 0xff, sizeof(std::uint32_t), stream_),
                  "preparing a look at the gradients");
        if (adds_) {
            run(Kernel::add_tiles);
            run(Kernel::add_entries);  // which looks too, but at fp64
        }
        if (looks_ && (!adds_ || wide_)) run(Kernel::find_broken);
        if (kernel_ == Kernel::step || kernel_ == Kernel::limit) run(kernel_);
    }

private:
    // However `start` ends, the buffer is not free before the stream has come this far.
    struct NotesEnd {
        const Launch& launch;
        ~NotesEnd() {
            if (launch.in_ring_ && cudaEventRecord(launch.buffer_->free, launch.stream_) != cudaSuccess)
                ignore(cudaStreamSynchronize(launch.stream_));
        }
    };

    void run(Kernel kernel) {
        const Header& header = state_.table.header();
        const std::int64_t tiles = kernel == Kernel::add_tiles     ? header.norms.tiles
                                   : kernel == Kernel::add_entries ? header.entries
                                                                   : header.tiles;
        const std::int64_t most = state_.blocks(), blocks = tiles < 1 ? 1 : tiles < most ? tiles : most;
        const bool staged = state_.table.is_staged_table();
        const Header* there = in_memory_ ? reinterpret_cast<const Header*>(buffer_->device) : nullptr;
        void* arguments[] = {&there};
        const auto run_one = [&](void (*one)(const Header*), const char* doing) {
            launch(DeviceState::kernel_of(one), blocks, arguments, stream_, doing);
        };
        switch (kernel) {
            case Kernel::step:
                if (in_memory_ || state_.table.size() <= Small::size)
                    step_with(state_.small, there, blocks, staged);
                else
                    step_with(state_.large, there, blocks, staged);
                return;
            case Kernel::find_broken: return run_one(find_broken_kernel, "launching a look at the gradients");
            case Kernel::limit: return run_one(staged ? staged_limit_kernel : limit_kernel, "launching the limit");
            case Kernel::add_tiles: return run_one(add_tiles_kernel, "launching a sum of squares");
            case Kernel::add_entries: return run_one(add_entries_kernel, "launching a sum of squares");
        }
    }

    template <class AnyTable>
    void step_with(AnyTable& table, const Header* there, std::int64_t blocks, bool staged) {
        table.elsewhere = there;
        if (there == nullptr) std::memcpy(table.here, state_.table.data(), state_.table.size());
        void* arguments[] = {&table};
        launch(DeviceState::kernel_of(staged ? staged_step_kernel<AnyTable> : step_kernel<AnyTable>), blocks, arguments,
               stream_, "launching the step on the CUDA device");
    }

    DeviceState& state_;
    cudaStream_t stream_;
    Kernel kernel_;
    bool adds_, looks_, wide_ = false;
    std::unique_lock<std::mutex> lock_;
    Buffer* buffer_ = nullptr;
    bool in_memory_ = false, in_ring_ = false;
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
        const DuringCapture mode;  // of other streams; this one is not
        Launch launch(work, Kernel::find_broken);
        launch.start();
        std::uint32_t first = none_broken;
        check(cudaMemcpyAsync(&first, launch.first_broken(), sizeof first, cudaMemcpyDeviceToHost,
                              stream_of(work.stream)),
              "looking at the gradients");
        check(cudaStreamSynchronize(stream_of(work.stream)), "looking at the gradients");
        *out = first == none_broken ? work.size : first;
    });
}

bool sums_of_squares(const Work& work, double* sums, Failure* failure) noexcept {
    return succeeds(failure, [&] {
        const OnDevice current(work.device);
        const DuringCapture mode;  // of other streams; this one is not
        Launch launch(work, Kernel::add_tiles);
        launch.start();
        check(cudaMemcpyAsync(sums, launch.sums_of_squares(), work.size * sizeof(double), cudaMemcpyDeviceToHost,
                              stream_of(work.stream)),
              "adding up the gradients' squares");
        check(cudaStreamSynchronize(stream_of(work.stream)), "adding up the gradients' squares");
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
    char* array = static_cast<char*>(copy.array);
    void* buffer = copy.buffer;
    void* arguments[] = {&strides, &size, &array, &buffer, &to_buffer};
    const void* const kernel = copy.itemsize == 2   ? DeviceState::kernel_of(copy_kernel<std::uint16_t>)
                               : copy.itemsize == 4 ? DeviceState::kernel_of(copy_kernel<std::uint32_t>)
                                                    : DeviceState::kernel_of(copy_kernel<std::uint64_t>);
    launch(kernel, wanted < most ? wanted : most, arguments, stream_of(copy.stream),
           "copying a strided array on the CUDA device");
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
        ignore(cudaEventDestroy(event));  // when it is over
        check(code, "letting another stream wait for the step");
    });
}

bool read(int device, void* stream, Number number, double* out, Failure* failure) noexcept {
    return succeeds(failure, [&] {
        const OnDevice current(device);
        const DuringCapture mode;  // of other streams; this one is not
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

constexpr Library library{interface_version, devices, describe, step,        first_nonfinite,
                          sums_of_squares,   limit,   allocate, release,     gather,
                          scatter,           join,    read,     is_capturing};

}  // namespace radam::cuda

const radam::cuda::Library* radam_cuda_library() { return &radam::cuda::library; }
