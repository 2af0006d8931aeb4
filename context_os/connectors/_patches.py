"""What a unified diff changes: its files, and the functions and classes around its lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_MOST: Final = 100


@dataclass(frozen=True)
class PatchTargets:
    """``inside`` are functions and classes whose definition stands in a hunk above a changed line, ``surrounding``
    those that only the hunk's header names: git prints there the last definition before the hunk."""

    files: tuple[str, ...]
    inside: tuple[str, ...]
    surrounding: tuple[str, ...]


_HUNK: Final = re.compile(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@ ?(.*)")
_FILE: Final = re.compile(r'(?:---|\+\+\+) "?[ab]/([^\t"\r\n]+)')
_DEFINITION: Final = re.compile(
    r"\s*(?:(?:export|default|async|public|private|protected|static|pub(?:\([a-z]+\))?|abstract|final)\s+)*"
    r"(?:def|class|func|function|fn|struct|interface|trait|module)\s+(?:\([^)]*\)\s*)?([A-Za-z_$][\w$]*)"
)


def patch_targets(patch: str) -> PatchTargets:
    """What a diff names, each at most once and in its order; at most 100 functions of either sort. A definition is
    a line that begins with a keyword of Python, JavaScript, TypeScript, Go, Rust, Ruby, PHP, Java or C# (methods
    that have none are not seen)."""
    files: dict[str, None] = {}
    inside: dict[str, None] = {}
    around: dict[str, None] = {}
    current, into = "", around
    for sort, text in _lines(patch):
        if sort == "file":
            files[text] = None
        elif sort == "hunk":
            current, into = _defined(text), around
        else:
            name = _defined(text[1:])
            if name:
                current, into = name, inside
            if current and text[0] != " ":
                into[current] = None
    surrounding = [name for name in around if name not in inside]
    return PatchTargets(tuple(files), tuple(inside)[:_MOST], tuple(surrounding)[:_MOST])


def _lines(patch: str) -> Iterator[tuple[str, str]]:
    """``("file", path)``, ``("hunk", what its header says)``, ``("line", a line inside)``. Counting a hunk's lines is
    what tells the removed line ``-- a/b`` from the header of a file."""
    old = new = 0
    for line in patch.split("\n"):
        if old > 0 or new > 0:
            old -= line[:1] in {" ", "-", ""}
            new -= line[:1] in {" ", "+", ""}
            if line[:1] in {" ", "+", "-"}:
                yield "line", line
        elif found := _HUNK.match(line):
            old, new = (int(count) if count else 1 for count in found.groups()[:2])
            yield "hunk", found[3]
        elif file := _FILE.match(line):
            yield "file", file[1].strip()


def _defined(line: str) -> str:
    found = _DEFINITION.match(line)
    return found[1] if found else ""
