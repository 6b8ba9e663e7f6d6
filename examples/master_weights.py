"""bfloat16 weights that move as float32 ones: their lower 16 bits live in the state. NumPy; needs ml_dtypes."""

import ml_dtypes
import numpy as np

import radam

rng = np.random.default_rng(0)
start = rng.standard_normal((64, 64)).astype(ml_dtypes.bfloat16)

weights = start.copy()
optimizer = radam.RAdam([weights], lr=1e-3, master_weights=True)
exact = start.astype(np.float32)
reference = radam.RAdam([exact], lr=1e-3)
stalled = start.copy()
without = radam.RAdam([stalled], lr=1e-3)

for _ in range(200):
    grad = rng.standard_normal((64, 64)).astype(ml_dtypes.bfloat16) + 0.3
    optimizer.step(grads=[grad])
    reference.step(grads=[grad])
    without.step(grads=[grad])

# The float32 weight behind a bfloat16 one: its 16 bits are the upper half, the remainder says the lower.
remainder = optimizer.state[0]["remainder"]
joined = (weights.view(np.int16).astype(np.int32) << 16) + remainder
print("the weight and its remainder are the float32 weight, bit for bit:", np.array_equal(joined, exact.view(np.int32)))
print("the remainder takes", remainder.nbytes / remainder.size, "bytes a weight")


def distance(from_exact: np.ndarray) -> float:
    return float(np.abs(from_exact.astype(np.float32) - exact).mean())


print(f"mean way of a float32 weight: {distance(start):.4f}")
print(f"how far from it is bfloat16 with master weights: {distance(weights):.4f}, which is how coarse bfloat16 is")
print(f"how far from it is bfloat16 alone: {distance(stalled):.4f}")
assert np.array_equal(joined, exact.view(np.int32))
