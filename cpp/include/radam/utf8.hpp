// Whether bytes are text.
#pragma once

#include <cstddef>
#include <string>

namespace radam {

inline bool is_utf8(const std::string& text) noexcept {
    const std::size_t size = text.size();
    for (std::size_t i = 0; i < size;) {
        const auto byte = [&](std::size_t k) noexcept { return static_cast<unsigned char>(text[k]); };
        const unsigned first = byte(i++);
        if (first < 0x80) continue;
        const unsigned more = first >= 0xc2 && first < 0xe0 ? 1 : first >= 0xe0 && first < 0xf0 ? 2 : 3;
        if (first < 0xc2 || first > 0xf4 || size - i < more) return false;
        // No character in more bytes than it needs, no half of a surrogate pair, nothing beyond U+10FFFF.
        const unsigned least = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
        const unsigned most = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
        if (byte(i) < least || byte(i) > most) return false;
        for (unsigned k = 1; k < more; ++k)
            if ((byte(i + k) & 0xc0u) != 0x80) return false;
        i += more;
    }
    return true;
}

}  // namespace radam
