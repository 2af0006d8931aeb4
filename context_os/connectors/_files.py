"""The files of one place: at a commit, in a working tree, or in a plain folder, all listed and read alike."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pathspec import GitIgnoreSpec

from context_os.connectors import Listing
from context_os.errors import SourceError, SourceRefused
from context_os.git import REGULAR_FILES, Git, blob_hash

LARGEST: Final = 64 * 2**20
"""Bytes. A larger file is never read; the listing counts it as "huge"."""

Choice = Callable[[str], str | None]
"""What a connector says to a path: "" to list it, a reason to count it as skipped, None to pass it over in silence."""

_Rules = tuple[tuple[str, GitIgnoreSpec], ...]

_SYMLINK: Final = "symlink"
_SUBMODULE: Final = "submodule"
_MODES: Final = {"120000": _SYMLINK, "160000": _SUBMODULE, **dict.fromkeys(REGULAR_FILES, "")}


class Files:
    """``revision`` None means the working tree where there is one, else HEAD. A location without git is walked as
    a plain folder, whose .gitignore files count all the same. With ``own_root`` a location that only lies inside
    somebody's working tree is walked too, instead of standing for that whole tree. ``accessor`` says which it is.

    Raises SourceRefused for what is no folder or has no such revision, SourceError for a file that is there and
    cannot be read. Never follows a symbolic link, which may lead anywhere.
    """

    def __init__(self, location: Path, revision: str | None = None, *, own_root: bool = False) -> None:
        self.root = location.resolve()
        self._git = _git_at(self.root, revision, own_root)
        self._commit: str | None = None
        self._linked: dict[str, bool] = {}
        if self._git is None:
            self.accessor = "folder"
        elif revision is None and self._git.worktree is not None:
            self.accessor, self.root = "worktree", self._git.worktree
        else:
            self.accessor = "git"
            self._commit = self._git.head() if revision is None else self._git.resolve(revision)

    def list(self, choose: Choice, largest: int = LARGEST) -> Listing:
        """What ``choose`` wants, with git's blob hash of its content; without a commit ("") there is nothing. Symbolic
        links, submodules, special files, files above ``largest`` bytes and names that are not UTF-8 are counted in
        ``skipped``. At a commit no blob is opened; on disk each file is read once."""
        if self._git is None:
            return self._on_disk("", self._walk(), choose, largest)
        if self._commit is not None:
            return self._at_commit(self._commit, choose, largest)
        head = self._git.head()
        now = self._on_disk(f"{head}+", self._git.worktree_paths(), choose, largest)
        committed = self._at_commit(head, choose, largest)
        return Listing(head, now.units, skipped=now.skipped) if now.units == committed.units else now

    def contents(self, keys: Sequence[str], hashes: Mapping[str, str]) -> Iterator[tuple[str, str, bytes | None]]:
        """``(key, blob hash, content)`` of each key, in any order. ``hashes`` are those of the listing; a file that
        changed on disk since comes with its new hash, one that is gone with the hash "" and None."""
        if self._git is None or self._commit is None:
            for key in keys:
                data = self._bytes(key)
                yield key, "" if data is None else blob_hash(data), data
            return
        waiting: dict[str, list[str]] = {}
        for key in keys:
            waiting.setdefault(hashes.get(key, ""), []).append(key)
        for sha, data in self._git.blobs([sha for sha in waiting if sha]):
            for key in waiting.pop(sha):
                yield key, sha, data
        for key in (key for rest in waiting.values() for key in rest):
            yield key, "", None

    def _at_commit(self, commit: str, choose: Choice, largest: int) -> Listing:
        assert self._git is not None
        units, skipped = {}, Counter[str]()
        for entry in self._git.files(commit) if commit else ():
            chosen = choose(entry.path)
            if chosen is None:
                continue
            reason = _MODES.get(entry.mode, "unsupported") or _reason(entry.path, chosen, entry.size, largest)
            if reason:
                skipped[reason] += 1
            else:
                units[entry.path] = entry.sha
        return Listing(commit, units, skipped=skipped)

    def _on_disk(self, revision: str, paths: Iterable[str], choose: Choice, largest: int) -> Listing:
        units, skipped = {}, Counter[str]()
        for path in paths:
            chosen = choose(path)
            found = None if chosen is None else self._state(path)
            if chosen is None or found is None:
                continue
            mode, size = found
            reason = mode or _reason(path, chosen, size, largest)
            if reason:
                skipped[reason] += 1
            elif (data := self._bytes(path)) is not None:
                units[path] = blob_hash(data)
        return Listing(revision, units, skipped=skipped)

    def _state(self, path: str) -> tuple[str, int] | None:
        """What makes a path no file ("" for a file) and its size in bytes; None for one that is deleted."""
        try:
            found = os.lstat(self._place(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        if stat.S_ISLNK(found.st_mode) or self._behind_link(path):
            return _SYMLINK, 0
        if stat.S_ISDIR(found.st_mode):
            return _SUBMODULE, 0
        return "" if stat.S_ISREG(found.st_mode) else "unsupported", found.st_size

    def _place(self, path: str) -> str:
        """Every file is asked for at every look, and a ``Path`` takes longer to make than the system's answer."""
        return f"{self.root}/{path}"

    def _behind_link(self, path: str) -> bool:
        folder = path.rpartition("/")[0]
        if folder and folder not in self._linked:
            self._linked[folder] = (self.root / folder).is_symlink() or self._behind_link(folder)
        return bool(folder) and self._linked[folder]

    def _bytes(self, path: str) -> bytes | None:
        try:
            if self._behind_link(path):
                return None
            descriptor = os.open(self._place(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise SourceError(
                f"cannot read {self.root / path}: {error.strerror}; make it readable or ignore it"
            ) from None

    def _walk(self) -> Iterator[str]:
        """Paths below the root. The .gitignore file nearest to a path decides about it, as git has it."""
        waiting: list[tuple[str, _Rules]] = [("", ())]
        while waiting:
            folder, rules = waiting.pop()
            rules = self._with_rules_of(folder, rules)
            for entry in self._entries(folder):
                path = f"{folder}{entry.name}"
                is_folder = entry.is_dir(follow_symlinks=False)
                if entry.name == ".git" or _ignored(f"{path}/" if is_folder else path, rules):
                    continue
                if is_folder:
                    waiting.append((f"{path}/", rules))
                else:
                    yield path

    def _entries(self, folder: str) -> Sequence[os.DirEntry[str]]:
        try:
            with os.scandir(self.root / folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise SourceError(
                f"cannot list {self.root / folder}: {error.strerror}; make it readable or ignore it"
            ) from None

    def _with_rules_of(self, folder: str, rules: _Rules) -> _Rules:
        data = self._bytes(f"{folder}.gitignore") if (self.root / folder / ".gitignore").is_file() else None
        if data is None:
            return rules
        return (*rules, (folder, GitIgnoreSpec.from_lines(os.fsdecode(data).splitlines())))


def _ignored(path: str, rules: _Rules) -> bool:
    for folder, spec in reversed(rules):
        verdict = spec.check_file(path.removeprefix(folder)).include
        if verdict is not None:
            return verdict
    return False


def _git_at(root: Path, revision: str | None, own_root: bool) -> Git | None:
    try:
        git = Git(root)
    except SourceRefused:
        if not root.is_dir() or revision is not None or (root / ".git").exists():
            raise  # a broken repository must not pass for a folder of files
        return None
    enclosed = git.worktree is not None and git.worktree.resolve() != root
    return None if own_root and enclosed else git


def _reason(path: str, chosen: str, size: int, largest: int) -> str:
    if not path.isprintable() and not _encodable(path):
        return "undecodable"
    return chosen or ("huge" if size > largest else "")


def _encodable(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


_VENDORED: Final = re.compile(
    r"(?:^|/)(?:vendor|_vendor|third[_-]?party|node_modules|bower_components|site-packages|dist-packages|Godeps|Pods"
    r"|\.?venv|\.tox|\.nox)/"
)
_MINIFIED: Final = re.compile(r"[.-]min\.(?:[cm]?js|css)\Z")
_GENERATED: Final = re.compile(
    rb"@generated\b|Code generated .{0,200}DO NOT EDIT|<auto-?generated|Generated by the protocol buffer compiler"
)
_COMMENT_LINE: Final = re.compile(rb"^[ \t]*(?:#|//|/\*|\*|<!--|--|;).*$", re.MULTILINE)
_HEAD: Final = 2_048
_BINARY_HEAD: Final = 8_192


def foreign(path: str) -> str:
    """Why a file's path makes it nobody's own work here ("vendored", "generated" for a minified one), or ""."""
    if _VENDORED.search(path):
        return "vendored"
    return "generated" if _MINIFIED.search(path) else ""


def unwanted(data: bytes) -> str:
    """Why a file's content makes it no source ("binary", "generated"), or ""."""
    if b"\0" in data[:_BINARY_HEAD]:
        return "binary"
    return "generated" if any(map(_GENERATED.search, _COMMENT_LINE.findall(data[:_HEAD]))) else ""


@dataclass(frozen=True)
class Decoded:
    """``text`` is readable even where ``problem`` says that it must be refused; line ends are ``\\n``."""

    text: str
    problem: str = ""
    note: str = ""


def decode(data: bytes) -> Decoded:
    """Text of a file that ought to be UTF-8. A byte-order mark is dropped with a note; UTF-16 and bytes that are
    not UTF-8 are a problem, since a guess would put wrong words before a reader."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return Decoded(data.decode("utf-16", "replace"), "the file is UTF-16; save it as UTF-8")
    note = ""
    if data.startswith(b"\xef\xbb\xbf"):
        data, note = data[3:], "a byte-order mark at the beginning was dropped"
    try:
        return Decoded(data.decode().replace("\r\n", "\n"), note=note)
    except UnicodeDecodeError as error:
        where = f"byte {error.start} is {data[error.start]:#04x}, which is not UTF-8; save the text as UTF-8"
        return Decoded(data.decode("utf-8", "backslashreplace"), where, note)
