// The training of docs/same_bits.md. Writes the parameters to the standard output; with an argument moments have 8 bits
// and gradients are clipped.
#include <radam/radam.hpp>

#include <cstdio>
#include <vector>

namespace {

constexpr int size = 100003;

// One operation at a time, as NumPy does it: what goes through volatile memory cannot become a fused multiply-add.
float rounded(float x) {
    volatile float stored = x;
    return stored;
}

void find_gradient(const std::vector<float>& x, std::vector<float>& gradient) {
    gradient[0] = 0;
    for (int k = 0; k + 1 < size; ++k) {
        const float d = x[k + 1] - rounded(x[k] * x[k]);
        gradient[k] -= rounded(16 * rounded(x[k] * d)) + rounded(2 * (1 - x[k]));
        gradient[k + 1] = 8 * d;
    }
}

}  // namespace

int main(int count, char**) {
    std::vector<float> x(size), gradient(size);
    for (long k = 0; k < size; ++k) x[k] = static_cast<float>(static_cast<double>(k * 977 % 2003 - 1001) / 1024);
    radam::Optimizer optimizer({0.02});
    if (count > 1) {
        radam::Precision precision;
        precision.state_dtype = radam::StateDType::eight_bit;
        optimizer.set_precision(precision);
        optimizer.set_max_grad_norm(2000.0);
    }
    optimizer.add_param(x.data(), gradient.data(), size);
    for (int t = 0; t < 100; ++t) {
        find_gradient(x, gradient);
        optimizer.step();
    }
    return std::fwrite(x.data(), sizeof(float), size, stdout) == size ? 0 : 1;
}
