"""Who may know whom: every include and import of the source tree goes in the one direction of docs/design.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEADERS = ROOT / "cpp" / "include" / "radam"
PACKAGE = ROOT / "python" / "radam"

# What each header may include of radam, directly or not. Those that stand alone know the standard library only.
MAY_INCLUDE: dict[str, set[str]] = {
    "update": set(),
    "layout": set(),
    "float_mode": set(),
    "schedule": {"update"},
    "dtype": {"update"},
    "lanes": {"update", "dtype"},
    "slot": {"update", "dtype", "schedule"},
    "random": {"update"},
    "norm": {"update"},
    "codec": {"update", "dtype", "random"},
    "blocks": {"update", "dtype", "schedule", "lanes", "slot", "random", "codec"},
    "staged": {"update", "dtype", "schedule", "lanes", "slot", "random", "codec", "blocks"},
    "sweep": {"update", "dtype", "schedule", "lanes", "slot", "random", "codec", "blocks", "staged", "norm"},
    "dispatch": {"update", "dtype", "schedule", "slot"},
    "cuda": {"update", "dtype", "schedule", "slot"},
    "radam": {
        *("update", "dtype", "schedule", "lanes", "slot", "random", "codec", "blocks", "staged", "norm", "sweep"),
    },
}
STANDARD = {
    *(
        "algorithm",
        "atomic",
        "cfenv",
        "cmath",
        "cstddef",
        "cstdint",
        "cstdlib",
        "cstring",
        "deque",
        "initializer_list",
        "limits",
        "memory",
    ),
    *("numeric", "string", "type_traits", "utility", "vector", "xmmintrin.h"),
}
FRONT_ENDS = {"torch", "jax", "paddle", "mindspore", "lucid"}
FRAMEWORKS = {
    *FRONT_ENDS,
    "jaxlib",
    "cupy",
    "ml_dtypes",
    "sklearn",
    "matplotlib",
    "rich",
    "tqdm",
    "scipy",
    "safetensors",
}


def includes(path: Path) -> list[str]:
    found = re.findall(
        r'^[ \t]*#[ \t]*include[ \t]*(?:<([^>]+)>|"([^"]+)")', path.read_text(encoding="utf-8"), re.MULTILINE
    )
    return [angled or quoted for angled, quoted in found]


def own(path: Path) -> set[str]:
    """The headers of radam that a file includes, by stem."""
    names = {name.removeprefix("radam/") for name in includes(path)}
    return {Path(name).stem for name in names if (HEADERS / name).is_file()}


def sources(folder: Path, *suffixes: str) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix in suffixes)


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """The modules that a Python file imports, those of its own package with a leading dot."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.module is None:
                found |= {"." * node.level + alias.name for alias in node.names}
            else:
                found.add("." * node.level + node.module)
    return {name.replace("radam.", ".", 1) if name.startswith("radam.") else name for name in found}


pytestmark = pytest.mark.skipif(not HEADERS.is_dir(), reason="needs the source tree")


def test_every_header_has_its_place_in_the_table() -> None:
    assert {p.stem for p in HEADERS.glob("*.hpp")} == set(MAY_INCLUDE)
    assert {p.suffix for p in HEADERS.iterdir()} == {".hpp"}


@pytest.mark.parametrize("header", MAY_INCLUDE)
def test_a_header_includes_only_what_stands_left_of_it(header: str) -> None:
    path = HEADERS / f"{header}.hpp"
    assert own(path) <= MAY_INCLUDE[header]
    others = {name for name in includes(path) if Path(name).stem not in own(path)}
    allowed = STANDARD | ({"xsimd/xsimd.hpp", "intrin.h"} if header == "lanes" else set())
    assert others <= allowed


def test_the_table_itself_has_one_direction() -> None:
    for header, known in MAY_INCLUDE.items():
        assert header not in known
        assert all(MAY_INCLUDE[other] <= known for other in known)


def test_the_law_includes_nothing_but_cmath() -> None:
    assert includes(HEADERS / "update.hpp") == ["cmath"]


@pytest.mark.parametrize("header", ["layout", "float_mode"])
def test_what_stands_alone_knows_no_other_header(header: str) -> None:
    assert own(HEADERS / f"{header}.hpp") == set()


def test_one_pair_of_files_alone_knows_cuda() -> None:
    everything = sources(ROOT / "cpp", ".hpp", ".cpp", ".cu", ".cuh") + sources(ROOT / "python", ".hpp", ".cpp")
    assert [p.name for p in everything if "cuda_runtime.h" in includes(p)] == ["cuda_buffers.cuh"]
    assert [p.name for p in everything if "cuda_buffers.cuh" in includes(p)] == ["sweep_cuda.cu"]


@pytest.mark.parametrize(
    "path",
    sources(ROOT / "cpp" / "include", ".hpp", ".h") + sources(ROOT / "cpp" / "src", ".hpp", ".cpp"),
    ids=lambda p: p.name,
)
def test_the_core_knows_no_python_binding_or_framework(path: Path) -> None:
    forbidden = re.compile(
        r"python|nanobind|pybind|numpy|dlpack|cuda_|cuda\.h$|cupy|torch|aten|c10|jax|xla", re.IGNORECASE
    )
    # What the kernels share with the host knows no CUDA either.
    own_cuda = {f"cuda_{part}.hpp" for part in ("table", "sweep", "stored", "staged")}
    assert not [name for name in includes(path) if forbidden.search(name) and name not in own_cuda]
    text = re.sub(r"//.*", "", path.read_text(encoding="utf-8"))
    assert not re.search(r"\bPy[A-Z_]\w+|\bnanobind\b|\bDLTensor\b|\bcuda[A-Z]\w+", text)


def test_an_instruction_set_s_object_includes_only_the_sweep() -> None:
    assert includes(ROOT / "cpp" / "src" / "sweep_isa.cpp") == ["radam/sweep.hpp"]


def test_the_thread_pool_knows_nothing_of_radam() -> None:
    for name in ("parallel.hpp", "parallel.cpp"):
        assert own(ROOT / "cpp" / "src" / name) == set()


def test_the_bindings_reach_the_core_through_its_headers() -> None:
    for path in sources(ROOT / "python" / "bindings", ".hpp", ".cpp"):
        assert own(path) <= {"codec", "cuda", "dispatch", "dtype", "float_mode", "layout", "norm", "schedule", "slot"}
        assert not [name for name in includes(path) if "src/" in name or "parallel" in name or "sweep" in name]


MODULES = sources(PACKAGE, ".py")


def front_end(path: Path) -> str | None:
    """The front end that a module belongs to, a file or a folder of its name."""
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return name if name in FRONT_ENDS else None


def label(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_step_is_the_only_importer_of_the_native_core(path: Path) -> None:
    core = {name for name in imports(path) if name.lstrip(".").split(".")[-1] == "_core"}
    assert core == ({"._core"} if path.name == "_step.py" else set())


# What each module may import of the package, at most.
MAY_IMPORT: dict[str, set[str]] = {
    "_step": {"._core"},
    "conventions": {"._step"},
    "precision": {"._step"},
    "clipping": {"._step"},
    "arrays": {"._step", ".precision"},
    "groups": {".arrays"},
    "state": {".arrays", ".groups", ".precision"},
    "saved": {".arrays", ".groups", ".precision", ".state"},
    "state_files": {".arrays", ".precision", ".saved"},
    "hooks": set(),
    "base": {
        *("._step", ".arrays", ".clipping", ".conventions", ".groups", ".hooks", ".precision", ".saved", ".state"),
        ".state_files",
    },
    "optimizer": {".base", ".conventions", ".precision"},
    "memory": {".groups"},
    "_info": {"._step"},
    "_law": set(),
    "__init__": {"._info", "._step", ".conventions", ".memory", ".optimizer"},
    # A front end in a folder: what it has of the package, and, left of it in the folder, of its own.
    "torch/settings": {".._step", "..conventions"},
    "torch/unwrap": {".._step"},
    "torch/amp": set(),
    "torch/clip": {".._step", ".unwrap"},
    "torch/codes": {".._step", "..precision", ".unwrap"},
    "torch/state": {"..precision", ".settings", ".unwrap"},
    "torch/saved": {"..conventions", "..precision", ".codes", ".settings", ".state", ".unwrap"},
    "torch/law_step": {".._law", ".._step", ".settings", ".state", ".unwrap"},
    "torch/run": {
        *(".._step", "..precision", ".amp", ".clip", ".law_step", ".settings", ".state", ".unwrap"),
    },
    "torch/rules": {".run"},
    "torch/op": {"..conventions", "..precision", ".clip", ".run", ".settings"},
    "torch/traced": {
        *("..conventions", "..precision", ".amp", ".clip", ".op", ".run", ".settings", ".state", ".unwrap"),
    },
    "torch/optimizer": {
        *(".._step", "..clipping", "..conventions", "..precision", ".amp", ".clip", ".codes", ".op", ".rules", ".run"),
        *(".saved", ".settings", ".state", ".traced", ".unwrap"),
    },
    "torch/__init__": {".optimizer"},
    "jax/calls": {".._step", "..conventions"},
    "jax/pairs": {"..conventions"},
    "jax/schedule": {".calls", ".pairs"},
    "jax/transform": {".._law", "..conventions", "..groups", ".calls", ".schedule"},
    "jax/law_step": {".._law", ".calls", ".pairs"},
    "jax/native_step": {".calls", ".law_step"},
    "jax/fused": {"..conventions", "..groups", ".calls", ".native_step", ".schedule"},
    "jax/__init__": {".fused", ".transform"},
    "lucid/groups": {"..groups"},
    "lucid/saved": {"..groups", "..precision", ".groups"},
    "lucid/optimizer": {"..base", "..conventions", "..groups", "..precision", "..saved", ".groups", ".saved"},
    "lucid/__init__": {".optimizer"},
    "mindspore/compiled": set(),
    "mindspore/memory": set(),
    "mindspore/optimizer": {".._step", "..conventions", ".compiled", ".memory"},
    "mindspore/__init__": {".optimizer"},
    "paddle/checks": {"..conventions"},
    "paddle/counts": {".._step"},
    "paddle/state": {".._step", "..precision"},
    "paddle/gradients": {".._step"},
    "paddle/ready": {".state"},
    "paddle/saved": {".counts", ".state"},
    "paddle/plan": {".._step", "..conventions", ".gradients", ".state"},
    "paddle/steps": {".._step", ".checks", ".gradients", ".plan", ".ready", ".state"},
    "paddle/optimizer": {".checks", ".gradients", ".saved", ".state", ".steps"},
    "paddle/__init__": {".optimizer"},
}


def test_every_module_of_a_front_end_has_its_place_in_the_table() -> None:
    assert {label(p).removesuffix(".py") for p in MODULES if front_end(p)} <= set(MAY_IMPORT)


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_a_module_imports_only_what_stands_left_of_it(module: str) -> None:
    known = {name for name in imports(PACKAGE / f"{module}.py") if name.startswith(".")}
    assert known <= MAY_IMPORT[module]


@pytest.mark.parametrize("path", [p for p in MODULES if not front_end(p)], ids=label)
def test_nothing_imports_a_framework_when_it_is_imported(path: Path) -> None:
    if path.stem in ("_demo", "_bench"):
        return
    assert not {name.split(".")[0] for name in imports(path, top_level_only=True)} & FRAMEWORKS


@pytest.mark.parametrize("path", [p for p in MODULES if p.stem != "__main__"], ids=lambda p: p.name)
def test_front_ends_and_commands_are_imported_by_none(path: Path) -> None:
    names = imports(path)
    known = {name.removeprefix(".").split(".")[0] for name in names if re.match(r"\.\w", name)}
    known |= {name.removeprefix("..").split(".")[0] for name in names if name.startswith("..")}
    assert not known & (FRONT_ENDS | {"_demo", "_bench", "__main__"})


def test_importing_radam_loads_none_of_its_commands() -> None:
    reached, todo = set(), {"__init__"}
    while todo:
        module = todo.pop()
        reached.add(module)
        known = {
            name.removeprefix(".")
            for name in imports(PACKAGE / f"{module}.py", top_level_only=True)
            if name.startswith(".")
        }
        todo |= {name for name in known if (PACKAGE / f"{name}.py").is_file()} - reached
    assert reached == {
        *("__init__", "_info", "_step", "arrays", "base", "clipping", "conventions", "groups", "hooks", "memory"),
        *("optimizer", "precision", "saved", "state", "state_files"),
    }


def test_no_file_is_named_for_having_no_meaning() -> None:
    empty = {"utils", "util", "common", "helpers", "helper", "misc"}
    assert not [
        p
        for folder in ("cpp", "python", "tests")
        for p in (ROOT / folder).rglob("*")
        if p.stem.lower().strip("_") in empty
    ]
