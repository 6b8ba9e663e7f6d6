// Memory for the states of parameters: owned and aligned, or the embedder's; and which stretches of memory are taken.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace radam {

// Zeros at an address that 64 divides.
class Zeros {
public:
    Zeros() = default;
    explicit Zeros(std::size_t bytes) {
        if (bytes == 0) return;
        alignment_ = bytes < large ? line : page;
        data_ = ::operator new(bytes, std::align_val_t(alignment_));
#if defined(__linux__)
        if (bytes >= large) madvise(data_, bytes, MADV_HUGEPAGE);  // a step then runs some percent faster
#endif
        std::memset(data_, 0, bytes);
    }
    Zeros(Zeros&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), alignment_(std::exchange(other.alignment_, line)) {}
    Zeros& operator=(Zeros&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(alignment_, other.alignment_);
        return *this;
    }
    ~Zeros() { ::operator delete(data_, std::align_val_t(alignment_)); }

    void* data() const noexcept { return data_; }

private:
    static constexpr std::size_t line = 64, page = std::size_t{2} << 20, large = std::size_t{4} << 20;
    void* data_ = nullptr;
    std::size_t alignment_ = line;
};

// Stretches of memory, each with a number: which of them meets another one. are_apart: none that is added meets one of
// another number, so that nobody need look far.
class Stretches {
    struct Stretch {
        std::uintptr_t last;  // the byte behind it
        std::size_t number;
    };
    using Map = std::multimap<std::uintptr_t, Stretch>;

public:
    using Handle = Map::iterator;

    explicit Stretches(bool are_apart) noexcept : are_apart_(are_apart) {}

    // An empty one meets none.
    Handle add(const void* data, std::int64_t bytes, std::size_t number) {
        const auto first = reinterpret_cast<std::uintptr_t>(data);
        longest_ = longest_ < bytes ? bytes : longest_;
        return stretches_.insert({first, {first + static_cast<std::uintptr_t>(bytes), number}});
    }
    void remove(Handle stretch) { stretches_.erase(stretch); }
    // Without an allocation.
    Handle move(Handle stretch, const void* data, std::int64_t bytes) {
        Map::node_type node = stretches_.extract(stretch);
        node.key() = reinterpret_cast<std::uintptr_t>(data);
        node.mapped().last = node.key() + static_cast<std::uintptr_t>(bytes);
        longest_ = longest_ < bytes ? bytes : longest_;
        return stretches_.insert(std::move(node));
    }

    static constexpr std::size_t none = ~std::size_t{0};

    // The number of a stretch, other than `except`, that shares memory with this one.
    std::size_t meets(const void* data, std::int64_t bytes, std::size_t except = none) const noexcept {
        const auto first = reinterpret_cast<std::uintptr_t>(data), last = first + static_cast<std::uintptr_t>(bytes);
        if (first == last) return none;
        for (auto at = stretches_.lower_bound(last); at != stretches_.begin();) {
            --at;
            if (first > at->first && first - at->first >= static_cast<std::uintptr_t>(longest_)) break;
            if (at->second.last == at->first || at->second.number == except) continue;
            if (at->second.last > first) return at->second.number;
            if (are_apart_) break;
        }
        return none;
    }

private:
    bool are_apart_;
    Map stretches_;
    std::int64_t longest_ = 0;
};

}  // namespace radam
