#include "collect.hpp"

#include <vector>

namespace nb = nanobind;

namespace radam::python {
namespace {

// mapping[key], borrowed or kept by held; null where it is missing.
PyObject* entry(PyObject* mapping, PyObject* key, nb::object& held) {
    if (PyDict_Check(mapping)) {  // not the [] of a defaultdict, which would make one
        PyObject* const found = PyDict_GetItemWithError(mapping, key);
        if (found == nullptr && PyErr_Occurred() != nullptr) throw nb::python_error();
        return found;
    }
    held = nb::steal<nb::object>(PyObject_GetItem(mapping, key));
    if (!held.is_valid()) {
        nb::python_error error;
        if (!error.matches(PyExc_KeyError)) throw std::move(error);
    }
    return held.ptr();
}

// The entry of a state for a key, or for the first one of several that is there; None where the last of these is None.
PyObject* value_of(PyObject* state, PyObject* key, nb::object& held) {
    if (!PyTuple_Check(key)) return entry(state, key, held);
    const Py_ssize_t count = PyTuple_Size(key);
    for (Py_ssize_t i = 0; i < count; ++i) {
        PyObject* const one = PyTuple_GetItem(key, i);
        if (one == Py_None) return Py_None;
        if (PyObject* const found = entry(state, one, held); found != nullptr) return found;
    }
    return nullptr;
}

// Looks parameters up in the state. A dict keeps the order of insertion, usually that of the parameters: walking along
// it spares the hash, which PyTorch computes in Python.
class Walk {
public:
    explicit Walk(nb::handle state) : state_(state.ptr()), ordered_(PyDict_Check(state.ptr()) != 0) {}

    PyObject* find(PyObject* param, nb::object& held) {
        Py_ssize_t at = at_;
        PyObject *key, *value;
        for (int tried = 0; ordered_ && (!started_ || tried < most_skipped) && PyDict_Next(state_, &at, &key, &value);
             ++tried)
            if (key == param) {
                at_ = at;
                started_ = true;
                return value;
            }
        started_ = true;
        return entry(state_, param, held);
    }

private:
    static constexpr int most_skipped = 8;
    PyObject* state_;
    bool ordered_, started_ = false;  // the first one may lie anywhere: other groups come before
    Py_ssize_t at_ = 0;
};

// A tuple that is filled in place; what is not filled is None.
class Column {
public:
    explicit Column(std::size_t size) : tuple_(nb::steal<nb::object>(PyTuple_New(static_cast<Py_ssize_t>(size)))) {
        if (!tuple_.is_valid()) throw nb::python_error();
        for (std::size_t i = 0; i < size; ++i) put(i, Py_None);
    }
    // Once per index but for None.
    void put(std::size_t i, PyObject* value) {
        Py_INCREF(value);
        PyTuple_SetItem(tuple_.ptr(), static_cast<Py_ssize_t>(i), value);
    }
    PyObject* at(std::size_t i) const { return PyTuple_GetItem(tuple_.ptr(), static_cast<Py_ssize_t>(i)); }
    nb::object take() { return std::move(tuple_); }

private:
    nb::object tuple_;
};

}  // namespace

nb::tuple collect(nb::handle list, nb::handle state, const nb::tuple& keys) {
    // A getter may change the list, but not this.
    const nb::object params = nb::steal<nb::object>(PySequence_Tuple(list.ptr()));
    if (!params.is_valid()) throw nb::python_error();
    const std::size_t count = nb::len(params), width = keys.size();
    const auto param = [&](std::size_t i) { return PyTuple_GetItem(params.ptr(), static_cast<Py_ssize_t>(i)); };
    const nb::object grad_name = nb::steal<nb::object>(PyUnicode_InternFromString("grad"));
    Column grads(count);
    std::vector<Column> columns;
    for (std::size_t k = 0; k < width; ++k) columns.emplace_back(count);
    for (std::size_t i = 0; i < count; ++i) {
        const nb::object grad = nb::steal<nb::object>(PyObject_GetAttr(param(i), grad_name.ptr()));
        if (!grad.is_valid()) throw nb::python_error();
        grads.put(i, grad.ptr());
    }
    nb::list fresh;
    std::size_t present = 0;
    const nb::ft_object_guard guard(state);
    Walk walk(state);
    for (std::size_t i = 0; i < count; ++i) {
        if (grads.at(i) == Py_None) continue;
        ++present;
        nb::object held, held_value;
        const nb::object found = nb::borrow<nb::object>(walk.find(param(i), held));
        bool whole = found.is_valid();
        for (std::size_t k = 0; whole && k < width; ++k) {
            PyObject* const value = value_of(found.ptr(), nb::object(keys[k]).ptr(), held_value);
            if (value != nullptr && value != Py_None) columns[k].put(i, value);
            whole = value != nullptr;
        }
        if (!whole) fresh.append(i);
    }
    nb::list out;
    out.append(params);
    out.append(grads.take());
    for (Column& column : columns) out.append(column.take());
    out.append(fresh);
    out.append(present);
    return nb::tuple(out);
}

}  // namespace radam::python
