"""A change under review, read from a unified diff. The diff is untrusted: it is parsed, never applied."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

_IDENTIFIER: Final = re.compile(r"[^\W\d]\w{2,}")
_HUNK: Final = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@ ?(.*)")
_ESCAPES: Final = {"n": "\n", "t": "\t", '"': '"', "\\": "\\"}


@dataclass(frozen=True)
class Hunk:
    """1-based first lines and line counts on both sides. ``heading`` is what git prints after the second ``@@``."""

    old_start: int
    old_lines: int
    new_start: int
    new_lines: int
    heading: str = ""
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChangedFile:
    """``status`` is added, removed, renamed or modified. ``old_path`` equals ``path`` unless renamed."""

    path: str
    old_path: str
    status: str
    hunks: tuple[Hunk, ...] = ()

    @property
    def added_lines(self) -> int:
        return sum(len(hunk.added) for hunk in self.hunks)

    @property
    def removed_lines(self) -> int:
        return sum(len(hunk.removed) for hunk in self.hunks)


@dataclass(frozen=True)
class Change:
    """All files of a diff, in its order."""

    files: tuple[ChangedFile, ...] = field(default_factory=tuple)

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path that the change knows, old names of renamed files included, without repeats."""
        return tuple(dict.fromkeys(path for file in self.files for path in (file.path, file.old_path)))

    @cached_property
    def touched_text(self) -> str:
        """The lines it touches on either side, and what git prints of what they stand in."""
        hunks = (hunk for file in self.files for hunk in file.hunks)
        return "\n".join(line for hunk in hunks for line in (hunk.heading, *hunk.added, *hunk.removed) if line)

    def summary(self, limit: int) -> str:
        """The words that say what the change is about: its paths, and the ``limit`` identifiers that stand most often
        in the lines it touches."""
        touched = Counter(_IDENTIFIER.findall(self.touched_text))
        return " ".join([*(file.path for file in self.files), *(word for word, _ in touched.most_common(limit))])


def parse_diff(text: str) -> Change:
    """The files and hunks of a unified diff (git's or plain). Text that is no diff gives a Change without files."""
    files: list[ChangedFile] = []
    reader = _Reader(text.splitlines())
    while not reader.done:
        found = reader.file()
        if found is not None:
            files.append(found)
    return Change(tuple(files))


class _Reader:
    def __init__(self, lines: list[str]) -> None:
        self._lines = lines
        self._at = 0

    @property
    def done(self) -> bool:
        return self._at >= len(self._lines)

    def _peek(self) -> str:
        return "" if self.done else self._lines[self._at]

    def file(self) -> ChangedFile | None:
        line = self._peek()
        if line.startswith("diff --git "):
            self._at += 1
            return self._after_header(*_git_paths(line))
        if line.startswith("--- ") and self._at + 1 < len(self._lines) and self._lines[self._at + 1].startswith("+++ "):
            return self._after_header("", "")
        self._at += 1
        return None

    def _after_header(self, old: str, new: str) -> ChangedFile | None:
        status = "modified"
        while not self.done:
            line = self._peek()
            if line.startswith(("diff --git ", "@@ ")):
                break
            if line.startswith("new file"):
                status = "added"
            elif line.startswith("deleted file"):
                status = "removed"
            elif line.startswith("rename from "):
                status, old = "renamed", _unquoted(line[12:])
            elif line.startswith("rename to "):
                new = _unquoted(line[10:])
            elif line.startswith("--- "):
                status, old = ("added", old) if line[4:] == "/dev/null" else (status, _side(line[4:]))
            elif line.startswith("+++ "):
                status, new = ("removed", new) if line[4:] == "/dev/null" else (status, _side(line[4:]))
            elif not line.startswith(_HEADERS):
                break
            self._at += 1
        path = old if status == "removed" else new or old
        hunks = tuple(self._hunks())
        return ChangedFile(path, old if status == "renamed" else path, status, hunks) if path else None

    def _hunks(self) -> list[Hunk]:
        hunks = []
        while found := _HUNK.match(self._peek()):
            self._at += 1
            start, length, new_start, new_length = (int(found[n]) if found[n] is not None else 1 for n in range(1, 5))
            added, removed = self._body(length, new_length)
            hunks.append(Hunk(start, length, new_start, new_length, found[5].strip(), added, removed))
        return hunks

    def _body(self, old: int, new: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        added, removed = [], []
        while not self.done and (old > 0 or new > 0 or self._peek().startswith("\\")):
            line = self._peek()
            mark = line[:1]
            if mark == "+":
                added.append(line[1:])
                new -= 1
            elif mark == "-":
                removed.append(line[1:])
                old -= 1
            elif mark in {" ", ""}:
                old, new = old - 1, new - 1
            elif mark != "\\":
                break
            self._at += 1
        return tuple(added), tuple(removed)


_HEADERS: Final = (
    "index ", "old mode", "new mode", "similarity index", "dissimilarity index", "copy from", "copy to", "Binary files",
    "GIT binary patch",
)  # fmt: skip


def _git_paths(line: str) -> tuple[str, str]:
    """Both paths of ``diff --git a/x b/x``. Unquoted names with blanks are told apart by being equal."""
    rest = line.removeprefix("diff --git ")
    quoted = re.fullmatch(r'("(?:[^"\\]|\\.)*"|\S+) ("(?:[^"\\]|\\.)*"|\S+)', rest)
    if quoted:
        return _side(quoted[1]), _side(quoted[2])
    half = (len(rest) - 1) // 2
    return _side(rest[:half]), _side(rest[half + 1 :])


def _side(name: str) -> str:
    name = _unquoted(name.split("\t", 1)[0])
    return name[2:] if name[:2] in {"a/", "b/"} else name


def _unquoted(name: str) -> str:
    """git quotes unusual names like C strings, with octal bytes."""
    if not (len(name) > 1 and name[0] == name[-1] == '"'):
        return name
    out = bytearray()
    for octal, escape, plain in re.findall(r"\\([0-7]{3})|\\(.)|([^\\]+)", name[1:-1]):
        out += bytes([int(octal, 8) & 255]) if octal else _ESCAPES.get(escape, escape).encode() or plain.encode()
    return out.decode("utf-8", "replace")
