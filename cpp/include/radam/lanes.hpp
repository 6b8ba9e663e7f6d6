// Vectors of lanes: for each instruction set a vector type for the law, and how it loads, widens, rounds and stores.
#pragma once

#include <cstddef>
#if defined(_MSC_VER)
#include <intrin.h>
#endif

#include "dtype.hpp"

#if !defined(RADAM_WITH_XSIMD)
#define RADAM_WITH_XSIMD 0
#endif
#if RADAM_WITH_XSIMD
#include <xsimd/xsimd.hpp>
#endif

// The iterations of the next loop, over vectors or single lanes, do not depend on each other: no two buffers overlap.
#if defined(__clang__)
#define RADAM_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define RADAM_INDEPENDENT _Pragma("GCC ivdep")
#elif defined(_MSC_VER)
#define RADAM_INDEPENDENT __pragma(loop(ivdep))
#else
#define RADAM_INDEPENDENT
#endif

// Clang says so of each loop that it does not vectorise for all that; not to embedders.
#if defined(__clang__)
#define RADAM_LOOPS_BEGIN _Pragma("clang diagnostic push") _Pragma("clang diagnostic ignored \"-Wpass-failed\"")
#define RADAM_LOOPS_END _Pragma("clang diagnostic pop")
#else
#define RADAM_LOOPS_BEGIN
#define RADAM_LOOPS_END
#endif

namespace radam {

// T in every lane of an instruction set's register. Isa says how to fuse, divide, root and choose, each exactly
// rounded: not every library's operators are (xsimd's fma below FMA3, its float division and square root on NEON).
template <class Isa, class T>
struct Vector {
    using Native = typename Isa::template native<T>;
    Native x;

    Vector() = default;
    RADAM_INLINE explicit Vector(T value) noexcept : x(value) {}
    RADAM_INLINE static Vector of(const Native& x) noexcept {
        Vector v;
        v.x = x;
        return v;
    }

    RADAM_INLINE friend Vector operator+(const Vector& a, const Vector& b) noexcept { return of(a.x + b.x); }
    RADAM_INLINE friend Vector operator*(const Vector& a, const Vector& b) noexcept { return of(a.x * b.x); }
    RADAM_INLINE friend Vector operator-(const Vector& a, const Vector& b) noexcept { return of(a.x - b.x); }
    RADAM_INLINE friend Vector operator/(const Vector& a, const Vector& b) noexcept {
        return of(Isa::divide(a.x, b.x));
    }
    RADAM_INLINE friend auto operator<(const Vector& a, const Vector& b) noexcept { return a.x < b.x; }
    RADAM_INLINE friend auto operator==(const Vector& a, const Vector& b) noexcept { return a.x == b.x; }
    RADAM_INLINE friend auto operator>=(const Vector& a, const Vector& b) noexcept { return a.x >= b.x; }
    RADAM_INLINE friend Vector fma(const Vector& a, const Vector& b, const Vector& c) noexcept {
        return of(Isa::fma(a.x, b.x, c.x));
    }
    RADAM_INLINE friend Vector sqrt(const Vector& a) noexcept { return of(Isa::sqrt(a.x)); }
    RADAM_INLINE friend Vector abs(const Vector& a) noexcept { return of(Isa::abs(a.x)); }
    template <class Mask>
    RADAM_INLINE friend Vector select(const Mask& which, const Vector& yes, const Vector& no) noexcept {
        return of(Isa::select(which, yes.x, no.x));
    }

    // Of unsigned integers.
    RADAM_INLINE friend Vector operator&(const Vector& a, const Vector& b) noexcept { return of(a.x & b.x); }
    RADAM_INLINE friend Vector operator|(const Vector& a, const Vector& b) noexcept { return of(a.x | b.x); }
    RADAM_INLINE friend Vector operator^(const Vector& a, const Vector& b) noexcept { return of(a.x ^ b.x); }
    RADAM_INLINE friend Vector operator>>(const Vector& a, int by) noexcept { return of(a.x >> by); }
    RADAM_INLINE friend Vector operator<<(const Vector& a, int by) noexcept { return of(a.x << by); }
    RADAM_INLINE friend Vector lesser(const Vector& a, const Vector& b) noexcept { return of(Isa::lesser(a.x, b.x)); }
    RADAM_INLINE friend Vector greater(const Vector& a, const Vector& b) noexcept { return of(Isa::greater(a.x, b.x)); }
};

// The bits of floats, lane by lane, and back.
template <class Isa>
using BitVector = Vector<Isa, std::uint32_t>;
template <class Isa>
RADAM_INLINE BitVector<Isa> bits_of(const Vector<Isa, float>& x) noexcept {
    return BitVector<Isa>::of(Isa::bits_of(x.x));
}
template <class Isa>
RADAM_INLINE Vector<Isa, float> number_of(const BitVector<Isa>& bits) noexcept {
    return Vector<Isa, float>::of(Isa::number_of(bits.x));
}

namespace detail {
#if RADAM_WITH_XSIMD
// What xsimd rounds exactly on every instruction set with an fma instruction.
struct XsimdArithmetic {
    template <class B>
    RADAM_INLINE static B fma(const B& a, const B& b, const B& c) noexcept {
        return xsimd::fma(a, b, c);
    }
    template <class B>
    RADAM_INLINE static B abs(const B& a) noexcept {
        return xsimd::abs(a);
    }
    template <class B>
    RADAM_INLINE static void store(typename B::value_type* to, const B& x) noexcept {
        x.store_unaligned(to);
    }
    template <class M, class B>
    RADAM_INLINE static B select(const M& which, const B& yes, const B& no) noexcept {
        return xsimd::select(which, yes, no);
    }
    template <class B>
    RADAM_INLINE static auto bits_of(const B& x) noexcept {
        return xsimd::bitwise_cast<std::uint32_t>(x);
    }
    template <class B>
    RADAM_INLINE static auto number_of(const B& bits) noexcept {
        return xsimd::bitwise_cast<float>(bits);
    }
    template <class B>
    RADAM_INLINE static B lesser(const B& a, const B& b) noexcept {
        return xsimd::min(a, b);
    }
    template <class B>
    RADAM_INLINE static B greater(const B& a, const B& b) noexcept {
        return xsimd::max(a, b);
    }
};

// On x86 also these.
struct XsimdArithmeticX86 : XsimdArithmetic {
    template <class B>
    RADAM_INLINE static B divide(const B& a, const B& b) noexcept {
        return a / b;
    }
    template <class B>
    RADAM_INLINE static B sqrt(const B& a) noexcept {
        return xsimd::sqrt(a);
    }
};
#endif
}  // namespace detail

// The instruction sets. Each says its register for T, its arithmetic, and how 16-bit storage becomes floats and back.
namespace isa {

// One lane of plain C++, for compilers to vectorise and for processors that have nothing better.
struct portable {
    static constexpr const char* name = "portable";
    template <class T>
    using native = T;

    template <class T>
    RADAM_INLINE static T fma(T a, T b, T c) noexcept {
        return radam::fma(a, b, c);
    }
    template <class T>
    RADAM_INLINE static T divide(T a, T b) noexcept {
        return a / b;
    }
    template <class T>
    RADAM_INLINE static T sqrt(T a) noexcept {
        return radam::sqrt(a);
    }
    template <class T>
    RADAM_INLINE static T abs(T a) noexcept {
        return radam::abs(a);
    }
    template <class T>
    RADAM_INLINE static T select(bool which, T yes, T no) noexcept {
        return radam::select(which, yes, no);
    }

    template <class T>
    RADAM_INLINE static T load(const T* from) noexcept {
        return get(from);
    }
    template <class T>
    RADAM_INLINE static void store(T* to, T x) noexcept {
        put(to, x);
    }
    template <class Storage>
    RADAM_INLINE static float widen(const Storage* from) noexcept {
        return to_float(Storage{get(reinterpret_cast<const std::uint16_t*>(from))});  // at any address
    }
    RADAM_INLINE static std::uint32_t bits_of(float x) noexcept { return bit_cast<std::uint32_t>(x); }
    RADAM_INLINE static float number_of(std::uint32_t bits) noexcept { return bit_cast<float>(bits); }
    RADAM_INLINE static std::uint32_t lesser(std::uint32_t a, std::uint32_t b) noexcept { return a < b ? a : b; }
    RADAM_INLINE static std::uint32_t greater(std::uint32_t a, std::uint32_t b) noexcept { return a > b ? a : b; }
    template <class Word>
    RADAM_INLINE static std::uint32_t widen_bits(const Word* from) noexcept {
        return static_cast<std::uint32_t>(get(from));  // with the sign, where it has one
    }
    template <class Word>
    RADAM_INLINE static void narrow_bits(Word* to, std::uint32_t bits) noexcept {
        put(to, static_cast<Word>(bits));
    }

    RADAM_INLINE static void narrow(bf16* to, float x) noexcept {
        put(reinterpret_cast<std::uint16_t*>(to), to_bf16(x).bits);
    }
    RADAM_INLINE static void narrow(fp16* to, float x) noexcept {
        put(reinterpret_cast<std::uint16_t*>(to), to_fp16(x).bits);
    }

    // A number at any address. Compilers vectorise the attributed access, but not std::memcpy.
#if defined(__GNUC__)
    template <class T>
    RADAM_INLINE static T get(const T* from) noexcept {
        typedef T anywhere __attribute__((aligned(1), may_alias));
        return *reinterpret_cast<const anywhere*>(from);
    }
    template <class T>
    RADAM_INLINE static void put(T* to, T value) noexcept {
        typedef T anywhere __attribute__((aligned(1), may_alias));
        *reinterpret_cast<anywhere*>(to) = value;
    }
#else
    template <class T>
    RADAM_INLINE static T get(const T* from) noexcept {
        T value;
        std::memcpy(&value, from, sizeof(T));
        return value;
    }
    template <class T>
    RADAM_INLINE static void put(T* to, T value) noexcept {
        std::memcpy(to, &value, sizeof(T));
    }
#endif
};

#if RADAM_WITH_XSIMD && XSIMD_WITH_FMA3_AVX2 && defined(__AVX2__)
struct avx2 : detail::XsimdArithmeticX86 {
    static constexpr const char* name = "avx2";
    using arch = xsimd::fma3<xsimd::avx2>;
    template <class T>
    using native = xsimd::batch<T, arch>;

    template <class T>
    RADAM_INLINE static native<T> load(const T* from) noexcept {
        return native<T>::load_unaligned(from);
    }

    RADAM_INLINE static native<float> widen(const bf16* from) noexcept {
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
    }
    RADAM_INLINE static native<float> widen(const fp16* from) noexcept {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
    RADAM_INLINE static void narrow(bf16* to, native<float> x) noexcept {
        const __m256i bits = _mm256_castps_si256(x), high = _mm256_srli_epi32(bits, 16);
        const __m256i bias = _mm256_add_epi32(_mm256_and_si256(high, _mm256_set1_epi32(1)), _mm256_set1_epi32(0x7fff));
        const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
        const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        const __m256i words = _mm256_blendv_epi8(rounded, quiet, nan);
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
    }
    RADAM_INLINE static void narrow(fp16* to, native<float> x) noexcept {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
    }

    RADAM_INLINE static native<std::uint32_t> widen_bits(const std::uint8_t* from) noexcept {
        return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    }
    RADAM_INLINE static native<std::uint32_t> widen_bits(const std::uint16_t* from) noexcept {
        return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
    RADAM_INLINE static native<std::uint32_t> widen_bits(const std::int16_t* from) noexcept {
        return _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
    RADAM_INLINE static void narrow_bits(std::uint8_t* to, native<std::uint32_t> bits) noexcept {
        const __m256i low = _mm256_and_si256(bits, _mm256_set1_epi32(0xff));
        const __m256i words = _mm256_packus_epi32(low, low), bytes = _mm256_packus_epi16(words, words);
        const __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(to), both);
    }
    RADAM_INLINE static void narrow_bits(std::uint16_t* to, native<std::uint32_t> bits) noexcept {
        const __m256i low = _mm256_and_si256(bits, _mm256_set1_epi32(0xffff));
        const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(words));
    }
};
#endif

#if RADAM_WITH_XSIMD && XSIMD_WITH_AVX512BW
struct avx512 : detail::XsimdArithmeticX86 {
    static constexpr const char* name = "avx512";
    using arch = xsimd::avx512bw;
    template <class T>
    using native = xsimd::batch<T, arch>;

    template <class T>
    RADAM_INLINE static native<T> load(const T* from) noexcept {
        return native<T>::load_unaligned(from);
    }

    RADAM_INLINE static native<float> widen(const bf16* from) noexcept {
        const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
    RADAM_INLINE static native<float> widen(const fp16* from) noexcept {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    }
    RADAM_INLINE static void narrow(bf16* to, native<float> x) noexcept {
        const __m512i bits = _mm512_castps_si512(x), high = _mm512_srli_epi32(bits, 16);
        const __m512i bias = _mm512_add_epi32(_mm512_and_si512(high, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
        const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
        const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        const __m512i words = _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(words));
    }
    RADAM_INLINE static void narrow(fp16* to, native<float> x) noexcept {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
    }

    RADAM_INLINE static native<std::uint32_t> widen_bits(const std::uint8_t* from) noexcept {
        return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
    RADAM_INLINE static native<std::uint32_t> widen_bits(const std::uint16_t* from) noexcept {
        return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    }
    RADAM_INLINE static native<std::uint32_t> widen_bits(const std::int16_t* from) noexcept {
        return _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    }
    RADAM_INLINE static void narrow_bits(std::uint8_t* to, native<std::uint32_t> bits) noexcept {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(bits));
    }
    RADAM_INLINE static void narrow_bits(std::uint16_t* to, native<std::uint32_t> bits) noexcept {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(bits));
    }
};
#endif

#if RADAM_WITH_XSIMD && XSIMD_WITH_NEON64
struct neon : detail::XsimdArithmetic {
    static constexpr const char* name = "neon";
    using arch = xsimd::neon64;
    template <class T>
    using native = xsimd::batch<T, arch>;

    template <class T>
    RADAM_INLINE static native<T> load(const T* from) noexcept {
        return native<T>::load_unaligned(from);
    }

    RADAM_INLINE static native<float> divide(native<float> a, native<float> b) noexcept { return vdivq_f32(a, b); }
    RADAM_INLINE static native<double> divide(native<double> a, native<double> b) noexcept { return vdivq_f64(a, b); }
    RADAM_INLINE static native<float> sqrt(native<float> a) noexcept { return vsqrtq_f32(a); }
    RADAM_INLINE static native<double> sqrt(native<double> a) noexcept { return vsqrtq_f64(a); }

    RADAM_INLINE static native<float> widen(const bf16* from) noexcept {
        std::uint64_t words;  // through memcpy: the array may stand at any address
        std::memcpy(&words, from, 8);
        return vreinterpretq_f32_u32(vshll_n_u16(vcreate_u16(words), 16));
    }
    RADAM_INLINE static native<float> widen(const fp16* from) noexcept {
        std::uint64_t words;
        std::memcpy(&words, from, 8);
        return vcvt_f32_f16(vreinterpret_f16_u16(vcreate_u16(words)));
    }
    RADAM_INLINE static void narrow(bf16* to, native<float> x) noexcept {
        const float32x4_t lanes = x;
        const uint32x4_t bits = vreinterpretq_u32_f32(lanes), high = vshrq_n_u32(bits, 16);
        const uint32x4_t bias = vaddq_u32(vandq_u32(high, vdupq_n_u32(1)), vdupq_n_u32(0x7fff));
        const uint32x4_t rounded = vshrq_n_u32(vaddq_u32(bits, bias), 16);
        const uint32x4_t quiet = vorrq_u32(high, vdupq_n_u32(0x40));
        const uint16x4_t words = vmovn_u32(vbslq_u32(vceqq_f32(lanes, lanes), rounded, quiet));
        std::memcpy(to, &words, 8);
    }
    RADAM_INLINE static void narrow(fp16* to, native<float> x) noexcept {
        const float32x4_t lanes = x;
        const float16x4_t halves = vcvt_f16_f32(lanes);
        std::memcpy(to, &halves, 8);
    }

    RADAM_INLINE static native<std::uint32_t> widen_bits(const std::uint8_t* from) noexcept {
        std::uint32_t bytes;
        std::memcpy(&bytes, from, 4);
        return vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(bytes))));
    }
    RADAM_INLINE static native<std::uint32_t> widen_bits(const std::uint16_t* from) noexcept {
        std::uint64_t words;
        std::memcpy(&words, from, 8);
        return vmovl_u16(vcreate_u16(words));
    }
    RADAM_INLINE static native<std::uint32_t> widen_bits(const std::int16_t* from) noexcept {
        std::uint64_t words;
        std::memcpy(&words, from, 8);
        return vreinterpretq_u32_s32(vmovl_s16(vreinterpret_s16_u16(vcreate_u16(words))));
    }
    RADAM_INLINE static void narrow_bits(std::uint8_t* to, native<std::uint32_t> bits) noexcept {
        const uint16x4_t words = vmovn_u32(bits);
        const uint8x8_t bytes = vmovn_u16(vcombine_u16(words, words));
        std::memcpy(to, &bytes, 4);
    }
    RADAM_INLINE static void narrow_bits(std::uint16_t* to, native<std::uint32_t> bits) noexcept {
        const uint16x4_t words = vmovn_u32(bits);
        std::memcpy(to, &words, 8);
    }
};
#endif

// The best of them that this translation unit may be compiled for.
#if RADAM_WITH_XSIMD && XSIMD_WITH_AVX512BW
using native = avx512;
#elif RADAM_WITH_XSIMD && XSIMD_WITH_FMA3_AVX2 && defined(__AVX2__)
using native = avx2;
#elif RADAM_WITH_XSIMD && XSIMD_WITH_NEON64
using native = neon;
#else
using native = portable;
#endif

}  // namespace isa

template <class Isa, class T>
constexpr std::int64_t lanes() noexcept {
    return static_cast<std::int64_t>(sizeof(typename Isa::template native<T>) / sizeof(T));
}

// Asks for the cache line of an address soon to be read. In assembly: GCC takes a function that holds nothing but its
// __builtin_prefetch for one without effects, and leaves out the call.
RADAM_HOST_INLINE void prefetch(const void* address) noexcept {
#if defined(__GNUC__) && defined(__x86_64__)
    __asm__ __volatile__("prefetcht0 %0" : : "m"(*static_cast<const char*>(address)));
#elif defined(__GNUC__) && defined(__aarch64__)
    __asm__ __volatile__("prfm pldl1keep, [%0]" : : "r"(address));
#elif defined(_M_X64)
    _mm_prefetch(static_cast<const char*>(address), _MM_HINT_T0);
#elif defined(_M_ARM64)
    __prefetch(address);
#else
    static_cast<void>(address);
#endif
}

// Whole vectors from and to storage at any address.
template <class Isa, class Storage>
RADAM_HOST_INLINE Vector<Isa, Compute<Storage>> load(const Storage* from) noexcept {
    using V = Vector<Isa, Compute<Storage>>;
    if constexpr (sizeof(Storage) == 2)
        return V::of(Isa::widen(from));
    else
        return V::of(Isa::load(from));
}

template <class Isa, class Storage>
RADAM_HOST_INLINE void store(Storage* to, const Vector<Isa, Compute<Storage>>& v) noexcept {
    if constexpr (sizeof(Storage) == 2)
        Isa::narrow(to, v.x);
    else
        Isa::store(to, v.x);
}

// The first n lanes only; the others compute on zeros that nobody reads.
template <class Isa, class Storage>
RADAM_HOST_INLINE Vector<Isa, Compute<Storage>> load_partial(const Storage* from, std::int64_t n) noexcept {
    Storage padded[lanes<Isa, Compute<Storage>>()] = {};
    std::memcpy(padded, from, static_cast<std::size_t>(n) * sizeof(Storage));
    return load<Isa>(padded);
}

template <class Isa, class Storage>
RADAM_HOST_INLINE void store_partial(Storage* to, const Vector<Isa, Compute<Storage>>& x, std::int64_t n) noexcept {
    Storage padded[lanes<Isa, Compute<Storage>>()];
    store<Isa>(padded, x);
    std::memcpy(to, padded, static_cast<std::size_t>(n) * sizeof(Storage));
}

}  // namespace radam
