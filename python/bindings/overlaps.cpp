// Whether arrays of a call share memory.
#include <algorithm>
#include <numeric>
#include <string>

#include "call.hpp"

namespace nb = nanobind;

namespace radam::python {

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

    const auto layout = [&](const Interval& i) -> const Layout& { return entries_[i.entry].at(i.role).layout; };
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

}  // namespace radam::python
