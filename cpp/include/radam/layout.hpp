// How an n-dimensional array lies in memory: which layouts a step can take in place, and exact copies of the others.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <vector>

namespace radam {

constexpr int most_dims = 64;

// A strided array of at most most_dims dimensions. Strides are in bytes; null strides mean C order without gaps.
struct Layout {
    int ndim = 0;
    const std::int64_t* shape = nullptr;
    const std::int64_t* strides = nullptr;
    std::int64_t itemsize = 1;
};

// Whether the bytes of an array, and its reach through memory, can be counted in 64 bits: what a foreign array may lie
// about. The functions below take it for granted.
inline bool is_countable(const Layout& a) noexcept {
    constexpr std::int64_t most = std::int64_t{1} << 62;
    std::int64_t bytes = a.itemsize, reach = a.itemsize;
    for (int d = 0; d < a.ndim; ++d)
        if (a.shape[d] == 0) return true;
    for (int d = 0; d < a.ndim; ++d) {
        if (a.shape[d] < 0 || bytes > most / a.shape[d]) return false;
        bytes *= a.shape[d];
        if (a.strides == nullptr || a.shape[d] == 1) continue;
        if (a.strides[d] <= -most || a.strides[d] >= most) return false;
        const std::int64_t stride = std::abs(a.strides[d]);
        if (stride != 0 && a.shape[d] - 1 > (most - reach) / stride) return false;
        reach += (a.shape[d] - 1) * stride;
    }
    return true;
}

inline std::int64_t element_count(const Layout& a) noexcept {
    std::int64_t count = 1;
    for (int d = 0; d < a.ndim; ++d)
        if (a.shape[d] == 0) return 0;  // whatever the others are
    for (int d = 0; d < a.ndim; ++d) count *= a.shape[d];
    return count;
}

inline bool is_c_contiguous(const Layout& a) noexcept {
    if (a.strides == nullptr || element_count(a) == 0) return true;
    std::int64_t expected = a.itemsize;
    for (int d = a.ndim; d-- > 0;) {
        if (a.shape[d] != 1 && a.strides[d] != expected) return false;
        expected *= a.shape[d];
    }
    return true;
}

inline bool same_shape(const Layout& a, const Layout& b) noexcept {
    return a.ndim == b.ndim && std::equal(a.shape, a.shape + a.ndim, b.shape);
}

// The dimensions that move through memory (size above 1), from the largest stride to the smallest.
inline std::vector<int> memory_order(const Layout& a) {
    std::vector<int> order;
    for (int d = 0; d < a.ndim; ++d)
        if (a.shape[d] != 1) order.push_back(d);
    if (a.strides != nullptr)
        std::stable_sort(order.begin(), order.end(), [&](int x, int y) { return a.strides[x] > a.strides[y]; });
    return order;
}

// Without gaps in the given order of its dimensions: element k in that order stands at byte k * itemsize.
inline bool is_dense(const Layout& a, const std::vector<int>& order) noexcept {
    if (a.strides == nullptr) return std::is_sorted(order.begin(), order.end()) || element_count(a) == 0;
    if (element_count(a) == 0) return true;
    std::int64_t expected = a.itemsize;
    for (auto d = order.rbegin(); d != order.rend(); ++d) {
        if (a.strides[*d] != expected) return false;
        expected *= a.shape[*d];
    }
    return true;
}

// The order of dimensions in which a step takes the elements of a parameter: its own in memory, or C order where it has
// gaps.
inline std::vector<int> slot_order(const Layout& param) {
    std::vector<int> order = memory_order(param);
    if (!is_dense(param, order)) std::sort(order.begin(), order.end());
    return order;
}

// The dimensions of an array in the given order, and how far apart, in elements, their neighbours are in an array in C
// order of the shape `whole`, of which this one is a part: those that lie one within the other become one.
inline void numbered_dims(const Layout& a, const std::vector<int>& order, const std::int64_t* whole,
                          std::vector<std::int64_t>& shape, std::vector<std::int64_t>& strides) {
    std::int64_t stride[most_dims], next = 1;
    for (int d = a.ndim; d-- > 0; next *= whole[d]) stride[d] = next;
    shape.clear();
    strides.clear();
    for (const int d : order) {
        if (a.shape[d] == 1) continue;
        if (!shape.empty() && strides.back() == stride[d] * a.shape[d]) {
            shape.back() *= a.shape[d];
            strides.back() = stride[d];
        } else {
            shape.push_back(a.shape[d]);
            strides.push_back(stride[d]);
        }
    }
}

// The bytes [first, last) around an array's data pointer that its elements may lie in.
struct Extent {
    std::int64_t first = 0, last = 0;
};

inline Extent extent(const Layout& a) noexcept {
    const std::int64_t count = element_count(a);
    if (count == 0) return {};
    if (a.strides == nullptr) return {0, count * a.itemsize};
    Extent e{0, a.itemsize};
    for (int d = 0; d < a.ndim; ++d) {
        const std::int64_t reach = (a.shape[d] - 1) * a.strides[d];
        (reach < 0 ? e.first : e.last) += reach;
    }
    return e;
}

namespace detail {

// Calls f(byte offset of a run, elements in the run, byte stride inside it) over an array in the given order.
template <class F>
void for_each_run(const Layout& a, const std::vector<int>& order, F f) noexcept {
    if (element_count(a) == 0) return;
    std::int64_t c_stride[most_dims], index[most_dims] = {}, next = a.itemsize;
    for (int d = a.ndim; d-- > 0; next *= a.shape[d]) c_stride[d] = next;
    const std::int64_t* const stride = a.strides != nullptr ? a.strides : c_stride;

    if (order.empty()) return f(std::int64_t{0}, std::int64_t{1}, a.itemsize);
    const int inner = order.back();
    std::int64_t offset = 0;
    for (;;) {
        f(offset, a.shape[inner], stride[inner]);
        auto k = order.size() - 1;
        for (;;) {
            if (k == 0) return;
            const int d = order[--k];
            offset += stride[d];
            if (++index[d] < a.shape[d]) break;
            offset -= stride[d] * index[d];
            index[d] = 0;
        }
    }
}

}  // namespace detail

// Copies a strided array into `to`, its elements in the given order of dimensions, without gaps.
inline void gather(const Layout& a, const void* data, const std::vector<int>& order, void* to) noexcept {
    const char* from = static_cast<const char*>(data);
    char* out = static_cast<char*>(to);
    const auto size = static_cast<std::size_t>(a.itemsize);
    detail::for_each_run(a, order, [&](std::int64_t offset, std::int64_t n, std::int64_t stride) {
        for (std::int64_t i = 0; i < n; ++i, out += size) std::memcpy(out, from + offset + i * stride, size);
    });
}

// The way back.
inline void scatter(const Layout& a, void* data, const std::vector<int>& order, const void* from) noexcept {
    char* to = static_cast<char*>(data);
    const char* in = static_cast<const char*>(from);
    const auto size = static_cast<std::size_t>(a.itemsize);
    detail::for_each_run(a, order, [&](std::int64_t offset, std::int64_t n, std::int64_t stride) {
        for (std::int64_t i = 0; i < n; ++i, in += size) std::memcpy(to + offset + i * stride, in, size);
    });
}

// Which stretches of memory (of `unit` bytes, from one base address on) elements stand on: finds exact overlaps.
// The unit divides every itemsize, offset and stride.
class Occupancy {
public:
    Occupancy(std::int64_t bytes, std::int64_t unit)
        : unit_(unit), taken_(static_cast<std::size_t>(bytes / unit), false) {}

    // False when an element stands where another one was taken, of this array or of another.
    bool take(const Layout& a, std::int64_t first) {
        bool free = true;
        visit(a, first, [&](auto bit) {
            free = free && !bit;
            bit = true;
        });
        return free;
    }

    // The same question, taking nothing.
    bool is_free(const Layout& a, std::int64_t first) {
        bool free = true;
        visit(a, first, [&](auto bit) { free = free && !bit; });
        return free;
    }

private:
    template <class F>
    void visit(const Layout& a, std::int64_t first, F f) {
        detail::for_each_run(a, memory_order(a), [&](std::int64_t offset, std::int64_t n, std::int64_t stride) {
            for (std::int64_t i = 0; i < n; ++i) {
                const std::int64_t at = (first + offset + i * stride) / unit_;
                for (std::int64_t k = 0; k < a.itemsize / unit_; ++k) f(taken_[static_cast<std::size_t>(at + k)]);
            }
        });
    }

    std::int64_t unit_;
    std::vector<bool> taken_;
};

// The largest unit of an Occupancy that serves an array, among those that serve `unit`.
inline std::int64_t common_unit(const Layout& a, std::int64_t unit) noexcept {
    unit = std::gcd(unit, a.itemsize);
    for (int d = 0; a.strides != nullptr && d < a.ndim; ++d)
        if (a.shape[d] != 1) unit = std::gcd(unit, a.strides[d]);
    return unit;
}

// True when two elements of one array share memory (an expanded or overlapping view).
inline bool overlaps_itself(const Layout& a) {
    if (a.strides == nullptr || element_count(a) < 2) return false;
    std::vector<int> order = memory_order(a);
    std::sort(order.begin(), order.end(),
              [&](int x, int y) { return std::abs(a.strides[x]) < std::abs(a.strides[y]); });
    std::int64_t reach = a.itemsize;
    bool nested = true;  // each dimension steps over everything inside it: the common case, no bitmap needed
    for (int d : order) {
        const std::int64_t stride = std::abs(a.strides[d]);
        if (stride == 0) return true;
        nested = nested && stride >= reach;
        reach += (a.shape[d] - 1) * stride;
    }
    if (nested) return false;
    const Extent e = extent(a);
    return !Occupancy(e.last - e.first, common_unit(a, 0)).take(a, -e.first);
}

}  // namespace radam
