"""What pages and examples show, as cases for tests: every block of every page, every link, and every script."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
FIRST = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "bench/README.md")
PAGES = [
    *(page for page in FIRST if (ROOT / page).exists()),
    *(
        path.relative_to(ROOT).as_posix()
        for folder in ("docs", "examples")
        for path in sorted(ROOT.glob(f"{folder}/**/*.md"))
    ),
]
SCRIPTS = [f"examples/{path.name}" for path in sorted((ROOT / "examples").glob("*.py"))]
FRAMEWORK_OF = {  # modules that the tests of the rest do without, each with the session that has them
    **dict.fromkeys(("jax", "jaxlib", "optax", "flax", "chex", "orbax"), "jax"),
    "paddle": "paddle",
    "mindspore": "mindspore",
}
ADMONITIONS = {"note", "tip", "warning", "important", "admonition", "dropdown", "tab-set", "tab-item", "grid", "card"}


class Block(NamedTuple):
    page: str
    section: str
    line: int  # of the first line of code, from 1
    language: str
    code: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"


# ---- pages, blocks and headings


@cache
def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


FENCE = re.compile(r"( *)(`{3,}|~{3,})(.*)")
HEADING = re.compile(r"(#+) +(.*?)(?: +#+)?")
LIST = re.compile(r" *(?:[-*+]|\d+[.)]) ")


def parts_of(text: str, above: int = 0) -> Iterator[tuple[str, int, str, str]]:
    """Yield ("heading", line, its marks, its text), ("prose", line, "", a line) and ("block", line, language, code).

    Code that is indented, not fenced, is a block of the language "indented". Blocks in an admonition come after it.
    Lines are counted from 1, and above stand so many.
    """
    lines = text.split("\n")
    at, in_list, was_blank = 0, False, True
    while at < len(lines):
        line = lines[at]
        at += 1
        if fence := FENCE.fullmatch(line):
            indent, marks, language = fence.groups()
            begin, in_list = at, in_list and bool(indent)
            while at < len(lines) and not re.fullmatch(rf" *{marks[0]}{{{len(marks)},}} *", lines[at]):
                at += 1
            assert at < len(lines), f"line {above + begin}: a block is not closed"
            code = "".join(f"{inner}\n" for inner in lines[begin:at])
            at += 1
            yield "block", above + begin + 1, language.strip(), textwrap.dedent(code) if indent else code
            if re.sub(r"[{}]", "", language.partition(" ")[0].strip()) in ADMONITIONS:
                yield from parts_of(code, above + begin)
        elif heading := HEADING.fullmatch(line):
            in_list = False
            yield "heading", above + at, heading[1], heading[2]
        elif line.startswith("    ") and was_blank and not in_list:
            begin = at
            while at < len(lines) and (not lines[at].strip() or lines[at].startswith("    ")):
                at += 1
            yield (
                "block",
                above + begin,
                "indented",
                textwrap.dedent("\n".join(lines[begin - 1 : at])).strip("\n") + "\n",
            )
        else:
            in_list = bool(LIST.match(line)) or (in_list and (not line.strip() or line.startswith("  ")))
            yield "prose", above + at, "", line
        was_blank = not line.strip()


@cache
def blocks_of(page: str) -> tuple[Block, ...]:
    """Return each block of a page, with the heading of the second level that it stands under."""
    section, found = "", []
    try:
        for kind, line, first, rest in parts_of(text_of(page)):
            if kind == "heading" and first == "##":
                section = rest
            elif kind == "block":
                found.append(Block(page, section, line, first, rest))
    except AssertionError as error:
        raise AssertionError(f"{page}: {error}") from None
    return tuple(found)


def blocks_in(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page) if block.language in languages]


# ---- Python


def imports_of(code: str) -> list[str]:
    """Return the dotted names that a program imports, with what it takes from them."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{name.name}" for name in node.names]
    return found


def modules_of(code: str) -> set[str]:
    """Return the modules of frameworks that a program needs; radam.paddle needs paddle."""
    names = [name.removeprefix("radam.").partition(".")[0] for name in imports_of(code)]
    return {name for name in names if name in FRAMEWORK_OF}


def frameworks_of(code: str) -> list[str]:
    return sorted({FRAMEWORK_OF[name] for name in modules_of(code)})


PYTHON = [(block, frameworks_of(block.code)) for block in blocks_in("python")]


def cases(blocks: list[Block]) -> pytest.MarkDecorator:
    """One case for each block, named for its page, its line and its frameworks, by which a session may choose."""
    named = {block.name: frameworks for block, frameworks in PYTHON}
    ids = ["-".join((block.name, *named.get(block.name, []))) for block in blocks]
    return pytest.mark.parametrize("block", blocks, ids=ids)


def skip_without(modules: set[str]) -> None:
    """Skip the test where a framework is missing; else import it, since some warn of themselves when they are."""
    for module in sorted(modules):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)


def run_block(block: Block) -> None:
    exec(compile("\n" * (block.line - 1) + block.code, str(ROOT / block.page), "exec"), {"__name__": "__main__"})


def run_script(script: str, folder: Path, *arguments: str, warnings: str = "error") -> subprocess.CompletedProcess[str]:
    """Run an example in a folder, and see that it says something and leaves nothing behind."""
    command = [sys.executable, "-W", warnings, str(ROOT / script), *arguments]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip()
    assert not list(folder.iterdir())
    return ended


# ---- changes


def sides_of(block: Block) -> tuple[str, str]:
    """Return the code before and after the change that a diff shows."""
    lines = [line for line in block.code.splitlines() if not line.startswith(("---", "+++", "@@"))]
    before, after = ("\n".join(line[1:] for line in lines if line[:1] in (sign, " ", "")) + "\n" for sign in "-+")
    return textwrap.dedent(before), textwrap.dedent(after)


def names_in(code: str) -> set[str]:
    """Return the dotted names that a program takes from radam, a framework or what it imports."""
    imported = imports_of(code)
    roots = {*FRAMEWORK_OF, "radam", "torch", "lucid", *(name.partition(".")[0] for name in imported)}
    read = (ast.unparse(node) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute))
    return {
        *imported,
        *(name for name in read if name.partition(".")[0] in roots and name.replace(".", "").isidentifier()),
    }


def modules_changed(block: Block) -> set[str]:
    firsts = (name.removeprefix("radam.").partition(".")[0] for side in sides_of(block) for name in names_in(side))
    return {first for first in firsts if first in FRAMEWORK_OF}


def is_python(code: str) -> bool:
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True


DIFFS = [block for block in blocks_in("diff") if all(map(is_python, sides_of(block)))]


def exists(name: str) -> bool | None:
    """Return whether a dotted name can be imported and read; None where its first part is no installed module."""
    first, *rest = name.split(".")
    if importlib.util.find_spec(first) is None:
        return None
    found: object = importlib.import_module(first)
    for part in rest:
        first += f".{part}"
        if not hasattr(found, part):
            try:
                importlib.import_module(first)
            except ImportError:
                return False
        found = getattr(found, part)
    return True


def check_change(block: Block) -> None:
    """See that all names on both sides exist, as far as their libraries are here, and that the new ones are radam's."""
    skip_without(modules_changed(block))
    before, after = ({name: exists(name) for name in names_in(side)} for side in sides_of(block))
    gone = [name for name, is_there in {**before, **after}.items() if is_there is False]
    assert not gone, f"{block.name} names {gone}, which do not exist"
    ours = [name for name, is_there in after.items() if is_there and name.startswith("radam.")]
    assert ours, f"{block.name} leads to nothing of radam"


def diffs(*, frameworks: bool) -> pytest.MarkDecorator:
    """One case for each change in Python of or without frameworks."""
    chosen = {block: modules_changed(block) for block in DIFFS if bool(modules_changed(block)) == frameworks}
    ids = ["-".join((block.name, *sorted({FRAMEWORK_OF[module] for module in chosen[block]}))) for block in chosen]
    return pytest.mark.parametrize("block", list(chosen), ids=ids)


# ---- links


def anchors_of(text: str) -> set[str]:
    """Return the anchors of a page's headings, as forges and MyST make them, and those that are given by hand."""
    anchors: list[str] = []
    for kind, _, _, title in parts_of(text):
        if kind == "heading":
            plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", title)
            slug = re.sub(r"[^\w -]", "", plain.lower()).strip().replace(" ", "-")
            anchors.append(
                slug
                if slug not in anchors
                else next(f"{slug}-{i}" for i in range(1, len(anchors) + 1) if f"{slug}-{i}" not in anchors)
            )
    return {*anchors, *re.findall(r"^\(([\w-]+)\)=$", text, re.M)}


def links_of(page: str) -> list[str]:
    """Return what a page links to, pictures too, but for addresses elsewhere."""
    prose = "\n".join(rest for kind, _, _, rest in parts_of(text_of(page)) if kind != "block")
    prose = re.sub(r"(`+)(?:(?!\1).|\n)+?\1(?!`)", "code", prose)
    found = re.findall(r"\]\(\s*<?([^)\s>]+)[^)]*\)", prose)
    found += re.findall(r"^\[[^\]]+\]:\s+(\S+)", prose, re.M)
    found += re.findall(r"(?:src|href)=\"([^\"]+)\"", prose)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def check_links(page: str) -> None:
    """See that every file and heading that a page links to exists."""
    wrong = []
    for link in links_of(page):
        name, _, heading = link.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        if not path.is_file() or not path.resolve().is_relative_to(ROOT):
            wrong.append(f"{link}: no file of this repository")
        elif heading and heading not in anchors_of(path.read_text(encoding="utf-8")):
            wrong.append(f"{link}: no such heading")
    assert not wrong, f"{page} links to {wrong}"
