"""Which paths a rule governs and who owns a path: two pure questions that the read side asks of stored items.

Globs follow gitignore as git documents it, and agree with ``pathspec``'s ``gitignore`` patterns (the successors of
its ``gitwildmatch``): a pattern without a slash matches a name at any depth, one with a slash is anchored at the
root, a directory stands for everything below it, ``**`` crosses directories, ``!`` takes back, the last match
wins. ``docs/*`` means the files directly in ``docs``, as CODEOWNERS and editors' rule files mean it.

Globs and paths come from repositories that nobody vouches for. ``pathspec`` makes one regular expression of a
glob, and a hostile pair keeps that busy for hours; here ``**`` is a set of positions and a star never tries twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

LONGEST_GLOB: Final = 1000
"""Characters."""


def governs(globs: Iterable[str], path: str) -> bool:
    """Whether ``path`` (POSIX, relative to the repository's root) is matched by the globs, the last match
    deciding. Globs that ``valid_glob`` refuses match nothing."""
    parts = path.removeprefix("./").split("/")
    for pattern in reversed([_compiled(glob) for glob in globs]):
        if pattern is not None and pattern.matches(parts):
            return pattern.includes
    return False


def owners_of(rules: Sequence[Mapping[str, Any]], path: str) -> list[str]:
    """The owners of ``path`` after the rules of one CODEOWNERS file, each ``{pattern, owners}`` and optionally
    ``section``, in the file's order.

    The last rule that matches wins, also when it names nobody. GitLab's sections are judged one by one and
    their owners joined; a ``!pattern`` that matches leaves its section without owners.
    """
    decided: dict[str, list[str]] = {}
    excluded: set[str] = set()
    for rule in rules:
        pattern, section = rule["pattern"], str(rule.get("section", "")).lower()
        if pattern.startswith("!") and governs((pattern[1:],), path):
            excluded.add(section)
        elif governs((pattern,), path):
            decided[section] = list(rule["owners"])
    names = [name for section, owners in decided.items() if section not in excluded for name in owners]
    return list(dict.fromkeys(names))


def valid_glob(glob: str) -> bool:
    """Whether ``glob`` is a pattern: not empty, not a comment, at most ``LONGEST_GLOB`` characters, and nothing
    that git's syntax refuses (a lone ``!``, a backslash at the end, a range that runs backwards)."""
    return _compiled(glob) is not None


@dataclass(frozen=True)
class _Pattern:
    """``segments`` between slashes, None for ``**``. ``whole`` where the last one must be the path's last."""

    includes: bool
    segments: tuple[re.Pattern[str] | None, ...]
    whole: bool
    everything: bool = False

    def matches(self, parts: Sequence[str]) -> bool:
        if self.everything:
            return True
        ends = {0}
        for segment in self.segments[:-1]:
            ends = _advance(segment, ends, parts)
        last = self.segments[-1]
        if last is None:
            return any(end < len(parts) for end in ends)
        ends = _advance(last, ends, parts)
        return len(parts) in ends if self.whole else bool(ends)


def _advance(segment: re.Pattern[str] | None, ends: set[int], parts: Sequence[str]) -> set[int]:
    if segment is None:
        return set(range(min(ends), len(parts) + 1)) if ends else ends
    return {end + 1 for end in ends if end < len(parts) and segment.fullmatch(parts[end])}


@lru_cache(maxsize=8192)
def _compiled(glob: str) -> _Pattern | None:
    text = glob if glob.endswith("\\ ") else glob.rstrip()
    includes = not text.startswith("!")
    text = text if includes else text[1:]
    if not text or glob.startswith("#") or len(glob) > LONGEST_GLOB:
        return None
    pieces = text.split("/")
    if not pieces[0]:
        del pieces[0]
    elif len(pieces) == 1 or (len(pieces) == 2 and not pieces[1]):
        pieces.insert(0, "**")
    if not pieces[-1]:
        pieces[-1] = "**"
    pieces = [piece for index, piece in enumerate(pieces) if piece != "**" or pieces[index - 1 : index] != ["**"]]
    try:
        segments = tuple(None if piece == "**" else _segment(piece) for piece in pieces)
    except (ValueError, re.error):
        return None
    everything = pieces == ["**"] and (text == "/" or not text.endswith("/"))
    if pieces == ["**"] and not everything:
        segments = (_segment("*"), None)
    return _Pattern(includes, segments, whole=pieces[-1] == "*", everything=everything)


_TOKEN: Final = re.compile(
    r"\\(?P<escaped>.)|(?P<star>\*+)|(?P<any>\?)|\[(?P<not>[!^]?+)(?P<range>\]?+[^\]]*+)\]|(?P<end>\\)|.", re.S
)


def _segment(glob: str) -> re.Pattern[str]:
    """One segment as a regular expression. Each run between two stars is atomic: the leftmost place where it fits
    is as good as any other, so there is nothing to go back to and matching stays linear in the stars."""
    runs = [""]
    for token in _TOKEN.finditer(glob):
        if token["star"]:
            runs.append("")
        elif token["end"]:
            raise ValueError("a backslash at the end escapes nothing")
        elif token["any"]:
            runs[-1] += "."
        elif token["range"] is not None:
            members = re.sub(r"[\\\[&~|]", r"\\\g<0>", token["range"])
            runs[-1] += f"[{'^' if token['not'] else ''}{members}]"
        else:
            runs[-1] += re.escape(token["escaped"] or token[0])
    first, *middle = runs
    if not middle:
        return re.compile(first, re.S)
    last = middle.pop()
    return re.compile(first + "".join(f"(?>.*?{run})" for run in middle) + f".*{last}", re.S)
