/* Fits the parabola y = 1 + 2 x - 3 x^2 to 100 points of it: 200 steps, saved at the end. Run it again, and it goes on
   from there, as if it had never stopped. */
#include <radam/radam.h>
#include <stdio.h>
#include <stdlib.h>

enum { POINTS = 100, TERMS = 3, STEPS = 200 };

static void check(radam_status status) {
    if (status == RADAM_OK) return;
    fprintf(stderr, "%s\n", radam_last_error());
    exit(EXIT_FAILURE);
}

/* The mean of squared errors, and its gradient. */
static float loss(const float* weights, float* grad) {
    float sum = 0.0f;
    for (int k = 0; k < TERMS; ++k) grad[k] = 0.0f;
    for (int i = 0; i < POINTS; ++i) {
        const float x = 2.0f * (float)i / (POINTS - 1) - 1.0f, powers[TERMS] = {1.0f, x, x * x};
        float error = -(1.0f + 2.0f * x - 3.0f * x * x);
        for (int k = 0; k < TERMS; ++k) error += weights[k] * powers[k];
        for (int k = 0; k < TERMS; ++k) grad[k] += 2.0f * error * powers[k] / POINTS;
        sum += error * error / POINTS;
    }
    return sum;
}

int main(void) {
    const char *const state = "parabola.safetensors", *const saved = "parabola.weights";
    float weights[TERMS] = {0.0f}, grad[TERMS];
    int64_t done = 0;

    radam_options options;
    radam_optimizer* optimizer;
    check(radam_options_init(&options, sizeof options));
    options.lr = 0.1;
    check(radam_create(&optimizer, &options, "torch", NULL));
    check(radam_add_param(optimizer, weights, RADAM_FLOAT32, grad, RADAM_FLOAT32, TERMS, NULL, NULL));

    FILE* file = fopen(saved, "rb");
    if (file != NULL && fread(weights, sizeof *weights, TERMS, file) == TERMS) check(radam_load(optimizer, state));
    if (file != NULL) fclose(file);

    check(radam_get_steps(optimizer, 0, &done));
    for (int step = (int)done + 1; step <= done + STEPS; ++step) {
        const float before = loss(weights, grad);
        check(radam_step(optimizer, NULL));
        if (step % 50 == 1 || step == done + STEPS) printf("step %3d: loss %.3g\n", step, (double)before);
    }

    check(radam_save(optimizer, state)); /* radam's own; the weights are the program's */
    file = fopen(saved, "wb");
    if (file == NULL || fwrite(weights, sizeof *weights, TERMS, file) != TERMS || fclose(file) != 0) {
        perror(saved);
        return EXIT_FAILURE;
    }
    check(radam_destroy(optimizer));
    return EXIT_SUCCESS;
}
