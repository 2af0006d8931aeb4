"""The files of one place: at a commit, in a working tree, or in a plain folder, all listed and read alike."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from context_os.connectors import Listing
from context_os.errors import SourceRefused
from context_os.git import REGULAR_FILES, Git, blob_hash

LARGEST: Final = 64 * 2**20
"""Bytes. A larger file is never read; the listing counts it."""

_NEVER_ENTERED: Final = frozenset({".git", "node_modules", ".venv"})


class Files:
    """``revision`` None means the working tree where there is one, else HEAD. A location without git is walked
    as a plain folder. With ``own_root`` a location that only lies inside somebody's working tree is walked too,
    instead of standing for that whole tree."""

    def __init__(self, location: Path, revision: str | None = None, *, own_root: bool = False) -> None:
        self.root = location.resolve()
        self._git = _git_at(self.root, revision, own_root)
        self._commit: str | None = None
        if self._git is not None and (revision is not None or self._git.worktree is None):
            self._commit = self._git.resolve(revision) if revision is not None else self._git.head()
        elif self._git is not None and self._git.worktree is not None:
            self.root = self._git.worktree

    @property
    def accessor(self) -> str:
        return "folder" if self._git is None else "worktree" if self._commit is None else "git"

    def list(self, wanted: Callable[[str], bool]) -> Listing:
        """Paths that are wanted, with git's blob hash of their content. Symbolic links, submodules, special
        files, files above ``LARGEST`` and names that are not UTF-8 are counted in ``skipped``."""
        skipped: Counter[str] = Counter()
        if self._git is None:
            return Listing("", self._on_disk(_walk(self.root), wanted, skipped), skipped=skipped)
        if self._commit is not None:
            return Listing(self._commit, self._at_commit(self._commit, wanted, skipped), skipped=skipped)
        units = self._on_disk(self._git.worktree_paths(), wanted, skipped)
        head = self._git.head()
        committed = self._at_commit(head, wanted, Counter())
        return Listing(head if units == committed else f"{head}+", units, skipped=skipped)

    def contents(self, keys: Sequence[str], hashes: Mapping[str, str]) -> Iterator[tuple[str, str, bytes | None]]:
        """``(key, blob hash, content)`` of each key. ``hashes`` are those of the listing; a file that changed on
        disk since comes with its new hash, one that is gone with the hash "" and None."""
        if self._git is None or self._commit is None:
            for key in keys:
                data = self._read(key, Counter())
                yield key, "" if data is None else blob_hash(data), data
            return
        shas = [hashes[key] for key in dict.fromkeys(keys) if key in hashes]
        found = dict(self._git.blobs(list(dict.fromkeys(shas))))
        for key in keys:
            sha = hashes.get(key, "")
            yield key, sha if sha in found else "", found.get(sha)

    def _at_commit(self, commit: str, wanted: Callable[[str], bool], skipped: Counter[str]) -> dict[str, str]:
        assert self._git is not None
        units = {}
        for entry in self._git.files(commit) if commit else []:
            if not _named(entry.path, wanted, skipped):
                continue
            if entry.mode not in REGULAR_FILES:
                skipped["symbolic link or submodule"] += 1
            elif entry.size > LARGEST:
                skipped[_TOO_LARGE] += 1
            else:
                units[entry.path] = entry.sha
        return units

    def _on_disk(
        self, paths: Iterator[str] | Sequence[str], wanted: Callable[[str], bool], skipped: Counter[str]
    ) -> dict[str, str]:
        named = (path for path in paths if _named(path, wanted, skipped))
        return {path: blob_hash(data) for path in named if (data := self._read(path, skipped)) is not None}

    def _read(self, path: str, skipped: Counter[str]) -> bytes | None:
        file = self.root / path
        try:
            state = file.lstat()
            if stat.S_ISLNK(state.st_mode) or stat.S_ISDIR(state.st_mode) or file.resolve() != file:
                skipped["symbolic link or submodule"] += 1
            elif not stat.S_ISREG(state.st_mode):
                skipped["not a regular file"] += 1
            elif state.st_size > LARGEST:
                skipped[_TOO_LARGE] += 1
            else:
                return file.read_bytes()
        except FileNotFoundError:
            pass  # deleted, but still in git's index, or since the listing
        except OSError as error:
            raise SourceRefused(f"cannot read {file}: {error.strerror}") from None
        return None


_TOO_LARGE: Final = f"larger than {LARGEST // 2**20} MiB"


def _git_at(root: Path, revision: str | None, own_root: bool) -> Git | None:
    if not root.is_dir():
        raise SourceRefused(
            f"{root} is not a directory; give a working tree, a bare git directory or a folder of files"
        )
    try:
        git = Git(root)
    except SourceRefused:
        if revision is not None or (root / ".git").exists():
            raise  # a broken repository must not pass for a folder of files
        return None
    enclosed = git.worktree is not None and git.worktree.resolve() != root
    return None if own_root and enclosed else git


def _named(path: str, wanted: Callable[[str], bool], skipped: Counter[str]) -> bool:
    if not wanted(path):
        return False
    try:
        path.encode()
    except UnicodeEncodeError:
        skipped["name is not UTF-8"] += 1
        return False
    return True


def _walk(root: Path) -> Iterator[str]:
    for folder, names, files in os.walk(root):
        names[:] = sorted(set(names) - _NEVER_ENTERED)
        for name in sorted(files):
            yield (Path(folder) / name).relative_to(root).as_posix()


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
