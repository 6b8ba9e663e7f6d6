"""Every message that radam raises is on docs/errors.md, or says all that there is to say."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from errors_page import shown
from pages import ROOT

FILES = {  # whose messages are all alike
    "__main__.py": "the command line says in one line what to do",
    "saved.py": "of a state that is broken or was edited; the page has the usual ones, and what to do",
}
PIECES = {  # of messages, and why they are not on the page
    "of what no user hands in: an array, a library or a call of the front ends that does not keep to its interface": (
        "its library", "this CuPy has no", "does not say its device or stream", "is exported", "is no array:",
        "or a moment of it", "(a buffer format)", "gave something else", "buffer protocol:",
        "on another device (", "parameters but", "moments are float32 or bfloat16, got", "a leaf has a dtype",
        "does not lie within the whole", ", not a tensor", ", not a Tensor", "a tensor is on",
    ),
    "by the side of one that is shown": (
        "param_names holds", "has moments of", "its first moment is", "would be made inside a CUDA graph",
        "is coded in blocks of another memory order", "the groups hold no parameters", "what was recorded with it",
        "accepted are floating-point and complex ones", "no whole number of steps", "hand in a copy of it",
        "in a CUDA graph needs all parameters on one device", "replays would not step",
        "of a parameter without a step count", "are slower. The reason:",
        "before radam.jax is imported", "; RAdam steps float64",
        "; radam.mindspore.RAdam steps on the CPU", "Optimizer can only optimize Parameters",
    ),
    "says what to do": (
        "it was resized after its first step", "rounding them is not for a step to decide", "cannot count beyond",
        "which radam.paddle.RAdam does not step", "requires grad; only lr", "which the optimizer's scheduler needs",
        "keep the parameters of this optimizer on the CPU",
    ),
    "of several processes": ("max_tensor_grad_norm cannot clip DTensors", "clipped over processes"),
}  # fmt: skip
SOURCES = [*(ROOT / "python" / "radam").rglob("*.py"), *(ROOT / "python" / "bindings").glob("*.cpp")]


def literals_of_python(source: str) -> Iterator[list[str]]:
    """Yield what stands in quotes in each statement that raises or warns."""
    for node in ast.walk(ast.parse(source)):
        raised = node.exc if isinstance(node, ast.Raise) else node
        if isinstance(raised, ast.Call) and (raised is not node or ast.unparse(raised.func) == "warnings.warn"):
            yield [x.value for x in ast.walk(raised) if isinstance(x, ast.Constant) and isinstance(x.value, str)]


def literals_of_cpp(source: str) -> Iterator[list[str]]:
    for statement in re.findall(r"\b(?:refuse_\w+|throw)\b[^;]*;", re.sub(r"//.*", "", source)):
        yield re.findall(r'"((?:[^"\\]|\\.)*)"', re.sub(r'"\s*\n\s*"', "", statement))


@pytest.mark.parametrize("path", sorted(SOURCES), ids=lambda path: path.relative_to(ROOT / "python").as_posix())
def test_every_message_is_on_the_page_or_says_it_all(path: Path) -> None:
    """What must be, as opposed to what is, says it all; the page says so in its beginning."""
    literals = literals_of_python if path.suffix == ".py" else literals_of_cpp
    page = " ".join(message for messages in shown().values() for message in messages)
    excused = [piece for pieces in PIECES.values() for piece in pieces]
    lost = []
    for strings in literals(path.read_text(encoding="utf-8")):
        whole = " ".join(strings)
        parts = [part for part in map(str.strip, strings) if len(part) >= 12]  # the others are found anywhere
        says_it = re.search(r"\bmust\b", whole) or any(piece in whole for piece in excused)
        if not (says_it or path.name in FILES or all(part in page for part in parts)):
            lost.append(whole)
    assert not lost, "put these on docs/errors.md, with a trigger above, or into PIECES with a reason"


def test_no_reason_outlives_its_message() -> None:
    sources = "".join(re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8")) for path in SOURCES)
    gone = [piece for pieces in PIECES.values() for piece in pieces if piece not in sources]
    assert not gone
