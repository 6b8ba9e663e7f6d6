#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <radam/conventions.hpp>
#include <radam/dispatch.hpp>
#include <radam/float_mode.hpp>

#include <atomic>
#include <optional>
#include <stdexcept>

#include "call.hpp"
#include "codes.hpp"
#include "collect.hpp"
#include "cuda_library.hpp"
#include "import_array.hpp"
#include "jax_ffi.hpp"
#include "on_devices.hpp"
#include "step.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using radam::Hyperparameters;
using radam::python::Clip;

namespace {

template <class Enum>
Enum choice(const std::string& name, const std::string& value, const char* first, const char* second) {
    if (value == first) return static_cast<Enum>(0);
    if (value == second) return static_cast<Enum>(1);
    throw nb::value_error((name + " must be '" + first + "' or '" + second + "', got '" + value + "'").c_str());
}

const Hyperparameters& checked(const Hyperparameters& h) {
    if (const radam::Violation found = radam::violation(h); found.name != nullptr)
        throw nb::value_error(radam::python::message(found).c_str());
    return h;
}

std::int64_t checked_step(std::int64_t t) {
    if (t < 1) throw nb::value_error(("a step number must be at least 1, got " + std::to_string(t)).c_str());
    return t;
}

template <class V>
nb::dict as_dict(const radam::Coefficients<V>& c) {
    using C = radam::Coefficients<V>;
    const struct {
        const char* name;
        V C::* value;
    } fields[] = {{"grad_scale", &C::grad_scale},
                  {"coupled_decay", &C::coupled_decay},
                  {"beta1", &C::beta1},
                  {"beta1_low", &C::beta1_low},
                  {"one_minus_beta1", &C::one_minus_beta1},
                  {"beta2", &C::beta2},
                  {"beta2_low", &C::beta2_low},
                  {"one_minus_beta2", &C::one_minus_beta2},
                  {"nesterov_m", &C::nesterov_m},
                  {"nesterov_g", &C::nesterov_g},
                  {"param_decay", &C::param_decay},
                  {"step_size", &C::step_size},
                  {"eps", &C::eps},
                  {"eps_root", &C::eps_root},
                  {"m_floor", &C::m_floor},
                  {"v_floor", &C::v_floor}};
    nb::dict d;
    for (const auto& field : fields) d[field.name] = static_cast<double>(c.*field.value);
    return d;
}

nb::dict coefficients(const Hyperparameters& h, std::int64_t t, const std::string& dtype) {
    const radam::DefaultFloatMode mode;
    const radam::ScheduledStep step = radam::schedule(checked(h), checked_step(t));
    nb::dict d = choice<int>("dtype", dtype, "float32", "float64") == 0 ? as_dict(step.f32) : as_dict(step.f64);
    const char* modes[] = {"rectified", "momentum", "moments_only"};
    d["mode"] = modes[static_cast<int>(step.mode)];
    d["coupled"] = step.coupled;
    d["amsgrad"] = step.amsgrad;
    d["nesterov"] = step.nesterov;
    return d;
}

std::optional<double> rectification(const Hyperparameters& h, std::int64_t t) {
    const radam::DefaultFloatMode mode;
    const double rho = radam::rho(radam::power_sums(checked(h).beta2, checked_step(t)));
    if (!radam::is_rectified(h, rho)) return std::nullopt;
    return radam::rectification(rho, radam::rho_infinity(h.beta2));
}

// The table, each as the arguments of Python's Convention.
nb::list conventions() {
    const char* warmups[] = {"momentum", "moments_only"};
    const char* places[] = {"sqrt_v", "sqrt_v_hat"};
    const char* decays[] = {"", "coupled", "decoupled"};
    nb::list all;
    for (const radam::Convention& c : radam::conventions) {
        nb::list decay;
        if (c.decay != radam::Decay::none) decay.append(decays[static_cast<int>(c.decay)]);
        if (c.other_decay) decay.append(decays[c.decay == radam::Decay::coupled ? 2 : 1]);
        nb::dict d;
        d["name"] = c.name;
        d["threshold"] = c.threshold;
        d["rectify_at_threshold"] = c.rectify_at_threshold;
        d["warmup"] = warmups[static_cast<int>(c.warmup)];
        d["eps_on"] = places[static_cast<int>(c.eps_on)];
        d["decay"] = nb::tuple(decay);
        d["eps"] = c.eps;
        d["eps_root"] = c.eps_root;
        d["nesterov"] = c.nesterov;
        all.append(d);
    }
    return all;
}

nb::capsule capsule(radam::python::xla::Handler* handler) { return nb::capsule(reinterpret_cast<void*>(handler)); }

// One call at a time has an optimizer to itself. Native, so that no interrupt comes between taking a turn and giving it
// back: between two bytecodes of a Python context manager one may.
class Turn {
public:
    void enter() {
        if (taken_.exchange(true))
            throw std::runtime_error(
                "a step of this optimizer is under way (in another thread, in a hook or a closure, or in the process "
                "that "
                "this one was forked from); use one optimizer from one thread at a time");
    }
    void leave() noexcept { taken_ = false; }

private:
    std::atomic<bool> taken_{false};
};

}  // namespace

NB_MODULE(_core, m) {
    nb::set_leak_warnings(
        false);  // an exception that outlives the interpreter may hold some; users can do nothing about it
    m.attr("version") = RADAM_VERSION;
    m.doc() = "The native core of radam. Private: use the radam package.";
    if (!radam::python::load_numpy()) throw nb::python_error();

    nb::exception<radam::python::CudaError>(m, "CudaError", PyExc_RuntimeError);

    nb::class_<Hyperparameters>(m, "Hyperparameters")
        .def(
            "__init__",
            [](Hyperparameters* h, double lr, double beta1, double beta2, double eps, double eps_root,
               double weight_decay, bool decoupled_weight_decay, double grad_scale, bool maximize, bool amsgrad,
               bool nesterov, bool rectify, double threshold, bool rectify_at_threshold, const std::string& warmup,
               const std::string& eps_on) {
                new (h) Hyperparameters(
                    checked({lr, beta1, beta2, eps, eps_root, weight_decay, grad_scale, decoupled_weight_decay,
                             maximize, amsgrad, nesterov, rectify, threshold, rectify_at_threshold,
                             choice<radam::Warmup>("warmup", warmup, "momentum", "moments_only"),
                             choice<radam::EpsOn>("eps_on", eps_on, "sqrt_v", "sqrt_v_hat")}));
            },
            nb::kw_only(), "lr"_a, "beta1"_a, "beta2"_a, "eps"_a, "eps_root"_a = 0.0, "weight_decay"_a = 0.0,
            "decoupled_weight_decay"_a = false, "grad_scale"_a = 1.0, "maximize"_a = false, "amsgrad"_a = false,
            "nesterov"_a = false, "rectify"_a = true, "threshold"_a = 5.0, "rectify_at_threshold"_a = false,
            "warmup"_a = "momentum", "eps_on"_a = "sqrt_v",
            "What a step of one group needs; ValueError where one is out of range.");

    nb::class_<Turn>(m, "Turn")
        .def(nb::init<>())
        .def("__enter__", &Turn::enter)
        .def(
            "__exit__", [](Turn& turn, nb::handle, nb::handle, nb::handle) { turn.leave(); }, "type"_a.none(),
            "value"_a.none(), "traceback"_a.none());

    nb::class_<Clip>(m, "Clip")
        .def(
            "__init__",
            [](Clip* clip, const std::string& kind, double most, nb::object reduce) {
                if (kind != "norm" && kind != "tensor" && kind != "value")
                    throw nb::value_error(("kind must be 'norm', 'tensor' or 'value', got '" + kind + "'").c_str());
                if (!(most >= 0.0)) throw nb::value_error("most must be a number, at least 0");
                new (clip) Clip{kind == "norm"     ? Clip::Kind::norm
                                : kind == "tensor" ? Clip::Kind::tensor
                                                   : Clip::Kind::value,
                                most, std::move(reduce), nb::none(), std::nullopt};
            },
            "kind"_a, "most"_a, "reduce"_a = nb::none(),
            nb::sig("def __init__(self, kind: str, most: float, "
                    "reduce: collections.abc.Callable[[list[float]], float] | None = None) -> None"),
            "How gradients are clipped: by the norm of all of them, of each tensor, or by value.")
        .def_rw("reduce", &Clip::reduce, nb::arg().none(), nb::for_getter(nb::sig("def reduce(self) -> typing.Any")),
                nb::for_setter(nb::sig("def reduce(self, value: typing.Any, /) -> None")))
        .def_rw("norms", &Clip::norms, nb::arg().none(), nb::for_getter(nb::sig("def norms(self) -> typing.Any")),
                nb::for_setter(nb::sig("def norms(self, value: typing.Any, /) -> None")))
        .def_ro("norm", &Clip::norm, "The norm of all gradients before clipping; None before the first step.");

    m.def("encode_blocks", &radam::python::encode_blocks, "values"_a, "codes"_a, "scales"_a,
          "Code float32 moments in 8 bits, to nearest: int8 codes are exp_avg's, uint8 ones exp_avg_sq's.");
    m.def("decode_blocks", &radam::python::decode_blocks, "codes"_a, "scales"_a, "values"_a,
          "The float32 moments that codes stand for; encoded again, they give the same codes and scales.");
    m.def("join_weights", &radam::python::join_weights, "params"_a, "kept"_a, "weights"_a,
          "The float32 weights that 16-bit parameters and what is kept of them stand for.");
    m.def("split_weights", &radam::python::split_weights, "weights"_a, "params"_a, "kept"_a,
          "The 16-bit parameters of float32 weights, and what is to be kept of them.");
    m.def("forget_steps", &radam::python::forget_steps, "In a forked child: the steps of other threads are not there.");
    m.def("end_steps", &radam::python::end_steps, "Wait for steps in other threads; later ones keep the GIL.");
    m.def("step", &radam::python::step, "groups"_a, "nonfinite"_a, "commit"_a = nb::none(), "amp"_a = nb::none(),
          "clip"_a = nb::none(),
          nb::sig("def step(groups: tuple[tuple[object, ...], ...], nonfinite: str, "
                  "commit: collections.abc.Callable[[], object] | None = None, "
                  "amp: dict[int, tuple[object, object, object]] | None = None, clip: Clip | None = None) -> bool"),
          "Check all groups, then step them; see step.hpp.");
    m.def("collect", &radam::python::collect, "params"_a, "state"_a, "keys"_a,
          nb::sig("def collect(params: collections.abc.Iterable[typing.Any], state: typing.Any, "
                  "keys: tuple[str | tuple[str | None, ...], ...]) -> tuple[typing.Any, ...]"),
          "The gradients and states of parameters; see collect.hpp.");
    m.def("check_params", &radam::python::check_params, "groups"_a,
          nb::sig("def check_params(groups: tuple[tuple[object, ...], ...]) -> None"),
          "Check (params, names) of all groups.");
    m.def("limit", &radam::python::limit, "groups"_a,
          nb::sig("def limit(groups: tuple[tuple[object, ...], ...]) -> None"),
          "Move the bytes of a step and compute nothing. Garbles the arrays.");
    m.def("describe", &radam::python::describe, "array"_a, "names"_a = nb::none(), "group"_a = 0, "index"_a = 0,
          nb::sig("def describe(array: object, names: tuple[str, ...] | None = None, group: int = 0, index: int = 0) "
                  "-> tuple[str, tuple[int, ...], tuple[int, ...]]"),
          "(dtype name, shape, dimensions in memory order) of an array.");

    m.def("conventions", &conventions, nb::sig("def conventions() -> list[dict[str, typing.Any]]"),
          "The conventions in the wild, each as a dict of what radam.Convention takes.");
    m.def("coefficients", &coefficients, "hyperparameters"_a, "t"_a, "dtype"_a = "float32",
          nb::sig("def coefficients(hyperparameters: Hyperparameters, t: int, dtype: str = 'float32') "
                  "-> dict[str, float | str]"),
          "The coefficients of step t.");
    m.def("rectification", &rectification, "hyperparameters"_a, "t"_a,
          "r of step t, or None while it is not rectified.");
    m.def(
        "one_minus_power",
        [](double beta, std::int64_t t) {
            const radam::DefaultFloatMode mode;
            return radam::one_minus_power(beta, checked_step(t));
        },
        "beta"_a, "t"_a, "1 - beta^t.");
    m.def(
        "rho",
        [](double beta2, std::int64_t t) {
            const radam::DefaultFloatMode mode;
            return radam::rho(radam::power_sums(beta2, checked_step(t)));
        },
        "beta2"_a, "t"_a, "The length of the approximated simple moving average at step t.");
    m.def("rho_infinity", &radam::rho_infinity, "beta2"_a, "Its limit, 2 / (1 - beta2) - 1.");

    // For jax.ffi.register_ffi_target.
    m.def(
        "jax_coefficients", [] { return capsule(&radam::python::jax::coefficients); },
        nb::sig("def jax_coefficients() -> object"));
    m.def("jax_step", [] { return capsule(&radam::python::jax::step); }, nb::sig("def jax_step() -> object"));
    m.def(
        "jax_step_on_cuda", [] { return capsule(&radam::python::jax::step_on_cuda); },
        nb::sig("def jax_step_on_cuda() -> object"));

    m.def("isas", &radam::isas, "The names that RADAM_ISA takes on this machine, best first.");
    m.def("isa", &radam::current_isa, "The instruction set in use.");
    m.def("set_isa", &radam::set_isa, "name"_a, "Use another instruction set from now on: for tests.");
    m.def("why_cuda_is_off", &radam::python::why_cuda_is_off, "Why CUDA cannot be used; empty where it can.");
    m.def("cuda_devices", &radam::python::cuda_devices, "A line for each CUDA device that can be used.");
    m.def("set_cuda_library", &radam::python::set_cuda_library, "path"_a,
          "Where the library radam::cuda lies, which is loaded when it is next asked for.");
    m.def("num_threads", &radam::num_threads, "Threads that a step may use.");
    m.def("set_num_threads", &radam::set_num_threads, "count"_a, "Use another number of threads from now on.");
}
