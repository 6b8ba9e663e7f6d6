// Which arrays of a step share memory: none that is written may with any other.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "layout.hpp"

namespace radam {

// The memory that one array may stand on. entry: its parameter's number; role: what it is to that parameter.
struct Interval {
    std::uintptr_t first, last;
    std::uint32_t entry;
    int role;
};

// Kept between steps, empty, so that a step allocates nothing after the first.
class Overlaps {
public:
    static constexpr int most_roles = 12;

    // role: below most_roles. Arrays of one role mostly lie in order already, and need only be merged.
    void add(std::uintptr_t first, std::uintptr_t last, std::uint32_t entry, int role) {
        if (first != last) by_role_[role].push_back({first, last, entry, role});
    }
    void add(const Layout& a, const void* data, std::uint32_t entry, int role) {
        const auto base = reinterpret_cast<std::uintptr_t>(data);
        const Extent e = extent(a);
        add(base + static_cast<std::uintptr_t>(e.first), base + static_cast<std::uintptr_t>(e.last), entry, role);
    }

    void clear() noexcept {
        for (std::vector<Interval>& some : by_role_) some.clear();
    }

    // Calls clash(a, b) for two arrays that share memory, not both of them of the role that is only read; clash must
    // throw. layout_of(interval) is the Layout of an array.
    template <class LayoutOf, class Clash>
    void check(int only_read, LayoutOf layout_of, Clash clash) {
        merge();
        // A cluster is a chain of intervals that touch; most hold one interval.
        for (std::size_t start = 0, end; start < intervals_.size(); start = end) {
            std::uintptr_t last = intervals_[start].last;
            for (end = start + 1; end < intervals_.size() && intervals_[end].first < last; ++end)
                last = std::max(last, intervals_[end].last);
            if (end - start > 1) check_cluster(start, end, last, only_read, layout_of, clash);
        }
    }

private:
    void merge() {
        const auto before = [](const Interval& a, const Interval& b) { return a.first < b.first; };
        intervals_.clear();
        for (std::vector<Interval>& some : by_role_) {
            if (some.empty()) continue;
            if (!std::is_sorted(some.begin(), some.end(), before)) std::sort(some.begin(), some.end(), before);
            merged_.resize(intervals_.size() + some.size());
            std::merge(intervals_.begin(), intervals_.end(), some.begin(), some.end(), merged_.begin(), before);
            intervals_.swap(merged_);
        }
    }

    template <class LayoutOf, class Clash>
    void check_cluster(std::size_t start, std::size_t end, std::uintptr_t last, int only_read, LayoutOf layout_of,
                       Clash clash) const {
        std::vector<const Interval*> written, read;
        std::int64_t unit = 0;
        bool all_gapless = true;
        for (std::size_t i = start; i < end; ++i) {
            const Interval& interval = intervals_[i];
            const Layout layout = layout_of(interval);
            (interval.role == only_read ? read : written).push_back(&interval);
            unit = std::gcd(common_unit(layout, unit),
                            static_cast<std::int64_t>(interval.first - intervals_[start].first));
            all_gapless = all_gapless && static_cast<std::int64_t>(interval.last - interval.first) ==
                                             element_count(layout) * layout.itemsize;
        }
        if (written.empty()) return;
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
            return;
        }
        const std::uintptr_t base = intervals_[start].first;
        Occupancy occupancy(static_cast<std::int64_t>(last - base), unit);
        const auto first = [&](const Interval* i) {  // where the data pointer stands in the cluster
            return static_cast<std::int64_t>(i->first - base) - extent(layout_of(*i)).first;
        };
        for (const Interval* i : written)
            if (!occupancy.take(layout_of(*i), first(i))) clash(*partner(i), *i);
        for (const Interval* i : read)
            if (!occupancy.is_free(layout_of(*i), first(i))) clash(*partner(i), *i);
    }

    std::vector<Interval> by_role_[most_roles], intervals_, merged_;
};

}  // namespace radam
