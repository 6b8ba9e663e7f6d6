#include "streams.hpp"

#include <nanobind/stl/string.h>

#include <string>

namespace nb = nanobind;

namespace radam::python {

std::optional<int> cuda_device_of(const nb::object& array) {
    if (!nb::hasattr(array, "__dlpack_device__")) return std::nullopt;
    const nb::object device = array.attr("__dlpack_device__")();
    const int type = nb::cast<int>(nb::int_(device[0]));
    if (type != dlpack::cuda && type != dlpack::cuda_managed) return std::nullopt;
    return nb::cast<int>(nb::int_(device[1]));
}

void* current_stream(const nb::object& array, int device) {
    const nb::object modules = nb::module_::import_("sys").attr("modules");
    const nb::handle type(reinterpret_cast<PyObject*>(Py_TYPE(array.ptr())));
    for (const nb::handle base : type.attr("__mro__")) {  // a subclass works on its parent's stream
        const std::string module = nb::cast<std::string>(nb::str(base.attr("__module__")));
        const std::string root = module.substr(0, module.find('.'));
        if (root != "torch" && root != "cupy") continue;
        const nb::object cuda = modules[root.c_str()].attr("cuda");
        const nb::object stream = root == "torch" ? cuda.attr("current_stream")(device).attr("cuda_stream")
                                                  : cuda.attr("get_current_stream")(device).attr("ptr");
        return reinterpret_cast<void*>(nb::cast<std::uintptr_t>(stream));
    }
    return nullptr;
}

void* current_stream(const dlpack::ExchangeApi& api, int device) {
    void* stream = nullptr;
    if (api.current_work_stream != nullptr && api.current_work_stream(dlpack::cuda, device, &stream) != 0)
        throw nb::python_error();
    return stream;
}

}  // namespace radam::python
