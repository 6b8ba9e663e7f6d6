// Trains one array and prints the instruction set of its loops and the bits it has at the end.
#include <radam/radam.hpp>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#if defined(CONSUMER_OF_dispatch)
#include <radam/dispatch.hpp>
using Optimizer = radam::dispatched::Optimizer;
#else
using Optimizer = radam::Optimizer;
#endif

int main() {
    std::vector<float> w = {1.0f, -2.0f, 0.5f, 3.0f, -0.25f, 8.0f, -1.5f, 0.125f, 5.0f};
    std::vector<float> grad(w.size());
    radam::Options options;
    options.lr = 0.1;
    Optimizer optimizer(options);
    optimizer.add_param(w.data(), grad.data(), static_cast<std::int64_t>(w.size()));
    for (int step = 0; step < 20; ++step) {
        for (std::size_t i = 0; i < w.size(); ++i) grad[i] = 2.0f * w[i];
        optimizer.step();
    }

#if defined(CONSUMER_OF_dispatch)
    std::printf("%s", radam::current_isa().c_str());
#else
    std::printf("%s", radam::isa::native::name);
#endif
    for (const float x : w) {
        std::uint32_t bits = 0;
        std::memcpy(&bits, &x, sizeof bits);
        std::printf(" %08x", static_cast<unsigned>(bits));
    }
    std::printf("\n");
    return 0;
}
