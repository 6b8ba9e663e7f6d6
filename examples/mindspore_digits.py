"""MindSpore: a small network learns handwritten digits, its loss compiled, the step in place. Needs scikit-learn."""

import mindspore
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.experimental.optim.lr_scheduler import CosineAnnealingLR
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from radam.mindspore import RAdam

mindspore.set_seed(0)
images, labels = load_digits(return_X_y=True)
images, labels = (images / 16).astype(np.float32), labels.astype(np.int32)
x, x_test, y, y_test = train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=0)

net = nn.SequentialCell(nn.Dense(64, 64), nn.ReLU(), nn.Dense(64, 10))
optimizer = RAdam(net.trainable_params(), lr=0.05)
scheduler = CosineAnnealingLR(optimizer, T_max=20)


@mindspore.jit
def loss_of(images: Tensor, labels: Tensor) -> Tensor:
    return ops.cross_entropy(net(images), labels)


loss_and_grads = mindspore.value_and_grad(loss_of, None, optimizer.parameters)
rng = np.random.default_rng(0)

for epoch in range(1, 21):
    for batch in np.array_split(rng.permutation(len(x)), 14):
        loss, grads = loss_and_grads(Tensor(x[batch]), Tensor(y[batch]))
        optimizer(grads)  # outside what is compiled
    scheduler.step()
    if epoch % 5 == 0:
        right = float((net(Tensor(x_test)).asnumpy().argmax(axis=1) == y_test).mean())
        print(f"epoch {epoch}: loss {float(loss):.3f}, {100 * right:.1f} % of unseen digits right")

assert right > 0.95, "it should have learnt more"
