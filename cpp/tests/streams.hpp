// What the tests of the kernels' bodies share: streams of numbers at any alignment, and steps over them.
#pragma once

#include <radam/cuda.hpp>

#include <cstring>
#include <string>
#include <vector>

#include "expect.hpp"

namespace radam {

inline std::uint64_t random_state = 1;
inline std::uint32_t random_bits() {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::uint32_t>(random_state >> 33);
}

inline void write_number(char* to, DType dtype, double value) {
    const float narrow = static_cast<float>(value);
    const fp16 half = to_fp16(narrow);
    const bf16 brain = to_bf16(narrow);
    switch (dtype) {
        case DType::fp64: std::memcpy(to, &value, sizeof value); break;
        case DType::fp32: std::memcpy(to, &narrow, sizeof narrow); break;
        case DType::fp16: std::memcpy(to, &half, sizeof half); break;
        case DType::bf16: std::memcpy(to, &brain, sizeof brain); break;
        case DType::int8:
        case DType::uint8:
        case DType::int16: break;  // left random
    }
}

struct alignas(64) Line {
    char bytes[64];
};

// One stream, `shift` elements behind an address that 64 divides, between bytes that must stay.
class Stream {
public:
    Stream(DType dtype, std::int64_t size, int shift, bool is_square)
        : lines_(static_cast<std::size_t>(size / 8 + 4)), at_(64 + static_cast<std::size_t>(shift * size_of(dtype))) {
        for (Line& line : lines_)
            for (char& byte : line.bytes) byte = static_cast<char>(random_bits());
        for (std::int64_t i = 0; i < size; ++i) {
            double value = (static_cast<double>(random_bits()) / 0x1p31 - 0.5) * (random_bits() % 8 == 0 ? 1e-30 : 2.0);
            if (is_square) value *= value;
            write_number(data() + i * size_of(dtype), dtype, value);
        }
    }
    char* data() { return reinterpret_cast<char*>(lines_.data()) + at_; }
    bool operator==(const Stream& o) const {
        return std::memcmp(lines_.data(), o.lines_.data(), lines_.size() * sizeof(Line)) == 0;
    }

private:
    std::vector<Line> lines_;
    std::size_t at_;
};

inline void expect(bool holds, const std::string& what) {
    if (holds) return;
    std::fprintf(stderr, "%s\n", what.c_str());
    ++failures;
}

inline void run(const cuda::Work& work, const std::string& name) {
    cuda::Failure failure;
    expect(radam_cuda_library()->step(&work, 1, &failure), name + ": " + failure.text);
}

inline cuda::Work work_of(const std::vector<cuda::DeviceSlot>& slots) {
    cuda::Work work;
    work.slots = slots.data();
    work.size = slots.size();
    return work;
}

}  // namespace radam
