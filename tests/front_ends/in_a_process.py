"""Runs a function of a test file in a process of its own, where the environment may be another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def in_a_process(module: str, code: str, **environment: str) -> Any:
    """Return what an expression gives in JSON, in a process whose warnings are errors; the module is ``here`` in it."""
    paths = os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, sys.path)])
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import {module} as here, json\nprint(json.dumps({code}))"],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])
