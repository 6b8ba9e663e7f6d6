"""What somebody does who reads docs/quick_start.md: for each framework an environment, its line of pip, its program.

python tests/newcomer.py WHEEL [FRAMEWORK ...] installs some GB, and prints how long each took. It is no test of the
default run; `python -m nox -s wheel newcomer` runs it. In the line of pip, radam is the wheel, and torch the version
that the tests pin.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs/quick_start.md"
LONGEST = 300  # seconds, the whole of it


def main(argv: Sequence[str] | None = None) -> int:
    """Try each framework; return 1 where one fails."""
    wheel, *wanted = sys.argv[1:] if argv is None else argv
    programs = programs_of(PAGE.read_text(encoding="utf-8"))
    if unknown := set(wanted) - set(programs):
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}. The page has {', '.join(programs)}")
    failed = []
    for name in wanted or programs:
        requirements, code = programs[name]
        seconds, why = tried(requirements, code, {"radam": str(Path(wheel).resolve()), "torch": "torch==2.13.0"})
        slow = f" MORE THAN {LONGEST} s" if seconds > LONGEST else ""
        print(f"{name}: {seconds:.0f} s{slow}{': ' + why if why else ''}", flush=True)
        if why or slow:
            failed.append(name)
    return 1 if failed else 0


def programs_of(page: str) -> dict[str, tuple[list[str], str]]:
    """Return by heading what pip is to install, and the program."""
    found = {}
    for section in re.split(r"^## ", page, flags=re.M)[1:]:
        line = re.search(r"`pip\s+install\s+(radam\b[^`]*)`", section)
        code = re.search(r"^```python\n(.*?)^```", section, re.M | re.S)
        if code is not None:
            heading = section.partition("\n")[0].strip()
            if line is None:
                raise SystemExit(f"{PAGE}: {heading} has a program, and no line of pip that begins with radam")
            found[heading] = (shlex.split(line[1]), code[1])
    return found


def tried(requirements: Sequence[str], code: str, instead: dict[str, str]) -> tuple[float, str]:
    """Return the seconds that it took, and why it failed or nothing."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "environment"
        venv.create(environment, with_pip=True)
        python = environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        named = [instead.get(requirement, requirement) for requirement in requirements]
        for command in (["-m", "pip", "install", "--quiet", *named], ["-c", code]):
            done = subprocess.run([python, *command], cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                return time.monotonic() - start, f"{command[0]} {command[1][:20]} failed:\n{done.stderr[-2000:]}"
    return time.monotonic() - start, ""


if __name__ == "__main__":
    sys.exit(main())
