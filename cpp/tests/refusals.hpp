// What a test says of an error: which words it has.
#pragma once

#include <functional>
#include <stdexcept>
#include <string>

// What the std::runtime_error says that f throws; nothing where it throws none.
inline std::string why(const std::function<void()>& f) {
    try {
        f();
    } catch (const std::runtime_error& error) {
        return error.what();
    }
    return {};
}

inline bool says(const std::string& text, const std::string& words) { return text.find(words) != std::string::npos; }
