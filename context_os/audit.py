"""Where the sentences of a pack come from, and what became of a commit.

**Up**: a line of a prompt is an item's, the item was written by a run, and the run read it from a commit. The walk ends
at the commit, and the commit is opened: its **state** says whether it holds what the line says.

=============  ==========================================================================================
verbatim       the commit has these very words on the lines that the item names
rendered       the commit has the very file that the item was made of; the words are a rendering of it (a
               signature on one line, a record told as prose)
itself         the item is the commit or the merge, and this is it
worktree       read from a working tree that differed from this, its nearest commit, which does not hold it
absent         the commit is there and does not hold it
unreachable    the repository or the commit is not on this machine
earlier        an earlier reading, whose text is not kept; the commit is there
none           read from no commit: a folder outside git, or an API that told none
=============  ==========================================================================================

**Down**: the items that were read from a commit, what was derived of these, and the packs that carried them.

Nothing here needs Dagster: runs are told by the items' lineage and by the journal of runs. Whoever asks is told only
what they may read; the rest is left out in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError

from context_os.app import App
from context_os.errors import ConfigurationError, NotFound, SourceError
from context_os.git import Git
from context_os.graph import Node
from context_os.kept_packs import Carried, KeptPack, Span
from context_os.lineage import Journal, RunRecord
from context_os.model import Access, Confidentiality, KnowledgeItem, LineageRecord, Source, Value
from context_os.packs import ContextPack
from context_os.stores import Filter

HOLDING: Final = frozenset({"verbatim", "rendered", "itself"})
"""The states in which the commit holds it."""
_PAGE: Final = 1_000
_FENCE: Final = re.compile(r"`{3,}[^`]*$")
_WORDS: Final = re.compile(r"\w+")
_SHA: Final = re.compile(r"[0-9a-f]{4,64}")

State = Literal["verbatim", "rendered", "itself", "worktree", "absent", "unreachable", "earlier", "none"]


class Held(Value):
    """A commit, opened. ``detail`` is for people."""

    commit: str
    state: State
    detail: str


@dataclass(frozen=True)
class Audit:
    """One caller's audits. Keeps what it read of repositories while it lives."""

    app: App
    _gits: dict[str, Git | None] = field(default_factory=dict)
    _files: dict[tuple[str, str, str], tuple[str, str]] = field(default_factory=dict)
    _items: dict[str, KnowledgeItem | None] = field(default_factory=dict)

    # Up

    def find_pack(self, name: str) -> KeptPack:
        """A kept pack by its id or the beginning of it, or a pack in a file, as ``pack --json`` wrote it. Raises
        NotFound and ConfigurationError."""
        if Path(name).is_file():
            return self._pack_in(Path(name))
        found = self.app.kept_packs.get(self.app.access.tenant, name)
        if found is None:
            raise NotFound(
                f"no pack {name} of tenant {self.app.access.tenant} is kept, and no file is called that; "
                f"packs are kept for audit.keep_packs, and `pack --json` tells their ids"
            )
        return found

    def _pack_in(self, file: Path) -> KeptPack:
        try:
            pack = ContextPack.model_validate_json(file.read_bytes(), strict=False)
        except (ValidationError, ValueError, OSError) as error:
            raise ConfigurationError(f"{file} holds no pack as `context-os pack --json` prints it: {error}") from None
        kept = self.app.kept_packs.get(self.app.access.tenant, pack.id) if pack.id else None
        if kept is not None and kept.prompt == pack.prompt:
            return kept
        if not pack.explain:
            raise ConfigurationError(
                f"{file} does not say where its lines come from, and the pack is not kept; save it"
            )
        return self._rebuilt(pack)

    def _rebuilt(self, pack: ContextPack) -> KeptPack:
        """As much of a pack that is not kept as the file and the store tell."""
        access = self.app.access
        ids = dict.fromkeys(block.id for block in pack.explain if block.id)
        revisions = {block.id: block for block in pack.explain if block.id}
        times = [record.timestamp for block in pack.explain for record in block.lineage]
        when = max(times, default=None)
        items = [item for item in map(self._item, ids) if item is not None]
        if when is None:
            raise ConfigurationError("no line of this pack says which run its item is from")
        return KeptPack(
            id=pack.id or "unkept",
            tenant=access.tenant,
            principal="",
            clearance=access.clearance,
            first_at=when,
            last_at=when,
            request="",
            repositories=(),
            prompt=pack.prompt,
            spans=tuple(
                Span(first_line=each.first_line, last_line=each.last_line, id=each.id, rendering=each.rendering)
                for each in pack.explain
            ),
            carried=tuple(Carried.of(item) for item in items if item.metadata.checksum == revisions[item.id].checksum),
        )

    def pack(self, kept: KeptPack, lines: Sequence[int] = ()) -> Node:
        """Every item of a pack, or those behind these lines of its prompt, back to their commits. Raises NotFound for
        lines that the caller may not read or that are not there."""
        readable = {each.id: each for each in kept.carried if self._may_read(each)}
        prompt = kept.prompt.split("\n")
        spans = [span for span in kept.spans if self._shows(kept, span, readable)]
        chosen = [span for span in spans if not lines or any(_has(span, line) for line in lines)]
        if lines and not chosen:
            raise NotFound(f"no line {', '.join(map(str, lines))} of this pack can be told about")
        children = [self._span(span, prompt, readable, lines) for span in chosen if lines or span.id]
        who = f" for {kept.principal}" if kept.principal else ""
        return Node(
            kind="pack",
            id=kept.id,
            title=kept.id,
            detail=f"{kept.first_at:%Y-%m-%d %H:%M}{who}, {kept.clearance} clearance",
            children=tuple(children),
        )

    def lines_with(self, kept: KeptPack, sentence: str) -> list[int]:
        """The lines of the prompt on which this text stands, whatever the white space. Raises NotFound."""
        wanted = _squeezed(sentence)
        numbers = [number for number, line in enumerate(kept.prompt.split("\n"), 1) for _ in _squeezed(line)]
        text = _squeezed(kept.prompt)
        starts = [found.start() for found in re.finditer(re.escape(wanted), text)] if wanted else []
        lines = {line for start in starts for line in numbers[start : start + len(wanted)]}
        if not lines:
            raise NotFound(f"the pack does not say {sentence!r}")
        return sorted(lines)

    def held(self, carried: Carried, lines: Sequence[str] = ()) -> Held:
        """The commit that an item was read from, opened, and whether it holds these lines (or, without any, the
        item's own)."""
        source = carried.source
        if not source.revision:
            return Held(commit="", state="none", detail="it was read from no commit")
        git = self._git(source)
        commit = source.revision.rstrip("+")
        if git is None:
            return Held(commit=commit, state="unreachable", detail=f"{source.repository} is not on this machine")
        try:
            git.resolve(commit)
        except SourceError:
            return Held(commit=commit, state="unreachable", detail=f"{git.location} has no such commit (any more)")
        lines = lines or self._text_of(carried)
        if not source.path:
            return self._of_commit(git, commit, carried)
        found = self._of_file(git, commit, carried, lines)
        if found.state in HOLDING or not source.revision.endswith("+"):
            return found
        return self._later(git, found, carried, lines)

    def _of_commit(self, git: Git, commit: str, carried: Carried) -> Held:
        message = git.text("log", "-1", "--format=%B", commit)
        subject = message.partition("\n")[0]
        told = re.sub(r"^(?:[0-9a-f]{10}|#\d+) ?", "", carried.title).rstrip("…")
        if _squeezed(told) in _squeezed(message):
            return Held(commit=commit, state="itself", detail=subject)
        return Held(commit=commit, state="rendered", detail=f"{subject} (whose message words it otherwise)")

    def _of_file(self, git: Git, commit: str, carried: Carried, lines: Sequence[str]) -> Held:
        source = carried.source
        blob, text = self._file(git, commit, source.path)
        place = f"{source.path}:{source.start_line}-{source.end_line}" if source.start_line else source.path
        if not blob:
            return Held(commit=commit, state="absent", detail=f"it has no file {source.path}")
        if lines and _stands(lines, text, source):
            return Held(commit=commit, state="verbatim", detail=f"these words stand in {place}")
        if blob == source.metadata.get("blob"):
            return Held(commit=commit, state="rendered", detail=f"made of {place}, blob {blob[:12]}")
        if "blob" not in source.metadata and set(_WORDS.findall(carried.title)) <= set(_WORDS.findall(text)):
            return Held(commit=commit, state="rendered", detail=f"a record in {place}, told in other words")
        return Held(commit=commit, state="absent", detail=f"{source.path} says something else there")

    def _later(self, git: Git, nearest: Held, carried: Carried, lines: Sequence[str]) -> Held:
        """What a working tree had and its commit has not may have been committed since."""
        blob = str(carried.source.metadata.get("blob", ""))
        if _SHA.fullmatch(blob):
            try:
                commits = git.text("log", "--all", "-1", "--format=%H", f"--find-object={blob}").split()
            except SourceError:
                commits = []  # git does not know the object: nobody committed it
            for commit in commits:
                found = self._of_file(git, commit, carried, lines)
                if found.state in HOLDING:
                    told = f"{found.detail}; read from a working tree over {nearest.commit[:12]} and committed as this"
                    return found.model_copy(update={"detail": told})
        told = f"read from a working tree over this commit, which is the nearest; {nearest.detail}"
        return nearest.model_copy(update={"state": "worktree", "detail": told})

    def _span(self, span: Span, prompt: list[str], readable: dict[str, Carried], lines: Sequence[int]) -> Node:
        numbers = [line for line in lines if _has(span, line)]
        text = [prompt[line - 1] for line in numbers]
        if span.id is None:
            said = "the request" if span.rendering == "change" else "the pack itself"
            return _line(numbers, text, Node(kind="source", id=said, title=said))
        carried = readable[span.id]
        inner = _inner(prompt[span.first_line - 1 : span.last_line]) if span.rendering in {"excerpt", "body"} else []
        asked = [line for line in text if line.strip() and line in inner]
        node = self._carried(carried, span, asked if numbers else inner)
        return _line(numbers, text, node) if numbers else node

    def _carried(self, carried: Carried, span: Span | None, lines: Sequence[str]) -> Node:
        where = f"lines {span.first_line}-{span.last_line} as {span.rendering}; " if span else ""
        return Node(
            kind="item",
            id=carried.id,
            title=f"{carried.kind} {carried.title}",
            detail=f"{where}{_place(carried.source)}",
            state=self._since(carried),
            children=(self._run(carried.lineage, self.held(carried, lines)),),
        )

    def _since(self, carried: Carried) -> str:
        """What became of an item that a pack carried; "" where it is as it was."""
        now = self._now(carried.id)
        if now is None:
            return "gone since"
        return "" if now.metadata.checksum == carried.checksum else "changed since"

    def _run(self, record: LineageRecord | None, held: Held) -> Node:
        commit = Node(
            kind="commit",
            id=held.commit or "none",
            title=held.commit[:12] or "no commit",
            detail=held.detail,
            state=held.state,
        )
        if record is None:
            return commit
        told = self._runs.get((record.run_id, record.asset_key))
        counts = f", {told.counts.get('added', 0):,} added {told.counts.get('changed', 0):,} changed" if told else ""
        return Node(
            kind="run",
            id=f"{record.run_id} {record.asset_key}",
            title=f"{record.asset_key} {record.run_id[:8]}".strip() or record.actor,
            detail=f"{record.action} {record.timestamp:%Y-%m-%d %H:%M:%S}{counts}",
            children=(commit,),
        )

    def item(self, id: str) -> Node:
        """One item: its whole history up to its commits, what it was derived from, what was derived of it, and the
        packs that carried it. Raises NotFound in the same words for what is not there and what is not for the
        caller."""
        item = self.app.show(id)
        carried = Carried.of(item)
        *earlier, last = (*item.metadata.lineage,) or (None,)
        now = self._run(last, self.held(carried))
        before = [self._run(record, self._reached(carried, record)) for record in reversed(earlier) if record]
        parents = [
            self._carried(Carried.of(found), None, ())
            for each in dict.fromkeys(_parents(item))
            if (found := self._item(each)) is not None
        ]
        made = [self._derived_node(each) for each in self._derived({id})]
        return Node(
            kind="item",
            id=id,
            title=f"{item.kind} {item.metadata.title}",
            detail=_place(item.source),
            children=(now, *before, *parents, *made, *self._packs([id]), *self._votes(id)),
        )

    def _reached(self, carried: Carried, record: LineageRecord) -> Held:
        """The commit of an earlier reading, whose text nobody kept."""
        source = carried.source.model_copy(update={"revision": record.source_revision})
        held = self.held(carried.model_copy(update={"source": source, "checksum": ""}))
        if held.state in {"unreachable", "none"}:
            return held
        return Held(commit=held.commit, state="earlier", detail="what it said then is not kept")

    # Down

    def commit(self, repository: str, revision: str) -> Node:
        """What was made of a commit. Raises NotFound for a repository that nothing is known of or a commit that nothing
        came from, ConfigurationError for what cannot be a commit."""
        sha, title = self._named(repository, revision)
        items = [each for each in self._scan(Filter(repositories=(repository,))) if _read_from(each, sha)]
        if not items:
            raise NotFound(f"nothing that you may read was made of {revision} in {repository!r}")
        derived: dict[str, list[KnowledgeItem]] = {}
        for each in self._derived({item.id for item in items}):
            for parent in _parents(each):
                derived.setdefault(parent, []).append(each)
        carriers: dict[str, list[KeptPack]] = {}
        for pack in self.app.kept_packs.carrying(self.app.access.tenant, [item.id for item in items]):
            for carried in pack.carried:
                if carried.source.revision.startswith(sha):
                    carriers.setdefault(carried.id, []).append(pack)
        nodes = [
            Node(
                kind="item",
                id=item.id,
                title=f"{item.kind} {item.metadata.title}",
                detail=_place(item.source),
                children=(
                    *map(self._derived_node, derived.get(item.id, ())),
                    *map(_pack_node, carriers.get(item.id, ())),
                ),
            )
            for item in sorted(items, key=lambda each: (each.id not in carriers, each.source.path, each.metadata.title))
        ]
        told = f"{title}; {len(items):,} items, {len(carriers):,} of them in a pack"
        return Node(kind="commit", id=sha, title=sha[:12], detail=told, children=tuple(nodes))

    def _named(self, repository: str, revision: str) -> tuple[str, str]:
        """The full id and the subject of a commit; what was given where the repository is not here any more."""
        try:
            git = Git(self.app.location(repository).location)
            sha = git.resolve(revision)
            return sha, git.text("log", "-1", "--format=%s", sha).strip()
        except (NotFound, SourceError):
            if not _SHA.fullmatch(revision):
                raise
            return revision, "not in a repository on this machine"

    def _derived(self, ids: set[str]) -> list[KnowledgeItem]:
        """Everything that was derived of these, and of that in turn."""
        children: dict[str, list[KnowledgeItem]] = {}
        for item in self._scan(Filter()):
            for parent in _parents(item):
                children.setdefault(parent, []).append(item)
        found: dict[str, KnowledgeItem] = {}
        waiting = list(ids)
        while waiting:
            for item in children.get(waiting.pop(), ()):
                if item.id not in found and item.id not in ids:
                    found[item.id] = item
                    waiting.append(item.id)
        return list(found.values())

    def _derived_node(self, item: KnowledgeItem) -> Node:
        packs = tuple(self._packs([item.id]))
        return Node(
            kind="item", id=item.id, title=f"{item.kind} {item.metadata.title}", detail="derived", children=packs
        )

    def _packs(self, ids: Iterable[str]) -> Iterator[Node]:
        yield from map(_pack_node, self.app.kept_packs.carrying(self.app.access.tenant, ids))

    def _votes(self, id: str) -> Iterator[Node]:
        """What was said of an item. Comments are left out: they may quote what only their writers may read."""
        for _, vote in self.app.feedback.votes(self.app.access.tenant, id):
            said = "withdrawn" if vote.count < 0 else vote.verdict.value
            detail = f"{vote.at:%Y-%m-%d %H:%M} by {vote.principal} through {vote.origin or 'the log'}"
            yield Node(kind="vote", id=vote.key, title=said, detail=detail)

    # What is read

    @cached_property
    def _runs(self) -> dict[tuple[str, str], RunRecord]:
        records = (line.record for line in Journal(self.app.settings.home).lines() if line.record)
        return {(each.run_id, each.asset_key): each for each in records}

    @cached_property
    def _everything(self) -> Access:
        return self.app.access.model_copy(update={"clearance": Confidentiality.RESTRICTED})

    def _now(self, id: str) -> KnowledgeItem | None:
        """As it is in the store now, whoever asks."""
        if id not in self._items:
            self._items[id] = next(iter(self.app.store.get(self._everything, [id])), None)
        return self._items[id]

    def _item(self, id: str) -> KnowledgeItem | None:
        """As it is in the store now, for the caller."""
        found = self._now(id)
        return found if found is not None and self._permits(found.metadata.confidentiality) else None

    def _permits(self, level: Confidentiality) -> bool:
        return self.app.access.clearance.permits(level)

    def _may_read(self, carried: Carried) -> bool:
        """By what it was when the pack carried it, and by what it is now."""
        now = self._now(carried.id)
        return self._permits(carried.confidentiality) and (now is None or self._permits(now.metadata.confidentiality))

    def _shows(self, kept: KeptPack, span: Span, readable: dict[str, Carried]) -> bool:
        """What a request said is for those who might have asked it."""
        if span.id is not None:
            return span.id in readable
        return span.rendering != "change" or self._permits(kept.clearance)

    def _scan(self, filter: Filter) -> Iterator[KnowledgeItem]:
        cursor: str | None = None
        while True:
            page = self.app.store.scan(self.app.access, filter, cursor, _PAGE)
            yield from page.items
            if page.cursor is None:
                return
            cursor = page.cursor

    def _text_of(self, carried: Carried) -> list[str]:
        item = self._item(carried.id)
        same = item is not None and item.metadata.checksum == carried.checksum
        return item.payload.text.split("\n") if item is not None and same else []

    def _git(self, source: Source) -> Git | None:
        if source.repository not in self._gits:
            self._gits[source.repository] = self._opened(source)
        return self._gits[source.repository]

    def _opened(self, source: Source) -> Git | None:
        try:
            return Git(self.app.location(source.repository).location)
        except (NotFound, SourceError):
            return None

    def _file(self, git: Git, commit: str, path: str) -> tuple[str, str]:
        """``(blob, text)`` of a file at a commit, empty where it has none."""
        key = (str(git.location), commit, path)
        if key not in self._files:
            blob = git.blob_ids(commit, [path]).get(path, "")
            data = next((data for _, data in git.blobs([blob])), b"") if blob else b""
            self._files[key] = blob, data.decode("utf-8", "replace")
        return self._files[key]


def _has(span: Span, line: int) -> bool:
    return span.first_line <= line <= span.last_line


def _inner(lines: Sequence[str]) -> list[str]:
    """An item's own lines of its body: those between the fences."""
    fences = [place for place, line in enumerate(lines) if _FENCE.match(line)]
    if not fences:
        return []
    fence = lines[fences[0]].rstrip()
    mark = re.match("`+", fence)
    ends = [place for place in fences[1:] if mark and lines[place] == mark[0]]
    return list(lines[fences[0] + 1 : ends[-1]]) if ends else list(lines[fences[0] + 1 :])


def _stands(lines: Sequence[str], text: str, source: Source) -> bool:
    """Whether all of these lines stand where the item says, white space aside."""
    rows = text.split("\n")
    region = rows[source.start_line - 1 : source.end_line] if source.start_line else rows
    there = _squeezed("\n".join(region))
    return all(_squeezed(line) in there for line in lines)


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _line(numbers: Sequence[int], text: Sequence[str], source: Node) -> Node:
    place = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
    said = " ".join(" ".join(text).split())
    return Node(kind="line", id=place, title=f"{place}: {said[:100]}", children=(source,))


def _place(source: Source) -> str:
    lines = f":{source.start_line}-{source.end_line}" if source.start_line else ""
    return " ".join(filter(None, [source.repository, f"{source.path}{lines}"]))


def _parents(item: KnowledgeItem) -> Iterator[str]:
    return (id for record in item.metadata.lineage for id in record.derived_from)


def _read_from(item: KnowledgeItem, sha: str) -> bool:
    revisions = (item.source.revision, *(record.source_revision for record in item.metadata.lineage))
    return any(revision.startswith(sha) for revision in revisions)


def _pack_node(kept: KeptPack) -> Node:
    return Node(
        kind="pack", id=kept.id, title=kept.id[:12], detail=f"{kept.first_at:%Y-%m-%d %H:%M} for {kept.principal}"
    )
