// Steps of radam::Optimizer beside the limit, in turns; prints the seconds of each as JSON. See bench/embedding.py.
//
//     header_only PARAMETERS ROUNDS THREADS...
#include <radam/radam.hpp>
#include <radam/thread_pool.hpp>

#include <chrono>
#include <cstdio>
#include <cstdlib>

namespace {

constexpr std::size_t arrays = 4;
constexpr double warm_seconds = 0.02;  // before each timed step, so that both find the machine alike

struct Array {
    radam::Zeros memory;
    float* data() const { return static_cast<float*>(memory.data()); }
};

template <class Step>
double timed(const Step& step) {
    using clock = std::chrono::steady_clock;
    const auto began = clock::now();
    do step();
    while (std::chrono::duration<double>(clock::now() - began).count() < warm_seconds);
    const auto start = clock::now();
    step();
    return std::chrono::duration<double>(clock::now() - start).count();
}

void print(const char* name, const std::vector<double>& seconds, const char* end) {
    std::printf("\"%s\": [", name);
    for (std::size_t i = 0; i < seconds.size(); ++i) std::printf("%s%.9f", i == 0 ? "" : ", ", seconds[i]);
    std::printf("]%s", end);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 4) return 2;
    const long long parameters = std::atoll(argv[1]);
    const int rounds = std::atoi(argv[2]);
    const std::int64_t size = parameters / static_cast<long long>(arrays);
    const auto bytes = static_cast<std::size_t>(size) * sizeof(float);
    Array params[arrays], grads[arrays];
    radam::Optimizer optimizer;
    for (std::size_t a = 0; a < arrays; ++a) {
        params[a].memory = radam::Zeros(bytes);
        grads[a].memory = radam::Zeros(bytes);
        for (std::int64_t i = 0; i < size; ++i) {
            params[a].data()[i] = 0.001f * static_cast<float>(i % 1999) - 1.0f;
            grads[a].data()[i] = 0.0001f * static_cast<float>(i % 4001) - 0.2f;
        }
        optimizer.add_param(params[a].data(), grads[a].data(), size);
    }
    for (int i = 0; i < 10; ++i) optimizer.step();  // until it is rectified

    // The limit moves other memory of the same kind about, so that the optimizer keeps numbers like those of training.
    Array moved[arrays][4];
    std::vector<radam::Slot> slots;
    const radam::ScheduledStep step = radam::schedule({}, 100);
    for (auto& streams : moved) {
        for (Array& stream : streams) stream.memory = radam::Zeros(bytes);
        radam::Slot slot;
        slot.param = streams[0].data();
        slot.grad = streams[1].data();
        slot.exp_avg = streams[2].data();
        slot.exp_avg_sq = streams[3].data();
        slot.size = size;
        slot.step = &step;
        slots.push_back(slot);
    }

    std::printf("{\"isa\": \"%s\"", radam::isa::native::name);
    for (int k = 3; k < argc; ++k) {
        radam::ThreadPool pool(std::atoi(argv[k]));
        const radam::Executor executor = pool.executor();
        optimizer.set_executor(executor);
        const auto limit = [&] {
            radam::limit(executor, radam::HeaderOnly<>::of_pair<float, float>(), slots.data(), slots.size());
        };
        const auto ours = [&] { optimizer.step(); };
        std::vector<double> limit_seconds, our_seconds;
        for (int round = 0; round < rounds; ++round) {  // each goes first in half of the rounds
            if (round % 2 == 0) limit_seconds.push_back(timed(limit));
            our_seconds.push_back(timed(ours));
            if (round % 2 != 0) limit_seconds.push_back(timed(limit));
        }
        std::printf(", \"%s\": {", argv[k]);
        print("limit", limit_seconds, ", ");
        print("radam::Optimizer", our_seconds, "}");
    }
    std::printf("}\n");
}
