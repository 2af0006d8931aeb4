"""Looking after a running Context-OS: ``look`` observes ledger, store and what Dagster told, and settles the alerts;
``prune`` deletes what expired and leaves receipts.

Most is looked at anew each time. What takes the store's time is spread over the looks, so that thousands of scopes are
no more than a sensor's minute can bear: ``_COUNTED`` of them are counted, and one is reconciled item by item.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

from context_os import conditions, plugins
from context_os.alerts import AlertBook, Finding, Notice
from context_os.conditions import Run
from context_os.errors import ContextOSError, StoreError
from context_os.ingestion import Ingestion, describe
from context_os.ledger import Ledger, Scope
from context_os.model import Access, Confidentiality, KnowledgeItem, Metadata, Payload, Source, Value, item_id, utcnow
from context_os.settings import ObjectiveSettings, Settings
from context_os.stores import Filter, KnowledgeStore, Record

_DISTRUST: Final = timedelta(hours=1)
"""So long after a clock jumped no age is judged. What it says then is taken for right."""
_SETTLED: Final = timedelta(days=1)
"""A quarantine that has not grown for so long is what it is: people were told."""
_SECOND_LOOK: Final = timedelta(minutes=10)
"""A scope with differences is reconciled again so soon, or as soon as an ingestion or a repair went over it."""
_COUNTED: Final = 200
"""Scopes for one look."""
_IDS_A_LINE: Final = 1_000


class Instant(NamedTuple):
    """A moment, by the clock on the wall and in ``steady`` seconds since this machine started, sleep included. Two of
    the same ``boot`` show by how much somebody moved the clock."""

    wall: datetime
    steady: float
    boot: str

    @classmethod
    def now(cls) -> Instant:
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
            return cls(utcnow(), time.clock_gettime(time.CLOCK_BOOTTIME), boot)
        except (OSError, AttributeError):
            return cls(utcnow(), 0.0, "")


@dataclass(frozen=True)
class Told:
    """What Dagster told, see ``defs.history``: runs that ended since the last look, in order, runs that are running,
    and when parts of its daemon were last heard of. The next look goes on at ``cursor``."""

    ended: Sequence[Run] = ()
    running: Sequence[Run] = ()
    beats: Mapping[str, datetime] = field(default_factory=dict)
    cursor: str = ""


def alert_book(settings: Settings) -> AlertBook:
    return AlertBook(settings.make_home() / "alerts.db", settings.alerts)


def ledger(settings: Settings) -> Ledger:
    return Ledger(settings.make_home() / "ledger.db")


def watched(settings: Settings, ledger: Ledger, store: KnowledgeStore) -> list[Scope]:
    """The scopes that are to be fresh, of all tenants: those that were ever ingested, of repositories and connectors
    that there are."""
    known = {*settings.repositories, *(each.name for each in ledger.repositories())}
    connectors = set(plugins.names("connectors"))
    scopes = ledger.scopes(store.identity)
    return [each for each in scopes if each.generation and each.repository in known and each.connector in connectors]


def look(settings: Settings, book: AlertBook, ask: Callable[[str], Told] | None, now: Instant) -> list[Notice] | None:
    """One look at everything. ``ask`` is given the cursor of the last look at Dagster; None where there is no Dagster
    to ask. Returns what is to be told, None if somebody else is looking just now."""
    with book.turn("look") as ours:
        if not ours:
            return None
        memory = book.memory()
        told = ask(memory.get("runs", "")) if ask is not None else None
        stored = _StoreLook(settings, book, memory, now.wall)
        clock = _clock(memory.get("clock"), now)
        skew = conditions.clock_skew(
            stored.newest | _newest(told), timedelta(seconds=clock["jump"]), settings.objectives.clock, now.wall
        )
        found = {"clock_skew": skew, **stored.found(trusted=not skew)}
        if told is not None:
            found |= _judge(book, told, settings.objectives, now.wall, trusted=not skew)
            stored.memory["runs"] = told.cursor
        return book.settle(found, now.wall, {**stored.memory, "clock": json.dumps(clock)})


def _judge(
    book: AlertBook, told: Told, objectives: ObjectiveSettings, now: datetime, *, trusted: bool
) -> dict[str, list[Finding]]:
    """The conditions that Dagster knows of. Without trust in clocks nothing is late, and what was late stays so."""
    standing = book.standing
    times = objectives if trusted else objectives.model_copy(update={"run": None, "jobs": {}})
    found = {
        "failed_run": conditions.failed_runs(standing("failed_run"), told.ended),
        "failed_check": conditions.failed_checks(standing("failed_check"), told.ended),
        "slow_run": conditions.slow_runs(standing("slow_run"), told.ended, told.running, times, now),
    }
    if trusted:
        found["daemon_lag"] = conditions.daemon_lag(told.beats, objectives.daemon, now)
    return found


def _newest(told: Told | None) -> dict[str, datetime]:
    if told is None:
        return {}
    runs = {f"run {run.id}": run.ended or run.started for run in (*told.ended, *told.running)}
    return runs | dict(told.beats)


def _clock(before: str | None, now: Instant) -> dict[str, Any]:
    """What is remembered of the clock: when we looked, and by how many seconds it jumped lately."""
    state = json.loads(before or "null") or {"boot": ""}
    here = {"wall": now.wall.timestamp(), "steady": now.steady, "boot": now.boot}
    if not now.boot or state["boot"] != now.boot:
        return {**here, "jump": 0.0, "since": now.steady}
    moved = (here["wall"] - state["wall"]) - (now.steady - state["steady"])
    if abs(moved) < 1.0:  # clocks are being slewed all the time
        lately = now.steady - state["since"] < _DISTRUST.total_seconds()
        return {**here, "jump": state["jump"] if lately else 0.0, "since": state["since"]}
    return {**here, "jump": state["jump"] + moved, "since": now.steady}


def source_of(scope: Scope, quarantined: int) -> conditions.Source:
    """A scope as conditions see it."""
    return conditions.Source(
        tenant=scope.tenant,
        repository=scope.repository,
        connector=scope.connector,
        confirmed=max(filter(None, (scope.confirmed_at, scope.indexed_at)), default=None),
        quarantined=quarantined,
    )


class _StoreLook:
    """What can be seen of ledger and store. ``memory`` is what to remember, ``newest`` the newest times found."""

    def __init__(self, settings: Settings, book: AlertBook, before: Mapping[str, str], now: datetime) -> None:
        self._settings, self._book, self._before, self._now = settings, book, before, now
        self.memory: dict[str, str] = {}
        self._sources: list[conditions.Source] | None = None
        self._down = self._refusal = ""
        self._differences: dict[str, tuple[conditions.Source, str]] | None = None
        try:
            with settings.open_store() as store:
                self._ledger = ledger(settings)
                self._look(store)
        except ContextOSError as error:
            self._down = str(error)

    def _look(self, store: KnowledgeStore) -> None:
        scopes = watched(self._settings, self._ledger, store)
        sizes = self._ledger.quarantine_sizes()
        self._sources = [self._source(scope, sizes.get(scope.id, 0)) for scope in scopes]
        health = store.health()
        self._down = "" if health.ready else health.detail
        if scopes and not self._down:
            self._refusal = write_refusal(store, scopes[0].tenant)
            self._differences = self._compare(store, list(zip(scopes, self._sources, strict=True)))

    @property
    def newest(self) -> dict[str, datetime]:
        return {f"the ledger ({each.place})": each.confirmed for each in self._sources or () if each.confirmed}

    def found(self, *, trusted: bool) -> dict[str, list[Finding]]:
        """By condition. What cannot be judged just now is left out, and stays as it is."""
        objectives, now = self._settings.objectives, self._now
        found = {"store_unreachable": conditions.store_unreachable(self._down, objectives.patience, now)}
        if self._differences is not None:
            found["store_readonly"] = conditions.store_readonly(self._refusal, objectives.patience, now)
            found["store_out_of_step"] = conditions.store_out_of_step(self._differences, objectives.patience, now)
        if self._sources is not None:
            grown = conditions.quarantine_growth(self._sources, objectives.quarantine_growth, now)
            found["quarantine_growth"] = grown
            if trusted:
                found["stale_source"] = conditions.stale_sources(self._sources, objectives.freshness, now)
        return found

    def _source(self, scope: Scope, quarantined: int) -> conditions.Source:
        baseline = self._baseline(scope, quarantined)
        return source_of(scope, quarantined).model_copy(update={"baseline": baseline})

    def _baseline(self, scope: Scope, count: int) -> int:
        """What a quarantine's size is compared with: its smallest, or what it has stayed at for a day."""
        name, now = f"quarantine:{scope.id}", self._now.timestamp()
        state = self._remembered(name) or {"baseline": count, "count": count, "at": now}
        if count != state["count"] or state["at"] > now:
            state |= {"count": count, "at": now}
        settled = now - state["at"] > _SETTLED.total_seconds()
        state["baseline"] = count if settled else min(state["baseline"], count)
        self._remember(name, state)
        return int(state["baseline"])

    def _remembered(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._before.get(name, "{}"))
        return found

    def _remember(self, name: str, state: object) -> None:
        text = json.dumps(state)
        if self._before.get(name) != text:
            self.memory[name] = text

    # Ledger against store

    def _compare(
        self, store: KnowledgeStore, pairs: Sequence[tuple[Scope, conditions.Source]]
    ) -> dict[str, tuple[conditions.Source, str]]:
        """What differs, by place. Those that differed at the last look, and of the others the next few in turn; what is
        not looked at does not differ."""
        standing = {each.subject for each in self._book.standing("store_out_of_step")}
        due = self._due([scope for scope, _ in pairs])
        turn = self._in_turn(len(pairs))
        found = {}
        for number, (scope, source) in enumerate(pairs):
            if number not in turn and scope is not due and source.place not in standing:
                continue
            what = self._difference(store, scope, full=scope is due)
            if what is None and source.place in standing:
                what = "it cannot be said while an ingestion is writing"
            if what:
                found[source.place] = (source, what)
        return found

    def _in_turn(self, count: int) -> set[int]:
        start = int(self._before.get("counted", "0")) % max(count, 1)
        self.memory["counted"] = str(start + _COUNTED)
        return {(start + step) % count for step in range(min(_COUNTED, count))}

    def _difference(self, store: KnowledgeStore, scope: Scope, *, full: bool) -> str | None:
        """What differs, in words, "" for nothing. None while somebody is writing."""
        mine = self._settings.model_copy(update={"tenant": scope.tenant})
        ingestion = Ingestion(mine, store, self._ledger)
        name = f"reconciled:{scope.id}"
        what = self._count(ingestion, scope) or str(self._remembered(name).get("what", ""))
        if full:
            found = ingestion.reconcile(scope)
            what = describe(found, scope.connector, scope.repository) if found.differences else ""
        now = ingestion.scope(scope.connector, scope.repository)
        moved = bool(self._ledger.pending(scope)) or now.generation != scope.generation
        if full:  # one that is being written had its turn as well
            state = {"at": self._now.timestamp(), "generation": scope.generation, "what": "" if moved else what}
            self._remember(name, state)
        return None if moved else what

    def _count(self, ingestion: Ingestion, scope: Scope) -> str:
        """How the numbers differ, in words, "" if they do not."""
        of_scope = Filter(source_types=(scope.connector,), repositories=(scope.repository,))
        expected, held = self._ledger.count(scope, utcnow()), ingestion.store.count(ingestion.access, of_scope)
        return "" if expected == held else f"the ledger expects {expected:,} items, the store holds {held:,}"

    def _due(self, scopes: Iterable[Scope]) -> Scope | None:
        """The scope that is to be reconciled item by item at this look: one with differences first."""
        every = self._settings.objectives.reconcile
        waited = [(self._overdue(scope, every), scope) for scope in scopes]
        longest = max(waited, key=lambda pair: pair[0], default=None)
        return longest[1] if longest is not None and longest[0] > 0 else None

    def _overdue(self, scope: Scope, every: timedelta | None) -> float:
        """Seconds past the time for its next full reconcile."""
        state = self._remembered(f"reconciled:{scope.id}")
        age = self._now.timestamp() - state["at"] if state else float("inf")
        if state and state["what"] and (state["generation"] != scope.generation or age > _SECOND_LOOK.total_seconds()):
            return float("inf")
        return age - every.total_seconds() if every is not None else -1.0


def write_refusal(store: KnowledgeStore, tenant: str) -> str:
    """Why a healthy store takes no writes, "" if it does: one item is written, expired so that nobody reads it, and
    deleted again."""
    access = Access(tenant=tenant, principal="operations", clearance=Confidentiality.RESTRICTED)
    long_ago = utcnow() - timedelta(days=1)
    probe = KnowledgeItem(
        id=item_id(tenant, "operations", "probe"),
        tenant=tenant,
        domain="operations",
        kind="probe",
        source=Source(type="operations", location="operations"),
        payload=Payload(text="Whether this store takes writes."),
        metadata=Metadata(
            title="probe",
            confidentiality=Confidentiality.RESTRICTED,
            ttl=timedelta(hours=1),
            created_at=long_ago,
            updated_at=long_ago,
        ),
    )
    try:
        store.upsert(access, [Record(probe)])
    except StoreError as error:
        return str(error)
    finally:
        with suppress(StoreError):
            store.delete(access, [probe.id])
    return ""


# Pruning


class Pruned(Value):
    """What one tenant lost. ``deleted`` items expired and were deleted now; ``gone`` the store had already dropped by
    itself (Weaviate sweeps), and now the ledger expects them no longer either."""

    tenant: str
    deleted: int
    gone: int


def prune(settings: Settings, store: KnowledgeStore, run_id: str, now: datetime) -> list[Pruned]:
    """Delete what expired, of every tenant, leave a receipt, and let the ledger follow.

    In this order: a call that is killed in between is repeated by the next one, whose receipt then counts as ``gone``
    what this one deleted.
    """
    books = ledger(settings)
    done = []
    for tenant in sorted({settings.tenant, *(scope.tenant for scope in books.scopes(store.identity))}):
        scopes = books.scopes(store.identity, tenant)
        access = Access(tenant=tenant, principal="prune", clearance=Confidentiality.RESTRICTED)
        deleted = set(store.prune(access, now))
        gone = {id for scope in scopes for id in books.expired(scope, now)} - deleted
        receipts = settings.make_home() / "receipts" / f"prune-{now:%Y}.jsonl"
        about = {"store": store.identity, "tenant": tenant, "run_id": run_id}
        _write_receipts(receipts, {**about, "fate": "deleted"}, deleted, now)
        _write_receipts(receipts, {**about, "fate": "gone"}, gone, now)
        for scope in scopes:
            books.expire(scope, now)
        done.append(Pruned(tenant=tenant, deleted=len(deleted), gone=len(gone)))
    return done


def _write_receipts(file: Path, about: Mapping[str, str], ids: Iterable[str], now: datetime) -> None:
    """Lines of JSON: ``time``, ``tenant``, ``ids``, ``count``, ``run_id``, ``store``, ``fate``. On the disk when this
    returns."""
    ordered = sorted(ids)
    lines = [
        json.dumps({"time": now.isoformat(), **about, "count": len(some), "ids": some}) + "\n"
        for some in (ordered[start : start + _IDS_A_LINE] for start in range(0, len(ordered), _IDS_A_LINE))
    ]
    if not lines:
        return
    file.parent.mkdir(mode=0o700, exist_ok=True)
    with file.open("ab") as handle:
        file.chmod(0o600)
        if _is_torn(file):  # a process was killed while it wrote
            handle.write(b"\n")
        handle.write("".join(lines).encode())
        handle.flush()
        os.fsync(handle.fileno())


def _is_torn(file: Path) -> bool:
    with file.open("rb") as handle:
        if not handle.seek(0, os.SEEK_END):
            return False
        handle.seek(-1, os.SEEK_END)
        return handle.read(1) != b"\n"
