// As much JSON as saved states take: what Python's json.dumps writes, read and written whatever the locale.
#pragma once

#include <algorithm>
#include <cfloat>
#include <charconv>
#include <clocale>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

// Standard libraries without floating-point <charconv> take the C library's functions and mend the locale's point.
#if !defined(RADAM_JSON_CHARCONV)
#if defined(__cpp_lib_to_chars)
#define RADAM_JSON_CHARCONV 1
#else
#define RADAM_JSON_CHARCONV 0
#endif
#endif

#include "../utf8.hpp"

namespace radam {

// A value. Numbers are kept as they are written, since a whole one may have more digits than a double.
struct Json {
    enum class Kind : std::uint8_t { null, boolean, number, string, array, object };

    Kind kind = Kind::null;
    bool boolean = false;
    std::string text;               // of a string: its content in UTF-8; of a number: its digits
    std::vector<Json> items;        // of an array, or the values of an object,
    std::vector<std::string> keys;  // whose keys these are, in the order of the file

    // The value of an object's key; null where there is none, or this is no object.
    const Json* find(std::string_view key) const noexcept {
        for (std::size_t i = 0; i < keys.size(); ++i)
            if (keys[i] == key) return &items[i];
        return nullptr;
    }
};

namespace json {

// More would be an attack on the stack, or on memory.
constexpr int most_depth = 100;  // of values in values
constexpr std::int64_t most_values = 10000000;

inline void append_utf8(std::string& out, std::uint32_t character) {
    const auto put = [&](std::uint32_t byte) { out += static_cast<char>(static_cast<unsigned char>(byte)); };
    const auto tail = [&](int shift) { put(0x80u | ((character >> shift) & 0x3fu)); };
    if (character < 0x80) return put(character);
    if (character < 0x800) return put(0xc0u | (character >> 6)), tail(0);
    if (character < 0x10000) return put(0xe0u | (character >> 12)), tail(6), tail(0);
    put(0xf0u | (character >> 18)), tail(12), tail(6), tail(0);
}

// ---- numbers

// Reads digits without a sign or a leading zero; false where they are something else, or do not fit.
inline bool read_whole(const std::string& digits, std::uint64_t& to) noexcept {
    if (digits.empty() || (digits[0] == '0' && digits.size() > 1)) return false;
    constexpr std::uint64_t most = std::numeric_limits<std::uint64_t>::max();
    std::uint64_t number = 0;
    for (const char c : digits) {
        if (c < '0' || c > '9') return false;
        const auto digit = static_cast<std::uint64_t>(c - '0');
        if (number > (most - digit) / 10) return false;
        number = number * 10 + digit;
    }
    to = number;
    return true;
}

// Reads a number of JSON, or Python's NaN and Infinity; false where it is too large or too small for a double.
inline bool read_double(const std::string& text, double& to) {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    if (text == "NaN") return to = std::numeric_limits<double>::quiet_NaN(), true;
    if (text == "Infinity") return to = infinity, true;
    if (text == "-Infinity") return to = -infinity, true;
#if RADAM_JSON_CHARCONV
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), to);
    return error == std::errc{} && end == text.data() + text.size();
#else
    std::string local = text;
    const std::size_t point = local.find('.');
    if (point != std::string::npos) local.replace(point, 1, std::localeconv()->decimal_point);
    char* end = nullptr;
    to = std::strtod(local.c_str(), &end);
    const bool is_zero = local.find_first_of("123456789") >= local.find_first_of("eE");  // as it is written
    return end == local.c_str() + local.size() && to > -infinity && to < infinity && (to != 0.0 || is_zero);
#endif
}

// A number as d.ddde[+-]dd, in the fewest digits that read back as the same bits.
inline std::string shortest_digits(double x) {
    char digits[64];
#if RADAM_JSON_CHARCONV
    return std::string(digits, std::to_chars(digits, digits + sizeof digits, x, std::chars_format::scientific).ptr);
#else
    for (int precision = 0;; ++precision) {
        std::snprintf(digits, sizeof digits, "%.*e", precision, x);
        std::string text = digits;
        const std::string point = std::localeconv()->decimal_point;
        const std::size_t at = text.find(point);
        if (at != std::string::npos) text.replace(at, point.size(), ".");
        double back = 0.0;
        if (precision >= DBL_DECIMAL_DIG - 1 || (read_double(text, back) && back == x)) return text;
    }
#endif
}

// Appends a double as Python's repr has it: 0.001, 1e-08, 5.0, NaN, Infinity.
inline void write(std::string& out, double x) {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    if (x != x) return void(out += "NaN");
    if (x == infinity || x == -infinity) return void(out += x < 0 ? "-Infinity" : "Infinity");
    std::string text = shortest_digits(x);
    if (text[0] == '-') {
        out += '-';
        text.erase(0, 1);
    }
    const std::size_t e = text.find('e');
    const int exponent = std::atoi(text.c_str() + e + 1);
    std::string digits = text.substr(0, e);
    if (digits.size() > 1) digits.erase(1, 1);  // the point
    if (exponent < -4 || exponent >= 16) return void(out += text);
    if (exponent < 0) {
        out += "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
        return;
    }
    const auto before_point = static_cast<std::size_t>(exponent) + 1;
    if (digits.size() < before_point + 1) digits.resize(before_point + 1, '0');
    out += digits.insert(before_point, 1, '.');
}

// ---- strings

// Appends a string, all beyond ASCII escaped as Python does it. The text must be UTF-8.
inline void write(std::string& out, const std::string& text) {
    constexpr char hex[] = "0123456789abcdef";
    const auto unit = [&](std::uint32_t bits) {
        out += "\\u";
        for (int shift = 12; shift >= 0; shift -= 4) out += hex[(bits >> shift) & 15u];
    };
    out += '"';
    for (std::size_t i = 0; i < text.size();) {
        const auto byte = [&](std::size_t k) { return std::uint32_t{static_cast<unsigned char>(text[k])}; };
        const std::uint32_t first = byte(i);
        const char* const names = "\"\"\\\\\nn\rr\tt\bb\ff";  // a character, and what it is after a backslash
        const char* name = names;
        while (*name != '\0' && static_cast<unsigned char>(*name) != first) name += 2;
        const std::size_t length = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
        std::uint32_t character = length == 1 ? first : first & (0x7fu >> length);
        for (std::size_t k = 1; k < length; ++k) character = (character << 6) | (byte(i + k) & 0x3fu);
        if (*name != '\0') {
            out += '\\';
            out += name[1];
        } else if (character >= 0x20 && character < 0x7f) {
            out += static_cast<char>(character);
        } else if (character < 0x10000) {
            unit(character);
        } else {
            unit(0xd800u + ((character - 0x10000u) >> 10));
            unit(0xdc00u + (character & 0x3ffu));
        }
        i += length;
    }
    out += '"';
}

// Appends a value, on one line as Python has it.
inline void write(std::string& out, const Json& value) {
    switch (value.kind) {
        case Json::Kind::null: out += "null"; return;
        case Json::Kind::boolean: out += value.boolean ? "true" : "false"; return;
        case Json::Kind::number: out += value.text; return;
        case Json::Kind::string: write(out, value.text); return;
        case Json::Kind::array:
        case Json::Kind::object: break;
    }
    const bool is_object = value.kind == Json::Kind::object;
    out += is_object ? '{' : '[';
    for (std::size_t i = 0; i < value.items.size(); ++i) {
        if (i > 0) out += ", ";
        if (is_object) {
            write(out, value.keys[i]);
            out += ": ";
        }
        write(out, value.items[i]);
    }
    out += is_object ? '}' : ']';
}

// ---- reading

class Parser {
public:
    Parser(const std::string& text, std::int64_t most) : text_(text), left_(most) {
        if (!is_utf8(text)) throw std::runtime_error("it is not UTF-8");
    }

    Json whole() {
        Json found;
        value(found, 0);
        if (peek() != '\0' || at_ < text_.size()) refuse("something follows the value");
        return found;
    }

private:
    [[noreturn]] void refuse(const char* why) const {
        throw std::runtime_error(std::string(why) + " at byte " + std::to_string(at_) + " of its JSON");
    }

    // The next character that is no space, or NUL.
    char peek() noexcept {
        while (at_ < text_.size() &&
               (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r'))
            ++at_;
        return here();
    }
    char here() const noexcept { return at_ < text_.size() ? text_[at_] : '\0'; }
    bool take(char c) noexcept { return peek() == c && at_ < text_.size() ? (++at_, true) : false; }
    bool take_word(const char* word) noexcept {
        const std::size_t size = std::char_traits<char>::length(word);
        if (text_.compare(at_, size, word) != 0) return false;
        at_ += size;
        return true;
    }

    void value(Json& to, int depth) {
        if (depth > most_depth) refuse("values nest too deep");
        if (left_-- == 0) refuse("there are too many values");
        const char first = peek();
        if (first == '{' || first == '[') return values(to, depth, first == '{');
        if (first == '"') {
            to.kind = Json::Kind::string;
            return string(to.text);
        }
        if (take_word("null")) return;
        if (take_word("true") || take_word("false")) {
            to.kind = Json::Kind::boolean;
            to.boolean = first == 't';
            return;
        }
        to.kind = Json::Kind::number;
        for (const char* word : {"NaN", "Infinity", "-Infinity"})
            if (take_word(word)) return void(to.text = word);
        number(to.text);
    }

    void values(Json& to, int depth, bool is_object) {
        to.kind = is_object ? Json::Kind::object : Json::Kind::array;
        const char end = is_object ? '}' : ']';
        ++at_;
        if (take(end)) return;
        do {
            if (is_object) {
                if (peek() != '"') refuse("a key is missing");
                to.keys.emplace_back();
                string(to.keys.back());
                if (!take(':')) refuse("a ':' is missing");
            }
            to.items.emplace_back();
            value(to.items.back(), depth + 1);
        } while (take(','));
        if (!take(end)) refuse(is_object ? "a ',' or '}' is missing" : "a ',' or ']' is missing");
        if (is_object) refuse_twins(to.keys);
    }

    void refuse_twins(const std::vector<std::string>& keys) const {
        std::vector<const std::string*> sorted;
        for (const std::string& key : keys) sorted.push_back(&key);
        std::sort(sorted.begin(), sorted.end(), [](auto* a, auto* b) { return *a < *b; });
        const auto twin = std::adjacent_find(sorted.begin(), sorted.end(), [](auto* a, auto* b) { return *a == *b; });
        if (twin == sorted.end()) return;
        std::string name;
        write(name, **twin);
        throw std::runtime_error("the key " + name + " comes twice in an object of its JSON");
    }

    bool digits() noexcept {
        const std::size_t first = at_;
        while (here() >= '0' && here() <= '9') ++at_;
        return at_ > first;
    }

    void number(std::string& to) {
        const std::size_t first = at_;
        if (here() == '-') ++at_;
        const bool leads_with_zero = here() == '0';
        const std::size_t whole = at_;
        bool good = digits() && !(leads_with_zero && at_ > whole + 1);
        if (good && here() == '.') ++at_, good = digits();
        if (good && (here() == 'e' || here() == 'E')) {
            ++at_;
            if (here() == '+' || here() == '-') ++at_;
            good = digits();
        }
        if (!good) refuse("there is no value");
        to = text_.substr(first, at_ - first);
    }

    std::uint32_t unit() {
        std::uint32_t bits = 0;
        for (int i = 0; i < 4; ++i, ++at_) {
            const char c = here();
            const int digit = c >= '0' && c <= '9'   ? c - '0'
                              : c >= 'a' && c <= 'f' ? c - 'a' + 10
                              : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                     : -1;
            if (digit < 0) refuse("\\u takes four hexadecimal digits, which are missing");
            bits = bits * 16 + static_cast<std::uint32_t>(digit);
        }
        return bits;
    }

    void string(std::string& to) {
        ++at_;
        for (;;) {
            if (at_ >= text_.size()) refuse("a string does not end");
            const char c = text_[at_];
            if (static_cast<unsigned char>(c) < 0x20) refuse("a control character stands in a string");
            ++at_;
            if (c == '"') return;
            if (c != '\\') {
                to += c;
                continue;
            }
            const char escaped = here();
            constexpr char from[] = "\"\\/bfnrt", into[] = "\"\\/\b\f\n\r\t";
            const char* const known = std::char_traits<char>::find(from, sizeof from - 1, escaped);
            ++at_;
            if (known != nullptr) {
                to += into[known - from];
            } else if (escaped == 'u') {
                std::uint32_t character = unit();
                if (character >= 0xd800 && character < 0xdc00 && take_word("\\u")) {
                    const std::uint32_t second = unit();
                    if (second < 0xdc00 || second >= 0xe000) refuse("half a surrogate pair stands in a string");
                    character = 0x10000u + ((character - 0xd800u) << 10) + (second - 0xdc00u);
                }
                if (character >= 0xd800 && character < 0xe000) refuse("half a surrogate pair stands in a string");
                append_utf8(to, character);
            } else {
                refuse("an escape that JSON does not have stands in a string");
            }
        }
    }

    const std::string& text_;
    std::size_t at_ = 0;
    std::int64_t left_;  // values that may still come
};

// Reads a JSON text of at most so many values, those in others counted too. std::runtime_error saying what is wrong
// with it, and at which byte.
inline Json parse(const std::string& text, std::int64_t most = most_values) { return Parser(text, most).whole(); }

}  // namespace json

}  // namespace radam
