"""Lucid's RAdam, with no Lucid: a small network reads handwritten digits. Needs scikit-learn.

With Lucid itself only two things change: the parameters are model.parameters(), and loss.backward() writes the
gradients. optimizer.zero_grad(), optimizer.step() and the schedulers stay as they are; the model stays on the CPU.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from radam.lucid import RAdam  # was: from lucid.optim import RAdam


class Parameter:
    """What an optimizer sees of Lucid's: an array, and its gradient after the backward pass."""

    def __init__(self, data):
        self.data, self.grad = np.asarray(data, np.float32), None


images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
x, x_test, y, y_test = train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=0)
one_hot = np.eye(10, dtype=np.float32)

rng = np.random.default_rng(0)
w1, b1 = Parameter(rng.normal(0, 64**-0.5, (64, 48))), Parameter(np.zeros(48))
w2, b2 = Parameter(rng.normal(0, 48**-0.5, (48, 10))), Parameter(np.zeros(10))
optimizer = RAdam([{"params": [w1, w2], "weight_decay": 1e-4}, {"params": [b1, b2]}], lr=0.01)


def forward(x):
    hidden = np.maximum(x @ w1.data + b1.data, 0)
    return hidden, hidden @ w2.data + b2.data


def backward(x, y):
    """Leave the gradients of the mean cross-entropy in the parameters."""
    hidden, logits = forward(x)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    error = (p / p.sum(axis=1, keepdims=True) - one_hot[y]) / len(x)
    w2.grad, b2.grad = hidden.T @ error, error.sum(axis=0)
    error = (error @ w2.data.T) * (hidden > 0)
    w1.grad, b1.grad = x.T @ error, error.sum(axis=0)


for epoch in range(1, 31):
    order = rng.permutation(len(x))
    for rows in np.array_split(order, 20):
        optimizer.zero_grad()
        backward(x[rows], y[rows])
        optimizer.step()
    for group in optimizer.param_groups:
        group["lr"] *= 0.95
    if epoch % 10 == 0:
        right = (forward(x_test)[1].argmax(axis=1) == y_test).mean()
        print(f"epoch {epoch}: {100 * right:.1f} % of unseen digits right")

assert right > 0.95
