"""What files' paths say by themselves: which class a file is of, what its name is made of, which files a path means."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from context_os.text import identifier_parts

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_CLASSES: Final[Sequence[tuple[str, re.Pattern[str]]]] = (
    (
        "test",
        re.compile(
            r"(?:^|/)(?:tests?|testing|__tests__|spec|specs|testdata|fixtures)/|(?:^|/)(?:test_[^/]*|conftest)\.\w+$"
            r"|[._-](?:test|tests|spec)\.\w+$|Tests?\.(?:java|cs|php)$"
        ),
    ),
    (
        "example",
        re.compile(r"(?:^|/)(?:examples?|samples?|demos?|tutorials?|galler(?:y|ies)|benchmarks?|asv_bench)/"),
    ),
    ("documentation", re.compile(r"(?:^|/)docs?/|\.(?:md|rst|txt|adoc|html?)$", re.IGNORECASE)),
    ("source", re.compile(r"\.(?:py|pyi|pyx|js|jsx|mjs|cjs|ts|tsx|go|java|rs|c|h|cc|cpp|cxx|hh|hpp|cs|rb|php)$")),
)

CLASSES: Final = ("test", "example", "documentation", "other")
"""Every class but source, which the others are compared with."""


@lru_cache(maxsize=200_000)
def class_of(path: str) -> str:
    """What a path is, by its name alone: test, example, documentation, source or other."""
    return next((name for name, pattern in _CLASSES if pattern.search(path)), "other")


class Paths:
    """The paths of some files, looked through once for all questions. ``files`` are ``(repository, path)``; those that
    are not ``here`` (files,) are known from history alone, and no path means them."""

    def __init__(self, files: Sequence[tuple[str, str]], here: NDArray[np.bool_]) -> None:
        self._files = files
        self._here = np.flatnonzero(here).tolist()

    @cached_property
    def classes(self) -> NDArray[np.str_]:
        """(files,) see ``class_of``."""
        return np.array([class_of(path) for _, path in self._files], dtype=np.str_)

    def meant_by(self, path: str) -> list[int]:
        """The files that a path means: those with the longest common end, from the file's name on."""
        parts = path.split("/")
        best: list[int] = []
        longest = 0
        for number in self._by_name.get(parts[-1], ()):
            theirs = self._files[number][1].split("/")
            shared = 0
            for mine, other in zip(reversed(parts), reversed(theirs), strict=False):
                if mine != other:
                    break
                shared += 1
            if shared > longest:
                best, longest = [], shared
            if shared == longest:
                best.append(number)
        whole = longest in {len(parts), *(len(self._files[number][1].split("/")) for number in best)}
        return best if whole else []

    @cached_property
    def _by_name(self) -> dict[str, list[int]]:
        """Files by the last part of their path."""
        found: dict[str, list[int]] = {}
        for number in self._here:
            found.setdefault(self._files[number][1].rpartition("/")[2], []).append(number)
        return found

    @cached_property
    def name_words(self) -> dict[str, int]:
        """Every word that files' names are made of, and its number."""
        return {word: number for number, word in enumerate(dict.fromkeys(w for each in self._names for w in each))}

    @cached_property
    def _names(self) -> list[tuple[str, ...]]:
        return [_name_parts(path) for _, path in self._files]

    @cached_property
    def _words_of_names(self) -> tuple[Ints, Ints]:
        """Words' numbers, and whose name each is of."""
        numbers = [self.name_words[word] for each in self._names for word in each]
        return np.array(numbers, dtype=np.int64), np.repeat(np.arange(len(self._files)), [len(n) for n in self._names])

    def mean_of_names(self, worth: Floats) -> Floats:
        """(files,) what the words of its name are worth, in the mean; ``worth`` in the order of ``name_words``."""
        numbers, owners = self._words_of_names
        total = np.bincount(owners, weights=worth[numbers], minlength=len(self._files))
        return total / np.maximum(np.bincount(owners, minlength=len(self._files)), 1)

    @cached_property
    def stems(self) -> list[str]:
        """(files,) see ``stem``."""
        return [stem(path) for _, path in self._files]

    @cached_property
    def superseded(self) -> Mapping[str, Ints]:
        """The files of versions that stand there for those who still need them, by the version's name: the folder of
        one beside that of a later one (``v3/``, ``v4/``), or ``v1/`` in a folder that has most of its files by the same
        names."""
        here = [self._files[number] for number in self._here]
        older = set(_older_versions(here))
        found: dict[str, list[int]] = {}
        for number, (repository, path) in zip(self._here, here, strict=True) if older else ():
            for version in _VERSION.finditer(path):
                if (repository, path[: version.end()]) in older:
                    found.setdefault(version[0], []).append(number)
        return {name: np.array(numbers, dtype=np.int64) for name, numbers in found.items()}


def _name_parts(path: str) -> tuple[str, ...]:
    """The words of a file's name, or of its folder's where that is called as every folder's first file is."""
    *folders, name = path.split("/")
    stem = name.partition(".")[0]
    if stem.strip("_").lower() in _FIRST_FILES and folders:
        stem = folders[-1]
    return identifier_parts(stem)


_FIRST_FILES: Final = frozenset({"init", "index", "mod", "main", "lib"})

_AFFIX: Final = re.compile(r"^(?:tests?_|spec_)|(?:[._-](?:tests?|spec|impl)|Tests?)$")


def stem(path: str) -> str:
    """A file's name without its ending and without what makes a test of it."""
    name = path.rpartition("/")[2].split(".")
    stem = ".".join(name[:-1]) if len(name) > 1 else name[0]
    return _AFFIX.sub("", stem).lower()


_VERSION: Final = re.compile(r"(?:^|(?<=/))v(\d{1,3})(?=/)")


def _older_versions(files: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Repository and path of the folders of versions that are not the newest."""
    versions: dict[tuple[str, str], dict[int, list[str]]] = {}
    for repository, path in files:
        for found in _VERSION.finditer(path) if "/v" in path or path[:1] == "v" else ():
            place = repository, path[: found.start()]
            versions.setdefault(place, {}).setdefault(int(found[1]), []).append(path[found.end() + 1 :])
    known = set(files) if versions else set()
    for (repository, before), held in versions.items():
        newest = max(held)
        copied = sum((repository, before + name) in known for name in held[newest])
        for version in held:
            if version < newest or (version <= 1 and 2 * copied > len(held[version])):
                yield repository, f"{before}v{version}"


def shared_start(mine: Sequence[str], theirs: Sequence[str]) -> float:
    """Common leading folders as a share of the longer path; 1 for the same folder."""
    same = 0
    for one, other in zip(mine, theirs, strict=False):
        if one != other:
            break
        same += 1
    return (same + 1) / (max(len(mine), len(theirs)) + 1)
