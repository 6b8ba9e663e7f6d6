"""What Lucid documents of its parameters, gradients and schedulers, over NumPy: Lucid runs on Apple silicon only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
CPU, METAL = (1, 0), (8, 0)


class Tensor:
    """A tensor of Lucid 3: it shares its memory with whoever asks by DLPack, on the CPU.

    On the Metal device it says so. copies=True is what it does there where it has no other way, as for bfloat16.
    """

    def __init__(self, memory: Array, *, device: tuple[int, int] = CPU, copies: bool = False) -> None:
        self.memory, self._device, self._copies = memory, device, copies

    @property
    def shape(self) -> tuple[int, ...]:
        return self.memory.shape

    @property
    def dtype(self) -> Any:
        return self.memory.dtype

    def numpy(self) -> Array:
        return self.memory.copy() if self._copies else self.memory

    def detach(self) -> Tensor:
        return Tensor(self.memory, device=self._device, copies=self._copies)

    def __array__(self, dtype: Any = None, *, copy: bool | None = None) -> Array:
        return np.array(self.memory, dtype)

    def __dlpack__(
        self, stream: Any = None, *, max_version: Any = None, dl_device: Any = None, copy: bool | None = None
    ) -> Any:
        return self.numpy().__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __setitem__(self, key: Any, value: Any) -> None:
        self.memory[key] = value


class Parameter(Tensor):
    """A parameter of Lucid 3: a tensor that requires grad. .data is a tensor over the same memory, and settable."""

    def __init__(self, data: Any, requires_grad: bool = True, **options: Any) -> None:
        super().__init__(np.array(data), **options)
        self.requires_grad = requires_grad
        self._grad: Array | None = None

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        self.memory, self._device, self._copies = value.memory, value._device, value._copies

    @property
    def grad(self) -> Tensor | None:
        return None if self._grad is None else Tensor(self._grad)

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        self._grad = None if value is None else value.memory


class OldParameter:
    """A parameter of Lucid 2: .data and .grad are NumPy arrays themselves, or MLX's on the GPU."""

    def __init__(self, data: Any) -> None:
        self.data: Any = np.array(data)
        self.grad: Any = None
        self.requires_grad = True

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    def zero_grad(self) -> None:
        self.grad = None


class CountedStep:
    """What Lucid's schedulers put in the place of an optimizer's step, to see that it was called before theirs."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        vars(self._optimizer)["_opt_called"] = True
        return type(self._optimizer).step(self._optimizer, *args, **kwargs)

    def on(self, optimizer: Any) -> CountedStep:
        return CountedStep(optimizer)

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Scheduler:
    """A scheduler of Lucid 3: it writes lr, and betas where it cycles momentum, into the groups, and says so.

    rate and momentum get the first lr of a group, the one it has now, and the number of the step.
    """

    def __init__(
        self,
        optimizer: Any,
        rate: Callable[[float, float, int], float],
        momentum: Callable[[int], float] | None = None,
    ) -> None:
        self.optimizer, self._rate, self._momentum, self.last_epoch = optimizer, rate, momentum, 0
        if momentum is not None and "betas" not in optimizer.defaults:
            raise ValueError("momentum can only be cycled where there are betas")
        vars(optimizer)["step"] = CountedStep(optimizer)
        vars(optimizer)["_opt_called"] = False
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self._write()

    def step(self) -> None:
        assert self.optimizer._opt_called, "the optimizer's step comes first"
        self.last_epoch += 1
        self._write()

    def _write(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(group["initial_lr"], group["lr"], self.last_epoch)
            if self._momentum is not None:
                assert isinstance(group["betas"], tuple)
                group["betas"] = (self._momentum(self.last_epoch), *group["betas"][1:])
        self.optimizer._sync_hyperparams()
