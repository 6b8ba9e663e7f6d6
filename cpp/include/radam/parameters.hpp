// The parameters of an optimizer: raw buffers with their gradients and states, none of which shares memory with
// another.
#pragma once

#include <limits>
#include <stdexcept>
#include <string>

#include "states.hpp"
#include "tiles.hpp"
#include "utf8.hpp"

namespace radam {

constexpr std::size_t most_shape = 64;  // dimensions: those of NumPy, whose arrays states are in saved files

// What add_param is told of a parameter besides its buffers.
struct ParamOptions {
    std::string name = {};                 // for messages and saved files
    std::vector<std::int64_t> shape = {};  // in C order, for saved files; empty: one dimension, or a loaded file's
    StateBuffers state = {};
};

struct Parameter {
    Slot slot;
    const Sweeps* sweeps = nullptr;  // for its dtypes, where it is not staged
    std::size_t group = 0;
    std::string name;
    std::vector<std::int64_t> shape;
    bool is_shaped = false, owns_state = true;
    std::int64_t steps = 0;
    OwnedState state;
    unsigned known_parts = 0;  // of its state: a bit for each whose memory is known to be taken
    Stretches::Handle place, grad_place;
};

// std::invalid_argument where something does not fit; nothing is changed then.
class Parameters {
public:
    std::size_t size() const noexcept { return all_.size(); }
    const Parameter& operator[](std::size_t index) const noexcept { return all_[index]; }
    Parameter& operator[](std::size_t index) noexcept { return all_[index]; }
    const Parameter* begin() const noexcept { return all_.data(); }
    const Parameter* end() const noexcept { return all_.data() + all_.size(); }

    // p: with its slot, but for the state, and with its name and group. make_room: called when all is well, and may
    // throw.
    template <class F>
    void add(Parameter&& p, const std::vector<std::int64_t>& shape, const StateBuffers& state, bool amsgrad,
             F make_room) {
        const std::size_t index = all_.size();
        const Slot& slot = p.slot;
        if (!is_utf8(p.name)) refuse(index, "", "its name is not UTF-8");
        if (slot.size < 0) refuse(index, p.name, "its size must be at least 0, got " + std::to_string(slot.size));
        if (!is_pair(slot.param_dtype, slot.grad_dtype))
            refuse(index, p.name,
                   std::string("a ") + name_of(slot.param_dtype) + " parameter cannot have a " +
                       name_of(slot.grad_dtype) +
                       " gradient; float64 goes with float64, and float32, bfloat16 and float16 with each other");
        if (slot.size > std::numeric_limits<std::int64_t>::max() / 8) refuse(index, p.name, "it is too large");
        check_param(slot.param, p, index, Stretches::none);
        p.is_shaped = !shape.empty();
        p.shape = p.is_shaped ? shape : std::vector<std::int64_t>{slot.size};
        check_shape(p.shape, p, index);
        check_grad(slot.grad, p, index);
        if (meet(slot.grad, grad_bytes(p), slot.param, param_bytes(p)))
            refuse(index, p.name, "its gradient shares memory with the parameter itself; give it a buffer of its own");
        place_state(p, index, state, amsgrad);
        make_room();

        all_.push_back(std::move(p));
        try {
            take_places(all_.back(), index);
        } catch (...) {  // no memory
            all_.pop_back();
            throw;
        }
    }

    void set_param(std::size_t index, void* param) {
        Parameter& p = all_[checked(index)];
        check_param(param, p, index, index);
        for (int part = 0; part < state_parts; ++part)
            if (meet(param, param_bytes(p), part_of(p.slot, part), part_bytes(p.slot, part, true)))
                refuse(index, std::string("it shares memory with its ") + state_part_names[part]);
        p.place = written_.move(p.place, param, param_bytes(p));
        p.slot.param = param;
    }

    void set_grad(std::size_t index, const void* grad) {
        Parameter& p = all_[checked(index)];
        check_grad(grad, p, index);
        p.grad_place = grads_.move(p.grad_place, grad, grad == nullptr ? 0 : grad_bytes(p));
        p.slot.grad = grad;
    }

    // Gives every parameter of a group what amsgrad needs.
    void make_max(std::size_t group) {
        for (std::size_t i = 0; i < all_.size(); ++i)
            if (const Parameter& p = all_[i]; p.group == group && !p.owns_state) check_room(i, true);
        for (std::size_t i = 0; i < all_.size(); ++i)
            if (all_[i].group == group) make_state(i, true);
    }

    // Makes what a state of an optimizer's own lacks.
    void make_state(std::size_t index, bool amsgrad) {
        Parameter& p = all_[index];
        if (!p.owns_state) return;
        p.state.make(p.slot, amsgrad);
        for_each_new_part(p, [&](const void* data, std::int64_t bytes) { written_.add(data, bytes, index); });
    }

    // Whether an embedder's state has all its parts.
    void check_room(std::size_t index, bool amsgrad) const {
        const Parameter& p = all_[index];
        for (int part = 0; part < state_parts; ++part)
            if (part_bytes(p.slot, part, amsgrad) > 0 && part_of(p.slot, part) == nullptr)
                refuse(index, std::string("its state, which add_param was given, lacks ") + state_part_names[part] +
                                  "; give a buffer for each part of it");
    }

    // Whether a parameter has what amsgrad's maximum takes, or can be given it: an embedder's own state may lack it.
    bool has_room_for_max(std::size_t index) const noexcept {
        const Parameter& p = all_[index];
        bool has = true;
        for (const int part : {2, 5})
            has = has && (part_of(p.slot, part) != nullptr || part_bytes(p.slot, part, true) == 0);
        return p.owns_state || has;
    }

    static void check_shape(const std::vector<std::int64_t>& shape, const Parameter& p, std::size_t index) {
        if (shape.size() > most_shape)
            refuse(index, p.name, "its shape has more than " + std::to_string(most_shape) + " dimensions");
        std::int64_t count = 1;
        bool fits = true;
        for (const std::int64_t n : shape) {
            fits = fits && n >= 0 && (n == 0 || count <= std::numeric_limits<std::int64_t>::max() / n);
            if (fits) count *= n;
        }
        if (!fits || count != p.slot.size)
            refuse(index, p.name, "its shape does not have its " + std::to_string(p.slot.size) + " elements");
    }

    std::size_t checked(std::size_t index) const {
        if (index < all_.size()) return index;
        throw std::invalid_argument("radam: there is no parameter " + std::to_string(index) + "; there are " +
                                    std::to_string(all_.size()));
    }

    [[noreturn]] void refuse(std::size_t index, const std::string& why) const { refuse(index, all_[index].name, why); }

private:
    [[noreturn]] static void refuse(std::size_t index, const std::string& name, const std::string& why) {
        throw std::invalid_argument("radam: parameter " + std::to_string(index) +
                                    (name.empty() ? "" : " (\"" + name + "\")") + ": " + why);
    }

    static std::int64_t param_bytes(const Parameter& p) noexcept { return p.slot.size * size_of(p.slot.param_dtype); }
    static std::int64_t grad_bytes(const Parameter& p) noexcept { return p.slot.size * size_of(p.slot.grad_dtype); }

    static bool meet(const void* a, std::int64_t a_bytes, const void* b, std::int64_t b_bytes) noexcept {
        const auto x = reinterpret_cast<std::uintptr_t>(a), y = reinterpret_cast<std::uintptr_t>(b);
        return a != nullptr && b != nullptr && a_bytes > 0 && b_bytes > 0 &&
               x < y + static_cast<std::uintptr_t>(b_bytes) && y < x + static_cast<std::uintptr_t>(a_bytes);
    }

    // Memory that is written must be where no other parameter, state or gradient is.
    void check_written(const void* data, std::int64_t bytes, const Parameter& p, std::size_t index, std::size_t except,
                       const char* what) const {
        if (const std::size_t other = written_.meets(data, bytes, except); other != Stretches::none)
            refuse(index, p.name,
                   std::string(what) + " shares memory with parameter " + std::to_string(other) +
                       " or its state; each is written, and needs memory of its own");
        if (const std::size_t other = grads_.meets(data, bytes); other != Stretches::none)
            refuse(index, p.name,
                   std::string(what) + " shares memory with the gradient of parameter " + std::to_string(other) +
                       ", which a step only reads");
    }
    void check_param(const void* param, const Parameter& p, std::size_t index, std::size_t except) const {
        if (param == nullptr && p.slot.size > 0) refuse(index, p.name, "its pointer is null, and it has elements");
        check_written(param, param_bytes(p), p, index, except, "it");
    }
    void check_grad(const void* grad, const Parameter& p, std::size_t index) const {
        if (grad == nullptr) return;
        if (const std::size_t other = written_.meets(grad, grad_bytes(p)); other != Stretches::none)
            refuse(index, p.name,
                   "its gradient shares memory with parameter " + std::to_string(other) +
                       " or its state, which a step writes; give it a buffer of its own");
    }

    void place_state(Parameter& p, std::size_t index, const StateBuffers& state, bool amsgrad) const {
        const std::array<void*, state_parts> given = parts_of(state);
        for (void* const data : given) p.owns_state = p.owns_state && data == nullptr;
        if (p.owns_state) return p.state.make(p.slot, amsgrad);
        for (int part = 0; part < state_parts; ++part) {
            void* const data = given[static_cast<std::size_t>(part)];
            const std::int64_t room = part_bytes(p.slot, part, true);
            const char* const name = state_part_names[part];
            if (data == nullptr && part_bytes(p.slot, part, amsgrad) > 0)
                refuse(index, p.name,
                       std::string("its state lacks ") + name + "; give a buffer for each part of it, or for none");
            if (data == nullptr || room == 0) continue;
            check_written(data, room, p, index, Stretches::none, name);
            if (meet(data, room, p.slot.param, param_bytes(p)) || meet(data, room, p.slot.grad, grad_bytes(p)))
                refuse(index, p.name, std::string(name) + " shares memory with it or its gradient");
            for (int before = 0; before < part; ++before)
                if (meet(data, room, part_of(p.slot, before), part_bytes(p.slot, before, true)))
                    refuse(index, p.name, std::string(name) + " shares memory with " + state_part_names[before]);
            set_part(p.slot, part, data);
        }
    }

    // Remembers where a parameter, its gradient and its state are.
    void take_places(Parameter& p, std::size_t index) {
        std::vector<Stretches::Handle> taken;
        taken.reserve(state_parts + 1);
        const auto take = [&](const void* data, std::int64_t bytes) {
            taken.push_back(written_.add(data, bytes, index));
            return taken.back();
        };
        try {
            p.place = take(p.slot.param, param_bytes(p));
            for_each_new_part(p, take);
            p.grad_place = grads_.add(p.slot.grad, p.slot.grad == nullptr ? 0 : grad_bytes(p), index);
        } catch (...) {
            for (const Stretches::Handle stretch : taken) written_.remove(stretch);
            throw;
        }
    }
    template <class F>
    static void for_each_new_part(Parameter& p, F take) {
        for (int part = 0; part < state_parts; ++part) {
            if (part_of(p.slot, part) == nullptr || (p.known_parts >> part & 1u) != 0) continue;
            take(part_of(p.slot, part), part_bytes(p.slot, part, true));
            p.known_parts |= 1u << part;
        }
    }

    std::vector<Parameter> all_;
    Stretches written_{true}, grads_{false};
};

}  // namespace radam
