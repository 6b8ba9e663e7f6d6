// The default floating-point mode (round to nearest, no flush to zero) for as long as an object lives.
#pragma once

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#elif defined(_M_ARM64) && !defined(__clang__)
#include <intrin.h>
#elif !defined(__aarch64__)
#include <cfenv>
#endif

namespace radam {

class DefaultFloatMode {
public:
    DefaultFloatMode(const DefaultFloatMode&) = delete;
    DefaultFloatMode& operator=(const DefaultFloatMode&) = delete;

#if defined(__x86_64__) || defined(_M_X64)
    DefaultFloatMode() noexcept : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
    ~DefaultFloatMode() { _mm_setcsr(saved_); }

private:
    unsigned saved_;
#elif defined(__aarch64__)
    DefaultFloatMode() noexcept {
        __asm__ __volatile__("mrs %0, fpcr" : "=r"(saved_));
        __asm__ __volatile__("msr fpcr, %0" : : "r"(std::uint64_t{0}));
    }
    ~DefaultFloatMode() { __asm__ __volatile__("msr fpcr, %0" : : "r"(saved_)); }

private:
    std::uint64_t saved_;
#elif defined(_M_ARM64)
    DefaultFloatMode() noexcept : saved_(_ReadStatusReg(fpcr)) { _WriteStatusReg(fpcr, 0); }
    ~DefaultFloatMode() { _WriteStatusReg(fpcr, saved_); }

private:
    static constexpr int fpcr = 0x5a20;  // as Microsoft numbers system registers: 3, 3, 4, 4, 0
    __int64 saved_;
#else
    DefaultFloatMode() noexcept {
        std::fegetenv(&saved_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~DefaultFloatMode() { std::fesetenv(&saved_); }

private:
    std::fenv_t saved_;
#endif
};

}  // namespace radam
