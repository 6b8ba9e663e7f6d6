// How many steps a parameter has taken: an integer where the core keeps the count, a float where a framework does.
#pragma once

#include <cstdint>
#include <cstring>

namespace radam::python {

class Counter {
public:
    enum class Kind { int64, fp64, fp32 };

    Counter(void* data, Kind kind) : data_(data), kind_(kind) {}

    // The count; -1 where the memory holds something else than a whole number of steps.
    std::int64_t read() const noexcept {
        switch (kind_) {
            case Kind::fp64: return whole(loaded<double>());
            case Kind::fp32: return whole(static_cast<double>(loaded<float>()));
            case Kind::int64: break;
        }
        return loaded<std::int64_t>();
    }

    // The largest count that its type can go on from.
    std::int64_t most() const noexcept {
        switch (kind_) {
            case Kind::fp64: return (std::int64_t{1} << 53) - 1;
            case Kind::fp32: return (std::int64_t{1} << 24) - 1;
            case Kind::int64: break;
        }
        return (std::int64_t{1} << 62) - 1;
    }

    void write(std::int64_t count) const noexcept {
        switch (kind_) {
            case Kind::fp64: store(static_cast<double>(count)); break;
            case Kind::fp32: store(static_cast<float>(count)); break;
            case Kind::int64: store(count); break;
        }
    }

private:
    template <class T>
    T loaded() const noexcept {
        T value;
        std::memcpy(&value, data_, sizeof value);
        return value;
    }

    template <class T>
    void store(T value) const noexcept {
        std::memcpy(data_, &value, sizeof value);
    }

    static std::int64_t whole(double value) noexcept {
        if (!(value >= 0.0 && value < 0x1p62)) return -1;
        const std::int64_t count = static_cast<std::int64_t>(value);
        return static_cast<double>(count) == value ? count : -1;
    }

    void* data_;
    Kind kind_;
};

}  // namespace radam::python
