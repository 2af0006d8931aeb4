"""The seam for stores. One file per store; both answer the same contract and the same conformance suite.

Three filters always apply to a read, before ranking and before any limit: the tenant of the ``Access``, its
clearance, and expiry. What a caller may not see does not count, does not rank and is not told apart from
what does not exist.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from context_os import telemetry
from context_os.errors import StoreRejected
from context_os.model import Access, FeedbackCounters, KnowledgeItem, LineageRecord, Time, Value
from context_os.plugins import Plugin

Vector = NDArray[np.float32]
"""Shape ``(dimensions,)``, unit length."""


class Mode(StrEnum):
    KEYWORD = "keyword"
    VECTOR = "vector"
    HYBRID = "hybrid"


class Filter(Value):
    """Narrows a read. Fields combine with AND; the values of one field with OR, except ``tags_all``.

    ``path_prefix`` "src/app" matches "src/app" and "src/app/x.py", not "src/apple.py"; "" matches all.
    ``targets`` finds items with a relation to any of these targets, ``relation_types`` narrows which relations
    count for that and does nothing alone. ``symbols`` finds items that define any of these names. ``updated_from``
    is inclusive, ``updated_to`` exclusive.
    """

    ids: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    tags_any: tuple[str, ...] = ()
    tags_all: tuple[str, ...] = ()
    repositories: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    path_prefix: str = ""
    languages: tuple[str, ...] = ()
    source_types: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    relation_types: tuple[str, ...] = ()
    updated_from: Time | None = None
    updated_to: Time | None = None


@dataclass(frozen=True)
class Query:
    """One search. ``text`` is used by keyword and hybrid, ``vector`` by vector and hybrid. ``alpha`` is the
    vector's share in hybrid (0 keyword only, 1 vector only). ``vector`` is compared with vectors of ``version`` alone:
    what has none of them is not found by it."""

    text: str = ""
    vector: Vector | None = None
    mode: Mode = Mode.HYBRID
    limit: int = 10
    filter: Filter = field(default_factory=Filter)
    alpha: float = 0.5
    version: str = ""


@dataclass(frozen=True)
class Hit:
    """Scores order the hits of one query, higher first, ties by id; they do not compare across queries."""

    item: KnowledgeItem
    score: float


@dataclass(frozen=True)
class Record:
    """What is written: the item, its vector (of the version "") where one was computed, and those of other versions."""

    item: KnowledgeItem
    vector: Vector | None = None
    vectors: Mapping[str, Vector] = field(default_factory=dict)

    @property
    def given(self) -> dict[str, Vector]:
        """Every vector by its version, "" first."""
        return {**({} if self.vector is None else {"": self.vector}), **self.vectors}


@dataclass(frozen=True)
class Written:
    """``written`` were new or changed, ``unchanged`` had the stored checksum and expiry and were skipped."""

    written: int = 0
    unchanged: int = 0


@dataclass(frozen=True)
class Page:
    """``cursor`` is None on the last page. Pages come in order of id."""

    items: tuple[KnowledgeItem, ...]
    cursor: str | None


@dataclass(frozen=True)
class Health:
    """``detail`` is for people. ``version`` is the server's or the library's."""

    ready: bool
    version: str
    detail: str


@dataclass(frozen=True)
class NativeBackup:
    """A backup that a server made and keeps itself. ``base`` is the one that it adds to, "" for a whole one."""

    name: str
    status: str
    base: str = ""
    created: datetime | None = None
    bytes: int | None = None


class KnowledgeStore(Plugin):
    """Contract of a store. Use as a context manager; opening checks nothing that a caller did not ask for.

    Every method raises StoreUnavailable when the store cannot be reached and StoreAccessDenied when it refuses
    this caller. Writes go to the tenant of the ``Access``; an item of another tenant is a StoreRejected and
    nothing of that call is written.

    A subclass's operations are measured without its doing: their time, their errors, and who asked.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in _OPERATIONS & vars(cls).keys():
            setattr(cls, name, _measured(vars(cls)[name], cls.name, name))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def identity(self) -> str:
        """Which store this is, for the ledger: equal for two objects that reach the same data."""
        raise NotImplementedError

    def close(self) -> None:
        """Release connections. Safe to call twice."""

    def upsert(self, access: Access, records: Iterable[Record]) -> Written:
        """Write items, replacing those with the same id. Idempotent. Raises StoreRejected with each failure.

        An item that is replaced by one with another checksum loses its vectors; with the same checksum it keeps them.
        """
        raise NotImplementedError

    def put_vectors(self, access: Access, vectors: Mapping[str, Vector], version: str) -> set[str]:
        """Give the items of these ids their vectors of a version, whatever their confidentiality; the rest of each item
        stays as it is. Returns the ids that were there. All vectors of one version are of one length; wrong ones are a
        StoreRejected and nothing of that call is written."""
        raise NotImplementedError

    def put_feedback(self, access: Access, counters: Mapping[str, FeedbackCounters]) -> set[str]:
        """Let the items of these ids show these counters, whatever their confidentiality; the rest of each item, its
        checksum, lineage and vectors too, stays as it is. Idempotent: counters are absolute. Returns the ids that were
        there. An item that is replaced afterwards shows what it is replaced with."""
        raise NotImplementedError

    def get(self, access: Access, ids: Sequence[str]) -> list[KnowledgeItem]:
        """The items of these ids that exist for this caller, in the order asked."""
        raise NotImplementedError

    def vectors(self, access: Access, ids: Sequence[str], version: str) -> dict[str, Vector]:
        """The vectors of a version by id: of the items of these ids that exist for this caller and have one."""
        raise NotImplementedError

    def search(self, access: Access, query: Query) -> list[Hit]:
        """At most ``query.limit`` hits, best first. An empty text in keyword mode finds nothing. Vector mode
        needs a vector (StoreRejected); hybrid without one is keyword."""
        raise NotImplementedError

    def scan(self, access: Access, filter: Filter, cursor: str | None = None, limit: int = 100) -> Page:
        """One page of all items that match, by id. Follow ``cursor`` to the end for all of them."""
        raise NotImplementedError

    def checksums(self, access: Access, filter: Filter) -> Iterator[tuple[str, str]]:
        """``(id, checksum)`` of all items that match: what reconcile compares, without the items' text."""
        raise NotImplementedError

    def count(self, access: Access, filter: Filter) -> int:
        raise NotImplementedError

    def delete(self, access: Access, ids: Sequence[str]) -> int:
        """Delete items by id, whatever their confidentiality or expiry; returns how many were there."""
        raise NotImplementedError

    def delete_by_source(
        self, access: Access, source_type: str, repository: str, paths: Sequence[str] | None = None
    ) -> int:
        """Delete what a connector wrote for a repository; with ``paths`` only for those, and nothing for none."""
        raise NotImplementedError

    def prune(self, access: Access, now: datetime) -> list[str]:
        """Delete what expired before ``now`` in the tenant; returns the ids."""
        raise NotImplementedError

    def append_lineage(self, access: Access, id: str, record: LineageRecord) -> None:
        """Add one lineage record. Idempotent: an equal record is not added twice. Raises NotFound."""
        raise NotImplementedError

    def drop_tenant(self, access: Access) -> None:
        """Delete everything of the tenant. Nothing happens if there is none."""
        raise NotImplementedError

    def beside(self, name: str) -> KnowledgeStore:
        """A place in the same store where no reader looks, empty at first, as a store with an identity of its own.
        ``name`` is of lower-case letters and digits. A restore builds there what ``take_over`` then shows to all."""
        raise NotImplementedError

    def scratch(self, folder: Path, name: str) -> KnowledgeStore:
        """An empty store of the same kind for a trial, whose tenant is dropped when it is over: in ``folder``, where
        the store is made of files, else beside."""
        del folder
        return self.beside(name)

    def take_over(self, access: Access, name: str) -> None:
        """Let what stands ``beside`` under this name be all that the tenant has. A reader finds all of the old or all
        of the new; what was there before is deleted. Nothing happens where nothing is beside: it took over already."""
        raise NotImplementedError

    def discard(self, access: Access, name: str) -> None:
        """Delete what the tenant has ``beside`` under this name. Nothing happens where there is nothing."""
        raise NotImplementedError

    def native_backup(self, name: str, base: str = "") -> NativeBackup:
        """A backup by the server's own means, where it has them, of everything that this store keeps for any tenant;
        with ``base`` only what differs from that earlier one. Raises StoreRejected where the server makes none."""
        raise StoreRejected(f"the store {self.name} has no backup of its own; make a portable one")

    def native_backups(self) -> list[NativeBackup]:
        """What the server says it has, the oldest first."""
        return []

    def compact(self, access: Access) -> str:
        """Make what was deleted of the tenant unreadable on disk. Slow, and safe to repeat after a kill. Returns what a
        disk may still hold and until when, "" for nothing."""
        raise NotImplementedError

    def health(self) -> Health:
        """Never raises: a store that cannot be reached is not ready, and ``detail`` says why."""
        raise NotImplementedError


_OPERATIONS: Final = frozenset(
    {"upsert", "put_vectors", "get", "search", "scan", "checksums", "count", "delete", "delete_by_source", "prune"}
    | {"append_lineage", "put_feedback", "drop_tenant", "vectors", "take_over", "discard"}
)


def _measured(method: Callable[..., Any], store: str, operation: str) -> Callable[..., Any]:
    """A generator is measured from its first value to its last, and without a span: those of its consumer would become
    the span's children."""

    @functools.wraps(method)
    def call(self: KnowledgeStore, access: Access, *args: Any, **kwargs: Any) -> Any:
        telemetry.STORE_REQUESTS.add(1, store, operation, access.tenant)
        with telemetry.timed(telemetry.STORE_SECONDS, store, operation, errors=telemetry.STORE_ERRORS):
            return method(self, access, *args, **kwargs)

    @functools.wraps(method)
    def generate(self: KnowledgeStore, access: Access, *args: Any, **kwargs: Any) -> Iterator[Any]:
        telemetry.STORE_REQUESTS.add(1, store, operation, access.tenant)
        with telemetry.timed(telemetry.STORE_SECONDS, store, operation, errors=telemetry.STORE_ERRORS, span=False):
            yield from method(self, access, *args, **kwargs)

    return generate if inspect.isgeneratorfunction(method) else call
