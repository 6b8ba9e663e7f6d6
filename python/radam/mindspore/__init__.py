"""mindspore.experimental.optim.RAdam at the speed of memory, on the CPU: change one import.

>>> import mindspore
>>> from radam.mindspore import RAdam
>>> net = mindspore.nn.Dense(2, 1)
>>> optimizer = RAdam(net.trainable_params(), lr=1e-3)
>>> loss_and_grads = mindspore.value_and_grad(lambda x: net(x).sum(), None, optimizer.parameters)
>>> loss, grads = loss_and_grads(mindspore.ops.ones((1, 2)))
>>> optimizer(grads)
True
"""

try:
    import mindspore
except ModuleNotFoundError as error:
    if error.name != "mindspore":  # such as what MindSpore itself needs
        raise
    raise ModuleNotFoundError("radam.mindspore needs MindSpore: pip install mindspore", name="mindspore") from error

from .optimizer import RAdam

del mindspore

__all__ = ["RAdam"]
