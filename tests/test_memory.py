"""How much memory an optimizer takes can be asked, of every kind and of both front ends."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

import radam
import radam.torch
from precisions import BFLOAT16

N = 128 * 1000
BYTES: dict[str, tuple[Any, dict[str, Any], dict[str, int]]] = {
    "float32": (np.float32, {}, {"moments": 8 * N}),
    "float64": (np.float64, {"state_dtype": "8bit"}, {"moments": 16 * N}),
    "amsgrad": (np.float32, {"amsgrad": True}, {"moments": 12 * N}),
    "bfloat16 moments": (np.float32, {"state_dtype": "bfloat16"}, {"moments": 4 * N}),
    "8-bit": (np.float32, {"state_dtype": "8bit"}, {"moments": 2 * N, "scales": 8 * N // 128}),
    "8-bit amsgrad": (
        np.float32,
        {"state_dtype": "8bit", "amsgrad": True},
        {"moments": 3 * N, "scales": 12 * N // 128},
    ),
    "split": (BFLOAT16, {"master_weights": True}, {"moments": 8 * N, "master_weights": 2 * N}),
    "split, 8-bit": (
        BFLOAT16,
        {"master_weights": True, "state_dtype": "8bit"},
        {"moments": 2 * N, "scales": 8 * N // 128, "master_weights": 2 * N},
    ),
    "master": (np.float16, {"master_weights": True}, {"moments": 8 * N, "master_weights": 4 * N}),
    "stochastic": (BFLOAT16, {"stochastic_rounding": True}, {"moments": 8 * N}),
}


@pytest.mark.parametrize(("dtype", "options", "expected"), BYTES.values(), ids=BYTES)
def test_every_byte_has_its_kind(dtype: Any, options: dict[str, Any], expected: dict[str, int]) -> None:
    p = np.zeros((1000, 128), dtype)
    optimizer = radam.RAdam([p], **options)
    before = radam.memory(optimizer)
    assert (before.elements, before.parameters, before.state) == (N, p.nbytes, 0)
    optimizer.step(grads=[p.copy()])
    found = radam.memory(optimizer)
    kinds = {"moments": 0, "scales": 0, "master_weights": 0, **expected}
    assert {kind: getattr(found, kind) for kind in kinds} == kinds
    assert (found.step_counts, found.other, found.gradients) == (8, 0, 0)
    assert found.state == sum(expected.values()) + 8
    assert found.total == found.state + p.nbytes


def test_eight_bit_moments_take_at_most_two_and_a_tenth_bytes_a_parameter() -> None:
    for shape in ((4096,), (1 << 20,), (4097,), (63, 129)):
        optimizer = radam.RAdam([np.zeros(shape, np.float32)], state_dtype="8bit")
        optimizer.step(grads=[np.ones(shape, np.float32)])
        found = radam.memory(optimizer)
        assert (found.moments + found.scales) / found.elements <= 2.1


def test_small_tensors_keep_float32_moments_unless_asked() -> None:
    for size, options, coded in ((4095, {}, False), (4096, {}, True), (1, {"min_8bit_size": 0}, True)):
        optimizer = radam.RAdam([np.zeros(size, np.float32)], state_dtype="8bit", **options)
        optimizer.step(grads=[np.ones(size, np.float32)])
        assert (radam.memory(optimizer).moments == 2 * size) == coded
        assert ("exp_avg_code" in optimizer.state[0]) == coded


def test_a_torch_optimizer_counts_alike_with_its_gradients() -> None:
    model = torch.nn.Linear(300, 20)
    for make in (radam.torch.RAdam, torch.optim.RAdam):
        optimizer = make(model.parameters())
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        found = radam.memory(optimizer)
        n = 300 * 20 + 20
        assert (found.elements, found.parameters, found.gradients, found.moments) == (n, 4 * n, 4 * n, 8 * n)
        assert (found.step_counts, found.other) == (2 * 4, 0)


def test_a_torch_optimizer_of_few_bits_counts_alike() -> None:
    p = torch.zeros(1000, 128, dtype=torch.bfloat16, requires_grad=True)
    p.grad = torch.zeros_like(p)
    optimizer = radam.torch.RAdam([p], state_dtype="8bit", master_weights=True)
    optimizer.step()
    found = radam.memory(optimizer)
    assert (found.moments, found.scales, found.master_weights) == (2 * N, 8 * N // 128, 2 * N)
    assert (found.parameters, found.gradients, found.other) == (2 * N, 2 * N, 0)


def test_objects_with_grad_and_entries_of_others_are_counted() -> None:
    class Parameter:
        def __init__(self) -> None:
            self.data, self.grad = np.zeros(10, np.float32), np.zeros(10, np.float32)

    class Other:
        def __init__(self, params: list[Any]) -> None:
            self.param_groups = [{"params": params}]
            self.state = {params[0]: {"momentum": np.zeros(10, np.float32), "step": 3, "name": "x"}}

    found = radam.memory(radam.RAdam([Parameter()]))
    assert (found.elements, found.parameters, found.gradients) == (10, 40, 40)
    shared = torch.zeros(10)
    found = radam.memory(Other([shared, shared]))
    assert (found.elements, found.parameters, found.other, found.step_counts) == (10, 40, 40, 8)


def test_it_prints_as_a_table() -> None:
    optimizer = radam.RAdam([np.zeros((1000, 128), BFLOAT16)], state_dtype="8bit", master_weights=True)
    optimizer.step(grads=[np.zeros((1000, 128), BFLOAT16)])
    rows = {line[:14].strip(): line[14:].split() for line in str(radam.memory(optimizer)).splitlines()[2:]}
    assert rows["parameters"] == ["256,000", "2"]
    assert rows["moments"] == ["256,000", "2"]
    assert rows["scales"] == ["8,000", "0.0625"]
    assert rows["master weights"] == ["256,000", "2"]
    assert rows["total"] == ["776,008", "6.063"]
    assert "other" not in rows
    assert str(radam.memory(radam.RAdam([np.zeros(0, np.float32)]))).startswith("0 elements")


def test_asking_imports_no_framework() -> None:
    code = "import sys, numpy, radam; radam.memory(radam.RAdam([numpy.ones(3)])); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_no_optimizer_is_refused() -> None:
    with pytest.raises(TypeError, match="optimizer must have param_groups"):
        radam.memory(object())
