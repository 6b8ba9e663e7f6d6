"""The command line: python -m radam info | demo | bench."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import __version__, get_cmake_dir, get_include, show_config


class Failure(Exception):
    """What the user is told in one line, without a traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0, 1 for a failure, 2 for wrong arguments, 130 after Ctrl-C."""
    parser = command_line()
    arguments = parser.parse_args(argv)
    if arguments.command is None and arguments.folder is None:
        parser.print_help()
        return 0
    program = "radam" if arguments.command is None else f"radam {arguments.command}"
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{program}: stopped by Ctrl-C, nothing was saved", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (head) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Failure, OSError) as failure:
        print(f"{program}: {failure}", file=sys.stderr)
        return 1
    return 0


def command_line() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="python -m radam",
        description="RAdam at memory speed, with the same bits on every machine.",
        epilog="'python -m radam COMMAND --help' says more about a command.",
    )
    parser.add_argument("--version", action="version", version=f"radam {__version__}")
    folders = parser.add_mutually_exclusive_group()
    for option, function, what in (
        ("--cmakedir", get_cmake_dir, "CMake finds radam in: cmake -Dradam_DIR=$(python -m radam --cmakedir)"),
        ("--includedir", get_include, "a C++ compiler finds radam/radam.hpp in"),
    ):
        what = f"print the folder that {what}"
        folders.add_argument(option, dest="folder", action="store_const", const=function, help=what)
    parser.set_defaults(run=run_folder)
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")

    what = "print the version, the instruction sets, the threads, CUDA and the frameworks found"
    info = commands.add_parser("info", help=what, description=f"{what[0].upper()}{what[1:]}.")
    info.set_defaults(run=run_info)

    demo = commands.add_parser(
        "demo",
        help="watch a network learn handwritten digits, RAdam beside Adam and SGD",
        description="Train a small network, written in plain NumPy, on scikit-learn's handwritten digits with "
        "radam.RAdam, radam.Adam and SGD with momentum, from the same start and on the same batches. Prints the test "
        "accuracies and the optimizers' time per step, and saves a picture. Needs the packages that "
        "'pip install \"radam[demo]\"' brings.",
    )
    number: dict[str, Any] = {"type": positive, "metavar": "N"}
    demo.add_argument("--seeds", **number, default=3, help="how many runs to average (default: %(default)s)")
    demo.add_argument("--epochs", **number, default=30, help="passes over the data (default: %(default)s)")
    demo.add_argument(
        "--output",
        type=Path,
        default=Path("radam-demo.png"),
        metavar="PATH",
        help="where to save the picture; .png, .pdf or .svg (default: %(default)s in this folder)",
    )
    demo.set_defaults(run=run_demo)

    bench = commands.add_parser(
        "bench",
        help="measure how close a step comes to the speed of memory here",
        description="Time a RAdam step on float32 NumPy arrays against the limit: a loop that reads and writes the "
        "same memory in the same way and computes nothing. Needs 1.1 GB of memory (--quick: 0.2 GB) and only NumPy.",
    )
    bench.add_argument("--quick", action="store_true", help="smaller arrays and fewer rounds, in a few seconds")
    bench.add_argument("--json", type=Path, metavar="PATH", help="write the figures to this file, too")
    bench.set_defaults(run=run_bench)
    return parser


def positive(text: str) -> int:
    """Return a whole number above 0 from an argument."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, got {text!r}")
    return number


def run_folder(arguments: argparse.Namespace) -> None:
    """Print where something of radam is."""
    print(arguments.folder())


def run_info(arguments: argparse.Namespace) -> None:
    """Print what this radam runs on."""
    show_config()


def run_demo(arguments: argparse.Namespace) -> None:
    """Train, print the table, save the picture."""
    try:
        from . import _demo
    except ImportError as error:
        what = (error.name or str(error)).partition(".")[0]
        raise Failure(f'{what} cannot be imported; get all that the demo needs: pip install "radam[demo]"') from None
    path: Path = arguments.output
    refuse_bad_target(path)
    path = path if path.suffix else path.with_suffix(".png")
    if path.suffix.lower() not in _demo.FORMATS:
        raise Failure(f"--output must end in {', '.join(_demo.FORMATS)}, got {str(path)!r}")
    _demo.run(arguments.seeds, arguments.epochs, path)


def run_bench(arguments: argparse.Namespace) -> None:
    """Measure, print the table, write the figures where asked to."""
    from . import _bench

    if arguments.json is not None:
        refuse_bad_target(arguments.json)
    try:
        _bench.run(arguments.quick, arguments.json)
    except MemoryError:
        raise Failure("not enough memory" + ("" if arguments.quick else "; try --quick")) from None


def refuse_bad_target(path: Path) -> None:
    """Fail now rather than after the work, where the file cannot be written."""
    folder = path.absolute().parent
    if path.is_dir():
        raise Failure(f"{path} is a folder, not a file to write")
    if not folder.is_dir():
        raise Failure(f"there is no folder {folder} to write {path.name} to")
    try:
        if path.exists():
            path.open("r+b").close()
        else:
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise Failure(f"cannot write {path.absolute()} ({error.strerror}); name another place") from None


if __name__ == "__main__":
    sys.exit(main())
