"""What can be proven of the CUDA library without a GPU: what nvcc makes of it, and when the build leaves it out.

The library is built once, by CMake as for a wheel. Its flags are then tried, changed for the worse, on a smaller source
around the same templates, to show that each check finds what it is there for.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

import radam

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "cpp" / "src" / "sweep_cuda.cu"
PACKAGE = Path(radam.__file__).parent

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
LARGEST_LIBRARY = 6_000_000  # bytes
MOST = {"registers": 64, "stack": 0, "spill stores": 0, "spill loads": 0}  # of a kernel
MAY_NEED = {"libstdc++.so.6", "libgcc_s.so.1", "libm.so.6", "libc.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1"}
MAY_NEED |= {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
T = TypeVar("T")
BYTES = {"double": 8, "float": 4, "bf16": 2, "fp16": 2}
PAIRS = [("double", "double"), *((p, g) for p in list(BYTES)[1:] for g in list(BYTES)[1:])]

pytestmark = [
    pytest.mark.skipif(not SOURCE.is_file(), reason="needs the source tree"),
    pytest.mark.skipif(sys.platform != "linux", reason="the CUDA library is looked at on Linux only"),
]


# ---- the tools


def find(name: str) -> str | None:
    """The path of a program: in this environment, on PATH, or in the packages that NVIDIA puts its tools into."""
    spec = importlib.util.find_spec("nvidia")
    packaged = [f"{folder}/cu13/bin" for folder in (spec.submodule_search_locations or [] if spec else [])]
    folders = [str(Path(sys.executable).parent), os.environ["PATH"], *packaged]
    return shutil.which(name, path=os.pathsep.join(folders))


def tool(name: str) -> str:
    path = find(name)
    return path if path is not None else pytest.skip(f"needs {name}")


def output(command: Sequence[str | Path], **more: object) -> str:
    """What a command prints; the test fails if the command does."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **more)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{shlex.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return str(done.stdout + done.stderr)


def configure(
    folder: Path, *settings: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Let CMake look at the source tree, on its own account: nothing is compiled but what CMake tries."""
    command = [
        tool("cmake"),
        "-S",
        str(ROOT),
        "-B",
        str(folder),
        "-G",
        "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
    ]
    command += ["-DRADAM_XSIMD=OFF", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", *settings]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA", "RADAM"))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**clean, **(environment or {})})
    joined = " ".join((done.stdout + done.stderr).split())  # CMake breaks its messages into lines
    return subprocess.CompletedProcess(command, done.returncode, joined, "")


# ---- when the build leaves it out

SAYS_13 = "[ $1 = --version ] && echo 'Cuda compilation tools, release 13.0, V13.0.88' || exit 1"
SAYS_12_4 = "echo 'Cuda compilation tools, release 12.4, V12.4.131'"


@pytest.mark.parametrize(
    ("setting", "stand_in", "succeeds", "says"),
    [
        ("AUTO", None, True, "without CUDA: no nvcc was found when it was built"),
        ("AUTO", SAYS_12_4, True, "without CUDA: nvcc 12.4 was found when it was built, and 13.0 is needed"),
        ("AUTO", "exit 1", True, "without CUDA: the nvcc found when it was built is not NVIDIA's, or does not run"),
        ("AUTO", SAYS_13, True, "without CUDA: the nvcc found when it was built could not compile"),
        ("ON", None, False, "RADAM_CUDA=ON, but no nvcc was found. Put nvcc of CUDA 13.0 or newer on PATH"),
        ("ON", SAYS_12_4, False, "RADAM_CUDA=ON, but nvcc 12.4 was found, and 13.0 is needed. Put nvcc"),
        ("OFF", SAYS_13, True, "without CUDA: RADAM_CUDA=OFF"),
        ("perhaps", None, False, "RADAM_CUDA is 'perhaps', and must be AUTO, ON or OFF"),
    ],
)
def test_the_build_says_why_it_leaves_cuda_out(
    tmp_path: Path, setting: str, stand_in: str | None, succeeds: bool, says: str
) -> None:
    folders = [folder for folder in os.environ["PATH"].split(os.pathsep) if not (Path(folder) / "nvcc").is_file()]
    if stand_in is not None:
        nvcc = tmp_path / "nvcc"
        nvcc.write_text(f"#!/bin/sh\n{stand_in}\n", encoding="utf-8")
        nvcc.chmod(0o755)
        folders.insert(0, str(tmp_path))
    path = os.pathsep.join(folders)
    if shutil.which("c++", path=path) is None:
        pytest.skip("needs a C++ compiler, in another folder than nvcc")
    done = configure(tmp_path / "build", f"-DRADAM_CUDA={setting}", environment={"PATH": path})
    assert says in done.stdout
    assert (done.returncode == 0) == succeeds
    assert not list(tmp_path.glob("build/CMakeFiles/*/CMakeCUDACompiler.cmake"))
    assert ("Looking for a CUDA compiler" in done.stdout) == ("could not compile" in says)


# ---- what is read from what nvcc makes


def kernels_and_resources(report: str) -> dict[str, dict[str, dict[str, int]]]:
    """By architecture and kernel: registers, stack and spills, as ptxas -v reports them. No line may be unknown."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    kernel: dict[str, int] | None = None
    for line in report.splitlines():
        if match := re.fullmatch(r"ptxas info    : Compiling entry function '(\w+)' for '(sm_\w+)'", line):
            name, kernel = match[1], {}
            assert found.setdefault(match[2], {}).setdefault(name, kernel) is kernel, f"{line}: twice"
        elif match := re.fullmatch(r"ptxas info    : Function properties for (\w+)", line):
            assert match[1] == name, f"{line}: a function that is not inlined"
        elif match := re.fullmatch(
            r" +(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            assert kernel is not None
            kernel.update(zip(("stack", "spill stores", "spill loads"), map(int, match.groups())))
        elif match := re.match(r"ptxas info    : Used (\d+) registers", line):
            assert kernel is not None
            kernel["registers"] = int(match[1])
        else:
            assert not line.startswith("ptxas") or re.match(
                r"ptxas info    : (\d+ bytes gmem|Compile time = )", line
            ), line
    return found


def faults_in_resources(report: str, kernels: Mapping[str, set[str]]) -> list[str]:
    """What is missing from a report, or too much, where these kernels were compiled for these architectures."""
    found = kernels_and_resources(report)
    faults = []
    for architecture in sorted({*kernels, *found}):
        expected, reported = kernels.get(architecture, set()), found.get(architecture, {})
        for name in sorted(expected | set(reported)):
            resources = reported.get(name, {})
            if name not in expected or set(resources) != set(MOST):
                faults.append(f"{architecture} {name}: no kernel of the library, or figures are missing: {resources}")
            faults += [f"{architecture} {name}: {n} {what}" for what, n in resources.items() if n > MOST[what]]
    return faults


def entries_and_operations(ptx: str) -> dict[str, Counter[str]]:
    """The operations on floating-point numbers of each kernel in a PTX file."""
    kernels: dict[str, Counter[str]] = {}
    operations: Counter[str] = Counter()
    for line in ptx.splitlines():
        if match := re.match(r"(?:\.visible )?\.(?:entry|func)\b.*?(\w+)\(", line):
            operations = kernels.setdefault(match[1], Counter())
        elif match := re.match(
            r"\s*(?:\{\s*)?(?:@!?%\w+\s+)?([a-z]\w*(?:\.\w+)*\.(?:b?f16|tf32|f32|f64)(?:x2)?\b[.\w]*)", line
        ):
            operations[match[1]] += 1
    return kernels


# The operations whose result IEEE 754 gives, the same on every machine; a bare add or mul may be contracted to an fma.
EXACT = re.compile(
    r"(?:(?:fma|add|sub|mul|div|sqrt|rcp)\.rn|(?:abs|neg|selp|mov)|setp\.\w+|(?:ld|st)(?:\.(?:global|shared|param|v2|v4))*"
    r"|atom(?:\.\w+)*\.add)\.f(?:32|64)|cvt\.f64\.f32|cvt\.rn\.f32\.f64|cvt\.rn\.f64\.[su]\d+|cvt\.rzi\.[su]\d+\.f64"
)
THE_LAWS = {f"{name}.rn" for name in ("fma", "add", "mul", "div", "sqrt")}


def faults_in_operations(operations: Mapping[str, int], types: Sequence[str]) -> list[str]:
    """What is not exact, and what the law needs and is not there."""
    inexact = [name for name in operations if not EXACT.fullmatch(name)]
    return inexact + [f"no {name}.{kind}" for kind in types for name in THE_LAWS if f"{name}.{kind}" not in operations]


def accesses(sass: str, bits: int = 128) -> dict[str, dict[str, Counter[str]]]:
    """By architecture and kernel: how often global memory is read or written by so much at once."""
    found: dict[str, dict[str, Counter[str]]] = {}
    for line in sass.splitlines():
        if match := re.match(r"\s+code for (sm_\w+)", line):
            architecture = found.setdefault(match[1], {})
        elif match := re.match(r"\s+Function : (\w+)", line):
            kernel = architecture.setdefault(match[1], Counter())
        elif match := re.search(rf"\b(LDG|STG)\.E\b(?:\.\w+)*?\.{bits}\b", line):
            kernel[match[1]] += 1
    return found


def accesses_of_pair(param: str, grad: str) -> Counter[str]:
    """How often a step reads and writes 16 bytes, where each thread takes what fills them in the narrower dtype."""
    width = 16 // min(BYTES[param], BYTES[grad])
    p, g, moment = (width * BYTES[dtype] // 16 for dtype in (param, grad, "double" if param == "double" else "float"))
    return Counter(LDG=p + g + 3 * moment, STG=p + 3 * moment)


def faults_in_accesses(found: Mapping[str, int], expected: Mapping[str, int]) -> list[str]:
    return [
        f"{found.get(name, 0)} {name}.E.128 of {least}"
        for name, least in expected.items()
        if found.get(name, 0) < least
    ]


def of_kernel(name: str, found: Mapping[str, T]) -> list[T]:
    """What was found of one kernel, by its mangled names: a template has several."""
    return [value for mangled, value in found.items() if re.search(rf"\d{name}(?:I|E|v|P)", mangled)]


def exported(library: Path) -> set[str]:
    return {
        line.split()[-1].split("@")[0] for line in output([tool("nm"), "-D", "--defined-only", library]).splitlines()
    }


def needed(library: Path) -> set[str]:
    return set(re.findall(r"\(NEEDED\).*\[(.*)\]", output([tool("readelf"), "-d", library])))


def take_apart(what: str, library: Path) -> str:
    cuobjdump, nvdisasm = tool("cuobjdump"), tool("nvdisasm")
    path = os.pathsep.join([str(Path(nvdisasm).parent), os.environ["PATH"]])  # cuobjdump looks for it there
    return output([cuobjdump, what, library], env={**os.environ, "PATH": path})


# ---- one build of the library


@dataclasses.dataclass(frozen=True)
class Built:
    folder: Path
    library: Path
    report: str  # all that nvcc and ptxas said
    ptx: dict[str, str]  # by architecture, as sm_
    command: list[str]  # compiles the source


@pytest.fixture(scope="module")
def nvcc() -> str:
    path = tool("nvcc")
    release = re.search(r"release (\d+\.\d+)", output([path, "--version"]))
    if release is None or float(release[1]) < 13:
        pytest.skip("needs nvcc 13.0 or newer")
    return path


@pytest.fixture(scope="module")
def built(nvcc: str, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("cuda_build")
    kept = folder / "kept"
    kept.mkdir()
    strict = f"-Werror=all-warnings -Xcompiler=-Wall,-Wextra -Xptxas=-v --keep --keep-dir={kept}"
    configured = configure(folder, f"-DCMAKE_CUDA_FLAGS={strict}", environment={"CUDACXX": nvcc})
    assert configured.returncode == 0, configured.stdout
    assert "radam: CUDA by nvcc" in configured.stdout  # RADAM_CUDA is AUTO
    report = output([tool("cmake"), "--build", folder, "--target", "radam_cuda"])
    commands = json.loads((folder / "compile_commands.json").read_text(encoding="utf-8"))
    (command,) = (shlex.split(entry["command"]) for entry in commands if entry["file"] == str(SOURCE))
    ptx = {
        path.suffixes[0].replace(".compute", "sm"): path.read_text(encoding="utf-8")
        for path in kept.glob(f"{SOURCE.stem}.compute_*.ptx")
    }
    return Built(folder, folder / "cpp" / "libradam_cuda.so", report, ptx, command)


@pytest.fixture(params=["built", "installed"])
def library(request: pytest.FixtureRequest, built: Built) -> Path:
    """The library as just built, and the one in the installed package."""
    if request.param == "built":
        return built.library
    installed = PACKAGE / built.library.name
    return installed if installed.is_file() else pytest.skip("the installed radam is built without CUDA")


def test_it_compiles_for_every_architecture_without_a_warning(built: Built) -> None:
    assert "warning" not in built.report
    assert sorted(built.ptx) == sorted(ARCHITECTURES)


def test_no_kernel_takes_more_than_64_registers_spills_or_has_a_stack(built: Built) -> None:
    kernels = {architecture: set(entries_and_operations(ptx)) for architecture, ptx in built.ptx.items()}
    declared = re.findall(
        r"__global__ void (?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(", SOURCE.read_text(encoding="utf-8")
    )
    assert len(declared) == SOURCE.read_text(encoding="utf-8").count("__global__") > 0
    assert all(any(name in kernel for kernel in names) for name in declared for names in kernels.values())
    assert not faults_in_resources(built.report, kernels)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_operation_is_an_exactly_rounded_one(built: Built, architecture: str) -> None:
    kernels = entries_and_operations(built.ptx[architecture])
    assert not faults_in_operations(sum(kernels.values(), Counter()), ["f32", "f64"])
    for name in ("step_kernel", "staged_step_kernel"):
        steps = of_kernel(name, kernels)
        assert steps, name
        assert not [fault for operations in steps for fault in faults_in_operations(operations, ["f32", "f64"])]


def test_a_step_of_every_dtype_pair_reads_and_writes_by_16_bytes(built: Built) -> None:
    found = accesses(take_apart("-sass", built.library))
    assert sorted(found) == sorted(ARCHITECTURES)
    expected = sum((accesses_of_pair(*pair) for pair in PAIRS), Counter())
    for architecture, kernels in found.items():
        steps = of_kernel("step_kernel", kernels)
        assert steps, architecture
        assert not [fault for counts in steps for fault in faults_in_accesses(counts, expected)], architecture


# What a step of staged parameters reads and writes at once, by the bits of four elements: of float32, a parameter, its
# master, the gradient and three moments; of 16 bits, a parameter that is rounded or split, its remainder, the gradient
# in two dtypes and three moments. (Codes are words, as many other things are.)
FOURS = {128: Counter(LDG=6, STG=5), 64: Counter(LDG=8, STG=6)}


def test_a_staged_step_reads_and_writes_four_elements_at_once(built: Built) -> None:
    sass = take_apart("-sass", built.library)
    for bits, expected in FOURS.items():
        found = accesses(sass, bits)
        assert sorted(found) == sorted(ARCHITECTURES)
        for architecture, kernels in found.items():
            steps = of_kernel("staged_step_kernel", kernels)
            assert steps, architecture
            assert not [fault for counts in steps for fault in faults_in_accesses(counts, expected)], architecture


def test_it_exports_one_function_and_needs_no_cuda_library(library: Path) -> None:
    assert exported(library) == {"radam_cuda_library"}
    assert needed(library) <= MAY_NEED


def test_it_is_at_most_6_mb(library: Path) -> None:
    assert library.stat().st_size <= LARGEST_LIBRARY


def test_it_holds_code_for_seven_architectures_and_ptx_for_later_ones(library: Path) -> None:
    assert Counter(re.findall(r"ELF file +\d+: .*\.(sm_\w+)\.cubin", take_apart("-lelf", library))) == Counter(
        ARCHITECTURES
    )
    assert re.findall(r"PTX file +\d+: .*\.(sm_\w+)\.ptx", take_apart("-lptx", library)) == ["sm_90"]


# ---- the element loops alone, one kernel for each dtype pair, and a thread's part of a staged block


def probe(folder: Path) -> Path:
    """A source with what visits elements, and nothing around it."""
    kernels = [
        f"""
extern "C" __global__ void __launch_bounds__(256, 4) step_{p}_{g}(const Part* part, const ScheduledStep* step) {{
    step_part<{p}, {g}>(*part, *step, static_cast<int>(threadIdx.x), 256);
}}
extern "C" __global__ void __launch_bounds__(256, 4) finite_{p}_{g}(const Part* part, bool* out) {{
    if (!part_is_finite<{p}, {g}>(*part, static_cast<int>(threadIdx.x), 256)) *out = false;
}}"""
        for p, g in PAIRS
    ]
    kernels += [
        """
extern "C" __global__ void __launch_bounds__(256, 4) staged_float(const StagedPart* part, const ScheduledStep* step,
                                                                  const WarpScratch* own) {
    const Place place = place_of(*part, static_cast<int>(blockIdx.x), static_cast<int>(threadIdx.x));
    Lane lane;
    step_lane(*part, *step, place, lane);
    keep_lane(*part, *step, *own, own->moments[0], place, lane);
}"""
    ]
    path = folder / "probe.cu"
    text = '#include "cuda_staged.hpp"\nusing namespace radam;\nusing namespace radam::cuda;\n' + "".join(kernels)
    path.write_text(text, encoding="utf-8")
    return path


def compiled(built: Built, source: Path, kind: str, replaced: Mapping[str, str], tree: Path = ROOT) -> tuple[str, Path]:
    """Compile for sm_90 as the build does, but for the flags replaced; return what nvcc said and what it wrote."""
    dropped = ("--keep", "--generate-code", "-Werror", "--threads")
    flags = [flag for flag in built.command[1 : built.command.index("-x")] if not flag.startswith(dropped)]
    assert not set(replaced) - set(flags)
    changed = [replaced.get(flag, flag).replace(str(ROOT), str(tree)) for flag in flags]
    changed = [flag for flag in changed if flag]
    out = source.with_suffix(f".{kind}")
    what: list[str | Path] = ["-arch=sm_90", f"-I{tree / 'cpp' / 'src'}", f"-{kind}", source, "-o", out]
    return output([built.command[0], *changed, *what]), out


@pytest.fixture(scope="module")
def probed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The probe's PTX and its SASS."""
    source = probe(tmp_path_factory.mktemp("probe"))
    _, ptx = compiled(built, source, "ptx", {})
    _, cubin = compiled(built, source, "cubin", {})
    return ptx.read_text(encoding="utf-8"), take_apart("-sass", cubin)


def doubles(ptx: str) -> list[str]:
    """Operations on doubles where numbers are computed in float32."""
    kernels = entries_and_operations(ptx)
    assert set(kernels) == {f"{loop}_{p}_{g}" for loop in ("step", "finite") for p, g in PAIRS} | {"staged_float"}
    return [
        f"{name}: {operation}"
        for name, operations in kernels.items()
        for operation in operations
        if "f64" in operation and "double" not in name
    ]


def faults_in_steps(sass: str) -> list[str]:
    kernels = accesses(sass)["sm_90"]
    faults = (
        (pair, faults_in_accesses(kernels["step_{}_{}".format(*pair)], accesses_of_pair(*pair))) for pair in PAIRS
    )
    return [f"{pair}: {fault}" for pair, found in faults for fault in found]


def test_no_double_is_in_the_path_of_an_element(probed: tuple[str, str]) -> None:
    assert not doubles(probed[0])


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_the_loop_of_a_pair_is_exact_and_goes_by_16_bytes(probed: tuple[str, str], pair: tuple[str, str]) -> None:
    ptx, sass = probed
    name = "step_{}_{}".format(*pair)
    assert not faults_in_operations(entries_and_operations(ptx)[name], ["f64" if pair[0] == "double" else "f32"])
    assert accesses(sass)["sm_90"][name] == accesses_of_pair(*pair)


# ---- fast math is refused


def test_the_build_refuses_fast_math(nvcc: str, tmp_path: Path) -> None:
    done = configure(tmp_path, "-DRADAM_CUDA=ON", environment={"CUDACXX": nvcc, "CUDAFLAGS": "-use_fast_math"})
    assert done.returncode != 0
    assert "-use_fast_math would break" in done.stdout


def test_the_source_refuses_fast_math_of_the_host_compiler(built: Built, tmp_path: Path) -> None:
    # nvcc's own -use_fast_math defines nothing that a source could ask for.
    with pytest.raises(AssertionError, match="-ffast-math would break"):
        compiled(built, probe(tmp_path), "ptx", {"-fmad=false": "-Xcompiler=-ffast-math"})


# ---- the checks find what they are there for


@pytest.mark.parametrize(
    ("replaced", "found"),
    [
        ({"-fmad=false": "-fmad=true"}, {"add.f32", "mul.f32", "add.f64", "mul.f64"}),
        ({"-prec-div=true": "-prec-div=false"}, {"div.full.f32"}),
        ({"-prec-sqrt=true": "-prec-sqrt=false"}, {"sqrt.approx.f32"}),
        ({"-ftz=false": "-ftz=true"}, {"fma.rn.ftz.f32", "setp.geu.ftz.f32"}),
        (
            {"-fmad=false": "-use_fast_math", "-prec-div=true": "", "-prec-sqrt=true": "", "-ftz=false": ""},
            {"div.approx.ftz.f32", "sqrt.approx.ftz.f32", "mul.ftz.f32"},
        ),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else "",
)
def test_a_flag_that_changes_bits_is_found(
    built: Built, tmp_path: Path, replaced: dict[str, str], found: set[str]
) -> None:
    _, ptx = compiled(built, probe(tmp_path), "ptx", replaced)
    kernels = entries_and_operations(ptx.read_text(encoding="utf-8"))
    assert set(faults_in_operations(sum(kernels.values(), Counter()), ["f32", "f64"])) >= found


def test_flags_of_the_environment_cannot_undo_those_of_the_build(built: Built, tmp_path: Path) -> None:
    first = next(flag for flag in built.command if flag.startswith("-Xptxas"))  # where CMAKE_CUDA_FLAGS are
    _, ptx = compiled(built, probe(tmp_path), "ptx", {first: "-use_fast_math"})
    kernels = entries_and_operations(ptx.read_text(encoding="utf-8"))
    assert not faults_in_operations(sum(kernels.values(), Counter()), ["f32", "f64"])


def changed_tree(folder: Path, path: str, old: str, new: str) -> Path:
    """A copy of the C++ sources with one place changed."""
    shutil.copytree(ROOT / "cpp", folder / "cpp", ignore=shutil.ignore_patterns("tests"))
    text = (ROOT / path).read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path} holds {old!r} {text.count(old)} times: this test must follow it"
    (folder / path).write_text(text.replace(old, new), encoding="utf-8")
    return folder


def test_a_double_in_the_law_is_found(built: Built, tmp_path: Path) -> None:
    tree = changed_tree(tmp_path, "cpp/include/radam/update.hpp", "g = c.grad_scale * g;", "g = V(0.1 * g);")
    _, ptx = compiled(built, probe(tmp_path), "ptx", {}, tree)
    found = doubles(ptx.read_text(encoding="utf-8"))
    narrow = {f"step_{p}_{g}" for p, g in PAIRS if p != "double"}
    assert {fault.split(":")[0] for fault in found} == narrow | {"staged_float"}


def test_an_access_of_8_bytes_is_found(built: Built, tmp_path: Path) -> None:
    tree = changed_tree(tmp_path, "cpp/src/cuda_sweep.hpp", "struct alignas(16) Sixteen", "struct alignas(8) Sixteen")
    _, cubin = compiled(built, probe(tmp_path), "cubin", {}, tree)
    assert len(faults_in_steps(take_apart("-sass", cubin))) == 2 * len(PAIRS)


@pytest.mark.parametrize(
    ("blocks", "found"),
    [(8, {"spill stores", "spill loads", "stack"}), (1, {"registers"})],
    ids=["32 registers", "255 registers"],
)
def test_a_spill_and_a_register_too_many_are_found(built: Built, tmp_path: Path, blocks: int, found: set[str]) -> None:
    path = SOURCE.relative_to(ROOT)
    four = "blocks_per_multiprocessor = 4;"
    tree = changed_tree(tmp_path, str(path), four, four.replace("4", str(blocks)))
    report, _ = compiled(built, tree / path, "cubin", {}, tree)
    kernels = kernels_and_resources(report)
    faults = faults_in_resources(report, {architecture: set(names) for architecture, names in kernels.items()})
    assert {re.sub(r".*: \d+ ", "", fault) for fault in faults} == found


def test_a_report_without_a_kernel_an_architecture_or_a_figure_is_refused(built: Built) -> None:
    kernels = {architecture: set(names) for architecture, names in kernels_and_resources(built.report).items()}
    blocks = re.split(r"(?=^ptxas info    : Compiling entry)", built.report, flags=re.MULTILINE)
    of_sm_86 = [block for block in blocks if "'sm_86'" in block]
    lines = of_sm_86[0].splitlines(keepends=True)
    spills, registers = (next(line for line in lines if word in line) for word in ("spill", "registers"))
    without = {
        "a kernel": built.report.replace(of_sm_86[0], ""),
        "an architecture": "".join(block for block in blocks if block not in of_sm_86),
        "its spills": built.report.replace(of_sm_86[0], of_sm_86[0].replace(spills, "")),
        "its registers": built.report.replace(of_sm_86[0], of_sm_86[0].replace(registers, "")),
    }
    assert not faults_in_resources(built.report, kernels)
    for what, report in without.items():
        assert any("sm_86" in fault for fault in faults_in_resources(report, kernels)), what
    assert faults_in_resources(built.report, {**kernels, "sm_86": set()})


def test_a_library_that_exports_more_or_needs_another_is_found(built: Built, tmp_path: Path) -> None:
    stand_in, wrong = tmp_path / "libcudart.so", tmp_path / "wrong.so"
    output([tool("g++"), "-shared", "-x", "c++", "/dev/null", "-Wl,-soname,libcudart.so.13", "-o", stand_in])
    link = output([tool("ninja"), "-C", built.folder, "-t", "commands", "radam_cuda"]).splitlines()[-1]
    link = re.sub(r"-Wl,--version-script=\S+", f"-Wl,--no-as-needed {stand_in}", link)
    output(["sh", "-c", link.replace("-o cpp/libradam_cuda.so", f"-o {wrong}")], cwd=built.folder)
    assert exported(wrong) > {"radam_cuda_library"}
    assert needed(wrong) - MAY_NEED == {"libcudart.so.13"}
