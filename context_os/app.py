"""The read side, wired: what the command line (and later HTTP and MCP) calls. Reaches no Dagster and no gate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from context_os import packs, plugins, relevance, search, telemetry
from context_os.change import parse_diff
from context_os.corpus import Corpus, open_corpus
from context_os.embedding import Embedding
from context_os.errors import ConfigurationError, NotFound, SourceError, StoreUnavailable
from context_os.feedback import FeedbackLog, Standing
from context_os.git import Git, blob_hash
from context_os.kept_packs import Asked, KeptPacks
from context_os.ledger import Ledger, Registered, Scope
from context_os.model import Access, Confidentiality, KnowledgeItem, utcnow
from context_os.ranking import Ranked, rank
from context_os.segments import open_segment, open_table, segment_file, table_file
from context_os.selectors import Candidate, Reader, Request
from context_os.selectors.hybrid import Hybrid
from context_os.settings import Settings
from context_os.stores import Filter, Hit, KnowledgeStore, Mode, Query
from context_os.tuning import Tuning, tuned_file

_WEAK_ALPHA = 0.3
"""Vectors without meaning get less of a hybrid score."""


class FileHit(NamedTuple):
    """A file with how much speaks for it. Scores compare within one answer."""

    repository: str
    path: str
    score: float
    reason: str


@dataclass(frozen=True)
class App:
    """One caller's view of one store."""

    settings: Settings
    store: KnowledgeStore
    access: Access

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.settings.make_home() / "ledger.db")

    @cached_property
    def kept_packs(self) -> KeptPacks:
        return KeptPacks(self.settings.make_home() / "packs.db", self.settings.audit.keep_packs)

    @cached_property
    def feedback(self) -> FeedbackLog:
        return FeedbackLog(self.settings.make_home())

    @cached_property
    def tuning(self) -> Tuning:
        home = self.settings.make_home()
        return Tuning(home, self.access.tenant, self.feedback, self.kept_packs, self.settings.weights)

    @cached_property
    def embedding(self) -> Embedding | None:
        return self.settings.open_embedding()

    def seen_by(self, access: Access) -> App:
        """The same store, ledger and model as another caller sees them."""
        other = App(self.settings, self.store, access)
        vars(other).update(ledger=self.ledger, feedback=self.feedback, embedding=self.embedding)
        return other

    def reader(self, repositories: Sequence[str] = ()) -> Reader:
        """What selectors read with; statistics are those of ``repositories``, of all of the tenant's without any."""
        own = self.settings.feedback.tune and len(repositories) == 1
        tuned = tuned_file(self.settings.home, self.access.tenant, repositories[0]) if own else None
        return Reader(self.store, self.access, self.embedding, self._corpus(repositories), self.settings.weights, tuned)

    def segment_files(self, repositories: Sequence[str] = ()) -> list[Path]:
        """The files with the statistics of these repositories, whether or not they are here."""
        return [self._segment_file(scope) for scope in self._counted(repositories)]

    def _corpus(self, repositories: Sequence[str], connectors: Sequence[str] = ()) -> Corpus | None:
        # An ingestion may replace a file between the look into the ledger and the opening: look once more.
        return self._opened(repositories, connectors) or self._opened(repositories, connectors)

    def _opened(self, repositories: Sequence[str], connectors: Sequence[str]) -> Corpus | None:
        scopes = self._counted(repositories, connectors)
        segments = [(each.repository, open_segment(self._segment_file(each))) for each in scopes]
        found = [(repository, segment) for repository, segment in segments if segment is not None]
        # With some of them missing, what they hold could not be found: the store's own search knows all of it.
        if not found or len(found) < len(segments):
            return None
        version = self.embedding.version if self.embedding is not None and self.embedding.semantic else ""
        files = [table_file(self.settings.home, each.id, version) for each in scopes] if version else []
        tables = {place: table for place, table in enumerate(map(open_table, files)) if table is not None}
        return open_corpus(found, self.access, tables)

    def _counted(self, repositories: Sequence[str], connectors: Sequence[str] = ()) -> list[Scope]:
        """The scopes of these repositories and connectors, or of all, that were ever ingested."""
        return [
            each
            for each in self.ledger.scopes(self.store.identity, self.access.tenant)
            if each.generation
            and (not repositories or each.repository in repositories)
            and (not connectors or each.connector in connectors)
        ]

    def _segment_file(self, scope: Scope) -> Path:
        return segment_file(self.settings.home, scope.id, scope.generation)

    def search(self, text: str, mode: Mode | None, limit: int, filter: Filter) -> list[Hit]:
        """Hits for a text. Without a mode: hybrid where vectors carry meaning, else keyword.

        Raises ConfigurationError for vector mode without an embedding provider.
        """
        semantic = self.embedding is not None and self.embedding.semantic
        mode = mode or (Mode.HYBRID if semantic else Mode.KEYWORD)
        if mode is Mode.VECTOR and self.embedding is None:
            raise ConfigurationError(
                "vector search needs an embedding: get one with `context-os embedding fetch`, or set embedding.provider"
            )
        embedding = self.embedding if mode is not Mode.KEYWORD else None
        with telemetry.timed(telemetry.SEARCH_SECONDS, mode.value):
            vector, version = (embedding.embed([text])[0], embedding.version) if embedding is not None else (None, "")
            query = Query(text, vector, mode, limit, filter, 0.5 if semantic else _WEAK_ALPHA, version)
            hits = self._search_statistics(query)
            hits = self.store.search(self.access, query) if hits is None else hits
        telemetry.SEARCHES.add(1, self.access.tenant, mode.value)
        if not hits:
            telemetry.EMPTY_SEARCHES.add(1, self.access.tenant, mode.value)
        return hits

    def _search_statistics(self, query: Query) -> list[Hit] | None:
        """None where the statistics do not know all that the query asks by, or not all that the store holds."""
        of = Filter(repositories=query.filter.repositories, source_types=query.filter.source_types)
        corpus = self._corpus(of.repositories, of.source_types)
        if corpus is None or not search.answers(corpus, query):
            return None
        if self.store.count(self.access, of) != corpus.readable:
            return None
        scores = dict(search.search(corpus, query))
        return [Hit(item, scores[item.id]) for item in self.store.get(self.access, list(scores))]

    def show(self, id: str) -> KnowledgeItem:
        """One item. Raises NotFound, in the same words for an id that is not there and one that is not for you."""
        found = self.store.get(self.access, [id])
        if not found:
            raise NotFound(
                f"no item {id} in tenant {self.access.tenant} that {self.access.clearance} clearance may read"
            )
        return found[0]

    def request(self, question: str, diff: str, repository: str | None) -> Request:
        """What is asked: a question, a unified diff, or both. Raises ConfigurationError if there is neither."""
        change = parse_diff(diff)
        if diff.strip() and not change.files:
            raise ConfigurationError("the diff holds no file; give a unified diff, as `git diff` prints it")
        if not question.strip() and not change.files:
            raise ConfigurationError("there is nothing to build on: the diff is empty and no question was asked")
        return Request(question, change, (repository,) if repository else ())

    def pack(
        self,
        question: str,
        diff: str,
        repository: str | None,
        max_tokens: int,
        commits: tuple[str, str] | None = None,
    ) -> packs.ContextPack:
        """A pack for a question, a unified diff, or both, kept for audits. Raises ConfigurationError for neither.

        ``commits`` are those between which the diff is, where it is such a one: then the request can be asked again.
        A pack that cannot be kept (a full disk) is handed out all the same, without an ``id``.
        """
        request = self.request(question, diff, repository)
        with telemetry.timed(telemetry.PACK_SECONDS):
            candidates = self._candidates(request)
            ranked = self._ranked(candidates)
            built = packs.build(ranked, request, max_tokens, self._freshness, self._retrieval(request))
        _count(built, self.access.tenant)
        try:
            asked = self._asked(request, max_tokens, commits)
            kept = self.kept_packs.keep(built, request, self.access, candidates, asked)
        except StoreUnavailable:
            kept = None
        return built.model_copy(update={"id": kept.id}) if kept else built

    def _asked(self, request: Request, max_tokens: int, commits: tuple[str, str] | None) -> Asked | None:
        if request.change.files and commits is None:
            return None
        base, head = commits or ("", "")
        revisions = {scope.revision.removesuffix("+") for scope in self._counted(request.repositories)} - {""}
        revision = revisions.pop() if len(revisions) == 1 else ""
        return Asked(base=base, head=head, revision=revision, max_tokens=max_tokens)

    def select(self, request: Request) -> list[Ranked]:
        """Everything that all selectors propose, in one order, the best first."""
        return self._ranked(self._candidates(request))

    def _candidates(self, request: Request) -> list[Candidate]:
        return [candidate for found in self.propose(request).values() for candidate in found]

    def _ranked(self, candidates: Sequence[Candidate]) -> list[Ranked]:
        return rank(candidates, self.standings([each.item.id for each in candidates]))

    def standings(self, ids: Sequence[str]) -> dict[str, Standing]:
        """What this tenant's votes say of these items; nothing while the log cannot be read: a pack is worth more."""
        try:
            return self.feedback.standings(self.access.tenant, ids, utcnow())
        except StoreUnavailable:
            return {}

    def propose(self, request: Request) -> dict[str, list[Candidate]]:
        """What each selector proposes, by its name, the best first."""
        reader = self.reader(request.repositories)
        return {name: self._proposed(name, reader, request) for name in plugins.names("selectors")}

    def _proposed(self, selector: str, reader: Reader, request: Request) -> list[Candidate]:
        with telemetry.timed(telemetry.SELECTOR_SECONDS, selector):
            found: list[Candidate] = plugins.load("selectors", selector)().select(reader, request)
        telemetry.CANDIDATES.add(len(found), selector)
        if not found:
            telemetry.EMPTY_SELECTIONS.add(1, selector)
        return found

    def files(self, request: Request, limit: int) -> list[FileHit]:
        """The files that a request is about, the best first, without those that its change names already. Raises
        NotFound where nothing is ingested here."""
        reader = self.reader(request.repositories)
        if reader.corpus is None:
            raise NotFound("no statistics of these repositories are on this machine; ingest them here first")
        features, model = Hybrid().relevance_of(reader, reader.corpus, request)
        scores = model.files(features)
        scores[features.changed_files] = -np.inf
        order = [int(file) for file in np.argsort(-scores, kind="stable")[:limit] if np.isfinite(scores[file])]
        return [
            FileHit(*reader.corpus.files[file], round(float(scores[file]), 6), model.reason(features, file=file))
            for file in order
        ]

    def _retrieval(self, request: Request) -> str:
        reader = self.reader(request.repositories)
        semantic = self.embedding is not None and self.embedding.semantic
        near = semantic and (reader.corpus is None or reader.corpus.has_vectors)
        base = relevance.model(request.kind, semantic=near, file=reader.weights)
        own = reader.tuned is not None and relevance.tuned(base, reader.tuned).tuned
        weighed = ", weighed by what helped in this repository" if own else ""
        if self.embedding is None or not semantic:
            return f"keyword and structure{weighed} (no model weights: vectors carry no meaning here and are not used)"
        if not near:
            return f"keyword and structure{weighed} (nothing has a vector yet: `context-os embed` catches up)"
        return f"keyword, structure and vectors of {self.embedding.version}{weighed}"

    def range_diff(self, repository: str, range: str) -> str:
        """The unified diff of ``A..B``, of ``A...B`` (from their merge base), or of one commit against its first
        parent. Raises SourceRefused for revisions that are not there."""
        return Git(self.location(repository).location).diff(*self.range_commits(repository, range))

    def range_commits(self, repository: str, range: str) -> tuple[str, str]:
        """The two commits of such a range."""
        git = Git(self.location(repository).location)
        base, dots, head = range.partition("...") if "..." in range else range.partition("..")
        if not dots:
            return git.first_parent(range), git.resolve(range)
        base, head = base or "HEAD", head or "HEAD"
        if dots == "...":
            base = git.text("merge-base", git.resolve(base), git.resolve(head)).strip()
        return git.resolve(base), git.resolve(head)

    def repositories(self) -> list[Registered]:
        """Every repository that is configured or registered, by name."""
        found = {each.name: each for each in self.ledger.repositories()}
        found |= {
            name: Registered(name, each.location, each.revision) for name, each in self.settings.repositories.items()
        }
        return [found[name] for name in sorted(found)]

    def location(self, name: str) -> Registered:
        """A repository by name. Raises NotFound naming those that exist."""
        known = {each.name: each for each in self.repositories()}
        if name not in known:
            raise NotFound(
                f"no repository is called {name!r}; there are: {', '.join(known) or 'none, ingest one first'}"
            )
        return known[name]

    def _freshness(self, items: Sequence[KnowledgeItem]) -> dict[str, packs.Freshness]:
        """An item is stale when its file no longer has the content that was indexed. What comes from no file, or from a
        repository that cannot be reached, is as fresh as its expiry says."""
        now: dict[tuple[str, str], str] = {}
        for repository in {item.source.repository for item in items}:
            paths = sorted({item.source.path for item in items if item.source.repository == repository and _blob(item)})
            now |= {(repository, path): sha for path, sha in self._blobs(repository, paths)}
        stamps = {}
        for item in items:
            current = now.get((item.source.repository, item.source.path), "unknown")
            stamps[item.id] = packs.stamp(item, fresh=not _blob(item) or current in {"unknown", _blob(item)})
        return stamps

    def _blobs(self, repository: str, paths: Sequence[str]) -> Iterator[tuple[str, str]]:
        try:
            place = self.location(repository)
            git = Git(place.location)
            if git.worktree is not None and place.revision is None:
                yield from ((path, _disk_blob(git.worktree / path)) for path in paths)
            else:
                found = git.blob_ids(place.revision or "HEAD", paths)
                yield from ((path, found.get(path, "")) for path in paths)
        except (SourceError, NotFound):
            return


def _count(built: packs.ContextPack, tenant: str) -> None:
    """What a pack adds to the metrics."""
    telemetry.PACKS.add(1, tenant)
    telemetry.PACK_USED.add(built.budget.used_tokens, tenant)
    telemetry.PACK_BUDGET.add(built.budget.max_tokens, tenant)
    if not built.prompt:
        telemetry.EMPTY_PACKS.add(1, tenant)
    for layer, entries in built.layers:
        telemetry.PACK_TOKENS.add(sum(entry.tokens for entry in entries), tenant, layer)
        for selector, kept in Counter(entry.selector for entry in entries).items():
            telemetry.KEPT.add(kept, selector)
    reasons = Counter("worthless" if each.reason == packs.WORTHLESS else "budget" for each in built.omitted)
    for reason, omitted in reasons.items():
        telemetry.OMISSIONS.add(omitted, reason)


def _blob(item: KnowledgeItem) -> str:
    return str(item.source.metadata.get("blob", "")) if item.source.path else ""


def _disk_blob(path: Path) -> str:
    try:
        return blob_hash(path.read_bytes())
    except OSError:
        return ""


@contextmanager
def open_app(settings: Settings, clearance: Confidentiality | None = None) -> Iterator[App]:
    """The app on the configured store, closed afterwards."""
    access = Access(tenant=settings.tenant, principal=settings.principal, clearance=clearance or settings.clearance)
    with settings.open_store() as store:
        yield App(settings, store, access)


def summary(item: KnowledgeItem, score: float) -> dict[str, Any]:
    """The fields of an item that a list of hits shows."""
    return {
        "id": item.id,
        "score": round(score, 6),
        "kind": item.kind,
        "title": item.metadata.title,
        "repository": item.source.repository,
        "path": item.source.path,
        "start_line": item.source.start_line,
        "end_line": item.source.end_line,
        "revision": item.source.revision,
        "expires_at": item.expires_at.isoformat().replace("+00:00", "Z"),
    }
