#include "step.hpp"

#include <radam/float_mode.hpp>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "call.hpp"
#include "unlocked.hpp"

namespace nb = nanobind;

namespace radam::python {
namespace {

// One Call per thread, taken while in use: a __dlpack__ that steps another optimizer gets a new one.
class CallInUse {
public:
    CallInUse() : call_(std::move(kept())) {
        if (call_ == nullptr) call_ = std::make_unique<Call>();
    }
    CallInUse(const CallInUse&) = delete;
    CallInUse& operator=(const CallInUse&) = delete;
    ~CallInUse() {
        call_->clear();
        kept() = std::move(call_);
    }
    Call* operator->() const { return call_.get(); }

private:
    static std::unique_ptr<Call>& kept() {
        thread_local std::unique_ptr<Call> call;
        return call;
    }
    std::unique_ptr<Call> call_;
};

}  // namespace

bool step(const nb::tuple& groups, const std::string& nonfinite, nb::handle commit, nb::handle amp, Clip* clip) {
    if (nonfinite != "propagate" && nonfinite != "skip" && nonfinite != "raise")
        throw nb::value_error(("nonfinite must be 'propagate', 'skip' or 'raise', got '" + nonfinite + "'").c_str());
    const DefaultFloatMode mode;
    CallInUse call;
    call->add_amp(amp);
    call->add_clip(clip);
    if (clip != nullptr) clip->norm.reset();
    for (std::size_t i = 0; i < groups.size(); ++i) call->add_group(i, nb::cast<nb::tuple>(groups[i]));
    call->check_overlaps();
    std::optional<std::size_t> bad;
    call->check_capture();
    call->prepare_clip();
    const bool looks = nonfinite != "propagate";
    {
        const Unlocked unlocked;
        call->prepare();
        if (call->clips())
            call->add_up();
        else if (looks)
            bad = call->first_nonfinite(nonfinite == "raise");
    }
    if (call->clips() && !call->clip(*clip) && looks) {
        {
            const Unlocked unlocked;
            bad = call->first_nonfinite(nonfinite == "raise");
        }
        if (!bad && !clip->reduce.is_none()) {  // in another process
            if (nonfinite == "skip") return false;
            PyErr_SetString(PyExc_FloatingPointError,
                            "a gradient on another process holds an inf or a NaN; nothing was changed "
                            "(nonfinite='raise')");
            throw nb::python_error();
        }
    }
    if (bad) {
        if (nonfinite == "raise") call->refuse_nonfinite(*bad);
        return false;
    }
    if (!commit.is_none()) commit();
    cuda::Failure failure;
    bool all_well;
    {
        const Unlocked unlocked;
        all_well = call->run(&failure);
    }
    if (!all_well) throw CudaError(failure);
    return true;
}

void end_steps() { Unlocked::end(); }

void forget_steps() noexcept { Unlocked::forget(); }

void check_params(const nb::tuple& groups) {
    CallInUse call;
    for (std::size_t i = 0; i < groups.size(); ++i) call->add_params(i, nb::cast<nb::tuple>(groups[i]));
    call->check_overlaps();
}

void limit(const nb::tuple& groups) {
    CallInUse call;
    for (std::size_t i = 0; i < groups.size(); ++i) call->add_group(i, nb::cast<nb::tuple>(groups[i]));
    call->check_overlaps();
    const Unlocked unlocked;
    call->prepare();
    call->run_limit();
}

nb::tuple describe(nb::handle array, nb::handle names, std::size_t group, std::size_t index) {
    Imports imports;
    const Array found =
        imports.add(array.ptr(), Access::write_integers, {role_names[param], group, index, names.ptr()});
    const Layout& a = found.layout;
    nb::list shape, order;
    for (int d = 0; d < a.ndim; ++d) shape.append(a.shape[d]);
    std::vector<int> dims = memory_order(a);
    if (!is_dense(a, dims)) std::sort(dims.begin(), dims.end());
    for (int d : dims) order.append(d);
    for (int d = 0; d < a.ndim; ++d)
        if (a.shape[d] == 1) order.append(d);
    return nb::make_tuple(name_of(found.dtype), nb::tuple(shape), nb::tuple(order));
}

}  // namespace radam::python
