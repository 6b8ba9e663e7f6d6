// Gradients made smaller by what their norms say, over many slots at once.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "tiles.hpp"

namespace radam {

enum class Clip { none, norm, tensor, value };  // by the norm of all, of each; each element (see Slot::grad_limit)

struct Clipping {
    Clip kind = Clip::none;
    double most = 0.0;
    double norm = std::numeric_limits<double>::quiet_NaN();  // of all gradients, before clipping; NaN before any

    bool needs_norm() const noexcept { return kind == Clip::norm || kind == Clip::tensor; }

    // Room for so many slots of so many elements, so that apply need not ask for any. Never gives any back.
    void make_room(const Slot* slots, std::size_t count) { make_room(square_chunks(slots, count), count); }
    void make_room(std::size_t chunks, std::size_t count) {
        if (chunks_.size() < chunks) chunks_.resize(chunks);
        if (sums_.size() < count) {
            sums_.resize(count);
            scaled_.resize(count);
            clipped_.resize(count);
        }
    }

    // Measures the gradients, multiplied by their steps' grad_scale, and lets each slot whose gradient is too large
    // take a step that scales it down; those live here until the next call. False where the norm is not finite.
    bool apply(const Executor& executor, SweepsOf sweeps, Slot* slots, std::size_t count) noexcept {
        sums_of_squares(executor, sweeps, slots, count, chunks_.data(), sums_.data());
        for (std::size_t i = 0; i < count; ++i) {
            const double scale = std::abs(slots[i].step->f64.grad_scale);
            sums_[i] *= scale * scale;
            scaled_[i] = sums_[i];
        }
        const double total = add_pairs(scaled_.data(), static_cast<std::int64_t>(count));
        norm = std::sqrt(total);
        const double factor = clip_factor(norm, most);
        for (std::size_t i = 0; i < count; ++i) {
            const double by = kind == Clip::norm ? factor : clip_factor(std::sqrt(sums_[i]), most);
            if (by == 1.0) continue;
            clipped_[i] = *slots[i].step;
            scale_gradients(clipped_[i], by);
            slots[i].step = &clipped_[i];
        }
        return std::isfinite(total);
    }

private:
    std::vector<double> chunks_, sums_, scaled_;
    std::vector<ScheduledStep> clipped_;
};

}  // namespace radam
