"""The packs that were handed out, in one SQLite file: what an audit walks from a sentence back to the items behind it.

A pack's id is a hash of what was asked, by whom, and what came out, so that the same answer is kept once and a pack in
a file can be found again. What is kept of an item is what an audit needs after the item itself has changed or gone.

Beside a pack stands its **evidence**: the features by which its candidates were judged, those that did not go in
included. Features cannot be made again once the code has moved on, and ``tuning`` learns from them what matters in a
repository. Items are in it by a digest of their ids alone.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from context_os.errors import StoreUnavailable
from context_os.model import Access, Confidentiality, KnowledgeItem, LineageRecord, Source, Time, Value, utcnow
from context_os.packs import Block, ContextPack
from context_os.selectors import Candidate, Request

_MOST: Final = 20_000
"""Packs that are kept, some 200 MB; the oldest go first."""
_SWEEP: Final = 64
"""Packs between two looks for what is too old."""
_MOST_EVIDENCE: Final = 4_000
"""Packs whose evidence is kept too, some 80 MB."""
_SCHEMAS: Final = (
    """
CREATE TABLE packs (
  number INTEGER PRIMARY KEY, id TEXT NOT NULL, tenant TEXT NOT NULL, last_at INTEGER NOT NULL, pack BLOB NOT NULL,
  UNIQUE (tenant, id));
CREATE INDEX packs_by_age ON packs (last_at);
CREATE TABLE carried (item TEXT NOT NULL, pack INTEGER NOT NULL, PRIMARY KEY (item, pack)) WITHOUT ROWID;
CREATE INDEX carried_by_pack ON carried (pack)
""",
    """
CREATE TABLE evidence (pack INTEGER PRIMARY KEY, repository TEXT NOT NULL, data BLOB NOT NULL)
""",
)


class Carried(Value):
    """An item as it was when a pack carried it. ``lineage`` is the last record of its history then."""

    id: str
    kind: str
    title: str
    checksum: str
    confidentiality: Confidentiality
    source: Source
    lineage: LineageRecord | None

    @classmethod
    def of(cls, item: KnowledgeItem) -> Carried:
        metadata = item.metadata
        return cls(
            id=item.id,
            kind=item.kind,
            title=metadata.title,
            checksum=metadata.checksum,
            confidentiality=metadata.confidentiality,
            source=item.source,
            lineage=metadata.lineage[-1] if metadata.lineage else None,
        )


class Span(Value):
    """Lines of the prompt, 1-based and inclusive, and the item they are of; None for what the pack or the request
    says."""

    first_line: int
    last_line: int
    id: str | None
    rendering: str


class Asked(Value):
    """What a request can be asked again by, whoever knows its question: that is not kept. The change was from commit
    ``base`` to ``head``, "" for none; ``revision`` is the commit that was indexed."""

    base: str = ""
    head: str = ""
    revision: str = ""
    max_tokens: int


class KeptPack(Value):
    """A pack that was handed out. ``request`` is a digest of what was asked; ``repositories`` is empty where all of the
    tenant's were searched. ``asked`` is None where it was a diff that no commits give again."""

    id: str
    tenant: str
    principal: str
    clearance: Confidentiality
    first_at: Time
    last_at: Time
    request: str
    repositories: tuple[str, ...]
    prompt: str
    spans: tuple[Span, ...]
    carried: tuple[Carried, ...]
    asked: Asked | None = None


@dataclass(frozen=True)
class Evidence:
    """What a model judged the candidates of one pack by: ``rows`` are (candidates, columns), float32, and ``marks``
    (candidates,) digests of their items' ids."""

    model: str
    columns: tuple[str, ...]
    marks: NDArray[np.uint64]
    rows: NDArray[np.float32]

    @classmethod
    def of(cls, candidates: Iterable[Candidate]) -> Evidence | None:
        """Of those that a model judged, the one that judged most of them; None where there is none."""
        every = [(each.item.id, each.judgement) for each in candidates if each.judgement is not None]
        if not every:
            return None
        model = Counter(each.model for _, each in every).most_common(1)[0][0]
        judged = {id: each for id, each in every if each.model == model}
        columns = sorted({name for each in judged.values() for name in each.features})
        place = {name: number for number, name in enumerate(columns)}
        rows = np.zeros((len(judged), len(columns)), np.float32)
        for row, each in zip(rows, judged.values(), strict=True):
            for name, value in each.features.items():
                row[place[name]] = value
        return cls(model, tuple(columns), np.array([mark_of(id) for id in judged], np.uint64), rows)

    def place_of(self, id: str) -> int | None:
        """The row of an item, None where it was no candidate."""
        found = np.flatnonzero(self.marks == mark_of(id))
        return int(found[0]) if len(found) else None

    def packed(self) -> bytes:
        head = json.dumps({"model": self.model, "columns": self.columns}).encode()
        rows = self.rows.astype("<f2").tobytes(order="F")
        return zlib.compress(struct.pack("<II", len(head), len(self.marks)) + head + self.marks.tobytes() + rows, 1)

    @classmethod
    def unpacked(cls, data: bytes) -> Evidence:
        told = zlib.decompress(data)
        length, number = struct.unpack_from("<II", told)
        head = json.loads(told[8 : 8 + length])
        after = 8 + length + 8 * number
        marks = np.frombuffer(told[8 + length : after], "<u8")
        rows = np.frombuffer(told[after:], "<f2").reshape((number, len(head["columns"])), order="F")
        return cls(head["model"], tuple(head["columns"]), marks, rows.astype(np.float32))


def mark_of(id: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "little"))


@dataclass(frozen=True)
class KeptPacks:
    """One file for any number of processes. ``keep_for`` None keeps packs until there are too many."""

    path: Path
    keep_for: timedelta | None = None

    def keep(
        self,
        pack: ContextPack,
        request: Request,
        access: Access,
        candidates: Sequence[Candidate],
        asked: Asked | None = None,
    ) -> KeptPack | None:
        """Keep what was built of these candidates; None where nothing is to be kept. Raises StoreUnavailable."""
        if not pack.prompt or (self.keep_for is not None and self.keep_for <= timedelta(0)):
            return None
        now = utcnow()
        items = {each.item.id: each.item for each in candidates}
        carried = {block.id: items[block.id] for block in pack.explain if block.id}
        kept = KeptPack(
            id=pack_id(pack, request, access),
            tenant=access.tenant,
            principal=access.principal,
            clearance=access.clearance,
            first_at=now,
            last_at=now,
            request=digest_of(request),
            repositories=tuple(request.repositories),
            prompt=pack.prompt,
            spans=tuple(map(_span, pack.explain)),
            carried=tuple(Carried.of(item) for item in carried.values()),
            asked=asked,
        )
        with self._open(synchronous="OFF") as db:  # two waits for the disk would be most of what this costs
            evidence = Evidence.of(candidates) if len(request.repositories) == 1 else None
            _put(db, kept, evidence)
            self._sweep(db, now)
        return kept

    def get(self, tenant: str, id: str) -> KeptPack | None:
        """By its id, or by the beginning of it where that is enough to tell it."""
        query = "SELECT pack, last_at FROM packs WHERE tenant = ? AND id >= ? AND id < ? LIMIT 2"
        with self._open() as db:
            found = db.execute(query, (tenant, id, f"{id}~")).fetchall() if id else []
        return _unpacked(*found[0]) if len(found) == 1 else None

    def carrying(self, tenant: str, items: Iterable[str]) -> Iterator[KeptPack]:
        """The packs that carried any of these items, newest first."""
        query = "SELECT pack FROM carried WHERE item = ?"
        with self._open() as db:
            numbers = {number for item in items for (number,) in db.execute(query, (item,))}
            rows = [
                db.execute(
                    "SELECT pack, last_at FROM packs WHERE number = ? AND tenant = ?", (number, tenant)
                ).fetchone()
                for number in sorted(numbers, reverse=True)
            ]
        yield from (_unpacked(*row) for row in rows if row)

    def all(self, tenant: str) -> Iterator[KeptPack]:
        """Every pack of a tenant, oldest first."""
        with self._open() as db:
            rows = db.execute("SELECT pack, last_at FROM packs WHERE tenant = ? ORDER BY number", (tenant,))
            yield from (_unpacked(*row) for row in rows)

    def evidence(self, tenant: str, repository: str, ids: Iterable[str]) -> Iterator[tuple[KeptPack, Evidence]]:
        """The kept packs of these that were for this repository alone and have evidence, in this order."""
        query = (
            "SELECT packs.pack, last_at, data FROM packs JOIN evidence ON evidence.pack = packs.number"
            " WHERE packs.tenant = ? AND packs.id = ? AND evidence.repository = ?"
        )
        with self._open() as db:
            for id in ids:
                for pack, last_at, data in db.execute(query, (tenant, id, repository)):
                    yield _unpacked(pack, last_at), Evidence.unpacked(data)

    def forget(self, tenant: str, chosen: Callable[[KeptPack], bool]) -> int:
        """Take packs out for good, the file's free pages included; says how many."""
        with self._open() as db:
            rows = db.execute("SELECT number, pack, last_at FROM packs WHERE tenant = ?", (tenant,))
            numbers = [number for number, pack, at in rows if chosen(_unpacked(pack, at))]
            with db:
                _remove(db, numbers)
        return len(numbers)

    def compact(self) -> None:
        """Overwrite what deletion left in the file and its log."""
        with self._open() as db:
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _sweep(self, db: sqlite3.Connection, now: datetime) -> None:
        number = db.execute("SELECT max(number) FROM packs").fetchone()[0]
        if number % _SWEEP:
            return
        oldest = now - self.keep_for if self.keep_for is not None else datetime.fromtimestamp(0, UTC)
        old = db.execute("SELECT number FROM packs WHERE last_at < ?", (_ms(oldest),)).fetchall()
        more = db.execute("SELECT number FROM packs ORDER BY last_at DESC LIMIT -1 OFFSET ?", (_MOST,)).fetchall()
        with db:
            _remove(db, [number for (number,) in {*old, *more}])
            db.execute("DELETE FROM evidence WHERE pack <= ?", (number - _MOST_EVIDENCE,))

    @contextmanager
    def _open(self, synchronous: str = "FULL") -> Iterator[sqlite3.Connection]:
        """``OFF`` survives the death of the process at any moment, not that of the machine."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with closing(sqlite3.connect(self.path, timeout=5)) as db:
                db.execute("PRAGMA secure_delete = ON")
                db.execute(f"PRAGMA synchronous = {synchronous}")
                if db.execute("PRAGMA user_version").fetchone()[0] < len(_SCHEMAS):
                    _make(db, self.path)
                yield db
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(f"the packs in {self.path} cannot be kept or read: {error}") from error


def pack_id(pack: ContextPack, request: Request, access: Access) -> str:
    """32 hex digits that say what was asked, by whom, and what came out."""
    who = [access.tenant, access.principal, access.clearance.value]
    checksums = [[block.first_line, block.id, block.checksum] for block in pack.explain if block.id]
    told = json.dumps([who, digest_of(request), pack.prompt, checksums])
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def digest_of(request: Request) -> str:
    """What is kept of the words of a request."""
    told = repr((request.question, request.change, tuple(request.repositories)))
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()


def _span(block: Block) -> Span:
    return Span(first_line=block.first_line, last_line=block.last_line, id=block.id, rendering=block.rendering)


def _make(db: sqlite3.Connection, path: Path) -> None:
    path.chmod(0o600)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("BEGIN IMMEDIATE")
    with db:
        version = db.execute("PRAGMA user_version").fetchone()[0]  # another process may have been faster
        for schema in _SCHEMAS[version:]:
            for statement in schema.split(";"):
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {max(version, len(_SCHEMAS))}")


def _put(db: sqlite3.Connection, kept: KeptPack, evidence: Evidence | None) -> None:
    """One that is there already is only seen again."""
    at = _ms(kept.last_at)
    data = zlib.compress(kept.model_dump_json(exclude_defaults=True).encode("utf-8", "surrogatepass"), 1)
    with db:
        seen = db.execute("UPDATE packs SET last_at = ? WHERE tenant = ? AND id = ?", (at, kept.tenant, kept.id))
        if not seen.rowcount:
            row = (kept.id, kept.tenant, at, data)
            number = db.execute("INSERT INTO packs (id, tenant, last_at, pack) VALUES (?, ?, ?, ?)", row).lastrowid
            db.executemany("INSERT INTO carried VALUES (?, ?)", ((each.id, number) for each in kept.carried))
            if evidence is not None:
                told = (number, kept.repositories[0], evidence.packed())
                db.execute("INSERT INTO evidence VALUES (?, ?, ?)", told)


def _remove(db: sqlite3.Connection, numbers: Iterable[int]) -> None:
    rows = [(number,) for number in numbers]
    db.executemany("DELETE FROM carried WHERE pack = ?", rows)
    db.executemany("DELETE FROM evidence WHERE pack = ?", rows)
    db.executemany("DELETE FROM packs WHERE number = ?", rows)


def _unpacked(data: bytes, last_at: int) -> KeptPack:
    kept = KeptPack.model_validate_json(zlib.decompress(data))
    return kept.model_copy(update={"last_at": datetime.fromtimestamp(last_at / 1000, UTC)})


def _ms(time: datetime) -> int:
    return int(time.timestamp() * 1000)
