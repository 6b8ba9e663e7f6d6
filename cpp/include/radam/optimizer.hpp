// For embedders: groups of parameters over raw buffers, their states, and a step that throws and allocates nothing.
#pragma once

#include <cstdio>

#include "clipping.hpp"
#include "conventions.hpp"
#include "parameters.hpp"

namespace radam {

// One of the table of conventions, or adam. std::invalid_argument where there is none of this name.
inline const Convention& convention_of(const std::string& name) {
    if (const Convention* const found = find_convention(name.c_str())) return *found;
    std::string names;
    for (const Convention& convention : conventions) names += std::string(convention.name) + ", ";
    throw std::invalid_argument("radam: convention must be one of " + names + "adam, got \"" + name + "\"");
}

// Everything of an optimizer that is not compiled for an instruction set. Not to be used by two threads at once. One
// that was moved from is only to be assigned to, or destroyed.
// Whatever is out of range, or does not fit, is a std::invalid_argument that says what helps; nothing is changed then.
class OptimizerBase {
public:
    OptimizerBase(OptimizerBase&&) = default;
    OptimizerBase& operator=(OptimizerBase&&) = default;

    // ---- groups

    // The parameters that are added from now on have these options. Returns the group's number. The constructor's
    // options are those of the first group. A group without parameters gives way to the next one.
    std::size_t add_group(const Options& options) {
        const bool replaces = params_.size() == 0 || params_[params_.size() - 1].group + 1 < groups_.size();
        const std::size_t number = replaces ? groups_.size() - 1 : groups_.size();
        const Group group{options, checked(options, number, false), false};
        if (replaces)
            groups_.back() = group;
        else
            groups_.push_back(group);
        return number;
    }

    std::size_t groups() const noexcept { return groups_.size(); }
    const Options& options(std::size_t group = 0) const { return groups_[at(group)].options; }

    // From the next step on.
    void set_options(std::size_t group, const Options& options) {
        const Hyperparameters found = checked(options, group, groups_[at(group)].is_narrow);
        if (options.amsgrad) params_.make_max(group);
        groups_[group].options = options;
        groups_[group].hyperparameters = found;
    }
    void set_lr(std::size_t group, double lr) {
        Options options = this->options(group);
        options.lr = lr;
        set_options(group, options);
    }
    void set_lr(double lr) {  // of all groups
        const auto at_lr = [lr](Options options) {
            options.lr = lr;
            return options;
        };
        for (std::size_t g = 0; g < groups_.size(); ++g) checked(at_lr(groups_[g].options), g, groups_[g].is_narrow);
        for (Group& group : groups_) group.options.lr = group.hyperparameters.lr = lr;
    }

    // ---- parameters: see BasicOptimizer::add_param. What is returned by reference holds until the next one is added.

    std::size_t size() const noexcept { return params_.size(); }
    const std::string& name(std::size_t index) const { return param(index).name; }
    const std::vector<std::int64_t>& shape(std::size_t index) const { return param(index).shape; }
    bool is_shaped(std::size_t index) const { return param(index).is_shaped; }  // or of one dimension for now
    bool has_room_for_max(std::size_t index) const { return params_.has_room_for_max(params_.checked(index)); }
    std::size_t group_of(std::size_t index) const { return param(index).group; }
    std::int64_t steps(std::size_t index) const { return param(index).steps; }  // taken so far
    // Its buffers and how they are stored. (The step of a slot is set while one runs.)
    const Slot& slot(std::size_t index) const { return param(index).slot; }

    // Another place for a parameter, or for its gradient, of the same dtype and size. Null for no gradient: then a step
    // leaves the parameter out, and its count of steps stays. Each move must find its place free.
    template <class Param>
    void set_param(std::size_t index, Param* moved) {
        check_dtype(dtype_of<Param>(), param(index).slot.param_dtype, index, "it");
        params_.set_param(index, moved);
    }
    template <class Grad>
    void set_grad(std::size_t index, const Grad* grad) {
        check_dtype(dtype_of<Grad>(), param(index).slot.grad_dtype, index, "its gradient");
        params_.set_grad(index, grad);
    }
    void set_grad(std::size_t index, std::nullptr_t) { params_.set_grad(index, nullptr); }
    // The same where the caller sees to the dtype.
    void set_param(std::size_t index, void* param) { params_.set_param(index, param); }
    void set_grad(std::size_t index, const void* grad) { params_.set_grad(index, grad); }

    // ---- options of the whole optimizer

    const Convention& convention() const noexcept { return convention_; }
    const Precision& precision() const noexcept { return precision_; }
    const Executor& executor() const noexcept { return executor_; }
    void set_executor(Executor executor) noexcept { executor_ = std::move(executor); }

    // All gradients together are scaled down to this norm, as torch.nn.utils.clip_grad_norm_; infinity only measures.
    // One way of clipping takes the place of another.
    void set_max_grad_norm(double most) { set_clip(Clip::norm, most, "max_grad_norm"); }
    // The gradient of each parameter by itself.
    void set_max_tensor_grad_norm(double most) { set_clip(Clip::tensor, most, "max_tensor_grad_norm"); }
    void set_no_clipping() noexcept { clipping_.kind = Clip::none; }
    const Clipping& clipping() const noexcept { return clipping_; }

    // Of all gradients of the last step that clipped by a norm, or measured it, before clipping; NaN before the first.
    double grad_norm() const noexcept { return clipping_.norm; }

    // What every gradient is multiplied by before all else: 1 / the scale of a loss, say.
    void set_grad_scale(double scale) {
        const double before = std::exchange(grad_scale_, scale);
        try {
            for (std::size_t g = 0; g < groups_.size(); ++g) checked(groups_[g].options, g, groups_[g].is_narrow);
        } catch (...) {
            grad_scale_ = before;
            throw;
        }
        for (Group& group : groups_) group.hyperparameters.grad_scale = scale;
    }

    // A step is left out, and changes nothing, where a gradient holds an inf or a NaN.
    void skip_nonfinite(bool skip) noexcept { skips_ = skip; }
    std::int64_t skipped_steps() const noexcept { return skipped_; }

    // ---- steps

    // One step of every parameter that has a gradient. False where it was left out: see skip_nonfinite.
    bool step() noexcept {
        const DefaultFloatMode mode;
        const std::size_t count = gather();
        bool looks = skips_;
        if (clipping_.needs_norm()) looks = !clipping_.apply(executor_, sweeps_.data(), slots_.data(), count) && looks;
        if (looks && first_nonfinite(executor_, sweeps_.data(), slots_.data(), count) < count) {
            ++skipped_;
            return false;
        }
        radam::step(executor_, sweeps_.data(), slots_.data(), count);
        for (std::size_t i = 0; i < params_.size(); ++i)
            if (params_[i].slot.grad != nullptr) ++params_[i].steps;
        return true;
    }

    // ---- states as a whole: for files, see saved.hpp

    // Takes over the options of all groups, a state for each parameter, and a seed.
    void restore(const std::vector<Options>& options, const std::vector<ParamState>& states, std::uint64_t seed) {
        if (options.size() != groups_.size() || states.size() != params_.size())
            throw std::invalid_argument("radam: restore needs options for each group and a state for each parameter");
        std::vector<Group> groups;
        for (std::size_t g = 0; g < options.size(); ++g)
            groups.push_back({options[g], checked(options[g], g, groups_[g].is_narrow), groups_[g].is_narrow});
        std::vector<std::vector<std::int64_t>> shapes(states.size());
        for (std::size_t i = 0; i < states.size(); ++i) {
            const Parameter& p = params_[i];
            if (states[i].steps < 0 || states[i].steps > std::int64_t{1} << 62)
                params_.refuse(i, "restore takes from 0 to 2^62 steps, got " + std::to_string(states[i].steps));
            const bool max = options[p.group].amsgrad || !states[i].buffers[2].empty();
            for (int part = 0; part < state_parts; ++part) {
                const std::size_t given = states[i].buffers[part].size();
                const auto bytes = static_cast<std::size_t>(part_bytes(p.slot, part, max));
                if (given != 0 && given != bytes)
                    params_.refuse(i, "restore has " + std::to_string(given) + " bytes of " + state_part_names[part] +
                                          " instead of " + std::to_string(bytes));
            }
            if (!p.owns_state) params_.check_room(i, max);
            shapes[i] = p.is_shaped ? p.shape : states[i].shape.value_or(p.shape);
            params_.check_shape(shapes[i], p, i);
        }
        // Room that is not needed, should memory end here, does no harm.
        for (std::size_t i = 0; i < states.size(); ++i)
            params_.make_state(i, options[params_[i].group].amsgrad || !states[i].buffers[2].empty());

        groups_.swap(groups);  // nothing from here on throws
        for (std::size_t i = 0; i < states.size(); ++i) {
            Parameter& p = params_[i];
            for (int part = 0; part < state_parts; ++part) {
                const std::vector<char>& from = states[i].buffers[part];
                void* const to = part_of(p.slot, part);
                if (to == nullptr) continue;
                if (from.empty())
                    std::memset(to, 0, static_cast<std::size_t>(part_bytes(p.slot, part, true)));
                else
                    std::memcpy(to, from.data(), from.size());
            }
            p.steps = states[i].steps;
            p.slot.seed = seed;
            p.shape.swap(shapes[i]);
        }
        precision_.seed = seed;
    }

protected:
    OptimizerBase(const Options& options, const Convention& convention, Executor executor)
        : convention_(convention), executor_(std::move(executor)) {
        groups_.push_back({options, checked(options, 0, false), false});
    }
    ~OptimizerBase() = default;

    // sweeps: the loops for slots of these dtypes that are not staged.
    std::size_t add(void* param, DType param_dtype, const void* grad, DType grad_dtype, std::int64_t size,
                    const Sweeps& sweeps, const ParamOptions& options) {
        const std::size_t index = params_.size();
        Parameter p;
        p.sweeps = &sweeps;
        p.group = groups_.size() - 1;
        p.name = options.name;
        p.slot.param = param;
        p.slot.grad = grad;
        p.slot.size = size;
        p.slot.param_dtype = param_dtype;
        p.slot.grad_dtype = grad_dtype;
        p.slot.moments = moments_of(precision_, param_dtype, size);
        p.slot.weights = weights_of(precision_, param_dtype);
        p.slot.seed = precision_.seed;
        p.slot.ordinal = static_cast<std::uint32_t>(index);
        const bool is_narrow = param_dtype != DType::fp64;
        params_.add(std::move(p), options.shape, options.state, groups_.back().options.amsgrad, [&] {
            if (is_narrow) checked(groups_.back().options, groups_.size() - 1, true);
            make_room(index + 1, chunks_ + static_cast<std::size_t>(norm_chunks(size)));
        });
        chunks_ += static_cast<std::size_t>(norm_chunks(size));
        groups_.back().is_narrow |= is_narrow;
        return index;
    }

    void set_precision(const Precision& precision, const Sweeps& staged) {
        if (params_.size() > 0)
            throw std::invalid_argument("radam: set_precision comes before the first parameter; states depend on it");
        refuse_violation(violation(precision), "");
        precision_ = precision;
        staged_ = &staged;
    }
    void set_max_grad_value(double most, const Sweeps& staged) {
        set_clip(Clip::value, most, "max_grad_value");
        staged_ = &staged;
    }

private:
    struct Group {
        Options options;
        Hyperparameters hyperparameters;
        bool is_narrow;  // has a parameter that is computed in float
    };

    static void refuse_violation(const Violation& found, const std::string& where) {
        if (found.name == nullptr) return;
        char value[32];
        std::snprintf(value, sizeof value, "%g", found.value);
        throw std::invalid_argument("radam: " + where + found.name + " must be " + found.rule + ", got " + value);
    }

    Hyperparameters checked(const Options& options, std::size_t group, bool is_narrow) const {
        const std::string where = "group " + std::to_string(group) + ": ";
        refuse_violation(violation(options, convention_), where);
        Hyperparameters h = hyperparameters(options, convention_);
        h.grad_scale = grad_scale_;
        refuse_violation(violation(h), where);
        // The largest coefficients that any step can have.
        ScheduledStep step = schedule(h, std::int64_t{1} << 62);
        step.f64.step_size = h.lr / (1.0 - h.beta1);
        if (!is_finite(step.f64) || (is_narrow && !is_finite(round_to_float(step.f64))))
            throw std::invalid_argument("radam: " + where + "it would be stepped by numbers too large for " +
                                        (is_narrow ? "float32" : "float64") +
                                        " arithmetic; lower lr, weight_decay or the scale of gradients");
        return h;
    }
    std::size_t at(std::size_t group) const {
        if (group < groups_.size()) return group;
        throw std::invalid_argument("radam: there is no group " + std::to_string(group) + "; there are " +
                                    std::to_string(groups_.size()));
    }
    const Parameter& param(std::size_t index) const { return params_[params_.checked(index)]; }
    void check_dtype(DType given, DType known, std::size_t index, const char* what) const {
        if (given != known)
            params_.refuse(
                index, std::string(what) + " was added as " + name_of(known) + ", and cannot become " + name_of(given));
    }

    void set_clip(Clip kind, double most, const char* name) {
        if (!(most >= 0.0)) refuse_violation({name, "a number, at least 0", most}, "");
        clipping_.kind = kind;
        clipping_.most = most;
    }

    // For everything that a step works with, so that it need not ask for any.
    void make_room(std::size_t params, std::size_t chunks) {
        slots_.resize(params);
        sweeps_.resize(params);
        schedules_.resize(params);
        clipping_.make_room(chunks, params);
    }

    // The slots of the parameters that have a gradient, each with its step; returns how many.
    std::size_t gather() noexcept {
        std::size_t count = 0, scheduled = 0, group = 0;
        const double limit = clipping_.kind == Clip::value ? clipping_.most : no_limit;
        for (const Parameter& p : params_) {
            if (p.slot.grad == nullptr) continue;
            const Hyperparameters& h = groups_[p.group].hyperparameters;
            const std::int64_t t = p.steps + 1;
            if (scheduled == 0 || group != p.group || schedules_[scheduled - 1].t != t)
                schedules_[scheduled++] = schedule(h, t);
            group = p.group;
            Slot& slot = slots_[count];
            slot = p.slot;
            slot.step = &schedules_[scheduled - 1];
            slot.grad_limit = limit;
            if (!h.amsgrad) slot.max_exp_avg_sq = nullptr;
            sweeps_[count++] = is_staged(slot) ? staged_ : p.sweeps;
        }
        return count;
    }

    Convention convention_;
    Precision precision_;
    Executor executor_;
    std::vector<Group> groups_;
    Parameters params_;
    const Sweeps* staged_ = nullptr;  // there where somebody asked for what needs it
    Clipping clipping_;
    double grad_scale_ = 1.0;
    bool skips_ = false;
    std::int64_t skipped_ = 0;
    // What a step works with.
    std::vector<Slot> slots_;
    std::vector<const Sweeps*> sweeps_;
    std::vector<ScheduledStep> schedules_;
    std::size_t chunks_ = 0;  // of the gradients of all parameters
};

// RAdam, or Adam, over parameters in raw buffers, with the loops of an instruction set: radam::Optimizer (radam.hpp)
// has those that are compiled with it, radam::dispatched::Optimizer (dispatch.hpp) those of the compiled library.
//
//     radam::Optimizer optimizer;                       // lr = 1e-3, betas 0.9 and 0.999, ...
//     optimizer.add_param(weights, gradients, count);
//     optimizer.step();                                 // whenever the gradients are new
template <class Loops>
class BasicOptimizer : public OptimizerBase {
public:
    explicit BasicOptimizer(const Options& options = {}, const Convention& convention = conventions[0],
                            Executor executor = Loops::executor())
        : OptimizerBase(options, convention, std::move(executor)) {}
    BasicOptimizer(const Options& options, const char* convention, Executor executor = Loops::executor())
        : BasicOptimizer(options, convention_of(convention == nullptr ? "" : convention), std::move(executor)) {}

    // A parameter and its gradient (null: none yet; its type says which it will be) of `size` elements each, in the
    // last group. They stay the embedder's and must outlive the optimizer. Param and Grad are double, or any of float,
    // bf16 and fp16. Returns the parameter's number.
    template <class Param, class Grad>
    std::size_t add_param(Param* param, const Grad* grad, std::int64_t size, const ParamOptions& options = {}) {
        constexpr bool fits = is_pair(dtype_of<Param>(), dtype_of<Grad>());
        static_assert(fits, "a double parameter has a double gradient; float, bf16 and fp16 have each other's");
        if constexpr (fits)
            return add(param, dtype_of<Param>(), grad, dtype_of<Grad>(), size, Loops::template of_pair<Param, Grad>(),
                       options);
    }
    template <class Param>
    std::size_t add_param(Param* param, std::nullptr_t, std::int64_t size, const ParamOptions& options = {}) {
        return add_param(param, static_cast<const Param*>(nullptr), size, options);
    }
    // The same of vectors that stay where they are: they must not grow.
    template <class Param, class Grad>
    std::size_t add_param(std::vector<Param>& param, const std::vector<Grad>& grad, const ParamOptions& options = {}) {
        if (param.size() != grad.size())
            throw std::invalid_argument("radam: parameter " + std::to_string(size()) + " has " +
                                        std::to_string(param.size()) + " elements, its gradient " +
                                        std::to_string(grad.size()) + "; they must have as many");
        return add_param(param.data(), grad.data(), static_cast<std::int64_t>(param.size()), options);
    }
    template <class Param, class Grad>
    std::size_t add_param(std::vector<Param>& param, const std::vector<Grad>&& grad, const ParamOptions& = {}) = delete;
    // The same of dtypes that are known at run time only. Compiles the loops of all of them.
    std::size_t add_param(void* param, DType param_dtype, const void* grad, DType grad_dtype, std::int64_t size,
                          const ParamOptions& options = {}) {
        return add(param, param_dtype, grad, grad_dtype, size, Loops::of_any(), options);
    }

    // Fewer bits for moments and weights. Before the first parameter.
    void set_precision(const Precision& precision) { OptimizerBase::set_precision(precision, Loops::staged()); }

    // Each element of the gradients is cut to at most this, either way.
    void set_max_grad_value(double most) { OptimizerBase::set_max_grad_value(most, Loops::staged()); }
};

}  // namespace radam
