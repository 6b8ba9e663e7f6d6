"""What docstrings show, as cases for tests: every example of every module of radam."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path

import radam

PACKAGE = Path(radam.__file__).parent
APART = ("jax", "mindspore", "paddle")  # front ends whose frameworks the tests of the rest do without


def modules(front_end: str | None = None) -> list[str]:
    """The modules of one front end; or all but those of the front ends that are apart."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        is_of = front_end == parts[0] if front_end else parts[0] not in APART
        if is_of and parts != ("__main__",):
            found.append(".".join(("radam", *parts)).removesuffix(".__init__"))
    return found


def examples(module: str) -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [test for test in finder.find(importlib.import_module(module), module) if test.examples]


def run(test: doctest.DocTest) -> None:
    lines: list[str] = []
    failed, tried = doctest.DocTestRunner(verbose=False).run(test, out=lines.append)
    assert tried
    assert not failed, "".join(lines)


def without_an_example(package: str) -> list[str]:
    """The functions and classes that a package hands out whose docstring shows nothing to run."""
    module = importlib.import_module(package)
    public = {name: getattr(module, name) for name in module.__all__}
    shown = {name for name, thing in public.items() if ">>>" in (inspect.getdoc(thing) or "")}
    return [name for name, thing in public.items() if callable(thing) and name not in shown]
