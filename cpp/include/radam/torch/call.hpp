// One step of the LibTorch optimizer: its tensors checked and made into slots, then run.
#pragma once

#include <limits>
#include <memory>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

#include "../clipping.hpp"
#include "../overlaps.hpp"
#include "tensors.hpp"

namespace radam::torch::detail {

using States = ska::flat_hash_map<void*, std::unique_ptr<::torch::optim::OptimizerParamState>>;

// What the whole optimizer is set to.
struct Settings {
    Convention convention;
    Precision precision;
    double grad_scale = 1.0;
    Clipping clipping;
    bool skips = false;
    const Sweeps& (*of_pair)(DType, DType) = nullptr;  // the loops for slots that are not staged
    const Sweeps* staged = nullptr;                    // those for slots that are: where somebody has asked for such
};

// The options of a group, const as the group is; refused where it has none, or another optimizer's.
template <class Group>
auto& options_in(Group& group, std::size_t number) {
    using Wanted = std::conditional_t<std::is_const_v<Group>, const RAdamOptions, RAdamOptions>;
    auto* const options = group.has_options() ? dynamic_cast<Wanted*>(&group.options()) : nullptr;
    TORCH_CHECK(options != nullptr, "radam: the options of group ", number, " must be radam::torch::RAdamOptions");
    return *options;
}

// A parameter's own state; null where it has none yet.
inline RAdamParamState* state_of(const Where& where, const States& states, const Tensor& tensor) {
    const auto found = states.find(tensor.unsafeGetTensorImpl());
    if (found == states.end() || found->second == nullptr) return nullptr;
    ::torch::optim::OptimizerParamState& state = *found->second;
    if (typeid(state) != typeid(RAdamParamState)) refuse(where, "has a state that is no RAdamParamState");
    return static_cast<RAdamParamState*>(&state);
}

// Kept between steps, empty, so that a step over plain tensors allocates nothing after the first.
class Call {
public:
    // Everything that can be wrong with a group, but for overlaps. Changes nothing.
    void add_group(const ::torch::optim::OptimizerParamGroup& group, States& states, const Settings& settings) {
        const std::size_t number = groups_++;
        const Hyperparameters h = checked(options_in(group, number), settings, number);
        for (std::size_t i = 0; i < group.params().size(); ++i, ++ordinal_) {
            const Tensor& p = group.params()[i];
            if (!p.defined()) refuse({param, number, i}, "is undefined");
            const Tensor& g = p.grad();
            if (g.defined()) add(number, i, p, g, h, states, settings);
        }
    }

    // What a group's options come to; refused where one is out of range.
    static Hyperparameters checked(const RAdamOptions& options, const Settings& settings, std::size_t group) {
        const Options said = options_of(options);
        const Violation found = violation(said, settings.convention);
        TORCH_CHECK(found.name == nullptr, "radam: group ", group, ": ", found.name, " must be ", found.rule, ", got ",
                    found.value);
        Hyperparameters h = hyperparameters(said, settings.convention);
        h.grad_scale = settings.grad_scale;
        return h;
    }

    void check_overlaps() {
        const auto where = [&](const Interval& i) {
            return Where{static_cast<Role>(i.role), entries_[i.entry].group, entries_[i.entry].index}.text();
        };
        overlaps_.check(
            grad, [&](const Interval& i) { return layouts_.of(*entries_[i.entry].tensors[i.role]); },
            [&](const Interval& a, const Interval& b) {
                TORCH_CHECK(
                    false, "radam: ", where(a), " and ", where(b),
                    " share memory; a step must not write what it reads elsewhere: hand in each parameter once, "
                    "and a clone of what overlaps");
            });
    }

    // Gives every tensor that does not lie as its slot needs it a buffer that does, and room to clipping.
    void prepare(Settings& settings) {
        for (std::size_t k = 0; k < entries_.size(); ++k) {
            slots_[k].step = &schedules_[entries_[k].schedule].step;
            if (entries_[k].is_odd) make_dense(entries_[k], slots_[k]);
        }
        if (settings.clipping.needs_norm()) settings.clipping.make_room(slots_.data(), slots_.size());
    }

    // False where gradients that are not finite keep the step from happening.
    bool clip(const Executor& executor, Settings& settings) noexcept {
        const auto all_finite = [&] {
            return first_nonfinite(executor, sweeps_.data(), slots_.data(), slots_.size()) == slots_.size();
        };
        Clipping& clipping = settings.clipping;
        if (clipping.needs_norm())
            return clipping.apply(executor, sweeps_.data(), slots_.data(), slots_.size()) || !settings.skips ||
                   all_finite();
        return !settings.skips || all_finite();
    }

    // The states that parameters did not have.
    void keep_states(States& states) {
        if (fresh_.empty()) return;
        states.reserve(states.size() + fresh_.size());
        for (auto& [key, state] : fresh_) states[key] = std::move(state);
    }

    void run(const Executor& executor) noexcept {
        step(executor, sweeps_.data(), slots_.data(), slots_.size());
        for (const StandIn& s : stand_ins_)
            if (s.role != grad)
                scatter(s.layout, entries_[s.entry].tensors[s.role]->unsafeGetTensorImpl()->mutable_data(), s.order,
                        s.buffer.get());
        for (Entry& entry : entries_) {
            ++entry.state->step();
            for (int role = 0; role < roles; ++role) {
                if (role == grad || entry.tensors[role] == nullptr) continue;
                c10::TensorImpl* const impl = entry.tensors[role]->unsafeGetTensorImpl();
                if (!impl->is_inference()) impl->bump_version();
            }
        }
    }

    bool is_empty() const noexcept { return entries_.empty(); }

    void clear() noexcept {
        groups_ = 0;
        ordinal_ = 0;
        entries_.clear();
        slots_.clear();
        sweeps_.clear();
        schedules_.clear();
        stand_ins_.clear();
        resolved_.clear();
        positions_.clear();
        fresh_.clear();
        layouts_.clear();
        overlaps_.clear();
    }

private:
    struct Entry {
        std::size_t group, index;
        RAdamParamState* state;
        std::size_t schedule;
        const Tensor* tensors[roles];  // null for those that it has not
        bool is_odd;                   // some tensor lies otherwise than the parameter, or that one has gaps
    };
    struct Schedule {
        std::size_t group;
        ScheduledStep step;
        bool is_finite64, is_finite32;
    };
    struct StandIn {
        std::size_t entry;
        int role;
        Layout layout;
        std::vector<int> order;
        std::unique_ptr<char[]> buffer;
    };

    void add(std::size_t group, std::size_t index, const Tensor& p, const Tensor& g, const Hyperparameters& h,
             States& states, const Settings& settings) {
        const auto where = [&](int role) { return Where{static_cast<Role>(role), group, index}; };
        entries_.push_back({group, index, nullptr, 0, {&p, &g}, false});
        Entry& entry = entries_.back();
        Slot& slot = slots_.emplace_back();

        slot.param = checked_written(where(param), p);
        const Elements elements = checked_elements(where(param), p);
        slot.grad = gradient(entry, g);
        const Elements of_grad = checked_elements(where(grad), *entry.tensors[grad]);
        if (of_grad.is_complex != elements.is_complex || !is_pair(elements.dtype, of_grad.dtype))
            refuse(where(grad), "has dtype ", g.scalar_type(), ", the parameter ", p.scalar_type(),
                   "; float64 goes with float64 only, float32, bfloat16 and float16 with each other");
        slot.param_dtype = elements.dtype;
        slot.grad_dtype = of_grad.dtype;
        slot.size = p.numel() * (elements.is_complex ? 2 : 1);

        const Kinds kinds = kinds_of(elements, p.numel(), h.amsgrad, settings.precision);
        entry.state = state_of(where(param), states, p);
        if (entry.state == nullptr || lacks(*entry.state, kinds)) {
            fresh_.emplace_back(p.unsafeGetTensorImpl(), completed(entry.state, p, kinds));
            entry.state = fresh_.back().second.get();
        }
        slot.moments = kinds.moments;
        slot.weights = kinds.weights;
        slot.seed = settings.precision.seed;
        slot.ordinal = ordinal_;
        if (settings.clipping.kind == Clip::value) slot.grad_limit = settings.clipping.most;
        add_state(entry, slot, kinds);
        entry.is_odd = place(entry, slot, elements.is_complex);

        entry.schedule = scheduled(where(param), h, entry.state->step(), elements.dtype == DType::fp64);
        sweeps_.push_back(is_staged(slot) ? settings.staged : &settings.of_pair(slot.param_dtype, slot.grad_dtype));
    }

    static Elements checked_elements(const Where& where, const Tensor& tensor) {
        const Elements elements = elements_of(tensor.scalar_type());
        if (!elements.is_known)
            refuse(where, "has dtype ", tensor.scalar_type(),
                   "; RAdam steps float64, float32, bfloat16, float16 and complex tensors");
        return elements;
    }

    // A gradient is only read; one that is not plain numbers yet is made so.
    const void* gradient(Entry& entry, const Tensor& g) {
        const std::uint64_t keys = g.unsafeGetTensorImpl()->key_set().raw_repr();
        if ((keys & ~plain_keys()) != 0 || !g.is_cpu()) {
            const Where where{grad, entry.group, entry.index};
            if (!g.is_cpu() || g.layout() != c10::kStrided) refuse_kind(where, g);
            Tensor resolved = g._is_zerotensor() ? ::at::zeros(g.sizes(), g.options()) : g.resolve_conj().resolve_neg();
            if ((resolved.unsafeGetTensorImpl()->key_set().raw_repr() & ~plain_keys()) != 0) refuse_kind(where, g);
            resolved_.push_back(std::move(resolved));
            entry.tensors[grad] = &resolved_.back();
        }
        return entry.tensors[grad]->unsafeGetTensorImpl()->data();
    }

    void add_state(Entry& entry, Slot& slot, const Kinds& kinds) {
        for (int role = exp_avg; role < roles; ++role) {
            if (kinds.types[role] == c10::ScalarType::Undefined) continue;
            const Where where{static_cast<Role>(role), entry.group, entry.index};
            const Tensor& tensor = tensor_of(*entry.state, role);
            void* const data = checked_written(where, tensor);
            if (tensor.scalar_type() != kinds.types[role])
                refuse(where, "has dtype ", tensor.scalar_type(), "; of a ", entry.tensors[param]->scalar_type(),
                       " parameter it must be ", kinds.types[role],
                       ": make a new optimizer after a change of a parameter's dtype or of the precision");
            entry.tensors[role] = &tensor;
            switch (role) {
                case exp_avg: slot.exp_avg = data; break;
                case exp_avg_sq: slot.exp_avg_sq = data; break;
                case max_exp_avg_sq: slot.max_exp_avg_sq = data; break;
                case exp_avg_scale: slot.exp_avg_scale = static_cast<float*>(data); break;
                case exp_avg_sq_scale: slot.exp_avg_sq_scale = static_cast<float*>(data); break;
                case max_exp_avg_sq_scale: slot.max_exp_avg_sq_scale = static_cast<float*>(data); break;
                default: slot.master = data;
            }
        }
    }

    // Checks shapes and where tensors lie; true where they do not all lie in one order without gaps.
    bool place(const Entry& entry, const Slot& slot, bool is_complex) {
        const Tensor& p = *entry.tensors[param];
        const Where of_param{param, entry.group, entry.index};
        if (p.dim() + (is_complex ? 1 : 0) > most_dims) refuse(of_param, "has more than ", most_dims, " dimensions");
        const auto number = static_cast<std::uint32_t>(entries_.size() - 1);
        const bool dense = p.is_non_overlapping_and_dense();
        bool is_odd = false;
        for (int role = 0; role < roles; ++role) {
            if (entry.tensors[role] == nullptr) continue;
            const Tensor& tensor = *entry.tensors[role];
            const Where where{static_cast<Role>(role), entry.group, entry.index};
            if (is_scale(role)) {
                if (tensor.dim() != 1 || tensor.numel() != blocks_of(slot.size) || !tensor.is_contiguous())
                    refuse(where, "must be ", blocks_of(slot.size), " numbers without gaps, one for each block of 128");
            } else if (role != param && tensor.sizes() != p.sizes()) {
                refuse(where, "has shape ", tensor.sizes(), ", the parameter ", p.sizes());
            }
            if (tensor.numel() == 0) continue;
            const bool plain = is_scale(role) || (dense && tensor.strides() == p.strides());
            const Layout layout = plain ? Layout{} : layouts_.of(tensor);
            if (!plain && role != grad && overlaps_itself(layout))
                refuse(where,
                       "has elements that share memory (an expanded or overlapping view); hand in a clone of it");
            is_odd = is_odd || !plain;
            const std::int64_t last =
                plain ? tensor.numel() * static_cast<std::int64_t>(tensor.element_size()) : extent(layout).last;
            if (!has_its_memory(tensor, last)) refuse(where, "has lost its memory: its storage is too small for it");
            const auto base = reinterpret_cast<std::uintptr_t>(tensor.unsafeGetTensorImpl()->data());
            overlaps_.add(base, base + static_cast<std::uintptr_t>(last), number, role);
        }
        return is_odd || (is_staged(slot) && !p.is_contiguous());  // numbers of elements, for random bits
    }

    std::size_t scheduled(const Where& where, const Hyperparameters& h, std::int64_t taken, bool wide) {
        if (taken < 0 || taken == std::numeric_limits<std::int64_t>::max())
            refuse(where, "has a step count of ", taken, "; it must be at least 0");
        if (schedules_.empty() || schedules_.back().step.t != taken + 1 || schedules_.back().group != where.group) {
            const ScheduledStep made = schedule(h, taken + 1);
            schedules_.push_back({where.group, made, is_finite(made.f64), is_finite(made.f32)});
        }
        if (wide ? !schedules_.back().is_finite64 : !schedules_.back().is_finite32)
            refuse(where, "would be stepped by numbers too large for ", wide ? "float64" : "float32",
                   " arithmetic; lower lr or weight_decay");
        return schedules_.size() - 1;
    }

    void make_dense(const Entry& entry, Slot& slot) {
        const Layout of_param = layouts_.of(*entry.tensors[param]);
        const std::vector<int> order = slot_order(of_param);
        if (is_staged(slot)) number_elements(of_param, order, slot);
        void** const places[roles] = {&slot.param, nullptr, &slot.exp_avg, &slot.exp_avg_sq, &slot.max_exp_avg_sq,
                                      nullptr,     nullptr, nullptr,       &slot.master};
        for (int role = 0; role < roles; ++role) {
            if (entry.tensors[role] == nullptr || is_scale(role)) continue;
            const Layout layout = layouts_.of(*entry.tensors[role]);
            if (is_dense(layout, order)) continue;
            if (slot.moments == Moments::coded && places[role] != nullptr && role != param && role != master)
                refuse({static_cast<Role>(role), entry.group, entry.index},
                       "is coded in blocks of another memory order than the parameter's; load the state anew");
            StandIn made{static_cast<std::size_t>(&entry - entries_.data()), role, layout, order, nullptr};
            const char* const data = static_cast<const char*>(entry.tensors[role]->unsafeGetTensorImpl()->data());
            made.buffer.reset(new char[static_cast<std::size_t>(element_count(layout) * layout.itemsize)]);
            gather(layout, data, order, made.buffer.get());
            stand_ins_.push_back(std::move(made));
            void* const buffer = stand_ins_.back().buffer.get();
            if (role == grad)
                slot.grad = buffer;
            else
                *places[role] = buffer;
        }
    }

    // Random bits depend on an element's number in C order.
    void number_elements(const Layout& of_param, const std::vector<int>& order, Slot& slot) {
        std::vector<std::int64_t>& shape = positions_.emplace_back();
        std::vector<std::int64_t>& strides = positions_.emplace_back();
        numbered_dims(of_param, order, of_param.shape, shape, strides);
        if (shape.empty() || (shape.size() == 1 && strides[0] == 1)) return;
        slot.positions.ndim = static_cast<int>(shape.size());
        slot.positions.shape = shape.data();
        slot.positions.strides = strides.data();
    }

    std::size_t groups_ = 0;
    std::uint32_t ordinal_ = 0;  // of the next parameter among all
    std::vector<Entry> entries_;
    std::vector<Slot> slots_;
    std::vector<const Sweeps*> sweeps_;
    std::vector<Schedule> schedules_;
    std::deque<StandIn> stand_ins_;
    std::deque<Tensor> resolved_;
    std::deque<std::vector<std::int64_t>> positions_;
    std::vector<std::pair<void*, std::unique_ptr<RAdamParamState>>> fresh_;
    Layouts layouts_;
    Overlaps overlaps_;
};

}  // namespace radam::torch::detail
