// Tensors of LibTorch as a step needs them: which ones it takes, how they lie in memory, and new states of parameters.
#pragma once

#include <ATen/Functions.h>
#include <c10/core/InferenceMode.h>

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "../layout.hpp"
#include "../precision.hpp"
#include "options.hpp"

namespace radam::torch::detail {

using ::at::Tensor;

enum Role : int {
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    max_exp_avg_sq,
    exp_avg_scale,
    exp_avg_sq_scale,
    max_exp_avg_sq_scale,
    master,
    roles
};
constexpr const char* role_names[roles] = {
    "parameter",
    "the gradient of parameter",
    "exp_avg of parameter",
    "exp_avg_sq of parameter",
    "max_exp_avg_sq of parameter",
    "exp_avg_scale of parameter",
    "exp_avg_sq_scale of parameter",
    "max_exp_avg_sq_scale of parameter",
    "the master weight of parameter",
};

// Which tensor of which parameter: how messages call it.
struct Where {
    Role role;
    std::size_t group, index;
    std::string text() const {
        return std::string(role_names[role]) + " " + std::to_string(index) + " of group " + std::to_string(group);
    }
};

template <class... Args>
[[noreturn]] void refuse(const Where& where, const Args&... why) {
    TORCH_CHECK(false, "radam: ", where.text(), " ", why...);
}

// How the elements of a tensor are stored; a complex one is a pair of real ones.
struct Elements {
    DType dtype = DType::fp32;
    bool is_complex = false, is_known = true;
};

inline Elements elements_of(c10::ScalarType type) noexcept {
    switch (type) {
        case c10::kDouble: return {DType::fp64, false, true};
        case c10::kFloat: return {DType::fp32, false, true};
        case c10::kBFloat16: return {DType::bf16, false, true};
        case c10::kHalf: return {DType::fp16, false, true};
        case c10::kComplexDouble: return {DType::fp64, true, true};
        case c10::kComplexFloat: return {DType::fp32, true, true};
        case c10::kComplexHalf: return {DType::fp16, true, true};
        default: return {DType::fp32, false, false};
    }
}

// What is kept of a parameter, and in which types; Undefined for nothing.
struct Kinds {
    Moments moments;
    Weights weights;
    c10::ScalarType types[roles];
};

inline Kinds kinds_of(const Elements& elements, std::int64_t size, bool amsgrad, const Precision& precision) noexcept {
    constexpr c10::ScalarType none = c10::ScalarType::Undefined;
    const bool wide = elements.dtype == DType::fp64, complex = elements.is_complex;
    Kinds kinds{Moments::full, weights_of(precision, elements.dtype), {}};
    for (c10::ScalarType& type : kinds.types) type = none;
    if (!complex) kinds.moments = moments_of(precision, elements.dtype, size);
    const bool coded = kinds.moments == Moments::coded;
    const c10::ScalarType number = complex ? (wide ? c10::kComplexDouble : c10::kComplexFloat)
                                   : wide  ? c10::kDouble
                                           : c10::kFloat;
    const c10::ScalarType moment = kinds.moments == Moments::bf16 ? c10::kBFloat16 : number;
    for (int k = 0; k < (amsgrad ? 3 : 2); ++k) {
        kinds.types[exp_avg + k] = !coded ? moment : k == 0 ? c10::kChar : c10::kByte;
        kinds.types[exp_avg_scale + k] = coded ? c10::kFloat : none;
    }
    if (kinds.weights == Weights::split) kinds.types[master] = c10::kShort;
    if (kinds.weights == Weights::master) kinds.types[master] = number;
    return kinds;
}

inline bool is_scale(int role) noexcept { return role >= exp_avg_scale && role <= max_exp_avg_sq_scale; }

// The tensor of a state that has this role.
template <class State>
auto& tensor_of(State& state, int role) noexcept {
    switch (role) {
        case exp_avg: return state.exp_avg();
        case exp_avg_sq: return state.exp_avg_sq();
        case max_exp_avg_sq: return state.max_exp_avg_sq();
        case exp_avg_scale: return state.exp_avg_scale();
        case exp_avg_sq_scale: return state.exp_avg_sq_scale();
        case max_exp_avg_sq_scale: return state.max_exp_avg_sq_scale();
        default: return state.master();
    }
}

// Zeros for one role, in the parameter's own memory order; where that has gaps, in C order.
inline Tensor zeros_for(const Tensor& param, int role, c10::ScalarType type) {
    const c10::InferenceMode mode(false);  // also for a step outside of it
    const auto options = ::at::TensorOptions().dtype(type).device(c10::kCPU).requires_grad(false);
    if (is_scale(role)) return ::at::zeros({blocks_of(param.numel())}, options);
    const bool dense = param.is_non_overlapping_and_dense();
    return ::at::zeros_like(param.detach(), options,
                            dense ? c10::MemoryFormat::Preserve : c10::MemoryFormat::Contiguous);
}

inline bool lacks(const RAdamParamState& state, const Kinds& kinds) noexcept {
    for (int role = exp_avg; role < roles; ++role)
        if (kinds.types[role] != c10::ScalarType::Undefined && !tensor_of(state, role).defined()) return true;
    return false;
}

// A state with everything that a parameter of this kind has: zeros where the given one (it may be null) has nothing.
inline std::unique_ptr<RAdamParamState> completed(const RAdamParamState* state, const Tensor& param,
                                                  const Kinds& kinds) {
    auto made = state != nullptr ? std::make_unique<RAdamParamState>(*state) : std::make_unique<RAdamParamState>();
    for (int role = exp_avg; role < roles; ++role)
        if (kinds.types[role] != c10::ScalarType::Undefined && !tensor_of(*made, role).defined())
            tensor_of(*made, role) = zeros_for(param, role, kinds.types[role]);
    return made;
}

// Layouts of tensors, for as long as a step lasts.
class Layouts {
public:
    Layout of(const Tensor& tensor) {
        const bool complex = tensor.is_complex();
        const auto itemsize = static_cast<std::int64_t>(tensor.element_size());
        const auto ndim = static_cast<std::size_t>(tensor.dim()) + (complex ? 1 : 0);
        std::vector<std::int64_t>& numbers = kept_.emplace_back();
        numbers.reserve(2 * ndim);
        for (const std::int64_t size : tensor.sizes()) numbers.push_back(size);
        if (complex) numbers.push_back(2);
        for (const std::int64_t stride : tensor.strides()) numbers.push_back(stride * itemsize);
        if (complex) numbers.push_back(itemsize / 2);
        return {static_cast<int>(ndim), numbers.data(), numbers.data() + ndim, complex ? itemsize / 2 : itemsize};
    }
    void clear() noexcept { kept_.clear(); }

private:
    std::deque<std::vector<std::int64_t>> kept_;
};

// ---- which tensors a step takes

// The keys of a tensor that is nothing but numbers in this process's memory, as LibTorch itself makes it.
inline std::uint64_t plain_keys() {
    static const std::uint64_t keys = [] {
        const c10::InferenceMode mode(false);
        return ::at::empty({0}, ::at::TensorOptions(c10::kFloat)).key_set().raw_repr();
    }();
    return keys;
}

[[noreturn]] inline void refuse_kind(const Where& where, const Tensor& tensor) {
    const bool is_grad = where.role == grad;
    if (tensor.layout() == c10::kSparse || tensor.layout() == c10::kSparseCsr)
        refuse(where, "is sparse; RAdam does not support sparse tensors: make the layer with sparse(false), or ",
               is_grad ? "hand in grad.to_dense()" : "use a dense parameter");
    if (tensor.is_quantized()) refuse(where, "is quantized; train the float weights and quantize them afterwards");
    if (tensor.layout() != c10::kStrided)
        refuse(where, "has layout ", tensor.layout(), "; hand in a dense one: tensor.to_dense()");
    if (tensor.is_nested()) refuse(where, "is nested; hand in its parts as parameters of their own");
    if (!tensor.is_cpu())
        refuse(where, "is on ", tensor.device(),
               ", and radam's LibTorch optimizer steps tensors on the CPU alone: keep the model there, or train it on "
               "its device with radam.torch.RAdam in Python or an optimizer of LibTorch's");
    refuse(where, "is a wrapper around another tensor (keys ", tensor.key_set(),
           "); hand in the tensor that has the numbers, outside of transforms and modes");
}

// Checks a tensor that a step writes; returns its data.
inline void* checked_written(const Where& where, const Tensor& tensor) {
    c10::TensorImpl* const impl = tensor.unsafeGetTensorImpl();
    const std::uint64_t keys = impl->key_set().raw_repr();
    if (keys != plain_keys()) {
        if ((keys & ~plain_keys()) != 0 || !tensor.is_cpu()) {
            if (tensor.is_cpu() && tensor.layout() == c10::kStrided && (tensor.is_conj() || tensor.is_neg()))
                refuse(where, "is a lazily conjugated or negated view; hand in tensor.resolve_conj().resolve_neg()");
            refuse_kind(where, tensor);
        }
        if (impl->is_inference() && !c10::InferenceMode::is_enabled())
            refuse(where,
                   "is an inference tensor, which cannot be changed outside of InferenceMode: step inside of it, "
                   "or train a clone that was made outside");
    }
    return impl->mutable_data();
}

// The bytes behind a tensor's data pointer that its storage has: somebody may have taken them away.
inline bool has_its_memory(const Tensor& tensor, std::int64_t last_byte) noexcept {
    const c10::TensorImpl* const impl = tensor.unsafeGetTensorImpl();
    const auto offset = impl->storage_offset() * static_cast<std::int64_t>(impl->itemsize());
    return offset + last_byte <= static_cast<std::int64_t>(impl->unsafe_storage().nbytes());
}

}  // namespace radam::torch::detail
