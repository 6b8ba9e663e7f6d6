// A network of 64, 128 and 10 neurons learns handwritten digits, with LibTorch's modules and radam's optimizer. In the
// middle both are saved; a second run goes on from there and ends with the same bits.
//     python export_digits.py && ./libtorch_digits digits.bin

#include <torch/torch.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <memory>
#include <radam/torch.hpp>
#include <sstream>
#include <vector>

#include "digits.hpp"

struct Data {
    torch::Tensor images, labels;
};

static Data tensors_of(Digits& digits) {
    const auto rows = static_cast<std::int64_t>(digits.rows), pixels = static_cast<std::int64_t>(digits.pixels);
    return {torch::from_blob(digits.images.data(), {rows, pixels}),
            torch::from_blob(digits.labels.data(), {rows}, torch::kInt).to(torch::kLong)};
}

static torch::nn::Sequential new_network(const Digits& digits) {
    torch::manual_seed(0);
    const auto pixels = static_cast<std::int64_t>(digits.pixels), classes = static_cast<std::int64_t>(digits.classes);
    return torch::nn::Sequential(torch::nn::Linear(pixels, 128), torch::nn::ReLU(), torch::nn::Linear(128, classes));
}

// Weights decay, biases do not.
static radam::torch::RAdam new_optimizer(torch::nn::Sequential& network) {
    std::vector<torch::Tensor> weights, biases;
    for (const auto& p : network->parameters()) (p.dim() > 1 ? weights : biases).push_back(p);
    std::vector<torch::optim::OptimizerParamGroup> groups{{biases}};
    groups.emplace_back(weights, std::make_unique<radam::torch::RAdamOptions>(
                                     radam::torch::RAdamOptions().weight_decay(0.01).decoupled_weight_decay(true)));
    return radam::torch::RAdam(groups, radam::torch::RAdamOptions(5e-3));
}

static void train(torch::nn::Sequential& network, torch::optim::Optimizer& optimizer, const Data& data,
                  std::int64_t rows, int first_epoch, int last_epoch) {
    constexpr std::int64_t batch = 32;
    for (int epoch = first_epoch; epoch < last_epoch; ++epoch) {
        torch::manual_seed(static_cast<std::uint64_t>(1 + epoch));
        const torch::Tensor order = torch::randperm(rows);
        for (std::int64_t at = 0; at < rows; at += batch) {
            const torch::Tensor some = order.slice(0, at, std::min(at + batch, rows));
            optimizer.zero_grad();
            const torch::Tensor guesses = network->forward(data.images.index_select(0, some));
            torch::nn::functional::cross_entropy(guesses, data.labels.index_select(0, some)).backward();
            optimizer.step();
        }
    }
}

static bool same_parameters(const torch::nn::Sequential& a, const torch::nn::Sequential& b) {
    const auto x = a->parameters(), y = b->parameters();
    for (std::size_t i = 0; i < x.size(); ++i)
        if (!torch::equal(x[i], y[i])) return false;
    return true;
}

int main(int count, char** arguments) try {
    Digits digits = read_digits(count > 1 ? arguments[1] : "digits.bin");
    const Data data = tensors_of(digits);
    const auto rows = static_cast<std::int64_t>(digits.for_training());

    torch::nn::Sequential network = new_network(digits);
    radam::torch::RAdam optimizer = new_optimizer(network);
    train(network, optimizer, data, rows, 0, 5);
    std::stringstream saved_network, saved_optimizer;
    torch::save(network, saved_network);
    torch::save(optimizer, saved_optimizer);
    train(network, optimizer, data, rows, 5, 10);

    torch::nn::Sequential second = new_network(digits);
    torch::load(second, saved_network);
    radam::torch::RAdam resumed = new_optimizer(second);
    torch::load(resumed, saved_optimizer);
    train(second, resumed, data, rows, 5, 10);

    const torch::NoGradGuard no_grad;
    const torch::Tensor guesses = network->forward(data.images.slice(0, rows)).argmax(1);
    const double accuracy = guesses.eq(data.labels.slice(0, rows)).to(torch::kDouble).mean().item<double>();
    const bool same = same_parameters(network, second);
    std::printf("%.1f %% of unseen digits read right\n", 100 * accuracy);
    std::printf("the resumed run has the same bits: %s\n", same ? "yes" : "no");
    return accuracy >= 0.95 && same ? 0 : 1;
} catch (const std::exception& error) {
    std::fprintf(stderr, "libtorch_digits: %s\n", error.what());
    return 1;
}
