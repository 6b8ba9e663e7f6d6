// A network of 64, 128 and 10 neurons learns handwritten digits: loops of its own go forward and backward, radam steps.
// In the middle it is saved; a second run goes on from there and ends with the same bits.
//     python export_digits.py && ./mlp_digits digits.bin

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <numeric>
#include <radam/radam.hpp>
#include <radam/saved.hpp>
#include <random>

#include "digits.hpp"

struct Layer {
    std::size_t inputs, outputs;
    std::vector<float> weights, bias, weights_grad, bias_grad;

    Layer(std::size_t ins, std::size_t outs, std::mt19937& random)
        : inputs(ins), outputs(outs), weights(ins * outs), bias(outs), weights_grad(ins * outs), bias_grad(outs) {
        const float most = std::sqrt(6.0f / static_cast<float>(ins));  // as He et al. do before a ReLU
        for (float& weight : weights) weight = most * (static_cast<float>(random()) * 0x1p-31f - 1.0f);
    }

    void forward(const float* x, float* y) const {
        for (std::size_t o = 0; o < outputs; ++o)
            y[o] = std::inner_product(x, x + inputs, &weights[o * inputs], bias[o]);
    }

    // From the gradient of y: adds to those of weights and bias, and to that of x unless dx is null.
    void backward(const float* x, const float* dy, float* dx) {
        for (std::size_t o = 0; o < outputs; ++o) {
            bias_grad[o] += dy[o];
            for (std::size_t i = 0; i < inputs; ++i) weights_grad[o * inputs + i] += dy[o] * x[i];
            for (std::size_t i = 0; dx != nullptr && i < inputs; ++i) dx[i] += dy[o] * weights[o * inputs + i];
        }
    }
};

struct Network {
    std::mt19937 random{0};
    Layer first{64, 128, random}, second{128, 10, random};
    float hidden[128], logits[10];

    std::ptrdiff_t guess(const float* image) {
        first.forward(image, hidden);
        for (float& h : hidden) h = std::max(h, 0.0f);
        second.forward(hidden, logits);
        return std::max_element(logits, logits + 10) - logits;
    }

    // After guess: adds the gradient of scale * the cross-entropy of softmax(logits) and the label.
    void backward(const float* image, std::int32_t label, float scale) {
        const float most = *std::max_element(logits, logits + 10);
        float gradient[10], hidden_gradient[128] = {}, sum = 0.0f;
        for (int c = 0; c < 10; ++c) sum += gradient[c] = std::exp(logits[c] - most);
        for (int c = 0; c < 10; ++c) gradient[c] = scale * (gradient[c] / sum - (c == label ? 1.0f : 0.0f));
        second.backward(hidden, gradient, hidden_gradient);
        for (int h = 0; h < 128; ++h)
            if (hidden[h] == 0.0f) hidden_gradient[h] = 0.0f;
        first.backward(image, hidden_gradient, nullptr);
    }
};

// Two groups: weights decay, biases do not.
radam::Optimizer optimizer_of(Network& network) {
    radam::Options weights, biases;
    weights.weight_decay = 1e-2;
    weights.decoupled_weight_decay = true;
    radam::Optimizer optimizer(weights);
    optimizer.add_param(network.first.weights, network.first.weights_grad, {"first.weights", {128, 64}});
    optimizer.add_param(network.second.weights, network.second.weights_grad, {"second.weights", {10, 128}});
    optimizer.add_group(biases);
    optimizer.add_param(network.first.bias, network.first.bias_grad, {"first.bias"});
    optimizer.add_param(network.second.bias, network.second.bias_grad, {"second.bias"});
    return optimizer;
}

constexpr int epochs = 20;

void train(Network& network, radam::Optimizer& optimizer, const Digits& digits, int from, int to) {
    constexpr std::size_t batch = 32;
    std::vector<std::size_t> order(digits.for_training());
    for (int epoch = from; epoch < to; ++epoch) {
        std::iota(order.begin(), order.end(), std::size_t{0});
        std::shuffle(order.begin(), order.end(), std::mt19937(static_cast<unsigned>(epoch)));
        optimizer.set_lr(0.005 * (1.0 + std::cos(3.14159 * epoch / epochs)));  // of both groups: from 0.01 to 0

        for (std::size_t begin = 0; begin + batch <= order.size(); begin += batch) {
            for (Layer* layer : {&network.first, &network.second})
                for (auto* gradient : {&layer->weights_grad, &layer->bias_grad})
                    std::fill(gradient->begin(), gradient->end(), 0.0f);
            for (std::size_t i = begin; i < begin + batch; ++i) {
                network.guess(digits.image(order[i]));
                network.backward(digits.image(order[i]), digits.labels[order[i]], 1.0f / batch);
            }
            optimizer.step();
        }
    }
}

int main(int count, char** arguments) {
    try {
        const Digits digits = read_digits(count > 1 ? arguments[1] : "digits.bin");
        Network network;
        radam::Optimizer optimizer = optimizer_of(network);
        train(network, optimizer, digits, 0, epochs / 2);

        radam::save(optimizer, "mlp_digits.safetensors");  // settings, moments, step counts; the weights you keep
        Network resumed = network;
        train(network, optimizer, digits, epochs / 2, epochs);

        radam::Optimizer other = optimizer_of(resumed);
        radam::load(other, "mlp_digits.safetensors");
        std::remove("mlp_digits.safetensors");
        train(resumed, other, digits, epochs / 2, epochs);

        std::size_t right = 0;
        for (std::size_t row = digits.for_training(); row < digits.rows; ++row)
            right += network.guess(digits.image(row)) == digits.labels[row];
        const double accuracy = static_cast<double>(right) / digits.for_testing;
        const bool same = resumed.first.weights == network.first.weights && resumed.first.bias == network.first.bias &&
                          resumed.second.weights == network.second.weights &&
                          resumed.second.bias == network.second.bias;
        std::printf("%.1f %% of unseen digits read right\n", 100 * accuracy);
        std::printf("the resumed run has the same bits: %s\n", same ? "yes" : "no");
        return accuracy >= 0.95 && same ? 0 : 1;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "mlp_digits: %s\n", error.what());
        return 1;
    }
}
