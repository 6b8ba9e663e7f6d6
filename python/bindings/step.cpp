#include "step.hpp"

#include <nanobind/stl/string.h>
#include <radam/dispatch.hpp>
#include <radam/float_mode.hpp>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "import_array.hpp"
#include "unlocked.hpp"

namespace nb = nanobind;

namespace radam::python {
namespace {

enum Role { param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, roles };
constexpr const char* role_names[roles] = {"parameter", "the gradient of parameter", "exp_avg of parameter",
                                           "exp_avg_sq of parameter", "max_exp_avg_sq of parameter"};
constexpr const char* counter_name = "the step count of parameter";

// The memory one array may stand on.
struct Interval {
    std::uintptr_t first, last;
    std::uint32_t entry;
    Role role;
};

struct Entry {
    Array arrays[roles];
    std::size_t group, index;
};

// An array whose layout is not that of its slot, with the buffer that stands in for it during the run.
struct StandIn {
    std::size_t entry;
    Role role;
    std::vector<int> order;
    std::unique_ptr<char[]> buffer;
};

std::string shape_text(const Layout& layout) {
    std::string text = "(";
    for (int d = 0; d < layout.ndim; ++d) text += (d > 0 ? ", " : "") + std::to_string(layout.shape[d]);
    return text + (layout.ndim == 1 ? ",)" : ")");
}

Slot slot_of(const Entry& entry, const ScheduledStep* step) {
    Slot slot;
    slot.param = entry.arrays[param].data;
    slot.grad = entry.arrays[grad].data;
    slot.exp_avg = entry.arrays[exp_avg].data;
    slot.exp_avg_sq = entry.arrays[exp_avg_sq].data;
    slot.max_exp_avg_sq = entry.arrays[max_exp_avg_sq].data;
    slot.size = element_count(entry.arrays[param].layout);
    slot.step = step;
    slot.param_dtype = entry.arrays[param].dtype;
    slot.grad_dtype = entry.arrays[grad].dtype;
    return slot;
}

// Everything that one call needs. Kept between calls, empty, so that a step allocates nothing after the first.
class Call {
public:
    // The whole check of one group but for overlaps.
    void add_group(std::size_t group, const nb::tuple& parts);
    void add_params(std::size_t group, const nb::tuple& parts);
    void check_overlaps();
    void stand_in();
    std::size_t size() const noexcept { return slots_.size(); }
    std::size_t first_nonfinite() const noexcept { return radam::first_nonfinite(slots_.data(), slots_.size()); }
    [[noreturn]] void refuse_nonfinite(std::size_t slot) const;
    void run() noexcept;
    void advance() const noexcept;
    void run_limit() const noexcept { radam::limit(slots_.data(), slots_.size()); }
    void clear() noexcept;

private:
    Where where(Role role, const Entry& entry) const {
        return {role_names[role], entry.group, entry.index, names_[entry.group]};
    }
    void add_array(Entry& entry, Role role, const nb::tuple& arrays);
    void check_arrays(const Entry& entry, bool amsgrad) const;
    const ScheduledStep* scheduled(const Hyperparameters& h, nb::handle lrs, std::int64_t t, std::size_t group);

    struct Schedule {
        std::size_t group;
        std::int64_t t;
        ScheduledStep step;
        bool is_finite64, is_finite32;
    };

    Imports imports_;
    std::vector<Entry> entries_;
    std::vector<Slot> slots_;
    std::vector<Counter> counters_;
    std::vector<Interval> by_role_[roles], intervals_, merged_;
    std::deque<Schedule> schedules_;
    std::deque<StandIn> stand_ins_;
    std::vector<PyObject*> names_;  // of each group, borrowed
};

void Call::add_array(Entry& entry, Role role, const nb::tuple& arrays) {
    PyObject* const object = PyTuple_GetItem(arrays.ptr(), static_cast<Py_ssize_t>(entry.index));
    if (object == nullptr) throw nb::python_error();
    Array& array = entry.arrays[role];
    array = imports_.add(object, role == grad ? Access::read : Access::write, where(role, entry));
    if (role != grad && overlaps_itself(array.layout))
        refuse_value(where(role, entry),
                     "has elements that share memory (an expanded or overlapping view); hand in a copy of it");
    const Extent e = extent(array.layout);
    if (e.first == e.last) return;
    const auto base = reinterpret_cast<std::uintptr_t>(array.data);
    by_role_[role].push_back({base + static_cast<std::uintptr_t>(e.first), base + static_cast<std::uintptr_t>(e.last),
                              static_cast<std::uint32_t>(entries_.size() - 1), role});
}

void Call::check_arrays(const Entry& entry, bool amsgrad) const {
    const Array& p = entry.arrays[param];
    const Array& g = entry.arrays[grad];
    if (!is_pair(p.dtype, g.dtype))
        refuse_value(where(grad, entry),
                     std::string("has dtype ") + name_of(g.dtype) + ", the parameter " + name_of(p.dtype) +
                         "; float64 goes with float64 only, float32, bfloat16 and float16 with each other");
    const DType moments = moment_dtype(p.dtype);
    for (const Role role : {grad, exp_avg, exp_avg_sq, max_exp_avg_sq}) {
        if (role == max_exp_avg_sq && !amsgrad) continue;
        const Array& array = entry.arrays[role];
        if (!same_shape(array.layout, p.layout))
            refuse_value(where(role, entry),
                         "has shape " + shape_text(array.layout) + ", the parameter " + shape_text(p.layout));
        if (role != grad && array.dtype != moments)
            refuse_value(where(role, entry), std::string("has dtype ") + name_of(array.dtype) + "; the moments of a " +
                                                 name_of(p.dtype) + " parameter are " + name_of(moments));
    }
}

const ScheduledStep* Call::scheduled(const Hyperparameters& h, nb::handle lrs, std::int64_t t, std::size_t group) {
    if (schedules_.empty() || schedules_.back().t != t || schedules_.back().group != group) {
        Hyperparameters at_t = h;
        if (!lrs.is_none()) at_t.lr = nb::cast<double>(lrs[nb::int_(t)]);
        if (const Violation found = violation(at_t); found.name != nullptr)
            throw nb::value_error(("group " + std::to_string(group) + ": " + message(found)).c_str());
        const ScheduledStep step = schedule(at_t, t);
        schedules_.push_back({group, t, step, is_finite(step.f64), is_finite(step.f32)});
    }
    return &schedules_.back().step;
}

void Call::add_params(std::size_t group, const nb::tuple& parts) {
    const nb::tuple params = nb::cast<nb::tuple>(parts[0]);
    names_.push_back(nb::handle(parts[1]).ptr());
    for (std::size_t i = 0; i < params.size(); ++i) {
        entries_.push_back({{}, group, i});
        add_array(entries_.back(), param, params);
    }
}

void Call::add_group(std::size_t group, const nb::tuple& parts) {
    const Hyperparameters& h = nb::cast<const Hyperparameters&>(parts[0]);
    const nb::handle lrs = parts[1];
    const nb::tuple arrays[roles] = {nb::cast<nb::tuple>(parts[2]), nb::cast<nb::tuple>(parts[3]),
                                     nb::cast<nb::tuple>(parts[4]), nb::cast<nb::tuple>(parts[5]),
                                     h.amsgrad ? nb::cast<nb::tuple>(parts[6]) : nb::tuple()};
    names_.push_back(nb::handle(parts[8]).ptr());
    const std::size_t count = arrays[param].size();
    const int used = h.amsgrad ? roles : max_exp_avg_sq;
    for (int role = 0; role < used; ++role)
        if (arrays[role].size() != count)
            throw nb::value_error(("group " + std::to_string(group) + " has " + std::to_string(count) +
                                   " parameters but " + std::to_string(arrays[role].size()) + " entries for " +
                                   role_names[role])
                                      .c_str());
    const nb::handle counts = parts[7];
    const bool one_each = PyTuple_Check(counts.ptr());
    if (one_each && nb::len(counts) != count) throw nb::value_error("there must be one step count per parameter");
    std::int64_t* const taken = one_each ? nullptr : imports_.add_counters(counts.ptr(), count);

    for (std::size_t i = 0; i < count; ++i) {
        if (PyTuple_GetItem(arrays[grad].ptr(), static_cast<Py_ssize_t>(i)) == Py_None) continue;
        entries_.push_back({{}, group, i});
        Entry& entry = entries_.back();
        for (int role = 0; role < used; ++role) add_array(entry, static_cast<Role>(role), arrays[role]);
        check_arrays(entry, h.amsgrad);
        const Where at{counter_name, group, i, names_[group]};
        counters_.push_back(one_each
                                ? imports_.add_counter(PyTuple_GetItem(counts.ptr(), static_cast<Py_ssize_t>(i)), at)
                                : Counter(taken + i, Counter::Kind::int64));
        const std::int64_t t = counters_.back().read(), most = counters_.back().most();
        if (t < 0 || t > most)
            refuse_value(at, (t < 0 ? "is no whole number of steps" : "is " + std::to_string(t)) +
                                 "; it must lie between 0 and " + std::to_string(most));
        const ScheduledStep* const step = scheduled(h, lrs, t + 1, group);
        const bool wide = entry.arrays[param].dtype == DType::fp64;
        if (wide ? !schedules_.back().is_finite64 : !schedules_.back().is_finite32)
            refuse_value(where(param, entry), std::string("would be stepped by numbers too large for ") +
                                                  (wide ? "float64" : "float32") +
                                                  " arithmetic; lower lr or weight_decay");
        slots_.push_back(slot_of(entry, step));
    }
}

// No written array may share memory with any other; gradients, which are only read, may with each other.
void Call::check_overlaps() {
    // The arrays of each role mostly lie in order already, and need only be merged.
    const auto before = [](const Interval& a, const Interval& b) { return a.first < b.first; };
    intervals_.clear();
    for (std::vector<Interval>& some : by_role_) {
        if (!std::is_sorted(some.begin(), some.end(), before)) std::sort(some.begin(), some.end(), before);
        merged_.resize(intervals_.size() + some.size());
        std::merge(intervals_.begin(), intervals_.end(), some.begin(), some.end(), merged_.begin(), before);
        intervals_.swap(merged_);
    }

    const auto layout = [&](const Interval& i) -> const Layout& { return entries_[i.entry].arrays[i.role].layout; };
    const auto text = [&](const Interval& i) { return where(i.role, entries_[i.entry]).text(); };
    const auto clash = [&](const Interval& a, const Interval& b) {
        throw nb::value_error((text(a) + " and " + text(b) +
                               " share memory; a step must not write what it reads elsewhere: "
                               "hand in each parameter once, and a copy of what overlaps")
                                  .c_str());
    };
    const auto gapless = [&](const Interval& i) {
        return static_cast<std::int64_t>(i.last - i.first) == element_count(layout(i)) * layout(i).itemsize;
    };

    // A cluster is a chain of intervals that touch; most hold one interval.
    for (std::size_t start = 0, end; start < intervals_.size(); start = end) {
        std::uintptr_t last = intervals_[start].last;
        for (end = start + 1; end < intervals_.size() && intervals_[end].first < last; ++end)
            last = std::max(last, intervals_[end].last);
        if (end - start == 1) continue;

        std::vector<const Interval*> written, read;
        std::int64_t unit = 0;
        bool all_gapless = true;
        for (std::size_t i = start; i < end; ++i) {
            const Interval& interval = intervals_[i];
            (interval.role == grad ? read : written).push_back(&interval);
            unit = std::gcd(common_unit(layout(interval), unit),
                            static_cast<std::int64_t>(interval.first - intervals_[start].first));
            all_gapless = all_gapless && gapless(interval);
        }
        if (written.empty()) continue;
        const auto intersect = [](const Interval* a, const Interval* b) {
            return a->first < b->last && b->first < a->last;
        };
        const auto partner = [&](const Interval* i) {
            for (const Interval* other : written)
                if (other != i && intersect(i, other)) return other;
            return i;
        };
        if (all_gapless) {
            for (const auto* some : {&written, &read})
                for (const Interval* i : *some)
                    if (const Interval* other = partner(i); other != i) clash(*other, *i);
            continue;
        }
        const std::uintptr_t base = intervals_[start].first;
        Occupancy occupancy(static_cast<std::int64_t>(last - base), unit);
        const auto first = [&](const Interval* i) {  // where the data pointer stands in the cluster
            return static_cast<std::int64_t>(i->first - base) - extent(layout(*i)).first;
        };
        for (const Interval* i : written)
            if (!occupancy.take(layout(*i), first(i))) clash(*partner(i), *i);
        for (const Interval* i : read)
            if (!occupancy.is_free(layout(*i), first(i))) clash(*partner(i), *i);
    }
}

// Gives every array that does not lie as its slot needs it a buffer that does.
void Call::stand_in() {
    for (std::size_t k = 0; k < entries_.size(); ++k) {
        const Entry& entry = entries_[k];
        bool plain = true;
        for (const Array& array : entry.arrays) plain = plain && array.layout.strides == nullptr;
        if (plain) continue;

        // The parameter's own memory order, or C order where it has gaps.
        const Layout& p = entry.arrays[param].layout;
        std::vector<int> order = memory_order(p);
        if (!is_dense(p, order)) std::sort(order.begin(), order.end());
        void** const places[roles] = {&slots_[k].param, nullptr, &slots_[k].exp_avg, &slots_[k].exp_avg_sq,
                                      &slots_[k].max_exp_avg_sq};
        for (const Role role : {param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq}) {
            const Array& array = entry.arrays[role];
            if (array.data == nullptr || is_dense(array.layout, order)) continue;
            const std::int64_t bytes = slots_[k].size * array.layout.itemsize;
            stand_ins_.push_back({k, role, order, std::unique_ptr<char[]>(new char[static_cast<std::size_t>(bytes)])});
            char* const buffer = stand_ins_.back().buffer.get();
            gather(array.layout, array.data, order, buffer);
            if (role == grad)
                slots_[k].grad = buffer;
            else
                *places[role] = buffer;
        }
    }
}

void Call::refuse_nonfinite(std::size_t slot) const {
    const std::string text =
        where(grad, entries_[slot]).text() + " holds an inf or a NaN; nothing was changed (nonfinite='raise')";
    PyErr_SetString(PyExc_FloatingPointError, text.c_str());
    throw nb::python_error();
}

void Call::run() noexcept {
    radam::step(slots_.data(), slots_.size());
    for (const StandIn& s : stand_ins_) {
        const Array& array = entries_[s.entry].arrays[s.role];
        if (s.role != grad) scatter(array.layout, array.data, s.order, s.buffer.get());
    }
    advance();
}

void Call::advance() const noexcept {
    for (const Counter& counter : counters_) counter.write(counter.read() + 1);
}

void Call::clear() noexcept {
    imports_.release();
    entries_.clear();
    slots_.clear();
    counters_.clear();
    for (std::vector<Interval>& some : by_role_) some.clear();
    schedules_.clear();
    stand_ins_.clear();
    names_.clear();
}

// One Call per thread, taken while in use: a __dlpack__ that steps another optimizer gets a new one.
class CallInUse {
public:
    CallInUse() : call_(std::move(kept())) {
        if (call_ == nullptr) call_ = std::make_unique<Call>();
    }
    CallInUse(const CallInUse&) = delete;
    CallInUse& operator=(const CallInUse&) = delete;
    ~CallInUse() {
        call_->clear();
        kept() = std::move(call_);
    }
    Call* operator->() const { return call_.get(); }

private:
    static std::unique_ptr<Call>& kept() {
        thread_local std::unique_ptr<Call> call;
        return call;
    }
    std::unique_ptr<Call> call_;
};

}  // namespace

std::string message(const Violation& found) {
    return std::string(found.name) + " must be " + found.rule + ", got " +
           nb::cast<std::string>(nb::repr(nb::float_(found.value)));
}

bool step(const nb::tuple& groups, const std::string& nonfinite, nb::handle commit) {
    if (nonfinite != "propagate" && nonfinite != "skip" && nonfinite != "raise")
        throw nb::value_error(("nonfinite must be 'propagate', 'skip' or 'raise', got '" + nonfinite + "'").c_str());
    const DefaultFloatMode mode;
    CallInUse call;
    for (std::size_t i = 0; i < groups.size(); ++i) call->add_group(i, nb::cast<nb::tuple>(groups[i]));
    call->check_overlaps();
    std::size_t bad = call->size();
    {
        const Unlocked unlocked;
        call->stand_in();
        if (nonfinite != "propagate") bad = call->first_nonfinite();
    }
    if (bad < call->size()) {
        if (nonfinite == "raise") call->refuse_nonfinite(bad);
        return false;
    }
    if (!commit.is_none()) commit();
    const Unlocked unlocked;
    call->run();
    return true;
}

void end_steps() { Unlocked::end(); }

void forget_steps() noexcept { Unlocked::forget(); }

void check_params(const nb::tuple& groups) {
    CallInUse call;
    for (std::size_t i = 0; i < groups.size(); ++i) call->add_params(i, nb::cast<nb::tuple>(groups[i]));
    call->check_overlaps();
}

void limit(const nb::tuple& groups) {
    CallInUse call;
    for (std::size_t i = 0; i < groups.size(); ++i) call->add_group(i, nb::cast<nb::tuple>(groups[i]));
    call->check_overlaps();
    const Unlocked unlocked;
    call->run_limit();
}

nb::tuple describe(nb::handle array, nb::handle names, std::size_t group, std::size_t index) {
    Imports imports;
    const Array found = imports.add(array.ptr(), Access::write, {role_names[param], group, index, names.ptr()});
    const Layout& a = found.layout;
    nb::list shape, order;
    for (int d = 0; d < a.ndim; ++d) shape.append(a.shape[d]);
    std::vector<int> dims = memory_order(a);
    if (!is_dense(a, dims)) std::sort(dims.begin(), dims.end());
    for (int d : dims) order.append(d);
    for (int d = 0; d < a.ndim; ++d)
        if (a.shape[d] == 1) order.append(d);
    return nb::make_tuple(name_of(found.dtype), nb::tuple(shape), nb::tuple(order));
}

}  // namespace radam::python
