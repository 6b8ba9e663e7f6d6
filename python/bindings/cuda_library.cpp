#include "cuda_library.hpp"

#include <fstream>
#include <mutex>

#if defined(_WIN32)
#if !defined(NOMINMAX)
#define NOMINMAX
#endif
#include <windows.h>

#include <filesystem>
#else
#include <dlfcn.h>
#endif

// What the build says of a module without the library.
#if !defined(RADAM_CUDA_REASON)
#define RADAM_CUDA_REASON "it was left out when it was built"
#endif

namespace radam::python {
namespace {

using Entrance = const cuda::Library* (*)();
constexpr const char* symbol = "radam_cuda_library";

#if defined(_WIN32)
// What comes from Python is UTF-8, and Windows would read it as something else.
std::filesystem::path native(const std::string& path) { return std::filesystem::u8path(path); }

Entrance load(const std::string& path, std::string& error) {
    const HMODULE module = LoadLibraryW(native(path).c_str());
    if (module == nullptr) {
        error = "error " + std::to_string(GetLastError());
        return nullptr;
    }
    return reinterpret_cast<Entrance>(reinterpret_cast<void*>(GetProcAddress(module, symbol)));
}
#else
const std::string& native(const std::string& path) { return path; }

Entrance load(const std::string& path, std::string& error) {
    void* const module = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // never closed: the driver keeps parts of it
    void* const found = module == nullptr ? nullptr : dlsym(module, symbol);
    if (const char* const said = found == nullptr ? dlerror() : nullptr; said != nullptr) error = said;
    return reinterpret_cast<Entrance>(found);
}
#endif

struct State {
    std::mutex mutex;
    std::string path, off;
    const cuda::Library* library = nullptr;
    bool is_known = false;

    void look() {
        if (is_known) return;
        is_known = true;
        library = nullptr;
        if (!std::ifstream(native(path)).good()) {
            const std::string reason = RADAM_CUDA_REASON;
            off = "this radam is built without CUDA (" + (reason.empty() ? path + " is missing" : reason) +
                  "); install a radam with CUDA: pip install radam takes a wheel that has it, and a build from source "
                  "where nvcc 13.0 or newer is found makes it";
            return;
        }
        std::string error;
        const Entrance entrance = load(path, error);
        if (entrance == nullptr) {
            off = "the CUDA part of this radam cannot be loaded (" + error + "); install radam anew";
            return;
        }
        const cuda::Library* const found = entrance();
        if (found == nullptr || found->version != cuda::interface_version) {
            off = "the CUDA part of this radam is of another version (" + path + "); install radam anew";
            return;
        }
        cuda::Failure why;
        if (found->devices(&why) <= 0) {
            off = std::string("no CUDA device can be used (") + why.text +
                  "); this radam needs an NVIDIA GPU and a driver for CUDA 13 (580 or newer)";
            return;
        }
        off.clear();
        library = found;
    }
};

State& state() {
    static State& the = *new State;
    return the;
}

}  // namespace

const cuda::Library* cuda_library() {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    s.look();
    return s.library;
}

std::string why_cuda_is_off() {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    s.look();
    return s.off;
}

std::vector<std::string> cuda_devices() {
    std::vector<std::string> lines;
    const cuda::Library* const library = cuda_library();
    if (library == nullptr) return lines;
    cuda::Failure failure;
    for (int i = 0, count = library->devices(&failure); i < count; ++i) {
        cuda::Device device;
        lines.push_back(library->describe(i, &device, &failure)
                            ? std::string(device.name) + " (compute capability " + std::to_string(device.major) + "." +
                                  std::to_string(device.minor) + ")"
                            : std::string(failure.text));
    }
    return lines;
}

void set_cuda_library(const std::string& path) {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    s.path = path;
    s.is_known = false;
}

}  // namespace radam::python
