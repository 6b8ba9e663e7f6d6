"""A compiled step is an eager step: one graph without a break, one operator in it, the same bits, the same errors."""

from __future__ import annotations

import copy
import gc
import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import lr_scheduler

from radam.torch import RAdam, op

pytestmark = [
    # Importing torch's own inductor says so.
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    # torch's compiler looks at the gradient of the loss where it breaks a graph at backward().
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning"),
]
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++", "cl"))), reason="inductor needs a C++ compiler"
)

Optimizer = torch.optim.Optimizer
Step = Callable[[], Any]
STEPS = 8  # with the default betas the sixth is the first that is rectified


@pytest.fixture(autouse=True)
def _nothing_compiled_is_left() -> Iterator[None]:
    def forget() -> None:
        torch._dynamo.reset()
        counters.clear()

    forget()
    with torch.set_grad_enabled(True):
        yield
    forget()


# ---- what is stepped, and what is the same


def normal(*shapes: Sequence[int], dtype: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(tuple(shape), generator=generator, dtype=dtype)) for shape in shapes]


def strided() -> list[nn.Parameter]:
    a, b, c = (param.detach() for param in normal((2, 3, 4, 4), (4, 3), (10,)))
    return [nn.Parameter(a.to(memory_format=torch.channels_last)), nn.Parameter(b.t()), nn.Parameter(c[::2])]


def real_kinds() -> list[nn.Parameter]:
    return [
        *normal((3, 4), (), (0, 3)),
        *normal((5,), (), (0,), dtype=torch.bfloat16),
        *normal((2, 2), dtype=torch.float16),
        *normal((3,), dtype=torch.float64),
        *strided(),
    ]


def every_kind() -> list[nn.Parameter]:
    return [*normal((3,), (), dtype=torch.complex64), *normal((2,), dtype=torch.complex128), *real_kinds()]


def over(params: Iterable[Any], **settings: Any) -> RAdam:
    return RAdam(params, **{"lr": 0.05, **settings})


def in_groups() -> RAdam:
    a, b, c, d, e = normal((3, 4), (5,), (2, 2), (3,), ())
    return over(
        [
            {"params": [a], "lr": 0.1, "betas": (0.8, 0.9)},
            {"params": [b], "weight_decay": 0.1, "maximize": True, "foreach": True},
            {"params": []},
            {"params": [c, d], "weight_decay": 0.1, "decoupled_weight_decay": True, "foreach": False, "eps": 1e-3},
            {"params": [e], "lr": torch.tensor(0.2)},
        ]
    )


def two(**settings: Any) -> RAdam:
    return over(normal((3,), (2, 2)), **settings)


CASES: dict[str, Callable[[], RAdam]] = {
    "plain": two,
    "groups": in_groups,
    "every kind": lambda: over(every_kind()),
    "real kinds": lambda: over(real_kinds()),
    "coupled": lambda: two(weight_decay=0.1),
    "decoupled": lambda: two(weight_decay=0.1, decoupled_weight_decay=True),
    "maximize": lambda: two(maximize=True),
    "foreach": lambda: two(foreach=True),
    "no foreach": lambda: two(foreach=False),
    "tensor lr": lambda: two(lr=torch.tensor(0.1)),
    "tensor lr of shape (1,)": lambda: two(lr=torch.tensor([0.1], dtype=torch.float64)),
    "tensor betas": lambda: two(betas=(torch.tensor(0.9), torch.tensor(0.99))),
    "whole numbers": lambda: two(lr=1, weight_decay=1, eps=1),
    "author's convention": lambda: two(convention="author"),
    "optax's convention": lambda: two(convention="optax"),
    "named": lambda: over(zip("ab", normal((3,), (2, 2)))),
}
# The backend "eager" runs the graph as it is; "aot_eager" rewrites changes in place; inductor writes C++ as well.
TABLE = [(case, "eager") for case in CASES] + [(case, "aot_eager") for case in ("plain", "groups", "every kind")]
INDUCTOR = pytest.param("real kinds", "inductor", marks=needs_compiler)  # it warns of complex numbers


def params_of(optimizer: Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def draw(optimizer: Optimizer, t: int, without: Iterable[int] = ()) -> None:
    """Give the parameters the gradients of step t, but for some."""
    generator = torch.Generator().manual_seed(1000 + t)
    for place, param in enumerate(params_of(optimizer)):
        grad = torch.randn(param.shape, generator=generator, dtype=param.dtype)
        param.grad = None if place in without else grad


def compiled(optimizer: Optimizer, backend: str = "eager") -> Step:
    step: Step = torch.compile(optimizer.step, fullgraph=True, backend=backend)
    return step


def graphs() -> int:
    """Return how many graphs were compiled since the test began."""
    assert not counters["graph_break"], counters["graph_break"]
    return int(counters["stats"]["unique_graphs"])


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def assert_same_bits(got: Tensor, expected: Tensor, what: str) -> None:
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape), f"{what}: {got.dtype} {tuple(got.shape)}"
    assert torch.equal(bits(got), bits(expected)), f"{what}: {got} is not {expected}"


def state_of(optimizer: Optimizer, param: Tensor) -> dict[str, Tensor]:
    """Return the state of a parameter; one that counts no step is as good as none."""
    state = optimizer.state.get(param, {})
    if state and state["step"] == 0:
        assert not state["exp_avg"].any()
        assert not state["exp_avg_sq"].any()
        return {}
    return state


def assert_same(got: RAdam, expected: RAdam, case: str = "") -> None:
    for place, (ours, theirs) in enumerate(zip(params_of(got), params_of(expected), strict=True)):
        assert_same_bits(ours, theirs, f"{case} param {place}")
        state, other = state_of(got, ours), state_of(expected, theirs)
        assert list(state) == list(other), f"{case} param {place}: state has {list(state)}, expected {list(other)}"
        for name in state:
            assert_same_bits(state[name], other[name], f"{case} {name} of param {place}")
    assert got.skipped_steps == expected.skipped_steps


def assert_same_run(
    got: RAdam, got_step: Step, expected: RAdam, steps: Iterable[int] = range(STEPS), without: Iterable[int] = ()
) -> None:
    """Step both with equal gradients, the second one eagerly, and compare all after every step."""
    for t in steps:
        for optimizer in (got, expected):
            draw(optimizer, t, without)
        got_step()
        expected.step()
        assert_same(got, expected, f"step {t}:")


# ---- the same bits


@pytest.mark.parametrize(("case", "backend"), [*TABLE, INDUCTOR])
def test_a_compiled_step_has_the_bits_of_an_eager_one_from_the_first_on(case: str, backend: str) -> None:
    optimizer, expected = CASES[case](), CASES[case]()
    assert_same_run(optimizer, compiled(optimizer, backend), expected)
    assert graphs() == 2, "one graph that makes the states, and one that finds them"


@pytest.mark.parametrize("case", ["plain", "groups", "every kind"])
def test_compiled_and_eager_steps_mix(case: str) -> None:
    for eager_first in (False, True):
        optimizer, expected = CASES[case](), CASES[case]()
        step = compiled(optimizer)
        for turn in range(4):
            now = optimizer.step if turn % 2 == eager_first else step
            assert_same_run(optimizer, now, expected, range(3 * turn, 3 * turn + 3))


def test_nothing_to_step_is_no_graph_break() -> None:
    for optimizer in (two(), over([{"params": []}])):
        before = copy.deepcopy(params_of(optimizer))
        compiled(optimizer)()
        assert all(map(torch.equal, params_of(optimizer), before))
        assert not optimizer.state


def test_a_parameter_that_is_twice_in_a_group_is_stepped_twice() -> None:
    def twice() -> RAdam:
        (param,) = normal((3,))
        with pytest.warns(UserWarning, match="duplicate"):
            return over([param, param])

    optimizer, expected = twice(), twice()
    assert_same_run(optimizer, compiled(optimizer), expected)
    assert [state["step"].item() for state in optimizer.state.values()] == [2 * STEPS]


def test_one_compiled_function_serves_many_optimizers() -> None:
    @torch.compile(fullgraph=True, backend="eager")
    def step(optimizer: RAdam) -> None:
        optimizer.step()

    made = [(CASES[case](), CASES[case]()) for case in ("plain", "decoupled")]
    for t in range(3):
        for optimizer, expected in made:
            assert_same_run(optimizer, lambda o=optimizer: step(o), expected, [t])


def test_a_copy_has_compiled_steps_of_its_own() -> None:
    optimizer, expected = two(), two()
    assert_same_run(optimizer, compiled(optimizer), expected, range(2))
    other, other_expected = copy.deepcopy(optimizer), copy.deepcopy(expected)
    assert_same_run(other, compiled(other), other_expected, range(2, 5))
    assert_same(optimizer, expected)
    assert_same_run(optimizer, compiled(optimizer), expected, range(5, 8))


# ---- one operator, in place


def radam_nodes(graph: GraphModule) -> list[Any]:
    return [node for node in graph.graph.nodes if "radam" in str(node.target)]


def test_a_step_is_one_graph_with_one_operator_however_many_groups_there_are() -> None:
    optimizer = in_groups()
    for t in range(2):
        draw(optimizer, t)
        seen = torch._dynamo.explain(optimizer.step)()
        assert (seen.graph_count, seen.graph_break_count) == (1, 0), seen.break_reasons
        assert [node.target for node in radam_nodes(seen.graphs[0])] == [torch.ops.radam.step_.default]


@needs_compiler
def test_inductor_steps_in_place_without_a_copy() -> None:
    optimizer = in_groups()
    step = compiled(optimizer, "inductor")
    for t, makes_states in enumerate((True, False)):
        draw(optimizer, t)
        _, (code,) = run_and_get_code(step)
        body = code[code.index("def call(") : code.index("def get_args(")]
        assert body.count("torch.ops.radam.step_.default(") == 1
        assert not any(word in body for word in ("copy_", "clone", "as_strided", "reinterpret"))
        assert ("empty_strided" in body) == makes_states


def arguments(optimizer: RAdam) -> tuple[Any, ...]:
    """Return what the operator takes for all parameters of an optimizer that has states, as copies."""
    params = params_of(optimizer)
    columns = [[optimizer.state[p][key] for p in params] for key in ("exp_avg", "exp_avg_sq", "step")]
    grads = [p.grad for p in params]
    places = [
        (number, place) for number, group in enumerate(optimizer.param_groups) for place in range(len(group["params"]))
    ]
    copies = [[tensor.detach().clone() for tensor in column] for column in (params, grads, *columns)]
    return (*copies, [*itertools.chain(*places)], optimizer._handle, "")


MUTATED = {"params", "exp_avgs", "exp_avg_sqs", "steps"}
CHECKED = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("case", ["groups", "every kind"])
def test_the_operator_passes_all_of_opcheck(case: str) -> None:
    optimizer = CASES[case]()
    draw(optimizer, 0)
    optimizer.step()
    given = arguments(optimizer)
    for requires_grad in (False, True):
        for param in given[0]:
            param.requires_grad_(requires_grad)
        found = torch.library.opcheck(torch.ops.radam.step_.default, given)
        assert found == dict.fromkeys(CHECKED, "SUCCESS")


def test_the_operator_declares_what_it_changes_and_nothing_else() -> None:
    declared = {
        argument.name
        for argument in torch.ops.radam.step_.default._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    }
    assert declared == MUTATED
    optimizer = two()
    draw(optimizer, 0)
    optimizer.step()
    given = arguments(optimizer)
    before = copy.deepcopy(given)
    torch.ops.radam.step_(*given)
    lists = {
        argument.name: (old, new)
        for argument, old, new in zip(torch.ops.radam.step_.default._schema.arguments, before, given, strict=True)
        if str(argument.type) == "List[Tensor]"
    }
    assert len(lists) == len(MUTATED) + 1
    assert {name for name, (old, new) in lists.items() if not all(map(torch.equal, old, new))} == MUTATED


@pytest.mark.parametrize("left_out", sorted(MUTATED))
def test_opcheck_would_notice_a_change_that_is_not_declared(left_out: str) -> None:
    optimizer = two()
    draw(optimizer, 0)
    optimizer.step()
    names = tuple(MUTATED - {left_out})
    wrong = torch.library.custom_op(f"radam_test::without_{left_out}", op.step_._init_fn, mutates_args=names)
    wrong.register_fake(lambda *args: None)
    found = torch.library.opcheck(wrong, arguments(optimizer), raise_exception=False)
    assert f"Argument {left_out} is not defined as mutable but was mutated" in str(found["test_schema"])


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_sees_one_operator_and_its_graph_steps(mode: str) -> None:
    optimizer, expected = in_groups(), in_groups()
    for it in (optimizer, expected):
        draw(it, 0)
        it.step()

    def step_with(grads: list[Tensor]) -> None:
        for param, grad in zip(params_of(optimizer), grads, strict=True):
            param.grad = grad
        optimizer.step()

    draw(expected, 1)
    grads = [param.grad for param in params_of(expected)]
    graph = make_fx(step_with, tracing_mode=mode, _allow_non_fake_inputs=True)(grads)
    assert [node.target for node in radam_nodes(graph)] == [torch.ops.radam.step_.default]
    if mode == "real":  # the trace is a step; the others only look
        expected.step()
    assert_same(optimizer, expected, "after the trace:")
    for t in range(2, 5):
        draw(expected, t)
        graph([param.grad for param in params_of(expected)])
        expected.step()
        assert_same(optimizer, expected, f"step {t}:")


@pytest.mark.parametrize("settings", [{"weight_decay": 0.1, "maximize": True}, {"convention": "optax", "lr": 0.3}])
def test_a_recorded_graph_needs_its_optimizer_no_more(settings: dict[str, Any]) -> None:
    def step(param: Tensor, grad: Tensor) -> Tensor:
        leaf = param.clone()
        leaf.grad = grad
        over([leaf], **settings).step()
        return leaf

    start, grad, other = (tensor.detach() for seed in range(3) for tensor in normal((3,), seed=seed))
    graph = make_fx(step)(start, grad)
    gc.collect()
    assert_same_bits(graph(start, other), step(start, other), "param")


def test_the_operator_of_an_optimizer_that_is_gone_says_so() -> None:
    optimizer = two()
    draw(optimizer, 0)
    optimizer.step()
    given = arguments(optimizer)
    del optimizer
    gc.collect()
    with pytest.raises(RuntimeError, match="optimizer of this step is gone"):
        torch.ops.radam.step_(*given)


def test_export_of_a_module_is_as_without_an_optimizer() -> None:
    model, x = nn.Linear(3, 2), torch.ones(4, 3)
    plain = [node.target for node in torch.export.export(model, (x,)).graph.nodes]
    optimizer = over(model.parameters())
    step = compiled(optimizer)
    for t in range(2):
        draw(optimizer, t)
        step()
        exported = torch.export.export(model, (x,))
        assert [node.target for node in exported.graph.nodes] == plain
        assert set(exported.state_dict) == {"weight", "bias"}
        assert torch.equal(exported.module()(x), model(x))


def test_tensors_without_values_are_stepped_without_a_value() -> None:
    with FakeTensorMode():
        model = nn.Linear(3, 2)
        optimizer = over(model.parameters(), weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(4, 3)).sum().backward()
            optimizer.step()
    for param in model.parameters():
        assert all(isinstance(tensor, FakeTensor) for tensor in optimizer.state[param].values())


# ---- what changes between steps is followed without compiling again

Schedule = Callable[[Optimizer], lr_scheduler.LRScheduler]
SCHEDULES: dict[str, Schedule] = {
    "exponential": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.9),
    "one cycle, which edits betas": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=30),
}
CHANGES = 20  # beyond torch._dynamo.config.recompile_limit, where fullgraph=True would fail


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("compiled_first", [False, True], ids=["scheduler_first", "compiled_first"])
def test_a_schedule_compiles_nothing_again(schedule: str, tensor: bool, compiled_first: bool) -> None:
    assert torch._dynamo.config.recompile_limit < CHANGES
    optimizer, expected = (two(lr=torch.tensor(0.1) if tensor else 0.1) for _ in range(2))
    step = compiled(optimizer) if compiled_first else None
    schedules = [SCHEDULES[schedule](it) for it in (optimizer, expected)]
    step = step or compiled(optimizer)
    rates = set()
    for t in range(CHANGES):
        assert_same_run(optimizer, step, expected, [t])
        rates.add(float(optimizer.param_groups[0]["lr"]))
        for it in schedules:
            it.step()
    assert len(rates) == CHANGES
    assert graphs() == 2


def test_a_step_may_be_replaced_by_its_compiled_self() -> None:
    optimizer, expected = two(), two()
    optimizer.step = torch.compile(optimizer.step, fullgraph=True, backend="eager")
    schedules = [SCHEDULES["exponential"](it) for it in (optimizer, expected)]
    for t in range(4):
        assert_same_run(optimizer, optimizer.step, expected, [t])
        for it in schedules:
            it.step()


def test_edits_of_a_group_take_effect_and_compile_nothing_again() -> None:
    edits: list[dict[str, Any]] = [
        {"lr": 0.3},
        {"lr": torch.tensor(0.2)},
        {"weight_decay": 0.2},
        {"decoupled_weight_decay": True},
        {"eps": 1e-2},
        {"betas": (0.7, 0.8)},
        {"betas": (torch.tensor(0.8), 0.95)},
        {"maximize": True},
        {"foreach": True},
        {"foreach": None, "maximize": False},
    ]
    optimizer, expected = two(), two()
    step = compiled(optimizer)
    for t, edit in enumerate(edits):
        for it in (optimizer, expected):
            it.param_groups[0].update(edit)
        assert_same_run(optimizer, step, expected, [t])
    assert graphs() == 2


def add_a_group(optimizer: RAdam) -> None:
    optimizer.add_param_group({"params": normal((4,), (), seed=7), "lr": 0.3})


def load_torchs(optimizer: RAdam) -> None:
    torchs = torch.optim.RAdam(copy.deepcopy(optimizer.param_groups))
    for t in range(7):
        draw(torchs, t)
        torchs.step()
    optimizer.load_state_dict(torchs.state_dict())


def load_an_earlier_state(optimizer: RAdam) -> None:
    earlier = two()
    draw(earlier, 0)
    earlier.step()
    optimizer.load_state_dict(earlier.state_dict())


def replace_state_tensors(optimizer: RAdam) -> None:
    a, b = params_of(optimizer)
    optimizer.state[a]["exp_avg"] = torch.ones(3)
    optimizer.state[b]["step"] = torch.tensor(9.0, dtype=torch.float64)


def take_an_eager_step(optimizer: RAdam) -> None:
    draw(optimizer, 99)
    optimizer.step()


def train_only_the_first(optimizer: RAdam) -> None:
    params_of(optimizer)[1].requires_grad_(False)


EVENTS = [
    add_a_group,
    load_torchs,
    load_an_earlier_state,
    replace_state_tensors,
    take_an_eager_step,
    train_only_the_first,
]


@pytest.mark.parametrize("event", EVENTS)
def test_what_happens_between_compiled_steps_is_followed(event: Callable[[RAdam], None]) -> None:
    optimizer, expected = two(), two()
    step = compiled(optimizer)
    assert_same_run(optimizer, step, expected, range(3))
    for turn in range(2):
        for it in (optimizer, expected):
            event(it)
        assert_same(optimizer, expected, event.__name__)
        without = [1] if event is train_only_the_first else []
        assert_same_run(optimizer, step, expected, range(3 * turn + 3, 3 * turn + 6), without)
        if event is add_a_group:
            break


def test_parameters_without_a_gradient_are_left_alone_and_come_back() -> None:
    optimizer, expected = (over(normal((3,), (2, 2), ())) for _ in range(2))
    step = compiled(optimizer)
    for t, without in enumerate([(0, 1, 2), (1, 2), (1, 2), (2,), (2,), (), (), (0, 1, 2), (1, 2), (2,), ()]):
        assert_same_run(optimizer, step, expected, [t], without)
    assert [optimizer.state[p]["step"].item() for p in params_of(optimizer)] == [9, 6, 3]
    assert graphs() <= 7


@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad_may_be_in_the_graph(to_none: bool) -> None:
    optimizer, expected = in_groups(), in_groups()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=to_none)

    for t in range(STEPS):
        assert_same_run(optimizer, step, expected, [t])
        for param in params_of(optimizer):
            assert param.grad is None if to_none else not param.grad.any()


def test_step_hooks_run_in_the_graph() -> None:
    def double_the_gradients(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for param in params_of(optimizer):
            param.grad.mul_(2)

    def clip_the_parameters(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        with torch.no_grad():
            for param in params_of(optimizer):
                param.clamp_(-0.5, 0.5)

    optimizer, expected = two(), two()
    step = compiled(optimizer)
    for turn in range(2):
        hooks = []
        for it in (optimizer, expected):
            hooks += [
                it.register_step_pre_hook(double_the_gradients),
                it.register_step_post_hook(clip_the_parameters),
            ]
        assert_same_run(optimizer, step, expected, range(6 * turn, 6 * turn + 3))
        assert all(param.abs().max() <= 0.5 for param in params_of(optimizer))
        for hook in hooks:
            hook.remove()
        assert_same_run(optimizer, step, expected, range(6 * turn + 3, 6 * turn + 6))
    assert any(param.abs().max() > 0.5 for param in params_of(optimizer))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_counts_stay_exact_beyond_2_to_the_24(kind: torch.dtype) -> None:
    optimizer, expected = two(), two()
    step = compiled(optimizer)
    assert_same_run(optimizer, step, expected, [0])
    for it in (optimizer, expected):
        for state in it.state.values():
            state["step"] = torch.tensor(2**24 - 2, dtype=kind)
    assert_same_run(optimizer, step, expected, range(1, 6))
    assert [state["step"].item() for state in optimizer.state.values()] == [2**24 + 3] * 2


# ---- compiled training steps

Train = Callable[[nn.Module, RAdam], Callable[[], Tensor]]
X = torch.randn((16, 3), generator=torch.Generator().manual_seed(1))
Y = X.sum(dim=1, keepdim=True)


def small_model() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    for place, param in enumerate(model.parameters()):
        nn.init.normal_(param, generator=torch.Generator().manual_seed(place))
    return model


def by_autograd_grad(model: nn.Module, optimizer: RAdam) -> Callable[[], Tensor]:
    params = list(model.parameters())

    def train() -> Tensor:
        loss = F.mse_loss(model(X), Y)
        for param, grad in zip(params, torch.autograd.grad(loss, params)):
            param.grad = grad
        optimizer.step()
        return loss.detach()

    return train


def by_functions(model: nn.Module, optimizer: RAdam) -> Callable[[], Tensor]:
    params = dict(model.named_parameters())

    def loss_of(values: dict[str, Tensor]) -> Tensor:
        return F.mse_loss(torch.func.functional_call(model, values, (X,)), Y)

    def train() -> Tensor:
        values = {name: param.detach() for name, param in params.items()}
        grads, loss = torch.func.grad_and_value(loss_of)(values)
        for name, param in params.items():
            param.grad = grads[name]
        optimizer.step()
        return loss

    return train


def by_backward(model: nn.Module, optimizer: RAdam) -> Callable[[], Tensor]:
    def train() -> Tensor:
        loss = F.mse_loss(model(X), Y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return train


def by_backward_onto_zeros(model: nn.Module, optimizer: RAdam) -> Callable[[], Tensor]:
    for param in model.parameters():
        param.grad = torch.zeros_like(param)

    def train() -> Tensor:
        optimizer.zero_grad(set_to_none=False)
        loss = F.mse_loss(model(X), Y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return train


def by_closure(model: nn.Module, optimizer: RAdam) -> Callable[[], Tensor]:
    for param in model.parameters():
        param.grad = torch.zeros_like(param)

    def closure() -> Tensor:
        optimizer.zero_grad(set_to_none=False)
        loss = F.mse_loss(model(X), Y)
        loss.backward()
        return loss.detach()

    def train() -> Tensor:
        loss = optimizer.step(closure)
        assert isinstance(loss, Tensor)
        return loss

    return train


TRAININGS: list[Train] = [by_autograd_grad, by_functions, by_backward, by_backward_onto_zeros, by_closure]


def trainee(**settings: Any) -> tuple[nn.Module, RAdam]:
    model = small_model()
    return model, over(model.parameters(), **settings)


@pytest.fixture
def traced_backward() -> Iterator[None]:
    """Let the compiler trace backward() and torch.autograd.grad, which it does only when told."""
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        yield


@pytest.mark.usefixtures("traced_backward")
@pytest.mark.parametrize("train", TRAININGS)
def test_a_whole_training_step_is_one_graph(train: Train) -> None:
    (model, optimizer), (other, expected) = trainee(), trainee()
    step = torch.compile(train(model, optimizer), fullgraph=True, backend="aot_eager")
    eager_step = train(other, expected)
    losses = []
    for t in range(STEPS):
        losses.append(step())
        assert_same_bits(losses[-1], eager_step(), f"loss of step {t}")
        assert_same(optimizer, expected, f"step {t}:")
    assert losses[-1] < losses[0]
    assert graphs() == 2


@needs_compiler
@pytest.mark.usefixtures("traced_backward")
def test_a_training_step_by_inductor_has_the_bits_of_an_eager_step_on_its_gradients() -> None:
    (model, optimizer), (_, expected) = trainee(weight_decay=0.1), trainee(weight_decay=0.1)
    step = torch.compile(by_autograd_grad(model, optimizer), fullgraph=True, backend="inductor")
    for t in range(STEPS):
        step()
        for param, twin in zip(params_of(optimizer), params_of(expected)):
            twin.grad = param.grad
        expected.step()
        assert_same(optimizer, expected, f"step {t}:")
    assert graphs() == 2


def test_a_training_loop_with_graph_breaks_is_as_without_the_compiler() -> None:
    (model, optimizer), (other, expected) = trainee(), trainee()
    step, eager_step = torch.compile(by_backward(model, optimizer), backend="eager"), by_backward(other, expected)
    for t in range(STEPS):
        assert_same_bits(step(), eager_step(), f"loss of step {t}")
        assert_same(optimizer, expected, f"step {t}:")


def test_an_optimizer_may_be_made_in_a_compiled_function() -> None:
    def train(param: nn.Parameter) -> RAdam:
        optimizer = RAdam([param], lr=0.05, nonfinite="skip")
        param.grad = param.detach() * 2
        optimizer.step()
        return optimizer

    (param,), (twin,) = normal((3,)), normal((3,))
    optimizer = torch.compile(train, backend="eager")(param)
    assert optimizer.nonfinite == "skip"
    assert_same(optimizer, train(twin))


def test_a_backward_through_a_value_from_before_a_compiled_step_raises() -> None:
    optimizer = two()
    step = compiled(optimizer)
    for t in range(3):
        param = params_of(optimizer)[0]
        loss = (param * param).sum()
        draw(optimizer, t)
        step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def derivatives(compiler: Callable[[Step], Step]) -> list[Tensor]:
    """Return those of the parameter after 7 differentiable steps, by its start and by its gradient."""
    start, grad = torch.ones(3, requires_grad=True), torch.full((3,), 2.0, requires_grad=True)
    param = start.clone()
    param.grad = grad
    step = compiler(over([param], differentiable=True, weight_decay=0.5).step)
    for _ in range(7):
        step()
    return list(torch.autograd.grad(param.sum(), (start, grad)))


def test_differentiable_steps_keep_their_derivatives_under_the_compiler() -> None:
    found = derivatives(lambda step: torch.compile(step, backend="eager"))
    assert all(map(torch.equal, found, derivatives(lambda step: step)))


def test_differentiable_steps_are_not_compiled_into_a_graph_that_loses_their_derivatives() -> None:
    try:
        found = derivatives(lambda step: torch.compile(step, fullgraph=True, backend="eager"))
    except (torch._dynamo.exc.Unsupported, ValueError):  # as torch.optim.RAdam
        return
    assert all(map(torch.equal, found, derivatives(lambda step: step)))


# ---- wholly or not at all


def outcome(step: Step) -> str:
    try:
        return str(step())
    except (FloatingPointError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def by_itself(**settings: Any) -> RAdam:
    """Return an optimizer with a group for each parameter."""
    return over([{"params": [param]} for param in normal((3,), (2, 2), ())], **settings)


WHEN_BAD = [((), "eager"), ((0,), "eager"), ((3,), "eager"), ((0, 1, 3, 6), "eager"), ((0, 3), "aot_eager")]


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
@pytest.mark.parametrize(("bad", "backend"), WHEN_BAD)
def test_a_bad_gradient_leaves_the_whole_compiled_step_out(nonfinite: str, bad: Sequence[int], backend: str) -> None:
    optimizer, expected = by_itself(nonfinite=nonfinite), by_itself(nonfinite=nonfinite)
    step = compiled(optimizer, backend)
    for t in range(STEPS):
        for it in (optimizer, expected):
            draw(it, t)
            if t in bad:
                params_of(it)[2].grad.fill_(float("nan"))
        with torch.set_grad_enabled(True):  # the backend "eager" leaves it off after an error in a no_grad block
            got = outcome(step)
        assert got == outcome(expected.step)
        assert ("FloatingPointError" in got) == (nonfinite == "raise" and t in bad)
        assert_same(optimizer, expected, f"step {t}:")
    assert optimizer.skipped_steps == (len(bad) if nonfinite == "skip" else 0)


@pytest.mark.parametrize(("bad", "backend"), WHEN_BAD)
def test_fused_amp_unscales_and_skips_in_compiled_steps(bad: Sequence[int], backend: str) -> None:
    optimizer, expected = by_itself(fused_amp=True), by_itself(fused_amp=True)
    step = compiled(optimizer, backend)
    for t in range(STEPS):
        for it in (optimizer, expected):
            it.grad_scale, it.found_inf = torch.tensor(4.0 + t), torch.tensor(float(t in bad))
        assert_same_run(optimizer, step, expected, [t])
    assert optimizer.skipped_steps == len(bad)


@pytest.mark.parametrize("fused", [False, True])
def test_gradient_scaling_works_with_a_compiled_step(fused: bool) -> None:
    optimizer, expected = two(fused_amp=fused), two(fused_amp=fused)
    optimizer.step = torch.compile(optimizer.step, fullgraph=True, backend="eager")
    scalers = [torch.amp.GradScaler("cpu", init_scale=4.0) for _ in range(2)]
    for t in range(6):
        for it, scaler in zip((optimizer, expected), scalers):
            it.zero_grad()
            loss = sum((param * param).sum() for param in params_of(it)) * (float("inf") if t in (0, 3) else 1.0)
            scaler.scale(loss).backward()
            scaler.step(it)
            scaler.update()
        assert_same(optimizer, expected, f"step {t}:")
    assert [scaler.get_scale() for scaler in scalers] == [1.0, 1.0]
    assert [state["step"].item() for state in optimizer.state.values()] == [4, 4]


def bad_rate(optimizer: RAdam) -> Step:
    optimizer.param_groups[1]["lr"] = -1.0
    return lambda: optimizer.param_groups[1].update(lr=0.05)


def bad_tensor_rate(optimizer: RAdam) -> Step:
    optimizer.param_groups[1]["lr"] = torch.tensor(float("nan"))
    return lambda: optimizer.param_groups[1].update(lr=0.05)


def bad_count(optimizer: RAdam) -> Step:
    count = optimizer.state[params_of(optimizer)[1]]["step"]
    old = count.item()
    count.fill_(-3)
    return lambda: count.fill_(old)


def bad_moment(optimizer: RAdam) -> Step:
    state = optimizer.state[params_of(optimizer)[1]]
    old = state["exp_avg"]
    state["exp_avg"] = torch.zeros(3, 3)
    return lambda: state.update(exp_avg=old)


@pytest.mark.parametrize(
    ("spoil", "backend"),
    [(bad_rate, "eager"), (bad_tensor_rate, "eager"), (bad_count, "aot_eager"), (bad_moment, "eager")],
)
def test_an_error_in_one_group_leaves_all_groups_as_they_were(spoil: Callable[[RAdam], Step], backend: str) -> None:
    optimizer, expected = by_itself(), by_itself()
    step = compiled(optimizer, backend)
    assert_same_run(optimizer, step, expected, range(2))
    before = copy.deepcopy([param.detach() for param in params_of(optimizer)])
    mend = [spoil(it) for it in (optimizer, expected)]
    for it in (optimizer, expected):
        draw(it, 2)
    with torch.set_grad_enabled(True):
        got = outcome(step)
    assert got.startswith("ValueError")
    assert got == outcome(expected.step)
    assert all(map(torch.equal, params_of(optimizer), before))
    for undo in mend:
        undo()
    assert_same(optimizer, expected, "after the error:")
    assert_same_run(optimizer, step, expected, range(3, 6))


def test_an_error_in_the_first_compiled_step_leaves_no_state() -> None:
    optimizer, expected = two(), two()
    step = compiled(optimizer)
    optimizer.param_groups[0]["lr"] = -1.0
    draw(optimizer, 0)
    with pytest.raises(ValueError, match="lr"):
        step()
    assert not optimizer.state
    optimizer.param_groups[0]["lr"] = 0.05
    assert_same_run(optimizer, step, expected)


def test_sparse_gradients_are_refused_by_name_and_dense_ones_work_afterwards() -> None:
    optimizer, expected = two(), two()
    step = torch.compile(optimizer.step, backend="eager")
    for _ in range(2):
        draw(optimizer, 0)
        params_of(optimizer)[0].grad = torch.ones(3).to_sparse()
        with pytest.raises(RuntimeError, match="RAdam does not support sparse gradients"):
            step()
        assert not optimizer.state
    assert_same_run(optimizer, step, expected)


def forget_all_states(optimizer: RAdam) -> None:
    optimizer.state.clear()


def replace_a_state(optimizer: RAdam) -> None:
    param = params_of(optimizer)[0]
    optimizer.state[param] = copy.deepcopy(optimizer.state[param])


def replace_a_list_of_params(optimizer: RAdam) -> None:
    optimizer.param_groups[0]["params"] = [*params_of(optimizer), *normal((2,), seed=3)]


def lengthen_a_list_of_params(optimizer: RAdam) -> None:
    optimizer.param_groups[0]["params"] += normal((2,), seed=3)


def shorten_a_list_of_params(optimizer: RAdam) -> None:
    del optimizer.param_groups[0]["params"][1]


HANDS = [
    forget_all_states,
    replace_a_state,
    replace_a_list_of_params,
    lengthen_a_list_of_params,
    shorten_a_list_of_params,
]


@pytest.mark.parametrize("edit", HANDS)
def test_a_compiled_step_never_steps_other_tensors_than_an_eager_one(edit: Callable[[RAdam], None]) -> None:
    """It may refuse what was replaced by hand, saying so; then nothing has changed, and the next step goes on."""
    optimizer, expected = two(), two()
    step = compiled(optimizer)
    assert_same_run(optimizer, step, expected, range(2))
    for it in (optimizer, expected):
        edit(it)
        draw(it, 2)
    before = copy.deepcopy([param.detach() for param in params_of(optimizer)])
    refusal = outcome(step)
    if refusal != "None":
        assert "by hand" in refusal
        assert all(map(torch.equal, params_of(optimizer), before))
        step()
    expected.step()
    assert_same(optimizer, expected, edit.__name__)
    assert_same_run(optimizer, step, expected, range(3, 6))


# ---- tensors that are spread over processes


@pytest.fixture
def mesh() -> Iterator[Any]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_distributed_parameters_step_compiled_as_eagerly(mesh: Any, backend: str) -> None:
    placements = [[Shard(0)], [Shard(0)], [Replicate()]]

    def placed(tensors: Iterable[Tensor], where: Iterable[Any]) -> list[DTensor]:
        return [distribute_tensor(tensor.detach(), mesh, place) for tensor, place in zip(tensors, where)]

    def sharded() -> RAdam:
        return over(map(nn.Parameter, placed(normal((4, 3), (5,), (2,)), placements)), weight_decay=0.1)

    def local(optimizer: RAdam) -> list[tuple[Tensor, ...]]:
        state = optimizer.state
        return [
            (p.to_local(), state[p]["exp_avg"].to_local(), state[p]["exp_avg_sq"].to_local(), state[p]["step"])
            for p in params_of(optimizer)
        ]

    optimizer, expected = sharded(), sharded()
    step = compiled(optimizer, backend)
    for t in range(STEPS):
        for it in (optimizer, expected):
            grads = normal((4, 3), (5,), (2,), seed=100 + t)
            for param, grad in zip(params_of(it), placed(grads, [[Shard(0)], [Replicate()], [Replicate()]])):
                param.grad = grad
        step()
        expected.step()
        for got, want in zip(local(optimizer), local(expected)):
            for ours, theirs in zip(got, want):
                assert_same_bits(ours, theirs, f"step {t}")
    assert graphs() == 2
