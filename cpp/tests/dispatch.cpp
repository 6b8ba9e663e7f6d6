// The compiled library: every instruction set and thread count gives the same bits, and wrong names are refused.
#include <radam/dispatch.hpp>

#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "expect.hpp"

namespace {

struct Model {
    std::vector<std::vector<float>> p, g, m, v;

    Model() {
        for (const std::size_t n : {1u, 100000u, 33u, 70001u}) {
            p.emplace_back(n);
            g.emplace_back(n);
            m.emplace_back(n, 0.0f);
            v.emplace_back(n, 0.0f);
            for (std::size_t i = 0; i < n; ++i) {
                p.back()[i] = 0.001f * static_cast<float>((i * 7919) % 4001) - 2.0f;
                g.back()[i] = 0.0007f * static_cast<float>((i * 104729) % 3001) - 1.0f;
            }
        }
    }

    void train(int steps) {
        const radam::Hyperparameters h;
        for (int t = 1; t <= steps; ++t) {
            const radam::ScheduledStep step = radam::schedule(h, t);
            std::vector<radam::Slot> slots(p.size());
            for (std::size_t i = 0; i < p.size(); ++i) {
                slots[i].param = p[i].data();
                slots[i].grad = g[i].data();
                slots[i].exp_avg = m[i].data();
                slots[i].exp_avg_sq = v[i].data();
                slots[i].size = static_cast<std::int64_t>(p[i].size());
                slots[i].step = &step;
            }
            EXPECT(radam::first_nonfinite(slots.data(), slots.size()) == slots.size());
            radam::step(slots.data(), slots.size());
        }
    }

    bool operator==(const Model& other) const { return p == other.p && m == other.m && v == other.v; }
};

template <class F>
bool refuses(F f) {
    try {
        f();
    } catch (const std::invalid_argument&) {
        return true;
    }
    return false;
}

}  // namespace

int main() {
    Model expected;
    radam::set_num_threads(1);
    expected.train(12);
    for (const std::string& isa : radam::isas()) {
        radam::set_isa(isa);
        EXPECT(radam::current_isa() == isa);
        for (const int threads : {1, 2, 3, 16}) {
            radam::set_num_threads(threads);
            Model model;
            model.train(12);
            EXPECT(model == expected);
        }
    }

    radam::set_num_threads(4);
    std::vector<Model> models(4);  // several optimizers at once share one pool, or go without it
    std::vector<std::thread> trainers;
    for (Model& model : models) trainers.emplace_back([&model] { model.train(12); });
    for (std::thread& trainer : trainers) trainer.join();
    for (const Model& model : models) EXPECT(model == expected);

    EXPECT(refuses([] { radam::set_isa("sse9"); }));
    EXPECT(refuses([] { radam::set_num_threads(0); }));
    EXPECT(refuses([] { radam::set_num_threads(1025); }));
    return failures == 0 ? 0 : 1;
}
