"""What the environment decides, what importing costs, and what a step allocates: each in a process of its own."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import sysconfig
from typing import Any

import pytest

import radam

STEPS = """
import hashlib, sys
import numpy as np, radam
from radam import _core
random = np.random.default_rng(3)
shapes = [(100_003,), (17, 5), (), (64,)]
params = [random.standard_normal(s).astype(t) for s in shapes for t in (np.float32, np.float64, np.float16)]
optimizer = radam.RAdam(params, lr=0.01, weight_decay=0.1, amsgrad=True)
for _ in range(8):
    optimizer.step(grads=[random.standard_normal(p.shape).astype(p.dtype) for p in params])
digest = hashlib.sha256(b"".join(p.tobytes() for p in params)).hexdigest()
print(_core.isa(), radam.get_num_threads(), digest)
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key not in ("RADAM_ISA", "RADAM_NUM_THREADS")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def output(code: str, **environment: str) -> list[str]:
    done = run(code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(scope="module")
def plain() -> list[str]:
    return output(STEPS)


def test_without_a_word_the_best_instruction_set_runs(plain: list[str]) -> None:
    assert plain[0] == radam.isas()[0]
    assert radam.isas()[-1] == "portable"
    assert len(set(radam.isas())) == len(radam.isas())


@pytest.mark.parametrize("isa", radam.isas())
def test_every_instruction_set_can_be_chosen_and_gives_the_same_bits(isa: str, plain: list[str]) -> None:
    assert output(STEPS, RADAM_ISA=isa) == [isa, *plain[1:]]


@pytest.mark.parametrize(
    "isa", ["sse9", "AVX2", "avx2 ", "none", "../avx2", "neon" if "neon" not in radam.isas() else "avx2"]
)
def test_an_instruction_set_that_is_not_here_fails_the_import_and_names_those_that_are(isa: str) -> None:
    done = run("import radam", RADAM_ISA=isa)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "ValueError" in done.stderr
    assert all(word in done.stderr for word in ("RADAM_ISA", isa.strip(), *radam.isas())), last


def test_an_empty_word_is_none(plain: list[str]) -> None:
    assert output(STEPS, RADAM_ISA="", RADAM_NUM_THREADS="") == plain


@pytest.mark.parametrize("count", ["1", "3", "1024"])
def test_the_number_of_threads_can_be_chosen(count: str, plain: list[str]) -> None:
    code = STEPS if count != "1024" else "import radam; print(1, radam.get_num_threads(), 2)"
    assert output(code, RADAM_NUM_THREADS=count)[1] == count
    if count == "3":
        assert output(STEPS, RADAM_NUM_THREADS=count)[2] == plain[2]


@pytest.mark.parametrize("count", ["0", "-1", "1025", "many", "2.5", "4 cores", "99999999999999999999", "0x4", "4 "])
def test_a_number_of_threads_out_of_range_fails_the_import(count: str) -> None:
    done = run("import radam", RADAM_NUM_THREADS=count)
    assert done.returncode != 0
    assert "ValueError" in done.stderr
    assert "RADAM_NUM_THREADS must be a whole number from 1 to 1024" in done.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot bind a process to a core")
def test_by_default_there_are_as_many_threads_as_cores_for_this_process() -> None:
    code = "import radam; print(radam.get_num_threads())"
    assert output("import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); " + code) == ["1"]
    assert output(code) == [str(len(os.sched_getaffinity(0)))]


HEAVY = (
    "torch",
    "jax",
    "jaxlib",
    "paddle",
    "mindspore",
    "lucid",
    "cupy",
    "ml_dtypes",
    "safetensors",
    "sklearn",
    "matplotlib",
    "rich",
    "scipy",
    "importlib.metadata",
    "email",
    "asyncio",
    "multiprocessing",
    "unittest",
    "http",
)


def test_importing_loads_no_framework_and_little_else() -> None:
    code = """
import sys, json
import numpy
before = set(sys.modules)
import radam
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    loaded = json.loads(" ".join(output(code)))
    assert "radam" in loaded
    assert not [name for name in loaded if name.split(".")[0] in HEAVY or name in HEAVY]
    assert not [
        name for name in loaded if name.startswith("radam.") and name.split(".")[1] in ("_demo", "_bench", "__main__")
    ]


def test_stepping_numpy_arrays_loads_no_framework() -> None:
    code = STEPS + "print([m for m in ('torch', 'jax', 'paddle', 'safetensors', 'ml_dtypes') if m in sys.modules])"
    assert output(code)[3:] == ["[]"]


def test_importing_and_stepping_leave_the_floating_point_mode() -> None:
    code = """
import ctypes, ctypes.util
import numpy as np
libm = ctypes.CDLL(ctypes.util.find_library("m"))
def mode():
    tiny = np.float32(1e-38) * np.float32(0.01)
    return libm.fegetround(), bool(tiny != 0), np.float32(1) + np.float32(2**-24) + np.float32(2**-30)
before = mode()
import radam
assert mode() == before
radam.RAdam([np.ones(200_000, np.float32)]).step(grads=[np.ones(200_000, np.float32)])
assert mode() == before
assert libm.fesetround(UPWARD) == 0
upward = mode()
assert upward != before
w = np.linspace(1, 2, 200_001, dtype=np.float32)
radam.RAdam([w], lr=0.1).step(grads=[np.cos(np.arange(200_001, dtype=np.float32))])
assert mode() == upward
libm.fesetround(before[0])
print("ok")
"""
    upward = (
        {"x86_64": 0x800, "amd64": 0x800, "aarch64": 0x400000, "arm64": 0x400000}.get(os.uname().machine.lower())
        if os.name == "posix"
        else None
    )
    if upward is None:
        pytest.skip("the number of FE_UPWARD is known for POSIX on x86-64 and arm64")
    assert output(code.replace("UPWARD", str(upward))) == ["ok"]


MANY = """
import gc, tracemalloc
import numpy as np, radam
arrays = lambda: [np.ones(64, np.float32) for _ in range(1000)]
params, grads = arrays(), arrays()
optimizer = radam.RAdam(params, lr=1e-3)
for _ in range(3):
    optimizer.step(grads=grads)
"""


def test_a_step_after_the_first_takes_less_than_64_kib_of_python_memory() -> None:
    code = (
        MANY
        + """
tracemalloc.start()
optimizer.step(grads=grads)
before, _ = tracemalloc.get_traced_memory()
tracemalloc.reset_peak()
optimizer.step(grads=grads)
after, peak = tracemalloc.get_traced_memory()
print(peak - before, after - before)
"""
    )
    peak, kept = map(int, output(code))
    assert peak <= 64 * 1024
    assert kept <= 1024


def test_steps_keep_no_native_memory() -> None:
    if (
        sysconfig.get_config_var("HAVE_FORK") is None
        or os.uname().sysname != "Linux"
        or os.confstr("CS_GNU_LIBC_VERSION") is None
    ):
        pytest.skip("counts malloc through glibc")
    code = (
        MANY
        + """
import ctypes
class Mallinfo(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
libc = ctypes.CDLL(None)
info = libc.mallinfo2
info.restype = Mallinfo
def used():
    found = info()
    return found.uordblks + found.hblkhd
gc.collect()
gc.disable()
before = used()
for _ in range(50):
    optimizer.step(grads=grads)
print(used() - before)
"""
    )
    libc: Any = __import__("ctypes").CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("this glibc has no mallinfo2")
    assert int(output(code)[0]) <= 64 * 1024


def test_the_package_and_its_core_have_one_version() -> None:
    assert radam.__version__ == importlib.metadata.version("radam")
