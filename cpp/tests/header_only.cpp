// The headers alone, without xsimd, exceptions or RTTI: an embedder's smallest build steps a parameter and gives the
// bits of the law in scalars.
#include <radam/radam.hpp>

#include <cstring>
#include <vector>

#include "expect.hpp"

namespace {

struct Buffers {
    std::vector<float> p, g, m, v;

    explicit Buffers(std::size_t n) : p(n), g(n), m(n), v(n) {
        for (std::size_t i = 0; i < n; ++i) {
            p[i] = 0.37f * static_cast<float>(i % 29) - 4.1f;
            g[i] = 0.013f * static_cast<float>(i % 17) - 0.09f;
        }
    }
};

void steps_as_the_scalar_law_does() {
    radam::Hyperparameters h;
    h.lr = 0.01;
    h.weight_decay = 0.1;
    for (const std::size_t n : {0u, 1u, 7u, 64u, 1003u}) {
        Buffers a(n), b(n);
        for (int t = 1; t <= 20; ++t) {
            const radam::ScheduledStep step = radam::schedule(h, t);
            radam::Slot slot;
            slot.param = a.p.data();
            slot.grad = a.g.data();
            slot.exp_avg = a.m.data();
            slot.exp_avg_sq = a.v.data();
            slot.size = static_cast<std::int64_t>(n);
            slot.step = &step;
            radam::step(slot);

            for (std::size_t i = 0; i < n; ++i) {
                float unused = 0.0f;
                if (step.mode == radam::Mode::rectified)
                    radam::update(radam::Form<radam::Mode::rectified, true, false, false>{}, b.p[i], b.g[i], b.m[i],
                                  b.v[i], unused, step.f32);
                else
                    radam::update(radam::Form<radam::Mode::momentum, true, false, false>{}, b.p[i], b.g[i], b.m[i],
                                  b.v[i], unused, step.f32);
            }
        }
        const std::size_t bytes = n * sizeof(float);
        EXPECT(bytes == 0 || std::memcmp(a.p.data(), b.p.data(), bytes) == 0);
        EXPECT(bytes == 0 || std::memcmp(a.m.data(), b.m.data(), bytes) == 0);
        EXPECT(bytes == 0 || std::memcmp(a.v.data(), b.v.data(), bytes) == 0);
    }
}

void rectifies_from_step_six() {
    const radam::Hyperparameters h;
    EXPECT(radam::schedule(h, 5).mode == radam::Mode::momentum);
    EXPECT(radam::schedule(h, 6).mode == radam::Mode::rectified);
}

void names_a_bad_hyperparameter() {
    radam::Hyperparameters h;
    EXPECT(radam::violation(h).name == nullptr);
    h.beta2 = 1.0;
    EXPECT(std::strcmp(radam::violation(h).name, "beta2") == 0);
}

}  // namespace

int main() {
    steps_as_the_scalar_law_does();
    rectifies_from_step_six();
    names_a_bad_hyperparameter();
    return failures == 0 ? 0 : 1;
}
