// The handwritten digits that export_digits.py writes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Digits {
    std::size_t rows, pixels, classes;
    std::vector<float> images;  // rows * pixels, from 0 to 1
    std::vector<std::int32_t> labels;

    static constexpr std::size_t for_testing = 360;  // the last rows

    std::size_t for_training() const { return rows - for_testing; }
    const float* image(std::size_t row) const { return images.data() + row * pixels; }
};

// Throws std::runtime_error where there is no such file, or it is cut short.
inline Digits read_digits(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    const auto read = [&](auto& into) {
        file.read(reinterpret_cast<char*>(into.data()), static_cast<std::streamsize>(into.size() * sizeof into[0]));
        if (!file) throw std::runtime_error("cannot read " + path + ": python export_digits.py makes it");
    };
    std::array<std::int32_t, 3> sizes;
    read(sizes);
    const auto rows = static_cast<std::size_t>(sizes[0]), pixels = static_cast<std::size_t>(sizes[1]);
    Digits digits{rows, pixels, static_cast<std::size_t>(sizes[2]), std::vector<float>(rows * pixels),
                  std::vector<std::int32_t>(rows)};
    read(digits.images);
    read(digits.labels);
    return digits;
}
