#include "import_array.hpp"

#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#define NPY_TARGET_VERSION NPY_1_22_API_VERSION
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <numpy/arrayobject.h>

#include <atomic>
#include <cstring>
#include <optional>
#include <typeinfo>

#include "cuda_library.hpp"

namespace nb = nanobind;

namespace radam::python {
namespace {

constexpr const char* accepted = "float64, float32, bfloat16 or float16";

[[noreturn]] void refuse_type(const Where& where, const std::string& what) {
    throw nb::type_error((where.text() + " " + what).c_str());
}

[[noreturn]] void refuse_dtype(const Where& where, const std::string& dtype) {
    std::string remedy;
    if (dtype.rfind("complex", 0) == 0) remedy = "; view it as real numbers, array.view('float32') for complex64";
    refuse_type(where, "has dtype " + dtype + "; accepted are " + accepted + " in the machine's byte order" + remedy);
}

[[noreturn]] void refuse_read_only(const Where& where) {
    refuse_value(where, "is read-only, and a step writes to it; hand in a writable array (a copy of this one, say)");
}

using Source = Reader::Source;

// NumPy knows bfloat16 only as a type that a package (ml_dtypes) registers at run time.
bool is_bfloat16(PyArray_Descr* descr) {
    static std::atomic<int> known{-1};
    const int number = descr->type_num;
    if (number < NPY_USERDEF) return false;
    if (number == known.load(std::memory_order_relaxed)) return true;
    const nb::object dtype = nb::borrow<nb::object>(reinterpret_cast<PyObject*>(descr));
    if (nb::cast<std::string>(nb::str(dtype.attr("name"))) != "bfloat16") return false;
    if (nb::cast<int>(dtype.attr("itemsize")) != 2) return false;
    known.store(number, std::memory_order_relaxed);
    return true;
}

DType numpy_dtype(PyArrayObject* array, Access access, const Where& where) {
    PyArray_Descr* const descr = PyArray_DESCR(array);
    if (PyArray_ISNOTSWAPPED(array)) {
        switch (descr->type_num) {
            case NPY_FLOAT: return DType::fp32;
            case NPY_DOUBLE: return DType::fp64;
            case NPY_HALF: return DType::fp16;
            default:
                if (is_bfloat16(descr)) return DType::bf16;
        }
        if (access == Access::write_integers) {
            if (descr->type_num == NPY_INT8) return DType::int8;
            if (descr->type_num == NPY_UINT8) return DType::uint8;
            if (descr->type_num == NPY_INT16) return DType::int16;
        }
    }
    const nb::object dtype = nb::borrow<nb::object>(reinterpret_cast<PyObject*>(descr));
    refuse_dtype(where, nb::cast<std::string>(nb::str(dtype)) + (PyArray_ISNOTSWAPPED(array) ? "" : " (byte-swapped)"));
}

DType dlpack_dtype(const dlpack::DataType& dtype, Access access, const Where& where) {
    if (dtype.lanes == 1 && dtype.code == dlpack::code_float) {
        if (dtype.bits == 32) return DType::fp32;
        if (dtype.bits == 64) return DType::fp64;
        if (dtype.bits == 16) return DType::fp16;
    }
    if (dtype.lanes == 1 && dtype.code == dlpack::code_bfloat && dtype.bits == 16) return DType::bf16;
    if (access == Access::write_integers && dtype.lanes == 1) {
        if (dtype.code == dlpack::code_int && dtype.bits == 8) return DType::int8;
        if (dtype.code == dlpack::code_uint && dtype.bits == 8) return DType::uint8;
        if (dtype.code == dlpack::code_int && dtype.bits == 16) return DType::int16;
    }
    if (dtype.code == 6 && dtype.lanes == 1) refuse_dtype(where, "bool");
    static constexpr const char* names[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
    const std::string name =
        dtype.code < 7 ? names[dtype.code] : "of DLPack code " + std::to_string(dtype.code) + ", bits ";
    refuse_dtype(where,
                 name + std::to_string(dtype.bits) + (dtype.lanes == 1 ? "" : "x" + std::to_string(dtype.lanes)));
}

DType buffer_dtype(const Py_buffer& view, Access access, const Where& where) {
    const char* format = view.format != nullptr ? view.format : "B";
    constexpr char native = PY_LITTLE_ENDIAN ? '<' : '>';
    const char* code = format;
    if (*code == '@' || *code == '=' || *code == native) ++code;
    if (std::strcmp(code, "f") == 0 && view.itemsize == 4) return DType::fp32;
    if (std::strcmp(code, "d") == 0 && view.itemsize == 8) return DType::fp64;
    if (std::strcmp(code, "e") == 0 && view.itemsize == 2) return DType::fp16;
    if (access == Access::write_integers) {
        if (std::strcmp(code, "b") == 0) return DType::int8;
        if (std::strcmp(code, "B") == 0) return DType::uint8;
        if (std::strcmp(code, "h") == 0 && view.itemsize == 2) return DType::int16;
    }
    refuse_dtype(where, "'" + std::string(format) + "' (a buffer format)");
}

// What an exporter's exception says. An interrupt, an exit or a lack of memory is not the array's fault: it goes on.
std::string reason(nb::python_error& error) {
    if (!error.matches(PyExc_Exception) || error.matches(PyExc_MemoryError)) throw std::move(error);
    return nb::cast<std::string>(nb::str(error.value()));
}

bool is_c_contiguous_in_elements(const dlpack::Tensor& tensor) noexcept {
    std::int64_t expected = 1;
    for (int d = tensor.ndim; d-- > 0;) {
        if (tensor.shape[d] > 1 && tensor.strides[d] != expected) return false;
        expected *= tensor.shape[d];  // no overflow: is_countable holds
    }
    return true;
}

constexpr const char* too_large = "claims a shape or strides that no memory can hold";
constexpr std::int64_t most_stride = std::int64_t{1} << 58;  // in elements

void check_size(const Layout& layout, const Where& where) {
    if (!is_countable(layout)) refuse_value(where, too_large);
}

void check_dims(std::int64_t ndim, const Where& where) {
    if (ndim >= 0 && ndim <= most_dims) return;
    refuse_value(where,
                 "has " + std::to_string(ndim) + " dimensions; at most " + std::to_string(most_dims) + " are taken");
}

void check_number(const Array& array, const Where& where) {
    if (element_count(array.layout) != 1) refuse_value(where, "must hold one number");
    if (array.dtype != DType::fp64 && array.dtype != DType::fp32) refuse_value(where, "must be float32 or float64");
}

}  // namespace

std::string Where::text() const {
    std::string text = std::string(role) + " " + std::to_string(index);
    if (names != nullptr && names != Py_None && index < static_cast<std::size_t>(PyTuple_Size(names))) {
        const nb::object name = nb::borrow<nb::object>(PyTuple_GetItem(names, static_cast<Py_ssize_t>(index)));
        if (!name.is_none()) text += " (" + nb::cast<std::string>(nb::repr(name)) + ")";
    }
    return text + " of group " + std::to_string(group);
}

void refuse_value(const Where& where, const std::string& what) {
    throw nb::value_error((where.text() + " " + what).c_str());
}

std::string device_text(int device) {
    return device == Array::on_cpu ? "the CPU" : "CUDA device " + std::to_string(device);
}

bool load_numpy() noexcept { return _import_array() >= 0; }

void Imports::own(PyObject* object) {
    owned_.push_back(object);
    Py_INCREF(object);
}

void Imports::release() noexcept {
    for (Py_buffer& view : buffers_) PyBuffer_Release(&view);
    for (PyObject* object : owned_) Py_DECREF(object);
    buffers_.clear();
    owned_.clear();
    strides_.clear();
    streams_.forget();
    seen_[0] = seen_[1] = {};  // a type may die, and another one take its address
}

const Reader& Imports::reader_of(PyObject* object) {
    PyTypeObject* const type = Py_TYPE(object);
    if (seen_[0].type == type) return *seen_[0].reader;
    if (seen_[1].type == type) return *seen_[1].reader;
    seen_[1] = seen_[0];
    static constexpr Reader numpy{Source::numpy, nullptr};
    seen_[0] = {type, PyArray_Check(object) ? &numpy : &known_reader(object)};
    return *seen_[0].reader;
}

Array Imports::add(PyObject* object, Access access, const Where& where) {
    const Reader& reader = reader_of(object);
    switch (reader.source) {
        case Source::numpy: return from_numpy(object, access, where);
        case Source::exchange: return from_exchange(reader, object, access, where);
        case Source::dlpack: return from_dlpack(object, access, where);
        case Source::buffer: return from_buffer(object, access, where);
        case Source::jax:
            if (access == Access::read) return from_dlpack(object, access, where);
            refuse_value(where,
                         "is a JAX array, which must not change in place: radam.jax is there for those; or keep the "
                         "parameters as NumPy arrays (numpy.array(x) makes a copy) and hand JAX gradients to "
                         "step(grads=...)");
        case Source::nothing: break;
    }
    const std::string name = type_name(object);
    if (name.rfind("mindspore.", 0) == 0)
        refuse_type(where, "is a " + name + ", which has no __dlpack__: radam.mindspore is there for those");
    refuse_type(where, "is a " + name +
                           ", not an array: hand in a NumPy array, a tensor with __dlpack__, or "
                           "an object with the buffer protocol, of dtype " +
                           accepted);
}

Array Imports::from_numpy(PyObject* object, Access access, const Where& where) {
    PyArrayObject* const array = reinterpret_cast<PyArrayObject*>(object);
    static_assert(sizeof(npy_intp) == sizeof(std::int64_t), "64-bit platforms only");
    if (!PyArray_CheckExact(object) && nb::hasattr(nb::handle(object), "mask"))
        refuse_type(where, "is a masked array, and a step would ignore the mask; hand in its .data");
    Array out;
    out.dtype = numpy_dtype(array, access, where);
    if (access != Access::read && !PyArray_ISWRITEABLE(array)) refuse_read_only(where);
    out.data = PyArray_DATA(array);
    out.layout.ndim = PyArray_NDIM(array);
    out.layout.shape = reinterpret_cast<const std::int64_t*>(PyArray_DIMS(array));
    if (!PyArray_IS_C_CONTIGUOUS(array))
        out.layout.strides = reinterpret_cast<const std::int64_t*>(PyArray_STRIDES(array));
    out.layout.itemsize = size_of(out.dtype);
    return out;
}

Array Imports::from_dlpack(PyObject* object, Access access, const Where& where) {
    nb::object source = nb::borrow<nb::object>(object);
    nb::object capsule;
    nb::dict options;
    options["max_version"] = nb::make_tuple(1, 3);
    try {
        // Torch exports no tensor that requires gradients; detached, it is the same memory.
        if (nb::hasattr(source, "requires_grad") && nb::cast<bool>(nb::bool_(source.attr("requires_grad"))))
            source = source.attr("detach")();
        // Torch also exports a lazily negated view (the imaginary part of a conjugate) without its sign.
        if (nb::hasattr(source, "is_neg") && nb::cast<bool>(nb::bool_(source.attr("is_neg")()))) {
            if (access != Access::read)
                refuse_value(where,
                             "is a lazily negated view, which cannot change in place; hand in its resolve_neg()");
            source = source.attr("resolve_neg")();
        }
        const std::optional<int> device = cuda_device_of(source);
        if (device) {
            streams_.follow(*device, Py_TYPE(object), [&] { return current_stream(source, *device); });
            // The producer makes this stream wait for whatever it still has to do to the array.
            options["stream"] = Streams::number(streams_.of(*device));
        }
        try {
            capsule = exported(source, device, options);
        } catch (nb::python_error& error) {
            if (!error.matches(PyExc_TypeError)) throw;
            PyDict_DelItemString(options.ptr(), "max_version");  // a producer of before DLPack 1.0
            capsule = exported(source, device, options);
        }
    } catch (nb::python_error& error) {
        refuse_type(where, "(a " + type_name(object) + ") cannot be read through DLPack: " + reason(error));
    } catch (const std::bad_cast&) {
        refuse_type(where, "(a " + type_name(object) + ") does not say its device or stream as DLPack does");
    }

    // The capsule keeps its name, so that its own destructor calls the deleter when it is released.
    const dlpack::Tensor* tensor = nullptr;
    bool read_only = false, copied = false;
    if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
        const auto* managed =
            static_cast<const dlpack::ManagedVersioned*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
        if (managed->major != 1)
            refuse_type(where,
                        "is exported as DLPack " + std::to_string(managed->major) + "; this build reads version 1");
        read_only = (managed->flags & dlpack::flag_read_only) != 0;
        copied = (managed->flags & dlpack::flag_copied) != 0;
        tensor = &managed->tensor;
    } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
        tensor = &static_cast<const dlpack::Managed*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"))->tensor;
    } else {
        refuse_type(where, "(a " + type_name(object) + ") gave something else than a DLPack capsule");
    }

    if (access != Access::read && read_only) refuse_read_only(where);
    if (access != Access::read && copied)
        refuse_value(where, "is exported as a copy, which the step would update in vain");
    const Array out = from_tensor(*tensor, access, where);
    own(capsule.ptr());
    return out;
}

Array Imports::from_tensor(const dlpack::Tensor& tensor, Access access, const Where& where) {
    const std::int32_t type = tensor.device.type;
    const bool is_on_cuda = type == dlpack::cuda || type == dlpack::cuda_managed;
    if (!is_on_cuda && type != dlpack::cpu && type != dlpack::cuda_host) {
        const std::string device = "DLPack type " + std::to_string(type);
        if (access == Access::read)
            refuse_value(where, "is on another device (" + device + ") than the parameter; move it there");
        throw std::runtime_error(where.text() + " is on a device (" + device +
                                 ") that radam cannot reach; move it to the CPU");
    }
    if (is_on_cuda && tensor.device.id < 0)
        refuse_value(where, "is exported from CUDA device " + std::to_string(tensor.device.id) + ", which is none");
    if (is_on_cuda && access != Access::read && cuda_library() == nullptr)
        throw std::runtime_error(where.text() + " is on a CUDA device, and " + why_cuda_is_off() +
                                 "; or move it to the CPU");
    check_dims(tensor.ndim, where);
    if (tensor.ndim > 0 && tensor.shape == nullptr) refuse_value(where, "is exported without a shape");

    Array out;
    out.dtype = dlpack_dtype(tensor.dtype, access, where);
    out.layout = {tensor.ndim, tensor.shape, nullptr, size_of(out.dtype)};
    for (int d = 0; d < tensor.ndim; ++d)
        if (tensor.shape[d] < 0) refuse_value(where, "is exported with a negative size");
    check_size(out.layout, where);
    if (tensor.strides != nullptr && !is_c_contiguous_in_elements(tensor)) {
        std::vector<std::int64_t> strides(tensor.strides, tensor.strides + tensor.ndim);
        for (int d = 0; d < tensor.ndim; ++d) {
            std::int64_t& stride = strides[static_cast<std::size_t>(d)];
            if (tensor.shape[d] <= 1) stride = 1;  // it is never taken, and may be anything
            if (stride <= -most_stride || stride >= most_stride) refuse_value(where, too_large);
            stride *= out.layout.itemsize;
        }
        Layout strided = out.layout;
        strided.strides = strides.data();
        check_size(strided, where);
        if (!is_c_contiguous(strided)) {
            strides_.push_back(std::move(strides));
            out.layout.strides = strides_.back().data();
        }
    }
    if (tensor.data == nullptr) {
        if (element_count(out.layout) != 0) refuse_value(where, "is exported without data");
    } else {
        out.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
    }
    if (is_on_cuda) {
        out.device = tensor.device.id;
        if (reinterpret_cast<std::uintptr_t>(out.data) % static_cast<std::uintptr_t>(out.layout.itemsize) != 0)
            refuse_value(
                where,
                "does not lie at a multiple of its element size, which a CUDA device needs; hand in a copy of it");
        streams_.follow_default(out.device);
    }
    return out;
}

// No capsule and no attribute lookups: the tensor borrows from the object, which the call holds.
Array Imports::from_exchange(const Reader& reader, PyObject* object, Access access, const Where& where) {
    if (reader.may_be_sparse && !nb::cast<bool>(nb::bool_(nb::handle(object).attr("is_dense")())))
        refuse_type(where, "is a Paddle tensor that is not dense; an Embedding takes sparse=False");
    dlpack::Tensor tensor;
    if (reader.api->tensor_from_object(object, &tensor) != 0) {
        PyErr_Clear();  // __dlpack__ says better what is wrong
        return from_dlpack(object, access, where);
    }
    const bool is_on_cuda = tensor.device.type == dlpack::cuda || tensor.device.type == dlpack::cuda_managed;
    const auto current = [&] { return current_stream(*reader.api, tensor.device.id); };
    if (is_on_cuda && !streams_.follow(tensor.device.id, reader.api, current))
        return from_dlpack(object, access, where);  // it makes the stream of another framework wait
    const Array out = from_tensor(tensor, access, where);
    // A lazily negated view (the imaginary part of a conjugate) is described without its sign. Its strides are even, so
    // that only a single element of one looks contiguous.
    if (out.layout.strides != nullptr || element_count(out.layout) == 1) {
        const nb::handle handle(object);
        if (nb::hasattr(handle, "is_neg") && nb::cast<bool>(nb::bool_(handle.attr("is_neg")())))
            return from_dlpack(object, access, where);
    }
    return out;
}

Array Imports::from_buffer(PyObject* object, Access access, const Where& where) {
    Py_buffer view;
    if (PyObject_GetBuffer(object, &view, PyBUF_STRIDES | PyBUF_FORMAT) != 0) {
        nb::python_error error;
        refuse_type(where,
                    "(a " + type_name(object) + ") cannot be read through the buffer protocol: " + reason(error));
    }
    buffers_.push_back(view);
    if (access != Access::read && view.readonly != 0) refuse_read_only(where);
    check_dims(view.ndim, where);

    Array out;
    out.dtype = buffer_dtype(view, access, where);
    out.data = view.buf;
    static_assert(sizeof(Py_ssize_t) == sizeof(std::int64_t), "64-bit platforms only");
    // Copied: a Py_buffer may point into itself, and this one moves with its vector.
    std::vector<std::int64_t> numbers(view.shape, view.shape + view.ndim);
    const bool strided = view.strides != nullptr;  // ctypes gives none, though asked
    if (strided) numbers.insert(numbers.end(), view.strides, view.strides + view.ndim);
    strides_.push_back(std::move(numbers));
    const std::int64_t* const held = strides_.back().data();
    out.layout = {view.ndim, held, strided ? held + view.ndim : nullptr, size_of(out.dtype)};
    check_size(out.layout, where);
    if (is_c_contiguous(out.layout)) out.layout.strides = nullptr;
    return out;
}

std::int64_t* Imports::add_counters(PyObject* object, std::size_t count) {
    PyArrayObject* const array = reinterpret_cast<PyArrayObject*>(object);
    if (!PyArray_Check(object) || PyArray_TYPE(array) != NPY_INT64 || !PyArray_ISCARRAY(array) ||
        PyArray_NDIM(array) != 1 || PyArray_DIM(array, 0) != static_cast<npy_intp>(count))
        throw nb::type_error("step counts must be a writable int64 array with one element per parameter");
    return static_cast<std::int64_t*>(PyArray_DATA(array));
}

Count Imports::add_count(PyObject* object, const Where& where) {
    const Reader& reader = reader_of(object);
    dlpack::Tensor tensor;
    if (reader.source == Source::exchange) {
        if (reader.api->tensor_from_object(object, &tensor) != 0)
            PyErr_Clear();
        else if (tensor.ndim == 0 && tensor.device.type == dlpack::cpu && tensor.data != nullptr &&
                 tensor.dtype.code == dlpack::code_float && tensor.dtype.lanes == 1 && tensor.dtype.bits >= 32) {
            void* const data = static_cast<char*>(tensor.data) + tensor.byte_offset;
            if (tensor.dtype.bits == 32) return {{data, Counter::Kind::fp32}, {}};
            if (tensor.dtype.bits == 64) return {{data, Counter::Kind::fp64}, {}};
        }
    }
    const Array array = add(object, Access::write, where);
    check_number(array, where);
    if (array.device != Array::on_cpu) return {{nullptr, Counter::Kind::fp32}, {array.data, array.dtype}, array.device};
    return {{array.data, array.dtype == DType::fp64 ? Counter::Kind::fp64 : Counter::Kind::fp32}, {}};
}

cuda::Number Imports::add_number(PyObject* object, int device, const Where& where) {
    if (object == Py_None) return {};
    const Array array = add(object, Access::read, where);
    check_number(array, where);
    if (array.device != device)
        refuse_value(where, "is on " + device_text(array.device) + ", the parameter on " + device_text(device));
    return {array.data, array.dtype};
}

}  // namespace radam::python
