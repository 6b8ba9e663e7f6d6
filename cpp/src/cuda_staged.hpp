// Steps over tables with entries that are stored in fewer bits, or whose gradients are cut: staged.hpp as a GPU does
// it. 32 threads, a warp, do a block of 128 elements, four each.
#pragma once

#include "cuda_stored.hpp"

namespace radam::cuda {

// ---- a step

// What a thread keeps of a block while the warp looks for its largest magnitudes.
struct Lane {
    float p[fours], m[fours], v[fours], v_max[fours];
    std::uint32_t most[3];
};

RADAM_KERNEL_INLINE void step_lane(const StagedPart& part, const ScheduledStep& step, const Place& place,
                                   Lane& lane) noexcept {
    const struct {
        Mode mode;
        bool coupled, amsgrad, nesterov, flushes;
    } form{step.mode, step.coupled, step.amsgrad, step.nesterov, part.moments != Moments::coded};
    float g[fours];
    weights_from(part, place, lane.p);
    numbers_from(part.grad_dtype, part.grad, place, g);
    moments_from(part, part.exp_avg, part.exp_avg_scale, false, place, lane.m);
    moments_from(part, part.exp_avg_sq, part.exp_avg_sq_scale, true, place, lane.v);
    if (form.amsgrad) moments_from(part, part.max_exp_avg_sq, part.max_exp_avg_sq_scale, true, place, lane.v_max);
    lane.most[0] = lane.most[1] = lane.most[2] = 0;
    RADAM_UNROLL
    for (int k = 0; k < fours; ++k) {
        read_again();
        const float cut = part.cut;
        g[k] = g[k] > cut ? cut : g[k] < -1.0f * cut ? -1.0f * cut : g[k];
        update(form, lane.p[k], g[k], lane.m[k], lane.v[k], lane.v_max[k], step.f32);
        if (part.moments != Moments::coded) continue;
        if (is_lost(lane.m[k], form.amsgrad ? lane.v_max[k] : lane.v[k])) {
            lane.m[k] = 0.0f;
            lane.v[k] = lane.v_max[k] = number_of(infinity_bits);
            continue;
        }
        lane.most[0] = greater(lane.most[0], magnitude_bits(lane.m[k]));
        lane.most[1] = greater(lane.most[1], magnitude_bits(lane.v[k]));
        if (form.amsgrad) lane.most[2] = greater(lane.most[2], magnitude_bits(lane.v_max[k]));
    }
}

RADAM_KERNEL_INLINE void keep_lane(const StagedPart& part, const ScheduledStep& step, const WarpScratch& own,
                                   std::uint32_t word, const Place& place, const Lane& lane) noexcept {
    if (place.count <= 0) return;
    if (step.mode != Mode::moments_only) put_weights(part, own, place, lane.p);
    put_moments(part, own, part.exp_avg, part.exp_avg_scale, false, word, lane.most[0], place, lane.m);
    put_moments(part, own, part.exp_avg_sq, part.exp_avg_sq_scale, true, word, lane.most[1], place, lane.v);
    if (step.amsgrad)
        put_moments(part, own, part.max_exp_avg_sq, part.max_exp_avg_sq_scale, true, word, lane.most[2], place,
                    lane.v_max);
}

// fp64 is stored as it is; its gradients may be cut.
RADAM_KERNEL_INLINE void step_wide(const StagedPart& part, const ScheduledStep& step, std::int32_t i) noexcept {
    const auto at = [i](const char* stream) noexcept {
        return on_device(reinterpret_cast<double*>(const_cast<char*>(stream)) + i);
    };
    read_again();
    double p = *at(part.param), g = *at(part.grad), m = *at(part.exp_avg), v = *at(part.exp_avg_sq), v_max = v;
    if (step.amsgrad) v_max = *at(part.max_exp_avg_sq);
    const double cut = part.cut_wide;
    g = g > cut ? cut : g < -1.0 * cut ? -1.0 * cut : g;
    update(step, p, g, m, v, v_max, step.f64);
    if (step.mode != Mode::moments_only) *at(part.param) = p;
    *at(part.exp_avg) = m;
    *at(part.exp_avg_sq) = v;
    if (step.amsgrad) *at(part.max_exp_avg_sq) = v_max;
}

// The blocks of a part that one warp does.
template <class Warp>
RADAM_KERNEL_INLINE void step_blocks(StagedScratch& scratch, const Warp& warp) noexcept {
    const StagedPart& part = scratch.part;
    WarpScratch& own = scratch.warps[warp.index()];
    const auto blocks = static_cast<std::int32_t>(blocks_of(part.size));
    std::int32_t turn = 0;
    for (std::int32_t at = warp.index(); at < blocks; at += warp.warps(), turn = (turn + 1) % warp_size) {
        const std::int64_t first = part.first + at * block_size;
        if (part.moments != Moments::full && turn == 0)
            warp.each([&](int lane) noexcept {
                own.moments[lane] =
                    part.of_moments.of_block(static_cast<std::uint64_t>(part.first_drawn + at + lane * warp.warps()));
            });
        if (!part.spreads_here) spread_words(part, warp, first, own.spread);
        if (part.weights == Weights::stochastic) draw_weights(part, warp, first, own.weights);
        warp.template keeps<Lane>(
            part.moments == Moments::coded,
            [&](int lane, Lane& kept) noexcept { step_lane(part, scratch.plain.step, place_of(part, at, lane), kept); },
            [&](int lane, const Lane& kept) noexcept {
                keep_lane(part, scratch.plain.step, own, own.moments[turn], place_of(part, at, lane), kept);
            });
    }
}

template <class Block>
RADAM_KERNEL_INLINE void step_staged_table(const TableView& table, const Block& block,
                                           StagedScratch& scratch) noexcept {
    step_unless_skipped(table, block, scratch.plain, [&]() noexcept {
        for_each_tile(
            table, block, scratch.plain,
            [&](const Entry& entry, std::uint32_t tile) noexcept {
                take_part(entry, tile, scratch);
                take_step(entry, scratch.plain);
                take_numbers(scratch);
            },
            [&]() noexcept {
                if (scratch.part.param_dtype == DType::fp64)
                    block.each([&](int thread, int threads) noexcept {
                        RADAM_NO_UNROLL
                        for (std::int32_t i = thread; i < scratch.part.size; i += threads)
                            step_wide(scratch.part, scratch.plain.step, i);
                    });
                else
                    block.each_warp([&](const auto& warp) noexcept { step_blocks(scratch, warp); });
            });
    });
}

// ---- the limit of such a step: the same streams read and written, nothing computed

template <class Storage>
RADAM_KERNEL_INLINE void change(char* stream, const Place& place, std::uint32_t by) noexcept {
    auto four = four_from<Storage>(stream, place);
    RADAM_UNROLL
    for (int k = 0; k < fours; ++k) four.x[k] = static_cast<Storage>(four.x[k] ^ static_cast<Storage>(by));
    put_four(four, stream, place);
}

RADAM_KERNEL_INLINE void change(int itemsize, char* stream, const Place& place, std::uint32_t by) noexcept {
    if (itemsize == 1) change<std::uint8_t>(stream, place, by);
    if (itemsize == 2) change<std::uint16_t>(stream, place, by);
    if (itemsize == 4) change<std::uint32_t>(stream, place, by);
}

template <class Storage>
RADAM_KERNEL_INLINE std::uint32_t seen_in(const char* stream, const Place& place) noexcept {
    const auto four = four_from<Storage>(stream, place);
    return std::uint32_t{four.x[0]} ^ four.x[1] ^ four.x[2] ^ four.x[3];
}

RADAM_KERNEL_INLINE void limit_lane(const StagedPart& part, const Place& place) noexcept {
    const int m = size_of(moment_dtype(part.param_dtype, part.moments, false));
    const std::uint32_t seen = size_of(part.grad_dtype) == 2 ? seen_in<std::uint16_t>(part.grad, place)
                                                             : seen_in<std::uint32_t>(part.grad, place);
    change(size_of(part.param_dtype), part.param, place, seen);
    change(m, part.exp_avg, place, ~0u);
    change(m, part.exp_avg_sq, place, ~0u);
    change(size_of(part.weights), part.master, place, ~0u);
    if (part.moments != Moments::coded || place.count <= 0 || place.at % block_size != 0) return;
    for (float* const scales : {part.exp_avg_scale, part.exp_avg_sq_scale}) {
        float* const scale = on_device(scales + place.at / block_size);
        *scale = 0.5f * *scale;
    }
}

template <class Block>
RADAM_KERNEL_INLINE void limit_staged_table(const TableView& table, const Block& block,
                                            StagedScratch& scratch) noexcept {
    for_each_tile(
        table, block, scratch.plain,
        [&](const Entry& entry, std::uint32_t tile) noexcept { take_part(entry, tile, scratch); },
        [&]() noexcept {
            block.each([&](int thread, int threads) noexcept {
                const StagedPart& part = scratch.part;
                if (part.param_dtype == DType::fp64) {
                    for (std::int32_t i = thread; i < part.size; i += threads) {
                        const auto at = [i](const char* stream) noexcept {
                            return on_device(reinterpret_cast<double*>(const_cast<char*>(stream)) + i);
                        };
                        const double g = *at(part.grad), m = *at(part.exp_avg);
                        *at(part.exp_avg) = *at(part.exp_avg_sq);
                        *at(part.exp_avg_sq) = *at(part.param) + m;
                        *at(part.param) = g;
                    }
                    return;
                }
                const auto blocks = static_cast<std::int32_t>(blocks_of(part.size));
                for (std::int32_t i = thread; i < blocks * warp_size; i += threads)
                    limit_lane(part, place_of(part, i / warp_size, i % warp_size));
            });
        });
}

}  // namespace radam::cuda
