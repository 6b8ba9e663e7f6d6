#include "streams.hpp"

#include <nanobind/stl/string.h>

#include <string>
#include <utility>

namespace nb = nanobind;

namespace radam::python {
namespace {

nb::object module(const std::string& name) { return nb::module_::import_("sys").attr("modules")[name.c_str()]; }

// "torch" or "cupy" where an array is of one of those or of a subclass, else empty.
std::string framework_of(const nb::object& array) {
    const nb::handle type(reinterpret_cast<PyObject*>(Py_TYPE(array.ptr())));
    for (const nb::handle base : type.attr("__mro__")) {
        const std::string name = nb::cast<std::string>(nb::str(base.attr("__module__")));
        const std::string root = name.substr(0, name.find('.'));
        if (root == "torch" || root == "cupy") return root;
    }
    return "";
}

}  // namespace

std::optional<int> cuda_device_of(const nb::object& array) {
    if (!nb::hasattr(array, "__dlpack_device__")) return std::nullopt;
    const nb::object device = array.attr("__dlpack_device__")();
    const int type = nb::cast<int>(nb::int_(device[0]));
    if (type != dlpack::cuda && type != dlpack::cuda_managed) return std::nullopt;
    return nb::cast<int>(nb::int_(device[1]));
}

void* current_stream(const nb::object& array, int device) {
    const std::string framework = framework_of(array);
    if (framework.empty()) return nullptr;
    const nb::object cuda = module(framework).attr("cuda");
    const nb::object stream = framework == "torch" ? cuda.attr("current_stream")(device).attr("cuda_stream")
                                                   : cuda.attr("get_current_stream")(device).attr("ptr");
    return reinterpret_cast<void*>(nb::cast<std::uintptr_t>(stream));
}

nb::object exported(const nb::object& array, std::optional<int> device, const nb::dict& options) {
    if (!device || framework_of(array) != "torch") return array.attr("__dlpack__")(**options);
    // PyTorch exports only what lies on the current device.
    const nb::object guard = module("torch").attr("cuda").attr("device")(*device);
    guard.attr("__enter__")();
    nb::object capsule;
    try {
        capsule = array.attr("__dlpack__")(**options);
    } catch (nb::python_error& error) {
        const nb::python_error kept = std::move(error);
        guard.attr("__exit__")(nb::none(), nb::none(), nb::none());
        throw kept;
    }
    guard.attr("__exit__")(nb::none(), nb::none(), nb::none());
    return capsule;
}

void* current_stream(const dlpack::ExchangeApi& api, int device) {
    void* stream = nullptr;
    if (api.current_work_stream != nullptr && api.current_work_stream(dlpack::cuda, device, &stream) != 0)
        throw nb::python_error();
    return stream;
}

}  // namespace radam::python
