// Steps of LibTorch optimizers for bench/libtorch.py: `libtorch WHO THREADS TENSORS SIZE` takes and times one for each
// line that it reads, and answers with its seconds.
#include <torch/torch.h>

#include <chrono>
#include <iostream>
#include <memory>
#include <radam/torch.hpp>
#include <string>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::unique_ptr<torch::optim::Optimizer> make(const std::string& who, const std::vector<at::Tensor>& params) {
    if (who == "dispatched") return std::make_unique<radam::torch::dispatched::RAdam>(params);
    if (who == "header-only") return std::make_unique<radam::torch::RAdam>(params);
    if (who == "AdamW") return std::make_unique<torch::optim::AdamW>(params);
    return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 5) return 2;
    torch::set_num_threads(std::stoi(argv[2]));
    torch::manual_seed(0);
    std::vector<at::Tensor> params;
    for (int i = 0; i < std::stoi(argv[3]); ++i) {
        params.push_back(torch::randn({std::stoll(argv[4])}, torch::requires_grad()));
        params.back().mutable_grad() = torch::randn({std::stoll(argv[4])}).mul_(0.01);
    }
    const std::unique_ptr<torch::optim::Optimizer> optimizer = make(argv[1], params);
    if (optimizer == nullptr) return 2;
    for (int i = 0; i < 7; ++i) optimizer->step();  // then steps are rectified

    std::cout << "ready" << std::endl;
    for (std::string line; std::getline(std::cin, line);) {
        // Until what ran before has left the cores; see measure.py.
        for (const auto began = Clock::now(); seconds_since(began) < std::stod(line);) optimizer->step();
        const auto start = Clock::now();
        optimizer->step();
        std::cout << seconds_since(start) << std::endl;
    }
}
