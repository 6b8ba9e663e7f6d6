"""Every block of every page is run by some test, and every link leads somewhere."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pages import (
    DIFFS,
    PAGES,
    ROOT,
    Block,
    anchors_of,
    blocks_in,
    blocks_of,
    check_change,
    check_links,
    diffs,
    parts_of,
    text_of,
)

RUN = {"python", "cpp", "c", "cmake", "sh", "diff"}
NOT_RUN = {"text", "console", "toml", "yaml"}
IN_EMBEDDING = ("docs/cpp.md", "examples/cpp/README.md")  # whose commands build programs
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def language_of(block: Block) -> str:
    """Return the language of a block; what is only indented is a command if it begins as one."""
    if block.language == "indented":
        return "sh" if re.match(r"(?:pip|python|git|nox|bench/|tests/)\b", block.code) else "text"
    return block.language


ALL = {block: language_of(block) for page in PAGES for block in blocks_of(page)}


def test_every_block_is_in_a_language_that_some_test_runs() -> None:
    unknown = []
    for block, language in ALL.items():
        is_directive = block.page.startswith("docs/") and re.fullmatch(r"\{[a-z:-]+\}(?: .+)?", language)
        is_code = re.match(r"\{(?:code|test|doctest|literalinclude|parsed)", language)  # which nobody would run
        if language not in RUN | NOT_RUN and (is_code or not is_directive):
            unknown.append(f"{block.name}: {language!r}")
    assert not unknown, (
        f"say what a block is in: {', '.join(sorted(RUN))} are run, {', '.join(sorted(NOT_RUN))} are not"
    )


def test_there_are_blocks_of_every_language() -> None:
    counts = Counter(ALL.values())
    least = {"python": 50, "cpp": 18, "c": 1, "cmake": 8, "sh": 15, "diff": 5, "text": 40}
    assert {language: counts[language] for language in least if counts[language] < least[language]} == {}


def test_every_block_of_python_is_a_case_of_one_test() -> None:
    found = Counter(block for name in ("test_examples", "test_pages") for block in importlib.import_module(name).BLOCKS)
    assert found == Counter(blocks_in("python"))


def test_every_block_of_cpp_c_and_cmake_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "embedding"))
    built = Counter(importlib.import_module("test_cpp_page").RUN)
    assert {block for block in built if block.language != "sh"} == set(blocks_in("cpp", "c", "cmake"))
    assert max(built.values()) == 1


def test_every_change_that_a_page_shows_is_python() -> None:
    assert blocks_in("diff") == DIFFS


@diffs(frameworks=False)
def test_every_name_in_a_change_that_a_page_shows_exists(block: Block) -> None:
    check_change(block)


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_heading_that_a_page_links_to_exists(page: str) -> None:
    check_links(page)


@pytest.mark.parametrize("page", PAGES)
def test_no_line_of_a_page_is_taken_for_a_comment(page: str) -> None:
    """MyST drops a line that begins with a percent sign, as one may where a paragraph is wrapped: the site lacks it."""
    dropped = [line for kind, line, _, text in parts_of(text_of(page)) if kind == "prose" and is_dropped(text)]
    assert not dropped, f"{page}: lines {dropped} begin with %"


def is_dropped(line: str) -> bool:
    return re.match(r"[ >]*%", line) is not None


def test_a_dropped_line_is_recognised() -> None:
    assert [is_dropped(line) for line in ("% of it", "  % of it", "5 % of it", "")] == [True, True, False, False]


# ---- how blocks and headings are found

PAGE = """# One

- a list

      of words, no code

~~~~text
```python
~~~~

    pip install radam

```{note}
```python
x = 1
```

## The same
## The same
## `A_b`: [c](d), e!
"""


def test_blocks_are_found_as_a_reader_sees_them() -> None:
    closed = PAGE.replace("```{note}", "````{note}").replace("1\n```\n", "1\n```\n````\n")
    blocks = [(line, language, code) for kind, line, language, code in parts_of(closed) if kind == "block"]
    assert [(line, language) for line, language, _ in blocks] == [
        (8, "text"), (11, "indented"), (14, "{note}"), (15, "python"),
    ]  # fmt: skip
    assert closed.splitlines()[15 - 1] == blocks[-1][2].strip() == "x = 1"
    assert anchors_of(closed) == {"one", "the-same", "the-same-1", "a_b-c-e"}


def test_a_block_that_is_not_closed_is_refused() -> None:
    with pytest.raises(AssertionError, match="line 14: a block is not closed"):
        list(parts_of(PAGE))


# ---- commands


def commands_of(block: Block) -> list[str]:
    """Return the commands of a block, without comments; "a && b" are two."""
    lines = re.sub(r"\\\n\s*", " ", block.code).splitlines()
    without = [re.sub(r"(?:^|\s+)#.*", "", line).strip() for line in lines]
    return [command.strip() for line in without for command in line.split("&&") if command.strip()]


def run(*command: str, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def extras_exist(extras: str | None) -> None:
    for extra in (extras or "").strip("[]").split(","):
        assert not extra or re.search(rf"^{extra} = \[", text_of("pyproject.toml"), re.M), f"no extra {extra!r}"


def takes_the_wheel(m: re.Match[str], folder: Path) -> None:
    """What pip would do once the wheel is published, by the one that is built here."""
    extras_exist(m["extras"])
    dist = ROOT / "build" / "dist"
    if not list(dist.glob("radam-*.whl")):
        pytest.skip("there is no wheel in build/dist: nox -s wheel makes it")
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(dist), "PIP_DRY_RUN": "1", "PIP_NO_DEPS": "1"}
    said = run(sys.executable, "-m", "pip", "install", "--ignore-installed", *m["what"].split(), cwd=folder, **offline)
    assert "Would install radam-" in said


def builds_from_here(m: re.Match[str], folder: Path) -> None:
    """What the session 'wheel' of nox does; here are the extras and the build's settings."""
    extras_exist(m["extras"])
    build = "".join(path.read_text(encoding="utf-8") for path in [ROOT / "CMakeLists.txt", *ROOT.glob("cmake/*.cmake")])
    for group in re.findall(r"--group (\w+)", m[0]):
        extras_exist(group)
    for setting in re.findall(r"cmake\.define\.(\w+)=", m[0]):
        assert setting in build


def runs(m: re.Match[str], folder: Path) -> None:
    assert run("sh", "-e", "-c", m[0], cwd=folder).strip()


def has_its_options(m: re.Match[str], folder: Path) -> None:
    """Of what takes long, or measures: that it starts, and knows each option."""
    known = run(*shlex.split(m["program"].replace("python", sys.executable, 1)), "--help")
    for option in re.findall(r" (--[\w-]+)", m["rest"]):
        assert option in known


def is_a_session(m: re.Match[str], folder: Path) -> None:
    sessions = {node.name for node in ast.parse(text_of("noxfile.py")).body if isinstance(node, ast.FunctionDef)}
    assert set((m["sessions"] or "").split()) <= sessions


def is_what_ci_runs(m: re.Match[str], folder: Path) -> None:
    assert "pip install nox && python -m nox\n" in text_of(".ci/run")


def is_a_file(m: re.Match[str], folder: Path) -> None:
    assert (ROOT / m["file"]).is_file()


def is_how_ci_gets_nvcc(m: re.Match[str], folder: Path) -> None:
    """From the same list, by the same command, as far as this copy has the workflows."""
    assert (ROOT / m["file"]).is_file()
    if (ROOT / ".github").is_dir():
        assert f'/bin/pip"{m["command"]}\n' in text_of(".github/workflows/ci.yml")


def is_what_nox_does(m: re.Match[str], folder: Path) -> None:
    assert f'session.install("{m["what"]}")' in text_of("noxfile.py")


def follows(m: re.Match[str], folder: Path) -> None:
    """The shell's own, around commands that are looked at."""


PROOFS: list[tuple[str, Callable[[re.Match[str], Path], None]]] = [
    (r'pip install (?P<what>"?radam(?P<extras>\[[\w,]+\])?"?)(?: [\w-]+)*', takes_the_wheel),
    (r'(?:PATH=\S+ )?pip install(?: --[\w-]+)* "?\.(?P<extras>\[[\w,]+\])?"?(?: [\w.=-]+)*', builds_from_here),
    (r"python -m radam (?:info|--version|--cmakedir|--includedir)", runs),
    (r"(?P<program>python -m radam \w+)(?P<rest>.*)", has_its_options),
    (r"python (?P<file>bench/\w+\.py) \S+\.json", is_a_file),  # test_bench.py and test_bench_frameworks.py run them
    (r"(?P<program>python bench/\w+\.py)(?P<rest>.*)", has_its_options),
    (r"python (?P<file>examples/\w+\.py)", is_a_file),  # each is run by test_examples.py
    (r"(?P<file>bench/gpu\.sh)(?: --dry)? OUTDIR", is_a_file),  # test_gpu_script.py runs it
    (r"pip install nox|python -m nox", is_what_ci_runs),
    (r"python -m nox -s(?P<sessions>[ \w]+)(?: -- .+)?", is_a_session),
    (
        r"nvcc/bin/pip(?P<command> install --require-hashes -r (?P<file>cmake/nvcc-requirements\.txt))",
        is_how_ci_gets_nvcc,
    ),
    (r'python -m pip install "(?P<what>pip>=[\d.]+)"', is_what_nox_does),
    (r"pip uninstall radam", follows),  # of another package, the author's, that has this name
    (r"python3 -m venv [\w.]+|\. [\w.]+/bin/activate", follows),
    (r'folder=\$\(echo "\$PWD"/nvcc/lib/python\*/site-packages/nvidia/cu13\)|ln -s lib "\$folder/lib64"', follows),
]
COMMANDS = {
    command: block.name
    for block, language in ALL.items()
    if language == "sh" and block.page not in IN_EMBEDDING
    for command in commands_of(block)
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_works(command: str, tmp_path: Path) -> None:
    found = next(((m, prove) for rule, prove in PROOFS if (m := re.fullmatch(rule, command))), None)
    assert found, f"{COMMANDS[command]}: {command!r} is run by no test; say in PROOFS how it is known to work"
    found[1](found[0], tmp_path)
