// The binary layout of DLPack 1.x (https://dmlc.github.io/dlpack/latest/c_api.html), as far as an importer reads it.
#pragma once

#include <cstdint>

namespace radam::python::dlpack {

struct Device {
    std::int32_t type;
    std::int32_t id;
};
constexpr std::int32_t cpu = 1, cuda = 2, cuda_host = 3, cuda_managed = 13;

struct DataType {
    std::uint8_t code, bits;
    std::uint16_t lanes;
};
constexpr std::uint8_t code_int = 0, code_uint = 1, code_float = 2, code_bfloat = 4, code_complex = 5;

struct Tensor {
    void* data;
    Device device;
    std::int32_t ndim;
    DataType dtype;
    std::int64_t* shape;
    std::int64_t* strides;  // in elements; null for C order
    std::uint64_t byte_offset;
};

struct Managed {  // capsule "dltensor"
    Tensor tensor;
    void* manager;
    void (*deleter)(Managed*);
};

struct ManagedVersioned {  // capsule "dltensor_versioned"
    std::uint32_t major, minor;
    void* manager;
    void (*deleter)(ManagedVersioned*);
    std::uint64_t flags;
    Tensor tensor;
};
constexpr std::uint64_t flag_read_only = 1, flag_copied = 2;

// The table of functions behind type(tensor).__dlpack_c_exchange_api__, a capsule of the name below. An importer calls
// only the one that fills in a Tensor, which borrows everything and may be absent.
constexpr const char* exchange_capsule = "dlpack_exchange_api";
struct ExchangeApi {
    std::uint32_t major, minor;
    ExchangeApi* previous;  // of an older major version, or null
    void (*allocate)();
    void (*managed_from_object)();
    void (*managed_to_object)();
    int (*tensor_from_object)(void* object, Tensor* out);  // 0, or -1 with a Python error set
    int (*current_work_stream)(std::int32_t device_type, std::int32_t device_id, void** out);
};

}  // namespace radam::python::dlpack
