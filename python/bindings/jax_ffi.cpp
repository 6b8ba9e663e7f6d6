#include "jax_ffi.hpp"

#include <radam/cuda.hpp>
#include <radam/dispatch.hpp>
#include <radam/float_mode.hpp>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "call_frame.hpp"
#include "cuda_library.hpp"

namespace radam::python::jax {
namespace {

using xla::buffer;
using xla::elements;
using xla::Passed;
using xla::Refusal;
using xla::require;

// The scalars that a call is about, one or a batch of them.
struct Scalars {
    xla::Type dtype;
    const unsigned char* data;
    std::int64_t size;
};

template <class T>
T load(const void* from, std::int64_t index = 0) noexcept {
    T value;
    std::memcpy(&value, static_cast<const unsigned char*>(from) + index * static_cast<std::int64_t>(sizeof(T)),
                sizeof(T));
    return value;
}

Scalars whole_numbers(const xla::Buffer& b, const char* wrong) {
    require(b.dtype == xla::Type::s32 || b.dtype == xla::Type::s64, wrong);
    return {b.dtype, static_cast<const unsigned char*>(b.data), elements(b)};
}

std::int64_t whole(const Scalars& s, std::int64_t index) noexcept {
    return s.dtype == xla::Type::s32 ? load<std::int32_t>(s.data, index) : load<std::int64_t>(s.data, index);
}

constexpr std::int64_t parts = 3;  // uint32s of a float64

double real(const Scalars& s, std::int64_t index) noexcept {
    if (s.dtype == xla::Type::f32) return static_cast<double>(load<float>(s.data, index));
    if (s.dtype == xla::Type::u32)
        return load<double>(s.data + index * parts * static_cast<std::int64_t>(sizeof(std::uint32_t)));
    return load<double>(s.data, index);
}

constexpr const char* number_names[numbers] = {"learning_rate", "b1",        "b2",          "eps",
                                               "eps_root",      "threshold", "weight_decay"};

// The hyperparameters of a call: those that attributes hold, and where the others are.
class Settings {
public:
    Settings(const xla::CallFrame& frame, std::int64_t batch) {
        const xla::Attributes& attributes = frame.attributes;
        require(attributes.size == 3 && is_named(attributes, 0, "flags") && is_named(attributes, 1, "numbers") &&
                    is_named(attributes, 2, "operands"),
                "the attributes must be flags, numbers and operands");
        const std::int64_t flags = scalar(attributes, 0), which = scalar(attributes, 2);
        require(attributes.kinds[1] == xla::AttributeKind::array, "numbers must be an array");
        const auto* const array = static_cast<const xla::Array*>(attributes.values[1]);
        require(array != nullptr && array->dtype == xla::Type::f64 && array->size == numbers && array->data != nullptr,
                "numbers must be seven of float64");
        require(flags >= 0 && flags < 32 && which >= 0 && which < (1 << numbers), "a flag or a number is unknown");
        hyperparameters_.rectify_at_threshold = (flags & rectify_at_threshold) != 0;
        hyperparameters_.warmup = (flags & moments_only) != 0 ? Warmup::moments_only : Warmup::momentum;
        hyperparameters_.eps_on = (flags & eps_on_sqrt_v_hat) != 0 ? EpsOn::sqrt_v_hat : EpsOn::sqrt_v;
        hyperparameters_.nesterov = (flags & nesterov) != 0;
        hyperparameters_.decoupled_weight_decay = (flags & decoupled) != 0;
        for (int k = 0; k < numbers; ++k) {
            number(k) = load<double>(array->data, k);
            if ((which >> k & 1) == 0) continue;
            require(operands_ + 1 < frame.arguments.size, "an operand is missing");
            const xla::Buffer& b = buffer(frame.arguments, ++operands_);
            const bool in_parts = b.dtype == xla::Type::u32;
            require(in_parts || b.dtype == xla::Type::f32 || b.dtype == xla::Type::f64,
                    "a hyperparameter must be float32, float64, or the parts of a float64");
            require(elements(b) == (in_parts ? parts : 1) * batch,
                    "a hyperparameter has another size than the step number");
            scalars_[k] = Scalars{b.dtype, static_cast<const unsigned char*>(b.data), batch};
        }
    }

    int operands() const noexcept { return operands_; }
    const std::optional<Scalars>& operand(Number k) const noexcept { return scalars_[k]; }

    // Element `index` of the batch. Throws where one is out of range: all but lr.
    const Hyperparameters& at(std::int64_t index) {
        for (int k = 0; k < numbers; ++k)
            if (scalars_[k]) number(k) = real(*scalars_[k], index);
        return checked();
    }

    // Those that attributes hold.
    const Hyperparameters& checked() const {
        Hyperparameters checked = hyperparameters_;
        checked.lr = 0.0;
        if (const Violation found = violation(checked); found.name != nullptr) {
            std::string name = found.name;
            if (name == "beta1") name = number_names[b1];
            if (name == "beta2") name = number_names[b2];
            char value[32];
            std::snprintf(value, sizeof(value), "%.17g", found.value);
            throw Refusal(name + " must be " + found.rule + ", got " + value);
        }
        return hyperparameters_;
    }

private:
    static bool is_named(const xla::Attributes& attributes, std::int64_t index, const char* name) noexcept {
        const xla::Span* const span = attributes.names[index];
        return span != nullptr && span->data != nullptr && span->size == std::strlen(name) &&
               std::memcmp(span->data, name, span->size) == 0;
    }

    static std::int64_t scalar(const xla::Attributes& attributes, std::int64_t index) {
        require(attributes.kinds[index] == xla::AttributeKind::scalar, "flags and operands must be scalars");
        const auto* const found = static_cast<const xla::Scalar*>(attributes.values[index]);
        require(found != nullptr && found->dtype == xla::Type::s64 && found->value != nullptr,
                "flags and operands must be int64");
        return load<std::int64_t>(found->value);
    }

    double& number(int k) noexcept {
        constexpr double Hyperparameters::* places[numbers] = {
            &Hyperparameters::lr,          &Hyperparameters::beta1,    &Hyperparameters::beta2,
            &Hyperparameters::eps,         &Hyperparameters::eps_root, &Hyperparameters::threshold,
            &Hyperparameters::weight_decay};
        return hyperparameters_.*places[k];
    }

    Hyperparameters hyperparameters_;
    std::optional<Scalars> scalars_[numbers];
    int operands_ = 0;
};

std::int64_t checked_step(std::int64_t t) {
    if (t < 1) throw Refusal("a step number must be at least 1, got " + std::to_string(t));
    return t;
}

void compute_coefficients(const xla::CallFrame& frame) {
    require(frame.arguments.size >= 1 && frame.results.size == 2, "wrong number of operands or results");
    const Scalars t = whole_numbers(buffer(frame.arguments, 0), "the step number must be int32 or int64");
    Settings settings(frame, t.size);
    require(frame.arguments.size == 1 + settings.operands(), "wrong number of operands");

    using Row = Coefficients<double>;
    constexpr std::int64_t width = sizeof(Row) / sizeof(double);
    static_assert(sizeof(Coefficients<float>) == width * sizeof(float));
    const xla::Buffer &out = buffer(frame.results, 0), &rectified = buffer(frame.results, 1);
    require(out.dtype == xla::Type::f32 || out.dtype == xla::Type::f64, "coefficients must be float32 or float64");
    require(elements(out) == width * t.size, "the coefficients have another size");
    require(rectified.dtype == xla::Type::pred && elements(rectified) == t.size, "rectified must be one pred for each");

    // Twice, so that an error leaves the results as they were.
    for (std::int64_t i = 0; i < t.size; ++i) checked_step(whole(t, i)), settings.at(i);
    const DefaultFloatMode mode;
    for (std::int64_t i = 0; i < t.size; ++i) {
        const ScheduledStep step = schedule(settings.at(i), whole(t, i));
        if (out.dtype == xla::Type::f32)
            std::memcpy(static_cast<Coefficients<float>*>(out.data) + i, &step.f32, sizeof(step.f32));
        else
            std::memcpy(static_cast<Row*>(out.data) + i, &step.f64, sizeof(step.f64));
        static_cast<bool*>(rectified.data)[i] = step.mode == Mode::rectified;
    }
}

DType dtype_of(const xla::Buffer& b) {
    switch (b.dtype) {
        case xla::Type::f64: return DType::fp64;
        case xla::Type::f32: return DType::fp32;
        case xla::Type::bf16: return DType::bf16;
        case xla::Type::f16: return DType::fp16;
        default: throw Refusal("a leaf has a dtype that is none of float32, bfloat16, float16 and float64");
    }
}

bool is_alike(const xla::Buffer& a, const xla::Buffer& b) noexcept {
    return a.rank == b.rank && std::equal(a.dims, a.dims + a.rank, b.dims);
}

// The leaves of one call, checked.
struct Leaves {
    std::vector<Slot> slots;
    std::vector<const void*> sources;  // of each slot's param, exp_avg and exp_avg_sq, where that is another buffer
};

Leaves leaves_of(const xla::CallFrame& frame, std::int64_t first) {
    const xla::Buffers &in = frame.arguments, &out = frame.results;
    const std::int64_t n = (in.size - first) / 4;
    require(in.size == first + 4 * n + 1 && out.size == 1 + 3 * n, "wrong number of operands or results");
    Leaves leaves;
    leaves.slots.resize(static_cast<std::size_t>(n));
    leaves.sources.resize(static_cast<std::size_t>(3 * n));
    for (std::int64_t i = 0; i < n; ++i) {
        Slot& slot = leaves.slots[static_cast<std::size_t>(i)];
        const xla::Buffer& p = buffer(in, first + i);
        const xla::Buffer& g = buffer(in, first + n + i);
        slot.size = elements(p);
        slot.param_dtype = dtype_of(p);
        slot.grad_dtype = dtype_of(g);
        slot.grad = g.data;
        require(is_pair(slot.param_dtype, slot.grad_dtype), "a gradient's dtype does not go with its parameter's");
        require(is_alike(g, p), "a gradient has another shape than its parameter");
        elements(g);
        void** const places[3] = {&slot.param, &slot.exp_avg, &slot.exp_avg_sq};
        for (std::int64_t k = 0; k < 3; ++k) {
            const xla::Buffer& from = k == 0 ? p : buffer(in, first + (k + 1) * n + i);
            const xla::Buffer& to = buffer(out, 1 + k * n + i);
            require(from.dtype == to.dtype && is_alike(from, to), "a result is not like its operand");
            require(is_alike(from, p), "a moment has another shape than its parameter");
            require(k == 0 || dtype_of(from) == moment_dtype(slot.param_dtype),
                    "a moment must be float32, or float64 for a float64 parameter");
            elements(from);
            elements(to);
            *places[k] = to.data;
            leaves.sources[static_cast<std::size_t>(3 * i + k)] = from.data;
        }
    }
    return leaves;
}

// Where a result has a buffer of its own, it begins as its operand.
void begin_as_operands(const Leaves& leaves) noexcept {
    for (std::size_t i = 0; i < leaves.slots.size(); ++i) {
        const Slot& slot = leaves.slots[i];
        void* const to[3] = {slot.param, slot.exp_avg, slot.exp_avg_sq};
        for (std::size_t k = 0; k < 3; ++k) {
            const void* const from = leaves.sources[3 * i + k];
            const DType dtype = k == 0 ? slot.param_dtype : moment_dtype(slot.param_dtype);
            if (from != to[k] && slot.size > 0)
                std::memcpy(to[k], from, static_cast<std::size_t>(slot.size * size_of(dtype)));
        }
    }
}

// As Optax counts: the largest number stays, so that from then on every step is the one after it.
template <class T>
void count_on(void* to, std::int64_t taken) noexcept {
    const T next = static_cast<T>(taken < std::numeric_limits<T>::max() ? taken + 1 : taken);
    std::memcpy(to, &next, sizeof(T));
}

// 1 - lr * weight_decay is 1 without a decay, also where lr is infinite.
Hyperparameters without_idle_decay(Hyperparameters h) noexcept {
    h.decoupled_weight_decay = h.decoupled_weight_decay && h.weight_decay != 0.0;
    return h;
}

void compute_step(const xla::CallFrame& frame) {
    require(frame.arguments.size >= 1 && frame.results.size >= 1, "wrong number of operands or results");
    const Scalars count = whole_numbers(buffer(frame.arguments, 0), "the count must be int32 or int64");
    require(count.size == 1, "the count must be one number");
    const xla::Buffer& counted = buffer(frame.results, 0);
    require(counted.dtype == count.dtype && elements(counted) == 1, "the result of the count is not like it");
    Settings settings(frame, 1);
    Leaves leaves = leaves_of(frame, 1 + settings.operands());
    const std::int64_t taken = whole(count, 0);
    require(taken >= 0, "the count of steps must not be negative");
    const Hyperparameters h = without_idle_decay(settings.at(0));

    const DefaultFloatMode mode;
    const ScheduledStep step = schedule(h, taken < std::numeric_limits<std::int64_t>::max() ? taken + 1 : taken);
    for (Slot& slot : leaves.slots) slot.step = &step;
    begin_as_operands(leaves);
    radam::step(leaves.slots.data(), leaves.slots.size());
    if (count.dtype == xla::Type::s32)
        count_on<std::int32_t>(counted.data, taken);
    else
        count_on<std::int64_t>(counted.data, taken);
}

cuda::Number number_there(const std::optional<Scalars>& scalars) {
    if (!scalars) return {};
    // What comes in parts begins with a float64.
    return {const_cast<unsigned char*>(scalars->data), scalars->dtype == xla::Type::f32 ? DType::fp32 : DType::fp64};
}

void start_step_on_cuda(const xla::CallFrame& frame) {
    const xla::Api& api = *frame.api;
    if (api.struct_size < sizeof(xla::Api) || api.get_stream == nullptr || api.get_device == nullptr)
        throw Refusal("this jaxlib does not tell on which device a call runs; a newer one does",
                      xla::ErrorCode::unimplemented);
    require(frame.arguments.size >= 1 && frame.results.size >= 1, "wrong number of operands or results");
    const xla::Buffer &counts = buffer(frame.arguments, 0), &counted = buffer(frame.results, 0);
    Settings settings(frame, 1);
    for (const Number k : {eps, eps_root, threshold, weight_decay})
        require(!settings.operand(k), "only lr, b1 and b2 may be operands on CUDA");
    const Leaves leaves = leaves_of(frame, 1 + settings.operands());
    const std::size_t n = leaves.slots.size();
    require(counts.dtype == xla::Type::f32 && counts.dtype == counted.dtype && is_alike(counts, counted) &&
                elements(counts) == static_cast<std::int64_t>(n) && counted.data == counts.data,
            "the counts must be float32, one for each leaf, and updated where they are");
    const cuda::Schedule schedule{without_idle_decay(settings.checked()), number_there(settings.operand(lr)),
                                  number_there(settings.operand(b1)), number_there(settings.operand(b2))};
    std::vector<cuda::DeviceSlot> slots(n);
    for (std::size_t i = 0; i < n; ++i) {
        const Slot& slot = leaves.slots[i];
        const void* const* const from = &leaves.sources[3 * i];
        require(slot.size == 0 || (slot.param == from[0] && slot.exp_avg == from[1] && slot.exp_avg_sq == from[2]),
                "a result on CUDA must be its operand's buffer");
        slots[i] = {slot, &schedule, 0, {static_cast<float*>(counts.data) + i, DType::fp32}};
    }

    xla::StreamGet stream{sizeof(xla::StreamGet), nullptr, frame.context, nullptr};
    if (xla::Error* const found = api.get_stream(&stream); found != nullptr) throw Passed{found};
    xla::DeviceGet device{sizeof(xla::DeviceGet), nullptr, frame.context, 0};
    if (xla::Error* const found = api.get_device(&device); found != nullptr) throw Passed{found};
    const cuda::Library* const library = cuda_library();
    if (library == nullptr) throw Refusal(why_cuda_is_off(), xla::ErrorCode::unimplemented);
    cuda::Work work;
    work.device = device.device;
    work.stream = stream.stream;
    work.slots = slots.data();
    work.size = n;
    cuda::Failure failure;
    if (!library->step(&work, 1, &failure))
        throw Refusal(std::string("CUDA failed: ") + failure.text, xla::ErrorCode::internal);
}

}  // namespace

xla::Error* coefficients(xla::CallFrame* frame) noexcept { return xla::handle(frame, compute_coefficients); }

xla::Error* step(xla::CallFrame* frame) noexcept { return xla::handle(frame, compute_step); }

xla::Error* step_on_cuda(xla::CallFrame* frame) noexcept { return xla::handle(frame, start_step_on_cuda); }

}  // namespace radam::python::jax
