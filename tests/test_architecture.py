"""Who may know whom: every include and import of the source tree goes in the one direction of docs/design.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEADERS = ROOT / "cpp" / "include" / "radam"
PACKAGE = ROOT / "python" / "radam"

# What each header stands on, of radam; it may include that, and whatever that stands on.
STANDS_ON: dict[str, set[str]] = {
    "arithmetic": set(),
    "update": {"arithmetic"},
    "layout": set(),
    "float_mode": set(),
    "executor": set(),
    "state_memory": set(),
    "utf8": set(),
    "saved/json": {"utf8"},
    "saved/files": set(),
    "schedule": {"update"},
    "dtype": {"update"},
    "random": {"update"},
    "norm": {"update"},
    "lanes": {"dtype"},
    "codec": {"dtype", "random"},
    "slot": {"dtype", "schedule"},
    "conventions": {"schedule"},
    "precision": {"codec", "slot"},
    "blocks": {"codec", "lanes", "slot"},
    "staged": {"blocks"},
    "tiles": {"executor", "float_mode", "norm", "slot"},
    "sweep": {"norm", "staged", "tiles"},
    "clipping": {"tiles"},
    "states": {"precision", "state_memory"},
    "parameters": {"states", "tiles", "utf8"},
    "optimizer": {"clipping", "conventions", "parameters"},
    "radam": {"optimizer", "sweep"},
    "dispatch": {"optimizer"},
    "cuda": {"slot"},
    "thread_pool": {"executor"},
    "overlaps": {"layout"},
    "saved/safetensors": {"saved/files", "saved/json"},
    "saved/moments": {"codec", "layout"},
    "saved/header": {"optimizer", "saved/json"},
    "saved": {"float_mode", "saved/header", "saved/moments", "saved/safetensors"},
    "torch/options": {"conventions"},
    "torch/tensors": {"layout", "precision", "torch/options"},
    "torch/call": {"clipping", "overlaps", "torch/tensors"},
    "torch/saved": {"torch/call"},
    "torch": {"dispatch", "sweep", "torch/saved"},
}


def everything_under(header: str) -> set[str]:
    return STANDS_ON[header].union(*(everything_under(other) for other in STANDS_ON[header]))


# Beside the C++ standard library's headers, which have no suffix: what a header may take of a system or a library.
OTHERS = {
    "arithmetic": {"immintrin.h"},
    "float_mode": {"intrin.h", "xmmintrin.h"},
    "lanes": {"xsimd/xsimd.hpp", "intrin.h"},
    "state_memory": {"sys/mman.h"},
    "thread_pool": {"pthread.h", "sched.h", "signal.h", "unistd.h"},
    "saved/files": {"fcntl.h", "io.h", "share.h", "sys/stat.h", "unistd.h"},
}
LIBTORCH = re.compile(r"(ATen|c10|torch)/")
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


def name_of(header: Path) -> str:
    return header.relative_to(HEADERS).with_suffix("").as_posix()


def own(path: Path) -> set[str]:
    """The headers of radam that a file includes, by name."""
    places = {HEADERS / name.removeprefix("radam/") for name in includes(path)}
    places |= {(path.parent / name).resolve() for name in includes(path)}
    return {name_of(place) for place in places if place.is_file() and place.is_relative_to(HEADERS)}


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
    assert {name_of(p) for p in HEADERS.rglob("*.hpp")} == set(STANDS_ON)
    assert {p.name for p in HEADERS.rglob("*") if p.suffix not in (".hpp", "")} == {"radam.h"}


@pytest.mark.parametrize("header", STANDS_ON)
def test_a_header_includes_only_what_it_stands_on(header: str) -> None:
    path = HEADERS / f"{header}.hpp"
    assert own(path) <= everything_under(header)
    foreign = {name for name in includes(path) if "." in name and not name.endswith(".hpp")} - OTHERS.get(header, set())
    foreign |= {name for name in includes(path) if name.startswith("xsimd")} - OTHERS.get(header, set())
    if header.partition("/")[0] == "torch":
        foreign = {name for name in foreign if not LIBTORCH.match(name)}
    assert not foreign


def test_no_header_stands_on_itself() -> None:
    for header in STANDS_ON:  # a circle would not end
        assert header not in everything_under(header)


def test_the_c_interface_includes_only_what_c_has() -> None:
    assert set(includes(HEADERS / "radam.h")) <= {"stddef.h", "stdint.h"}


def test_the_law_includes_nothing_but_its_arithmetic() -> None:
    assert includes(HEADERS / "update.hpp") == ["arithmetic.hpp"]
    assert includes(HEADERS / "arithmetic.hpp") == ["cmath", "cstdint", "cstring", "immintrin.h"]


def test_one_pair_of_files_alone_knows_cuda() -> None:
    everything = sources(ROOT / "cpp", ".hpp", ".cpp", ".cu", ".cuh") + sources(ROOT / "python", ".hpp", ".cpp")
    assert [p.name for p in everything if "cuda_runtime.h" in includes(p)] == ["cuda_buffers.cuh"]
    assert [p.name for p in everything if "cuda_buffers.cuh" in includes(p)] == ["sweep_cuda.cu"]


@pytest.mark.parametrize(
    "path",
    [p for p in sources(ROOT / "cpp", ".hpp", ".h", ".cpp") if "torch" not in str(p) and "tests" not in p.parts],
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


def test_the_thread_pool_knows_nothing_of_steps() -> None:
    for name in ("parallel.hpp", "parallel.cpp"):
        assert own(ROOT / "cpp" / "src" / name) <= {"executor", "thread_pool"}


def test_the_bindings_reach_the_core_through_its_headers() -> None:
    for path in sources(ROOT / "python" / "bindings", ".hpp", ".cpp"):
        known = {"codec", "cuda", "dispatch", "dtype", "float_mode", "layout", "norm", "overlaps", "schedule", "slot"}
        assert own(path) <= known | {"conventions"}
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
