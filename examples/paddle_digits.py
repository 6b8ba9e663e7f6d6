"""Paddle: a small network on handwritten digits, with a schedule and clipping. Needs paddlepaddle and scikit-learn."""

import paddle
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from radam.paddle import RAdam  # was: from paddle.optimizer import RAdam

paddle.seed(0)
images, labels = load_digits(return_X_y=True)
split = train_test_split(images / 16, labels, test_size=0.25, stratify=labels, random_state=0)
x, x_test, y, y_test = (paddle.to_tensor(part) for part in split)
x, x_test = x.astype("float32"), x_test.astype("float32")

model = paddle.nn.Sequential(paddle.nn.Linear(64, 64), paddle.nn.ReLU(), paddle.nn.Linear(64, 10))
schedule = paddle.optimizer.lr.CosineAnnealingDecay(0.05, T_max=300)
optimizer = RAdam(
    schedule,
    parameters=model.parameters(),
    weight_decay=1e-4,
    grad_clip=paddle.nn.ClipGradByGlobalNorm(1.0),
)

for step in range(1, 301):
    batch = paddle.randint(0, len(x), [256])
    loss = paddle.nn.functional.cross_entropy(model(x[batch]), y[batch])
    loss.backward()
    optimizer.step()
    optimizer.clear_grad()
    schedule.step()
    if step % 100 == 0:
        right = (model(x_test).argmax(axis=1) == y_test).astype("float32").mean().item()
        print(f"step {step}: loss {loss.item():.3f}, {100 * right:.1f} % of unseen digits right")

assert right > 0.95
