// The C interface between XLA and what it calls (jaxlib's xla/ffi/api/c_api.h), as far as a handler reads it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace radam::python::xla {

// What is declared here lies the same in all of these; what changed between them is not read.
constexpr int major_version = 0, oldest_minor = 1, newest_minor = 3;

enum class ExtensionKind : std::int32_t { metadata = 1 };
struct Extension {
    std::size_t struct_size;
    ExtensionKind kind;
    Extension* next;
};

struct Version {
    std::size_t struct_size;
    Extension* extensions;
    int major, minor;
};

struct Error;  // XLA's own
enum class ErrorCode : std::int32_t { invalid_argument = 3, unimplemented = 12, internal = 13 };
struct ErrorCreate {
    std::size_t struct_size;
    Extension* extensions;
    const char* message;
    ErrorCode code;
};

struct Context;  // XLA's own
struct StreamGet {
    std::size_t struct_size;
    Extension* extensions;
    Context* context;
    void* stream;  // out: a cudaStream_t
};
struct DeviceGet {
    std::size_t struct_size;
    Extension* extensions;
    Context* context;
    std::int32_t device;  // out
};

enum class Type : std::int32_t {
    pred = 1,
    s32 = 4,
    s64 = 5,
    u32 = 8,
    f16 = 10,
    f32 = 11,
    f64 = 12,
    bf16 = 16,
};

struct Buffer {
    std::size_t struct_size;
    Extension* extensions;
    Type dtype;
    void* data;
    std::int64_t rank;
    std::int64_t* dims;
};

enum class BufferKind : std::int32_t { buffer = 1 };
struct Buffers {  // arguments, and results
    std::size_t struct_size;
    Extension* extensions;
    std::int64_t size;
    BufferKind* kinds;
    void** buffers;
};

enum class AttributeKind : std::int32_t { array = 1, scalar = 3 };
struct Span {
    const char* data;
    std::size_t size;
};
struct Scalar {
    Type dtype;
    void* value;
};
struct Array {
    Type dtype;
    std::size_t size;
    void* data;
};
struct Attributes {  // sorted by name
    std::size_t struct_size;
    Extension* extensions;
    std::int64_t size;
    AttributeKind* kinds;
    Span** names;
    void** values;
};

// The table of XLA's functions, of which these are called.
struct Api {
    std::size_t struct_size;
    Extension* extensions;
    Version version;
    const void* internal;
    Error* (*create_error)(ErrorCreate*);
    void (*error_message)();
    void (*destroy_error)();
    void (*register_handler)();
    Error* (*get_stream)(StreamGet*);
    void (*others[12])();
    Error* (*get_device)(DeviceGet*);  // from 0.6 of jaxlib on
};

enum class Stage : std::int32_t { instantiate, prepare, initialize, execute };
struct CallFrame {
    std::size_t struct_size;
    Extension* extensions;
    const Api* api;
    Context* context;
    Stage stage;
    Buffers arguments, results;
    Attributes attributes;
};

// What XLA asks for when a handler is registered. Behind it newer ones have the type of a state, which is 0 (none) when
// it is handed in, and no part of what their struct_size tells: it is not written here.
struct Metadata {
    std::size_t struct_size;
    Version version;       // out
    std::uint32_t traits;  // out
};
struct MetadataExtension {
    Extension base;
    Metadata* metadata;
};

using Handler = Error*(CallFrame*);

}  // namespace radam::python::xla
