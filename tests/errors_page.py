"""The messages that docs/errors.md shows, and whether they are what is raised."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable

from pages import blocks_of

PAGE = "docs/errors.md"
BEGIN = re.compile(r"(?:\w+(?:Error|Warning)|radam(?: demo)?): ")

Trigger = Callable[[], object]


def shown() -> dict[str, list[str]]:
    """Return the messages of the page by section. One begins at the edge, and goes on in lines that are indented."""
    found: dict[str, list[str]] = {}
    for block in blocks_of(PAGE):
        if block.language != "text":
            continue
        messages = found.setdefault(block.section, [])
        for line in block.code.splitlines():
            if line.startswith("  "):
                messages[-1] += f" {line.strip()}"
            else:
                assert BEGIN.match(line), f"{block.name}: {line!r} begins with no kind of error"
                messages.append(line)
    return found


def is_shown_as(message: str, text: str) -> bool:
    """Return whether a message of the page, in which "..." is anything, is this text."""
    return re.fullmatch(".*".join(map(re.escape, message.split("..."))), text, re.S) is not None


def said_by(trigger: Trigger) -> list[str]:
    """Return what a call raises or warns of, as Python prints it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trigger()
        except Exception as error:
            return [f"{type(error).__name__}: {error}"]
    return [f"{warning.category.__name__}: {warning.message}" for warning in caught]


def check_section(section: str, said: Iterable[str]) -> None:
    """See that what a section shows is what was said, and the other way round."""
    on_page, texts = shown()[section], list(said)
    assert len(on_page) == len(set(on_page))
    missing = [message for message in on_page if not any(is_shown_as(message, text) for text in texts)]
    unknown = [text for text in texts if not any(is_shown_as(message, text) for message in on_page)]
    found = {"shown, and never raised": missing, "raised, and not shown": unknown}
    assert not any(found.values()), f"{section}: {found}"
