// A thousand steps of everything that a step can be, as hashes that are pinned in same_bits_hashes.hpp: every
// processor, compiler, instruction set and thread count gives these. All inputs are made from integers. Compiled with
// RADAM_TEST_DISPATCHED it runs the compiled library's loops, else those of the headers. With --print it prints what
// same_bits_hashes.hpp should hold.
#include <radam/codec.hpp>
#if defined(RADAM_TEST_DISPATCHED)
#include <radam/dispatch.hpp>
#else
#include <radam/sweep.hpp>
#include <radam/thread_pool.hpp>
#endif

#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "expect.hpp"
#include "same_bits_hashes.hpp"

namespace {

using namespace radam;

constexpr int steps = 1000;
// Less than a vector, vectors with a tail, whole blocks, blocks with a tail.
constexpr std::int64_t sizes[] = {1, 7, 128, 131, 1003};
constexpr std::int64_t largest_size = 1003;
constexpr std::int64_t shared_from = 64 * 1024;  // elements: with fewer, threads would have nothing to do

// ---- what there is to step

// How a parameter is stored.
struct Kind {
    DType param, grad;
    Moments moments;
    Weights weights;

    std::string name() const {
        constexpr const char* moment_names[] = {"full", "bf16", "coded"};
        constexpr const char* weight_names[] = {"plain", "stochastic", "split", "master"};
        return std::string(name_of(param)) + "/" + name_of(grad) + " " + moment_names[static_cast<int>(moments)] + " " +
               weight_names[static_cast<int>(weights)];
    }
};

std::vector<Kind> all_kinds() {
    std::vector<Kind> kinds{{DType::fp64, DType::fp64, Moments::full, Weights::plain}};
    for (const Moments moments : {Moments::full, Moments::bf16, Moments::coded})
        for (const DType grad : {DType::fp32, DType::bf16, DType::fp16}) {
            kinds.push_back({DType::fp32, grad, moments, Weights::plain});
            for (const Weights weights : {Weights::plain, Weights::stochastic, Weights::split})
                kinds.push_back({DType::bf16, grad, moments, weights});
            for (const Weights weights : {Weights::plain, Weights::stochastic, Weights::master})
                kinds.push_back({DType::fp16, grad, moments, weights});
        }
    return kinds;
}

// A form of the law, with numbers.
struct Law {
    const char* name;
    Hyperparameters h;
    double most_norm = no_limit, most_value = no_limit;
    bool finite = true;  // false: gradients hold infinities and NaNs
};

std::vector<Law> all_laws() {
    Hyperparameters base;
    base.lr = 0.01;
    const Hyperparameters plain = base;
    base.weight_decay = 0.02;
    Hyperparameters coupled = base, decoupled = base, amsgrad = base, author = base, optax = plain, adam = base;
    decoupled.decoupled_weight_decay = author.decoupled_weight_decay = true;
    decoupled.beta2 = 0.99;
    amsgrad.amsgrad = true;
    author.warmup = Warmup::moments_only;
    author.rectify_at_threshold = optax.rectify_at_threshold = true;
    optax.nesterov = true;
    optax.eps_on = EpsOn::sqrt_v_hat;
    optax.eps_root = 1e-9;
    adam.rectify = false;
    adam.beta1 = 0.0;
    Hyperparameters maximize = decoupled, everything = optax, scaled = plain;
    maximize.maximize = maximize.amsgrad = true;
    everything.weight_decay = 0.02;
    everything.amsgrad = true;
    everything.beta2 = 0.5;  // so that it never rectifies
    scaled.grad_scale = 0.3;
    scaled.beta1 = 0.95;
    scaled.beta2 = 0.99999;
    return {
        {"coupled", coupled},
        {"decoupled", decoupled},
        {"amsgrad", amsgrad},
        {"maximize, amsgrad", maximize},
        {"nesterov", optax},
        {"nesterov, amsgrad, never rectified", everything},
        {"moments only at first", author},
        {"adam", adam},
        {"gradients scaled, clipped by norm", scaled, 0.7},
        {"clipped by value", plain, no_limit, 0.1},
        {"inf and NaN in gradients", decoupled, no_limit, no_limit, false},
    };
}

// ---- numbers

void put(char* to, DType dtype, std::int64_t k, double x) {
    const float narrow = static_cast<float>(x);
    const bf16 brain = to_bf16(narrow);
    const fp16 half = to_fp16(narrow);
    to += k * size_of(dtype);
    if (dtype == DType::fp64) std::memcpy(to, &x, 8);
    if (dtype == DType::fp32) std::memcpy(to, &narrow, 4);
    if (dtype == DType::bf16) std::memcpy(to, &brain, 2);
    if (dtype == DType::fp16) std::memcpy(to, &half, 2);
}

// Between -1 and 1, most of them small; one in five is zero, some are very small, some large.
double gradient(std::int64_t k) {
    const std::int64_t x = k * 7919 % 4001 - 2000;
    if (k % 5 == 0) return 0.0;
    const double wave = static_cast<double>(x * x * x) * 0x1p-33;
    return k % 41 == 7 ? wave * 0x1p-68 : k % 97 == 11 ? wave * 0x1p12 : wave;
}

double gradient_that_is_not_finite(std::int64_t k) {
    if (k % 331 == 17) return no_limit;
    if (k % 577 == 19) return -no_limit;
    if (k % 1013 == 23) return no_limit - no_limit;
    if (k % 211 == 29) return 0x1p100;
    return gradient(k);
}

// Gradients of one dtype. A parameter takes them from another place in each step.
class Tape {
public:
    static constexpr std::int64_t places = 3989;

    Tape(DType dtype, double (*number)(std::int64_t))
        : dtype_(dtype), bytes_(static_cast<std::size_t>((places + largest_size) * size_of(dtype))) {
        for (std::int64_t k = 0; k < places + largest_size; ++k) put(bytes_.data(), dtype, k, number(k));
    }
    const char* at(int t, std::int64_t param) const {
        return bytes_.data() + (t * 131 + param * 37) % places * size_of(dtype_);
    }

private:
    DType dtype_;
    std::vector<char> bytes_;
};

// FNV-1a, 64 bits.
class Hash {
public:
    void add(std::uint64_t value, int bytes) {
        for (int i = 0; i < bytes; ++i) hash_ = (hash_ ^ (value >> (8 * i) & 0xffu)) * 0x100000001b3u;
    }
    std::uint64_t value() const { return hash_; }

private:
    std::uint64_t hash_ = 0xcbf29ce484222325u;
};

// The bits of a number, the same ones for any NaN.
std::uint64_t canonical(const char* at, DType dtype) {
    std::uint64_t bits = 0;
    const int width = size_of(dtype);
    if (width == 8) std::memcpy(&bits, at, 8);
    std::uint32_t four;
    std::uint16_t two;
    if (width == 4) std::memcpy(&four, at, 4), bits = four;
    if (width == 2) std::memcpy(&two, at, 2), bits = two;
    if (width == 1) bits = static_cast<unsigned char>(*at);
    const auto nan_above = [&](std::uint64_t infinity) {
        if ((bits & (infinity | (infinity - 1))) > infinity) bits = infinity + 1;
    };
    if (dtype == DType::fp64) nan_above(0x7ff0000000000000u);
    if (dtype == DType::fp32) nan_above(0x7f800000u);
    if (dtype == DType::bf16) nan_above(0x7f80u);
    if (dtype == DType::fp16) nan_above(0x7c00u);
    return bits;
}

// ---- training

// One parameter. No buffer is aligned.
class Param {
public:
    Param(const Kind& kind, const Law& law, std::int64_t size, std::uint32_t number) {
        slot.size = size;
        slot.param_dtype = kind.param;
        slot.grad_dtype = kind.grad;
        slot.moments = kind.moments;
        slot.weights = kind.weights;
        slot.grad_limit = law.most_value;
        slot.seed = 0x0123456789abcdefu;
        slot.ordinal = number;
        slot.positions.first = 3;
        const std::int64_t scales = kind.moments == Moments::coded ? blocks_of(size) : 0;
        const DType first = moment_dtype(kind.param, kind.moments, false);
        const DType second = moment_dtype(kind.param, kind.moments, true);
        slot.param = room(size, kind.param);
        slot.exp_avg = room(size, first);
        slot.exp_avg_scale = reinterpret_cast<float*>(room(scales, DType::fp32));
        slot.exp_avg_sq = room(size, second);
        slot.exp_avg_sq_scale = reinterpret_cast<float*>(room(scales, DType::fp32));
        if (law.h.amsgrad) {
            slot.max_exp_avg_sq = room(size, second);
            slot.max_exp_avg_sq_scale = reinterpret_cast<float*>(room(scales, DType::fp32));
        }
        if (size_of(kind.weights) > 0)
            slot.master = room(size, kind.weights == Weights::split ? DType::int16 : DType::fp32);
        for (std::int64_t k = 0; k < size; ++k)
            put(static_cast<char*>(slot.param), kind.param, k, static_cast<double>(k * 977 % 2003 - 1001) * 0x1p-11);
    }

    void hash(Hash& hash) const {
        for (const Buffer& buffer : buffers_)
            for (std::int64_t k = 0; k < buffer.size; ++k)
                hash.add(canonical(buffer.data() + k * size_of(buffer.dtype), buffer.dtype), size_of(buffer.dtype));
    }

    Slot slot;

private:
    struct Buffer {
        std::int64_t size;
        DType dtype;
        std::vector<char> bytes;
        const char* data() const { return bytes.data() + 1; }
    };

    char* room(std::int64_t size, DType dtype) {
        buffers_.push_back({size, dtype, std::vector<char>(static_cast<std::size_t>(size * size_of(dtype)) + 1)});
        return buffers_.back().bytes.data() + 1;
    }

    std::vector<Buffer> buffers_;
};

// An optimizer for each law, with parameters of many kinds.
class Training {
public:
    Training() : kinds_(all_kinds()), laws_(all_laws()), scheduled_(laws_.size()) {
        std::int64_t elements = 0;
        for (std::size_t l = 0; l < laws_.size(); ++l)
            for (std::size_t k = 0; k < kinds_.size(); ++k) {
                // What is stored otherwise than computed is composed at run time: every fourth kind for each law.
                const bool is_whole = kinds_[k].moments == Moments::full && kinds_[k].weights == Weights::plain;
                if (!is_whole && (k + l) % 4 != 0) continue;
                const std::int64_t size = sizes[(k + l) % std::size(sizes)];
                params_.push_back({k, l, Param(kinds_[k], laws_[l], size, static_cast<std::uint32_t>(k))});
                elements += size;
            }
        EXPECT(elements >= shared_from);
        for (auto* const number : {&gradient, &gradient_that_is_not_finite})
            for (const DType dtype : {DType::fp64, DType::fp32, DType::bf16, DType::fp16})
                tapes_.emplace_back(dtype, *number);
        chunks_.resize(kinds_.size());
        sums_.resize(kinds_.size());
    }

    void run(const Executor& executor, const Sweeps& sweeps) {
        std::vector<Slot> slots;
        for (int t = 1; t <= steps; ++t) {
            slots.clear();
            for (std::size_t l = 0; l < laws_.size(); ++l) {
                const Law& law = laws_[l];
                scheduled_[l] = schedule(law.h, t);
                const std::size_t first = slots.size();
                for (; slots.size() < params_.size() && params_[slots.size()].law == l;) {
                    Slot slot = params_[slots.size()].param.slot;
                    const std::size_t tape = static_cast<std::size_t>(slot.grad_dtype) + (law.finite ? 0 : 4);
                    slot.grad = tapes_[tape].at(t, static_cast<std::int64_t>(slots.size()));
                    slot.step = &scheduled_[l];
                    slots.push_back(slot);
                }
                if (law.most_norm < no_limit) {
                    const std::size_t count = slots.size() - first;
                    sums_of_squares(executor, sweeps, &slots[first], count, chunks_.data(), sums_.data());
                    const double sum = add_pairs(sums_.data(), static_cast<std::int64_t>(count));
                    scale_gradients(scheduled_[l], clip_factor(std::sqrt(sum), law.most_norm));
                }
            }
            step(executor, sweeps, slots.data(), slots.size());
        }
    }

    // The hash of each kind over all laws, of each law over all kinds, and of everything.
    std::vector<Pinned> hashes() const {
        std::vector<Pinned> found;
        const auto add = [&](const std::string& name, auto belongs) {
            Hash hash;
            for (const Member& member : params_)
                if (belongs(member)) member.param.hash(hash);
            found.push_back({name, hash.value()});
        };
        for (std::size_t kind = 0; kind < kinds_.size(); ++kind)
            add(kinds_[kind].name(), [=](const Member& m) { return m.kind == kind; });
        for (std::size_t law = 0; law < laws_.size(); ++law)
            add(laws_[law].name, [=](const Member& m) { return m.law == law; });
        add("everything", [](const Member&) { return true; });
        return found;
    }

private:
    struct Member {
        std::size_t kind, law;
        Param param;
    };

    std::vector<Kind> kinds_;
    std::vector<Law> laws_;
    std::vector<ScheduledStep> scheduled_;
    std::vector<Member> params_;
    std::vector<Tape> tapes_;
    std::vector<double> chunks_, sums_;
};

// ---- the ways to run it

using Use = std::function<void(const std::string& loops, const Executor& executor, const Sweeps& sweeps)>;

#if defined(RADAM_TEST_DISPATCHED)
void for_each_way(const Use& use) {
    for (const std::string& isa : isas()) {
        set_isa(isa);
        for (const int threads : {1, 3}) {
            set_num_threads(threads);
            use("compiled " + isa + ", " + std::to_string(threads) + " threads", dispatched_executor(),
                dispatched_sweeps());
        }
    }
}
#else
void for_each_way(const Use& use) {
    ThreadPool pool(3);
    use(std::string("headers, ") + isa::native::name + ", 1 thread", Executor(), HeaderOnly<>::of_any());
    if (!std::is_same_v<isa::native, isa::portable>)
        use("headers, portable, 3 threads", pool.executor(), HeaderOnly<isa::portable>::of_any());
}
#endif

}  // namespace

int main(int count, char** arguments) {
    const bool prints = count > 1 && std::strcmp(arguments[1], "--print") == 0;
    bool printed = false;
    for_each_way([&](const std::string& way, const Executor& executor, const Sweeps& sweeps) {
        Training training;
        training.run(executor, sweeps);
        const std::vector<Pinned> found = training.hashes();
        if (prints && !printed)
            for (const Pinned& p : found)
                std::printf("    {\"%s\", 0x%016llxu},\n", p.name.c_str(), static_cast<unsigned long long>(p.hash));
        printed = true;
        std::fprintf(stderr, "%016llx  %s\n", static_cast<unsigned long long>(found.back().hash), way.c_str());
        EXPECT(found.size() == std::size(pinned));
        for (std::size_t i = 0; i < found.size() && i < std::size(pinned); ++i) {
            if (found[i].name == pinned[i].name && found[i].hash == pinned[i].hash) continue;
            std::fprintf(stderr, "%s: %s: %016llx, not %016llx\n", way.c_str(), found[i].name.c_str(),
                         static_cast<unsigned long long>(found[i].hash),
                         static_cast<unsigned long long>(pinned[i].hash));
            ++failures;
        }
    });
    return failures == 0 ? 0 : 1;
}
