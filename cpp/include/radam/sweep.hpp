// The loops over one tile (elements begin to end of one slot) on one instruction set.
#pragma once

#include "norm.hpp"
#include "staged.hpp"
#include "tiles.hpp"

RADAM_LOOPS_BEGIN

namespace radam {

namespace detail {

// The buffers of a slot with their types back.
template <class Param, class Grad>
struct Streams {
    using T = Compute<Param>;
    Param* p;
    const Grad* g;
    T *m, *v, *v_max;

    RADAM_HOST_INLINE explicit Streams(const Slot& slot) noexcept
        : p(static_cast<Param*>(slot.param)),
          g(static_cast<const Grad*>(slot.grad)),
          m(static_cast<T*>(slot.exp_avg)),
          v(static_cast<T*>(slot.exp_avg_sq)),
          v_max(static_cast<T*>(slot.max_exp_avg_sq)) {}

    template <bool amsgrad>
    RADAM_HOST_INLINE void prefetch(std::int64_t i) const noexcept {
        radam::prefetch(p + i);
        radam::prefetch(g + i);
        radam::prefetch(m + i);
        radam::prefetch(v + i);
        if constexpr (amsgrad) radam::prefetch(v_max + i);
    }
};

// How far ahead of the loads each stream is prefetched, in bytes of fp32 or fp64: what measured best for a step (whose
// arithmetic keeps the processor from looking ahead far enough by itself) and for the limit. See docs/design.md.
constexpr std::int64_t step_ahead = 1024, limit_ahead = 512;

struct Whole {
    template <class Isa, class Storage>
    RADAM_HOST_INLINE static Vector<Isa, Compute<Storage>> load(const Storage* from, std::int64_t) noexcept {
        return radam::load<Isa>(from);
    }
    template <class Isa, class Storage>
    RADAM_HOST_INLINE static void store(Storage* to, const Vector<Isa, Compute<Storage>>& x, std::int64_t) noexcept {
        radam::store<Isa>(to, x);
    }
};

struct Partial {
    template <class Isa, class Storage>
    RADAM_HOST_INLINE static Vector<Isa, Compute<Storage>> load(const Storage* from, std::int64_t n) noexcept {
        return load_partial<Isa>(from, n);
    }
    template <class Isa, class Storage>
    RADAM_HOST_INLINE static void store(Storage* to, const Vector<Isa, Compute<Storage>>& x, std::int64_t n) noexcept {
        store_partial<Isa>(to, x, n);
    }
};

// Calls f(Whole{}, i, lanes) for every whole vector of a tile and f(Partial{}, i, rest) for what is left;
// and prefetch(k) for the elements k of the tile that are `ahead` elements further on.
template <class Isa, class T, class P, class F>
RADAM_HOST_INLINE void for_each_vector(const Tile& tile, std::int64_t ahead, P prefetch, F f) noexcept {
    constexpr std::int64_t width = lanes<Isa, T>();
    const std::int64_t end = tile.end, whole_end = tile.begin + (end - tile.begin) / width * width;
    if constexpr (width == 1) {
        RADAM_INDEPENDENT
        for (std::int64_t i = tile.begin; i < whole_end; ++i) f(Whole{}, i, 1);
    } else {
        std::int64_t i = tile.begin;
        for (; i < whole_end - ahead; i += width) {
            prefetch(i + ahead);
            f(Whole{}, i, width);
        }
        for (; i < whole_end; i += width) f(Whole{}, i, width);
    }
    if (whole_end < end) f(Partial{}, whole_end, end - whole_end);
}

template <class Isa, class F, class Param, class Grad>
void sweep_form(const Tile& tile) noexcept {
    using T = Compute<Param>;
    using V = Vector<Isa, T>;
    const Streams<Param, Grad> s(*tile.slot);
    const ScheduledStep& step = *tile.slot->step;
    Coefficients<V> c;
    if constexpr (std::is_same_v<T, double>)
        c = Coefficients<V>(step.f64);
    else
        c = Coefficients<V>(step.f32);

    const auto prefetch = [&](std::int64_t i) noexcept { s.template prefetch<F::amsgrad>(i); };
    constexpr std::int64_t ahead = step_ahead / static_cast<std::int64_t>(sizeof(T));
    for_each_vector<Isa, T>(tile, ahead, prefetch, [&](auto extent, std::int64_t i, std::int64_t n) noexcept {
        using Extent = decltype(extent);
        V p = Extent::template load<Isa>(s.p + i, n);
        V m = Extent::template load<Isa>(s.m + i, n);
        V v = Extent::template load<Isa>(s.v + i, n);
        V v_max = v;
        if constexpr (F::amsgrad) v_max = Extent::template load<Isa>(s.v_max + i, n);
        update(F{}, p, V(Extent::template load<Isa>(s.g + i, n)), m, v, v_max, c);
        if constexpr (F::mode != Mode::moments_only) Extent::template store<Isa>(s.p + i, p, n);
        Extent::template store<Isa>(s.m + i, m, n);
        Extent::template store<Isa>(s.v + i, v, n);
        if constexpr (F::amsgrad) Extent::template store<Isa>(s.v_max + i, v_max, n);
    });
}

}  // namespace detail

// One step of the law over a tile that is not staged, of two types.
template <class Isa, class Param, class Grad>
void sweep_pair(const Tile& tile) noexcept {
    visit_form(*tile.slot->step,
               [&](auto form) noexcept { detail::sweep_form<Isa, decltype(form), Param, Grad>(tile); });
}

// One step of the law over a tile.
template <class Isa>
void sweep(const Tile& tile) noexcept {
    if (is_staged(*tile.slot)) return sweep_staged<Isa>(tile);
    visit_pair(tile.slot->param_dtype, tile.slot->grad_dtype, [&](auto p, auto g) noexcept {
        sweep_pair<Isa, typename decltype(p)::type, typename decltype(g)::type>(tile);
    });
}

// True when every gradient of a tile is finite: 0 * g is NaN for inf and NaN, and one NaN makes a sum NaN.
template <class Isa, class Grad>
bool sweep_finite_of(const Tile& tile) noexcept {
    using T = Compute<Grad>;
    using V = Vector<Isa, T>;
    const Grad* grad = static_cast<const Grad*>(tile.slot->grad);
    const V zero(T(0));
    V sum(T(0));
    const auto none = [](std::int64_t) noexcept {};  // one stream: the processor sees to it
    detail::for_each_vector<Isa, T>(tile, 0, none, [&](auto extent, std::int64_t i, std::int64_t n) noexcept {
        sum = fma(zero, V(decltype(extent)::template load<Isa>(grad + i, n)), sum);
    });
    T lane[lanes<Isa, T>()];
    store<Isa>(lane, sum);
    bool finite = true;
    for (const T x : lane) finite &= x == T(0);
    return finite;
}

template <class Isa>
bool sweep_finite(const Tile& tile) noexcept {
    bool finite = true;
    visit_float(tile.slot->grad_dtype,
                [&](auto g) noexcept { finite = sweep_finite_of<Isa, typename decltype(g)::type>(tile); });
    return finite;
}

namespace detail {

// Adds the squares of a whole row, one element for each accumulator.
template <class Isa, class Grad>
RADAM_HOST_INLINE void add_row(const Grad* from, double* sums) noexcept {
    if constexpr (std::is_same_v<Grad, double>) {
        for (int i = 0; i < norm_accumulators; ++i) {
            const double x = isa::portable::get(from + i);
            sums[i] = fma(x, x, sums[i]);
        }
    } else {
        float wide[norm_accumulators];
        for (std::int64_t i = 0; i < norm_accumulators; i += lanes<Isa, float>())
            store<Isa>(wide + i, load<Isa>(from + i));
        for (int i = 0; i < norm_accumulators; ++i) {  // the square is exact, so that fused or not is one
            const double x = static_cast<double>(wide[i]);
            sums[i] = sums[i] + x * x;
        }
    }
}

// How far ahead a gradient is asked for: without it a thread gets three quarters of what memory gives.
constexpr std::int64_t norm_ahead = 2048;  // bytes

// Adds n elements. By way of a copy: compilers then keep the sums in registers.
template <class Isa, class Grad>
void add_rows(const Grad* from, std::int64_t n, double* sums) noexcept {
    double here[norm_accumulators];
    std::memcpy(here, sums, sizeof here);
    std::int64_t i = 0;
    for (; i + norm_accumulators <= n; i += norm_accumulators) {
        // Also beyond the end, where nothing is read.
        for (std::size_t b = 0; b < norm_accumulators * sizeof(Grad); b += 64)
            prefetch(reinterpret_cast<const char*>(from + i) + norm_ahead + b);
        add_row<Isa>(from + i, here);
    }
    if (i < n) {
        Grad padded[norm_accumulators] = {};
        std::memcpy(padded, from + i, static_cast<std::size_t>(n - i) * sizeof(Grad));
        add_row<Isa>(padded, here);
    }
    std::memcpy(sums, here, sizeof here);
}

}  // namespace detail

// The sums of the chunks of a tile that begins at one: *sums is that of its first.
template <class Isa, class Grad>
void sweep_squares_of(const Tile& tile, double* sums) noexcept {
    const Grad* const grad = static_cast<const Grad*>(tile.slot->grad);
    for (std::int64_t i = tile.begin; i < tile.end; i += norm_chunk) {
        double added[norm_accumulators] = {};
        detail::add_rows<Isa>(grad + i, tile.end - i < norm_chunk ? tile.end - i : norm_chunk, added);
        *sums++ = add_halves(added);
    }
}

template <class Isa>
void sweep_squares(const Tile& tile, double* sums) noexcept {
    visit_float(tile.slot->grad_dtype,
                [&](auto g) noexcept { sweep_squares_of<Isa, typename decltype(g)::type>(tile, sums); });
}

// The limit that a step is measured against: the same streams read and written, nothing computed.
template <class Isa, class Param, class Grad>
void sweep_limit_pair(const Tile& tile) noexcept {
    using T = Compute<Param>;
    const detail::Streams<Param, Grad> s(*tile.slot);
    const auto prefetch = [&](std::int64_t i) noexcept { s.template prefetch<false>(i); };
    constexpr std::int64_t ahead = detail::limit_ahead / static_cast<std::int64_t>(sizeof(T));
    detail::for_each_vector<Isa, T>(tile, ahead, prefetch, [&](auto extent, std::int64_t i, std::int64_t n) noexcept {
        using Extent = decltype(extent);
        const auto p_i = Extent::template load<Isa>(s.p + i, n), g_i = Extent::template load<Isa>(s.g + i, n);
        const auto m_i = Extent::template load<Isa>(s.m + i, n), v_i = Extent::template load<Isa>(s.v + i, n);
        Extent::template store<Isa>(s.p + i, g_i, n);
        Extent::template store<Isa>(s.m + i, v_i, n);
        Extent::template store<Isa>(s.v + i, p_i + m_i, n);  // one sum, so that all four loads count
    });
}

template <class Isa>
void sweep_limit(const Tile& tile) noexcept {
    if (is_staged(*tile.slot)) return limit_staged<Isa>(tile);
    visit_pair(tile.slot->param_dtype, tile.slot->grad_dtype, [&](auto p, auto g) noexcept {
        sweep_limit_pair<Isa, typename decltype(p)::type, typename decltype(g)::type>(tile);
    });
}

// Loops compiled where they are used, for the processor that this file is compiled for: only those that somebody asks
// for. Dispatched (dispatch.hpp) has the same face.
template <class Isa = isa::native>
struct HeaderOnly {
    // For slots of two types that are not staged.
    template <class Param, class Grad>
    static const Sweeps& of_pair() noexcept {
        static constexpr Sweeps sweeps{sweep_pair<Isa, Param, Grad>, sweep_finite_of<Isa, Grad>,
                                       sweep_squares_of<Isa, Grad>, sweep_limit_pair<Isa, Param, Grad>};
        return sweeps;
    }

    // For any slot.
    static const Sweeps& of_any() noexcept {
        static constexpr Sweeps sweeps{sweep<Isa>, sweep_finite<Isa>, sweep_squares<Isa>, sweep_limit<Isa>};
        return sweeps;
    }

    // For slots that are staged.
    static const Sweeps& staged() noexcept {
        static constexpr Sweeps sweeps{sweep_staged<Isa>, sweep_finite<Isa>, sweep_squares<Isa>, limit_staged<Isa>};
        return sweeps;
    }

    static Executor executor() { return {}; }
};

}  // namespace radam

RADAM_LOOPS_END
