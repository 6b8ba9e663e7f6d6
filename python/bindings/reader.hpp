// How the arrays of a Python type are read, found once per type.
#pragma once

#include <Python.h>

#include <string>

#include "dlpack.hpp"

namespace radam::python {

struct Reader {
    enum class Source { numpy, exchange, dlpack, buffer, jax, nothing } source;
    const dlpack::ExchangeApi* api;  // where the source is exchange
    bool may_be_sparse = false;      // Paddle's, which one must not ask for memory that is not dense
};

// For what is no NumPy array. Lives as long as the process, as the type does from now on: no other takes its address.
const Reader& known_reader(PyObject* object);

// "module.Class", for messages.
std::string type_name(PyObject* object);

}  // namespace radam::python
