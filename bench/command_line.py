"""What the benchmarks read from the command line, and say there while they run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence


def say(text: str) -> None:
    """Tell who waits how far it is; the result goes to standard output."""
    print(text, file=sys.stderr, flush=True)


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return what reads some of the known names, with commas between them."""

    def parse(text: str) -> list[str]:
        wanted = [name.strip() for name in text.split(",")]
        for name in wanted:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of: {', '.join(known)}")
        return list(dict.fromkeys(wanted))

    return parse


def threads(cores: int) -> Callable[[str], list[int]]:
    """Return what reads thread counts, with commas between them; "all" is one for each core."""

    def parse(text: str) -> list[int]:
        try:
            counts = [cores if part.strip() == "all" else int(part) for part in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} holds neither 'all' nor a number") from None
        if min(counts) < 1:
            raise argparse.ArgumentTypeError("there must be at least one thread")
        return list(dict.fromkeys(counts))

    return parse


def positive(kind: type[int] | type[float]) -> Callable[[str], int | float]:
    """Return what reads a number above 0."""

    def parse(text: str) -> int | float:
        number = kind(text)
        if number <= 0:
            raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
        return number

    parse.__name__ = kind.__name__  # for argparse's message
    return parse
