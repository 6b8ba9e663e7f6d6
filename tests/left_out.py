"""Which files of tests cannot be imported here, for want of something large that is not installed.

PyTorch has no wheels for musl and for macOS on x86-64, radam has: what needs no PyTorch is tested there all the same.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Collection
from pathlib import Path

MAY_BE_MISSING = ("matplotlib", "sklearn", "torch")
# What modules of radam and of the tests need that their own imports do not show: pages and pictures need all of it.
NEEDED_BY = {
    "radam.torch": {"torch"},
    "radam._demo": {"matplotlib"},
    "docstrings": {"matplotlib", "torch"},
    "pages": {*MAY_BE_MISSING},
}


def not_installed(names: Collection[str] = MAY_BE_MISSING) -> set[str]:
    """Those of the names that no module can be found for."""
    return {name for name in names if importlib.util.find_spec(name) is None}


def imported(path: Path) -> set[str]:
    """What a file imports when it is itself imported: the first names of modules."""
    names: set[str] = set()
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
            names |= {statement.module}
            names |= {f"{statement.module}.{alias.name}" for alias in statement.names}
    return {name.partition(".")[0] for name in names}.union(*(NEEDED_BY.get(name, ()) for name in names))


def left_out(folder: Path, missing: Collection[str]) -> dict[str, set[str]]:
    """The files of tests in a folder that need what is missing, themselves or through others beside them, and what."""
    needs = {path.stem: imported(path) for path in sorted(folder.glob("*.py"))}
    for _ in needs:  # as many times as a chain can be long
        needs = {stem: names.union(*(needs[name] for name in names & needs.keys())) for stem, names in needs.items()}
    found = {f"{stem}.py": names & set(missing) for stem, names in needs.items() if stem.startswith("test_")}
    return {name: lacking for name, lacking in found.items() if lacking}
