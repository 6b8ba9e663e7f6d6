"""NumPy arrays: softmax regression on handwritten digits. Hand the gradients to step. Needs scikit-learn."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import radam

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
x, x_test, y, y_test = train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=0)

weights = np.zeros((64, 10), np.float32)
bias = np.zeros(10, np.float32)
optimizer = radam.RAdam([weights, bias], lr=0.02)
one_hot = np.eye(10, dtype=np.float32)[y]

for step in range(1, 301):
    logits = x @ weights + bias
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    error = (p - one_hot) / len(x)
    optimizer.step(grads=[x.T @ error, error.sum(axis=0)])  # weights and bias change in place
    if step % 100 == 0:
        right = ((x_test @ weights + bias).argmax(axis=1) == y_test).mean()
        print(f"step {step}: {100 * right:.1f} % of unseen digits right")
