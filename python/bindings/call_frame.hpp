// Reads a call frame of XLA's and answers with an error of XLA's. What the frame says is checked before it is used, but
// for what XLA alone can know: that a pointer which is not null leads to what its size says, and that its API is there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>

#include "xla_ffi.hpp"

namespace radam::python::xla {

// Its text is whole when it is thrown: where it is caught no memory can be asked for.
struct Refusal {
    explicit Refusal(const std::string& what, ErrorCode its_code = ErrorCode::invalid_argument)
        : text("radam: " + what), code(its_code) {}

    std::string text;
    ErrorCode code;
};

inline void require(bool holds, const char* text) {
    if (!holds) throw Refusal{text};
}

// Answers XLA's question about this handler; false where it asks for a call.
inline bool answers(const CallFrame& frame) {
    if (frame.extensions == nullptr || frame.extensions->kind != ExtensionKind::metadata) return false;
    require(frame.extensions->struct_size >= sizeof(MetadataExtension), "XLA's metadata extension is too small");
    Metadata* const metadata = reinterpret_cast<MetadataExtension*>(frame.extensions)->metadata;
    require(metadata != nullptr && metadata->struct_size >= offsetof(Metadata, traits) + sizeof(Metadata::traits),
            "XLA's metadata is too small");
    // One of the versions that are known to be the same here, or else the newest of them: XLA then judges.
    const Version& its = frame.api->version;
    const bool known = its.major == major_version && its.minor >= oldest_minor && its.minor <= newest_minor;
    metadata->version.struct_size = sizeof(Version);
    metadata->version.extensions = nullptr;
    metadata->version.major = major_version;
    metadata->version.minor = known ? its.minor : newest_minor;
    metadata->traits = 0;  // a state's type, which newer ones ask for, stays what XLA handed in: none
    return true;
}

template <class Pointer>
bool is_list(std::int64_t size, const void* kinds, const Pointer* parts) noexcept {
    return size == 0 || (size > 0 && kinds != nullptr && parts != nullptr);
}

inline void check_lists(const CallFrame& frame) {
    for (const Buffers* all : {&frame.arguments, &frame.results})
        require(is_list(all->size, all->kinds, all->buffers), "XLA's operands or results are missing");
    const Attributes& attributes = frame.attributes;
    require(is_list(attributes.size, attributes.kinds, attributes.values) &&
                is_list(attributes.size, attributes.kinds, attributes.names),
            "XLA's attributes are missing");
}

inline const Buffer& buffer(const Buffers& all, std::int64_t index) {
    require(all.kinds[index] == BufferKind::buffer, "an operand or result is no buffer");
    const Buffer* const found = static_cast<const Buffer*>(all.buffers[index]);
    require(found != nullptr && found->struct_size >= sizeof(Buffer), "XLA's buffer is too small");
    require(found->rank >= 0 && (found->rank == 0 || found->dims != nullptr), "a buffer has no shape");
    return *found;
}

constexpr std::int64_t most_elements = std::int64_t{1} << 56;  // more than there is memory for

inline std::int64_t elements(const Buffer& b) {
    std::int64_t count = 1;
    for (std::int64_t d = 0; d < b.rank; ++d) {
        require(b.dims[d] >= 0, "a buffer has a negative dimension");
        require(b.dims[d] == 0 || count <= most_elements / b.dims[d], "a buffer is too large");
        count *= b.dims[d];
    }
    require(count == 0 || b.data != nullptr, "a buffer has no data");
    return count;
}

// XLA's own refusal, where it has no stream or device to tell of.
struct Passed {
    Error* error;
};

inline Error* error(const Api& api, ErrorCode code, const char* text) noexcept {
    ErrorCreate arguments{sizeof(ErrorCreate), nullptr, text, code};
    return api.create_error(&arguments);
}

// A frame without XLA's functions has no way to be refused; XLA itself would not make one.
inline Error* handle(const CallFrame* frame, void (*compute)(const CallFrame&)) noexcept {
    const Api& api = *frame->api;
    try {
        require(frame->struct_size >= sizeof(CallFrame), "XLA's call frame is too small");
        if (answers(*frame)) return nullptr;
        require(frame->stage == Stage::execute, "this can only be executed");
        check_lists(*frame);
        compute(*frame);
        return nullptr;
    } catch (const Passed& passed) {
        return passed.error;
    } catch (const Refusal& refusal) {
        return error(api, refusal.code, refusal.text.c_str());
    } catch (const std::exception& e) {
        char text[256];
        std::snprintf(text, sizeof(text), "radam: %s", e.what());
        return error(api, ErrorCode::internal, text);
    }
}

}  // namespace radam::python::xla
