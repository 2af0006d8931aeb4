"""Reading git repositories, working trees and bare directories alike, through the ``git`` command.

A repository is untrusted: nothing here runs its hooks, its file-system monitor, its diff drivers or its
text converters, and nothing writes to it.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from context_os.errors import SourceError, SourceRefused

_SAFE: Final = (
    "--no-optional-locks",
    "-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null",
    "-c", "core.quotePath=false", "-c", "log.showSignature=false",
)  # fmt: skip

EMPTY_TREE: Final = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
REGULAR_FILES: Final = frozenset({"100644", "100755"})


_WHOLE_ID: Final = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


@dataclass(frozen=True)
class TreeEntry:
    """A file of a commit. ``path`` is POSIX and relative to the root, ``size`` in bytes (0 where git cannot say)."""

    path: str
    sha: str
    size: int
    mode: str


class Git:
    """One repository. ``worktree`` is None for a bare one, and for the ``.git`` folder inside a working tree."""

    def __init__(self, location: Path | str) -> None:
        self.location = Path(location).resolve()
        if not self.location.is_dir():
            raise SourceRefused(f"{self.location} is not a directory; give a working tree or a bare git directory")
        try:
            answer = self.text("rev-parse", "--is-inside-work-tree", "--absolute-git-dir", "--show-cdup")
        except SourceError as error:
            raise SourceRefused(f"{self.location} is not a git repository: {error}") from None
        inside, self.directory, up = [*answer.split("\n"), ""][:3]
        self.worktree = Path(os.path.normpath(self.location / up)) if inside == "true" else None

    def run(self, *arguments: str, input: bytes | None = None) -> bytes:
        """Standard output of one git command. Raises SourceError with git's own words."""
        try:
            done = subprocess.run(
                ["git", *_SAFE, "-C", str(self.location), *arguments],
                input=input,
                stdin=subprocess.DEVNULL if input is None else None,
                capture_output=True,
                check=False,
            )
        except FileNotFoundError:
            raise SourceError("the git command is not installed; Context-OS reads repositories with it") from None
        if done.returncode != 0:
            message = done.stderr.decode("utf-8", "replace").strip() or f"exit {done.returncode}"
            raise SourceError(f"git {arguments[0]} in {self.location}: {message}")
        return done.stdout

    def text(self, *arguments: str) -> str:
        return self.run(*arguments).decode("utf-8", "replace")

    def resolve(self, revision: str) -> str:
        """The full commit id. Raises SourceRefused for an unknown or ambiguous revision."""
        if revision.startswith("-"):
            raise SourceRefused(f"{revision!r} is not a revision")
        try:
            return self.text("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}").strip()
        except SourceError:
            raise SourceRefused(f"{self.location} has no revision {revision!r}") from None

    def head(self) -> str:
        """The commit of HEAD, or "" in a repository without commits."""
        try:
            return self.resolve("HEAD")
        except SourceRefused:
            return ""

    def files(self, revision: str) -> list[TreeEntry]:
        """Every file of a commit, submodules and symbolic links included (see ``mode``)."""
        commit = revision if _WHOLE_ID.fullmatch(revision) else self.resolve(revision)
        rows = self.run("ls-tree", "-r", "-z", "--long", "--full-tree", commit).split(b"\0")
        entries = []
        for row in filter(None, rows):
            meta, _, path = row.partition(b"\t")
            mode, _, sha, size = meta.decode().split()
            entries.append(TreeEntry(os.fsdecode(path), sha, int(size) if size.isdigit() else 0, mode))
        return entries

    def blob_ids(self, revision: str, paths: Sequence[str]) -> dict[str, str]:
        """The blob of each of these paths in a commit, for those that it has."""
        commit = self.resolve(revision)
        questions = [f"{commit}:{path}" for path in paths if "\n" not in path]
        answers = self.run("cat-file", "--batch-check", input="\n".join(questions).encode() + b"\n").splitlines()
        found = zip((path for path in paths if "\n" not in path), answers, strict=False)
        return {path: answer.split()[0].decode() for path, answer in found if b" blob " in answer}

    def worktree_paths(self) -> list[str]:
        """Tracked files and untracked ones that .gitignore does not name, as they are on disk now."""
        assert self.worktree is not None
        rows = self.run("ls-files", "-z", "--full-name", "--cached", "--others", "--exclude-standard", ":/").split(
            b"\0"
        )
        return sorted({os.fsdecode(row) for row in rows if row})

    def blobs(self, shas: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """The content of blobs, one process for all, in the order asked. Missing ones are left out."""
        if not shas:
            return
        process = subprocess.Popen(
            ["git", *_SAFE, "-C", str(self.location), "cat-file", "--batch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        # A thread writes the questions: with both pipes full, one process alone would wait for itself.
        asker = threading.Thread(target=_ask, args=(process.stdin, shas), daemon=True)
        asker.start()
        try:
            for sha in shas:
                header = process.stdout.readline().split()
                if not header:
                    raise SourceError(f"git cat-file in {self.location} ended early, before {sha}")
                if header[-1] == b"missing":
                    continue
                size = int(header[2])
                data = process.stdout.read(size + 1)
                if len(data) != size + 1:
                    raise SourceError(f"git cat-file in {self.location} ended early, inside {sha}")
                yield sha, data[:-1]
        finally:
            process.stdout.close()
            process.kill()
            process.wait()
            asker.join()

    def first_parent(self, revision: str) -> str:
        """The commit before this one on its own line, or the empty tree before the first."""
        found = self.text("rev-list", "--parents", "-n", "1", self.resolve(revision)).split()
        return found[1] if len(found) > 1 else EMPTY_TREE

    def diff(self, base: str, head: str) -> str:
        """A unified diff between two commits."""
        return self.text(
            "diff", "-M", "--no-color", "--no-ext-diff", "--no-textconv", self._tree(base), self._tree(head)
        )

    def _tree(self, revision: str) -> str:
        return revision if revision == EMPTY_TREE else self.resolve(revision)

    def suggested_name(self) -> str:
        """``owner/name`` of the remote called origin, else the folder's name without ``.git``."""
        try:
            url = self.text("config", "--get", "remote.origin.url").strip()
        except SourceError:
            url = ""
        found = re.search(r"[/:]([^/:]+/[^/]+?)(?:\.git)?/?$", url) if "://" in url or "@" in url else None
        if found:
            return found[1]
        folder = self.worktree or Path(self.directory)
        return folder.name.removesuffix(".git") or folder.parent.name


def _ask(pipe: IO[bytes], shas: Sequence[str]) -> None:
    try:
        for sha in shas:
            pipe.write(sha.encode() + b"\n")
        pipe.close()
    except (BrokenPipeError, ValueError):
        pass  # the reader stopped early


def blob_hash(data: bytes) -> str:
    """git's own SHA-1 of a blob, so that a working tree and a commit agree on what is unchanged."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
