"""Goldsets: cases with what a pack must contain and must not, in files that a team keeps beside its code.

``goldsets/<name>/goldset.json`` says which repositories and how to read them, ``cases.jsonl`` has a case a line,
``baseline.jsonl`` the accepted results (see ``evaluation``). The laboratory's file, which has its cases inside, is read
as it is. A case names commits: the diff is taken from git when it runs and never stored.

Cases are made from merged commits by leaving one changed file out of the diff: the pack that the rest brings should
hold it. From a pull request on GitHub they are made the same way, with the files that reviewers commented on left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pydantic import Field, ValidationError

from context_os import plugins
from context_os.change import parse_diff
from context_os.connectors import Connector, Known, Listing, Repository
from context_os.errors import ConfigurationError, NotFound, SourceError, SourceRefused, SourceUnavailable
from context_os.git import Git
from context_os.kept_packs import KeptPack, digest_of
from context_os.model import Confidentiality, KnowledgeItem, Value
from context_os.selectors import Request
from context_os.settings import Settings

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
HEAD_FILE: Final = "goldset.json"
CASES_FILE: Final = "cases.jsonl"
BASELINE_FILE: Final = "baseline.jsonl"
FOLDER: Final = "goldsets"
"""Of the home: what goldsets ingested, cloned and found."""
_PULL: Final = re.compile(r"^Merge pull request #(\d+) |\(#(\d+)\)$")
_FEWEST_FILES, _MOST_FILES = 2, 12
"""Of a change: one file leaves nothing to ask with, and a sweep says little about any of its files."""
_MOST_SYMBOLS: Final = 3
_V = TypeVar("_V", bound=Value)


class Place(Value):
    """Where a repository is: a path (relative to the goldset's folder) or a URL to clone. ``revision`` is for cases
    that name none."""

    source: str = Field(min_length=1)
    revision: str = ""


class PullRequest(Value):
    """As the laboratory wrote it. ``files`` are paths."""

    number: int = Field(ge=0)
    files: tuple[str, ...] = ()
    diff_summary: str = ""


class Finding(Value):
    """What a reviewer should say. Judged only where a model is configured."""

    description: str = Field(min_length=1)
    severity: str = ""


class Things(Value):
    """Items by id, files by path, definitions by a name that they have, rules by title, path or id."""

    items: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()

    @property
    def named(self) -> list[tuple[Kind, str]]:
        kinds: dict[Kind, tuple[str, ...]] = {
            "item": self.items,
            "path": self.paths,
            "symbol": self.symbols,
            "rule": self.rules,
        }
        return [(kind, name) for kind, names in kinds.items() for name in dict.fromkeys(names)]


Kind = Literal["item", "path", "symbol", "rule"]


class Case(Value):
    """One request and what its pack must hold.

    Asked is ``question``, the diff ``base..head`` without the files ``hidden``, or both; where there are no commits,
    the names of the pull request's files. ``revision`` is what is ingested, by default ``base``. ``forbidden`` paths
    may be globs. ``max_tokens`` is the budget that the pack is asked for and the ceiling that it is held to. ``tenant``
    and ``clearance`` are of whoever asks. ``source`` says where the case is from.
    """

    id: str = Field(min_length=1, max_length=200)
    source: str = ""
    repository: str = ""
    revision: str = ""
    question: str = ""
    base: str = ""
    head: str = ""
    hidden: tuple[str, ...] = ()
    pull_request: PullRequest | None = None
    expected: Things = Things()
    forbidden: Things = Things()
    expected_findings: tuple[Finding, ...] = ()
    required_skills: tuple[str, ...] = ()
    knowledge_items: tuple[str, ...] = ()
    max_tokens: int | None = Field(default=None, ge=64)
    tenant: str = ""
    clearance: Confidentiality | None = None

    @property
    def wanted(self) -> list[tuple[Kind, str]]:
        """Everything that the pack must hold, the laboratory's ``knowledgeItems`` included."""
        items = (*self.knowledge_items, *self.expected.items)
        return self.expected.model_copy(update={"items": items}).named

    @property
    def digest(self) -> str:
        """Results of a case compare only while it asks and expects the same."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def problems(self, repositories: Mapping[str, Place]) -> Iterator[str]:
        """What is wrong with it beyond its form."""
        if not (self.question or self.base or self.pull_request):
            yield "it asks nothing: give question, base and head, or pullRequest"
        if bool(self.base) != bool(self.head):
            yield "base and head belong together"
        if not (self.wanted or self.forbidden.named or self.expected_findings):
            yield "it judges nothing: give expected, forbidden, knowledgeItems or expectedFindings"
        if self.repository and self.repository not in repositories:
            yield f"no repository {self.repository!r} in {HEAD_FILE}; there are: {', '.join(repositories) or 'none'}"
        if not self.repository and len(repositories) != 1:
            yield "repository is missing, and there is not exactly one to choose"
        for revision in filter(lambda each: each.startswith("-"), (self.base, self.head, self.revision)):
            yield f"{revision!r} is not a revision"


class Goldset(Value):
    """``connectors`` are what is ingested, each with its options as in ``context-os.toml``; network is never needed.
    ``vectors`` false asks without vectors, so that results are the same with and without a model on the machine.
    """

    domain: str = "code"
    intent: str = "review"
    version: str = "1"
    description: str = ""
    tenant: str = Field(default="default", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    clearance: Confidentiality = Confidentiality.INTERNAL
    max_tokens: int = Field(default=8_000, ge=64)
    vectors: bool = False
    repositories: dict[str, Place] = Field(default_factory=dict)
    connectors: dict[str, dict[str, Any]] = Field(
        default_factory=lambda: {
            "bug_specs": {},
            "commits": {},
            "documents": {},
            "pull_requests": {"api": "git"},
            "symbols": {},
            "team_rules": {},
        }
    )
    cases: tuple[Case, ...] = ()

    def repository_of(self, case: Case) -> str:
        return case.repository or next(iter(self.repositories))


@dataclass(frozen=True)
class Folder:
    """One goldset on disk."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def baseline(self) -> Path:
        return self.path / BASELINE_FILE

    def read(self) -> Goldset:
        """Raises NotFound where there is none, ConfigurationError with every problem, each with its file and line."""
        if not (self.path / HEAD_FILE).is_file():
            raise NotFound(f"no goldset {self.name!r} in {self.path.parent}; `context-os goldset add` makes one")
        problems: list[str] = []
        head, inside = self._head(problems)
        lines = [*inside, *_lines(self.path / CASES_FILE, problems)]
        cases: dict[str, Case] = {}
        for place, raw in lines:
            case = _value(Case, raw, place, problems)
            if case is None:
                continue
            problems += [f"{place}: case {case.id}: {each}" for each in case.problems(head.repositories)]
            if case.id in cases:
                problems.append(f"{place}: case {case.id}: another case has this id")
            cases[case.id] = case
        if problems:
            raise ConfigurationError(f"the goldset {self.name} has problems:\n  " + "\n  ".join(problems))
        return head.model_copy(update={"cases": tuple(cases.values())})

    def _head(self, problems: list[str]) -> tuple[Goldset, list[tuple[str, Any]]]:
        """The head without its cases, and these as they stand in it."""
        file = self.path / HEAD_FILE
        text = _text(file, problems)
        try:
            raw = json.loads(text or "{}")
        except ValueError as error:
            problems.append(f"{file}:{getattr(error, 'lineno', 1)}: {error}")
            return Goldset(), []
        inside = raw.pop("cases", []) if isinstance(raw, dict) else []
        found = _value(Goldset, raw, str(file), problems, text) or Goldset()
        problems += [f"{file}: {each}" for each in _unknown_connectors(found)]
        places = [f"{file}:{_line_of(text, str(each.get('id')) if isinstance(each, dict) else '')}" for each in inside]
        return found, list(zip(places, inside, strict=True))

    def write(self, goldset: Goldset) -> None:
        """Head and cases, each file whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        cases = "".join(f"{_json(case)}\n" for case in goldset.cases)
        write_whole(self.path / CASES_FILE, cases)
        head = goldset.model_dump(mode="json", by_alias=True, exclude={"cases"}, exclude_defaults=True)
        write_whole(self.path / HEAD_FILE, json.dumps(head, indent=2, ensure_ascii=False) + "\n")

    def add(self, cases: Iterable[Case], repository: str, place: Place, tenant: str = "") -> list[Case]:
        """The cases that were not there yet, written; the goldset is made where there is none. A repository that is
        there keeps its place."""
        known = self.read() if (self.path / HEAD_FILE).is_file() else Goldset(tenant=tenant or "default")
        ids = {case.id for case in known.cases}
        new = [case for case in cases if case.id not in ids]
        repositories = {repository: place} | known.repositories
        self.write(known.model_copy(update={"cases": (*known.cases, *new), "repositories": repositories}))
        return new


def folders(place: Path) -> list[Folder]:
    """Every goldset below a folder, by name."""
    heads = place.glob(f"*/{HEAD_FILE}") if place.is_dir() else ()
    return sorted((Folder(each.parent) for each in heads), key=lambda each: each.name)


def write_whole(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _unknown_connectors(goldset: Goldset) -> Iterator[str]:
    known = plugins.names("connectors")
    for name in sorted(set(goldset.connectors) - set(known)):
        yield f"connectors.{name}: no such connector; there are: {', '.join(known)}"


def _text(file: Path, problems: list[str]) -> str:
    try:
        return file.read_text(encoding="utf-8") if file.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{file}:1: {error}")
        return ""


def _lines(file: Path, problems: list[str]) -> list[tuple[str, Any]]:
    """What a file of JSON lines holds, each with its place."""
    found = []
    for number, line in enumerate(_text(file, problems).split("\n"), start=1):
        try:
            found += [(f"{file}:{number}", json.loads(line))] if line.strip() else []
        except ValueError as error:
            problems.append(f"{file}:{number}: no JSON: {error}")
    return found


def _value(kind: type[_V], raw: Any, place: str, problems: list[str], text: str = "") -> _V | None:
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        for each in error.errors(include_input=False, include_url=False):
            name = ".".join(map(str, each["loc"]))
            keys = [part for part in each["loc"] if isinstance(part, str)]
            line = f":{_line_of(text, keys[-1] if keys else '')}" if text else ""
            problems.append(f"{place}{line}: {name or 'it'}: {each['msg']}")
        return None


def _line_of(text: str, key: str) -> int:
    """Where a key or a value stands first, 1 where it does not."""
    return next((number for number, line in enumerate(text.split("\n"), 1) if key and json.dumps(key) in line), 1)


def _json(value: Value) -> str:
    return json.dumps(value.model_dump(mode="json", by_alias=True, exclude_defaults=True), ensure_ascii=False)


# Where repositories are


def located(settings: Settings, folder: Folder, name: str, place: Place) -> Git:
    """A repository of a goldset: where the settings say, else where it says itself. A URL is cloned once, and fetched
    by whoever misses a commit. Raises SourceError."""
    configured = settings.goldsets.repositories.get(name)
    if configured is not None:
        return _opened(configured, settings.goldsets.folder.parent, settings.home, name)
    return _opened(place.source, folder.path, settings.home, name)


def _opened(source: str, folder: Path, home: Path, name: str) -> Git:
    if "://" not in source and not re.match(r"[\w.-]+@[\w.-]+:", source):
        return Git(folder / Path(source).expanduser())
    clones = home / FOLDER / "repositories"
    clone = clones / f"{name.replace('/', '+')}-{hashlib.sha256(source.encode()).hexdigest()[:8]}.git"
    if not clone.exists():
        partial = clone.with_name(f"{clone.name}.{os.getpid()}")
        clones.mkdir(parents=True, exist_ok=True, mode=0o700)
        _transfer("clone", "--quiet", "--bare", "--", source, str(partial))
        partial.replace(clone)
    return Git(clone)


def commit_of(git: Git, revision: str) -> str:
    """A commit's id; a clone is fetched where it misses it. Raises SourceRefused that tells of a shallow clone."""
    try:
        return git.resolve(revision)
    except SourceRefused:
        if git.worktree is None and _is_ours(git):
            _transfer("-C", git.directory, "fetch", "--quiet", "origin", "+refs/heads/*:refs/heads/*")
            return git.resolve(revision)
        if git.text("rev-parse", "--is-shallow-repository").strip() == "true":
            raise SourceRefused(
                f"{git.location} is a shallow clone without {revision[:12]}; `git fetch --unshallow` gets it"
            ) from None
        raise


def _is_ours(git: Git) -> bool:
    return Path(git.directory).parent.parent.name == FOLDER


def _transfer(*arguments: str) -> None:
    """git over a network, asking nobody for a password. Raises SourceUnavailable."""
    safe = ("-c", "protocol.ext.allow=never", "-c", "core.hooksPath=/dev/null", "-c", "core.askPass=true")
    done = subprocess.run(["git", *safe, *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        told = re.sub(r"(\w://)[^/\s@]+@", r"\1***@", done.stderr.decode("utf-8", "replace").strip())
        raise SourceUnavailable(f"git {arguments[0]}: {told or f'exit {done.returncode}'}")


def diff_of(git: Git, case: Case) -> str:
    """The diff that a case asks with. Raises SourceError where its commits are not there."""
    if case.base:
        base, head = commit_of(git, case.base), commit_of(git, case.head)
        without = [f":(top,exclude,literal){path}" for path in case.hidden]
        plain = ("-M", "--no-color", "--no-ext-diff", "--no-textconv")
        return git.text("diff", *plain, base, head, "--", ":(top)", *without)
    files = case.pull_request.files if case.pull_request else ()
    shown = [path for path in files if path not in case.hidden]
    return "".join(f"diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n" for path in shown)


# Making cases


def from_commit(git: Git, repository: str, revision: str) -> Case:
    """A case of one merged commit, one file of it left out. Raises SourceRefused for a commit that gives none."""
    sha = git.resolve(revision)
    parents = git.text("rev-list", "--parents", "-n", "1", sha).split()[1:]
    if not parents:
        raise SourceRefused(f"{sha[:12]} has no parent: there was nothing to know before it")
    changed = _changed(git, parents[0], sha)
    if not _FEWEST_FILES <= len(changed) <= _MOST_FILES:
        raise SourceRefused(
            f"{sha[:12]} changes {len(changed)} files; a case needs {_FEWEST_FILES} to {_MOST_FILES} of them"
        )
    before = _sources(git, repository, parents[0])
    hideable = sorted(path for path, status in changed.items() if status == "M" and path in before)
    if not hideable or sum(path in before for path in changed) < _FEWEST_FILES:
        raise SourceRefused(f"{sha[:12]} does not edit two source files: there is none to leave out")
    hidden = hideable[int(hashlib.sha256(sha.encode()).hexdigest(), 16) % len(hideable)]
    number = _pull_number(git.text("log", "-1", "--format=%s", sha).strip())
    return Case(
        id=f"pull-{number}" if number else f"commit-{sha[:12]}",
        source=f"{repository}{f'#{number}' if number else ''} merged as {sha}",
        repository=repository,
        base=parents[0],
        head=sha,
        hidden=(hidden,),
        expected=Things(paths=(hidden,), symbols=_edited(git, repository, parents[0], sha, hidden)),
    )


def from_history(git: Git, repository: str, revision: str, number: int) -> list[Case]:
    """Cases evenly spread over the last pull requests of the main line (of all its commits where it names none), the
    oldest first."""
    rows = git.text("log", "--first-parent", "-n", str(60 * number), "--format=%H%x09%s", git.resolve(revision))
    told = [row.partition("\t") for row in rows.splitlines()]
    heads = [sha for sha, _, subject in told if _PULL.search(subject)] or [sha for sha, _, _ in told]
    found: list[Case] = []
    for head in heads:
        try:
            found.append(from_commit(git, repository, head))
        except SourceRefused:
            continue
        if len(found) == 4 * number:  # the spread costs no more than that
            break
    step = max(1, len(found) // number)
    return found[::step][:number][::-1]


def from_pull(git: Git, repository: str, number: int, connector: Connector) -> Case:
    """A case of a pull request on GitHub: the files that reviewers commented on are left out and expected. Raises
    SourceError, and SourceRefused where nobody commented or on everything."""
    listing = Listing("", {f"pull/{number}": ""})
    place = Repository(repository, git.location, "default")
    items = [item for unit in connector.read(place, listing, list(listing.units)) for item in unit.items]
    pull = next((item for item in items if item.kind == "pull_request"), None)
    if pull is None:
        raise SourceRefused(f"GitHub shows no readable pull request {number} of {repository}")
    files = tuple(each.target[5:] for each in pull.relations if each.target.startswith("path:"))
    commented = {item.source.path for item in items if item.kind == "review_comment"}
    hidden = tuple(path for path in dict.fromkeys(files) if path in commented)
    if not hidden or len(hidden) == len(set(files)):
        raise SourceRefused(
            f"of the {len(set(files))} files of {repository}#{number} reviewers commented on {len(hidden)}: "
            "a case needs some of them, not all"
        )
    base, head = _merged(git, pull)
    return Case(
        id=f"pull-{number}",
        source=f"{repository}#{number}, expected are the files of its review comments",
        repository=repository,
        base=base,
        head=head,
        hidden=hidden,
        pull_request=PullRequest(number=number, files=tuple(dict.fromkeys(files))),
        expected=Things(paths=hidden),
    )


def from_pack(git: Git, repository: str, kept: KeptPack, question: str = "") -> Case:
    """A case of a pack that was handed out: what it held is expected, asked as it was. Raises ConfigurationError where
    nobody can ask that again, also for a question that is not the pack's."""
    asked = kept.asked
    if asked is None:
        raise ConfigurationError(
            f"how pack {kept.id[:12]} was asked for is not kept: its diff was no range of commits. Build it with "
            "`context-os pack --range A..B` or `--question TEXT`"
        )
    change = parse_diff(git.diff(asked.base, asked.head) if asked.base else "")
    if digest_of(Request(question, change, kept.repositories)) != kept.request:
        raise ConfigurationError(
            f"pack {kept.id[:12]} was asked with other words; give its question with --question, to the letter: "
            "of a question no more than a digest is kept"
        )
    shown = {span.id: span.rendering for span in kept.spans if span.id}
    whole = [item for item in kept.carried if shown.get(item.id) == "body"]
    return Case(
        id=f"pack-{kept.id[:12]}",
        source=f"pack {kept.id}",
        repository=repository,
        revision="" if asked.base else asked.revision,
        question=question,
        base=asked.base,
        head=asked.head,
        expected=Things(
            items=tuple(item.id for item in whole if item.kind != "rule"),
            rules=tuple(item.id for item in whole if item.kind == "rule"),
        ),
        max_tokens=asked.max_tokens,
        tenant=kept.tenant,
        clearance=kept.clearance,
    )


def _pull_number(subject: str) -> str:
    found = _PULL.search(subject)
    return (found[1] or found[2]) if found else ""


def _changed(git: Git, base: str, head: str) -> dict[str, str]:
    """Path to git's letter for what happened to it."""
    rest = iter(git.text("diff", "-M", "--name-status", "-z", base, head).split("\0"))
    changed = {}
    for status in filter(None, rest):
        path = next(rest)
        changed[next(rest) if status[0] in "RC" else path] = status[0]
    return changed


def _symbols() -> Connector:
    found: Connector = plugins.load("connectors", "symbols")()
    return found


def _sources(git: Git, repository: str, revision: str) -> Mapping[str, str]:
    """Path to blob of every source file of a commit."""
    return _symbols().scan(Repository(repository, Path(git.directory), "default", revision), Known()).units


def _edited(git: Git, repository: str, base: str, head: str, path: str) -> tuple[str, ...]:
    """Names of the innermost definitions of a file that a change edits, those with the most lines of it first."""
    place = Repository(repository, Path(git.directory), "default", base)
    listing = _symbols().scan(place, Known())
    items = [item for unit in _symbols().read(place, listing, [path]) for item in unit.items if item.kind != "module"]
    plain = ("--no-color", "--no-ext-diff", "--no-textconv", "-U0")
    change = parse_diff(git.text("diff", *plain, base, head, "--", f":(top,literal){path}"))
    hit: dict[str, int] = {}
    for hunk in (hunk for file in change.files for hunk in file.hunks):
        name = _around(items, hunk.old_start)
        hit[name] = hit.get(name, 0) + len(hunk.removed) + len(hunk.added)
    hit.pop("", None)
    return tuple(sorted(hit, key=lambda each: (-hit[each], each))[:_MOST_SYMBOLS])


def _around(items: Sequence[KnowledgeItem], line: int) -> str:
    """The name of the smallest definition on whose lines one is."""
    spans = [(item.source.end_line or 0, item.source.start_line or 0, item) for item in items if item.symbols]
    fitting = [(last - first, item.symbols[-1]) for last, first, item in spans if first <= line <= last]
    return min(fitting, default=(0, ""))[1]


def _merged(git: Git, pull: KnowledgeItem) -> tuple[str, str]:
    """Base and head of a pull request in this repository's history, nothing where its commits are not there."""
    commit = str(pull.payload.structured.get("merge_commit") or pull.source.revision)
    try:
        return git.first_parent(commit), git.resolve(commit)
    except SourceError:
        return "", ""
