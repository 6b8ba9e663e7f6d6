// The parts that a parameter's state has: where a slot points to them, how large they are, what they are called.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <vector>

#include "precision.hpp"
#include "state_memory.hpp"

namespace radam {

// A parameter's own state, where its embedder keeps it: as many elements as the parameter has, of the dtypes that
// slot.hpp says, at any alignment, and zeros before the first step. Null: the optimizer makes it.
struct StateBuffers {
    void *exp_avg = nullptr, *exp_avg_sq = nullptr, *max_exp_avg_sq = nullptr;  // the latter for amsgrad
    float *exp_avg_scale = nullptr, *exp_avg_sq_scale = nullptr, *max_exp_avg_sq_scale = nullptr;  // 8-bit moments
    void* master = nullptr;                                                                        // master weights
};

// A parameter's state by value, as files bring it.
struct ParamState {
    std::int64_t steps = 0;
    std::vector<char> buffers[7];                    // the bytes of StateBuffers' members, in their order; empty: zeros
    std::optional<std::vector<std::int64_t>> shape;  // for a parameter that was given none; not there: as it is
};

constexpr int state_parts = 7;
constexpr const char* state_part_names[state_parts] = {
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_avg_scale", "exp_avg_sq_scale", "max_exp_avg_sq_scale", "master"};

inline std::array<void*, state_parts> parts_of(const StateBuffers& state) noexcept {
    return {state.exp_avg,          state.exp_avg_sq,           state.max_exp_avg_sq, state.exp_avg_scale,
            state.exp_avg_sq_scale, state.max_exp_avg_sq_scale, state.master};
}

inline void* part_of(const Slot& slot, int part) noexcept {
    switch (part) {
        case 0: return slot.exp_avg;
        case 1: return slot.exp_avg_sq;
        case 2: return slot.max_exp_avg_sq;
        case 3: return slot.exp_avg_scale;
        case 4: return slot.exp_avg_sq_scale;
        case 5: return slot.max_exp_avg_sq_scale;
        default: return slot.master;
    }
}

inline void set_part(Slot& slot, int part, void* data) noexcept {
    switch (part) {
        case 0: slot.exp_avg = data; break;
        case 1: slot.exp_avg_sq = data; break;
        case 2: slot.max_exp_avg_sq = data; break;
        case 3: slot.exp_avg_scale = static_cast<float*>(data); break;
        case 4: slot.exp_avg_sq_scale = static_cast<float*>(data); break;
        case 5: slot.max_exp_avg_sq_scale = static_cast<float*>(data); break;
        default: slot.master = data;
    }
}

// The bytes of a part, by the slot's size, dtype and kinds; 0 for what it does not have.
inline std::int64_t part_bytes(const Slot& slot, int part, bool amsgrad) noexcept {
    if ((part == 2 || part == 5) && !amsgrad) return 0;
    if (part < 3) return moment_bytes(slot.param_dtype, slot.moments, slot.size);
    if (part < 6) return scale_bytes(slot.moments, slot.size);
    return master_bytes(slot.weights, slot.size);
}

// The parts that an optimizer has made itself.
class OwnedState {
public:
    void place(Slot& slot, int part, Zeros&& memory) noexcept {
        Zeros& kept = memory_[static_cast<std::size_t>(part)];
        kept = std::move(memory);
        set_part(slot, part, kept.data());
    }
    // Makes each part that a slot lacks, as zeros.
    void make(Slot& slot, bool amsgrad) {
        std::array<Zeros, state_parts> made;
        for (int part = 0; part < state_parts; ++part)
            if (part_of(slot, part) == nullptr)
                made[static_cast<std::size_t>(part)] = Zeros(static_cast<std::size_t>(part_bytes(slot, part, amsgrad)));
        for (int part = 0; part < state_parts; ++part)
            if (Zeros& fresh = made[static_cast<std::size_t>(part)]; fresh.data() != nullptr)
                place(slot, part, std::move(fresh));
    }

private:
    std::array<Zeros, state_parts> memory_;
};

}  // namespace radam
