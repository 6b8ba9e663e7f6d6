// The promises of radam::torch::RAdam that need no Python to compare with, and the cases with the compiled library.
#include <cstdio>
#include <map>
#include <string>

#include "archives.hpp"
#include "groups.hpp"
#include "refusals.hpp"
#include "steps.hpp"

namespace {

using namespace promises;

#define PROMISE(name) {#name, name}
const std::map<std::string, void (*)()> table{
    PROMISE(groups_inherit_what_is_not_set_for_them),
    PROMISE(groups_come_between_steps),
    PROMISE(groups_that_are_never_rectified_are_warned_of),
    PROMISE(wrong_hyperparameters_are_refused),
    PROMISE(wrong_groups_are_refused),
    PROMISE(wrong_input_changes_nothing),
    PROMISE(the_first_step_makes_no_state_where_it_is_refused),
    PROMISE(gradients_are_only_read),
    PROMISE(autograd_notices_a_step),
    PROMISE(a_closure_computes_gradients_anew),
    PROMISE(schedulers_of_libtorch_set_the_learning_rate),
    PROMISE(training_goes_on_from_an_archive_with_the_same_bits),
    PROMISE(states_load_into_more_and_fewer_bits),
    PROMISE(a_load_has_the_same_bits_in_any_floating_point_mode),
    PROMISE(foreign_options_and_states_are_neither_saved_nor_loaded_over),
    PROMISE(states_of_parameters_that_have_left_are_not_saved),
    PROMISE(a_load_that_does_not_fit_changes_nothing),
    PROMISE(archives_can_be_loaded_to_a_gpu),
    PROMISE(options_and_states_compare_and_are_cloned),
    PROMISE(any_number_of_threads_gives_the_same_bits),
    PROMISE(the_default_threads_are_libtorchs),
    PROMISE(an_executor_of_ones_own_runs_the_parts),
    PROMISE(an_optimizer_serves_one_call_at_a_time),
    PROMISE(steps_with_inf_or_nan_are_left_out),
    PROMISE(gradients_of_a_scaled_loss_are_unscaled),
    PROMISE(lazy_gradients_step_as_what_they_stand_for),
    PROMISE(steps_work_in_inference_mode),
    PROMISE(an_optimizer_can_be_moved),
    PROMISE(a_step_allocates_nothing_after_the_first),
};

}  // namespace

// dispatched NAME: one promise. dispatched CASES RESULTS: see cases.hpp.
int main(int argc, char** argv) {
    if (argc == 3) return cases::run_all<promises::RAdam>(argv[1], argv[2]);
    if (argc != 2 || table.count(argv[1]) == 0) return 2;
    try {
        table.at(argv[1])();
    } catch (const c10::Error& error) {
        std::fprintf(stderr, "%s\n", error.what_without_backtrace());
        return 1;
    }
    return failures == 0 ? 0 : 1;
}
