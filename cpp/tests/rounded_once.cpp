// fma rounds once, in every way that it is computed: cases that others round twice, and the hash of random ones, which
// is the hardware's.
#include <radam/arithmetic.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <type_traits>

#include "expect.hpp"

namespace {

template <class T>
struct Case {
    T a, b, c, expected;
};

constexpr double infinity = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();

constexpr Case<double> doubles[] = {
    {2.0, 3.0, 4.0, 10.0},
    {2.0, 3.0, -6.0, 0.0},
    {-2.0, 3.0, 6.0, 0.0},
    {0.0, -1.0, 0.0, 0.0},
    {0.0, -1.0, -0.0, -0.0},
    {0x1p-1074, -0x1p-1, 0.0, -0.0},  // a tie, to even
    {0x1p-1074, -0x1.8p-1, 0.0, -0x1p-1074},
    {0x1p-600, -0x1p-600, 0.0, -0.0},  // far below
    {0x1p-600, 0x1p-600, 1.0, 1.0},
    {0x1p-600, -0x1p-600, -0x1p-1074, -0x1p-1074},
    {0x1.8p0, 0x1p-1074, -0x1p-1074, 0.0},              // half of the smallest number: to even
    {0x1.8p0, 0x1p-1074, 0x1p-1074, 0x1p-1073},         // two and a half of them
    {0x1.fffffffffffffp-1, 0x1p-1022, 0.0, 0x1p-1022},  // half an ulp below the smallest normal one: a tie, to even
    {0x1.fffffffffffffp1023, 2.0, -0x1.fffffffffffffp1023, 0x1.fffffffffffffp1023},  // only the product is too large
    {0x1.fffffffffffffp1023, 1.0, 0x1p969, 0x1.fffffffffffffp1023},
    {0x1.fffffffffffffp1023, 1.0, 0x1p970, infinity},
    {0x1.ffffffcp512, 0x1.0000002p511, -0x1p-1074, 0x1.fffffffffffffp1023},
    {0x1p1000, 0x1p1000, -infinity, -infinity},
    {infinity, 0.0, 1.0, nan},
    {infinity, 1.0, -infinity, nan},
    {infinity, -1.0, 1.0, -infinity},
    {1.0, 1.0, nan, nan},
    {0x1.0000000000001p0, 1.0, 0x1.ffcp-54, 0x1.0000000000001p0},                // just below half of the last bit
    {0x1.0000000000001p0, 0x1.0000000000001p0, -0x1.0000000000002p0, 0x1p-104},  // all but the last bit cancels
    {0x1.d0913271687b2p+1, -0x1.abb341875063dp+0, -0x1.5105ed8c77cb7p-54, -0x1.8413bdc9ed6a3p+2},
    {-0x1.eb7817f86ead9p+2, -0x1.76671a300714cp+0, 0x1.69a347dd2966bp-45, 0x1.6763b14e7e9a6p+3},
    {-0x1.9109cc782d2b7p+1, 0x1.874a3714b9ad2p+1, 0x1.71bea6a6af755p+10, 0x1.6f59ac6c453bp+10},
};

constexpr Case<float> floats[] = {
    {2.0f, 3.0f, -6.0f, 0.0f},
    {0.0f, -1.0f, -0.0f, -0.0f},
    {0x1p-149f, 0x1p-1f, 0.0f, 0.0f},
    {0x1.fffffep127f, 2.0f, -0x1.fffffep127f, 0x1.fffffep127f},
    {-1.9369631e13f, 2.1513551e-7f, -1.7354427e-24f, -4.1670958e6f},
    {0x1.000002p-1f, 0x1.7ffffcp-2f, 0x1.fffffep-29f, 0x1.8p-3f},
    {0x1.90976p+1f, 0x1.37357ap+2f, -0x1.93df84p-53f, 0x1.e6fb94p+3f},
    {0x1.39ff2cp+0f, -0x1.87413ap+2f, -0x1.1db0c8p-26f, -0x1.dfe4bep+2f},
};

template <class T>
bool same(T a, T b) noexcept {
    return std::isnan(b) ? std::isnan(a) : a == b && std::signbit(a) == std::signbit(b);
}

template <class T, std::size_t n, class Fma>
void every_case(const Case<T> (&cases)[n], const char* way, Fma fma) {
    for (const Case<T>& x : cases) {
        const T found = fma(x.a, x.b, x.c), swapped = fma(x.b, x.a, x.c);
        if (same(found, x.expected) && same(swapped, x.expected)) continue;
        std::fprintf(stderr, "%s(%a, %a, %a) is %a and, swapped, %a, not %a\n", way, double{x.a}, double{x.b},
                     double{x.c}, double{found}, double{swapped}, double{x.expected});
        ++failures;
    }
}

struct Random {
    std::uint64_t state = 0x9e3779b97f4a7c15u;
    std::uint64_t operator()() noexcept {
        state ^= state << 13, state ^= state >> 7;
        return state ^= state << 17;
    }
};

// Half of them of any size, half of sizes that meet each other.
template <class T, class Fma>
std::uint64_t hash_of_random_ones(Fma fma) {
    using Bits = decltype(std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>());
    constexpr int digits = sizeof(T) == 8 ? 52 : 23, bias = sizeof(T) == 8 ? 1023 : 127;
    constexpr Bits exponents = static_cast<Bits>(2 * bias + 1) << digits;
    Random random;
    std::uint64_t hash = 0xcbf29ce484222325u;
    for (int i = 0; i < 500000; ++i) {
        T x[3];
        for (int k = 0; k < 3; ++k) {
            Bits bits = static_cast<Bits>(random());
            const int size = static_cast<int>(random() % (k == 2 ? 2u * digits + 8u : 3u)) - (k == 2 ? digits + 2 : 1);
            if (i % 2 == 0) bits = (bits & ~exponents) | static_cast<Bits>(bias + size) << digits;
            x[k] = radam::bit_cast<T>(bits);
        }
        T found = fma(x[0], x[1], x[2]);
        if (std::isnan(found)) found = T(1);
        hash = (hash ^ radam::bit_cast<Bits>(found)) * 0x100000001b3u;
    }
    return hash;
}

// Against the cases, and against what fma instructions make of random numbers.
template <class T, class Cases, class Fma>
void rounds_once(const char* way, const Cases& cases, std::uint64_t expected, Fma fma) {
    every_case(cases, way, fma);
    const std::uint64_t hash = hash_of_random_ones<T>(fma);
    if (hash == expected) return;
    std::fprintf(stderr, "%s: %016llx\n", way, static_cast<unsigned long long>(hash));
    ++failures;
}

}  // namespace

int main() {
    constexpr std::uint64_t of_doubles = 0x391b713fc1f77aefu, of_floats = 0x2d88dead4b24efddu;
    const auto fma = [](auto a, auto b, auto c) { return radam::fma(a, b, c); };
    rounds_once<double>("fma of doubles", doubles, of_doubles, fma);
    rounds_once<double>("fma_in_integers", doubles, of_doubles, radam::detail::fma_in_integers);
    rounds_once<float>("fma of floats", floats, of_floats, fma);
    rounds_once<float>("fma_in_double", floats, of_floats,
                       [](float a, float b, float c) { return radam::detail::fma_in_double(a, b, c); });
    return failures == 0 ? 0 : 1;
}
