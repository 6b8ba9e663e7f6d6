"""CONTRIBUTING, workflows and forms say what is so: names that are there, one version of a tool, pinned actions."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import radam
from pages import ROOT, text_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.skipif(not (ROOT / ".github").is_dir(), reason="needs the whole repository")

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def settings() -> dict[str, Any]:
    return tomllib.loads(read("pyproject.toml"))


def group(name: str) -> dict[str, Requirement]:
    """Return what a dependency group of pyproject.toml asks for itself, by name."""
    found = [Requirement(item) for item in settings()["dependency-groups"][name] if isinstance(item, str)]
    return {requirement.name: requirement for requirement in found}


# ---- versions


def test_a_version_is_said_in_three_files_alike() -> None:
    version = settings()["project"]["version"]
    assert re.search(r"^project\(radam VERSION (\S+)", read("CMakeLists.txt"), re.M)[1] == version
    assert re.search(r"^version: (\S+)$", read("CITATION.cff"), re.M)[1] == version
    assert re.search(r"^## (\d[^,\s]*)", read("CHANGELOG.md"), re.M)[1] == version


HOOKS = dict(re.findall(r"- repo: https://github\.com/\S+/(\S+)\n +rev: v?(\S+)", read(".pre-commit-config.yaml")))
HOOK_OF = {  # by the tool that the hook runs
    "ruff": "ruff-pre-commit",
    "mypy": "mirrors-mypy",
    "clang-format": "mirrors-clang-format",
    "codespell": "codespell",
    "validate-pyproject": "validate-pyproject",
    "zizmor": "zizmor-pre-commit",
    "check-jsonschema": "check-jsonschema",
}
LOCAL = dict(re.findall(r"([\w-]+)(?:\[\w+\])?==([\d.]+)", read(".pre-commit-config.yaml")))


@pytest.mark.parametrize("tool", group("lint"))
def test_a_hook_runs_a_version_that_the_group_lint_takes(tool: str) -> None:
    version = LOCAL[tool] if tool in LOCAL else HOOKS[HOOK_OF[tool]]
    assert Version(version) in group("lint")[tool].specifier


def test_no_hook_is_left_out_of_the_comparison() -> None:
    assert set(HOOKS) == {*HOOK_OF.values(), "pre-commit-hooks"}
    assert {*HOOK_OF, *LOCAL} == set(group("lint"))


def test_noxfile_asks_for_tools_in_the_versions_of_the_groups_and_workflows_ask_for_groups() -> None:
    pinned = {name: requirement for part in ("docs", "lint", "release") for name, requirement in group(part).items()}
    for name, version in re.findall(r"\"([\w-]+)((?:==|>=)\d[\d.*]*)", read("noxfile.py")):
        if name in pinned:
            assert Requirement(name + version).specifier == pinned[name].specifier, name
    for path in WORKFLOWS:
        assert not re.findall(rf"\b({'|'.join(map(re.escape, pinned))})[=<>~]=", path.read_text(encoding="utf-8"))


def test_the_group_build_has_all_that_a_build_requires() -> None:
    required = {str(Requirement(item)) for item in settings()["build-system"]["requires"]}
    assert required <= {str(requirement) for requirement in group("build").values()}


# ---- workflows


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_action_is_pinned_by_its_commit_and_says_its_version(path: Path) -> None:
    used = re.findall(r"^ *-? *uses: *(.*)$", path.read_text(encoding="utf-8"), re.M)
    assert used
    assert not [line for line in used if not re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)]


def test_an_action_is_the_same_commit_wherever_it_is_used() -> None:
    used = {line for path in WORKFLOWS for line in re.findall(r"uses: *(\S+@.*)$", read_workflow(path.name), re.M)}
    assert len({line.partition("@")[0] for line in used}) == len(used)


def read_workflow(name: str) -> str:
    return read(f".github/workflows/{name}")


def jobs_of(name: str) -> dict[str, str]:
    """Return the text of each job of a workflow."""
    parts = re.split(r"^  ([\w-]+):\n", read_workflow(name).partition("\njobs:\n")[2], flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_only_the_job_that_publishes_can_say_who_it_is_and_it_does_nothing_else() -> None:
    for path in WORKFLOWS:
        assert "\npermissions: {}\n" in path.read_text(encoding="utf-8")
        for name, job in jobs_of(path.name).items():
            granted = re.search(r"\n    permissions:\n((?:      .*\n)+)", f"\n{job}")[1]
            allowed = [line.split(" #")[0].strip() for line in granted.splitlines()]
            assert allowed == (["id-token: write"] if name == "publish" else ["contents: read"]), f"{path.name}, {name}"
    publish = jobs_of("wheels.yml")["publish"]
    assert re.findall(r"- (\w+): ([\w/-]+)", publish) == [
        ("uses", "actions/download-artifact"),
        ("uses", "pypa/gh-action-pypi-publish"),
    ]
    assert "if: github.event_name == 'push' && github.ref_type == 'tag'\n" in publish
    assert "\n      name: pypi\n" in publish
    assert re.search(r"^  push:\n    tags: \[\"v\*\"\]\n", read_workflow("wheels.yml"), re.M)


# ---- CONTRIBUTING


def section(title: str) -> str:
    """Return what stands under a heading of CONTRIBUTING, up to the next one."""
    found = re.search(rf"^### {title}\n(.*?)(?=^##|\Z)", text_of("CONTRIBUTING.md"), re.M | re.S)
    assert found, title
    return found[1]


def first_cells(text: str) -> set[str]:
    """Return the names in the first column of its tables."""
    return {name for cell in re.findall(r"^\| (`.*?) \|", text, re.M) for name in re.findall(r"`([^`]+)`", cell)}


def stems(names: set[str], *suffixes: str) -> set[str]:
    return {name.removesuffix(suffix) for name in names for suffix in suffixes if name.endswith(suffix)}


def relative(folder: str, *patterns: str) -> set[str]:
    return {
        path.relative_to(ROOT / folder).as_posix()
        for pattern in patterns
        for path in (ROOT / folder).glob(pattern)
        if "__pycache__" not in path.parts
    }


def folders() -> set[str]:
    """Return each folder that is a room: what the top has, and what C++, Python and the tests are divided into."""
    ignored = {line.rstrip("/") for line in read(".gitignore").splitlines()}
    tops = {f"{path.name}" for path in ROOT.iterdir() if path.is_dir() and path.name not in ignored}
    tops = {name for name in tops if not name.startswith(".") or name in (".ci", ".github")}
    parts = {f"{top}/{part.rstrip('/')}" for top in ("cpp", "python", "tests") for part in packages(top)}
    return tops - {"cpp", "python"} | parts - {"cpp/include"} | {"cpp/include/radam"}


def packages(folder: str) -> set[str]:
    """Return the folders in a folder, each with a slash."""
    found = (path.name for path in (ROOT / folder).iterdir() if path.is_dir())
    return {f"{name}/" for name in found if not name.startswith(("_", "."))}


ROOMS: dict[str, Callable[[], set[str]]] = {
    "Folders": folders,
    "Headers": lambda: relative("cpp/include/radam", "**/*.hpp", "**/*.h"),
    "Compiled sources": lambda: relative("cpp/src", "*.[ch]pp", "*.cu", "*.cuh"),
    "The package": lambda: relative("python/radam", "*.py") | packages("python/radam"),
}


@pytest.mark.parametrize("room", ROOMS)
def test_the_map_names_every_room_and_no_other(room: str) -> None:
    assert first_cells(section(room)) == ROOMS[room]()


def test_the_map_names_every_part_of_the_extension_module() -> None:
    named = first_cells(section("The extension module"))
    assert not [name for name in named if not (ROOT / "python/bindings" / name).is_file()]
    assert stems(named, ".cpp", ".hpp") == stems(relative("python/bindings", "*"), ".cpp", ".hpp")


def test_every_file_test_and_session_that_contributing_names_is_there() -> None:
    text = text_of("CONTRIBUTING.md")
    # Paths from the top, but for those of a newcomer, of what a run makes and of an option's argument.
    paths = {path for path in re.findall(r"`(?:python )?((?:[\w.-]+/)+[\w.-]+\.\w+)", text) if "NAME" not in path}
    places = (ROOT, ROOT / "cpp/include/radam", ROOT / "tests/front_ends")
    assert len(paths) > 20
    assert not [path for path in paths if not any((place / path).is_file() for place in places)]

    written = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    tests = set(re.findall(r"`(test_\w+)`", text))
    assert tests
    assert not [name for name in tests if f"def {name}(" not in written]

    sessions = {
        node.name
        for node in ast.parse(read("noxfile.py")).body
        if isinstance(node, ast.FunctionDef)
        and any("session" in ast.unparse(decorator) for decorator in node.decorator_list)
    }
    asked = {name for names in re.findall(r"nox (?:-R )?-s ([a-z0-9 ]+)", text) for name in names.split()}
    assert asked <= sessions


def test_every_name_that_a_recipe_sends_to_is_in_the_source() -> None:
    recipes = "".join(re.findall(r"^## Add a.*?(?=^## (?!Add))", text_of("CONTRIBUTING.md"), re.M | re.S))
    names = set(re.findall(r"`(\w*_\w+|[A-Z]{3,}|radam_add_isa)`", recipes)) - {"NAME"}
    source = {
        path: path.read_text(encoding="utf-8")
        for folder in ("cpp", "python", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".hpp", ".cpp", ".h", ".py", ".txt") and path != Path(__file__)
    }
    assert len(names) > 20
    assert not [name for name in names if not any(re.search(rf"\b{name}\b", text) for text in source.values())]


# ---- forms and lists


@pytest.mark.parametrize(
    "form", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[0-9]*.yml")), ids=lambda path: path.stem
)
def test_a_form_asks_for_commands_that_exist(form: Path) -> None:
    commands = set(re.findall(r"python -m radam (\w+)", form.read_text(encoding="utf-8")))
    parser = read("python/radam/__main__.py")
    assert not [command for command in commands if f'"{command}"' not in parser]
    assert commands or form.stem.endswith("feature")


@pytest.mark.parametrize(
    ("path", "begin", "end"),
    [
        ("README.md", "| convention |", "\n\n"),
        ("cpp/include/radam/radam.h", "convention: ", "RADAM_API"),
        ("python/radam/conventions.py", '"""The conventions by name', '"""\n'),
    ],
)
def test_every_list_of_the_conventions_has_them_all(path: str, begin: str, end: str) -> None:
    found = read(path).partition(begin)[2].partition(end)[0]
    assert not [name for name in radam.CONVENTIONS if not re.search(rf"\b{name}\b", found)]
