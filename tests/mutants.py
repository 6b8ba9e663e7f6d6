"""Show that the tests would notice a wrong optimizer: break it on purpose, in one place at a time, and run them.

    python tests/mutants.py            all mutants
    python tests/mutants.py NAME ...   some of them
    python tests/mutants.py --list

Each mutant is one line of the source, changed. It is killed when a test fails on it; the program ends with an error if
one survives, if its line is no longer there, or if the tests fail without any change. It needs what building radam
needs (pyproject.toml, build-system.requires) and radam's own tests, in the environment it runs in.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("cpp", "cmake", "python", "tests", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE")


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One line changed: the text old becomes new in the file at path, and one of the tests must fail."""

    name: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]


LIKE_TORCH = ("tests/test_torch_like_torch.py",)
ON_DEVICES = ("tests/test_torch_cuda.py",)
MUTANTS = (
    Mutant(
        "threshold 4",
        "cpp/include/radam/conventions.hpp",
        "double threshold = 5.0;",
        "double threshold = 4.0;",
        LIKE_TORCH,
    ),
    Mutant(
        "eps inside the root",
        "cpp/include/radam/update.hpp",
        "n = n / (sqrt((form.amsgrad ? v_max : v) + c.eps_root) + c.eps);",
        "n = n / sqrt((form.amsgrad ? v_max : v) + c.eps_root + c.eps);",
        LIKE_TORCH,
    ),
    Mutant(
        "rectification x 0.9",
        "cpp/include/radam/schedule.hpp",
        "c.step_size = h.lr * r * root_bc2 / bc1;",
        "c.step_size = h.lr * (0.9 * r) * root_bc2 / bc1;",
        LIKE_TORCH,
    ),
    Mutant(
        "decay after the step",
        "cpp/include/radam/update.hpp",
        "p = fma(V(-1) * c.step_size, n, c.param_decay * p);",
        "p = c.param_decay * fma(V(-1) * c.step_size, n, p);",
        LIKE_TORCH,
    ),
    Mutant(
        "maximize ignored",
        "cpp/include/radam/schedule.hpp",
        "c.grad_scale = h.maximize ? -h.grad_scale : h.grad_scale;",
        "c.grad_scale = h.grad_scale;",
        LIKE_TORCH,
    ),
    Mutant(
        "version counter not bumped",
        "python/radam/torch/run.py",
        "_step.step(tuple(plans), nonfinite, functools.partial(increment_version, changed), amp, native)",
        "_step.step(tuple(plans), nonfinite, None, amp, native)",
        ("tests/test_torch_safety.py",),
    ),
    Mutant(
        "version counter not bumped where tensors are taken apart",
        "python/radam/torch/run.py",
        "        increment_version([tensor for batch in batches for tensor in batch.changed()])",
        "        pass",
        ("tests/test_torch_safety.py",),
    ),
    Mutant(
        "step advanced on a skip for a gradient that is not finite",
        "python/bindings/step.cpp",
        'if (nonfinite == "raise") call->refuse_nonfinite(*bad);',
        'if (nonfinite == "raise") call->refuse_nonfinite(*bad);\n        call->advance();',
        ("tests/test_torch_safety.py",),
    ),
    Mutant(
        "step advanced on a skip for GradScaler",
        "python/radam/torch/optimizer.py",
        "            self._skipped.here += 1\n            return\n        happened",
        "            self._skipped.here += 1\n"
        "            [entry['step'].add_(1) for entry in self.state.values()]\n"
        "            return\n        happened",
        ("tests/test_torch_amp.py",),
    ),
    Mutant(
        "eps inside the root, in array operations",
        "python/radam/_law.py",
        'below = _sqrt(xp, (v_max if c["amsgrad"] else v) + c["eps_root"]) + c["eps"]',
        'below = _sqrt(xp, (v_max if c["amsgrad"] else v) + c["eps_root"] + c["eps"])',
        ("tests/test_law_in_arrays.py",),
    ),
    Mutant(
        "decay after the step, in array operations",
        "python/radam/_law.py",
        'moved = c["param_decay"] * p - c["step_size"] * n',
        'moved = c["param_decay"] * (p - c["step_size"] * n)',
        ("tests/test_law_in_arrays.py",),
    ),
    Mutant(
        "an edited beta1 of Lucid's that does not count",
        "python/radam/lucid/optimizer.py",
        "        if both == self._seen[g]:",
        "        if both is None:",
        ("tests/front_ends/test_lucid.py",),
    ),
    Mutant(
        "float32 counts stick at 2^24",
        "python/radam/torch/state.py",
        "MOST_FLOAT32 = 2**24",
        "MOST_FLOAT32 = 2**60",
        ("tests/test_torch_state.py",),
    ),
    Mutant(
        "moments of 16-bit parameters in 16 bits",
        "python/radam/precision.py",
        'return {name: "bfloat16" if self.state_dtype == "bfloat16" else "float32"}',
        'return {name: "bfloat16" if self.state_dtype == "bfloat16" else dtype}',
        ("tests/test_torch_state.py",),
    ),
    Mutant(
        "a state that does not fit is loaded half",
        "python/radam/torch/optimizer.py",
        "            loaded, groups, precision = saved.read(",
        "            self.param_groups[0]['lr'] = 0.5\n            loaded, groups, precision = saved.read(",
        ("tests/test_torch_state.py",),
    ),
    Mutant(
        "a device that steps in spite of an inf",
        "cpp/src/cuda_sweep.hpp",
        "value_of(header.found_inf, 0.0) != 0.0",
        "value_of(header.found_inf, 0.0) < 0.0",
        ON_DEVICES,
    ),
    Mutant(
        "counts on a device that stay",
        "cpp/src/cuda_sweep.hpp",
        "if (same.header->done == nullptr ||",
        "if (same.header->done != nullptr ||",
        ON_DEVICES,
    ),
    Mutant(
        "the schedule of an earlier step on a device",
        "cpp/src/cuda_sweep.hpp",
        "if (scratch.t != t || scratch.from_device",
        "if (scratch.t == 0 || scratch.from_device",
        ON_DEVICES,
    ),
    Mutant(
        "elements behind the last 16 bytes left out on a device",
        "cpp/src/cuda_sweep.hpp",
        "for (std::int32_t i = tail + thread; i < size; i += threads)",
        "for (std::int32_t i = tail + thread; i < tail; i += threads)",
        ON_DEVICES,
    ),
    Mutant(
        "work on another stream than the framework's",
        "python/bindings/call.cpp",
        "on_devices_.add(entry.device(), imports_.streams().of(entry.device()),",
        "on_devices_.add(entry.device(), nullptr,",
        ON_DEVICES,
    ),
    Mutant(
        "a step tried again after a device failed",
        "python/radam/torch/run.py",
        "    except _step.CudaError:\n        raise",
        "    except _step.CudaError:\n        return None",
        ON_DEVICES,
    ),
    Mutant(
        "a v above zero that vanishes in 8 bits",
        "cpp/include/radam/codec.hpp",
        "U((SquareCode::lift_bits >> SquareCode::shift) + 1u)",
        "U((SquareCode::lift_bits >> SquareCode::shift) + 0u)",
        ("tests/test_eight_bit.py",),
    ),
    Mutant(
        "weights rounded down more often than up",
        "cpp/include/radam/codec.hpp",
        "number_of(bits + (words >> 16))",
        "number_of(bits + (words >> 17))",
        ("tests/test_low_precision.py",),
    ),
    Mutant(
        "the same random bits for every parameter",
        "python/bindings/stored.cpp",
        "stored.ordinal = nb::cast<std::uint32_t>(ordinal);",
        "stored.ordinal = 0;",
        ("tests/test_low_precision.py",),
    ),
    Mutant(
        "a norm of gradients that are not unscaled",
        "python/bindings/clip.cpp",
        "sums_[any_device_ ? on_cpu_[i] : i] = norms_[i] * (scale * scale);",
        "sums_[any_device_ ? on_cpu_[i] : i] = norms_[i] + 0.0 * scale;",
        ("tests/test_torch_clipping.py",),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the mutants that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    arguments = parser.parse_args(argv)
    known = {mutant.name: mutant for mutant in MUTANTS}
    if arguments.list:
        print("\n".join(known))
        return 0
    for name in arguments.names:
        if name not in known:
            parser.error(f"{name!r} is none of: {', '.join(known)}")
    chosen = [known[name] for name in arguments.names or known]

    with tempfile.TemporaryDirectory(prefix="radam-mutants-") as folder:
        tree = Path(folder) / "tree"
        _copy(tree)
        tests = tuple(sorted({test for mutant in chosen for test in mutant.tests}))
        print(f"without a change: {' '.join(tests)}", flush=True)
        if not (_build(tree) and _tests_pass(tree, tests)):
            print("the tests fail without any change: mend that first")
            return 1
        survivors = [mutant.name for mutant in chosen if not _is_killed(tree, mutant)]
    if survivors:
        print(f"{len(survivors)} of {len(chosen)} survived: {', '.join(survivors)}")
        return 1
    print(f"all {len(chosen)} are killed")
    return 0


def _copy(tree: Path) -> None:
    tree.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, tree / name)


def _is_killed(tree: Path, mutant: Mutant) -> bool:
    path = tree / mutant.path
    whole = path.read_text(encoding="utf-8")
    if whole.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.name}: its text stands {whole.count(mutant.old)} times in {mutant.path}, not once")
    path.write_text(whole.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        if not _build(tree):
            raise SystemExit(f"{mutant.name}: does not build; a mutant must be wrong, not broken")
        killed = not _tests_pass(tree, mutant.tests)
    finally:
        path.write_text(whole, encoding="utf-8")
    print(f"{'killed' if killed else 'SURVIVED'}: {mutant.name}", flush=True)
    return killed


def _build(tree: Path) -> bool:
    installed = tree.parent / "installed"
    shutil.rmtree(installed, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps"]
    command += ["--target", str(installed), "-C", f"build-dir={tree.parent / 'build'}"]
    # The kernels' bodies run in the stand-in, and the C interface has tests of its own.
    command += ["-C", "cmake.define.RADAM_CUDA=OFF", "-C", "cmake.define.RADAM_C=OFF", str(tree)]
    built = subprocess.run(command, check=False, capture_output=True, text=True)
    if built.returncode != 0:
        print(built.stdout, built.stderr, sep="\n")
    return built.returncode == 0


def _tests_pass(tree: Path, tests: Sequence[str]) -> bool:
    """Whether pytest passes; anything but that or a failed test (no such file, a crash of pytest) ends the program."""
    environment = {**os.environ, "PYTHONPATH": str(tree.parent / "installed")}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    ended = subprocess.run(command, cwd=tree, env=environment, check=False, capture_output=True, text=True)
    if ended.returncode not in (0, 1):
        raise SystemExit(f"pytest ended with {ended.returncode}:\n{ended.stdout[-3000:]}{ended.stderr[-3000:]}")
    if ended.returncode == 1 and "test_" not in ended.stdout:
        raise SystemExit(ended.stdout)
    return ended.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
