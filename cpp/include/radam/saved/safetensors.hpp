// Safetensors files: a header of JSON that says where each tensor lies, and their bytes. Written whole or not at all.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "files.hpp"
#include "json.hpp"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors files hold numbers as little-endian machines do, and this is another one"
#endif

namespace radam {

// A tensor of a file. Its bytes stand at [begin, end) after the header.
struct StoredTensor {
    std::string name;
    std::string dtype;                // as the format calls it: F32, BF16, I8
    std::vector<std::int64_t> shape;  // in C order
    std::int64_t begin = 0, end = 0;
};

// A tensor to write.
struct TensorToStore {
    std::string name;
    std::string dtype;
    std::vector<std::int64_t> shape;
    const void* data = nullptr;
};

namespace detail {

// The format's dtypes of whole bytes, in the order that decides which tensor comes first in a file: the last one does.
struct SafetensorsDType {
    const char* name;
    int bytes;
};
constexpr SafetensorsDType safetensors_dtypes[] = {
    {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"F8_E8M0", 1},
    {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},     {"U32", 4},
    {"F32", 4},  {"C64", 8}, {"F64", 8}, {"I64", 8},     {"U64", 8},
};

inline const SafetensorsDType* find_safetensors_dtype(const std::string& name) noexcept {
    for (const SafetensorsDType& dtype : safetensors_dtypes)
        if (name == dtype.name) return &dtype;
    return nullptr;
}

constexpr std::int64_t most_header = 100000000;  // the format's own limit
constexpr std::int64_t most_bytes = std::numeric_limits<std::int64_t>::max();

// The bytes of a tensor; below zero where they cannot be counted.
inline std::int64_t byte_count(const std::vector<std::int64_t>& shape, int itemsize) noexcept {
    std::int64_t bytes = itemsize;
    for (const std::int64_t size : shape) {
        if (size < 0 || (size > 0 && bytes > most_bytes / size)) return -1;
        bytes *= size;
    }
    return bytes;
}

}  // namespace detail

// An open file, its header read and found sound: every tensor has the bytes that its shape takes, none shares a byte
// with another, and none is left over. std::runtime_error naming the file and what is wrong with it.
class SafetensorsFile {
public:
    explicit SafetensorsFile(const std::string& path) : file_(path) {
        if (file_.size() < 8) refuse("it has " + std::to_string(file_.size()) + " bytes");
        unsigned char length[8];
        file_.read(0, length, sizeof length);
        std::uint64_t bytes = 0;
        for (int i = 8; i-- > 0;) bytes = (bytes << 8) | length[i];
        if (bytes > static_cast<std::uint64_t>(std::min(file_.size() - 8, detail::most_header)))
            refuse("its header of " + std::to_string(bytes) + " bytes is longer than the file, or than any may be");
        data_ = 8 + static_cast<std::int64_t>(bytes);
        std::string header(static_cast<std::size_t>(bytes), '\0');
        file_.read(8, &header[0], header.size());
        try {
            take(json::parse(header));
        } catch (const std::runtime_error& error) {
            refuse(error.what());
        }
    }

    const std::string& path() const noexcept { return file_.path(); }
    const std::vector<StoredTensor>& tensors() const noexcept { return tensors_; }

    // The metadata of a key; null where there is none.
    const std::string* metadata(const char* key) const noexcept {
        const Json* const found = metadata_.find(key);
        return found == nullptr ? nullptr : &found->text;
    }

    // Reads a tensor's bytes, as many as its shape and dtype take.
    void read(const StoredTensor& tensor, void* to) const {
        file_.read(data_ + tensor.begin, to, static_cast<std::size_t>(tensor.end - tensor.begin));
    }

private:
    [[noreturn]] void refuse(const std::string& why) const {
        throw std::runtime_error("radam: " + path() + " cannot be read as a safetensors file: " + why);
    }

    static std::int64_t whole(const Json& number) {
        std::uint64_t found = 0;
        if (number.kind != Json::Kind::number || !json::read_whole(number.text, found) ||
            found > static_cast<std::uint64_t>(detail::most_bytes))
            throw std::runtime_error("a shape or a data_offsets holds something else than sizes in 63 bits");
        return static_cast<std::int64_t>(found);
    }

    static std::vector<std::int64_t> wholes(const Json* numbers) {
        if (numbers == nullptr || numbers->kind != Json::Kind::array)
            throw std::runtime_error("a tensor has no list as shape or data_offsets");
        std::vector<std::int64_t> found;
        for (const Json& number : numbers->items) found.push_back(whole(number));
        return found;
    }

    void take(Json header) {
        if (header.kind != Json::Kind::object) throw std::runtime_error("its header is no object");
        for (std::size_t i = 0; i < header.keys.size(); ++i) {
            if (header.keys[i] == "__metadata__")
                take_metadata(std::move(header.items[i]));
            else
                take_tensor(std::move(header.keys[i]), header.items[i]);
        }
        refuse_gaps();
    }

    void take_metadata(Json found) {
        const auto is_text = [](const Json& value) { return value.kind == Json::Kind::string; };
        if (found.kind != Json::Kind::object || !std::all_of(found.items.begin(), found.items.end(), is_text))
            throw std::runtime_error("its metadata are no strings by name");
        metadata_ = std::move(found);
    }

    void take_tensor(std::string name, const Json& about) {
        StoredTensor tensor;
        tensor.name = std::move(name);
        const Json* const dtype = about.find("dtype");
        const auto* const known = dtype == nullptr ? nullptr : detail::find_safetensors_dtype(dtype->text);
        if (known == nullptr || dtype->kind != Json::Kind::string)
            throw std::runtime_error("the tensor '" + tensor.name + "' has no dtype that is known here");
        tensor.dtype = known->name;
        tensor.shape = wholes(about.find("shape"));
        const std::vector<std::int64_t> offsets = wholes(about.find("data_offsets"));
        const std::int64_t bytes = detail::byte_count(tensor.shape, known->bytes);
        if (offsets.size() != 2 || offsets[1] < offsets[0] || bytes < 0 || offsets[1] - offsets[0] != bytes)
            throw std::runtime_error("the data_offsets of the tensor '" + tensor.name + "' do not fit its shape");
        tensor.begin = offsets[0];
        tensor.end = offsets[1];
        tensors_.push_back(std::move(tensor));
    }

    void refuse_gaps() const {
        std::vector<const StoredTensor*> sorted;
        for (const StoredTensor& tensor : tensors_) sorted.push_back(&tensor);
        std::sort(sorted.begin(), sorted.end(),
                  [](auto* a, auto* b) { return std::pair(a->begin, a->end) < std::pair(b->begin, b->end); });
        std::int64_t at = 0;
        for (const StoredTensor* tensor : sorted) {
            if (tensor->begin != at)
                throw std::runtime_error("the tensor '" + tensor->name + "' begins at byte " +
                                         std::to_string(tensor->begin) + ", but the ones before it end at byte " +
                                         std::to_string(at));
            at = tensor->end;
        }
        if (at != file_.size() - data_)
            throw std::runtime_error("its tensors take " + std::to_string(at) + " bytes, but it holds " +
                                     std::to_string(file_.size() - data_));
    }

    InFile file_;
    std::int64_t data_ = 0;  // where the tensors begin
    Json metadata_;
    std::vector<StoredTensor> tensors_;
};

// Writes tensors in C order, and metadata. The path holds the new file or, after a std::runtime_error, what it held
// before. Names differ; they and the metadata are UTF-8.
inline void write_safetensors(const std::string& path, const std::vector<std::pair<std::string, std::string>>& metadata,
                              std::vector<TensorToStore> tensors) {
    const auto refuse = [&](const std::string& why) { throw std::runtime_error("radam: cannot write " + path + why); };
    const auto check_text = [&](const std::string& text) {
        if (!is_utf8(text)) refuse(": a name or the metadata is not UTF-8");
    };
    const auto dtype_of = [&](const TensorToStore& tensor) {
        const auto* const dtype = detail::find_safetensors_dtype(tensor.dtype);
        if (dtype == nullptr) refuse(": the format has no dtype " + tensor.dtype);
        return dtype;
    };
    for (const TensorToStore& tensor : tensors) {
        check_text(tensor.name);
        if (detail::byte_count(tensor.shape, dtype_of(tensor)->bytes) < 0) refuse(": too large is " + tensor.name);
    }
    // The widest first, so that each begins at a multiple of its own size.
    std::sort(tensors.begin(), tensors.end(), [&](const TensorToStore& a, const TensorToStore& b) {
        return dtype_of(a) != dtype_of(b) ? dtype_of(a) > dtype_of(b) : a.name < b.name;
    });

    std::string header = "{";
    if (!metadata.empty()) {
        header += "\"__metadata__\":{";
        for (const auto& [key, text] : metadata) {
            check_text(key);
            check_text(text);
            if (header.back() != '{') header += ',';
            json::write(header, key);
            header += ':';
            json::write(header, text);
        }
        header += '}';
    }
    std::int64_t at = 0;
    for (const TensorToStore& tensor : tensors) {
        if (header.back() != '{') header += ',';
        json::write(header, tensor.name);
        header += ":{\"dtype\":\"" + tensor.dtype + "\",\"shape\":[";
        for (const std::int64_t size : tensor.shape) {
            if (header.back() != '[') header += ',';
            header += std::to_string(size);
        }
        const std::int64_t bytes = detail::byte_count(tensor.shape, dtype_of(tensor)->bytes);
        if (bytes > detail::most_bytes - at) refuse(": too large are its tensors");
        header += "],\"data_offsets\":[" + std::to_string(at) + "," + std::to_string(at + bytes) + "]}";
        at += bytes;
    }
    header += '}';
    header.resize((header.size() + 7) / 8 * 8, ' ');
    if (header.size() > static_cast<std::size_t>(detail::most_header))
        refuse(": it has more tensors than the format takes");

    WholeFile file(path);
    unsigned char length[8];
    for (int i = 0; i < 8; ++i)
        length[i] = static_cast<unsigned char>(static_cast<std::uint64_t>(header.size()) >> (8 * i));
    file.write(length, sizeof length);
    file.write(header.data(), header.size());
    for (const TensorToStore& tensor : tensors)
        file.write(tensor.data, static_cast<std::size_t>(detail::byte_count(tensor.shape, dtype_of(tensor)->bytes)));
    file.commit();
}

}  // namespace radam
