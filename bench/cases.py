"""What is measured: the shapes of the parameters in each case, and their dtype."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

Shapes = list[tuple[int, ...]]

ITEM_BYTES = {"float32": 4, "bfloat16": 2}


def in_four(elements: int) -> Shapes:
    """Return four equal arrays with that many elements in total."""
    return [(elements // 4,)] * 4


def resnet50(width: int = 64, classes: int = 1000) -> Shapes:
    """Return the 161 parameters of ResNet-50 (He et al. 2015) in torchvision's order; width is its stem's."""

    def conv(to: int, of: int, kernel: int) -> Shapes:
        return [(to, of, kernel, kernel), (to,), (to,)]  # no bias; a batch norm's weight and bias follow

    shapes = conv(width, 3, 7)
    channels = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = width * 2**stage
        outer = 4 * inner
        for block in range(blocks):
            shapes += conv(inner, channels, 1) + conv(inner, inner, 3) + conv(outer, inner, 1)
            if block == 0:
                shapes += conv(outer, channels, 1)  # the shortcut
            channels = outer
    return [*shapes, (classes, channels), (classes,)]


@dataclasses.dataclass(frozen=True)
class Case:
    """Some shapes under a name.

    Args:
        name: what ``--cases`` takes.
        what: the same in words.
        full: makes the shapes.
        quick: makes smaller ones, to try the benchmark itself; their times mean nothing.
        dtype: of the parameters and the gradients.
    """

    name: str
    what: str
    full: Callable[[], Shapes]
    quick: Callable[[], Shapes]
    dtype: str = "float32"

    def shapes(self, quick: bool) -> Shapes:
        """Return the shapes, or the smaller ones."""
        return self.quick() if quick else self.full()

    def described(self, shapes: Shapes) -> dict[str, Any]:
        """Return what a result says of the case with these shapes."""
        words = {"name": self.name, "what": self.what, "dtype": self.dtype}
        return {**words, "tensors": len(shapes), "parameters": element_count(shapes)}


def element_count(shapes: Shapes) -> int:
    """Return the number of parameters, each single one counted."""
    return sum(math.prod(shape) for shape in shapes)


CASES = {
    case.name: case
    for case in (
        Case("33.5M", "33.5 M parameters in 4 arrays", lambda: in_four(33_500_000), lambda: in_four(1_000_000)),
        Case("134M", "134 M parameters in 4 arrays", lambda: in_four(134_000_000), lambda: in_four(4_000_000)),
        Case("resnet50", "the 161 arrays of ResNet-50", resnet50, lambda: resnet50(width=8)),
        Case("1000x4096", "1000 arrays of 4096", lambda: [(4096,)] * 1000, lambda: [(4096,)] * 50),
        Case("1000x64", "1000 arrays of 64", lambda: [(64,)] * 1000, lambda: [(64,)] * 50),
        Case(
            "33.5M-bf16",
            "33.5 M bfloat16 parameters in 4 arrays",
            lambda: in_four(33_500_000),
            lambda: in_four(1_000_000),
            dtype="bfloat16",
        ),
    )
}
