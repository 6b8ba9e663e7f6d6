// Arrays in: every check that an array must pass before a step may touch its memory.
#pragma once

#include <Python.h>
#include <radam/cuda.hpp>
#include <radam/dtype.hpp>
#include <radam/layout.hpp>

#include <cstddef>
#include <deque>
#include <string>
#include <vector>

#include "counter.hpp"
#include "dlpack.hpp"
#include "reader.hpp"
#include "streams.hpp"

namespace radam::python {

// Which array of which parameter, for messages.
struct Where {
    const char* role;  // "param", "grad", "exp_avg", ...
    std::size_t group, index;
    PyObject* names = nullptr;  // a tuple, or None

    std::string text() const;
};

[[noreturn]] void refuse_value(const Where& where, const std::string& what);

enum class Access { read, write, write_integers };  // the last also takes int8, uint8 and int16

// Borrowed memory of an array.
struct Array {
    void* data = nullptr;
    DType dtype = DType::fp32;
    int device = on_cpu;  // else the number of a CUDA device
    Layout layout;

    static constexpr int on_cpu = -1;
};

// "the CPU" or "CUDA device 1".
std::string device_text(int device);

// The steps that a parameter has taken, counted on the host or, where `number` has data, on the parameter's device.
struct Count {
    Counter counter;
    cuda::Number number;
    int device = Array::on_cpu;
};

// What keeps the arrays of one call alive and in place, until release.
class Imports {
public:
    Imports() = default;
    Imports(const Imports&) = delete;
    Imports& operator=(const Imports&) = delete;
    ~Imports() { release(); }

    // The caller holds the objects until release, in tuples, say. What only stands for one is held here.
    // Throws TypeError where object is no array of a supported dtype, ValueError where it must not be written,
    // RuntimeError where it is to be written on a device that cannot be reached.
    Array add(PyObject* object, Access access, const Where& where);

    // The elements of a writable int64 array of the given length, in C order.
    std::int64_t* add_counters(PyObject* object, std::size_t count);

    // A writable array of one float32 or float64, on the CPU or a CUDA device.
    Count add_count(PyObject* object, const Where& where);

    // One float32 or float64 on this device; none for None.
    cuda::Number add_number(PyObject* object, int device, const Where& where);

    const Streams& streams() const noexcept { return streams_; }

    // Needs the GIL.
    void release() noexcept;

private:
    Array from_numpy(PyObject* array, Access access, const Where& where);
    Array from_exchange(const Reader& reader, PyObject* object, Access access, const Where& where);
    Array from_dlpack(PyObject* object, Access access, const Where& where);
    Array from_tensor(const dlpack::Tensor& tensor, Access access, const Where& where);
    Array from_buffer(PyObject* object, Access access, const Where& where);
    const Reader& reader_of(PyObject* object);
    void own(PyObject* object);

    struct Seen {
        PyTypeObject* type = nullptr;
        const Reader* reader = nullptr;
    };
    Streams streams_;
    Seen seen_[2];  // most arrays of a call are of two types: parameters and tensors
    std::vector<PyObject*> owned_;
    std::vector<Py_buffer> buffers_;
    std::deque<std::vector<std::int64_t>> strides_;
};

// Loads NumPy's C interface; false with a Python error set where it cannot be had.
bool load_numpy() noexcept;

}  // namespace radam::python
