// What the law computes with, on one number, exactly rounded wherever it runs; and the macros for that.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(_MSC_VER) && (defined(__FMA__) || (defined(__AVX2__) && !defined(__clang__)))
#include <immintrin.h>
#endif

#if defined(__FAST_MATH__)
#error "radam gives the same bits everywhere, which -ffast-math would break: compile this file without it"
#elif defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__)
#error \
    "radam gives the same bits everywhere, which -fassociative-math, -freciprocal-math and what turns them on would break"
#elif defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ == 2
#error "radam gives the same bits everywhere, which x87's wider numbers would break: compile with -msse2 -mfpmath=sse"
#elif defined(_M_FP_FAST)
#error "radam gives the same bits everywhere, which /fp:fast would break: compile this file without it"
#endif

// RADAM_INLINE, and RADAM_ANYWHERE for what is not inlined by force, are for what GPU threads may call too.
#if defined(_MSC_VER) && !defined(__clang__)
#define RADAM_HOST_INLINE __forceinline
#else
#define RADAM_HOST_INLINE inline __attribute__((always_inline))
#endif
#if defined(__CUDACC__)
#define RADAM_ANYWHERE __host__ __device__
#define RADAM_INLINE RADAM_ANYWHERE __forceinline__
// The next function calls what it is given: on a GPU only what may be called there.
#define RADAM_CALLS_BACK _Pragma("nv_exec_check_disable")
#else
#define RADAM_ANYWHERE
#define RADAM_INLINE RADAM_HOST_INLINE
#define RADAM_CALLS_BACK
#endif

namespace radam {

template <class To, class From>
RADAM_INLINE To bit_cast(From from) noexcept {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(To));
    return to;
}

namespace detail {

// The product is exact in double; the sum is rounded to odd there, so that rounding it once more, to float, is the one
// rounding that fma makes.
RADAM_INLINE float fma_in_double(float a, float b, float c) noexcept {
    const double product = static_cast<double>(a) * static_cast<double>(b), addend = static_cast<double>(c);
    const double sum = product + addend;
    const double back = sum - product;
    const double error = (product - (sum - back)) + (addend - back);  // sum + error is exact; NaN where sum is infinite
    const std::uint64_t bits = bit_cast<std::uint64_t>(sum);
    // Without branches: whether a sum is odd nobody can predict.
    const std::uint64_t inexact = static_cast<std::uint64_t>((error > 0.0) | (error < 0.0));
    const std::uint64_t toward_zero = static_cast<std::uint64_t>((error > 0.0) != (sum > 0.0));
    const std::uint64_t to_odd = inexact & ~bits;  // 0 or 1
    return static_cast<float>(bit_cast<double>(bits + to_odd - 2 * (to_odd & toward_zero)));
}

// 128 bits, whose lowest one also stands for all that was shifted out below it.
struct Wide {
    std::uint64_t high, low;

    RADAM_INLINE Wide shifted_right(std::int64_t by) const noexcept {
        if (by == 0) return *this;
        if (by >= 128) return {0, static_cast<std::uint64_t>((high | low) != 0)};
        if (by >= 64) {
            const std::uint64_t lost = by == 64 ? low : low | high << (128 - by);
            return {0, high >> (by - 64) | static_cast<std::uint64_t>(lost != 0)};
        }
        const std::uint64_t lost = low << (64 - by);
        return {high >> by, high << (64 - by) | low >> by | static_cast<std::uint64_t>(lost != 0)};
    }
    RADAM_INLINE Wide operator+(const Wide& b) const noexcept {
        const std::uint64_t sum = low + b.low;
        return {high + b.high + static_cast<std::uint64_t>(sum < low), sum};
    }
    RADAM_INLINE Wide operator-(const Wide& b) const noexcept {
        return {high - b.high - static_cast<std::uint64_t>(low < b.low), low - b.low};
    }
};

// A finite number other than zero is mantissa * 2^exponent, and the mantissa's highest bit is 2^52.
struct Binary {
    std::uint64_t mantissa;
    std::int64_t exponent;

    RADAM_INLINE explicit Binary(std::uint64_t bits) noexcept
        : mantissa(bits & 0xfffffffffffffu), exponent(static_cast<std::int64_t>(bits >> 52 & 0x7ffu) - 1075) {
        if (exponent != -1075)
            mantissa |= std::uint64_t{1} << 52;
        else
            for (++exponent; mantissa >> 52 == 0; --exponent) mantissa <<= 1;
    }
};

// In integers, whatever the numbers are.
RADAM_ANYWHERE inline double fma_in_integers(double a, double b, double c) noexcept {
    constexpr std::uint64_t sign_bit = std::uint64_t{1} << 63, infinity = 0x7ff0000000000000u;
    const std::uint64_t x = bit_cast<std::uint64_t>(a), y = bit_cast<std::uint64_t>(b), z = bit_cast<std::uint64_t>(c);
    const auto is_finite = [](std::uint64_t bits) { return (bits & infinity) != infinity; };
    if (!is_finite(x) || !is_finite(y) || a == 0.0 || b == 0.0) return a * b + c;  // where nothing is rounded twice
    if (!is_finite(z)) return c + c;

    // The product and c, both with their highest bit at 2^124 or 2^125, then in the larger one's unit. What that shifts
    // out is far below all that may remain.
    const Binary p(x), q(y);
    const std::uint64_t p_high = p.mantissa >> 32, p_low = p.mantissa & 0xffffffffu;
    const std::uint64_t q_high = q.mantissa >> 32, q_low = q.mantissa & 0xffffffffu;
    const std::uint64_t low = p_low * q_low, middle = p_high * q_low + p_low * q_high + (low >> 32);
    Wide sum{p_high * q_high + (middle >> 32), middle << 32 | (low & 0xffffffffu)};
    sum = {sum.high << 20 | sum.low >> 44, sum.low << 20};
    std::int64_t exponent = p.exponent + q.exponent - 20;
    std::uint64_t sign = (x ^ y) & sign_bit;
    if (c != 0.0) {
        const Binary r(z);
        Wide addend{r.mantissa << 8, 0};
        const std::int64_t apart = r.exponent - 72 - exponent;
        if (apart > 0) {
            sum = sum.shifted_right(apart);
            exponent += apart;
        } else {
            addend = addend.shifted_right(-apart);
        }
        if (sign == (z & sign_bit)) {
            sum = sum + addend;
        } else {
            sum = sum - addend;
            if (sum.high >> 63 != 0) {
                sum = Wide{0, 0} - sum;
                sign ^= sign_bit;
            }
            if ((sum.high | sum.low) == 0) return 0.0;
        }
    }
    for (; sum.high >> 62 == 0; --exponent) sum = sum + sum;

    // Its highest bit is 2^126 now. Away with all but 53 bits, or more where a subnormal number has fewer.
    std::int64_t by = 74;
    if (exponent + by < -1074) by = -1074 - exponent;
    exponent += by;
    if (by > 127) return bit_cast<double>(sign);  // below half of the smallest number
    if (exponent > 971) return bit_cast<double>(sign | infinity);
    std::uint64_t kept = sum.high >> (by - 65);  // and a bit more, which is half of the last one
    const bool more = (kept & 2u) != 0 || (sum.high ^ kept << (by - 65)) != 0 || sum.low != 0;
    kept = (kept >> 1) + (kept & static_cast<std::uint64_t>(more));
    // A carry goes on into the exponent, as it should; so does the highest bit of a number that is not subnormal.
    return bit_cast<double>(sign | ((static_cast<std::uint64_t>(exponent + 1074) << 52) + kept));
}

}  // namespace detail

// a * b + c, rounded once. Of C libraries glibc alone is asked: Microsoft's rounds twice on processors without FMA3,
// MinGW's on all, and musl's forgets the sign of a product that vanishes beside a zero.
#if defined(__CUDA_ARCH__)
RADAM_INLINE float fma(float a, float b, float c) noexcept { return std::fma(a, b, c); }
RADAM_INLINE double fma(double a, double b, double c) noexcept { return std::fma(a, b, c); }
#elif defined(__GNUC__) && \
    (defined(__FMA__) || defined(__aarch64__) || (defined(__FP_FAST_FMA) && defined(__FP_FAST_FMAF)))
// By these names they are an instruction in a build for debugging, too.
RADAM_INLINE float fma(float a, float b, float c) noexcept { return __builtin_fmaf(a, b, c); }
RADAM_INLINE double fma(double a, double b, double c) noexcept { return __builtin_fma(a, b, c); }
#elif defined(_MSC_VER) && (defined(__FMA__) || (defined(__AVX2__) && !defined(__clang__)))
RADAM_INLINE float fma(float a, float b, float c) noexcept {
    return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
}
RADAM_INLINE double fma(double a, double b, double c) noexcept {
    return _mm_cvtsd_f64(_mm_fmadd_sd(_mm_set_sd(a), _mm_set_sd(b), _mm_set_sd(c)));
}
#else
#if defined(_M_ARM64)
RADAM_INLINE float fma(float a, float b, float c) noexcept { return std::fma(a, b, c); }
#else
RADAM_INLINE float fma(float a, float b, float c) noexcept { return detail::fma_in_double(a, b, c); }
#endif
#if defined(_M_ARM64) || defined(__GLIBC__)
RADAM_INLINE double fma(double a, double b, double c) noexcept { return std::fma(a, b, c); }
#else
RADAM_INLINE double fma(double a, double b, double c) noexcept { return detail::fma_in_integers(a, b, c); }
#endif
#endif

// The rest is exact everywhere. Vector types bring their own, found by their namespace.
RADAM_INLINE float sqrt(float a) noexcept { return std::sqrt(a); }
RADAM_INLINE double sqrt(double a) noexcept { return std::sqrt(a); }
RADAM_INLINE float abs(float a) noexcept { return std::fabs(a); }
RADAM_INLINE double abs(double a) noexcept { return std::fabs(a); }
RADAM_INLINE float select(bool which, float yes, float no) noexcept { return which ? yes : no; }
RADAM_INLINE double select(bool which, double yes, double no) noexcept { return which ? yes : no; }

}  // namespace radam
