// Files on disk: read at any place, and written whole or not at all. Paths are UTF-8 on Windows, bytes elsewhere.
#pragma once

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <system_error>

#if defined(_WIN32)
#include <fcntl.h>
#include <io.h>
#include <share.h>
#include <sys/stat.h>

#include <filesystem>
#else
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace radam {

namespace detail {

[[noreturn]] inline void refuse_file(const char* what, const std::string& path) {
    throw std::runtime_error(std::string("radam: ") + what + path);
}

inline void refuse_nul(const std::string& path) {
    const std::size_t nul = path.find('\0');
    if (nul != std::string::npos) refuse_file("no path goes on behind a NUL: ", path.substr(0, nul));
}
[[noreturn]] inline void fail_at_file(const char* what, const std::string& path, int error) {
    throw std::runtime_error(std::string("radam: ") + what + path + ": " + std::generic_category().message(error));
}

// Everything that systems do otherwise.
#if defined(_WIN32)

using Path = std::filesystem::path;
inline Path native(const std::string& path) {
#if defined(__cpp_char8_t)
    return Path(std::u8string(path.begin(), path.end()));
#else
    return std::filesystem::u8path(path);
#endif
}
inline void remove_file(const Path& path) noexcept { _wremove(path.c_str()); }
// Not _wfopen: not every C library there knows its "x", and Microsoft's compiler calls it unsafe.
inline std::FILE* open_file(const Path& path, int how, const char* mode) noexcept {
    int handle = -1;
    const int how_here = how | _O_BINARY | _O_NOINHERIT;
    const errno_t error = _wsopen_s(&handle, path.c_str(), how_here, _SH_DENYNO, _S_IREAD | _S_IWRITE);
    if (error != 0) return errno = error, nullptr;
    std::FILE* const file = _fdopen(handle, mode);
    if (file == nullptr) _close(handle);
    return file;
}
inline std::FILE* open_to_read(const Path& path) noexcept { return open_file(path, _O_RDONLY, "rb"); }
inline std::FILE* create(const Path& path, bool) noexcept {
    return open_file(path, _O_CREAT | _O_EXCL | _O_WRONLY, "wb");
}
inline bool exists(const Path& path) {
    std::error_code none;
    return std::filesystem::exists(path, none);
}
inline bool is_file(const Path& path) {
    std::error_code none;
    return std::filesystem::is_regular_file(path, none);
}
inline bool is_folder(const Path& path) {
    std::error_code none;
    return path.empty() || std::filesystem::is_directory(path, none);
}
inline Path folder_of(const Path& path) { return path.parent_path(); }
inline std::string shown(const Path& path) {
    const auto text = path.u8string();
    return std::string(text.begin(), text.end());
}
inline Path beside(const Path& path, const std::string& name) { return path.parent_path() / name; }
inline bool is_link(const Path& path) {
    std::error_code none;
    return std::filesystem::is_symlink(path, none);
}
inline Path target_of(const Path& link) {
    const Path to = std::filesystem::read_symlink(link);
    return to.is_absolute() ? to : link.parent_path() / to;
}
inline int seek(std::FILE* file, std::int64_t offset, int from) noexcept { return _fseeki64(file, offset, from); }
inline std::int64_t tell(std::FILE* file) noexcept { return _ftelli64(file); }
inline int sync(std::FILE* file) noexcept { return _commit(_fileno(file)); }
inline void sync_folder(const Path&) noexcept {}                             // there is no such thing
inline int keep_permissions(std::FILE*, const Path&) noexcept { return 0; }  // one that is read-only is not replaced
inline int replace(const Path& from, const Path& to) {
    std::error_code error;
    std::filesystem::rename(from, to, error);
    return error ? error.default_error_condition().value() : 0;
}

#else

using Path = std::string;
inline const Path& native(const std::string& path) noexcept { return path; }
inline const std::string& shown(const Path& path) noexcept { return path; }
inline std::FILE* open_to_read(const Path& path) noexcept { return std::fopen(path.c_str(), "rb"); }
inline std::FILE* create(const Path& path, bool is_private) noexcept {
    const int handle = ::open(path.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, is_private ? 0600 : 0666);
    if (handle < 0) return nullptr;
    std::FILE* const file = ::fdopen(handle, "wb");
    if (file == nullptr) ::close(handle), ::unlink(path.c_str());
    return file;
}
inline bool exists(const Path& path) noexcept {
    struct stat found;
    return ::stat(path.c_str(), &found) == 0;
}
inline bool is_file(const Path& path) noexcept {
    struct stat found;
    return ::stat(path.c_str(), &found) == 0 && S_ISREG(found.st_mode);
}
inline bool is_folder(const Path& path) noexcept {
    struct stat found;
    return ::stat(path.c_str(), &found) == 0 && S_ISDIR(found.st_mode);
}
inline Path folder_of(const Path& path) {
    const std::size_t slash = path.rfind('/');
    return slash == std::string::npos ? "." : path.substr(0, slash + 1);
}
inline Path beside(const Path& path, const std::string& name) { return path.substr(0, path.rfind('/') + 1) + name; }
inline bool is_link(const Path& path) noexcept {
    struct stat found;
    return ::lstat(path.c_str(), &found) == 0 && S_ISLNK(found.st_mode);
}
inline Path target_of(const Path& link) {
    std::string to(4096, '\0');
    const ssize_t size = ::readlink(link.c_str(), &to[0], to.size());
    if (size < 0) fail_at_file("cannot follow ", link, errno);
    to.resize(static_cast<std::size_t>(size));
    return to[0] == '/' ? to : beside(link, to);
}
inline int seek(std::FILE* file, std::int64_t offset, int from) noexcept {
    return ::fseeko(file, static_cast<off_t>(offset), from);
}
inline std::int64_t tell(std::FILE* file) noexcept { return ::ftello(file); }
inline int sync(std::FILE* file) noexcept { return ::fsync(::fileno(file)); }
inline void sync_folder(const Path& path) noexcept {  // where it can be read, and its file system knows how
    const int handle = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (handle < 0) return;
    ::fsync(handle);
    ::close(handle);
}
inline int keep_permissions(std::FILE* file, const Path& old) noexcept {
    struct stat found;
    return ::stat(old.c_str(), &found) == 0 ? ::fchmod(::fileno(file), found.st_mode & 0777) : 0;
}
inline int replace(const Path& from, const Path& to) noexcept {
    return std::rename(from.c_str(), to.c_str()) == 0 ? 0 : errno;
}
inline void remove_file(const Path& path) noexcept { ::unlink(path.c_str()); }

#endif

// The file itself, where a path is a link, also one to a file that is not there yet.
inline Path through_links(Path path) {
    for (int links = 0; is_link(path); ++links) {
        if (links == 40) refuse_file("too many links from one to another: ", shown(path));
        path = target_of(path);
    }
    return path;
}

// A name that nobody else is likely to take; who creates the file looks whether it is free.
inline std::string random_name() {
    static std::atomic<std::uint64_t> count{0};
    const std::int64_t now = std::chrono::system_clock::now().time_since_epoch().count();
    std::uint64_t bits = static_cast<std::uint64_t>(now);
    bits ^= reinterpret_cast<std::uintptr_t>(&now) << 20;  // where programs lie is random
    bits += 0x9e3779b97f4a7c15u * ++count;
    bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;  // Steele et al. 2014, "Fast splittable generators"
    bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
    bits ^= bits >> 31;
    std::string name = ".radam-";
    for (int shift = 60; shift >= 0; shift -= 4) name += "0123456789abcdef"[(bits >> shift) & 15u];
    return name + ".tmp";
}

}  // namespace detail

// An open file of a fixed size. Errors are std::runtime_error and name it.
class InFile {
public:
    explicit InFile(const std::string& path) : path_(path) {
        detail::refuse_nul(path);
        const detail::Path found = detail::native(path);
        if (!detail::is_file(found)) detail::refuse_file("no such file: ", path);  // a pipe would wait for ever
        file_ = detail::open_to_read(found);
        if (file_ == nullptr) detail::fail_at_file("cannot open ", path, errno);
        size_ = detail::seek(file_, 0, SEEK_END) == 0 ? detail::tell(file_) : -1;
        if (size_ >= 0) return;
        const int error = errno;
        std::fclose(file_);
        detail::fail_at_file("cannot read ", path, error);
    }
    ~InFile() { std::fclose(file_); }
    InFile(const InFile&) = delete;
    InFile& operator=(const InFile&) = delete;

    const std::string& path() const noexcept { return path_; }
    std::int64_t size() const noexcept { return size_; }

    // Reads `bytes` bytes from an offset on, which must be there.
    void read(std::int64_t offset, void* to, std::size_t bytes) const {
        if (bytes == 0) return;
        const bool read = detail::seek(file_, offset, SEEK_SET) == 0 && std::fread(to, 1, bytes, file_) == bytes;
        if (!read) detail::refuse_file("cannot read on to the end of ", path_);
    }

private:
    std::string path_;
    std::FILE* file_ = nullptr;
    std::int64_t size_ = 0;
};

// A file in the making, under another name in the same folder. What was at the path before stays there until commit;
// without one nothing of the new file is left. A link is written through, to the file itself; an old file's permissions
// are kept. Errors are std::runtime_error and name the file.
class WholeFile {
public:
    explicit WholeFile(const std::string& path) {
        detail::refuse_nul(path);
        target_ = detail::through_links(detail::native(path));
        if (!detail::is_folder(detail::folder_of(target_)))
            detail::refuse_file("no such folder: ", detail::shown(detail::folder_of(target_)));
        const bool replaces = detail::exists(target_);  // what nobody else may read, perhaps
        if (replaces && !detail::is_file(target_))
            detail::refuse_file("it is there and is no file: ", detail::shown(target_));
        for (int attempt = 0; file_ == nullptr; ++attempt) {
            temporary_ = detail::beside(target_, detail::random_name());
            file_ = detail::create(temporary_, replaces);
            if (file_ == nullptr && (errno != EEXIST || attempt == 100)) fail(errno);
        }
    }
    ~WholeFile() {
        if (file_ != nullptr) abandon();
    }
    WholeFile(const WholeFile&) = delete;
    WholeFile& operator=(const WholeFile&) = delete;

    void write(const void* from, std::size_t bytes) {
        if (bytes > 0 && std::fwrite(from, 1, bytes, file_) != bytes) fail(errno);
    }

    // Puts it in its place, once all of it is on the disk.
    void commit() {
        const bool on_disk =
            std::fflush(file_) == 0 && detail::keep_permissions(file_, target_) == 0 && detail::sync(file_) == 0;
        if (!on_disk) fail(errno);
        std::FILE* const file = file_;
        file_ = nullptr;
        int error = std::fclose(file) == 0 ? 0 : errno;
        if (error == 0) error = detail::replace(temporary_, target_);
        if (error != 0) {
            detail::remove_file(temporary_);
            fail(error);
        }
        detail::sync_folder(detail::folder_of(target_));  // the rename itself, which is done and no error any more
    }

private:
    [[noreturn]] void fail(int error) const { detail::fail_at_file("cannot write ", detail::shown(target_), error); }
    void abandon() noexcept {
        std::fclose(file_);
        detail::remove_file(temporary_);
    }

    detail::Path target_, temporary_;
    std::FILE* file_ = nullptr;
};

}  // namespace radam
