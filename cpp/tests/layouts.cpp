// Memory layouts: what is dense, what overlaps itself, and copies there and back.
#include <radam/layout.hpp>

#include <vector>

#include "expect.hpp"

namespace {

using Dims = std::vector<std::int64_t>;

radam::Layout layout(const Dims& shape, const Dims& strides) {
    return {static_cast<int>(shape.size()), shape.data(), strides.empty() ? nullptr : strides.data(), 4};
}

struct Case {
    Dims shape, strides;
    bool c_contiguous, dense, overlaps;
};

void knows_every_kind_of_layout() {
    const Case cases[] = {
        {{3, 4}, {}, true, true, false},
        {{3, 4}, {16, 4}, true, true, false},
        {{3, 4}, {4, 12}, false, true, false},                 // transposed
        {{3, 4}, {32, 8}, false, false, false},                // gaps
        {{5}, {-4}, false, false, false},                      // reversed
        {{3, 4}, {0, 4}, false, false, true},                  // expanded
        {{4, 3}, {4, 4}, false, false, true},                  // sliding windows
        {{2, 3}, {12, 8}, false, false, false},                // interleaved without overlap
        {{2, 3, 4, 5}, {240, 4, 60, 12}, false, true, false},  // channels last
        {{1, 4}, {999, 4}, true, true, false},                 // the stride of a single row means nothing
        {{0, 4}, {0, 0}, true, true, false},
        {{}, {}, true, true, false},
    };
    for (const Case& c : cases) {
        const radam::Layout a = layout(c.shape, c.strides);
        EXPECT(radam::is_c_contiguous(a) == c.c_contiguous);
        EXPECT(radam::is_dense(a, radam::memory_order(a)) == c.dense);
        EXPECT(radam::overlaps_itself(a) == c.overlaps);
    }
}

void copies_there_and_back() {
    std::vector<float> memory(64);
    for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<float>(i);
    const Dims shape{2, 3, 4}, strides{-96, 4, 20};  // from element 30 on: rows go backwards
    const radam::Layout a = layout(shape, strides);
    for (const std::vector<int>& order : {std::vector<int>{0, 1, 2}, std::vector<int>{2, 0, 1}}) {
        std::vector<float> packed(24), expected;
        radam::gather(a, memory.data() + 30, order, packed.data());
        std::int64_t index[3];
        for (index[order[0]] = 0; index[order[0]] < shape[static_cast<std::size_t>(order[0])]; ++index[order[0]])
            for (index[order[1]] = 0; index[order[1]] < shape[static_cast<std::size_t>(order[1])]; ++index[order[1]])
                for (index[order[2]] = 0; index[order[2]] < shape[static_cast<std::size_t>(order[2])];
                     ++index[order[2]])
                    expected.push_back(static_cast<float>(30 - 24 * index[0] + index[1] + 5 * index[2]));
        EXPECT(packed == expected);

        std::vector<float> changed = memory;
        for (float& x : packed) x += 100.0f;
        radam::scatter(a, changed.data() + 30, order, packed.data());
        for (std::size_t i = 0; i < memory.size(); ++i) {
            const bool inside = std::find(expected.begin(), expected.end(), memory[i]) != expected.end();
            EXPECT(changed[i] == memory[i] + (inside ? 100.0f : 0.0f));
        }
    }
}

bool countable(const Dims& shape, const Dims& strides = {}) { return radam::is_countable(layout(shape, strides)); }

void refuses_what_no_memory_holds() {
    const std::int64_t huge = std::int64_t{1} << 62;
    const Dims empty{huge, 4, 0};
    EXPECT(countable({3, 4}));
    EXPECT(countable(empty));
    EXPECT(radam::element_count(layout(empty, {})) == 0);
    EXPECT(!countable({huge, 2}));
    EXPECT(!countable({std::int64_t{1} << 32, std::int64_t{1} << 32}));
    EXPECT(!countable({-1, 2}));
    EXPECT(!countable({3}, {huge}));
    EXPECT(!countable({3, 3}, {-(huge / 3), huge / 3}));
}

void finds_exact_overlaps() {
    const Dims five{5}, every_second{8};
    const radam::Layout a = layout(five, every_second);
    radam::Occupancy occupancy(44, radam::common_unit(a, 0));
    EXPECT(occupancy.take(a, 0));
    EXPECT(occupancy.is_free(a, 4));
    EXPECT(!occupancy.is_free(a, 8));
    EXPECT(occupancy.take(a, 4));
    EXPECT(!occupancy.take(a, 4));
}

}  // namespace

int main() {
    knows_every_kind_of_layout();
    copies_there_and_back();
    refuses_what_no_memory_holds();
    finds_exact_overlaps();
    return failures == 0 ? 0 : 1;
}
