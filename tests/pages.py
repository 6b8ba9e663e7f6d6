"""What pages and examples show, as cases for tests: every block of a page, and every script."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FRAMEWORK_OF = {  # pages and examples that need a framework which the tests of the rest do without
    page: framework
    for framework in ("paddle", "jax", "mindspore")
    for page in (f"docs/{framework}.md", f"examples/{framework}_digits.py")
}


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str) -> list[tuple[str, int, str]]:
    """Return (page, line, code) of each block of Python in a page."""
    text = text_of(page)
    found = [
        (page, text.count("\n", 0, m.start(1)), m[1]) for m in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S)
    ]
    assert len(found) == text.count("```python"), f"{page}: a block is not closed, or indented"
    return found


def run_block(page: str, line: int, code: str) -> None:
    exec(compile("\n" * line + code, str(ROOT / page), "exec"), {"__name__": "__main__"})


def run_script(script: str, folder: Path, *arguments: str, warnings: str = "error") -> subprocess.CompletedProcess[str]:
    """Run an example in a folder, and see that it says something and leaves nothing behind."""
    command = [sys.executable, "-W", warnings, str(ROOT / script), *arguments]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip()
    assert not list(folder.iterdir())
    return ended


def check_links(page: str) -> None:
    """See that every file and heading that a page links to exists."""
    prose = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.M | re.S)
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", prose) if "://" not in target]
    assert targets
    for target in targets:
        name, _, heading = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        if heading:
            text = path.read_text(encoding="utf-8")
            titles = [re.sub(r"[^\w -]", "", title.lower()) for title in re.findall(r"^#+ (.*)$", text, re.M)]
            assert heading in [title.replace(" ", "-") for title in titles], target
