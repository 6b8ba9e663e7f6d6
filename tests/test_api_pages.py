"""Every public name of Python, C++ and C is on a page of the reference, with what its comment says."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "python" / "radam"
HEADERS = ROOT / "cpp" / "include" / "radam"
API = ROOT / "docs" / "api"
PAGES = {"": "python", **{name: name for name in ("torch", "paddle", "jax", "mindspore", "lucid")}}


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


# ---- Python


def public_names(package: Path) -> list[str]:
    for node in ast.parse(text_of(package / "__init__.py")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return list(ast.literal_eval(node.value))
    raise AssertionError(f"{package} has no __all__")


def shown(page: str) -> dict[str, str]:
    """What a page shows from docstrings: each name, and its options."""
    found = re.findall(r"^\.\. auto\w+:: (\S+)\n((?:    *\S.*\n)*)", text_of(API / f"{page}.md"), re.M)
    return {name.replace("::", "."): options for name, options in found}


def test_every_package_has_a_page() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages == set(PAGES) - {""}


@pytest.mark.parametrize("package", PAGES)
def test_every_public_name_of_python_is_on_its_page(package: str) -> None:
    prefix = f"radam.{package}".rstrip(".")
    names = {f"{prefix}.{name}" for name in public_names(PACKAGE / package)}
    assert names <= set(shown(PAGES[package]))


@pytest.mark.parametrize("package", ["torch", "paddle", "mindspore", "lucid"])
def test_every_method_of_a_front_end_is_on_its_page(package: str) -> None:
    methods = set()
    for node in ast.parse(text_of(PACKAGE / package / "optimizer.py")).body:
        if isinstance(node, ast.ClassDef) and node.name in ("RAdam", "_Optimizer"):
            defined = [each for each in node.body if isinstance(each, ast.FunctionDef)]
            methods |= {each.name for each in defined if each.name == "__call__" or not each.name.startswith("_")}
    options = shown(package)[f"radam.{package}.RAdam"]
    assert methods
    assert methods <= set(re.findall(r"\w+", options))


# ---- C++ and C


def test_every_name_that_the_page_on_cpp_uses_is_in_the_reference() -> None:
    code = "".join(re.findall(r"^```cpp\n(.*?)^```", text_of(ROOT / "docs/cpp.md"), re.M | re.S))
    used = set(re.findall(r"(?<!:)\bradam::((?:dispatched::|torch::(?:dispatched::)?)?\w+)", code))
    known = set(re.findall(r"\{(?:doxygen\w+|cpp:var)\} .*?radam::([\w:]+)", text_of(API / "cpp.md")))
    assert len(used) >= 15
    assert used <= known


def test_every_section_of_the_c_header_is_on_its_page_in_the_same_order() -> None:
    doxygen_filter = load_filter()
    groups = re.findall(r"@defgroup (\w+) ", doxygen_filter(text_of(HEADERS / "radam.h")))
    assert len(groups) >= 8
    assert re.findall(r"\{doxygengroup\} (\w+)", text_of(API / "c.md")) == groups


def test_every_function_and_struct_of_the_c_header_is_in_a_section() -> None:
    filtered = load_filter()(text_of(HEADERS / "radam.h"))
    outside, sections = re.subn(r"@\{ \*/.*?/\*\* @\} \*/", "", filtered, flags=re.S)
    assert sections >= 8
    assert filtered.count("RADAM_API ") > 30
    assert not re.findall(r"^(?:RADAM_API|typedef|enum).*", outside, re.M)


# ---- the filter, which makes comments what Doxygen reads


def load_filter() -> Callable[[str], str]:
    spec = importlib.util.spec_from_file_location("doxygen_filter", ROOT / "docs/doxygen_filter.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    filtered: Callable[[str], str] = module.filtered
    return filtered


def without_comments(code: str) -> str:
    text = r'"(?:\\.|[^"\\\n])*"'
    code = re.sub(rf"({text})|//[^\n]*|/\*.*?\*/", lambda m: m[1] or "", code, flags=re.S)
    return " ".join(code.split())


@pytest.mark.parametrize("header", sorted(HEADERS.rglob("*.h*")), ids=lambda path: path.name)
def test_the_filter_changes_comments_alone(header: Path) -> None:
    code = text_of(header)
    assert without_comments(load_filter()(code)) == without_comments(code)


FILTERED = {
    "above a declaration": ("// One.\nint f();\n", "/// One.\nint f();\n"),
    "several lines": ("// One,\n// two.\nint f();\n", "/// One,\n/// two.\nint f();\n"),
    "behind a member": ("struct A {\n    int a;  // one\n};\n", "struct A {\n    int a;  ///< one\n};\n"),
    "in C": ("/* One. */\nint f(void);\n", "/** One. */\nint f(void);\n"),
    "behind a constant": ("enum {\n    A, /* one */\n    B\n};\n", "enum {\n    A, /**< one */\n    B\n};\n"),
    "of nothing": ("// One.\n\nint f();\n", "// One.\n\nint f();\n"),
    "in a body": ("int f() {\n    // One.\n    int a;  // two\n}\n", "int f() {\n    // One.\n    int a;  // two\n}\n"),
    "after a body": ("int f() {\n}\n// One.\nint g();\n", "int f() {\n}\n/// One.\nint g();\n"),
    "at a body": ("int f() {  // one\n}\n", "/// one\nint f() {  // one\n}\n"),
    "an enum": ("enum class A { b, c };  // one\n", "/// one\nenum class A { b, c };  // one\n"),
    "of another tool": ("int f();  // NOLINT: one\n", "int f();  // NOLINT: one\n"),
    "a parameter": ("// One. a: two.\nint f(int a);\n", "/// One. \n///@param a two.\nint f(int a);\n"),
    "no parameter": ("// One: two.\nint f(int a);\n", "/// One: two.\nint f(int a);\n"),
    "of a template": (
        "// T: two.\ntemplate <class T>\nint f();\n",
        "/// \n///@tparam T two.\ntemplate <class T>\nint f();\n",
    ),
    "a tag": ("// a<b>.\nint f();\n", "/// a\\<b\\>.\nint f();\n"),
    "code": ("// One:\n//\n//     f<a>();\nint f();\n", "/// One:\n///\n///     f<a>();\nint f();\n"),
    "text": ('const char* a = "// {";  // one\n', 'const char* a = "// {";  ///< one\n'),
}


@pytest.mark.parametrize("case", FILTERED)
def test_the_filter_reads_comments_as_people_do(case: str) -> None:
    plain, filtered = FILTERED[case]
    assert load_filter()(plain) == filtered


def test_a_section_of_a_class_ends_where_the_next_one_or_the_class_does() -> None:
    plain = (
        "class A {\n    // ---- ones\n\n    int a;\n    // ---- twos: see b\n\n    int b;\nprivate:\n    int c;\n};\n"
    )
    lines = load_filter()(plain).splitlines()
    named = [line.strip() for line in lines if "@" in line]
    assert named == ["/** @name Ones", "@{ */", "/** @} */", "/** @name Twos", "@{ */", "/** @} */"]
    assert lines.index("private:") == len(lines) - 3
