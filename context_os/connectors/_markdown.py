"""Markdown as people write it for reviewers: front matter, and sections that can be taken one at a time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_HASHES: Final = re.compile(r" {0,3}(#{1,6})[ \t]")
_FENCE: Final = re.compile(r"[ \t]*(`{3,}+(?!.*`)|~{3,})")


@dataclass(frozen=True)
class Section:
    """``headings`` lead to it from the outside in, ``ordinal`` (from 0) tells sections with equal headings and
    the parts of a long one apart. Lines are 1-based and inclusive, counted in the text that was split."""

    headings: tuple[str, ...]
    ordinal: int
    text: str
    start_line: int
    end_line: int
    part: int = 1
    parts: int = 1


def split_front_matter(text: str) -> tuple[str | None, str, int]:
    """``(front matter or None, body, lines before the body)``. Raises ValueError for one without an end."""
    lines = text.split("\n")
    if lines[0].rstrip() != "---":
        return None, text, 0
    for number, line in enumerate(lines[1:], start=1):
        if line.rstrip() in {"---", "..."}:
            return "\n".join(lines[1:number]), "\n".join(lines[number + 1 :]), number + 1
    raise ValueError("front matter begins with --- in line 1 and never ends; close it with a line ---")


def heading(line: str) -> tuple[int, str]:
    """``(level, title)`` of a heading of the form ``## title ##``, ``(0, "")`` of any other line."""
    found = _HASHES.match(line)
    if not found:
        return 0, ""
    title = line[found.end() :].strip()
    bare = title.rstrip("#")
    return len(found[1]), bare.rstrip() if not bare or bare[-1].isspace() else title


def fence(line: str) -> str:
    """The run of marks that opens a fenced block on this line, or ""."""
    found = _FENCE.match(line)
    return found[1] if found else ""


def closes(line: str, fence: str) -> bool:
    """Whether the line ends a block that ``fence`` has opened."""
    text = line.strip()
    return len(text) >= len(fence) and not text.strip(fence[0])


def first_heading(text: str) -> str:
    """The text of the first heading of level 1, or ""."""
    return next((title for level, title in _headings(text.split("\n")) if level == 1), "")


def sections(text: str, longest: int) -> list[Section]:
    """The text cut at its top headings (level 2; level 1 where there are several and no level 2; else the highest
    below a lone title), each cut further at paragraphs until at most ``longest`` characters. A fenced block is
    never cut, so a part that is one long fence may be longer. Headings without anything below are left out."""
    lines = text.split("\n")
    headings = _headings(lines)
    levels = [level for level, _ in headings if level]
    lone_title = levels.count(1) == 1
    cut = _cut_level(levels)
    found: list[Section] = []
    seen: Counter[tuple[str, ...]] = Counter()
    for path, start, end in _stretches(headings, cut, lone_title):
        if not any(line.strip() for line in lines[start + bool(headings[start][0]) : end]):
            continue
        parts = _parts(lines[start:end], longest)
        for number, (part_text, offset, length) in enumerate(parts, start=1):
            first = start + offset + 1
            found.append(Section(path, seen[path], part_text, first, first + length - 1, number, len(parts)))
            seen[path] += 1
    return found


def _cut_level(levels: list[int]) -> int:
    if 2 in levels:
        return 2
    return 1 if levels.count(1) > 1 else min((level for level in levels if level > 1), default=1)


def _headings(lines: list[str]) -> list[tuple[int, str]]:
    """``(level, title)`` for each line, ``(0, "")`` where it is no heading."""
    return [(0, "") if inside else heading(line) for line, inside in zip(lines, _fenced(lines), strict=True)]


def _fenced(lines: list[str]) -> list[bool]:
    """Which lines belong to a fenced block, its fences included. One that is never closed runs to the end."""
    inside = ""
    marks = []
    for line in lines:
        if inside:
            marks.append(True)
            inside = "" if closes(line, inside) else inside
        else:
            inside = fence(line)
            marks.append(bool(inside))
    return marks


def _stretches(
    headings: list[tuple[int, str]], cut: int, lone_title: bool
) -> Iterator[tuple[tuple[str, ...], int, int]]:
    """``(heading path, first line, end line)`` from 0, end exclusive. A lone title names only what stands
    directly below it: everything else is found by its own heading."""
    starts = [0] + [i for i, (level, _) in enumerate(headings) if i and 0 < level <= cut]
    stack: list[tuple[int, str]] = []
    for start, end in zip(starts, [*starts[1:], len(headings)], strict=True):
        level, title = headings[start]
        if 0 < level <= cut:
            stack = [entry for entry in stack if entry[0] < level and not (lone_title and entry[0] == 1)]
            stack.append((level, title))
        yield tuple(title for _, title in stack), start, end


def _parts(lines: list[str], longest: int) -> list[tuple[str, int, int]]:
    """``(text, first line, number of lines)``: blocks packed greedily up to ``longest`` characters."""
    groups: list[tuple[str, int, int]] = []
    for text, offset, length in _blocks(lines, longest):
        last = groups[-1] if groups else ("", 0, 0)
        joins = groups and (len(last[0]) + 1 + len(text) <= longest or _only_heading(last[0]) or not text.strip())
        if joins:
            groups[-1] = (f"{last[0]}\n{text}", last[1], max(last[2], offset + length - last[1]))
        else:
            groups.append((text, offset, length))
    return groups


def _only_heading(text: str) -> bool:
    written = [line for line in text.split("\n") if line.strip()]
    return len(written) == 1 and heading(written[0])[0] > 0


def _blocks(lines: list[str], longest: int) -> Iterator[tuple[str, int, int]]:
    """Paragraphs with the blank lines after them, and whole fenced blocks. A paragraph that alone is too long
    comes line by line, a line that is comes in slices."""
    fenced = _fenced(lines)
    start = 0
    for index in range(1, len(lines) + 1):
        if index < len(lines) and not _breaks(lines, fenced, index):
            continue
        text = "\n".join(lines[start:index])
        if len(text) <= longest or fenced[start]:
            yield text, start, index - start
        else:
            yield from _slices(lines, start, index, longest)
        start = index


def _breaks(lines: list[str], fenced: list[bool], index: int) -> bool:
    if fenced[index] != fenced[index - 1]:
        return True
    return not fenced[index] and not lines[index - 1].strip() and bool(lines[index].strip())


def _slices(lines: list[str], start: int, end: int, longest: int) -> Iterator[tuple[str, int, int]]:
    for index in range(start, end):
        line = lines[index]
        for at in range(0, max(len(line), 1), longest):
            yield line[at : at + longest], index, 1
