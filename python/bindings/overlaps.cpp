// Whether arrays of a call share memory.
#include <string>

#include "call.hpp"

namespace nb = nanobind;

namespace radam::python {

void Call::check_overlaps() {
    const auto text = [&](const Interval& i) { return where(static_cast<Role>(i.role), entries_[i.entry]).text(); };
    overlaps_.check(
        grad,
        [&](const Interval& i) {
            return static_cast<const Entry&>(entries_[i.entry]).at(static_cast<Role>(i.role)).layout;
        },
        [&](const Interval& a, const Interval& b) {
            throw nb::value_error((text(a) + " and " + text(b) +
                                   " share memory; a step must not write what it reads elsewhere: "
                                   "hand in each parameter once, and a copy of what overlaps")
                                      .c_str());
        });
}

}  // namespace radam::python
