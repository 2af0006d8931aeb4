"""The seam for stores. One file per store; both answer the same contract and the same conformance suite.

Three filters always apply to a read, before ranking and before any limit: the tenant of the ``Access``, its
clearance, and expiry. What a caller may not see does not count, does not rank and is not told apart from
what does not exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from context_os.model import Access, KnowledgeItem, LineageRecord, Time, Value
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
    """What is written: the item, and its vector (of the version "") where one was computed."""

    item: KnowledgeItem
    vector: Vector | None = None


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


class KnowledgeStore(Plugin):
    """Contract of a store. Use as a context manager; opening checks nothing that a caller did not ask for.

    Every method raises StoreUnavailable when the store cannot be reached and StoreAccessDenied when it refuses
    this caller. Writes go to the tenant of the ``Access``; an item of another tenant is a StoreRejected and
    nothing of that call is written.
    """

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

    def get(self, access: Access, ids: Sequence[str]) -> list[KnowledgeItem]:
        """The items of these ids that exist for this caller, in the order asked."""
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

    def compact(self, access: Access) -> str:
        """Make what was deleted of the tenant unreadable on disk. Slow, and safe to repeat after a kill. Returns what a
        disk may still hold and until when, "" for nothing."""
        raise NotImplementedError

    def health(self) -> Health:
        """Never raises: a store that cannot be reached is not ready, and ``detail`` says why."""
        raise NotImplementedError
