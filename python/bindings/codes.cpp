#include "codes.hpp"

#include <radam/codec.hpp>
#include <radam/float_mode.hpp>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "import_array.hpp"

namespace nb = nanobind;

namespace radam::python {
namespace {

// An array of one dimension without gaps.
Array flat(Imports& imports, nb::handle object, const char* name) {
    const Array found = imports.add(object.ptr(), Access::write_integers, {name, 0, 0});
    if (found.layout.ndim != 1 || found.layout.strides != nullptr || found.device != Array::on_cpu)
        throw nb::value_error((std::string(name) + " must have one dimension and no gaps, and lie on the CPU").c_str());
    return found;
}

class Blocks {
public:
    Blocks(nb::handle values, nb::handle codes, nb::handle scales) {
        const Array v = flat(imports_, values, "values"), c = flat(imports_, codes, "codes"),
                    s = flat(imports_, scales, "scales");
        size_ = element_count(v.layout);
        const bool fits = v.dtype == DType::fp32 && s.dtype == DType::fp32 && element_count(c.layout) == size_ &&
                          element_count(s.layout) == blocks_of(size_) &&
                          (c.dtype == DType::int8 || c.dtype == DType::uint8);
        if (!fits)
            throw nb::value_error(
                "values and scales must be float32, codes int8 or uint8, as many as values, and scales one for each "
                "128 of them");
        squared_ = c.dtype == DType::uint8;
        values_ = static_cast<float*>(v.data);
        codes_ = static_cast<std::uint8_t*>(c.data);
        scales_ = static_cast<float*>(s.data);
    }

    void encode() const {
        const DefaultFloatMode mode;
        radam::encode_blocks(values_, size_, squared_, codes_, scales_);
    }

    void decode() const {
        const DefaultFloatMode mode;
        radam::decode_blocks(codes_, scales_, size_, squared_, values_);
    }

private:
    Imports imports_;
    std::int64_t size_ = 0;
    bool squared_ = false;
    float* values_ = nullptr;
    std::uint8_t* codes_ = nullptr;
    float* scales_ = nullptr;
};

// 16-bit parameters, what is kept of them, and the float32 weights that both stand for.
class Parts {
public:
    Parts(nb::handle params, nb::handle kept, nb::handle weights) {
        const Array p = flat(imports_, params, "params"), k = flat(imports_, kept, "kept"),
                    w = flat(imports_, weights, "weights");
        size_ = element_count(w.layout);
        is_bf16_ = k.dtype == DType::int16;
        const bool fits = w.dtype == DType::fp32 && (is_bf16_ || k.dtype == DType::fp32) &&
                          p.dtype == (is_bf16_ ? DType::bf16 : DType::fp16) && element_count(p.layout) == size_ &&
                          element_count(k.layout) == size_;
        if (!fits)
            throw nb::value_error(
                "weights must be float32, params bfloat16 beside kept ones of int16, or float16 beside float32, all as "
                "many");
        params_ = static_cast<std::uint16_t*>(p.data);
        kept_ = k.data;
        weights_ = static_cast<float*>(w.data);
    }

    void join() const noexcept {
        const DefaultFloatMode mode;
        for (std::int64_t i = 0; i < size_; ++i)
            weights_[i] =
                is_bf16_ ? join_bf16(std::uint32_t{params_[i]},
                                     static_cast<std::uint32_t>(std::int32_t{static_cast<std::int16_t*>(kept_)[i]}))
                         : join_fp16(fp16{params_[i]}, static_cast<float*>(kept_)[i]);
    }

    void split() const noexcept {
        const DefaultFloatMode mode;
        for (std::int64_t i = 0; i < size_; ++i) {
            if (is_bf16_) {
                const float weight = quiet(weights_[i]);
                params_[i] = static_cast<std::uint16_t>(upper_half(weight));
                static_cast<std::int16_t*>(kept_)[i] = static_cast<std::int16_t>(lower_half(weight));
            } else {
                params_[i] = to_fp16(weights_[i]).bits;
                static_cast<float*>(kept_)[i] = weights_[i];
            }
        }
    }

private:
    Imports imports_;
    std::int64_t size_ = 0;
    bool is_bf16_ = false;
    std::uint16_t* params_ = nullptr;
    void* kept_ = nullptr;
    float* weights_ = nullptr;
};

}  // namespace

void encode_blocks(nb::handle values, nb::handle codes, nb::handle scales) { Blocks(values, codes, scales).encode(); }
void decode_blocks(nb::handle codes, nb::handle scales, nb::handle values) { Blocks(values, codes, scales).decode(); }

void join_weights(nb::handle params, nb::handle kept, nb::handle weights) { Parts(params, kept, weights).join(); }
void split_weights(nb::handle weights, nb::handle params, nb::handle kept) { Parts(params, kept, weights).split(); }

}  // namespace radam::python
