"""Groups of parameters with settings of their own, a learning rate that is a function of the step, and a convention."""

import dataclasses

import numpy as np

import radam

rng = np.random.default_rng(0)
x = rng.standard_normal((256, 8))
y = x @ np.arange(8.0) + 5

weights, bias = np.zeros(8), np.zeros(1)
optimizer = radam.RAdam(
    [
        {"params": {"weights": weights}, "weight_decay": 1e-3, "decoupled_weight_decay": True},
        {"params": {"bias": bias}, "lr": lambda step: 0.5 / (1 + step / 200)},
    ],
    lr=0.1,
    convention=dataclasses.replace(radam.CONVENTIONS["torch"], name="paper", threshold=4.0),
)

for _step in range(600):
    error = x @ weights + bias - y
    optimizer.step(grads={"weights": x.T @ error / len(x), "bias": error.mean(keepdims=True)})

print("weights", np.round(weights, 2), "bias", np.round(bias, 2))
print("rectified from step", next(t for t in range(1, 10) if radam.rectification(t, 0.999, optimizer.convention)))
