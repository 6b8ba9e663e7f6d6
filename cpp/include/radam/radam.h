/* radam for C, and for whatever calls C: RAdam and Adam over raw buffers, in the shared library libradam.

       radam_optimizer* optimizer = NULL;
       radam_create(&optimizer, NULL, "torch", NULL);               lr = 1e-3, betas 0.9 and 0.999, ...
       radam_add_param(optimizer, weights, RADAM_FLOAT32, gradients, RADAM_FLOAT32, count, NULL, NULL);
       radam_step(optimizer, NULL);                                 whenever the gradients are new
       radam_destroy(optimizer);

   Status. Every function but radam_version and radam_last_error returns one: RADAM_OK, or why it failed; then nothing
   has changed, and what a pointer was given for is not written. A pointer must not be null unless its comment says so.
   No C++ exception gets out.

   Threads. Different optimizers may be used at the same time. One that is in use is busy for everybody else, also for
   what its own executor runs: RADAM_BUSY.

   Memory. Parameters, gradients and states that were given stay the caller's, in CPU memory, at any alignment, and must
   be there until the optimizer is destroyed or has been given other ones. Text that goes in is copied, UTF-8, and ends
   with a zero.

   What stays, so that a program need not be compiled anew for a newer library: functions and their arguments, the
   numbers of the constants (all are ints), and the order of members. A struct may grow at its end. Its first member is
   the size that it was compiled with, which its radam_..._init writes; in new members zero means what was before. A
   library older than its caller refuses members that it does not know, unless they are zero. */
#ifndef RADAM_RADAM_H
#define RADAM_RADAM_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && defined(radam_c_EXPORTS)
#define RADAM_API __declspec(dllexport)
#elif defined(_WIN32)
#define RADAM_API __declspec(dllimport)
#elif defined(__GNUC__)
#define RADAM_API __attribute__((visibility("default")))
#else
#define RADAM_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- what functions return */

typedef int radam_status;
enum {
    RADAM_OK = 0,
    /* An argument, an option, or RADAM_ISA or RADAM_NUM_THREADS in the environment. */
    RADAM_INVALID_ARGUMENT = 1,
    /* A file cannot be read or written, or does not fit the optimizer. */
    RADAM_IO_ERROR = 2,
    RADAM_OUT_OF_MEMORY = 3,
    /* The optimizer is in use, in this thread or in another one. */
    RADAM_BUSY = 4,
    /* A defect of radam. Please report it. */
    RADAM_INTERNAL_ERROR = 5
};

/* What failed last in the calling thread, in English, for people; "" where nothing has. Never null. Stands until the
   next failure in this thread. */
RADAM_API const char* radam_last_error(void);

/* The library's version, like "1.2.3". Never null. */
RADAM_API const char* radam_version(void);

/* ---- kinds of numbers */

enum {
    RADAM_FLOAT64 = 0,
    RADAM_FLOAT32 = 1,
    RADAM_BFLOAT16 = 2,
    RADAM_FLOAT16 = 3,
    RADAM_INT8 = 4, /* this and the next: codes of 8-bit moments */
    RADAM_UINT8 = 5
};

enum { RADAM_STATE_FLOAT32 = 0, RADAM_STATE_BFLOAT16 = 1, RADAM_STATE_8BIT = 2 };

/* For radam_options.eps and .decoupled_weight_decay: what the convention has. */
#define RADAM_BY_CONVENTION (-1)

/* ---- options of a group of parameters */

typedef struct radam_options {
    uint32_t struct_size;
    /* 1: weight decay shrinks the parameter by lr * weight_decay; 0: it is added to the gradient. Default:
       RADAM_BY_CONVENTION. */
    int32_t decoupled_weight_decay;
    /* 1: up the gradient instead of down. Default 0. */
    int32_t maximize;
    /* 1: divides by the largest exp_avg_sq so far. Default 0. */
    int32_t amsgrad;
    /* The learning rate, at least 0. Default 1e-3. */
    double lr;
    /* The decay rates of the moments, at least 0 and below 1. Defaults 0.9 and 0.999. */
    double beta1, beta2;
    /* Added to the denominator, at least 0. Default: RADAM_BY_CONVENTION, which is 1e-8, or "tfa"'s 1e-7. */
    double eps;
    /* At least 0. Default 0. */
    double weight_decay;
} radam_options;

/* Fills in the defaults. struct_size: sizeof(radam_options). */
RADAM_API radam_status radam_options_init(radam_options* options, size_t struct_size);

/* ---- fewer bits for weights and moments */

typedef struct radam_precision {
    uint32_t struct_size;
    /* What moments are kept in. Default RADAM_STATE_FLOAT32. Those of float64 parameters are always float64. */
    int32_t state_dtype;
    /* 1: keeps what rounding a 16-bit parameter loses. Default 0. */
    int32_t master_weights;
    /* 1: rounds 16-bit parameters up or down at random. Default 0. Not together with master_weights. */
    int32_t stochastic_rounding;
    /* Parameters with fewer elements keep float32 moments instead of 8-bit ones. Default 4096. */
    int64_t min_8bit_size;
    /* Of all that is rounded at random. Default 0. A file that is loaded brings its own. */
    uint64_t seed;
} radam_precision;

/* Fills in the defaults. struct_size: sizeof(radam_precision). */
RADAM_API radam_status radam_precision_init(radam_precision* precision, size_t struct_size);

/* ---- optimizers */

typedef struct radam_optimizer radam_optimizer;

/* A new optimizer, to be ended by radam_destroy.
   options: of the first group; null: the defaults.
   convention: "torch", "paddle", "mindspore", "lucid", "lucid_docs", "author", "optax" or "tfa", whose reading of RAdam
   it is; or "adam". Null: "torch".
   precision: null: the defaults. */
RADAM_API radam_status radam_create(radam_optimizer** optimizer, const radam_options* options, const char* convention,
                                    const radam_precision* precision);

/* Ends an optimizer and frees the states that it made. Null is fine. */
RADAM_API radam_status radam_destroy(radam_optimizer* optimizer);

/* ---- groups */

/* Parameters that are added from now on have these options. A group without parameters gives way to the next one, the
   first group too. options: null: the defaults. group: its number; may be null. */
RADAM_API radam_status radam_add_group(radam_optimizer* optimizer, const radam_options* options, size_t* group);

/* The options of a group. options->struct_size: how much to write, as radam_options_init leaves it. */
RADAM_API radam_status radam_get_options(radam_optimizer* optimizer, size_t group, radam_options* options);

/* From the next step on. amsgrad that comes late begins with zeros; states that were given need room for it. */
RADAM_API radam_status radam_set_options(radam_optimizer* optimizer, size_t group, const radam_options* options);

/* The learning rate of all groups, or of one, from the next step on. */
RADAM_API radam_status radam_set_lr(radam_optimizer* optimizer, double lr);
RADAM_API radam_status radam_set_group_lr(radam_optimizer* optimizer, size_t group, double lr);

/* How many groups and parameters there are. Each may be null. */
RADAM_API radam_status radam_count(radam_optimizer* optimizer, size_t* groups, size_t* params);

/* ---- parameters */

/* The buffers of a parameter's state, each with as many elements as the parameter. Of 8-bit moments exp_avg is int8 and
   the others uint8, and there is one float32 scale for every 128 elements, the last ones too: (size + 127) / 128. */
typedef struct radam_state {
    uint32_t struct_size;
    /* Of exp_avg: RADAM_FLOAT32, RADAM_FLOAT64, RADAM_BFLOAT16 or RADAM_INT8. radam_get_state writes it;
       radam_add_param does not read it. */
    int32_t moment_dtype;
    /* The moments, m and v; and with amsgrad the largest v so far. */
    void *exp_avg, *exp_avg_sq, *max_exp_avg_sq;
    /* Of 8-bit moments. */
    float *exp_avg_scale, *exp_avg_sq_scale, *max_exp_avg_sq_scale;
    /* Of master_weights: int16, the lower half of each weight, for bfloat16; float32 weights for float16. */
    void* master;
} radam_state;

/* All null. struct_size: sizeof(radam_state). */
RADAM_API radam_status radam_state_init(radam_state* state, size_t struct_size);

typedef struct radam_param_options {
    uint32_t struct_size;
    /* How many dimensions. Default 0: one, or those of the file that is loaded. */
    int32_t ndim;
    /* The dimensions in C order, for files. Null with ndim 0. */
    const int64_t* shape;
    /* For messages and files. Default null: none. */
    const char* name;
    /* Buffers of the caller's, zeros before the first step: all that the options ask for. Default null: the optimizer
       makes them. */
    const radam_state* state;
} radam_param_options;

/* Fills in the defaults. struct_size: sizeof(radam_param_options). */
RADAM_API radam_status radam_param_options_init(radam_param_options* options, size_t struct_size);

/* Adds a parameter and its gradient, of `size` elements each, to the last group.
   param: may be null where size is 0.
   grad: only read. Null: none yet, and steps leave the parameter out. Buffers must not overlap, but gradients may.
   param_dtype, grad_dtype: RADAM_FLOAT64 with RADAM_FLOAT64; or RADAM_FLOAT32, _BFLOAT16 and _FLOAT16 in any pair.
   options: null: the defaults.
   index: the parameter's number, 0 for the first; may be null. */
RADAM_API radam_status radam_add_param(radam_optimizer* optimizer, void* param, int param_dtype, const void* grad,
                                       int grad_dtype, int64_t size, const radam_param_options* options, size_t* index);

/* Another place for a parameter, or for its gradient, of the same dtype and size. A null gradient: steps leave the
   parameter out, and its count of steps stays. */
RADAM_API radam_status radam_set_param(radam_optimizer* optimizer, size_t index, void* param);
RADAM_API radam_status radam_set_grad(radam_optimizer* optimizer, size_t index, const void* grad);

/* How many steps a parameter has taken. */
RADAM_API radam_status radam_get_steps(radam_optimizer* optimizer, size_t index, int64_t* steps);

/* Where a parameter's state is; null for what it does not have. The buffers stay where they are until the optimizer is
   destroyed. state->struct_size: how much to write, as radam_state_init leaves it. */
RADAM_API radam_status radam_get_state(radam_optimizer* optimizer, size_t index, radam_state* state);

/* ---- gradients: from the next step on, and without writing to them */

/* Scales all of them down to this norm over all of them together, at least 0; infinity only measures it. */
RADAM_API radam_status radam_set_max_grad_norm(radam_optimizer* optimizer, double most);
/* The same for each parameter by itself. */
RADAM_API radam_status radam_set_max_tensor_grad_norm(radam_optimizer* optimizer, double most);
/* Cuts each element to at most this, at least 0, either way. */
RADAM_API radam_status radam_set_max_grad_value(radam_optimizer* optimizer, double most);
/* None of the three; each of them takes the others' place. The default. */
RADAM_API radam_status radam_set_no_clipping(radam_optimizer* optimizer);

/* Multiplies them by this before all else: 1 / the scale of a loss, say. A finite number; default 1. */
RADAM_API radam_status radam_set_grad_scale(radam_optimizer* optimizer, double scale);

/* 1: a step is left out, and changes nothing, where a gradient holds an inf or a NaN. Default 0: as IEEE arithmetic. */
RADAM_API radam_status radam_set_skip_nonfinite(radam_optimizer* optimizer, int skip);

/* ---- steps */

/* One step of every parameter that has a gradient. Allocates nothing, but for the pool's threads when they are first
   needed.
   happened: 1, or 0 where the step was left out, see radam_set_skip_nonfinite; may be null. */
RADAM_API radam_status radam_step(radam_optimizer* optimizer, int* happened);

/* The norm of all gradients of the last step that was clipped by a norm, before clipping; NaN before the first one. */
RADAM_API radam_status radam_get_grad_norm(radam_optimizer* optimizer, double* norm);

/* How many steps were left out so far. */
RADAM_API radam_status radam_get_skipped_steps(radam_optimizer* optimizer, int64_t* steps);

/* ---- files: safetensors, the same as Python's radam.RAdam.save and .load; parameters are not in them */

/* Writes all states, step counts and options: the whole file or none, a file that was there stays until then. */
RADAM_API radam_status radam_save(radam_optimizer* optimizer, const char* path);

/* Reads them into an optimizer of the same convention whose groups have as many parameters of the same sizes. Moments
   are converted to what it keeps. Parameters without a shape take the file's; the seed is the file's too. */
RADAM_API radam_status radam_load(radam_optimizer* optimizer, const char* path);

/* ---- threads and instruction sets */

/* Threads of the library's own pool that a step of an optimizer may use, the calling one included, from 1 to 1024: for
   optimizers that are created, or given the pool by radam_set_executor, from now on. Default: RADAM_NUM_THREADS in the
   environment, else the cores that the process may run on. */
RADAM_API radam_status radam_set_num_threads(int threads);
RADAM_API radam_status radam_get_num_threads(int* threads);

/* Steps of this optimizer run on threads of the caller's. The bits are the same for any executor.
   threads: how many parts a step is cut into at most, at least 1.
   run: calls part(context, index) once with each index from 0 to count - 1, in any order, on any threads, and returns
   when all have returned; it must not throw, or leave by longjmp. Not called where count would be 1. `self` is handed
   to it. Null: the library's own pool, and threads and self mean nothing. */
RADAM_API radam_status radam_set_executor(radam_optimizer* optimizer, int threads,
                                          void (*run)(void* self, int count, void (*part)(void* context, int index),
                                                      void* context),
                                          void* self);

/* The instruction set that steps run on, for the whole process: "avx512", "avx2", "neon" or "portable". The bits are
   the same on each. Default: RADAM_ISA in the environment, else the best that the processor has. The text stays. Not to
   be set while a step runs. */
RADAM_API radam_status radam_set_isa(const char* isa);
RADAM_API radam_status radam_get_isa(const char** isa);

#ifdef __cplusplus
}
#endif

#endif
