"""A dict of named arrays, saved in the middle of a run: the run that goes on from the files has the same bits."""

import tempfile
from pathlib import Path

import numpy as np

import radam


def train(params: dict[str, np.ndarray], optimizer: radam.RAdam, steps: int) -> None:
    """Fit y = 3 x + 1 with a line."""
    x = np.linspace(-1, 1, 64, dtype=np.float32)
    for _ in range(steps):
        error = params["slope"] * x + params["offset"] - (3 * x + 1)
        slope, offset = 2 * (error * x).mean(), 2 * error.mean()
        optimizer.step(grads={"slope": np.array([slope]), "offset": np.array([offset])})


params = {"slope": np.zeros(1, np.float32), "offset": np.zeros(1, np.float32)}
optimizer = radam.RAdam(params, lr=0.1)
train(params, optimizer, 100)

with tempfile.TemporaryDirectory() as folder:
    np.savez(Path(folder) / "params.npz", **params)
    optimizer.save(Path(folder) / "optimizer.safetensors")
    train(params, optimizer, 200)

    resumed_params = dict(np.load(Path(folder) / "params.npz"))
    resumed = radam.RAdam(resumed_params)
    resumed.load(Path(folder) / "optimizer.safetensors")
    train(resumed_params, resumed, 200)

print(f"slope {params['slope'][0]:.4f}, offset {params['offset'][0]:.4f}")
same = all(params[name].tobytes() == resumed_params[name].tobytes() for name in params)
print(f"the resumed run has the same bits: {same}")
assert same
