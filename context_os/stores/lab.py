"""The embedded store: one SQLite file, its FTS5 for words and numpy for vectors. No server, no other process.

Several threads and processes may read while one writes (write-ahead log); a second writer waits ``timeout``
seconds for its turn. A connection serves one call at a time and goes back to a pool, so one object may be shared
by threads; a forked child opens its own. A write is acknowledged when its transaction is in the log: it survives
the death of the process at any moment, and a loss of power costs at most the last transactions, never the file.

Every tenant has its own full-text table, so that no tenant's words move another's ranking. Keyword scores are
BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009) as FTS5 computes it.
"""

# ruff: noqa: S608 -- only table numbers, our own conditions and question marks are put into SQL; values are bound
from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr
from pydantic_core import PydanticSerializationError

from context_os.errors import NotFound, StoreAccessDenied, StoreError, StoreRejected, StoreUnavailable
from context_os.model import (
    NEVER,
    Access,
    Confidentiality,
    FeedbackCounters,
    KnowledgeItem,
    LineageRecord,
    Value,
    utcnow,
)
from context_os.stores import Filter, Health, Hit, KnowledgeStore, Mode, Page, Query, Record, Vector, Written
from context_os.text import words

_APPLICATION: Final = 0x434F534C  # "COSL": tells our file from any other SQLite database

_MIGRATIONS: Final = (
    """
    CREATE TABLE tenants (
        number INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL UNIQUE, writes INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE items (
        row INTEGER PRIMARY KEY, tenant INTEGER NOT NULL, id TEXT NOT NULL, domain TEXT NOT NULL, kind TEXT NOT NULL,
        repository TEXT NOT NULL, path TEXT NOT NULL, language TEXT NOT NULL, source_type TEXT NOT NULL,
        clearance INTEGER NOT NULL, expires_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, checksum TEXT NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX items_by_id ON items (tenant, id);
    CREATE INDEX items_by_source ON items (tenant, source_type, repository, id, clearance, expires_at, checksum);
    CREATE INDEX items_by_path ON items (tenant, path);
    CREATE TABLE bodies (row INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT;
    CREATE TABLE marks (
        tenant INTEGER NOT NULL, what TEXT NOT NULL, value TEXT NOT NULL, type TEXT NOT NULL, row INTEGER NOT NULL,
        PRIMARY KEY (tenant, what, value, type, row)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE vectors (row INTEGER PRIMARY KEY, tenant INTEGER NOT NULL, vector BLOB NOT NULL) STRICT;
    CREATE INDEX vectors_by_tenant ON vectors (tenant);
    ANALYZE sqlite_schema;
    INSERT INTO sqlite_stat1 VALUES
        ('items', 'items_by_id', '1000000 50000 1'),
        ('items', 'items_by_source', '1000000 50000 20000 5000 1 1 1 1'),
        ('items', 'items_by_path', '1000000 50000 10'),
        ('marks', 'marks', '5000000 250000 80000 10 5 1'),
        ('vectors', 'vectors_by_tenant', '1000000 50000');
    ANALYZE sqlite_schema
    """,
    """
    ALTER TABLE vectors ADD COLUMN version TEXT NOT NULL DEFAULT '';
    DROP INDEX vectors_by_tenant;
    CREATE INDEX vectors_by_version ON vectors (tenant, version);
    INSERT INTO sqlite_stat1 VALUES ('vectors', 'vectors_by_version', '1000000 50000 25000');
    ANALYZE sqlite_schema
    """,
    """
    CREATE INDEX items_by_kind ON items (tenant, kind, id);
    INSERT INTO sqlite_stat1 VALUES ('items', 'items_by_kind', '1000000 50000 5000 1');
    ANALYZE sqlite_schema
    """,
)
"""One script for each version of the file. ``items`` holds what filters read and is kept narrow, ``bodies`` the
whole item as JSON, ``marks`` its tags, symbols and relations. Times are milliseconds since 1970 in UTC. The
statistics are those of a large store: left alone, SQLite takes a tenant to be ten items and walks all of them
where a path, a symbol or a relation would lead to a few."""

# The text arrives already split into letters, digits and "_". FTS5 keeps the split text itself, because deleting
# needs the words as they were written, not as a later version of ``words`` would split them.
_FULL_TEXT: Final = """
    CREATE VIRTUAL TABLE fts_{0} USING fts5(title, symbols, path, text, tokenize = "ascii tokenchars '_'");
    CREATE VIRTUAL TABLE terms_{0} USING fts5vocab(fts_{0}, row)
"""
_WEIGHTS: Final = "3.0, 4.0, 2.0, 1.0"  # of title, symbols, path, text

_BESIDE: Final = "\x1f"  # stands in no tenant's name that the settings allow
_ROUNDING: Final = 1e-6  # that single precision leaves of a unit vector's length

_CHUNK: Final = 5_000  # items per transaction
_CANDIDATES: Final = 100  # of each arm of a hybrid search, at least
_MATRICES: Final = 8  # tenants' versions whose vectors stay in memory
_COUNTS: Final = 64  # that stay in memory
_MOST_VALUES: Final = 30_000  # below SQLite's limit on parameters
_MOST_WORDS: Final = 1_000  # of one query
_FEW_WORDS: Final = 8  # are always searched for, however common
_POSTINGS: Final = 15_000

_PRAGMAS: Final = (
    "synchronous = NORMAL",
    "secure_delete = ON",
    "cache_size = -16000",  # KiB, for each connection
    "wal_autocheckpoint = 8000",  # pages, 32 MB: a batch is some 1,000, and is not to wait for its own writing back
    "journal_size_limit = 67108864",  # bytes that the log keeps once it is written back
)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_creating = threading.Lock()
_T = TypeVar("_T")


class LabStore(KnowledgeStore):
    """``path`` is the database file, created with mode 0600 at the first use. ``timeout`` is how long, in seconds,
    a write waits for another one before StoreUnavailable."""

    name: ClassVar[str] = "lab"

    path: Path
    timeout: float = Field(default=10.0, gt=0)

    _place: str = PrivateAttr(default="")
    _idle: dict[int, list[sqlite3.Connection]] = PrivateAttr(default_factory=dict)
    _matrices: dict[tuple[int, str], _Matrix] = PrivateAttr(default_factory=dict)
    _counts: dict[tuple[int, Confidentiality, Filter], tuple[int, int, int]] = PrivateAttr(default_factory=dict)
    _loading: threading.Lock = PrivateAttr(default_factory=threading.Lock)

    @property
    def identity(self) -> str:
        return f"lab:{self.path.resolve()}{self._place}"

    def close(self) -> None:
        """Closes the idle connections; a later call opens a new one."""
        self._matrices.clear()
        idle = self._idle.get(os.getpid(), [])
        with _errors(self.path):
            while idle:
                idle.pop().close()

    def upsert(self, access: Access, records: Iterable[Record]) -> Written:
        """All records are checked before the first is written; then each chunk of them is one transaction. Of two with
        the same id the last counts. An item without a checksum is always written."""
        found = list(records)
        _refuse_foreign(access, found)
        with self._session(access) as session:
            session.check_records(found)
        ready = [
            (record, _json(record.item, record.item.id))
            for record in {record.item.id: record for record in found}.values()
        ]
        written = 0
        for chunk in _chunks(ready):
            with self._session(access, write=True) as session:
                session.check_records([record for record, _ in chunk])
                written += session.put(chunk)
        return Written(written=written, unchanged=len(ready) - written)

    def put_vectors(self, access: Access, vectors: Mapping[str, Vector], version: str) -> set[str]:
        """An item keeps one vector: its earlier one goes, of whatever version it is."""
        with self._session(access) as session:
            session.check_vectors(vectors, version)
        there: set[str] = set()
        for chunk in _chunks(vectors):
            some = {id: vectors[id] for id in chunk}
            with self._session(access, write=True) as session:
                session.check_vectors(some, version)
                there |= session.put_vectors(some, version)
        return there

    def put_feedback(self, access: Access, counters: Mapping[str, FeedbackCounters]) -> set[str]:
        there: set[str] = set()
        for chunk in _chunks(counters):
            with self._session(access, write=True) as session:
                there |= session.put_feedback({id: counters[id] for id in chunk})
        return there

    def get(self, access: Access, ids: Sequence[str]) -> list[KnowledgeItem]:
        with self._session(access) as session:
            found: dict[str, KnowledgeItem] = {}
            for chunk in _chunks(dict.fromkeys(ids)):
                rows = session.rows(_where(session.number, access, Filter(ids=tuple(chunk))))
                found.update((item.id, item) for item in session.load(rows).values())
        return [found[id] for id in ids if id in found]

    def vectors(self, access: Access, ids: Sequence[str], version: str) -> dict[str, Vector]:
        found: dict[str, Vector] = {}
        with self._session(access) as session:
            for chunk in _chunks(dict.fromkeys(ids)):
                readable = session.ids(session.rows(_where(session.number, access, Filter(ids=tuple(chunk)))))
                kept = session.vectors_of(readable).items()
                found |= {id: np.frombuffer(raw, dtype="<f4") for id, (other, raw) in kept if other == version}
        return found

    def search(self, access: Access, query: Query) -> list[Hit]:
        """Keyword scores are BM25, vector scores cosines; hybrid adds the two lists, each scaled to 0..1."""
        vector = None if query.vector is None or query.mode is Mode.KEYWORD else _unit(query.vector)
        if query.mode is Mode.VECTOR and vector is None:
            raise StoreRejected("a search in vector mode needs a vector")
        if query.limit < 1:
            return []
        with self._session(access) as session:
            ranked = self._ranked(session, _where(session.number, access, query.filter), query, vector)
            items = session.load([row for row, _ in ranked])
        return [Hit(items[row], score) for row, score in ranked]

    def _ranked(self, session: _Session, where: _Where, query: Query, vector: Vector | None) -> list[tuple[int, float]]:
        if query.mode is Mode.VECTOR and vector is not None:
            return self._nearest(session, where, vector, query.version, query.limit)
        if vector is None:
            return session.matching(where, query.text, query.limit)
        depth = max(query.limit, _CANDIDATES)
        near = self._nearest(session, where, vector, query.version, depth)
        arms = ((near, query.alpha), (session.matching(where, query.text, depth), 1 - query.alpha))
        fused = _fuse([(_scaled(ranked), weight) for ranked, weight in arms if weight > 0])
        ids = session.ids(list(fused))
        return sorted(fused.items(), key=lambda pair: (-pair[1], ids[pair[0]]))[: query.limit]

    def _nearest(
        self, session: _Session, where: _Where, vector: Vector, version: str, limit: int
    ) -> list[tuple[int, float]]:
        key = (session.number, version)
        with self._loading:
            kept = self._matrices.get(key)
            if kept is None or kept.writes != session.writes:
                kept = self._matrices[key] = session.load_matrix(version)
                while len(self._matrices) > _MATRICES:
                    del self._matrices[next(iter(self._matrices))]
        return kept.nearest(vector, session.rows(where), limit)

    def scan(self, access: Access, filter: Filter, cursor: str | None = None, limit: int = 100) -> Page:
        if limit < 1:
            raise StoreRejected(f"a page of {limit} items cannot be filled; ask for at least 1")
        with self._session(access) as session:
            where = _where(session.number, access, filter).and_("i.id > ?", cursor or "")
            rows = session.rows(where, f"ORDER BY i.id LIMIT {limit + 1}")
            items = tuple(session.load(rows[:limit]).values())
        return Page(items, items[-1].id if len(rows) > limit else None)

    def checksums(self, access: Access, filter: Filter) -> Iterator[tuple[str, str]]:
        """Reads as it goes, from the state at the first pair; whoever stops early should close the iterator."""
        with self._session(access) as session:
            where = _where(session.number, access, filter)
            yield from session.run(f"SELECT i.id, i.checksum FROM items AS i WHERE {where.sql}", where.values)

    def count(self, access: Access, filter: Filter) -> int:
        """Kept until something is written or the first of what was counted expires: packs and searches ask each time
        whether they know of everything, and counting looks at every item."""
        with self._session(access) as session:
            key = (session.number, access.clearance, filter)
            writes, until, number = self._counts.get(key, (-1, 0, 0))
            if writes != session.writes or _milliseconds(utcnow()) >= until:
                where = _where(session.number, access, filter)
                sql = f"SELECT count(*), min(i.expires_at) FROM items AS i WHERE {where.sql}"
                number, until = session.one(sql, where.values)
                self._counts[key] = (session.writes, until or _milliseconds(NEVER), number)
                while len(self._counts) > _COUNTS:
                    self._counts.pop(next(iter(self._counts)), None)
            return int(number)

    def delete(self, access: Access, ids: Sequence[str]) -> int:
        gone = 0
        for chunk in _chunks(dict.fromkeys(ids)):
            with self._session(access, write=True) as session:
                gone += len(session.remove(session.rows(_all_of(session.number).among("i.id", chunk))))
        return gone

    def delete_by_source(
        self, access: Access, source_type: str, repository: str, paths: Sequence[str] | None = None
    ) -> int:
        def remove(some: Sequence[str]) -> int:
            source = _Where("i.source_type = ? AND i.repository = ?", (source_type, repository)).among("i.path", some)
            return len(self._remove(access, lambda number: _all_of(number).and_(source.sql, *source.values)))

        return remove(()) if paths is None else sum(map(remove, _chunks(dict.fromkeys(paths))))

    def prune(self, access: Access, now: datetime) -> list[str]:
        return self._remove(access, lambda number: _all_of(number).and_("i.expires_at <= ?", _milliseconds(now)))

    def _remove(self, access: Access, where: Callable[[int], _Where]) -> list[str]:
        """Delete what matches, a chunk for each transaction so that other writers get their turn."""
        gone: list[str] = []
        while True:
            with self._session(access, write=True) as session:
                removed = session.remove(session.rows(where(session.number), f"LIMIT {_CHUNK}"))
            if not removed:
                return gone
            gone.extend(removed)

    def append_lineage(self, access: Access, id: str, record: LineageRecord) -> None:
        # As it comes back from JSON, whose times are cut to milliseconds: else an equal record might look new.
        record = LineageRecord.model_validate_json(_json(record, id))
        with self._session(access, write=True) as session:
            found = session.load(session.rows(_where(session.number, access, Filter(ids=(id,)))))
            if not found:
                raise NotFound(f"no item {id!r} for {access.principal} in tenant {access.tenant!r}")
            ((row, item),) = found.items()
            if record not in item.metadata.lineage:
                lineage = (*item.metadata.lineage, record)
                metadata = item.metadata.model_copy(update={"lineage": lineage})
                body = _json(item.model_copy(update={"metadata": metadata}), id)
                session.run("UPDATE bodies SET body = ? WHERE row = ?", (body, row))

    def drop_tenant(self, access: Access) -> None:
        """What is deleted is overwritten in the file (``secure_delete``), and leaves the log with the checkpoint or,
        where a reader of an older state is still at work, with a later one."""
        with self._session(access, write=True) as session:
            session.drop()
        with _errors(self.path), self._lent() as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def beside(self, name: str) -> LabStore:
        """In the same file, as a tenant whose name no settings allow."""
        store = LabStore(path=self.path, timeout=self.timeout)
        store._place = f"{self._place}{_BESIDE}{name}"
        return store

    def scratch(self, folder: Path, name: str) -> LabStore:
        return LabStore(path=folder / f"{name}.db", timeout=self.timeout)

    def take_over(self, access: Access, name: str) -> None:
        """One transaction exchanges the names; what the former one held is deleted behind it."""
        before = self.beside(f"{name}{_BESIDE}before")
        with self._session(access, write=True) as session:
            session.rename(access.tenant + self.beside(name)._place, access.tenant + before._place)
        before.drop_tenant(access)
        before.close()

    def discard(self, access: Access, name: str) -> None:
        with self.beside(name) as store:
            store.drop_tenant(access)

    def compact(self, access: Access) -> str:
        """Merges the full-text index, whose deleted words stay in it until then, and writes the file anew. Raises
        StoreUnavailable while another process is at work in it."""
        with self._session(access, write=True) as session:
            if session.number:
                session.run(f"INSERT INTO fts_{session.number} (fts_{session.number}) VALUES ('optimize')")
        with _errors(self.path), self._lent() as connection:
            connection.execute("VACUUM")
            busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return f"the log {self.path.name}-wal, until the reader that holds it ends" if busy else ""

    def health(self) -> Health:
        version = f"SQLite {sqlite3.sqlite_version}"
        try:
            with _errors(self.path), self._lent() as connection:
                connection.execute("SELECT count(*) FROM tenants").fetchone()
                size = self.path.stat().st_size
        except StoreError as error:
            return Health(ready=False, version=version, detail=str(error))
        return Health(ready=True, version=version, detail=f"{self.path}, {size / 1e6:.1f} MB")

    @contextmanager
    def _session(self, access: Access, *, write: bool = False) -> Iterator[_Session]:
        """One transaction: a reader sees one state of the file throughout, a writer holds the only turn."""
        with _errors(self.path), self._lent() as connection:
            connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            try:
                yield _Session.of(connection, access.tenant + self._place)
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    @contextmanager
    def _lent(self) -> Iterator[sqlite3.Connection]:
        # Keyed by process: a connection must not be used, nor closed, on the other side of a fork.
        idle = self._idle.setdefault(os.getpid(), [])
        try:
            connection = idle.pop()
        except IndexError:
            connection = _open(self.path, self.timeout)
        try:
            yield connection
        finally:
            if connection.in_transaction:  # even rolling back failed
                connection.close()
            else:
                idle.append(connection)


@dataclass(frozen=True)
class _Where:
    """A condition on ``items AS i`` and its parameters."""

    sql: str
    values: tuple[Any, ...]

    def and_(self, sql: str, *values: Any) -> _Where:
        return _Where(f"{self.sql} AND {sql}", self.values + values)

    def among(self, column: str, values: Iterable[str]) -> _Where:
        """No values, no condition."""
        values = tuple(values)
        return self.and_(f"{column} {_in(values)}", *values) if values else self

    def marked(self, number: int, what: str, values: Sequence[str], types: Sequence[str] = ()) -> _Where:
        if not values:
            return self
        marks = _Where("tenant = ? AND what = ?", (number, what)).among("value", values).among("type", types)
        return self.and_(f"i.row IN (SELECT row FROM marks WHERE {marks.sql})", *marks.values)


def _all_of(number: int) -> _Where:
    return _Where("i.tenant = ?", (number,))


def _where(number: int, access: Access, filter: Filter) -> _Where:
    """What this caller may read, narrowed by the filter. Must agree with ``Access.may_read``."""
    where = _all_of(number).and_(
        "i.clearance <= ? AND i.expires_at > ?", access.clearance.rank, _milliseconds(utcnow())
    )
    for column, values in (
        ("i.id", filter.ids),
        ("i.domain", filter.domains),
        ("i.kind", filter.kinds),
        ("i.repository", filter.repositories),
        ("i.path", filter.paths),
        ("i.language", filter.languages),
        ("i.source_type", filter.source_types),
    ):
        where = where.among(column, values)
    where = where.marked(number, "tag", filter.tags_any)
    for tag in dict.fromkeys(filter.tags_all):
        where = where.marked(number, "tag", (tag,))
    where = where.marked(number, "symbol", filter.symbols)
    where = where.marked(number, "relation", filter.targets, filter.relation_types)
    where = _within(where, filter)
    if len(where.values) > _MOST_VALUES:
        raise StoreRejected(f"the filter lists more than {_MOST_VALUES} values; ask in several parts")
    return where


def _within(where: _Where, filter: Filter) -> _Where:
    if prefix := filter.path_prefix.rstrip("/"):
        # "0" is the character after "/": a range, because LIKE has wildcards and ignores case.
        where = where.and_("(i.path = ? OR (i.path > ? AND i.path < ?))", prefix, f"{prefix}/", f"{prefix}0")
    if filter.updated_from is not None:
        where = where.and_("i.updated_at >= ?", _milliseconds(filter.updated_from, up=True))
    if filter.updated_to is not None:
        where = where.and_("i.updated_at < ?", _milliseconds(filter.updated_to, up=True))
    return where


@dataclass(frozen=True)
class _Session:
    """One tenant inside one transaction. ``number`` is 0 for a tenant that was never written, and matches nothing.
    ``writes`` counts the transactions that changed its items."""

    connection: sqlite3.Connection
    tenant: str
    number: int
    writes: int

    @classmethod
    def of(cls, connection: sqlite3.Connection, tenant: str) -> _Session:
        found = connection.execute("SELECT number, writes FROM tenants WHERE tenant = ?", (tenant,)).fetchone()
        return cls(connection, tenant, *(found or (0, 0)))

    def run(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        return self.connection.execute(sql, values)

    def one(self, sql: str, values: Sequence[Any] = ()) -> Any:
        return self.run(sql, values).fetchone()

    def rows(self, where: _Where, tail: str = "") -> list[int]:
        return [row for (row,) in self.run(f"SELECT i.row FROM items AS i WHERE {where.sql} {tail}", where.values)]

    def ids(self, rows: Sequence[int]) -> dict[int, str]:
        return dict(self._each("SELECT row, id FROM items WHERE row", rows))

    def load(self, rows: Sequence[int]) -> dict[int, KnowledgeItem]:
        """The items of these rows, in this order."""
        bodies = dict(self._each("SELECT row, body FROM bodies WHERE row", rows))
        return {row: KnowledgeItem.model_validate_json(bodies[row]) for row in rows}

    def _each(self, sql: str, rows: Sequence[int]) -> Iterator[tuple[int, str]]:
        for chunk in _chunks(rows):
            yield from self.run(f"{sql} {_in(chunk)}", chunk)

    def matching(self, where: _Where, text: str, limit: int) -> list[tuple[int, float]]:
        """``(row, BM25)`` of the best matches of any word, best first."""
        terms = self._terms(text) if self.number else {}
        # Where the filter lets nothing through, every match would be looked at to find that out.
        if not terms or not self.one(f"SELECT EXISTS (SELECT 1 FROM items AS i WHERE {where.sql})", where.values)[0]:
            return []
        telling = self._telling(terms)
        found = self._match(where, telling, limit) if telling else []
        return found if len(found) == limit else self._match(where, terms, limit)

    def _match(self, where: _Where, terms: Mapping[str, int], limit: int) -> list[tuple[int, float]]:
        fts = f"fts_{self.number}"
        quoted = " OR ".join('"' + term.replace('"', '""') + '"' for term in terms)
        # CROSS JOIN keeps the full-text table outside and "+" keeps its rowid free: the other way round the whole
        # search would run once for each candidate.
        sql = f"""SELECT i.row, -bm25({fts}, {_WEIGHTS}) AS score FROM {fts} CROSS JOIN items AS i
            WHERE {fts} MATCH ? AND i.row = +{fts}.rowid AND {where.sql} ORDER BY score DESC, i.id LIMIT {limit}"""
        return self.run(sql, (quoted, *where.values)).fetchall()

    def _terms(self, text: str) -> dict[str, int]:
        """The query's known words, the rarest first, with how many items hold them. FTS5's cost grows with words times
        matches; of a long query the rarest words stay, which decide the ranking, until together they occur in
        ``_POSTINGS`` items."""
        asked = list(islice(dict.fromkeys(words(text)), _MOST_WORDS))
        found = self.run(f"SELECT doc, term FROM terms_{self.number} WHERE term {_in(asked)}", asked)
        kept: dict[str, int] = {}
        for items, term in sorted(found):
            if sum(kept.values()) + items > _POSTINGS and len(kept) >= _FEW_WORDS:
                break
            kept[term] = items
        return kept

    def _telling(self, terms: Mapping[str, int]) -> dict[str, int]:
        """Without the words that more than half of all items hold: to FTS5 they are worth 0.000001, and looking at
        nearly every item for that is most of what a search in a large store costs."""
        if sum(terms.values()) <= _POSTINGS:
            return dict(terms)
        half = self.one("SELECT count(*) FROM items WHERE tenant = ?", (self.number,))[0] / 2
        return {term: items for term, items in terms.items() if items <= half}

    def load_matrix(self, version: str) -> _Matrix:
        """All vectors of a version that the tenant has, in the order of ids."""
        sql = """SELECT v.row, v.vector FROM vectors AS v JOIN items AS i ON i.row = v.row
            WHERE v.tenant = ? AND v.version = ? ORDER BY i.id"""
        found = self.run(sql, (self.number, version)).fetchall()
        rows = np.fromiter((row for row, _ in found), dtype=np.int64, count=len(found))
        vectors = np.frombuffer(b"".join(vector for _, vector in found), dtype="<f4")
        return _Matrix(self.writes, rows, vectors.reshape(len(found), -1 if found else 0))

    def check_records(self, records: Iterable[Record]) -> None:
        """Raises StoreRejected for vectors that are not finite or not as long as the others of their version."""
        by_version: dict[str, dict[str, Vector]] = {}
        for record in records:
            for version, vector in record.given.items():
                by_version.setdefault(version, {})[record.item.id] = vector
        for version, vectors in by_version.items():
            self.check_vectors(vectors, version)

    def check_vectors(self, vectors: Mapping[str, Vector], version: str) -> None:
        """Raises StoreRejected for vectors that are not finite or not as long as the tenant's of that version."""
        sql = "SELECT length(vector) / 4 FROM vectors WHERE tenant = ? AND version = ? LIMIT 1"
        stored = self.one(sql, (self.number, version))
        size = stored[0] if stored else None
        failures: dict[str, str] = {}
        for id, vector in vectors.items():
            size = vector.size if size is None else size
            if vector.shape != (size,):
                failures[id] = f"its vector has the shape {vector.shape}, the tenant's have ({size},)"
            elif not np.isfinite(vector).all():
                failures[id] = "its vector holds numbers that are not finite"
        if failures:
            raise _rejected(failures)

    def put(self, prepared: Sequence[tuple[Record, str]]) -> int:
        """Write what differs from what is stored, return how many that were."""
        ids = [record.item.id for record, _ in prepared]
        sql = f"SELECT id, row, checksum, expires_at FROM items WHERE tenant = ? AND id {_in(ids)}"
        stored = {id: rest for id, *rest in self.run(sql, (self.number, *ids))}
        changed = [pair for pair in prepared if not _same(pair[0].item, stored.get(pair[0].item.id))]
        given = {record.item.id for record, _ in changed if record.given}
        if changed:
            session = self if self.number else self._founded()
            kept = session.vectors_of(
                {stored[item.id][0]: item.id for item in (record.item for record, _ in changed) if _like(item, stored)}
            )
            session.remove([stored[record.item.id][0] for record, _ in changed if record.item.id in stored])
            session._insert(changed)
            session._insert_vectors((id, *vector) for id, vector in kept.items() if id not in given)
        return len(changed)

    def vectors_of(self, rows: Mapping[int, str]) -> dict[str, tuple[str, bytes]]:
        """``(version, vector)`` by id."""
        found: dict[str, tuple[str, bytes]] = {}
        for chunk in _chunks(rows):
            sql = f"SELECT row, version, vector FROM vectors WHERE row {_in(chunk)}"
            found |= {rows[row]: (version, vector) for row, version, vector in self.run(sql, chunk)}
        return found

    def put_vectors(self, vectors: Mapping[str, Vector], version: str) -> set[str]:
        sql = f"SELECT id FROM items WHERE tenant = ? AND id {_in(list(vectors))}"
        there = {id for (id,) in self.run(sql, (self.number, *vectors))}
        self._insert_vectors((id, version, _unit(vectors[id]).tobytes()) for id in there)
        self._changed()
        return there

    def put_feedback(self, counters: Mapping[str, FeedbackCounters]) -> set[str]:
        sql = f"SELECT row FROM items WHERE tenant = ? AND id {_in(list(counters))}"
        items = self.load([row for (row,) in self.run(sql, (self.number, *counters))])
        new = {row: item.model_copy(update={"feedback": counters[item.id]}) for row, item in items.items()}
        bodies = ((_json(item, item.id), row) for row, item in new.items())
        self.connection.executemany("UPDATE bodies SET body = ? WHERE row = ?", bodies)
        return {item.id for item in new.values()}

    def _insert_vectors(self, vectors: Iterable[tuple[str, str, bytes]]) -> None:
        self.connection.executemany(
            "INSERT OR REPLACE INTO vectors (row, tenant, version, vector)"
            " SELECT row, tenant, ?, ? FROM items WHERE tenant = ? AND id = ?",
            ((version, vector, self.number, id) for id, version, vector in vectors),
        )

    def _founded(self) -> _Session:
        self.run("INSERT INTO tenants (tenant) VALUES (?)", (self.tenant,))
        session = _Session.of(self.connection, self.tenant)
        _script(self.connection, _FULL_TEXT.format(session.number))
        return session

    def _insert(self, prepared: Sequence[tuple[Record, str]]) -> None:
        many = self.connection.executemany
        first = self.one("SELECT coalesce(max(row), 0) + 1 FROM items")[0]
        numbered = [(row, record, body) for row, (record, body) in enumerate(prepared, first)]
        many(
            "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (_columns(row, self.number, record.item) for row, record, _ in numbered),
        )
        many("INSERT INTO bodies VALUES (?, ?)", ((row, body) for row, _, body in numbered))
        many(
            f"INSERT INTO fts_{self.number} (rowid, title, symbols, path, text) VALUES (?, ?, ?, ?, ?)",
            ((row, *_split(record.item)) for row, record, _ in numbered),
        )
        many(
            "INSERT INTO marks VALUES (?, ?, ?, ?, ?)",
            ((self.number, *mark, row) for row, record, _ in numbered for mark in _marks(record.item)),
        )
        many(
            "INSERT OR REPLACE INTO vectors (row, tenant, version, vector) VALUES (?, ?, ?, ?)",
            (
                (row, self.number, version, _unit(vector).tobytes())
                for row, record, _ in numbered
                for version, vector in record.given.items()
            ),
        )
        self._changed()

    def remove(self, rows: Sequence[int]) -> list[str]:
        """Delete these rows everywhere, return their ids."""
        if not rows:
            return []
        gone = self.load(rows)
        many = self.connection.executemany
        marks = ((self.number, *mark, row) for row, item in gone.items() for mark in _marks(item))
        many("DELETE FROM marks WHERE tenant = ? AND what = ? AND value = ? AND type = ? AND row = ?", marks)
        for table, key in ((f"fts_{self.number}", "rowid"), ("vectors", "row"), ("bodies", "row"), ("items", "row")):
            many(f"DELETE FROM {table} WHERE {key} = ?", ((row,) for row in rows))
        self._changed()
        return [item.id for item in gone.values()]

    def _changed(self) -> None:
        self.run("UPDATE tenants SET writes = writes + 1 WHERE number = ?", (self.number,))

    def rename(self, beside: str, before: str) -> None:
        """What is called ``beside`` gets this tenant's name, what had it that of ``before``."""
        if self.one("SELECT 1 FROM tenants WHERE tenant = ?", (beside,)) is None:
            return
        self.run("UPDATE tenants SET tenant = ? WHERE number = ?", (before, self.number))
        self.run("UPDATE tenants SET tenant = ? WHERE tenant = ?", (self.tenant, beside))

    def drop(self) -> None:
        if not self.number:
            return
        _script(self.connection, f"DROP TABLE terms_{self.number}; DROP TABLE fts_{self.number}")
        self.run("DELETE FROM bodies WHERE row IN (SELECT row FROM items WHERE tenant = ?)", (self.number,))
        for table in ("marks", "vectors", "items"):
            self.run(f"DELETE FROM {table} WHERE tenant = ?", (self.number,))
        self.run("DELETE FROM tenants WHERE number = ?", (self.number,))


@dataclass(frozen=True)
class _Matrix:
    """A tenant's vectors as of its ``writes``-th change: ``rows`` of shape (n,), unit ``vectors`` of shape (n, d)."""

    writes: int
    rows: NDArray[np.int64]
    vectors: NDArray[np.float32]

    def nearest(self, vector: Vector, rows: Sequence[int], limit: int) -> list[tuple[int, float]]:
        """``(row, cosine)`` of the nearest among ``rows``. Positions are in the order of ids, which settles ties."""
        if not len(self.rows):
            return []
        if len(vector) != self.vectors.shape[1]:
            raise StoreRejected(f"the query's vector has {len(vector)} numbers, the store's {self.vectors.shape[1]}")
        places = np.flatnonzero(np.isin(self.rows, np.fromiter(rows, dtype=np.int64, count=len(rows))))
        # Rounded, since the same vector may differ in the last bit from place to place of a matrix product.
        scores = np.round((self.vectors @ vector)[places].astype(np.float64), 6)
        if len(places) > limit:
            best = scores >= np.partition(scores, -limit)[-limit]
            places, scores = places[best], scores[best]
        order = np.argsort(-scores, kind="stable")[:limit]
        return [(int(self.rows[places[at]]), float(scores[at])) for at in order]


def _scaled(ranked: Sequence[tuple[int, float]]) -> dict[int, float]:
    """Scores scaled so that the best is 1 and the worst 0; all 1 where they do not differ."""
    if not ranked:
        return {}
    best, worst = ranked[0][1], ranked[-1][1]
    span = best - worst
    return {row: (score - worst) / span if span else 1.0 for row, score in ranked}


def _fuse(arms: Iterable[tuple[dict[int, float], float]]) -> dict[int, float]:
    fused: dict[int, float] = {}
    for scores, weight in arms:
        for row, score in scores.items():
            fused[row] = fused.get(row, 0.0) + weight * score
    return fused


def _columns(row: int, number: int, item: KnowledgeItem) -> tuple[Any, ...]:
    source, metadata = item.source, item.metadata
    return (
        row, number, item.id, item.domain, item.kind, source.repository, source.path, source.language, source.type,
        metadata.confidentiality.rank, _milliseconds(item.expires_at), _milliseconds(metadata.updated_at),
        metadata.checksum,
    )  # fmt: skip


def _marks(item: KnowledgeItem) -> Iterable[tuple[str, str, str]]:
    """``(what, value, type)``, each once."""
    tags = [("tag", tag, "") for tag in item.metadata.tags]
    symbols = [("symbol", symbol, "") for symbol in item.symbols]
    relations = [("relation", relation.target, relation.type) for relation in item.relations]
    return dict.fromkeys(tags + symbols + relations)


def _split(item: KnowledgeItem) -> tuple[str, str, str, str]:
    fields = (item.metadata.title, " ".join(item.symbols), item.source.path, item.payload.text)
    title, symbols, path, text = (" ".join(words(field)) for field in fields)
    return title, symbols, path, text


def _like(item: KnowledgeItem, stored: Mapping[str, Sequence[Any]]) -> bool:
    """Whether only its life differs from what is stored: its vector is then still right."""
    return item.id in stored and bool(item.metadata.checksum) and stored[item.id][1] == item.metadata.checksum


def _same(item: KnowledgeItem, stored: Sequence[Any] | None) -> bool:
    if stored is None or not item.metadata.checksum:
        return False
    _, checksum, expires_at = stored
    return bool(checksum == item.metadata.checksum and expires_at == _milliseconds(item.expires_at))


def _json(value: Value, id: str) -> str:
    try:
        return value.model_dump_json()
    except PydanticSerializationError as error:
        raise _rejected({id: f"it has no JSON form: {error}"}) from None


def _refuse_foreign(access: Access, records: Iterable[Record]) -> None:
    foreign = {
        record.item.id: f"it belongs to tenant {record.item.tenant!r}, the caller to {access.tenant!r}"
        for record in records
        if record.item.tenant != access.tenant
    }
    if foreign:
        raise _rejected(foreign)


def _rejected(failures: dict[str, str]) -> StoreRejected:
    id, reason = next(iter(failures.items()))
    return StoreRejected(f"nothing was written: {len(failures)} items refused; {id}: {reason}", failures)


def _unit(vector: Vector) -> Vector:
    """The vector at unit length, little-endian; a zero vector as it is, and one that this made, whose length is 1 but
    for its rounding: what is read from a store and written again stays the same."""
    vector = np.asarray(vector, dtype="<f4")
    if vector.ndim != 1 or not np.isfinite(vector).all():
        raise StoreRejected(f"a vector is one row of finite numbers; this has the shape {vector.shape}")
    length = np.linalg.norm(vector)
    return vector / length if length and abs(length - 1) > _ROUNDING else vector


def _milliseconds(time: datetime, *, up: bool = False) -> int:
    return -((_EPOCH - time) // _MILLISECOND) if up else (time - _EPOCH) // _MILLISECOND


def _in(values: Sequence[Any]) -> str:
    return f"IN ({', '.join('?' * len(values))})"


def _chunks(values: Iterable[_T]) -> Iterator[list[_T]]:
    iterator = iter(values)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def _open(path: Path, timeout: float) -> sqlite3.Connection:
    """A connection to a file of the current version. Raises StoreError for a file that is not ours, untouched."""
    _create(path)
    connection = sqlite3.connect(
        path, timeout=timeout, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    try:
        connection.execute("BEGIN")  # one look at all of the header, while others may be making the file
        version = _version(connection, path)
        connection.execute("COMMIT")
        if version < len(_MIGRATIONS):
            _write_ahead(connection, timeout)
            _migrate(connection, path)
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def _create(path: Path) -> None:
    # SQLite would create the file readable for others. Only a file that is not there yet is opened here, and alone:
    # closing any handle of a database file drops the locks that this process has on it.
    with _creating:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            if path.stat().st_size == 1:  # which SQLite takes for an empty file
                raise StoreError(f"{path} is not a database; it was left as it is. Name another file") from None


def _version(connection: sqlite3.Connection, path: Path) -> int:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != _APPLICATION and (application or version or tables):
        raise StoreError(f"{path} is a database of another program; name another file for the store")
    if version > len(_MIGRATIONS):
        raise StoreError(
            f"{path} has version {version} and this program knows up to {len(_MIGRATIONS)}; use a newer Context-OS"
        )
    return int(version)


def _write_ahead(connection: sqlite3.Connection, timeout: float) -> None:
    # SQLite itself does not wait here: two that make the file at once would wait for each other for ever.
    deadline = time.monotonic() + timeout
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.005)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for script in _MIGRATIONS[_version(connection, path) :]:
            _script(connection, script)
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _script(connection: sqlite3.Connection, script: str) -> None:
    # Not executescript, which would commit first.
    for statement in script.split(";"):
        connection.execute(statement)


_MEANINGS: Final[dict[int, tuple[type[StoreError], str]]] = {
    sqlite3.SQLITE_BUSY: (StoreUnavailable, "somebody else is writing to it; try again"),
    sqlite3.SQLITE_LOCKED: (StoreUnavailable, "somebody else is writing to it; try again"),
    sqlite3.SQLITE_PROTOCOL: (StoreUnavailable, "too many processes open it at once; try again"),
    sqlite3.SQLITE_IOERR: (StoreUnavailable, "the disk failed to read or write; look at the disk and its limits"),
    sqlite3.SQLITE_CANTOPEN: (StoreUnavailable, "it cannot be opened; is it a file in a directory you may write to?"),
    sqlite3.SQLITE_FULL: (StoreRejected, "the disk is full; nothing of the last step was kept. Make room and repeat"),
    sqlite3.SQLITE_TOOBIG: (StoreRejected, "a text is too long for SQLite"),
    sqlite3.SQLITE_READONLY: (StoreAccessDenied, "it may not be written to by this user"),
    sqlite3.SQLITE_PERM: (StoreAccessDenied, "it may not be opened by this user"),
    sqlite3.SQLITE_AUTH: (StoreAccessDenied, "it may not be opened by this user"),
    sqlite3.SQLITE_CORRUPT: (StoreError, "the file is damaged; restore it from a backup"),
    sqlite3.SQLITE_NOTADB: (StoreError, "it is not a database; it was left as it is. Name another file"),
}


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Everything that SQLite, the file system and text that has no UTF-8 can raise, as StoreErrors."""
    try:
        yield
    except (sqlite3.Error, sqlite3.Warning) as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        kind = StoreRejected if isinstance(error, sqlite3.DataError) else StoreError
        kind, meaning = _MEANINGS.get(code, (kind, "unexpected"))
        raise kind(f"the store {path}: {meaning} ({error})") from error
    except PermissionError as error:
        raise StoreAccessDenied(f"the store {path}: {error.strerror}") from error
    except OSError as error:
        raise StoreUnavailable(f"the store {path}: {error.strerror}") from error
    except UnicodeEncodeError as error:
        raise StoreRejected(f"the store {path}: a text has no UTF-8 form: {error.reason}") from error
