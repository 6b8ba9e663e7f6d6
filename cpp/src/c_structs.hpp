// The structs of radam.h, which may grow, and the words of C for what C++ calls otherwise.
#pragma once

#include <radam/radam.h>
#include <radam/conventions.hpp>
#include <radam/layout.hpp>
#include <radam/parameters.hpp>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>

namespace radam::c {

[[noreturn]] inline void refuse(const std::string& why) { throw std::invalid_argument("radam: " + why); }

template <class T>
T* required(T* pointer, const char* name) {
    if (pointer == nullptr) refuse(std::string(name) + " must not be null");
    return pointer;
}

// ---- structs that grow

// How a struct is called, and its size in the first version, where its last member ended.
template <class T>
struct Versioned;
#define RADAM_VERSIONED(type, last)                                                      \
    template <>                                                                          \
    struct Versioned<type> {                                                             \
        static constexpr const char* name = #type;                                       \
        static constexpr std::size_t first = offsetof(type, last) + sizeof(type().last); \
        static_assert(offsetof(type, struct_size) == 0);                                 \
    }
RADAM_VERSIONED(radam_options, weight_decay);
RADAM_VERSIONED(radam_precision, seed);
RADAM_VERSIONED(radam_state, master);
RADAM_VERSIONED(radam_param_options, state);
#undef RADAM_VERSIONED

constexpr std::size_t most_bytes = 4096;  // no struct will ever be as large; whoever says so has not said it

template <class T>
std::size_t checked_size(std::size_t size) {
    if (size >= Versioned<T>::first && size <= most_bytes) return size;
    refuse(std::string(Versioned<T>::name) + ": struct_size is " + std::to_string(size) + "; begin with " +
           Versioned<T>::name + "_init(..., sizeof(" + Versioned<T>::name + "))");
}

// Writes as much as the caller has room for, and zeros where its header knows more than this library.
template <class T>
void write(T* to, std::size_t size, T value) {
    value.struct_size = static_cast<std::uint32_t>(size);
    std::memset(to, 0, size);
    std::memcpy(to, &value, std::min(size, sizeof(T)));
}

// Reads what the caller's header knows.
template <class T>
T read(const T* from) {
    const std::size_t size = checked_size<T>(from->struct_size);
    const auto* const bytes = reinterpret_cast<const unsigned char*>(from);
    if (size > sizeof(T) && std::any_of(bytes + sizeof(T), bytes + size, [](unsigned char byte) { return byte != 0; }))
        refuse(std::string(Versioned<T>::name) + " has members that this library, version " RADAM_VERSION
                                                 ", does not know, and they are not zero");
    T value{};
    std::memcpy(&value, from, std::min(size, sizeof(T)));
    return value;
}

// ---- C's words and ours

static_assert(int(DType::fp64) == RADAM_FLOAT64 && int(DType::fp32) == RADAM_FLOAT32 &&
              int(DType::bf16) == RADAM_BFLOAT16 && int(DType::fp16) == RADAM_FLOAT16 &&
              int(DType::int8) == RADAM_INT8 && int(DType::uint8) == RADAM_UINT8);
static_assert(int(StateDType::float32) == RADAM_STATE_FLOAT32 && int(StateDType::bfloat16) == RADAM_STATE_BFLOAT16 &&
              int(StateDType::eight_bit) == RADAM_STATE_8BIT);

inline DType dtype(int given, const char* name) {
    if (given < RADAM_FLOAT64 || given > RADAM_FLOAT16)
        refuse(std::string(name) + " must be RADAM_FLOAT64, RADAM_FLOAT32, RADAM_BFLOAT16 or RADAM_FLOAT16, got " +
               std::to_string(given));
    return static_cast<DType>(given);
}

inline bool flag(int given, const char* name) {
    if (given != 0 && given != 1) refuse(std::string(name) + " must be 0 or 1, got " + std::to_string(given));
    return given != 0;
}

inline radam_options as_c(const Options& options) noexcept {
    radam_options c{};
    const auto decoupled = options.decoupled_weight_decay;
    c.decoupled_weight_decay = decoupled.has_value() ? *decoupled : RADAM_BY_CONVENTION;
    c.maximize = options.maximize;
    c.amsgrad = options.amsgrad;
    c.lr = options.lr;
    c.beta1 = options.beta1;
    c.beta2 = options.beta2;
    c.eps = options.eps.value_or(RADAM_BY_CONVENTION);
    c.weight_decay = options.weight_decay;
    return c;
}

inline Options as_ours(const radam_options* given) {
    Options options;
    if (given == nullptr) return options;
    const radam_options c = read(given);
    options.lr = c.lr;
    options.beta1 = c.beta1;
    options.beta2 = c.beta2;
    if (c.eps != RADAM_BY_CONVENTION) options.eps = c.eps;
    options.weight_decay = c.weight_decay;
    if (c.decoupled_weight_decay != RADAM_BY_CONVENTION)
        options.decoupled_weight_decay = flag(c.decoupled_weight_decay, "decoupled_weight_decay");
    options.maximize = flag(c.maximize, "maximize");
    options.amsgrad = flag(c.amsgrad, "amsgrad");
    return options;
}

inline radam_precision as_c(const Precision& precision) noexcept {
    radam_precision c{};
    c.state_dtype = static_cast<int>(precision.state_dtype);
    c.master_weights = precision.master_weights;
    c.stochastic_rounding = precision.stochastic_rounding;
    c.min_8bit_size = precision.min_8bit_size;
    c.seed = precision.seed;
    return c;
}

inline Precision as_ours(const radam_precision* given) {
    const radam_precision c = read(given);
    if (c.state_dtype < RADAM_STATE_FLOAT32 || c.state_dtype > RADAM_STATE_8BIT)
        refuse("state_dtype must be RADAM_STATE_FLOAT32, RADAM_STATE_BFLOAT16 or RADAM_STATE_8BIT, got " +
               std::to_string(c.state_dtype));
    Precision precision;
    precision.state_dtype = static_cast<StateDType>(c.state_dtype);
    precision.master_weights = flag(c.master_weights, "master_weights");
    precision.stochastic_rounding = flag(c.stochastic_rounding, "stochastic_rounding");
    precision.min_8bit_size = c.min_8bit_size;
    precision.seed = c.seed;
    return precision;
}

inline ParamOptions as_ours(const radam_param_options* given) {
    ParamOptions options;
    if (given == nullptr) return options;
    const radam_param_options c = read(given);
    if (c.ndim < 0 || c.ndim > most_dims)
        refuse("ndim must be from 0 to " + std::to_string(most_dims) + ", got " + std::to_string(c.ndim));
    if (c.ndim > 0) options.shape.assign(required(c.shape, "shape"), c.shape + c.ndim);
    if (c.name != nullptr) options.name = c.name;
    if (c.state == nullptr) return options;
    const radam_state state = read(c.state);
    options.state = {state.exp_avg,          state.exp_avg_sq,           state.max_exp_avg_sq, state.exp_avg_scale,
                     state.exp_avg_sq_scale, state.max_exp_avg_sq_scale, state.master};
    return options;
}

inline radam_state as_c(const Slot& slot) noexcept {
    radam_state c{};
    c.moment_dtype = static_cast<int>(moment_dtype(slot.param_dtype, slot.moments, false));
    c.exp_avg = slot.exp_avg;
    c.exp_avg_sq = slot.exp_avg_sq;
    c.max_exp_avg_sq = slot.max_exp_avg_sq;
    c.exp_avg_scale = slot.exp_avg_scale;
    c.exp_avg_sq_scale = slot.exp_avg_sq_scale;
    c.max_exp_avg_sq_scale = slot.max_exp_avg_sq_scale;
    c.master = slot.master;
    return c;
}

inline const Convention& convention_of(const char* name) {
    return name == nullptr ? conventions[0] : radam::convention_of(name);
}

}  // namespace radam::c
