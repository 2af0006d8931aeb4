"""From a source into a store: stage, judge, index, reconcile. Dagster's assets are thin wrappers of this.

``stage`` asks a connector what changed since the ledger and writes it to a file that no reader sees; ``judge``
sends it through the gate and records the verdict; ``index`` writes what was accepted, removes what is gone,
advances the ledger and reconciles it with the store. Every step may be killed at any moment and run again:
the ledger advances last, and until then the next run sees the old state and repeats the work.
"""

from __future__ import annotations

import fcntl
import functools
import gc
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from pydantic import Field

from context_os import plugins, quality, segments, staging, telemetry
from context_os.connectors import Connector, Known, Listing, Repository, Unit
from context_os.embedding import Embedding
from context_os.errors import (
    BatchRefused,
    ConfigurationError,
    ContextOSError,
    NotFound,
    ReconcileDifference,
    StagingOutdated,
    StoreRejected,
)
from context_os.feedback import FeedbackLog, Projection
from context_os.gate import GATE
from context_os.ledger import Advance, Entry, Ledger, Quarantined, Registered, Scope
from context_os.lineage import COUNTS, Journal, RunRecord
from context_os.model import (
    Access,
    Actor,
    Confidentiality,
    FeedbackCounters,
    KnowledgeItem,
    LineageAction,
    LineageRecord,
    Time,
    Value,
    id_bytes,
    utcnow,
)
from context_os.settings import Settings
from context_os.staging import Staged
from context_os.stores import Filter, KnowledgeStore, Record
from context_os.suppression import Erasures, Suppression
from context_os.vectors import VectorCache, Vectors, VectorTable

Progress = Callable[[str], None]

_EMBEDDED_LINES: Final = 60
_EMBEDDED_AT_ONCE: Final = 256
"""Items whose vectors a kill can cost at most."""
_TABLED_AT_ONCE: Final = 20_000
"""Vectors that wait in memory for their table, 30 MB of MiniLM's."""
_FEW: Final = 1_000
"""Items that are counted in less time than the gate takes."""
_SETTLING: Final = timedelta(seconds=5)
"""Items this close to their expiry are left out of a reconcile: the store's clock may already hide them."""


class Difference(Value):
    """One id on which ledger and store disagree: ``missing`` from the store, ``unexpected`` there, or ``different``."""

    id: str
    problem: str
    connector: str
    repository: str


class Reconciliation(Value):
    """How many items the ledger expects, how many the store holds, and every difference."""

    ledger: int
    store: int
    differences: tuple[Difference, ...]


class Report(Value):
    """What one connector's run did. Counts are items; ``quarantined`` is what stands in quarantine afterwards."""

    connector: str
    repository: str
    revision: str
    data_version: str
    added: int
    changed: int
    unchanged: int
    removed: int
    quarantined: int
    refreshed: int
    seconds: float
    verdict: str
    run_id: str
    reconcile: Reconciliation
    indexed_at: Time


class Embedded(Value):
    """What one ``embed`` did. ``items`` are in the scope, ``vectors`` of them have one of this version now,
    ``embedded`` of those got it just now. ``version`` "" is no embedding."""

    connector: str
    repository: str
    version: str
    items: int
    vectors: int
    embedded: int
    seconds: float

    @property
    def coverage(self) -> float:
        """0..1."""
        return self.vectors / self.items if self.items else 1.0


class ConnectorResult(Value):
    """One connector's part. ``verdict`` is passed, refused, or failed (then ``problem`` says why)."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    quarantined: int = 0
    seconds: float = 0.0
    verdict: str = "failed"
    problem: str = ""


class IngestResult(Value):
    """One run over one repository. ``vectors`` is how many of its items have one."""

    repository: str
    revision: str
    store: str
    run_id: str
    seconds: float
    connectors: dict[str, ConnectorResult]
    vectors: int = 0
    reconcile: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def of(cls, reports: Mapping[str, Report], failed: Mapping[str, ConnectorResult], **about: Any) -> IngestResult:
        """The result of a run from the reports of what succeeded and the results of what did not."""
        fields = set(ConnectorResult.model_fields) - {"problem"}
        done = {name: ConnectorResult(**report.model_dump(include=fields)) for name, report in reports.items()}
        problems = [each.problem for each in failed.values() if each.problem.startswith("ReconcileDifference")]
        return cls(
            revision=next((report.revision for report in reports.values() if report.revision), ""),
            connectors=dict(sorted({**done, **failed}.items())),
            reconcile={
                "ledger": sum(report.reconcile.ledger for report in reports.values()),
                "store": sum(report.reconcile.store for report in reports.values()),
                "differences": problems,
            },
            **about,
        )

    @property
    def exit_code(self) -> int:
        """0 done, 3 if the gate or a reconcile refused, 1 for any other failure."""
        verdicts = {each.verdict for each in self.connectors.values()}
        return 1 if "failed" in verdicts else 3 if "refused" in verdicts else 0


@contextmanager
def _few_collections() -> Iterator[None]:
    """Tens of thousands of items are alive at once and none in a cycle: looking through them for cycles as often as
    Python does by default takes a quarter of an ingestion."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


_P = ParamSpec("_P")
_R = TypeVar("_R")
_Method = Callable[Concatenate["Ingestion", _P], _R]


def _step(name: str) -> Callable[[_Method[_P, _R]], _Method[_P, _R]]:
    """Measures a step: its time, its failures. What it observed is flushed before it returns or raises."""

    def decorated(method: _Method[_P, _R]) -> _Method[_P, _R]:
        @functools.wraps(method)
        def measured(self: Ingestion, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
            place = self._place(*args)
            try:
                with (
                    self.ledger.session(),
                    telemetry.timed(
                        telemetry.STEP_SECONDS,
                        place[-1],
                        name,
                        errors=telemetry.FAILURES,
                        about={"tenant": place[1], "repository": place[2]},
                    ),
                ):
                    return method(self, *args, **kwargs)
            except Exception:
                telemetry.FAILED_AT.latest(time.time(), *place)
                raise
            finally:
                telemetry.flush()

        return measured

    return decorated


class Ingestion:
    """Ingestion into one store of one tenant. Cheap to make; holds the store open until ``close``."""

    def __init__(self, settings: Settings, store: KnowledgeStore, ledger: Ledger, progress: Progress = lambda _: None):
        self.settings = settings
        self.store = store
        self.ledger = ledger
        self.progress = progress
        self.access = Access(tenant=settings.tenant, principal="ingestion", clearance=Confidentiality.RESTRICTED)
        self.folder = settings.make_home() / "staging"
        self._foreseen: _Foreseen | None = None

    @cached_property
    def embedding(self) -> Embedding | None:
        return self.settings.open_embedding()

    @cached_property
    def _kept_vectors(self) -> VectorCache:
        return VectorCache(self.settings.make_home() / "vectors.db")

    @cached_property
    def projection(self) -> Projection:
        return Projection(FeedbackLog(self.settings.make_home()), self.store, self.settings.tenant)

    def scope(self, connector: str, repository: str) -> Scope:
        return self.ledger.scope(self.store.identity, self.settings.tenant, repository, connector)

    def _place(self, subject: object, *rest: object) -> tuple[str, str, str, str]:
        """Store, tenant, repository and connector of a step, whose arguments begin with a Staged, or with a connector's
        name and a repository or its name."""
        connector, repository = (
            (subject.connector, subject.repository)
            if isinstance(subject, Staged)
            else (str(subject), str(getattr(rest[0], "name", rest[0])))
        )
        return self.store.name, self.settings.tenant, repository, connector

    # Stage

    @_step("stage")
    @_few_collections()
    def stage(self, connector_name: str, repository: Repository) -> Staged:
        """Read what changed and write it where only the gate looks. Raises SourceError."""
        return self._stage(self._look(connector_name, repository), repository)

    def _stage(self, seen: _Seen, repository: Repository) -> Staged:
        scope, listing, connector_name = seen.scope, seen.listing, seen.connector.name
        if seen.changed:
            GATE.start()
        rows = staging.Rows(
            self.ledger,
            scope,
            {*seen.changed, *seen.removed},
            refresh=seen.again,
            foreign_ids=seen.connector.foreign_ids,
        )
        folder = self._folder(scope)
        name = f"{seen.data_version[:16]}-{scope.generation}"
        rows.write(folder / f"{name}.parquet", map(seen.suppression.unit, self._read(repository, seen)))
        if self._suppression().receipts != seen.suppression.receipts:
            (folder / f"{name}.parquet").unlink(missing_ok=True)
            raise StagingOutdated(
                f"something was erased while {connector_name} of {repository.name} was read; stage again"
            )
        staged = Staged(
            id=name,
            connector=connector_name,
            repository=repository.name,
            data_version=seen.data_version,
            fingerprint=seen.fingerprint,
            revision=listing.revision,
            generation=scope.generation,
            recovers=seen.recovers,
            cursor=dict(listing.cursor),
            units={key: listing.units[key] for key in seen.changed},
            removed_units=tuple(seen.removed),
            rows=rows.candidates,
            rejected=rows.rejected,
            expired=rows.expired,
            skipped=dict(listing.skipped),
            notes=tuple(rows.notes),
            seconds=round(time.monotonic() - seen.started, 3),
            at=utcnow(),
        )
        staging.write_atomically(folder / f"{name}.json", staged.model_dump_json())
        self._remember(repository)
        return staged

    def _remember(self, repository: Repository) -> None:
        """One that was named by its path alone is known to the read side from now on."""
        known = {each.name for each in self.ledger.repositories()}
        if repository.name not in {*known, *self.settings.repositories}:
            self.ledger.register(repository.name, repository.location)

    @_step("check")
    def current(self, connector_name: str, repository: Repository) -> Report | None:
        """The report of a run that would find nothing to do and no difference, without the run; else None."""
        return self._current(self._look(connector_name, repository))

    def update(self, connector_name: str, repository: Repository, run_id: str = "") -> Report:
        """All of a run in this process, where nobody watches its steps: look once, then stage, judge and index what
        changed. Raises what these raise."""
        found = self._report_or_stage(connector_name, repository)
        if isinstance(found, Report):
            return found
        self.judge(found, run_id)
        return self.index(found, run_id)

    @_step("stage")
    @_few_collections()
    def _report_or_stage(self, connector_name: str, repository: Repository) -> Report | Staged:
        seen = self._look(connector_name, repository)
        return self._current(seen) or self._stage(seen, repository)

    def _current(self, seen: _Seen) -> Report | None:
        scope = seen.scope
        same = (scope.revision, dict(scope.cursor)) == (seen.listing.revision, dict(seen.listing.cursor))
        if seen.again or seen.changed or seen.removed or not same or not scope.generation or seen.recovers:
            return None
        reconciliation = self.reconcile(scope)
        if reconciliation.differences:
            return None
        self.projection.catch_up()
        self.ledger.confirm(scope)
        return self._report(scope, Counter(), reconciliation, time.monotonic() - seen.started)

    def _look(self, connector_name: str, repository: Repository) -> _Seen:
        started = time.monotonic()
        connector = self.settings.connector(connector_name)
        suppression = self._suppression()
        suppression.check(repository.name)
        scope = self.scope(connector_name, repository.name)
        recovers = bool(self.ledger.pending(scope))
        fingerprint = _fingerprint(connector)
        held = self.ledger.units(scope)
        known = self.ledger.trusted_units(scope, at=utcnow()) if fingerprint == scope.fingerprint else {}
        # A cursor lets a connector list only what is new; whoever must read old units again needs them all listed.
        again = len(known) < len(held)
        found = connector.scan(repository, Known(known, {} if again else scope.cursor))
        listing = suppression.listing(connector_name, repository.name, found)
        return _Seen(
            connector=connector,
            scope=scope,
            fingerprint=fingerprint,
            data_version=_data_version(fingerprint, listing, held),
            listing=listing,
            changed=[key for key, hash in listing.units.items() if known.get(key) != hash],
            removed=sorted(set(held) - set(listing.units)) if listing.complete else [],
            again=again or fingerprint != scope.fingerprint,
            recovers=recovers,
            started=started,
            suppression=suppression,
        )

    def _suppression(self) -> Suppression:
        return Erasures(self.ledger).suppression(self.settings.tenant)

    def _read(self, repository: Repository, seen: _Seen) -> Iterator[Unit]:
        told, keys = time.monotonic(), seen.changed
        place = (self.settings.tenant, repository.name, seen.connector.name)
        for number, unit in enumerate(seen.connector.read(repository, seen.listing, keys) if keys else (), start=1):
            texts = [*(item.payload.text for item in unit.items), *(each.raw for each in unit.rejected)]
            telemetry.READ_BYTES.add(_bytes(texts), *place)
            yield unit
            if time.monotonic() - told > 2:
                told = time.monotonic()
                self.progress(f"{seen.connector.name}: read {number:,} of {len(keys):,}")

    def _folder(self, scope: Scope) -> Path:
        folder = self.folder / str(scope.id)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    def newest_staged(self, connector: str, repository: str) -> Staged:
        """The last complete staging of a scope. Raises NotFound when there is none."""
        files = sorted(self._folder(self.scope(connector, repository)).glob("*.json"), key=_staged_at)
        if not files:
            raise NotFound(f"nothing is staged of {connector} for {repository}; materialize staged/{connector} first")
        return Staged.model_validate_json(files[-1].read_text(encoding="utf-8"))

    # Judge

    @_step("judge")
    @_few_collections()
    def judge(self, staged: Staged, run_id: str = "") -> quality.Verdict:
        """The gate's verdict on a staging, recorded whatever happens."""
        scope = self.scope(staged.connector, staged.repository)
        about = {"connector": staged.connector, "data_version": staged.data_version, "run_id": run_id}
        if staged.rows:
            parquet = self._parquet(scope, staged)
            with ThreadPoolExecutor(1) as beside:
                judging = beside.submit(
                    GATE.validate,
                    parquet,
                    staged.rows,
                    self.settings.connector(staged.connector).expectations,
                    tenant=self.settings.tenant,
                    max_refused_share=self.settings.gate.max_refused_share,
                    **about,
                )
                if staged.rows <= _FEW:
                    self._foresee_segment(scope, staged)
            verdict = judging.result()
        else:
            verdict = quality.Verdict.passing(staged.connector, staged.data_version, run_id)
        self.ledger.record_verdict(scope, staged.id, verdict.passed, verdict.model_dump_json())
        self._tell(staged, "passed" if verdict.passed else "broken" if verdict.broken else "refused")
        return verdict

    def _tell(self, staged: Staged, verdict: str) -> None:
        """All three counters are there from the first batch on: Prometheus sees no increase in one that is new."""
        place = self._place(staged)
        for word in ("passed", "refused", "broken"):
            telemetry.VERDICTS.add(word == verdict, *place[1:], word)
        if verdict != "passed":
            telemetry.FAILED_AT.latest(time.time(), *place)

    def _parquet(self, scope: Scope, staged: Staged) -> Path:
        return self._folder(scope) / f"{staged.id}.parquet"

    # Index

    @_step("index")
    def index(self, staged: Staged, run_id: str = "") -> Report:
        """Write a judged staging, and what became of it into the journal. Raises BatchRefused without a passing verdict
        of this very staging, StagingOutdated when another run was faster, ReconcileDifference when store and ledger
        disagree after."""
        try:
            report = self._index(staged, run_id)
        except ContextOSError as error:
            self._journal(staged, run_id, problem=type(error).__name__)
            raise
        self._journal(staged, run_id, report)
        return report

    def _journal(self, staged: Staged, run_id: str, report: Report | None = None, problem: str = "") -> None:
        Journal(self.settings.make_home()).append(
            RunRecord(
                run_id=run_id,
                asset_key=asset_key(staged.connector),
                tenant=self.settings.tenant,
                store=self.store.identity,
                connector=staged.connector,
                repository=staged.repository,
                revision=staged.revision,
                data_version=staged.data_version,
                outcome="fail" if report is None else "complete",
                problem=problem,
                started_at=staged.at - timedelta(seconds=staged.seconds),
                ended_at=utcnow(),
                counts={} if report is None else {count: getattr(report, count) for count in COUNTS},
                items=0 if report is None else report.reconcile.store,
            )
        )

    @_few_collections()
    def _index(self, staged: Staged, run_id: str) -> Report:
        started = time.monotonic()
        with self.lock(self.scope(staged.connector, staged.repository)):
            scope = self.scope(staged.connector, staged.repository)
            verdict = self._verdict_of(scope, staged)
            counts: Counter[str] = Counter()
            if staged.generation == scope.generation:
                counts, scope = self._apply(scope, staged, verdict, run_id)
            elif staged.data_version != scope.data_version:
                raise StagingOutdated(
                    f"{staged.connector} of {staged.repository} was indexed by another run since this was staged; "
                    f"materialize staged/{staged.connector} again"
                )
            staging.release(self._parquet(scope, staged))
            reconciliation = self.reconcile(scope)
            self.projection.catch_up()
            self._clean(scope, staged.id)
        if reconciliation.differences:
            raise ReconcileDifference(describe(reconciliation, staged.connector, staged.repository))
        self.ledger.confirm(scope)
        return self._report(
            scope, counts, reconciliation, staged.seconds + verdict.seconds + time.monotonic() - started
        )

    def _report(self, scope: Scope, counts: Counter[str], reconciliation: Reconciliation, seconds: float) -> Report:
        report = Report(
            connector=scope.connector,
            repository=scope.repository,
            revision=scope.revision,
            data_version=scope.data_version,
            added=counts["added"],
            changed=counts["changed"],
            unchanged=self.ledger.count(scope) - counts["added"] - counts["changed"],
            removed=counts["removed"],
            quarantined=self.ledger.count_quarantined(scope),
            refreshed=counts["refreshed"],
            seconds=round(seconds, 3),
            verdict="passed",
            run_id=scope.run_id,
            reconcile=reconciliation,
            indexed_at=scope.indexed_at or utcnow(),
        )
        place = self._place(scope.connector, scope.repository)
        telemetry.RUNS.add(1, *place)
        telemetry.SUCCEEDED_AT.latest(time.time(), *place)
        telemetry.INGESTED.add(report.unchanged, *place, "unchanged")
        for outcome, count in counts.items():
            telemetry.INGESTED.sent(count, *place, outcome)
        return report

    def _verdict_of(self, scope: Scope, staged: Staged) -> quality.Verdict:
        recorded = self.ledger.verdict(scope, staged.id)
        if recorded is None:
            raise BatchRefused(
                f"no verdict is recorded for this staging of {staged.connector} ({staged.id}); "
                f"materialize staged/{staged.connector} so that it is checked"
            )
        verdict = quality.Verdict.model_validate_json(recorded)
        if not verdict.passed:
            raise BatchRefused(f"the gate refused this batch of {staged.connector}: {verdict.reason}")
        return verdict

    def _apply(self, scope: Scope, staged: Staged, verdict: quality.Verdict, run_id: str) -> tuple[Counter[str], Scope]:
        pending = self.ledger.pending(scope)
        if not staged.recovers and set(pending.values()) - {staged.id}:
            raise StagingOutdated(
                f"another run on {staged.connector} of {staged.repository} was interrupted since this was staged; "
                f"materialize staged/{staged.connector} again"
            )
        leftover = set(pending)
        if staged.is_empty and not leftover and staged.cursor == scope.cursor and staged.revision == scope.revision:
            return Counter(), scope
        outcome = self._outcome(scope, staged, verdict, leftover)
        plan, before = outcome.plan, outcome.before
        self.ledger.announce(scope, staged.id, {*plan.to_write, *before}, _unchanged(before, outcome.entries))
        with ThreadPoolExecutor(1) as beside:
            growing = beside.submit(self._grow, scope, outcome)
            counts, failures = self._write(plan, staged, run_id)
        grown = growing.result()
        if failures:
            outcome = replace(outcome, failures=failures)
            grown = self._grow(scope, outcome)
        self.store.delete(self.access, sorted(outcome.gone))
        counts["removed"] = len(outcome.gone & set(before))
        quarantined = plan.quarantined(failures)
        grown.replace(segments.segment_file(self.settings.home, scope.id, scope.generation + 1))
        scope = self.ledger.advance(
            scope,
            Advance(
                fingerprint=staged.fingerprint,
                data_version=staged.data_version,
                revision=staged.revision,
                cursor=staged.cursor,
                run_id=run_id,
                units={unit: (hash, plan.refresh_at(unit, outcome.entries)) for unit, hash in staged.units.items()},
                entries=outcome.entries,
                removed_units=staged.removed_units,
                quarantined=quarantined,
                counts=counts,
            ),
        )
        return counts + Counter(quarantined=len(quarantined)), scope

    def _outcome(
        self, scope: Scope, staged: Staged, verdict: quality.Verdict, leftover: Set[str] = frozenset()
    ) -> _Outcome:
        """``leftover`` are ids that an interrupted run announced: those that other units own stay."""
        before = self.ledger.entries(scope, (*staged.units, *staged.removed_units))
        elsewhere = self.ledger.owners_of(scope, leftover - before.keys())
        plan = staging.Plan(staged, verdict, self._parquet(scope, staged), before)
        return _Outcome(scope, plan, before, leftover - elsewhere.keys())

    def _grow(self, scope: Scope, outcome: _Outcome) -> Path:
        """Write the scope's statistics after this where no reader looks."""
        held = segments.segment_file(self.settings.home, scope.id, scope.generation)
        grown = held.with_name(f"{scope.id}-{scope.generation + 1}-{os.getpid()}.npz")
        foreseen, self._foreseen = self._foreseen, None
        if foreseen is not None and foreseen.outcome.comes_to_the_same_as(outcome):
            foreseen.segment.save(grown)
        elif not self._grow_beside(scope, outcome, held, grown):
            additions = segments.Additions()
            additions.extend(item for _, item in outcome.plan.accepted() if item.id not in outcome.failures)
            self._segment(scope).without(outcome.leaving).with_(additions).save(grown)
        return grown

    def _grow_beside(self, scope: Scope, outcome: _Outcome, held: Path, grown: Path) -> bool:
        plan = outcome.plan
        if plan.size <= _FEW or outcome.failures:
            return False
        return GATE.grow(
            self._parquet(scope, plan.staged),
            plan.refused,
            held if scope.generation else None,
            outcome.leaving if scope.generation else (),
            grown,
        )

    def _foresee_segment(self, scope: Scope, staged: Staged) -> None:
        """Where little changed, the gate takes longer than growing the statistics: do it meanwhile, as if everything
        passed. Kept for ``index``, if that comes next and finds that it did."""
        passing = quality.Verdict.passing(staged.connector, staged.data_version, rows=staged.rows)
        outcome, held = self._outcome(scope, staged, passing), self._kept_segment(scope)
        if held is not None:
            additions = segments.Additions()
            additions.extend(item for _, item in outcome.plan.accepted())
            self._foreseen = _Foreseen(outcome, held.without(outcome.leaving).with_(additions))

    def foresee(self, staged: Staged, verdict: quality.Verdict) -> tuple[dict[str, Entry], list[Quarantined]]:
        """What the scope would hold after indexing this judged staging, and what would stand in its quarantine. Nothing
        is written."""
        scope = self.scope(staged.connector, staged.repository)
        touched = {*staged.units, *staged.removed_units}
        entries = self.ledger.entries(scope)
        before = {id: entry for id, entry in entries.items() if entry.unit in touched}
        plan = staging.Plan(staged, verdict, self._parquet(scope, staged), before)
        after = {entry.id: entry for entry in plan.entries_after({})}
        kept = {id: entry for id, entry in entries.items() if id not in before}
        waiting = [each for each in self.ledger.quarantined(scope) if each.unit not in touched]
        return kept | after, waiting + plan.quarantined({})

    def _segment(self, scope: Scope) -> segments.Segment:
        """The statistics of what the scope holds now, from the store where their file is gone or of an old version."""
        found = self._kept_segment(scope)
        if found is not None:
            return found
        additions = segments.Additions()
        page = self.store.scan(self.access, _only(scope), limit=staging.BATCH)
        while True:
            additions.extend(page.items)
            if page.cursor is None:
                return segments.Segment.empty().with_(additions)
            page = self.store.scan(self.access, _only(scope), page.cursor, limit=staging.BATCH)

    def _kept_segment(self, scope: Scope) -> segments.Segment | None:
        if not scope.generation:
            return segments.Segment.empty()
        found = segments.Segment.load(segments.segment_file(self.settings.home, scope.id, scope.generation))
        return found if found is not None and found.is_complete else None

    def _write(self, plan: staging.Plan, staged: Staged, run_id: str) -> tuple[Counter[str], dict[str, str]]:
        """How many of which state were written, and why some were not, by id. Each batch is prepared while the one
        before is written: a database's work leaves Python its core."""
        counts: Counter[str] = Counter()
        failures: dict[str, str] = {}

        def settle(written: Future[dict[str, str]], batch: Sequence[tuple[str, KnowledgeItem]]) -> None:
            failures.update(written.result())
            counts.update(state for state, item in batch if item.id not in failures)
            taken = (item.payload.text for _, item in batch if item.id not in failures)
            telemetry.WRITTEN_BYTES.add(_bytes(taken), self.settings.tenant, staged.repository, staged.connector)
            self.progress(f"{staged.connector}: indexed {counts.total():,} of {plan.size:,}")

        with ThreadPoolExecutor(1) as writer:
            before: tuple[Future[dict[str, str]], list[tuple[str, KnowledgeItem]]] | None = None
            for batch in staging.batches(plan.accepted(), staging.BATCH):
                ids = [item.id for state, item in batch if state != "added"]
                earlier = {item.id: item for item in self.store.get(self.access, ids)} if ids else {}
                at = utcnow()
                items = [_with_history(item, earlier.get(item.id), staged, run_id, at) for _, item in batch]
                if before is not None:
                    settle(*before)
                before = writer.submit(self._put, items), batch
            if before is not None:
                settle(*before)
        return counts, failures

    def _put(self, items: Sequence[KnowledgeItem]) -> dict[str, str]:
        """Why the store refused some, by id. What was voted on while it was written, or before it came back, shows."""
        try:
            self.store.upsert(self.access, map(Record, items))
            self.projection.renew([item.id for item in items])
        except StoreRejected as refused:
            if not refused.failures:
                raise
            return refused.failures
        return {}

    def rebuild_segment(self, scope: Scope) -> None:
        """Make a scope's statistics anew from the store: what was deleted of it leaves its words in them."""
        for file in segments.segment_file(self.settings.home, scope.id, scope.generation).parent.glob(f"{scope.id}-*"):
            file.unlink(missing_ok=True)
        self._segment(scope).save(segments.segment_file(self.settings.home, scope.id, scope.generation))

    def forget_files(self, scope: int) -> None:
        """Delete everything that this machine keeps of a scope beside store and ledger, but its lock: one that is made
        anew would let a second writer in."""
        for file in (self.folder / str(scope)).glob("*.*"):
            file.unlink(missing_ok=True)
        for pattern in (f"{scope}-*", f"vectors-{scope}-*"):
            for file in (self.settings.home / "corpus").glob(pattern):
                file.unlink(missing_ok=True)

    @contextmanager
    def lock(self, scope: Scope) -> Iterator[None]:
        """One writer a scope: a second run waits for the first, then sees that its staging is outdated. None while a
        backup is made or restored."""
        with self.ledger.writing(), (self._folder(scope) / "lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _clean(self, scope: Scope, keep: str) -> None:
        segment = segments.segment_file(self.settings.home, scope.id, scope.generation)
        for file in segment.parent.glob(f"{scope.id}-*"):
            if file != segment:
                file.unlink(missing_ok=True)
        for file in self._folder(scope).glob("*.*"):
            if file.stem != keep and not file.name.startswith(keep):
                file.unlink(missing_ok=True)

    # Embed

    @_step("embed")
    def embed(self, connector: str, repository_name: str) -> Embedded:
        """Give every item of a scope a vector of the configured embedding, where it has none for its content.

        Batch by batch, each recorded once the store has it: killed at any moment, the next call goes on there. Without
        an embedding nothing is done and ``version`` is "".
        """
        started = time.monotonic()
        scope = self.scope(connector, repository_name)
        model = self.embedding
        version = model.version if model is not None else ""
        embedded = self._catch_up(scope, model) if model is not None else 0
        return Embedded(
            connector=connector,
            repository=repository_name,
            version=version,
            items=self.ledger.count(scope),
            vectors=self.ledger.count_vectors(scope).get(version, 0),
            embedded=embedded,
            seconds=round(time.monotonic() - started, 3),
        )

    def _catch_up(self, scope: Scope, model: Embedding) -> int:
        """How many got a vector in the store. The table follows it: what it held of these goes first, so that a kill
        leaves it with too few and never with old ones."""
        file = segments.table_file(self.settings.home, scope.id, model.version)
        table = VectorTable.load(file) or VectorTable.empty()
        lacking = self.ledger.without_vector(scope, model.version)
        missing = lacking + self._untabled(scope, lacking, table)
        current = table.without(lacking)
        if len(current.rows) < len(table.rows):
            table = current
            table.save(file)
        given: dict[str, Vectors] = {}
        for vectors in self._embed_batches(scope, model, missing):
            given |= vectors
            if len(given) >= _TABLED_AT_ONCE:
                table, given = table.updated(given, self.ledger.ids(scope)), {}
        if missing:
            table.updated(given, self.ledger.ids(scope)).save(file)
            self._kept_vectors.prune()
            for old in set(file.parent.glob(f"vectors-{scope.id}-*")) - {file}:
                old.unlink(missing_ok=True)  # of another model: they never meet
        return len(lacking)

    def _embed_batches(self, scope: Scope, model: Embedding, ids: Sequence[str]) -> Iterator[dict[str, Vectors]]:
        started = told = time.monotonic()
        done = 0
        for batch in staging.batches(ids, _EMBEDDED_AT_ONCE):
            with self.lock(scope):
                vectors = self._embed_batch(scope, model, batch)
            yield vectors
            done += len(batch)
            if time.monotonic() - told > 2:
                told = time.monotonic()
                rate = done / (told - started)
                self.progress(f"{scope.connector}: {done:,} of {len(ids):,} vectors, {rate:,.0f} a second")

    def _untabled(self, scope: Scope, lacking: Sequence[str], table: VectorTable) -> list[str]:
        """Ids of what the store has a vector of and the table has not: a run that was killed left it out."""
        if self.ledger.count(scope) - len(lacking) == len(table.rows):
            return []
        held = table.ids
        return sorted(id for id in self.ledger.ids(scope) - set(lacking) if id_bytes(id) not in held)

    def _embed_batch(self, scope: Scope, model: Embedding, ids: Sequence[str]) -> dict[str, Vectors]:
        items = self.store.get(self.access, ids)
        vectors = self._kept_vectors.embed(model.version, [embedded_text(item) for item in items], model.embed)
        given = {item.id: vector for item, vector in zip(items, vectors, strict=True)}
        there = self.store.put_vectors(self.access, given, model.version)
        checksums = {item.id: item.metadata.checksum for item in items if item.id in there}
        self.ledger.record_vectors(scope, checksums, model.version)
        return {id: vector for id, vector in given.items() if id in there}

    # Reconcile

    def reconcile(self, scope: Scope) -> Reconciliation:
        """Compare what the ledger expects with what the store holds, by id and checksum."""
        now = utcnow()
        expected = self.ledger.checksums(scope, now + _SETTLING)
        doubtful = self.ledger.checksums(scope, now - _SETTLING, now + _SETTLING)
        held = dict(self.store.checksums(self.access, _only(scope)))
        for id in doubtful:
            held.pop(id, None)
        if held == expected:
            return Reconciliation(ledger=len(expected), store=len(held), differences=())
        problems = [(id, "missing") for id in expected.keys() - held.keys()]
        problems += [(id, "unexpected") for id in held.keys() - expected.keys()]
        problems += [(id, "different") for id in expected.keys() & held.keys() if expected[id] != held[id]]
        return Reconciliation(
            ledger=len(expected),
            store=len(held),
            differences=tuple(
                Difference(id=id, problem=problem, connector=scope.connector, repository=scope.repository)
                for id, problem in sorted(problems)
            ),
        )

    def repair(self, scope: Scope, found: Reconciliation) -> None:
        """Delete what the ledger does not know; make the next run read again what is missing or different."""
        # The store skips what has an equal checksum: what it holds under a wrong one has to go first.
        self.store.delete(self.access, [each.id for each in found.differences])
        entries = self.ledger.entries(scope)
        self.ledger.forget(scope, [entries[each.id] for each in found.differences if each.id in entries])


@dataclass(frozen=True)
class _Seen:
    """A source beside what the ledger knows of it. ``again``: units that did not change have to be read as well;
    ``recovers``: a run was interrupted. ``started`` is when it was looked at, by the monotonic clock."""

    connector: Connector
    scope: Scope
    fingerprint: str
    data_version: str
    listing: Listing
    changed: list[str]
    removed: list[str]
    again: bool
    recovers: bool
    started: float
    suppression: Suppression


@dataclass(frozen=True)
class _Outcome:
    """What a plan for a scope comes to where the store refuses ``failures``, by id. ``before`` are the entries of the
    units that it is about, ``leftover`` the ids that an interrupted run may have written."""

    scope: Scope
    plan: staging.Plan
    before: Mapping[str, Entry]
    leftover: Set[str]
    failures: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def entries(self) -> list[Entry]:
        return self.plan.entries_after(self.failures)

    @cached_property
    def gone(self) -> set[str]:
        """Ids that leave the store."""
        return (self.before.keys() | self.leftover) - {entry.id for entry in self.entries}

    @cached_property
    def leaving(self) -> set[str]:
        """Ids that leave the statistics, some of them to come back as they are now."""
        return {*self.gone, *self.plan.to_write} - self.failures.keys()

    def comes_to_the_same_as(self, other: _Outcome) -> bool:
        """A row that the gate or the store refuses is missing from what leaves."""
        mine, its = self.plan.staged.id, other.plan.staged.id
        return (self.scope.id, mine, self.leaving) == (other.scope.id, its, other.leaving)


@dataclass(frozen=True)
class _Foreseen:
    """The statistics of a scope, if this is what a run comes to."""

    outcome: _Outcome
    segment: segments.Segment


def _bytes(texts: Iterable[str]) -> int:
    """Of UTF-8."""
    return sum(len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass")) for text in texts)


def _only(scope: Scope) -> Filter:
    return Filter(source_types=(scope.connector,), repositories=(scope.repository,))


def describe(found: Reconciliation, connector: str, repository: str) -> str:
    """A reconciliation with differences, in words."""
    kinds = Counter(each.problem for each in found.differences)
    told = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
    first = ", ".join(each.id for each in found.differences[:3])
    return (
        f"ledger and store disagree on {connector} of {repository}: the ledger expects {found.ledger:,} items, "
        f"the store holds {found.store:,} ({told}; first: {first}). "
        f"Run `context-os reconcile --repair`, then ingest again."
    )


def connector_names(chosen: Sequence[str]) -> list[str]:
    """The chosen connectors, or all of them. Raises ConfigurationError for one that does not exist."""
    for name in chosen:
        plugins.load("connectors", name)
    return list(dict.fromkeys(chosen)) or plugins.names("connectors")


def find_repository(settings: Settings, ledger: Ledger, name: str, revision: str | None = None) -> Repository:
    """A repository by its configured or registered name, or by its absolute path. Raises NotFound."""
    configured = settings.repositories.get(name)
    if configured:
        found = Registered(name, configured.location, configured.revision)
    else:
        by_name = {each.name: each for each in ledger.repositories()}
        if name not in by_name and not Path(name).is_absolute():
            there = ", ".join(sorted({*settings.repositories, *by_name})) or "none yet"
            raise NotFound(f"no repository is called {name!r}; there are: {there}. Or name it by its absolute path.")
        found = by_name.get(name) or Registered(name, Path(name), None)
    return Repository(found.name, found.location, settings.tenant, revision or found.revision)


def register(settings: Settings, ledger: Ledger, name: str, location: Path, revision: str | None = None) -> Registered:
    """Remember a repository under a name. Raises ConfigurationError if the settings give that name elsewhere."""
    configured = settings.repositories.get(name)
    if configured and configured.location.resolve() != location.resolve():
        raise ConfigurationError(
            f"{name!r} is {configured.location} in the settings, not {location}; choose another name"
        )
    return ledger.register(name, location.resolve(), revision)


def embedded_text(item: KnowledgeItem) -> str:
    """What of an item is turned into its vector: where it is, what it is called, what is said of it, how it begins."""
    said = (str(item.payload.structured.get(key) or "") for key in ("signature", "docstring"))
    beginning = "\n".join(item.payload.text.splitlines()[:_EMBEDDED_LINES])
    return "\n".join(filter(None, (item.source.path, item.metadata.title, *said, beginning)))


@functools.lru_cache(maxsize=256)  # most items of a batch have the same one
def _record(at: datetime, action: LineageAction, run_id: str, asset: str, revision: str) -> LineageRecord:
    return LineageRecord(
        timestamp=at,
        actor=Actor.INGESTION,
        action=action,
        run_id=run_id,
        asset_key=asset,
        source_revision=revision,
    )


def _with_history(
    item: KnowledgeItem, earlier: KnowledgeItem | None, staged: Staged, run_id: str, at: datetime
) -> KnowledgeItem:
    """The item with its earlier life: creation time, version, feedback where its connector tells none, what the
    connector says of its lineage, and one more record of it. Of what was migrated the last record says so itself."""
    if earlier is not None and earlier.metadata.checksum == item.metadata.checksum:
        history = {"created_at": earlier.metadata.created_at, "version": earlier.metadata.version}
        metadata = item.metadata.model_copy(update={**history, "lineage": earlier.metadata.lineage})
        return item.model_copy(update={"metadata": metadata, "feedback": earlier.feedback})
    action = LineageAction.UPDATED if earlier else LineageAction.CREATED
    revision = item.source.revision or staged.revision
    record = _record(at, action, run_id, asset_key(staged.connector), revision)
    lived = earlier.metadata.lineage if earlier else ()
    known_steps = set(map(_step_of, lived))
    said = [each for each in item.metadata.lineage if _step_of(each) not in known_steps]
    if said and said[-1].action is LineageAction.MIGRATED:
        record = said.pop().model_copy(
            update={"run_id": record.run_id, "asset_key": record.asset_key, "source_revision": revision}
        )
    if earlier is None:
        return item.model_copy(update={"metadata": item.metadata.model_copy(update={"lineage": (*said, record)})})
    metadata = item.metadata.model_copy(
        update={
            "created_at": min(earlier.metadata.created_at, item.metadata.created_at),
            "version": max(earlier.metadata.version + 1, item.metadata.version),
            "lineage": (*lived, *said, record),
        }
    )
    known = item.feedback if item.feedback != FeedbackCounters() else earlier.feedback
    return item.model_copy(update={"metadata": metadata, "feedback": known})


def _step_of(record: LineageRecord) -> tuple[datetime, LineageAction, str]:
    """What a record of lineage is, whatever run completed it."""
    return record.timestamp, record.action, record.notes


def asset_key(connector: str) -> str:
    """The asset that writes a connector's items, as lineage names it."""
    return f"indexed/{connector}"


def _unchanged(before: Mapping[str, Entry], after: Sequence[Entry]) -> list[str]:
    """The ids that the store holds and will hold with the same content. What expired is no longer there."""
    now = utcnow()
    earlier = ((before.get(entry.id), entry) for entry in after)
    return [new.id for old, new in earlier if old and old.checksum == new.checksum and old.expires_at > now]


def _fingerprint(connector: Connector) -> str:
    """Everything but the source that decides which items come out."""
    options = connector.model_dump_json(exclude=set(connector.transport))
    return hashlib.sha256(f"{connector.name}:{connector.version}:{options}".encode()).hexdigest()


def _data_version(fingerprint: str, listing: Listing, held: Mapping[str, str]) -> str:
    units = dict(listing.units) if listing.complete else {**held, **listing.units}
    return hashlib.sha256(json.dumps([fingerprint, sorted(units.items())]).encode()).hexdigest()


def _staged_at(file: Path) -> str:
    return str(json.loads(file.read_text(encoding="utf-8"))["at"])
