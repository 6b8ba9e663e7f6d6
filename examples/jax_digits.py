"""JAX: a small network on handwritten digits, an epoch in one compiled program. Needs jax, optax, scikit-learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import radam.jax

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
x, x_test, y, y_test = map(jnp.array, train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=0))

SIZES, BATCH, EPOCHS = (64, 128, 64, 10), 64, 30
learning_rate = optax.cosine_decay_schedule(0.01, EPOCHS * (len(x) // BATCH))


def logits_of(params, images):
    for weights, bias in params[:-1]:
        images = jax.nn.relu(images @ weights + bias)
    weights, bias = params[-1]
    return images @ weights + bias


def loss_of(params, images, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits_of(params, images), labels).mean()


@functools.partial(jax.jit, donate_argnums=(0, 1))  # the old parameters and moments become the new ones
def train_epoch(params, state, key):
    def step(carry, batch):
        params, state = carry
        loss, grads = jax.value_and_grad(loss_of)(params, x[batch], y[batch])
        return radam.jax.fused_step(params, grads, state, learning_rate), loss

    batches = jax.random.permutation(key, len(x))[: len(x) // BATCH * BATCH].reshape(-1, BATCH)
    (params, state), losses = jax.lax.scan(step, (params, state), batches)
    return params, state, losses.mean()


keys = jax.random.split(jax.random.key(0), EPOCHS + len(SIZES))
params = [(jax.random.normal(key, (n, m)) * (2 / n) ** 0.5, jnp.zeros(m)) for key, n, m in zip(keys, SIZES, SIZES[1:])]
state = radam.jax.radam(learning_rate).init(params)

for epoch in range(1, EPOCHS + 1):
    params, state, loss = train_epoch(params, state, keys[-epoch])
    if epoch % 10 == 0:
        right = float((logits_of(params, x_test).argmax(axis=1) == y_test).mean())
        print(f"epoch {epoch}: loss {loss:.4f}, {100 * right:.1f} % of unseen digits right")

assert right > 0.95
