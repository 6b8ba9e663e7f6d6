"""Write the saved states that every later radam must load: python tests/make_frozen_states.py [NAME ...]

tests/data/NAME.state.safetensors is what save wrote; NAME.step.safetensors holds the parameters then, the gradients of
the next step, and the parameters and states after it. What is there is kept: remove a file by hand to have it made
anew, and only as long as no release has it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

import radam

DATA = Path(__file__).parent / "data"
Array = np.ndarray[Any, Any]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

# The dtype of the parameters, and the options of the optimizer.
STATES: dict[str, tuple[Any, dict[str, Any]]] = {
    "version_1": (np.float32, {}),  # written by radam before there was a version 2, which no longer can be
    "float32": (np.float32, {}),
    "float64": (np.float64, {}),
    "amsgrad": (np.float32, {"amsgrad": True}),
    "bfloat16_moments": (np.float32, {"state_dtype": "bfloat16"}),
    "eight_bit": (np.float32, {"state_dtype": "8bit", "min_8bit_size": 100}),
    "eight_bit_amsgrad": (np.float32, {"state_dtype": "8bit", "min_8bit_size": 0, "amsgrad": True}),
    "split": (BFLOAT16, {"master_weights": True}),
    "split_eight_bit": (BFLOAT16, {"master_weights": True, "state_dtype": "8bit", "min_8bit_size": 0}),
    "master": (np.float16, {"master_weights": True}),
    "stochastic": (BFLOAT16, {"stochastic_rounding": True, "seed": 2**64 - 2}),
    "stochastic_float16": (np.float16, {"stochastic_rounding": True, "seed": 3}),
}
SHAPES = [(150,), (13, 11), (7,)]


def params_of(arrays: Mapping[str, Array], dtype: Any) -> list[Array]:
    """Return the parameters as they lie in memory: the second one transposed."""
    params = [arrays[f"param.{i}"].view(dtype).reshape(shape) for i, shape in enumerate(SHAPES)]
    return [params[0].copy(), np.asfortranarray(params[1]), params[2].copy()]


def optimizer_of(params: list[Array], options: Mapping[str, Any]) -> radam.RAdam:
    """Return the optimizer that made a state, or is to load it."""
    groups = [{"params": {"first": params[0], "second": params[1]}}, {"params": [("third", params[2])], "lr": 0.05}]
    return radam.RAdam(groups, lr=0.01, weight_decay=0.01, **options)


def as_words(array: Array) -> Array:
    """Return an array in C order; bfloat16 as its bits."""
    copy = np.array(array, order="C")
    return copy.view(np.uint16) if copy.dtype == BFLOAT16 else copy


def after_step(optimizer: radam.RAdam, grads: list[Array]) -> dict[str, Array]:
    """Take a step; return the parameters and the states."""
    optimizer.step(grads=grads)
    params = [param for group in optimizer.param_groups for param in group["params"]]
    found = {f"after.param.{i}": as_words(param) for i, param in enumerate(params)}
    for i, entry in enumerate(optimizer.state):
        found.update({f"after.{i}.{key}": as_words(np.asarray(value)) for key, value in entry.items()})
    return found


def load(name: str) -> tuple[dict[str, Array], dict[str, Array]]:
    """Load a frozen state and take the step: what came out, and what must."""
    dtype, options = STATES[name]
    frozen = load_file(DATA / f"{name}.step.safetensors")
    optimizer = optimizer_of(params_of(frozen, dtype), options)
    optimizer.load(DATA / f"{name}.state.safetensors")
    grads = [frozen[f"grad.{i}"].view(dtype).reshape(shape) for i, shape in enumerate(SHAPES)]
    expected = {key: value for key, value in frozen.items() if key.startswith("after.")}
    return after_step(optimizer, grads), expected


def make(name: str) -> None:
    """Train a little, save, take one step more, and write both."""
    dtype, options = STATES[name]
    rng = np.random.default_rng(list(STATES).index(name))

    def numbers() -> list[Array]:
        return [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]

    start = {f"param.{i}": as_words(param) for i, param in enumerate(numbers())}
    params = params_of(start, dtype)
    optimizer = optimizer_of(params, options)
    for t in range(8):  # of which the last ones are rectified
        grads: list[Any] = numbers()
        optimizer.step(grads=[*grads[:2], None if t < 3 else grads[2]])
    DATA.mkdir(exist_ok=True)
    optimizer.save(DATA / f"{name}.state.safetensors")
    out = {f"param.{i}": as_words(param) for i, param in enumerate(params)}
    grads = numbers()
    out.update({f"grad.{i}": as_words(grad) for i, grad in enumerate(grads)})
    save_file({**out, **after_step(optimizer, grads)}, DATA / f"{name}.step.safetensors")


def main(names: list[str]) -> None:
    """Make those that are missing."""
    for name in names or STATES:
        if not (DATA / f"{name}.state.safetensors").exists():
            make(name)
            print(f"made {name}")


if __name__ == "__main__":
    main(sys.argv[1:])
