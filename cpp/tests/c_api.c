/* The C interface as a C99 program sees it, linked by a C compiler. tests/embedding/test_c_api.py compares its bits. */
#include <radam/radam.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "expect.hpp"

enum { SIZE = 300, BIG = 70000 }; /* a step of BIG elements is cut into parts */

static int refused(radam_status status, const char* why) {
    const int says = strstr(radam_last_error(), why) != NULL;
    if (!says) fprintf(stderr, "'%s' is not in '%s'\n", why, radam_last_error());
    return status == RADAM_INVALID_ARGUMENT && says;
}

static float* numbers(size_t count) {
    float* const made = malloc(count * sizeof *made);
    size_t i;
    if (made == NULL) abort();
    for (i = 0; i < count; ++i) made[i] = (float)(i % 17) - 8.0f;
    return made;
}

/* The gradient of half the sum of squares is the parameter itself. */
static void take_steps(radam_optimizer* optimizer, int count, const float* param, float* grad, size_t size) {
    int happened = 0, i;
    for (i = 0; i < count; ++i) {
        memcpy(grad, param, size * sizeof *grad);
        EXPECT(radam_step(optimizer, &happened) == RADAM_OK && happened == 1);
    }
}

static void before_any_failure_there_is_an_empty_text(void) { EXPECT(strcmp(radam_last_error(), "") == 0); }

static void null_is_an_error_and_no_crash(void) {
    radam_optimizer* optimizer = NULL;
    radam_options options;
    double number = 0.0;
    EXPECT(refused(radam_create(NULL, NULL, NULL, NULL), "optimizer must not be null"));
    EXPECT(refused(radam_step(NULL, NULL), "optimizer must not be null"));
    EXPECT(refused(radam_get_grad_norm(NULL, &number), "optimizer must not be null"));
    EXPECT(refused(radam_options_init(NULL, sizeof options), "radam_options must not be null"));
    EXPECT(radam_destroy(NULL) == RADAM_OK);
    EXPECT(radam_create(&optimizer, NULL, NULL, NULL) == RADAM_OK && optimizer != NULL);
    EXPECT(refused(radam_get_grad_norm(optimizer, NULL), "norm must not be null"));
    EXPECT(refused(radam_set_options(optimizer, 0, NULL), "options must not be null"));
    EXPECT(refused(radam_save(optimizer, NULL), "path must not be null"));
    EXPECT(radam_destroy(optimizer) == RADAM_OK);
}

static void defaults_are_those_of_the_header(void) {
    radam_optimizer* optimizer = NULL;
    radam_options options;
    radam_precision precision;
    radam_param_options param_options;
    EXPECT(radam_options_init(&options, sizeof options) == RADAM_OK);
    EXPECT(options.struct_size == sizeof options && options.maximize == 0 && options.amsgrad == 0);
    EXPECT(options.lr == 1e-3 && options.beta1 == 0.9 && options.beta2 == 0.999 && options.weight_decay == 0.0);
    EXPECT(options.eps == RADAM_BY_CONVENTION && options.decoupled_weight_decay == RADAM_BY_CONVENTION);
    EXPECT(radam_precision_init(&precision, sizeof precision) == RADAM_OK);
    EXPECT(precision.state_dtype == RADAM_STATE_FLOAT32 && precision.min_8bit_size == 4096 && precision.seed == 0);
    EXPECT(precision.master_weights == 0 && precision.stochastic_rounding == 0);
    EXPECT(radam_param_options_init(&param_options, sizeof param_options) == RADAM_OK);
    EXPECT(param_options.ndim == 0 && param_options.name == NULL && param_options.state == NULL);

    options.lr = 0.25;
    EXPECT(radam_create(&optimizer, &options, "author", &precision) == RADAM_OK);
    EXPECT(radam_options_init(&options, sizeof options) == RADAM_OK);
    EXPECT(radam_get_options(optimizer, 0, &options) == RADAM_OK && options.lr == 0.25 && options.beta2 == 0.999);
    EXPECT(radam_destroy(optimizer) == RADAM_OK);
}

/* What programs that were compiled with another header hand in and get. */
static void structs_may_grow(void) {
    struct {
        radam_options known;
        double unknown;
    } newer;
    radam_options options;
    radam_optimizer* optimizer = NULL;
    EXPECT(radam_options_init(&newer.known, sizeof newer) == RADAM_OK);
    EXPECT(newer.known.struct_size == sizeof newer && newer.unknown == 0.0);
    EXPECT(radam_create(&optimizer, &newer.known, NULL, NULL) == RADAM_OK);
    newer.unknown = 1.0;
    EXPECT(refused(radam_set_options(optimizer, 0, &newer.known), "does not know"));
    EXPECT(radam_get_options(optimizer, 0, &newer.known) == RADAM_OK && newer.unknown == 0.0);

    EXPECT(refused(radam_options_init(&options, sizeof options - 1), "struct_size"));
    memset(&options, 0, sizeof options);
    EXPECT(refused(radam_set_options(optimizer, 0, &options), "begin with radam_options_init"));
    options.struct_size = 0xffffffffu;
    EXPECT(refused(radam_set_options(optimizer, 0, &options), "struct_size is 4294967295"));
    EXPECT(radam_destroy(optimizer) == RADAM_OK);
}

static void a_parameter_steps_where_it_has_a_gradient(void) {
    radam_optimizer* optimizer = NULL;
    float *const param = numbers(SIZE), *const grad = numbers(SIZE), *const before = numbers(SIZE);
    int64_t steps = -1;
    size_t index = 99, groups = 0, params = 0;
    EXPECT(radam_create(&optimizer, NULL, NULL, NULL) == RADAM_OK);
    EXPECT(radam_add_param(optimizer, param, RADAM_FLOAT32, NULL, RADAM_FLOAT32, SIZE, NULL, &index) == RADAM_OK);
    EXPECT(index == 0 && radam_count(optimizer, &groups, &params) == RADAM_OK && groups == 1 && params == 1);
    EXPECT(radam_step(optimizer, NULL) == RADAM_OK && memcmp(param, before, SIZE * sizeof *param) == 0);
    EXPECT(radam_get_steps(optimizer, 0, &steps) == RADAM_OK && steps == 0);
    EXPECT(radam_set_grad(optimizer, 0, grad) == RADAM_OK);
    EXPECT(radam_step(optimizer, NULL) == RADAM_OK && memcmp(param, before, SIZE * sizeof *param) != 0);
    EXPECT(radam_get_steps(optimizer, 0, &steps) == RADAM_OK && steps == 1);
    EXPECT(radam_destroy(optimizer) == RADAM_OK);
    free(param), free(grad), free(before);
}

static void a_parameter_may_move_and_clipping_may_end(void) {
    radam_optimizer* optimizer = NULL;
    float *const param = numbers(SIZE), *const moved = numbers(SIZE), *const grad = numbers(SIZE);
    const size_t bytes = SIZE * sizeof *param;
    EXPECT(radam_create(&optimizer, NULL, NULL, NULL) == RADAM_OK);
    EXPECT(radam_add_param(optimizer, param, RADAM_FLOAT32, grad, RADAM_FLOAT32, SIZE, NULL, NULL) == RADAM_OK);
    EXPECT(radam_set_max_grad_value(optimizer, 0.0) == RADAM_OK);
    EXPECT(radam_step(optimizer, NULL) == RADAM_OK && memcmp(param, moved, bytes) == 0);
    EXPECT(radam_set_no_clipping(optimizer) == RADAM_OK && radam_set_param(optimizer, 0, moved) == RADAM_OK);
    EXPECT(radam_step(optimizer, NULL) == RADAM_OK && memcmp(param, moved, bytes) != 0);
    EXPECT(memcmp(param, grad, bytes) == 0);
    EXPECT(radam_destroy(optimizer) == RADAM_OK);
    free(param), free(moved), free(grad);
}

static void a_step_without_a_finite_gradient_is_left_out(void) {
    radam_optimizer* optimizer = NULL;
    float *const param = numbers(SIZE), *const grad = numbers(SIZE), *const before = numbers(SIZE);
    int happened = -1;
    int64_t skipped = -1;
    EXPECT(radam_create(&optimizer, NULL, NULL, NULL) == RADAM_OK);
    EXPECT(radam_add_param(optimizer, param, RADAM_FLOAT32, grad, RADAM_FLOAT32, SIZE, NULL, NULL) == RADAM_OK);
    EXPECT(radam_set_skip_nonfinite(optimizer, 1) == RADAM_OK);
    grad[7] = (float)HUGE_VAL;
    EXPECT(radam_step(optimizer, &happened) == RADAM_OK && happened == 0);
    EXPECT(memcmp(param, before, SIZE * sizeof *param) == 0);
    EXPECT(radam_get_skipped_steps(optimizer, &skipped) == RADAM_OK && skipped == 1);
    EXPECT(radam_destroy(optimizer) == RADAM_OK);
    free(param), free(grad), free(before);
}

static void states_of_the_caller_s_are_used(void) {
    static float exp_avg[SIZE], exp_avg_sq[SIZE];
    radam_optimizer* optimizer = NULL;
    radam_param_options options;
    radam_state state;
    const int64_t shape[2] = {SIZE / 3, 3};
    float *const param = numbers(SIZE), *const grad = numbers(SIZE);
    EXPECT(radam_state_init(&state, sizeof state) == RADAM_OK && state.exp_avg == NULL);
    EXPECT(radam_param_options_init(&options, sizeof options) == RADAM_OK);
    options.name = "weights";
    options.ndim = 2;
    options.shape = shape;
    options.state = &state;
    state.exp_avg = exp_avg;
    EXPECT(radam_create(&optimizer, NULL, NULL, NULL) == RADAM_OK);
    EXPECT(refused(radam_add_param(optimizer, param, RADAM_FLOAT32, grad, RADAM_FLOAT32, SIZE, &options, NULL),
                   "parameter 0 (\"weights\"): its state lacks exp_avg_sq"));
    state.exp_avg_sq = exp_avg_sq;
    EXPECT(radam_add_param(optimizer, param, RADAM_FLOAT32, grad, RADAM_FLOAT32, SIZE, &options, NULL) == RADAM_OK);
    EXPECT(radam_step(optimizer, NULL) == RADAM_OK && exp_avg[0] != 0.0f && exp_avg_sq[0] > 0.0f);
    EXPECT(radam_state_init(&state, sizeof state) == RADAM_OK);
    EXPECT(radam_get_state(optimizer, 0, &state) == RADAM_OK && state.moment_dtype == RADAM_FLOAT32);
    EXPECT(state.exp_avg == exp_avg && state.exp_avg_sq == exp_avg_sq && state.max_exp_avg_sq == NULL);
    EXPECT(radam_destroy(optimizer) == RADAM_OK);
    free(param), free(grad);
}

static void a_run_goes_on_from_a_file_with_the_same_bits(const char* path) {
    radam_optimizer *first = NULL, *second = NULL;
    float *const param = numbers(SIZE), *const other = numbers(SIZE), *const grad = numbers(SIZE);
    int64_t steps = 0;
    EXPECT(radam_create(&first, NULL, "adam", NULL) == RADAM_OK &&
           radam_create(&second, NULL, "adam", NULL) == RADAM_OK);
    EXPECT(radam_add_param(first, param, RADAM_FLOAT32, grad, RADAM_FLOAT32, SIZE, NULL, NULL) == RADAM_OK);
    EXPECT(radam_add_param(second, other, RADAM_FLOAT32, grad, RADAM_FLOAT32, SIZE, NULL, NULL) == RADAM_OK);
    EXPECT(radam_load(second, path) == RADAM_IO_ERROR && strstr(radam_last_error(), path) != NULL);
    take_steps(first, 10, param, grad, SIZE);
    EXPECT(radam_save(first, path) == RADAM_OK);
    memcpy(other, param, SIZE * sizeof *param); /* parameters are the program's own to save */
    EXPECT(radam_load(second, path) == RADAM_OK);
    EXPECT(radam_get_steps(second, 0, &steps) == RADAM_OK && steps == 10);
    take_steps(first, 10, param, grad, SIZE);
    take_steps(second, 10, other, grad, SIZE);
    EXPECT(memcmp(param, other, SIZE * sizeof *param) == 0);
    EXPECT(radam_destroy(first) == RADAM_OK && radam_destroy(second) == RADAM_OK);
    EXPECT(remove(path) == 0);
    free(param), free(other), free(grad);
}

/* An executor that does the parts in the wrong order, and looks at who may use the optimizer meanwhile. */
struct Backwards {
    radam_optimizer* optimizer;
    int jobs, parts;
};

static void run_backwards(void* self, int count, void (*part)(void* context, int index), void* context) {
    struct Backwards* const mine = self;
    EXPECT(radam_step(mine->optimizer, NULL) == RADAM_BUSY && radam_destroy(mine->optimizer) == RADAM_BUSY);
    ++mine->jobs;
    while (count > 0) part(context, --count), ++mine->parts;
}

static void the_caller_s_threads_give_the_same_bits(void) {
    struct Backwards mine = {NULL, 0, 0};
    radam_optimizer* pool = NULL;
    float *const param = numbers(BIG), *const other = numbers(BIG), *const grad = numbers(BIG);
    EXPECT(radam_create(&pool, NULL, NULL, NULL) == RADAM_OK &&
           radam_create(&mine.optimizer, NULL, NULL, NULL) == RADAM_OK);
    EXPECT(radam_add_param(pool, param, RADAM_FLOAT32, grad, RADAM_FLOAT32, BIG, NULL, NULL) == RADAM_OK);
    EXPECT(radam_add_param(mine.optimizer, other, RADAM_FLOAT32, grad, RADAM_FLOAT32, BIG, NULL, NULL) == RADAM_OK);
    EXPECT(refused(radam_set_executor(mine.optimizer, 0, run_backwards, &mine), "threads must be at least 1, got 0"));
    EXPECT(radam_set_executor(mine.optimizer, 3, run_backwards, &mine) == RADAM_OK);
    take_steps(pool, 2, param, grad, BIG);
    take_steps(mine.optimizer, 2, other, grad, BIG);
    EXPECT(mine.jobs == 2 && mine.parts == 6 && memcmp(param, other, BIG * sizeof *param) == 0);
    EXPECT(radam_set_executor(mine.optimizer, 0, NULL, NULL) == RADAM_OK);
    take_steps(pool, 1, param, grad, BIG);
    take_steps(mine.optimizer, 1, other, grad, BIG);
    EXPECT(mine.jobs == 2 && memcmp(param, other, BIG * sizeof *param) == 0);
    EXPECT(radam_destroy(pool) == RADAM_OK && radam_destroy(mine.optimizer) == RADAM_OK);
    free(param), free(other), free(grad);
}

static void threads_and_instruction_sets_are_said_and_set(void) {
    int threads = 0, wanted = 3;
    const char *isa = NULL, *before = NULL;
    EXPECT(radam_set_num_threads(wanted) == RADAM_OK && radam_get_num_threads(&threads) == RADAM_OK &&
           threads == wanted);
    EXPECT(refused(radam_set_num_threads(0), "from 1 to 1024, got 0"));
    EXPECT(radam_get_isa(&before) == RADAM_OK && before != NULL);
    EXPECT(refused(radam_set_isa("abacus"), "no such instruction set"));
    EXPECT(radam_set_isa("portable") == RADAM_OK && radam_get_isa(&isa) == RADAM_OK && strcmp(isa, "portable") == 0);
    EXPECT(radam_set_isa(before) == RADAM_OK);
}

int main(int count, char** arguments) {
    before_any_failure_there_is_an_empty_text();
    null_is_an_error_and_no_crash();
    defaults_are_those_of_the_header();
    structs_may_grow();
    a_parameter_steps_where_it_has_a_gradient();
    a_parameter_may_move_and_clipping_may_end();
    a_step_without_a_finite_gradient_is_left_out();
    states_of_the_caller_s_are_used();
    a_run_goes_on_from_a_file_with_the_same_bits(count > 1 ? arguments[1] : "c_api.safetensors");
    the_caller_s_threads_give_the_same_bits();
    threads_and_instruction_sets_are_said_and_set();
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
