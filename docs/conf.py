"""The documentation site. The source folder is the top of the repository, so that links work there and here alike.

sphinx-build -n -W --keep-going -c docs -b html . build/docs/html

It needs radam installed, and PyTorch, Paddle and JAX beside it, whose front ends have docstrings to be read. The pages
on C++ and C need Doxygen as well; without it they say so, and so does the build. Nothing is fetched from anywhere.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import inspect

import radam

ROOT = Path(__file__).resolve().parents[1]
DOXYGEN = ROOT / "build/docs/doxygen"
HAS_DOXYGEN = shutil.which("doxygen") is not None

project = "radam"
author = "radam contributors"
copyright = "radam contributors, Apache-2.0"
version = release = radam.__version__

extensions = [
    "breathe",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]

# ---- pages

root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/*.md",
    "docs/api/*.md",
    "bench/README.md",
    "bench/results/*.md",
    "examples/README.md",
    "examples/cpp/README.md",
]
smartquotes_action = "D"  # dashes; what is quoted is to be typed
myst_heading_anchors = 4  # as the forge makes them, for links such as README.md#measured-speed


def give_title(app: Sphinx, name: str, source: list[str]) -> None:
    """Begin a report, which its benchmark writes without a title, with its name."""
    if name.startswith("bench/results/") and not source[0].lstrip().startswith("# "):
        source[0] = f"# {name.rpartition('/')[2].replace('-', ' ').capitalize()}\n\n{source[0]}"


def leave_out_cpp(app: Sphinx, name: str, source: list[str]) -> None:
    """Where there is no Doxygen, say so in the place of what it would show."""
    if not HAS_DOXYGEN and name in ("docs/api/cpp", "docs/api/c"):
        shown = r"```\{(?:doxygen\w+|cpp:var)\} ([^\n]+).*?```"
        source[0] = re.sub(shown, r"`\1`: left out, there was no Doxygen.", source[0], flags=re.S)


def show_opening(app: Sphinx, name: str, source: list[str]) -> None:
    """Put the text that radam.h begins with where the page on it wants it."""
    comment = (ROOT / "cpp/include/radam/radam.h").read_text(encoding="utf-8").partition("*/")[0]
    text = textwrap.dedent("   " + comment.removeprefix("/* "))
    source[0] = source[0].replace("<!-- the opening comment of radam.h -->", text)


def leave_out_note(app: Sphinx, name: str, source: list[str]) -> None:
    """Drop what a page of the reference says to who reads its source: here it is filled."""
    if name.startswith("docs/api/"):
        source[0] = re.sub(r"^\*The site fills this page .*?\*\n\n", "", source[0], flags=re.M | re.S)


def link_pages(app: Sphinx, kind: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Make links of the pages that docstrings name by their path."""
    lines[:] = [re.sub(r"docs/(\w+)\.md", r":doc:`/docs/\1`", line) for line in lines]


def give_signature(
    app: Sphinx, kind: str, name: str, thing: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Return the signature of a class's own __init__ where its base class, which is mocked, would hide it."""
    if kind != "class" or not name.startswith("radam.mindspore."):
        return signature, returned
    own = inspect.signature(thing.__init__, bound_method=True)
    return inspect.stringify_signature(own, show_return_annotation=False, unqualified_typehints=True), None


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", give_title)
    app.connect("source-read", leave_out_cpp)
    app.connect("source-read", show_opening)
    app.connect("source-read", leave_out_note)
    app.connect("autodoc-process-docstring", link_pages)
    app.connect("autodoc-process-signature", give_signature)


# ---- Python: from docstrings. MindSpore alone is mocked, since it needs an older NumPy than the others. Lucid's front
# end imports no Lucid.

autodoc_mock_imports = ["mindspore"]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_type_aliases = {name: name for name in ("jax.typing.ArrayLike", "optax.GradientTransformation")}
autodoc_inherit_docstrings = False
autoclass_content = "class"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

# ---- C++ and C: from the headers' comments, see doxygen_filter.py

breathe_projects = {"radam": str(DOXYGEN / "xml")}
breathe_default_project = "radam"
breathe_domain_by_extension = {"h": "c"}
breathe_show_include = False
cpp_maximum_signature_line_length = 100
c_maximum_signature_line_length = 100
if HAS_DOXYGEN:
    DOXYGEN.mkdir(parents=True, exist_ok=True)
    settings = f'@INCLUDE = docs/Doxyfile\nINPUT_FILTER = "\\"{sys.executable}\\" docs/doxygen_filter.py"\n'
    subprocess.run(["doxygen", "-"], cwd=ROOT, input=settings, text=True, check=True)
else:
    # Not as a warning, which -W would make an error of; not as what -q hides.
    print("THE C++ AND C REFERENCE IS LEFT OUT: there is no doxygen (Debian: apt install doxygen)", file=sys.stderr)

# ---- references: -n warns of each that leads nowhere; nothing is suppressed but these

# What lies on other sites is named, not linked: their indexes would have to be fetched.
nitpick_ignore_regex = [
    ("py:(class|exc)", r"(collections|jax|mindspore|numpy|optax|os|paddle|torch)\..*"),
    ("c(pp)?:identifier", r"(std(::.*)?|u?int\d+_t|size_t)"),
    ("cpp:identifier", r"(::)?(at|c10|torch)(::.*)?"),
    ("cpp:identifier", "LossClosure"),  # of torch::optim::Optimizer
]
nitpick_ignore = [
    # Paddle's, as its own docstrings write them
    *(("py:class", name) for name in ("LRScheduler", "L1Decay", "L2Decay", "Tensor")),
    *(("py:class", f"ClipGradBy{what}") for what in ("GlobalNorm", "Norm", "Value")),
    # The namespaces have no page of their own; radam::isa has types that nobody needs to name.
    *(("cpp:identifier", name) for name in ("radam", "radam::dispatched", "radam::torch", "radam::torch::dispatched")),
    *(("cpp:identifier", name) for name in ("isa", "isa::native")),
]

# ---- look

html_theme = "furo"
pygments_style = "default"  # with red and green for changes, unlike the theme's own
pygments_dark_style = "github-dark"  # the theme's own underlines the names of modules
html_title = f"radam {release}"
html_extra_path = ["_top"]  # a page at the top that leads to docs/index.html
html_static_path = ["_static"]
html_css_files = ["radam.css"]
html_copy_source = False
html_show_sphinx = False
copybutton_exclude = ".linenos, .gp, .go"
