"""Reads a question, an issue or a stack trace for what it is: its title and body, the paths, names and frames in it.

All of it is somebody's text and may be hostile: nothing here is more than linear in its length, which is bounded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from context_os.text import words

LONGEST: Final = 40_000
"""Characters that are read; what follows in longer texts is log output."""

_PYTHON_FRAME: Final = re.compile(r'File "([^"\n]{1,400})", line (\d{1,7})(?:, in ([^\s<(]{1,200}|<\w+>))?')
_OTHER_FRAME: Final = re.compile(
    r"\bat (?:(?:async |new )?([\w$.<>\[\] ]{1,200}) \()?([\w@./-]{1,300}\.[A-Za-z]{1,5}):(\d{1,7})"
)
_LINE_FRAME: Final = re.compile(r"^[ \t]*([\w@./-]{1,300}\.[A-Za-z]{1,5}):(\d{1,7})(?::|\s|$)", re.MULTILINE)
# Long runs are cut out as a whole first and looked at after: a pattern that may begin anywhere in a run would read it
# again from every one of its characters.
_RUN_OF_PATH: Final = re.compile(r"[\w@.+/\\-]+")
_PATH: Final = re.compile(r"[\w@.+/-]*\w\.[A-Za-z]\w{0,5}")
_RUN_OF_NAMES: Final = re.compile(r"[\w.:#]+")
_DOTTED: Final = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
_LONGEST_RUN: Final = 300
_NAMES_ALONE: Final = 2
"""Words that are all there is to a question are names, whatever their shape."""
_IMPORT: Final = re.compile(r"\bfrom ([\w.]{1,200}) import ([\w, ()*]{1,300})")
_IDENTIFIER: Final = re.compile(r"\b[A-Za-z_]\w*")
_QUOTED: Final = re.compile(r"`([^`\n]{1,120})`")
_CODE: Final = re.compile(r"_|[a-z\d][A-Z]|[A-Z]{2}[a-z]")
_STOP: Final = frozenset(
    """
    a an and are as at be because been but by can cannot could did do does doesn doesnt don dont for from get
    gets got had has have how i if in into is isn isnt it its just like me my no not of on or our out should
    so some such t than that the their then there these this those to too use used uses using was we were what
    when where which while who why will with won wont would you your s re ve ll d m
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Frame:
    """One line of a stack trace. ``depth`` 0 is the innermost."""

    path: str
    line: int
    function: str
    depth: int


@dataclass(frozen=True)
class Question:
    """A text with what can be told from its form."""

    title: str
    body: str

    @cached_property
    def text(self) -> str:
        return f"{self.title}\n{self.body}" if self.body else self.title

    @cached_property
    def words(self) -> Counter[str]:
        return Counter(words(self.text))

    @cached_property
    def title_words(self) -> Counter[str]:
        """Without stop words, unless nothing else is there."""
        found = Counter(words(self.title))
        return Counter({word: count for word, count in found.items() if word not in _STOP}) or found

    @cached_property
    def content_words(self) -> Counter[str]:
        """The words without stop words."""
        return Counter({word: count for word, count in self.words.items() if word not in _STOP})

    @cached_property
    def frames(self) -> tuple[Frame, ...]:
        """The frames of the last stack trace in it, the innermost first: Python's last frame, others' first."""
        python = [(path, int(line), name or "") for path, line, name in _PYTHON_FRAME.findall(self.text)]
        if python:
            found = python[::-1]
        else:
            found = [(path, int(line), name.strip()) for name, path, line in _OTHER_FRAME.findall(self.text)]
            found = found or [(path, int(line), "") for path, line in _LINE_FRAME.findall(self.text)]
        return tuple(
            Frame(path.replace("\\", "/"), line, name.rpartition(".")[2], depth)
            for depth, (path, line, name) in enumerate(found[:40])
        )

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """What looks like a file's path, each once."""
        runs = (run.replace("\\", "/").strip("./-+") for run in _runs(_RUN_OF_PATH, self.text))
        found = [run for run in runs if _PATH.fullmatch(run)]
        return tuple(dict.fromkeys(found))[:200]

    @cached_property
    def dotted(self) -> tuple[str, ...]:
        """Dotted names and what import statements bring in, the whole name of each."""
        runs = (re.sub(r"::|#", ".", run).strip(".:") for run in _runs(_RUN_OF_NAMES, self.text))
        found = [run for run in runs if _DOTTED.fullmatch(run)]
        for module, names in _IMPORT.findall(self.text):
            found.append(module)
            found += [f"{module}.{name}" for name in _IDENTIFIER.findall(names) if name != "as"]
        return tuple(dict.fromkeys(found))[:300]

    @cached_property
    def identifiers(self) -> tuple[str, ...]:
        """Words that look like names in code: quoted, with underscores or inner capitals, or parts of dotted names."""
        quoted = [name for span in _QUOTED.findall(self.text) for name in _IDENTIFIER.findall(span)]
        shaped = [name for name in _runs(_IDENTIFIER, self.text) if _CODE.search(name.strip("_"))]
        parts = [part for name in self.dotted for part in name.split(".")]
        words = _IDENTIFIER.findall(self.text[:200])
        alone = words if len(words) <= _NAMES_ALONE else []
        found = dict.fromkeys(name for name in (*quoted, *shaped, *parts, *alone) if len(name) > 2)
        return tuple(found)[:400]


def _runs(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    return (run for run in pattern.findall(text) if len(run) <= _LONGEST_RUN)


def read(text: str) -> Question:
    """The first line that says something is the title."""
    title, _, body = text.strip()[:LONGEST].partition("\n")
    return Question(title.strip(), body.strip())
