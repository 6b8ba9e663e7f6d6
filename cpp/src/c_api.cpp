// The C interface, radam.h: pointers and structs looked at, exceptions made a status; all else is the optimizer's.
#include <radam/radam.h>
#include <radam/dispatch.hpp>
#include <radam/saved.hpp>

#include <algorithm>
#include <atomic>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "c_structs.hpp"

struct radam_optimizer {
    radam::dispatched::Optimizer optimizer;
    std::atomic<bool> busy{false};
};

namespace {

using namespace radam::c;

// ---- failures

struct Busy : std::exception {
    const char* what() const noexcept override { return "radam: the optimizer is in use; wait until it is not"; }
};

thread_local std::string last_error;
thread_local const char* last_error_text = "";

radam_status failure(radam_status status, const char* text) noexcept {
    try {
        last_error = text;
        last_error_text = last_error.c_str();
    } catch (const std::bad_alloc&) {
        last_error_text = "radam: out of memory";
    }
    return status;
}

// What becomes of each exception.
radam_status caught() noexcept {
    try {
        throw;
    } catch (const Busy& error) {
        return failure(RADAM_BUSY, error.what());
    } catch (const std::invalid_argument& error) {
        return failure(RADAM_INVALID_ARGUMENT, error.what());
    } catch (const std::bad_alloc&) {
        return failure(RADAM_OUT_OF_MEMORY, "radam: out of memory");
    } catch (const std::runtime_error& error) {  // files alone throw it
        return failure(RADAM_IO_ERROR, error.what());
    } catch (const std::exception& error) {
        return failure(RADAM_INTERNAL_ERROR, error.what());
    } catch (...) {
        return failure(RADAM_INTERNAL_ERROR, "radam: an unknown exception");
    }
}

template <class F>
radam_status guarded(F call) noexcept {
    try {
        call();
        return RADAM_OK;
    } catch (...) {
        return caught();
    }
}

// One call at a time has an optimizer to itself.
class Turn {
public:
    explicit Turn(radam_optimizer* handle) : busy_(required(handle, "optimizer")->busy) {
        if (busy_.exchange(true, std::memory_order_acquire)) throw Busy();
    }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    ~Turn() { busy_.store(false, std::memory_order_release); }

private:
    std::atomic<bool>& busy_;
};

template <class F>
radam_status use(radam_optimizer* handle, F call) noexcept {
    return guarded([&] {
        const Turn turn(handle);
        call(handle->optimizer);
    });
}

template <class T>
radam_status begin(T* to, std::size_t size, const T& defaults) noexcept {
    return guarded([&] {
        required(to, Versioned<T>::name);
        write(to, checked_size<T>(size), defaults);
    });
}

}  // namespace

extern "C" {

static void run_part(void* context, int index) noexcept { (*static_cast<const radam::Parts*>(context))(index); }

const char* radam_last_error(void) { return last_error_text; }
const char* radam_version(void) { return RADAM_VERSION; }

// ---- structs

radam_status radam_options_init(radam_options* options, size_t struct_size) {
    return begin(options, struct_size, as_c(radam::Options()));
}

radam_status radam_precision_init(radam_precision* precision, size_t struct_size) {
    return begin(precision, struct_size, as_c(radam::Precision()));
}

radam_status radam_state_init(radam_state* state, size_t struct_size) {
    return begin(state, struct_size, radam_state());
}

radam_status radam_param_options_init(radam_param_options* options, size_t struct_size) {
    return begin(options, struct_size, radam_param_options());
}

// ---- optimizers

radam_status radam_create(radam_optimizer** optimizer, const radam_options* options, const char* convention,
                          const radam_precision* precision) {
    return guarded([&] {
        required(optimizer, "optimizer");
        radam::dispatched::Optimizer made(as_ours(options), convention_of(convention));
        if (precision != nullptr) made.set_precision(as_ours(precision));
        *optimizer = new radam_optimizer{std::move(made)};
    });
}

radam_status radam_destroy(radam_optimizer* optimizer) {
    if (optimizer == nullptr) return RADAM_OK;
    if (optimizer->busy.exchange(true, std::memory_order_acquire)) return failure(RADAM_BUSY, Busy().what());
    delete optimizer;
    return RADAM_OK;
}

// ---- groups

radam_status radam_add_group(radam_optimizer* optimizer, const radam_options* options, size_t* group) {
    return use(optimizer, [&](auto& o) {
        const std::size_t number = o.add_group(as_ours(options));
        if (group != nullptr) *group = number;
    });
}

radam_status radam_get_options(radam_optimizer* optimizer, size_t group, radam_options* options) {
    return use(optimizer, [&](auto& o) {
        const std::size_t size = checked_size<radam_options>(required(options, "options")->struct_size);
        write(options, size, as_c(o.options(group)));
    });
}

radam_status radam_set_options(radam_optimizer* optimizer, size_t group, const radam_options* options) {
    return use(optimizer, [&](auto& o) { o.set_options(group, as_ours(required(options, "options"))); });
}

radam_status radam_set_lr(radam_optimizer* optimizer, double lr) {
    return use(optimizer, [&](auto& o) { o.set_lr(lr); });
}

radam_status radam_set_group_lr(radam_optimizer* optimizer, size_t group, double lr) {
    return use(optimizer, [&](auto& o) { o.set_lr(group, lr); });
}

radam_status radam_count(radam_optimizer* optimizer, size_t* groups, size_t* params) {
    return use(optimizer, [&](auto& o) {
        if (groups != nullptr) *groups = o.groups();
        if (params != nullptr) *params = o.size();
    });
}

// ---- parameters

radam_status radam_add_param(radam_optimizer* optimizer, void* param, int param_dtype, const void* grad, int grad_dtype,
                             int64_t size, const radam_param_options* options, size_t* index) {
    return use(optimizer, [&](auto& o) {
        const std::size_t number = o.add_param(param, dtype(param_dtype, "param_dtype"), grad,
                                               dtype(grad_dtype, "grad_dtype"), size, as_ours(options));
        if (index != nullptr) *index = number;
    });
}

radam_status radam_set_param(radam_optimizer* optimizer, size_t index, void* param) {
    return use(optimizer, [&](auto& o) { o.set_param(index, param); });
}

radam_status radam_set_grad(radam_optimizer* optimizer, size_t index, const void* grad) {
    return use(optimizer, [&](auto& o) { o.set_grad(index, grad); });
}

radam_status radam_get_steps(radam_optimizer* optimizer, size_t index, int64_t* steps) {
    return use(optimizer, [&](auto& o) { *required(steps, "steps") = o.steps(index); });
}

radam_status radam_get_state(radam_optimizer* optimizer, size_t index, radam_state* state) {
    return use(optimizer, [&](auto& o) {
        const std::size_t size = checked_size<radam_state>(required(state, "state")->struct_size);
        write(state, size, as_c(o.slot(index)));
    });
}

// ---- gradients

radam_status radam_set_max_grad_norm(radam_optimizer* optimizer, double most) {
    return use(optimizer, [&](auto& o) { o.set_max_grad_norm(most); });
}

radam_status radam_set_max_tensor_grad_norm(radam_optimizer* optimizer, double most) {
    return use(optimizer, [&](auto& o) { o.set_max_tensor_grad_norm(most); });
}

radam_status radam_set_max_grad_value(radam_optimizer* optimizer, double most) {
    return use(optimizer, [&](auto& o) { o.set_max_grad_value(most); });
}

radam_status radam_set_no_clipping(radam_optimizer* optimizer) {
    return use(optimizer, [&](auto& o) { o.set_no_clipping(); });
}

radam_status radam_set_grad_scale(radam_optimizer* optimizer, double scale) {
    return use(optimizer, [&](auto& o) { o.set_grad_scale(scale); });
}

radam_status radam_set_skip_nonfinite(radam_optimizer* optimizer, int skip) {
    return use(optimizer, [&](auto& o) { o.skip_nonfinite(flag(skip, "skip")); });
}

// ---- steps

radam_status radam_step(radam_optimizer* optimizer, int* happened) {
    return use(optimizer, [&](auto& o) {
        const bool stepped = o.step();
        if (happened != nullptr) *happened = stepped;
    });
}

radam_status radam_get_grad_norm(radam_optimizer* optimizer, double* norm) {
    return use(optimizer, [&](auto& o) { *required(norm, "norm") = o.grad_norm(); });
}

radam_status radam_get_skipped_steps(radam_optimizer* optimizer, int64_t* steps) {
    return use(optimizer, [&](auto& o) { *required(steps, "steps") = o.skipped_steps(); });
}

// ---- files

radam_status radam_save(radam_optimizer* optimizer, const char* path) {
    return use(optimizer, [&](auto& o) { radam::save(o, required(path, "path")); });
}

radam_status radam_load(radam_optimizer* optimizer, const char* path) {
    return use(optimizer, [&](auto& o) { radam::load(o, required(path, "path")); });
}

// ---- threads and instruction sets

radam_status radam_set_num_threads(int threads) {
    return guarded([&] { radam::set_num_threads(threads); });
}

radam_status radam_get_num_threads(int* threads) {
    return guarded([&] { *required(threads, "threads") = radam::num_threads(); });
}

radam_status radam_set_executor(radam_optimizer* optimizer, int threads,
                                void (*run)(void* self, int count, void (*part)(void* context, int index),
                                            void* context),
                                void* self) {
    return use(optimizer, [&](auto& o) {
        if (run == nullptr) return o.set_executor(radam::dispatched_executor());
        if (threads < 1) refuse("threads must be at least 1, got " + std::to_string(threads));
        o.set_executor(radam::Executor(threads, [run, self](const radam::Parts& parts) {
            run(self, parts.count(), run_part, const_cast<radam::Parts*>(&parts));
        }));
    });
}

radam_status radam_set_isa(const char* isa) {
    return guarded([&] { radam::set_isa(required(isa, "isa")); });
}

radam_status radam_get_isa(const char** isa) {
    return guarded([&] {
        static const std::vector<std::string> names = radam::isas();  // never changed, so that the text stays
        required(isa, "isa");
        *isa = std::find(names.begin(), names.end(), radam::current_isa())->c_str();
    });
}

}  // extern "C"
