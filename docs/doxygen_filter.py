"""Show Doxygen what the headers' plain comments say: INPUT_FILTER of the Doxyfile, called with a header's path.

The headers say what something is in a plain comment right above it, or behind it on its line; Doxygen reads ///, ///<
and their like alone. What is printed has the same code, with comments of that kind.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

TOKEN = re.compile(
    r"""(?P<comment>//[^\n]*|/\*.*?\*/)
      | (?P<preprocessor>^[ \t]*\#(?:[^\n]*\\\n)*[^\n]*?(?=\s*(?://|/\*|\n|\Z)))
      | (?P<text>"(?:\\.|[^"\\\n])*"|(?<![0-9A-Fa-f])'(?:\\.|[^'\\\n])')
      | (?P<access>^[ \t]*(?:public|protected|private):)
      | (?P<mark>[{};])""",
    re.S | re.M | re.X,
)
SCOPE = re.compile(r'\b(namespace|class|struct|union|enum)\b[^()]*$|extern "C"')
SECTION = re.compile(r"---- ([^:]*)(?:: (.*))?", re.S)
DECLARATION = re.compile(r"[^\S\n]*\n[^\S\n]*(?=\S)(?!//|/\*|\}|#(?!define))")


class Edit(NamedTuple):
    """What to write instead of a stretch of a header."""

    begin: int
    end: int
    text: str


def filtered(code: str) -> str:
    """Return a header with its comments as Doxygen reads them."""
    edits: list[Edit] = []
    scopes = ["namespace"]  # what each brace that is open holds, the file itself first: that, "class" or "body"
    sections: list[bool] = [False]  # whether a section is open in it
    head = 0  # where that begins which is being declared
    function = -1  # where that function began whose body is open
    above: list[tuple[int, int]] = []  # comments on lines of their own, one right after the other

    def end_section(at: int) -> None:
        if sections[-1]:
            edits.append(Edit(at, at, "/** @} */\n"))
        sections[-1] = False

    for token in TOKEN.finditer(code):
        begin, end = token.span()
        line = code.rfind("\n", 0, begin) + 1
        if token["comment"]:
            if code[line:begin].strip():
                if code[line:begin].strip() == "}" or token[0].startswith("// NOLINT"):
                    continue  # what the brace ends; for another tool
                is_whole = re.search(r"\{.*\};\s*$", code[line:begin])  # an enum in one line
                if scopes[-1] != "body" and not is_whole:
                    edits.append(Edit(begin, end, _comment(code[begin:end], "<", "")))
                elif is_whole or function >= line:  # behind the brace that opens a function's body
                    edits.append(Edit(line, line, _comment(code[begin:end], "", code[line:begin]) + "\n"))
            elif scopes[-1] != "body":
                if above and code[above[-1][1] : begin].count("\n") > 1:
                    above = []
                above.append((begin, end))
                text = "\n".join(code[b:e] for b, e in above)
                if section := SECTION.match(_text(text)):
                    end_section(line)
                    edits.append(Edit(begin, end, _section(section[1], section[2], scopes[-1] == "class")))
                    sections[-1] = True
                elif DECLARATION.match(code, end):
                    declared = code[end : code.find(";", end)].partition("\n\n")[0]
                    edits += [Edit(b, e, _comment(code[b:e], "", declared)) for b, e in above]
            continue
        if code[line:begin].strip() == "" or token["mark"]:
            above = []
        if token["access"]:
            end_section(line)
            head = end
        elif token["preprocessor"]:
            head = end
        elif token["mark"] == "{":
            declared = re.sub(r"//[^\n]*|/\*.*?\*/", "", code[head:begin], flags=re.S)
            found = SCOPE.search(declared) if scopes[-1] != "body" else None
            if found:
                scopes.append("class" if found[1] not in (None, "namespace") else "namespace")
            else:
                if scopes[-1] != "body":
                    function = head + len(code[head:begin]) - len(code[head:begin].lstrip())
                scopes.append("body")
            sections.append(False)
            head = end
        elif token["mark"]:
            if token["mark"] == "}" and len(scopes) > 1:
                end_section(line)
                scopes.pop()
                sections.pop()
            head = end
    parts, at = [], 0
    for edit in sorted(edits, key=lambda edit: edit[:2]):
        parts += [code[at : edit.begin], edit.text]
        at = edit.end
    made = "".join([*parts, code[at:]])
    # The numbers of C's constants, which other languages need.
    return re.sub(r"^( +|enum \{ ).*RADAM_\w+ = \d.*$", _with_numbers, made, flags=re.M)


def _with_numbers(line: re.Match[str]) -> str:
    return re.sub(r"RADAM_\w+ = (\d+),?(?: /\*\*<.*?\*/)?", r"\g<0> /**< (\1) */", line[0])


def _text(comment: str) -> str:
    """Return what comments say."""
    inner = comment.removeprefix("/*").removesuffix("*/") if comment.startswith("/*") else comment
    return "\n".join(re.sub(r"^\s*//", "", line) for line in inner.splitlines()).strip()


def _section(title: str, about: str | None, is_in_class: bool) -> str:
    title = " ".join(title.split())
    if is_in_class:
        return f"/** @name {title[:1].upper()}{title[1:]}\n{_escaped(about or '')}\n@{{ */"
    slug = re.sub(r"\W+", "_", title)
    return f"/** @defgroup {slug} {title[:1].upper()}{title[1:]}\n{_escaped(about or '')}\n@{{ */"


def _comment(comment: str, mark: str, declared: str) -> str:
    """Return a comment as Doxygen reads it.

    Args:
        comment: as it stands in the header, one of /* */ or a line of //.
        mark: "<" where it is behind what it is about.
        declared: what it is about, where that may have parameters: "name: ..." is about one of them.
    """
    kinds = {
        "tparam": re.findall(r"\b(?:class|typename|bool|int|Mode)\s+(\w+)", _within(declared, "<", ">")),
        "param": re.findall(r"(\w+)\)?\s*(?=[,)=]|\(void)", _within(declared, "(", "")),
    }

    def about(match: re.Match[str]) -> str:
        names = match[2].split(", ")
        for kind, known in kinds.items():
            if all(name in known for name in names):
                # Breathe reads one name: the first, and the others as text.
                return f"{match[1]}\n@{kind} {names[0]} " + "".join(f"(and {name}) " for name in names[1:])
        return match[0]

    is_block = comment.startswith("/*")
    inner = comment[2:-2] if is_block else comment[2:]
    lines = []
    for text in inner.split("\n"):
        if not re.match(r"     ", text):  # else it is code
            text = re.sub(r"(^\s*|[.;] )([A-Za-z]\w*(?:, [A-Za-z]\w*)*): ", about, _escaped(text))
        lines.append(text)
    if is_block:
        return f"/**{mark}" + "\n".join(lines) + "*/"
    return "\n".join(f"///{mark}{line}" for line in "\n".join(lines).split("\n"))


def _within(declared: str, opening: str, closing: str) -> str:
    """Return what stands between the first two of these."""
    inner = declared.partition(opening)[2]
    return inner.partition(closing)[0] if closing else inner


def _escaped(text: str) -> str:
    """Return text that Doxygen takes for no command, tag or link of its own; what is in backquotes it leaves alone."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([\\@<>&#])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    print(filtered(Path(sys.argv[1]).read_text(encoding="utf-8")), end="")
