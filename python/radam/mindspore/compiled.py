"""Whether MindSpore is about to compile what calls the optimizer."""

from __future__ import annotations

import sys
from pathlib import Path

import mindspore

# Where jit(capture_mode="trace") and jit(capture_mode="bytecode") call the function that they capture.
_FOLDER = Path(mindspore.__file__).parent / "graph"
_CAPTURING = {str(_FOLDER / "jit_trace.py"), str(_FOLDER / "_utils" / "pijit_context.py")}


def is_captured() -> bool:
    """Return whether a function that mindspore.jit captures is among the callers.

    It would run this once, or never, and go on without it. jit(capture_mode="ast") calls nothing: see RAdam.construct.
    """
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_filename in _CAPTURING:
            return True
    return False
