#include "reader.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <mutex>
#include <unordered_map>

namespace nb = nanobind;

namespace radam::python {
namespace {

using Source = Reader::Source;

// The exchange functions describe the memory of a tensor and nothing else: a subclass that holds something besides, or
// stands for something else, must not come in by its parent's. The parameters of PyTorch and
// Paddle are subclasses that only have another name.
const dlpack::ExchangeApi* exchange_api_of(PyTypeObject* type, const std::string& name) {
    const nb::handle handle(reinterpret_cast<PyObject*>(type));
    constexpr const char* attribute = "__dlpack_c_exchange_api__";
    if (!nb::hasattr(handle, attribute)) return nullptr;
    const bool is_parameter = name == "torch.nn.parameter.Parameter" || name == "paddle.base.framework.EagerParamBase";
    if (!is_parameter && !nb::cast<bool>(handle.attr("__dict__").attr("__contains__")(attribute))) return nullptr;
    const nb::object capsule = handle.attr(attribute);
    if (!PyCapsule_IsValid(capsule.ptr(), dlpack::exchange_capsule)) return nullptr;
    // The table lives as long as the process.
    auto* api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::exchange_capsule));
    while (api != nullptr && api->major != 1) api = api->previous;
    return api != nullptr && api->tensor_from_object != nullptr ? api : nullptr;
}

// Whether it is a subclass of PyTorch's tensor that stands for something else than its own memory.
bool is_wrapper(PyTypeObject* type) {
    constexpr const char* attribute = "__torch_dispatch__";
    const nb::handle handle(reinterpret_cast<PyObject*>(type));
    if (!nb::hasattr(handle, attribute)) return false;
    for (const nb::handle base : handle.attr("__mro__"))
        if (nb::cast<std::string>(nb::str(base.attr("__module__"))) == "torch" &&
            nb::cast<std::string>(nb::str(base.attr("__qualname__"))) == "Tensor")
            return !handle.attr(attribute).is(base.attr(attribute));
    return false;
}

}  // namespace

std::string type_name(PyObject* object) {
    const nb::object type = nb::borrow<nb::object>(reinterpret_cast<PyObject*>(Py_TYPE(object)));
    return nb::cast<std::string>(nb::str(type.attr("__module__"))) + "." +
           nb::cast<std::string>(nb::str(type.attr("__qualname__")));
}

const Reader& known_reader(PyObject* object) {
    static std::mutex mutex;
    static auto& known = *new std::unordered_map<PyTypeObject*, Reader>;
    PyTypeObject* const type = Py_TYPE(object);
    {
        const std::lock_guard lock(mutex);
        if (const auto found = known.find(type); found != known.end()) return found->second;
    }
    Reader reader{Source::nothing, nullptr};
    const std::string name = type_name(object);
    if (name.rfind("jaxlib.", 0) == 0 || name.rfind("jax.", 0) == 0)
        reader.source = Source::jax;
    else if (is_wrapper(type))
        reader.source = Source::nothing;
    else if ((reader.api = exchange_api_of(type, name)) != nullptr) {
        reader.source = Source::exchange;
        reader.may_be_sparse = name.rfind("paddle.", 0) == 0;
    } else if (PyObject_HasAttrString(reinterpret_cast<PyObject*>(type), "__dlpack__"))
        reader.source = Source::dlpack;
    else if (PyObject_CheckBuffer(object))
        reader.source = Source::buffer;
    const std::lock_guard lock(mutex);
    const auto [place, is_new] = known.emplace(type, reader);
    if (is_new) Py_INCREF(reinterpret_cast<PyObject*>(type));
    return place->second;
}

}  // namespace radam::python
