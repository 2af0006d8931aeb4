"""Pull requests as git history alone tells them: merge commits and squash commits that name one.

Understood are GitHub's, GitLab's, Bitbucket's and Azure's merge messages and every subject that ends in "(#N)". What
history does not hold stays empty: labels, reviews, comments, open and unmerged pull requests, and commits
that were rebased without being named. Where several commits name one number, the newest counts. Bytes that are not
UTF-8 become U+FFFD.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from context_os.connectors import _pull
from context_os.connectors._pull import Commit, File, Person, Pull
from context_os.errors import SourceError
from context_os.git import Git

_PLAIN: Final = ("-z", "--no-color", "--no-notes", "--no-decorate", "--no-mailmap", "--encoding=UTF-8")
_WHO_AND_WHAT: Final = "--format=%H%n%P%n%an%n%ae%n%aI%n%cI%n%B"
_CANDIDATES: Final = ("--extended-regexp", "--grep=[#!][0-9]", "--grep=^Merged PR [0-9]")
_CHUNK: Final = 500
_SHALLOW: Final = "the clone is shallow and ends at commit {}: its files are not known; fetch more history"
_STATUS: Final = {"A": "added", "D": "removed", "R": "renamed", "C": "added"}


@dataclass(frozen=True)
class Named:
    """A commit message that names a pull request. ``head`` and ``base`` are branches, "" where not told."""

    number: int
    title: str
    body: str
    head: str = ""
    base: str = ""


_NUMBER: Final = r"([1-9]\d{0,8})"
_GITHUB: Final = re.compile(rf"Merge pull request #{_NUMBER} from (\S+)(?: into (\S+))?$")
_BITBUCKET_SERVER: Final = re.compile(rf"Merge pull request #{_NUMBER} in \S+ from (\S+) to (\S+)$")
_BITBUCKET: Final = re.compile(rf"Merged in (\S+) \(pull request #{_NUMBER}\)$")
_TITLED: Final = re.compile(rf"(?:Merged PR |Pull request #){_NUMBER}: (.+)$")
_GITLAB: Final = re.compile(rf"^See merge request (?:[^\s!]{{1,300}})?!{_NUMBER}[ \t]*$", re.MULTILINE)
_GITLAB_BRANCHES: Final = re.compile(r"Merge branch '([^']+)' into '?([^']+?)'?$")
_SQUASH: Final = re.compile(rf"\(#{_NUMBER}\)$")


def named_by(message: str) -> Named | None:
    """What pull request a commit message says it is, or None."""
    subject, body = _pull.split_message(message)
    if found := _GITHUB.match(subject):
        owner_branch = found[2]
        return _titled_by_body(int(found[1]), body, owner_branch.partition("/")[2] or owner_branch, found[3] or "")
    if found := _BITBUCKET_SERVER.match(subject):
        return _titled_by_body(int(found[1]), body, found[2], found[3])
    if found := _BITBUCKET.match(subject):
        return _titled_by_body(int(found[2]), body, found[1], "")
    if found := _TITLED.match(subject):
        return Named(int(found[1]), found[2].strip(), body)
    if found := _SQUASH.search(subject):
        return Named(int(found[1]), subject[: found.start()].rstrip(), body)
    return _gitlab(subject, body)


def _titled_by_body(number: int, body: str, head: str, base: str) -> Named:
    title, _, rest = body.partition("\n")
    return Named(number, title.strip() or head, rest.strip(), head, base)


def _gitlab(subject: str, body: str) -> Named | None:
    found = _GITLAB.findall(body)
    if not found:
        return None
    number, rest = int(found[-1]), _GITLAB.sub("", body).strip()
    branches = _GITLAB_BRANCHES.match(subject)
    if branches:
        return _titled_by_body(number, rest, branches[1], branches[2])
    return Named(number, subject, rest)


def list_merged(git: Git, revision: str, since: str = "") -> dict[str, str]:
    """``{"pull/N": commit}`` of every pull request in the history of ``revision``, newest first, without those in
    the history of ``since``. One process."""
    span = f"{since}..{revision}" if since else revision
    rows = git.run("log", *_PLAIN, *_CANDIDATES, "--format=%H%n%B", "--end-of-options", span, "--")
    units: dict[str, str] = {}
    for row in rows.split(b"\0"):
        sha, _, message = row.decode("utf-8", "replace").partition("\n")
        named = named_by(message)
        if named:
            units.setdefault(_pull.key_of(named.number), sha)
    return units


def list_direct(git: Git, revision: str, since: str = "") -> list[str]:
    """The commits of the main line of ``revision`` that name no pull request, newest first, without those in the
    history of ``since``. One process."""
    span = f"{since}..{revision}" if since else revision
    rows = git.run("log", *_PLAIN, "--first-parent", "--no-merges", "--format=%H%n%B", "--end-of-options", span, "--")
    told = (row.decode("utf-8", "replace").partition("\n") for row in rows.split(b"\0") if row)
    return [sha for sha, _, message in told if named_by(message) is None]


def is_ancestor(git: Git, old: str, new: str) -> bool:
    """Whether ``old`` is a commit in the history of ``new``; False also when it is gone or no commit id."""
    if not re.fullmatch(r"[0-9a-f]{40,64}", old):
        return False
    try:
        git.run("merge-base", "--is-ancestor", old, new)
    except SourceError:
        return False
    return True


def read_merged(git: Git, commits: Mapping[str, str]) -> Iterator[tuple[str, Pull | str]]:
    """Turn ``{"pull/N": commit}`` into pull requests; a reason instead where the commit no longer tells one.

    A handful of git processes for every few hundred.
    """
    pairs = list(commits.items())
    chunks = [pairs[start : start + _CHUNK] for start in range(0, len(pairs), _CHUNK)]
    by_commits = {tuple(sha for _, sha in chunk): dict(chunk) for chunk in chunks}
    for shas, diff in _diffs_ahead(git, list(by_commits)):
        yield from _read_chunk(git, by_commits[shas], _files(diff))


def read_direct(git: Git, shas: Sequence[str]) -> Iterator[tuple[str, Pull | str]]:
    """Turn commits into what a pull request of that one commit would say, number 0; a reason instead where one is not
    there or its files are not known."""
    edge = _shallow_edge(git)
    chunks = [shas[start : start + _CHUNK] for start in range(0, len(shas), _CHUNK)]
    for chunk, diff in _diffs_ahead(git, chunks):
        records, files = _records(git, chunk), _files(diff)
        for sha in chunk:
            record = records.get(sha)
            if record is None:
                yield sha, f"commit {sha} is not in {git.directory}; history was rewritten since the scan, scan again"
            elif sha in edge:
                yield sha, _SHALLOW.format(sha)
            else:
                named = Named(0, *_pull.split_message(record.message))
                yield sha, _pull_request(named, record, [record], files.get(sha, []))


_Shas = TypeVar("_Shas", bound=Collection[str])


def _diffs_ahead(git: Git, chunks: Sequence[_Shas]) -> Iterator[tuple[_Shas, bytes]]:
    """Each chunk of commits with what git says of their files. Counting lines is where the time goes: two processes do
    it, ahead of the rest."""
    pool = ThreadPoolExecutor(2)
    try:
        diffs = pool.map(lambda chunk: _diff(git, chunk), chunks)
        yield from zip(chunks, diffs, strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _diff(git: Git, shas: Iterable[str]) -> bytes:
    """What git says of the files of commits. A clone may lack contents (a partial one, a broken one): the paths are
    still known then, though neither the lines nor renames with an edit."""
    try:
        return _log(git, shas, "--format=%H", *_DIFF, "-M", "--numstat")
    except SourceError:
        return _log(git, shas, "--format=%H", *_DIFF, "-M100%")


def _read_chunk(
    git: Git, commits: Mapping[str, str], files: Mapping[str, list[File]]
) -> Iterator[tuple[str, Pull | str]]:
    records = _records(git, commits.values())
    inner = _inner_commits(git, [record for record in records.values() if len(record.parents) > 1])
    everyone = records | _records(git, {sha for shas in inner.values() for sha in shas} - records.keys())
    edge = _shallow_edge(git)
    for key, sha in commits.items():
        record = records.get(sha)
        named = named_by(record.message) if record else None
        if record is None:
            yield key, f"commit {sha} is not in {git.directory}; history was rewritten since the scan, scan again"
        elif named is None or _pull.key_of(named.number) != key:
            yield key, f"commit {sha} does not name {key}; scan again"
        elif sha in edge:
            yield key, _SHALLOW.format(sha)
        else:
            inside = [everyone[one] for one in inner.get(sha, [sha]) if one in everyone]
            yield key, _pull_request(named, record, inside, files.get(sha, []))


def _shallow_edge(git: Git) -> set[str]:
    """Commits that a shallow clone shows without their parents, as if they had added every file."""
    listed = Path(git.directory) / "shallow"
    return set(listed.read_text().split()) if listed.is_file() else set()


@dataclass(frozen=True)
class _Record:
    sha: str
    parents: tuple[str, ...]
    author: Person
    authored: str | None
    committed: str | None
    message: str

    def commit(self) -> Commit:
        return Commit(self.sha, self.message, self.author.name)


def _records(git: Git, shas: Iterable[str]) -> dict[str, _Record]:
    found = {}
    for row in _log(git, shas, _WHO_AND_WHAT).split(b"\0"):
        if row:
            record = _record(row.decode("utf-8", "replace"))
            found[record.sha] = record
    return found


def _log(git: Git, shas: Iterable[str], *options: str) -> bytes:
    wanted = [sha for sha in shas if re.fullmatch(r"[0-9a-f]{40,64}", sha)]
    if not wanted:
        return b""
    return git.run(
        "log", *_PLAIN, *options, "--no-walk=unsorted", "--ignore-missing", "--stdin", input="\n".join(wanted).encode()
    )


def _record(row: str) -> _Record:
    sha, parents, name, email, authored, committed, message = row.split("\n", 6)
    return _Record(
        sha, tuple(parents.split()), _author(name, email), _time(authored), _time(committed), message.strip()
    )


_NO_REPLY: Final = re.compile(r"(?:\d+\+)?([^@+]+)@users\.noreply\.github\.com", re.IGNORECASE)


def _author(name: str, email: str) -> Person:
    """GitHub's private addresses hold the login, which is what its API calls an author."""
    login = _NO_REPLY.fullmatch(email)
    return Person(login[1] if login else name or email or "ghost", _pull.is_bot(name, email=email))


def _time(text: str) -> str | None:
    try:
        return _pull.stamp(text)
    except ValueError:
        return None


def _pull_request(named: Named, record: _Record, inside: Sequence[_Record], files: Sequence[File]) -> Pull:
    first = inside[0] if inside else record
    return Pull(
        number=named.number,
        title=named.title,
        body=named.body,
        author=first.author,
        state="closed",
        merged=True,
        draft=False,
        created_at=first.authored,
        merged_at=record.committed,
        closed_at=record.committed,
        base=named.base,
        head=named.head,
        revision=record.sha,
        merge_commit=record.sha,
        labels=(),
        files=tuple(files[: _pull.MOST_FILES]),
        files_total=len(files),
        commits=tuple(one.commit() for one in inside[: _pull.MOST_COMMITS]),
        commits_total=len(inside),
    )


_DIFF: Final = (
    "--raw", "--root", "--diff-merges=first-parent", "--no-ext-diff", "--no-textconv",
    "--no-relative", "--ignore-submodules=none", "--submodule=short", "-O/dev/null",
)  # fmt: skip


def _files(output: bytes) -> dict[str, list[File]]:
    """The files of each commit against its first parent."""
    found: dict[str, list[File]] = {}
    current: list[File] = []
    counts: dict[str, tuple[int | None, int | None]] = {}
    tokens = iter(output.split(b"\0"))
    for token in (token.lstrip(b"\n") for token in tokens):
        if token.startswith(b":"):
            current.append(_changed(token, tokens))
        elif b"\t" in token:
            _count(token, tokens, counts)
        elif token:
            _settle(current, counts)
            current = found.setdefault(token.decode(), [])
    _settle(current, counts)
    return found


def _changed(token: bytes, tokens: Iterator[bytes]) -> File:
    """``:mode mode sha sha STATUS`` and its one or two paths."""
    letter = token.rsplit(b" ", 1)[1][:1].decode()
    old = _path(next(tokens))
    new = _path(next(tokens)) if letter in "RC" else old
    return File(new, _STATUS.get(letter, "modified"), old if old != new else None, None, None)


def _count(token: bytes, tokens: Iterator[bytes], counts: dict[str, tuple[int | None, int | None]]) -> None:
    """``added TAB deleted TAB path``; the path is empty before the two paths of a rename; "-" means binary."""
    added, deleted, path = token.split(b"\t", 2)
    if not path:
        next(tokens)
        path = next(tokens)
    counts[_path(path)] = (None, None) if added == b"-" else (int(added), int(deleted))


def _settle(files: list[File], counts: dict[str, tuple[int | None, int | None]]) -> None:
    for index, file in enumerate(files):
        added, deleted = counts.get(file.path, (None, None))
        files[index] = replace(file, additions=added, deletions=deleted)
    counts.clear()


def _path(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _inner_commits(git: Git, merges: Sequence[_Record]) -> dict[str, list[str]]:
    """The commits that each merge brought in, oldest first: what its other parents reach and its first does not."""
    if not merges:
        return {}
    tips = "\n".join(record.sha for record in merges).encode()
    rows = [row.split() for row in git.run("rev-list", "--parents", "--topo-order", "--stdin", input=tips).splitlines()]
    place = {row[0].decode(): index for index, row in enumerate(rows)}
    parents = [[place[one] for one in map(bytes.decode, row[1:]) if one in place] for row in rows]
    shas = list(place)
    return {
        record.sha: [shas[index] for index in reversed(_brought_in(parents, parents[place[record.sha]]))]
        for record in merges
    }


_OURS: Final = 1
_THEIRS: Final = 2


def _brought_in(parents: Sequence[Sequence[int]], ends: Sequence[int]) -> list[int]:
    """``git rev-list ends[0]..ends[1:]`` over commits numbered so that children come before their parents.

    Taking the smallest number first, a commit has heard from all its children when its turn comes; the walk ends
    when nothing waits that only theirs can reach, so its cost is the length of the branch and not of history.
    """
    colours = dict.fromkeys(ends[1:], _THEIRS)
    colours |= dict.fromkeys(ends[:1], _OURS)
    queue, found = list(colours), []
    heapq.heapify(queue)
    waiting = sum(colour == _THEIRS for colour in colours.values())
    while waiting:
        here = heapq.heappop(queue)
        if colours[here] == _THEIRS:
            waiting -= 1
            found.append(here)
        for parent in parents[here]:
            before = colours.get(parent, 0)
            after = colours[parent] = before | colours[here]
            waiting += (after == _THEIRS) - (before == _THEIRS)
            if not before:
                heapq.heappush(queue, parent)
    return found
