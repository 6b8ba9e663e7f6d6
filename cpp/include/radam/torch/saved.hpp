// States of the LibTorch optimizer in torch archives: those of LibTorch's own optimizers, and beside them what a state
// is only good for.
#pragma once

#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../float_mode.hpp"
#include "call.hpp"

namespace radam::torch::detail {

constexpr std::int64_t archive_version = 1;

// What of a convention groups do not say.
template <class F>
void for_each_number(const Convention& c, F f) {
    f("threshold", c.threshold);
    f("rectify_at_threshold", c.rectify_at_threshold ? 1.0 : 0.0);
    f("momentum_before", c.warmup == Warmup::momentum ? 1.0 : 0.0);
    f("eps_on_sqrt_v", c.eps_on == EpsOn::sqrt_v ? 1.0 : 0.0);
    f("eps_root", c.eps_root);
    f("nesterov", c.nesterov ? 1.0 : 0.0);
    f("rectify", c.rectify ? 1.0 : 0.0);
}

inline void write_marks(::torch::serialize::OutputArchive& archive, const Settings& settings) {
    ::torch::serialize::OutputArchive marks(archive.compilation_unit());
    marks.write("version", archive_version);
    marks.write("seed", static_cast<std::int64_t>(settings.precision.seed));
    marks.write("convention", std::string(settings.convention.name));
    for_each_number(settings.convention, [&](const char* key, double value) { marks.write(key, value); });
    archive.write("radam", marks);
}

// As LibTorch writes its own optimizers, but for states that belong to no parameter any more.
inline void write_archive(::torch::serialize::OutputArchive& archive,
                          const std::vector<::torch::optim::OptimizerParamGroup>& groups, const States& states,
                          const Settings& settings) {
    ::torch::serialize::OutputArchive of_states(archive.compilation_unit()), of_groups(archive.compilation_unit());
    for (std::size_t g = 0; g < groups.size(); ++g) {
        options_in(groups[g], g);
        for (std::size_t i = 0; i < groups[g].params().size(); ++i) {
            const Tensor& p = groups[g].params()[i];
            const RAdamParamState* const state = state_of({param, g, i}, states, p);
            if (state == nullptr) continue;
            ::torch::serialize::OutputArchive of_one(archive.compilation_unit());
            state->serialize(of_one);
            of_states.write(std::to_string(reinterpret_cast<std::size_t>(p.unsafeGetTensorImpl())), of_one);
        }
    }
    ::torch::optim::detail::serialize<RAdamOptions>(of_groups, groups);
    archive.write("pytorch_version", c10::IValue("1.5.0"));  // of the format
    archive.write("state", of_states);
    archive.write("param_groups", of_groups);
    write_marks(archive, settings);
}

// Returns the seed; refuses what was saved in another convention, which would step otherwise.
inline std::uint64_t read_marks(::torch::serialize::InputArchive& archive, const Convention& convention) {
    ::torch::serialize::InputArchive marks;
    TORCH_CHECK(archive.try_read("radam", marks), "radam: the archive has no \"radam\": it is of another optimizer");
    const auto read = [&](const char* key) {
        c10::IValue value;
        marks.read(key, value);
        return value;
    };
    const std::int64_t version = read("version").toInt();
    TORCH_CHECK(version == archive_version, "radam: this radam reads archives of version ", archive_version, ", got ",
                version);
    for_each_number(convention, [&](const char* key, double wanted) {
        const double found = read(key).toDouble();
        TORCH_CHECK(found == wanted, "radam: the archive is of convention \"", read("convention").toStringRef(),
                    "\" with ", key, " ", found, ", this optimizer of \"", convention.name, "\" with ", wanted,
                    ": they step otherwise");
    });
    return static_cast<std::uint64_t>(read("seed").toInt());
}

// What an archive holds, made into what an optimizer has.
struct Loaded {
    States states;
    std::vector<RAdamOptions> options;
    std::uint64_t seed = 0;
};

// Float32 numbers in a tensor's own order of memory, without gaps.
inline Tensor numbers_like(const Tensor& tensor, c10::ScalarType type) {
    return ::at::empty_like(tensor, ::at::TensorOptions().dtype(type).requires_grad(false));
}

inline Tensor decoded(const Tensor& codes, const Tensor& scales, bool squared) {
    const Tensor here = numbers_like(codes, codes.scalar_type()).copy_(codes);
    Tensor numbers = numbers_like(here, c10::kFloat);
    decode_blocks(static_cast<const std::uint8_t*>(here.const_data_ptr()), scales.const_data_ptr<float>(), here.numel(),
                  squared, numbers.mutable_data_ptr<float>());
    return numbers;
}

class StateReader {
public:
    StateReader(const Where& where, const RAdamParamState& saved, const Tensor& param, const Kinds& kinds)
        : where_(where), saved_(saved), param_(param), kinds_(kinds) {
        RAdamParamState::for_each(saved_, [&](const char* key, Tensor& tensor) {
            if (!tensor.defined()) return;
            TORCH_CHECK(tensor.layout() == c10::kStrided, "radam: ", key, " of ", where_.text(), " has layout ",
                        tensor.layout(), " in the archive; it must be dense");
            tensor = tensor.to(c10::kCPU);  // torch::load may have put it on a device
        });
    }

    std::unique_ptr<RAdamParamState> read() const {
        TORCH_CHECK(saved_.step() >= 0 && saved_.step() <= std::int64_t{1} << 62, "radam: the step count of ",
                    where_.text(), " must be from 0 to 2^62, got ", saved_.step());
        auto made = std::make_unique<RAdamParamState>();
        made->step(saved_.step());
        for (int moment = 0; moment < 3; ++moment) read_moment(*made, moment);
        if (kinds_.types[master] != c10::ScalarType::Undefined && saved_.master().defined()) {
            check(master, saved_.master(), kinds_.types[master]);
            made->master(copied(master, saved_.master()));
        }
        return made;
    }

private:
    Where of(int role) const { return {static_cast<Role>(role), where_.group, where_.index}; }

    Tensor copied(int role, const Tensor& from) const {
        return zeros_for(param_, role, kinds_.types[role]).copy_(from);
    }

    void check(int role, const Tensor& found, c10::ScalarType type) const {
        TORCH_CHECK(found.scalar_type() == type, "radam: ", of(role).text(), " is ", found.scalar_type(),
                    " in the archive; it must be ", type);
        TORCH_CHECK(found.sizes() == param_.sizes(), "radam: ", of(role).text(), " has shape ", found.sizes(),
                    " in the archive, the parameter ", param_.sizes());
    }

    // As it is kept here, in codes or numbers, from what was saved, either of them.
    void read_moment(RAdamParamState& made, int moment) const {
        const int role = exp_avg + moment, scale_role = exp_avg_scale + moment;
        const bool squared = moment > 0;
        const Tensor& found = tensor_of(saved_, role);
        const Tensor& scales = tensor_of(saved_, scale_role);
        if (!found.defined() && moment == 2) return;  // made, as zeros, by a step that needs it
        TORCH_CHECK(found.defined(), "radam: the archive has no ", of(role).text());
        if (kinds_.types[role] == c10::ScalarType::Undefined) return;
        const bool was_coded = found.scalar_type() == (squared ? c10::kByte : c10::kChar);
        const bool is_coded = kinds_.moments == Moments::coded;
        Tensor numbers = found;
        if (was_coded) {
            check(role, found, squared ? c10::kByte : c10::kChar);
            check_scales(scale_role, scales, found.numel());
            Tensor codes = zeros_for(param_, role, found.scalar_type());
            if (is_coded && codes.strides() == numbers_like(found, found.scalar_type()).strides()) {
                tensor_of(made, role) = codes.copy_(found);
                tensor_of(made, scale_role) = scales.clone();
                return;
            }
            numbers = decoded(found, scales, squared);
        } else {
            TORCH_CHECK(found.is_complex() == param_.is_complex() && (found.is_complex() || found.is_floating_point()),
                        "radam: ", of(role).text(), " is ", found.scalar_type(), " in the archive, the parameter ",
                        param_.scalar_type());
            check(role, found, found.scalar_type());
            const Tensor real = found.is_complex() ? ::at::view_as_real(found) : found;
            TORCH_CHECK(!squared || !real.lt(0).any().item<bool>(), "radam: ", of(role).text(),
                        " holds a negative number in the archive, but it is an average of squares");
        }
        if (!is_coded) {
            tensor_of(made, role) = copied(role, numbers);
            return;
        }
        Tensor codes = zeros_for(param_, role, kinds_.types[role]);
        const Tensor values = ::at::zeros_like(codes, c10::TensorOptions(c10::kFloat)).copy_(numbers);
        Tensor made_scales = zeros_for(param_, scale_role, c10::kFloat);
        encode_blocks(values.const_data_ptr<float>(), values.numel(), squared,
                      static_cast<std::uint8_t*>(codes.mutable_data_ptr()), made_scales.mutable_data_ptr<float>());
        tensor_of(made, role) = codes;
        tensor_of(made, scale_role) = made_scales;
    }

    void check_scales(int role, const Tensor& scales, std::int64_t size) const {
        TORCH_CHECK(scales.defined() && scales.scalar_type() == c10::kFloat && scales.dim() == 1 &&
                        scales.numel() == blocks_of(size) && scales.is_contiguous(),
                    "radam: ", of(role).text(), " must be ", blocks_of(size), " float32 numbers in the archive");
        TORCH_CHECK((scales.isfinite() & scales.ge(0)).all().item<bool>(), "radam: ", of(role).text(),
                    " holds a number that is negative or not finite in the archive");
    }

    Where where_;
    RAdamParamState saved_;  // its tensors are the archive's, on the CPU
    const Tensor& param_;
    const Kinds& kinds_;
};

// Everything that an archive holds for these groups; c10::Error naming what does not fit.
inline Loaded read_archive(::torch::serialize::InputArchive& archive,
                           const std::vector<::torch::optim::OptimizerParamGroup>& groups, const Settings& settings) {
    const c10::InferenceMode mode(false);  // what is made here will be stepped outside of it
    const ::at::NoGradGuard no_grad;
    const DefaultFloatMode float_mode;
    Loaded loaded;
    loaded.seed = read_marks(archive, settings.convention);
    States saved;
    std::vector<std::pair<std::vector<std::string>, std::unique_ptr<::torch::optim::OptimizerOptions>>> saved_groups;
    ::torch::serialize::InputArchive state_archive, group_archive;
    archive.read("state", state_archive);
    archive.read("param_groups", group_archive);
    ::torch::optim::detail::serialize<RAdamParamState>(state_archive, saved);
    ::torch::optim::detail::serialize<RAdamOptions>(group_archive, saved_groups);
    TORCH_CHECK(saved_groups.size() == groups.size(), "radam: the archive has ", saved_groups.size(),
                " parameter groups, this optimizer ", groups.size());
    for (std::size_t g = 0; g < groups.size(); ++g) {
        const auto& [keys, options] = saved_groups[g];
        const std::vector<Tensor>& params = groups[g].params();
        TORCH_CHECK(keys.size() == params.size(), "radam: group ", g, " has ", keys.size(),
                    " parameters in the archive, ", params.size(), " in this optimizer");
        loaded.options.push_back(static_cast<const RAdamOptions&>(*options));
        Call::checked(loaded.options.back(), settings, g);
        for (std::size_t i = 0; i < params.size(); ++i) {
            const auto found = saved.find(reinterpret_cast<void*>(std::stoull(keys[i])));
            if (found == saved.end()) continue;  // it has not been stepped
            const Where where{param, g, i};
            const auto taken = std::move(found->second);
            TORCH_CHECK(taken != nullptr, "radam: ", where.text(), " shares its state with another in the archive");
            const Elements elements = elements_of(params[i].scalar_type());
            const Kinds kinds = kinds_of(elements, params[i].numel(), true, settings.precision);
            const auto& state = static_cast<const RAdamParamState&>(*taken);
            loaded.states[params[i].unsafeGetTensorImpl()] = StateReader(where, state, params[i], kinds).read();
        }
    }
    for (const auto& [key, left] : saved)
        TORCH_CHECK(left == nullptr, "radam: the archive has a state of no parameter of its groups (",
                    reinterpret_cast<std::size_t>(key), ")");
    return loaded;
}

}  // namespace radam::torch::detail
