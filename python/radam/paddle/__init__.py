"""paddle.optimizer.RAdam at the speed of memory: change one import.

>>> import paddle
>>> from radam.paddle import RAdam
>>> model = paddle.nn.Linear(2, 1)
>>> optimizer = RAdam(1e-3, parameters=model.parameters())
>>> model(paddle.ones([1, 2])).sum().backward()
>>> optimizer.step()
"""

try:
    import paddle
except ModuleNotFoundError as error:
    if error.name != "paddle":  # something that Paddle itself needs
        raise
    raise ModuleNotFoundError("radam.paddle needs PaddlePaddle: pip install paddlepaddle", name="paddle") from error

from .optimizer import RAdam

del paddle

__all__ = ["RAdam"]
