// What tests of saved states share: a run of every kind of parameter, and files that somebody changes.
#pragma once

#include <radam/radam.hpp>
#include <radam/saved.hpp>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "expect.hpp"
#include "refusals.hpp"

namespace fs = std::filesystem;
using radam::DType;
using radam::StateDType;

inline const fs::path folder = fs::temp_directory_path() / radam::detail::random_name();
inline std::string in_folder(const std::string& name) { return (folder / name).string(); }

struct Kind {
    DType dtype;
    radam::Precision precision;
    bool amsgrad;
    const radam::Convention* convention;
};

inline radam::Precision precision_of(StateDType dtype, bool master = false, bool stochastic = false) {
    radam::Precision p;
    p.state_dtype = dtype;
    p.min_8bit_size = 100;
    p.master_weights = master;
    p.stochastic_rounding = stochastic;
    p.seed = 0xfedcba9876543210u;
    return p;
}

inline const std::vector<std::int64_t> sizes = {15 * 13, 300, 7, 1, 0};

// Parameters and gradients of one dtype in raw bytes, and an optimizer of two groups over them.
class Run {
public:
    explicit Run(const Kind& kind, bool shaped = true, bool named = true)
        : kind_(kind), optimizer(options(kind), *kind.convention) {
        optimizer.set_precision(kind.precision);
        const std::vector<std::vector<std::int64_t>> shapes = {{15, 13}, {300}, {7}, {1}, {0, 4}};
        for (std::size_t i = 0; i < sizes.size(); ++i) {
            if (i == 3) {
                radam::Options second = options(kind);
                second.lr = 0.05;
                second.beta2 = 0.99;
                optimizer.add_group(second);
            }
            const auto bytes =
                std::max<std::size_t>(8, static_cast<std::size_t>(sizes[i] * radam::size_of(kind.dtype)));
            params.emplace_back(bytes);
            grads.emplace_back(bytes);
            radam::ParamOptions about;
            if (named) about.name = "p" + std::to_string(i) + "\xc3\xa9";
            if (shaped) about.shape = shapes[i];
            optimizer.add_param(params[i].data(), kind.dtype, nullptr, kind.dtype, sizes[i], about);
            fill(params[i], 1000 + i, 1.0);
        }
    }

    // One step; the third parameter has a gradient from the fourth step on, the fourth one never.
    void step(int t) {
        for (std::size_t i = 0; i < sizes.size(); ++i) {
            fill(grads[i], static_cast<std::size_t>(t) * 10 + i, 0.1);
            const bool has = i != 3 && (i != 2 || t > 3);
            optimizer.set_grad(i, has ? static_cast<const void*>(grads[i].data()) : nullptr);
        }
        EXPECT(optimizer.step());
    }

    // Every bit of it.
    std::string bits() const {
        std::string all = radam::detail::saved_header(optimizer);
        for (std::size_t i = 0; i < sizes.size(); ++i) {
            all.append(params[i].begin(), params[i].end());
            const radam::Slot& slot = optimizer.slot(i);
            for (int part = 0; part < radam::state_parts; ++part)
                if (const void* const data = radam::part_of(slot, part); data != nullptr)
                    all.append(static_cast<const char*>(data),
                               static_cast<std::size_t>(radam::part_bytes(slot, part, true)));
        }
        return all;
    }

private:
    const Kind kind_;

    static radam::Options options(const Kind& kind) {
        radam::Options o;
        o.lr = 0.01;
        o.weight_decay = kind.convention->decay == radam::Decay::none ? 0.0 : 0.01;
        o.amsgrad = kind.amsgrad;
        return o;
    }

    void fill(std::vector<char>& bytes, std::size_t seed, double scale) const {
        std::uint64_t state = seed * 2654435761u + 1;
        const auto itemsize = static_cast<std::size_t>(radam::size_of(kind_.dtype));
        for (std::size_t at = 0; at < bytes.size(); at += itemsize) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            const double x = scale * (static_cast<double>(state >> 40) / (1 << 23) - 1.0);
            const auto put = [&](auto number) { std::memcpy(&bytes[at], &number, sizeof number); };
            if (kind_.dtype == DType::fp64) put(x);
            if (kind_.dtype == DType::fp32) put(static_cast<float>(x));
            if (kind_.dtype == DType::bf16) put(radam::to_bf16(static_cast<float>(x)));
            if (kind_.dtype == DType::fp16) put(radam::to_fp16(static_cast<float>(x)));
        }
    }

public:
    radam::Optimizer optimizer;
    std::vector<std::vector<char>> params, grads;
};

inline const Kind plain = {DType::fp32, precision_of(StateDType::float32), false, &radam::conventions[0]};
inline Kind with(DType dtype, StateDType state, bool amsgrad = false, bool master = false) {
    return {dtype, precision_of(state, master), amsgrad, &radam::conventions[0]};
}

// ---- files that somebody changed

struct Content {
    std::string header;
    std::vector<radam::TensorToStore> tensors;
    std::vector<std::unique_ptr<std::vector<char>>> bytes;

    explicit Content(const std::string& path) {
        const radam::SafetensorsFile file(path);
        header = *file.metadata("radam");
        for (const radam::StoredTensor& tensor : file.tensors()) {
            // A little more than there is, for shapes that somebody makes larger.
            bytes.push_back(
                std::make_unique<std::vector<char>>(static_cast<std::size_t>(tensor.end - tensor.begin) + 64));
            file.read(tensor, bytes.back()->data());
            tensors.push_back({tensor.name, tensor.dtype, tensor.shape, bytes.back()->data()});
        }
    }

    radam::TensorToStore& operator[](const std::string& name) {
        for (radam::TensorToStore& tensor : tensors)
            if (tensor.name == name) return tensor;
        throw std::logic_error("no tensor " + name);
    }
    template <class T>
    void put(const std::string& name, T number) {
        std::memcpy(const_cast<void*>((*this)[name].data), &number, sizeof number);
    }
    void drop(const std::string& name) { tensors.erase(tensors.begin() + (&(*this)[name] - tensors.data())); }
    void add(const std::string& name, const char* dtype, std::vector<std::int64_t> shape) {
        bytes.push_back(std::make_unique<std::vector<char>>(1 << 12));
        tensors.push_back({name, dtype, std::move(shape), bytes.back()->data()});
    }
    void replace(const std::string& from, const std::string& to) {
        const std::size_t at = header.find(from);
        if (at == std::string::npos) throw std::logic_error("no " + from + " in " + header);
        header.replace(at, from.size(), to);
    }
    void write(const std::string& path) const { radam::write_safetensors(path, {{"radam", header}}, tensors); }
};

// A file that does not fit is refused by the words, and nothing has changed.
inline void refused(Run& run, const std::string& path, const std::string& words) {
    const std::string before = run.bits(), error = why([&] { radam::load(run.optimizer, path); });
    if (!says(error, words) || !says(error, path)) EXPECT(words == error);
    EXPECT(run.bits() == before);
}
