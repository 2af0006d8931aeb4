"""What ingestion has done, in one SQLite file beside the stores: the other half of every reconcile.

A **scope** is one connector over one repository into one tenant of one store. The ledger remembers the scope's
units with their content hashes, the items that each unit gave, what is in quarantine and why, every verdict of the
gate, which items have a vector, computed from which content, and how many items were ever added, changed and removed.
It is advanced in one transaction, after the store holds the data. Ids that a run is about to write or delete stand in
``pending`` first, so that a run that is killed leaves nothing in the store that nobody knows: the next run reads their
units again, whatever their hashes say, and deletes the rest.
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from context_os.database import Database, milliseconds, time_of
from context_os.model import utcnow

_LATEST: Final = 2**63 - 1
_FEW: Final = 200
"""Up to so many units are looked up one by one; for more, reading the whole scope is quicker."""
_SCHEMAS: Final = (
    """
CREATE TABLE repositories (name TEXT PRIMARY KEY, location TEXT NOT NULL, revision TEXT, added_at INTEGER NOT NULL);
CREATE TABLE scopes (
  id INTEGER PRIMARY KEY, store TEXT NOT NULL, tenant TEXT NOT NULL, repository TEXT NOT NULL, connector TEXT NOT NULL,
  fingerprint TEXT NOT NULL DEFAULT '', data_version TEXT NOT NULL DEFAULT '', revision TEXT NOT NULL DEFAULT '',
  cursor TEXT NOT NULL DEFAULT '{}', generation INTEGER NOT NULL DEFAULT 0, indexed_at INTEGER,
  run_id TEXT NOT NULL DEFAULT '',
  UNIQUE (store, tenant, repository, connector));
CREATE TABLE units (
  scope INTEGER NOT NULL, unit TEXT NOT NULL, hash TEXT NOT NULL, refresh_at INTEGER NOT NULL,
  PRIMARY KEY (scope, unit)) WITHOUT ROWID;
CREATE TABLE entries (
  scope INTEGER NOT NULL, id TEXT NOT NULL, unit TEXT NOT NULL, checksum TEXT NOT NULL, expires_at INTEGER NOT NULL,
  PRIMARY KEY (scope, id)) WITHOUT ROWID;
CREATE INDEX entries_by_unit ON entries (scope, unit);
CREATE TABLE pending (
    scope INTEGER NOT NULL, id TEXT NOT NULL, staging TEXT NOT NULL, PRIMARY KEY (scope, id)
) WITHOUT ROWID;
CREATE TABLE quarantine (
  id INTEGER PRIMARY KEY, scope INTEGER NOT NULL, unit TEXT NOT NULL, key TEXT NOT NULL, reasons TEXT NOT NULL,
  raw BLOB NOT NULL, run_id TEXT NOT NULL, at INTEGER NOT NULL);
CREATE INDEX quarantine_by_unit ON quarantine (scope, unit);
CREATE TABLE verdicts (
  id INTEGER PRIMARY KEY, scope INTEGER NOT NULL, staging TEXT NOT NULL, passed INTEGER NOT NULL, at INTEGER NOT NULL,
  verdict TEXT NOT NULL);
CREATE INDEX verdicts_by_staging ON verdicts (scope, staging);
""",
    """
CREATE TABLE vectors (
  scope INTEGER NOT NULL, id TEXT NOT NULL, checksum TEXT NOT NULL, version TEXT NOT NULL,
  PRIMARY KEY (scope, id)) WITHOUT ROWID;
""",
    """
CREATE TABLE tallies (
  scope INTEGER NOT NULL, outcome TEXT NOT NULL, items INTEGER NOT NULL, PRIMARY KEY (scope, outcome)) WITHOUT ROWID;
INSERT INTO tallies SELECT scope, 'added', count(*) FROM entries GROUP BY scope;
INSERT INTO tallies SELECT scope, 'quarantined', count(*) FROM quarantine GROUP BY scope;
""",
    "ALTER TABLE scopes ADD COLUMN confirmed_at INTEGER",
    """
CREATE TABLE erasures (
  receipt TEXT PRIMARY KEY, tenant TEXT NOT NULL, kind TEXT NOT NULL, salt TEXT NOT NULL, what TEXT NOT NULL,
  ids TEXT NOT NULL, at INTEGER NOT NULL, lifted_at INTEGER) WITHOUT ROWID;
""",
)
"""One script for each version of the file."""

FORMAT: Final = len(_SCHEMAS)
TABLES: Final = ("scopes", "units", "entries", "pending", "quarantine", "verdicts", "vectors", "tallies")
"""What belongs to a scope: all but ``repositories``, which every tenant shares. The scopes themselves come first."""
_KEYS: Final = {"units": "unit", "tallies": "outcome"}
"""Of the others, where a row of a scope is not known by an item's id."""
_NUMBERED: Final = ("scopes", "quarantine", "verdicts")
"""Tables whose rows are numbered by this file: another one gives numbers of its own."""


@dataclass(frozen=True)
class Registered:
    """A repository that may be ingested, by name."""

    name: str
    location: Path
    revision: str | None


@dataclass(frozen=True)
class Scope:
    """One connector over one repository into one tenant of one store, and how far it has come.

    ``generation`` counts the advances, the last one was at ``indexed_at``; ``fingerprint`` is the connector's version
    and options at that. ``confirmed_at`` is when the source was last found to be what the store holds: an advance is
    not needed for it.
    """

    id: int
    store: str
    tenant: str
    repository: str
    connector: str
    fingerprint: str
    data_version: str
    revision: str
    cursor: Mapping[str, Any]
    generation: int
    indexed_at: datetime | None
    run_id: str
    confirmed_at: datetime | None = None


@dataclass(frozen=True)
class Entry:
    """An item that the store should hold."""

    id: str
    unit: str
    checksum: str
    expires_at: datetime


@dataclass(frozen=True)
class Quarantined:
    """A record that was kept out, why, and its raw text."""

    unit: str
    key: str
    reasons: tuple[str, ...]
    raw: str
    run_id: str = ""
    at: datetime | None = None


@dataclass(frozen=True)
class Holdings:
    """What a scope holds now, and in ``tallies`` what became of its items since the beginning, by outcome.

    added - removed - forgotten - expired - erased = ``items``, and quarantined - released = ``quarantined``, at any
    moment: both sides change in one transaction. Items from before tallies were kept count as added. ``pending`` ids
    were announced and not settled, ``vectors`` of each version are for the content that the items have now.
    """

    scope: Scope
    items: int
    quarantined: int
    pending: int
    vectors: Mapping[str, int]
    tallies: Mapping[str, int]


@dataclass(frozen=True)
class ErasureRow:
    """That something was erased, without saying what: ``what`` is salted digests as JSON (see ``suppression``), ``ids``
    the items that went because they were derived of it. What was lifted may be ingested again."""

    receipt: str
    tenant: str
    kind: str
    salt: str
    what: str
    ids: tuple[str, ...]
    at: datetime
    lifted_at: datetime | None = None


@dataclass(frozen=True)
class Judged:
    """A verdict of the gate (as JSON) with what it was about."""

    repository: str
    connector: str
    at: datetime
    verdict: str


@dataclass(frozen=True)
class Advance:
    """What one run adds to a scope's state. ``units`` maps key to (hash, refresh at), ``counts`` outcomes to items."""

    fingerprint: str
    data_version: str
    revision: str
    cursor: Mapping[str, Any]
    run_id: str
    units: Mapping[str, tuple[str, datetime]] = field(default_factory=dict)
    entries: Sequence[Entry] = ()
    removed_units: Sequence[str] = ()
    quarantined: Sequence[Quarantined] = ()
    counts: Mapping[str, int] = field(default_factory=dict)


class Ledger(Database):
    """One file, any number of processes and threads."""

    what = "the ledger"
    schemas = _SCHEMAS
    # What power takes of the last transactions, the next run does again.
    pragmas = ("journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON")

    # Locks between processes, which the kernel lets go of however their holder ends

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Held while store and ledger are out of step; any number at a time."""
        with self._locked(fcntl.LOCK_SH):
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Held by who needs store and ledger in step for long: waits until nobody is ``writing`` and keeps them out."""
        with self._locked(fcntl.LOCK_EX):
            yield

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        with self.path.with_name("writers.lock").open("a") as handle:
            fcntl.flock(handle, kind)
            yield

    # Repositories

    def register(self, name: str, location: Path, revision: str | None = None) -> Registered:
        """Add a repository or move it. Registering it again the same way changes nothing."""
        with self.transaction() as db:
            db.execute(
                "INSERT INTO repositories VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET"
                " location = excluded.location, revision = excluded.revision",
                (name, str(location), revision, milliseconds(utcnow())),
            )
        return Registered(name, location, revision)

    def repositories(self) -> list[Registered]:
        with self.connection() as db:
            rows = db.execute("SELECT name, location, revision FROM repositories ORDER BY name").fetchall()
        return [Registered(name, Path(location), revision) for name, location, revision in rows]

    # Scopes

    def scope(self, store: str, tenant: str, repository: str, connector: str) -> Scope:
        """The scope, made on first use."""
        key = (store, tenant, repository, connector)
        with self.connection() as db:
            found = db.execute(_FIND_SCOPE, key).fetchone()
            if found is None:
                db.execute(f"INSERT OR IGNORE INTO scopes ({_SCOPE_KEY}) VALUES (?, ?, ?, ?)", key)  # noqa: S608
                found = db.execute(_FIND_SCOPE, key).fetchone()
        return _scope(found)

    def scopes(self, store: str | None = None, tenant: str | None = None) -> list[Scope]:
        """Every scope of a tenant in a store, or of all tenants, or all stores, by repository and connector."""
        with self.connection() as db:
            rows = db.execute(
                f"SELECT {_SCOPE} FROM scopes WHERE (?1 IS NULL OR store = ?1) AND (?2 IS NULL OR tenant = ?2)"  # noqa: S608
                " ORDER BY repository, connector, tenant",
                (store, tenant),
            ).fetchall()
        return [_scope(row) for row in rows]

    def confirm(self, scope: Scope) -> None:
        """The source was looked at just now, and the store holds what it gives."""
        with self.transaction() as db:
            db.execute("UPDATE scopes SET confirmed_at = ? WHERE id = ?", (milliseconds(utcnow()), scope.id))

    def units(self, scope: Scope) -> dict[str, str]:
        """Unit hashes."""
        with self.connection() as db:
            return dict(db.execute("SELECT unit, hash FROM units WHERE scope = ?", (scope.id,)))

    def trusted_units(self, scope: Scope, at: datetime) -> dict[str, str]:
        """The hashes of the units that need no refresh before ``at`` and whose items no interrupted run touched."""
        doubted = "SELECT unit FROM entries JOIN pending USING (scope, id) WHERE scope = ?1"
        query = f"SELECT unit, hash FROM units WHERE scope = ?1 AND refresh_at > ?2 AND unit NOT IN ({doubted})"  # noqa: S608
        with self.connection() as db:
            return dict(db.execute(query, (scope.id, milliseconds(at))))

    def entries(self, scope: Scope, units: Iterable[str] | None = None) -> dict[str, Entry]:
        """Items by id, all of the scope or those of some units."""
        wanted = None if units is None else set(units)
        one_by_one = wanted is not None and len(wanted) <= _FEW
        columns = "SELECT id, unit, checksum, expires_at FROM entries WHERE scope = ?"
        with self.connection() as db:
            if wanted is not None and one_by_one:
                rows = [row for unit in wanted for row in db.execute(f"{columns} AND unit = ?", (scope.id, unit))]
            else:
                rows = db.execute(columns, (scope.id,)).fetchall()
        return {
            id: Entry(id, unit, checksum, time_of(expires))
            for id, unit, checksum, expires in rows
            if wanted is None or unit in wanted
        }

    def checksums(self, scope: Scope, after: datetime, until: datetime | None = None) -> dict[str, str]:
        """Of every item that expires later than ``after``, and not later than ``until``, by id."""
        query = "SELECT id, checksum FROM entries WHERE scope = ? AND expires_at > ? AND expires_at <= ?"
        times = (milliseconds(after), milliseconds(until) if until is not None else _LATEST)
        with self.connection() as db:
            return dict(db.execute(query, (scope.id, *times)).fetchall())

    def ids(self, scope: Scope) -> set[str]:
        """Of every item."""
        with self.connection() as db:
            return {id for (id,) in db.execute("SELECT id FROM entries WHERE scope = ?", (scope.id,))}

    def owners_of(self, scope: Scope, ids: Iterable[str]) -> dict[str, Entry]:
        """The entries of those of these ids that are known."""
        found: dict[str, Entry] = {}
        query = "SELECT id, unit, checksum, expires_at FROM entries WHERE scope = ? AND id = ?"
        with self.connection() as db:
            for id in ids:
                row = db.execute(query, (scope.id, id)).fetchone()
                if row:
                    found[id] = Entry(row[0], row[1], row[2], time_of(row[3]))
        return found

    def taken_by(self, scope: Scope, ids: Iterable[str]) -> dict[str, str]:
        """The other scope of this store and tenant, in words, that holds each of these ids, where one does."""
        others = [each for each in self.scopes(scope.store, scope.tenant) if each.id != scope.id]
        found: dict[str, str] = {}
        for other in others:
            found |= dict.fromkeys(self.owners_of(other, ids), f"{other.connector} of {other.repository}")
        return found

    def count(self, scope: Scope, at: datetime | None = None) -> int:
        """Of every item, or of those that have not expired ``at`` a time."""
        after = milliseconds(at) if at is not None else -1
        query = "SELECT count(*) FROM entries WHERE scope = ? AND expires_at > ?"
        with self.connection() as db:
            return int(db.execute(query, (scope.id, after)).fetchone()[0])

    def expired(self, scope: Scope, at: datetime) -> set[str]:
        """The ids of the items that expired by then."""
        query = "SELECT id FROM entries WHERE scope = ? AND expires_at <= ?"
        with self.connection() as db:
            return {id for (id,) in db.execute(query, (scope.id, milliseconds(at)))}

    def expire(self, scope: Scope, at: datetime) -> None:
        """Expect no longer what expired by then. Unlike ``forget`` this reads nothing again: it was to end."""
        gone = "SELECT id FROM entries WHERE scope = ?1 AND expires_at <= ?2"
        with self.transaction() as db:
            db.execute(f"DELETE FROM vectors WHERE scope = ?1 AND id IN ({gone})", (scope.id, milliseconds(at)))  # noqa: S608
            pruned = db.execute(
                "DELETE FROM entries WHERE scope = ?1 AND expires_at <= ?2", (scope.id, milliseconds(at))
            )
            _tally(db, scope, {"expired": pruned.rowcount})

    # One run

    def pending(self, scope: Scope) -> dict[str, str]:
        """Ids that a run announced and did not finish, with the staging it was indexing."""
        with self.connection() as db:
            return dict(db.execute("SELECT id, staging FROM pending WHERE scope = ?", (scope.id,)))

    def announce(self, scope: Scope, staging: str, ids: Iterable[str], kept: Iterable[str] = ()) -> None:
        """Say which ids are about to be written or deleted. All but those whose content is ``kept`` lose their vectors
        with that. Durable before this returns."""
        ids = set(ids)
        losing = ids - set(kept)
        with self.transaction() as db:
            db.executemany("INSERT OR IGNORE INTO pending VALUES (?, ?, ?)", ((scope.id, id, staging) for id in ids))
            db.executemany("DELETE FROM vectors WHERE scope = ? AND id = ?", ((scope.id, id) for id in losing))

    def advance(self, scope: Scope, step: Advance) -> Scope:
        """Record that the store now holds ``step``. All or nothing."""
        touched = [(scope.id, unit) for unit in (*step.units, *step.removed_units)]
        with self.transaction() as db:
            for table in ("units", "entries"):
                db.executemany(f"DELETE FROM {table} WHERE scope = ? AND unit = ?", touched)  # noqa: S608 - constants
            released = db.executemany("DELETE FROM quarantine WHERE scope = ? AND unit = ?", touched).rowcount
            counts = {**step.counts, "quarantined": len(step.quarantined), "released": max(released, 0)}
            _tally(db, scope, counts)
            db.executemany(
                "INSERT INTO units VALUES (?, ?, ?, ?)",
                ((scope.id, unit, hash, milliseconds(refresh)) for unit, (hash, refresh) in step.units.items()),
            )
            db.executemany(
                "INSERT INTO entries VALUES (?, ?, ?, ?, ?)",
                ((scope.id, each.id, each.unit, each.checksum, milliseconds(each.expires_at)) for each in step.entries),
            )
            db.executemany(
                "INSERT INTO quarantine (scope, unit, key, reasons, raw, run_id, at) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (_quarantine_row(scope, each, step.run_id) for each in step.quarantined),
            )
            db.execute("DELETE FROM pending WHERE scope = ?", (scope.id,))
            db.execute(
                "UPDATE scopes SET fingerprint = ?, data_version = ?, revision = ?, cursor = ?, run_id = ?,"
                " indexed_at = ?, generation = generation + 1 WHERE id = ?",
                (
                    step.fingerprint,
                    step.data_version,
                    step.revision,
                    json.dumps(dict(step.cursor)),
                    step.run_id,
                    milliseconds(utcnow()),
                    scope.id,
                ),
            )
        return self.scope(scope.store, scope.tenant, scope.repository, scope.connector)

    def forget(self, scope: Scope, entries: Iterable[Entry]) -> None:
        """Expect these items no longer, and make the next run read their units again."""
        gone = list(entries)
        units = {(scope.id, each.unit) for each in gone}
        with self.transaction() as db:
            ids = [(scope.id, each.id) for each in gone]
            db.executemany("DELETE FROM vectors WHERE scope = ? AND id = ?", ids)
            forgotten = db.executemany("DELETE FROM entries WHERE scope = ? AND id = ?", ids).rowcount
            _tally(db, scope, {"forgotten": max(forgotten, 0)})
            db.executemany("UPDATE units SET hash = '' WHERE scope = ? AND unit = ?", units)
            db.execute("UPDATE scopes SET cursor = '{}', generation = generation + 1 WHERE id = ?", (scope.id,))

    # Erasure

    def record_erasure(self, row: ErasureRow) -> None:
        """Durable before this returns. Recording one again changes its ids alone."""
        values = (row.receipt, row.tenant, row.kind, row.salt, row.what, json.dumps(row.ids), milliseconds(row.at))
        with self.transaction() as db:
            db.execute(
                "INSERT INTO erasures VALUES (?, ?, ?, ?, ?, ?, ?, NULL) ON CONFLICT DO UPDATE SET ids = excluded.ids",
                values,
            )

    def erasures(self, tenant: str) -> list[ErasureRow]:
        """Of a tenant, oldest first."""
        with self.connection() as db:
            rows = db.execute("SELECT * FROM erasures WHERE tenant = ? ORDER BY at, receipt", (tenant,)).fetchall()
        return [
            ErasureRow(
                receipt,
                owner,
                kind,
                salt,
                what,
                tuple(json.loads(ids)),
                time_of(at),
                None if up is None else time_of(up),
            )
            for receipt, owner, kind, salt, what, ids, at, up in rows
        ]

    def lift_erasure(self, tenant: str, receipt: str) -> bool:
        """Let what was erased be ingested again; False where there is no such erasure."""
        query = "UPDATE erasures SET lifted_at = ? WHERE tenant = ? AND receipt = ? AND lifted_at IS NULL"
        with self.transaction() as db:
            return bool(db.execute(query, (milliseconds(utcnow()), tenant, receipt)).rowcount)

    def rows_of(self, scopes: Iterable[int]) -> dict[str, int]:
        """How many rows these scopes have, by table."""
        with self.connection() as db:
            counts = dict.fromkeys(TABLES[1:], 0)
            for scope in scopes:
                for table in TABLES[1:]:
                    query = f"SELECT count(*) FROM {table} WHERE scope = ?"  # noqa: S608 - constants
                    counts[table] += db.execute(query, (scope,)).fetchone()[0]
        return counts

    def erase_scopes(self, scopes: Iterable[int]) -> None:
        """Forget everything about these scopes, what was in quarantine included."""
        rows = [(scope,) for scope in scopes]
        with self.transaction() as db:
            for table in TABLES[1:]:
                db.executemany(f"DELETE FROM {table} WHERE scope = ?", rows)  # noqa: S608 - constants
            db.executemany("DELETE FROM scopes WHERE id = ?", rows)

    def unregister(self, name: str) -> None:
        with self.transaction() as db:
            db.execute("DELETE FROM repositories WHERE name = ?", (name,))

    def scopes_of_repository(self, name: str) -> list[Scope]:
        """Of any tenant and store."""
        with self.connection() as db:
            rows = db.execute(f"SELECT {_SCOPE} FROM scopes WHERE repository = ?", (name,)).fetchall()  # noqa: S608
        return [_scope(row) for row in rows]

    def rewrite(self, scope: Scope, checksums: Mapping[str, str | None], mentions: Callable[[str], bool]) -> None:
        """The store holds these ids with other checksums now, or (None) no longer; units, quarantine, verdicts and a
        cursor whose text ``mentions`` are forgotten. What is staged is outdated with that."""
        changed = [(checksum, scope.id, id) for id, checksum in checksums.items() if checksum is not None]
        gone = [(scope.id, id) for id, checksum in checksums.items() if checksum is None]
        with self.transaction() as db:
            db.executemany("UPDATE entries SET checksum = ? WHERE scope = ? AND id = ?", changed)
            erased = db.executemany("DELETE FROM entries WHERE scope = ? AND id = ?", gone).rowcount
            db.executemany("DELETE FROM vectors WHERE scope = ? AND id = ?", [(scope.id, id) for id in checksums])
            quarantined = _mentioning_quarantine(db, scope, mentions)
            _tally(db, scope, {"erased": max(erased, 0), "released": len(quarantined)})
            for key, unit in quarantined:
                db.execute("DELETE FROM quarantine WHERE id = ?", (key,))
                db.execute("UPDATE units SET hash = '' WHERE scope = ? AND unit = ?", (scope.id, unit))
            verdicts = db.execute("SELECT id, verdict FROM verdicts WHERE scope = ?", (scope.id,)).fetchall()
            old = [(id,) for id, verdict in verdicts if mentions(verdict)]
            db.executemany("DELETE FROM verdicts WHERE id = ?", old)
            units = db.execute("SELECT unit FROM units WHERE scope = ?", (scope.id,)).fetchall()
            named = [(scope.id, unit) for (unit,) in units if mentions(unit)]
            db.executemany("DELETE FROM units WHERE scope = ? AND unit = ?", named)
            cursor = (
                "{}" if mentions(json.dumps(dict(scope.cursor), ensure_ascii=False)) else json.dumps(dict(scope.cursor))
            )
            db.execute("UPDATE scopes SET cursor = ?, generation = generation + 1 WHERE id = ?", (cursor, scope.id))

    def compact(self) -> None:
        """Overwrite what deletion left in the file and its log."""
        with self.connection() as db:
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # Vectors

    def without_vector(self, scope: Scope, version: str) -> list[str]:
        """The ids of items that have no vector of this version for the content that they have now."""
        with self.connection() as db:
            rows = db.execute(
                "SELECT id FROM entries LEFT JOIN vectors USING (scope, id) WHERE scope = ?"
                " AND (vectors.checksum IS NOT entries.checksum OR version IS NOT ?) ORDER BY unit, id",
                (scope.id, version),
            )
            return [id for (id,) in rows]

    def record_vectors(self, scope: Scope, checksums: Mapping[str, str], version: str) -> None:
        """The store holds vectors of these ids, computed from content with these checksums."""
        rows = ((scope.id, id, checksum, version) for id, checksum in checksums.items())
        with self.transaction() as db:
            db.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?)", rows)

    def count_vectors(self, scope: Scope) -> dict[str, int]:
        """How many items have a vector for the content that they have now, by version, most first."""
        with self.connection() as db:
            return dict(
                db.execute(
                    "SELECT version, count(*) FROM entries JOIN vectors USING (scope, id, checksum) WHERE scope = ?"
                    " GROUP BY version ORDER BY count(*) DESC",
                    (scope.id,),
                )
            )

    # All of it

    def holdings(self) -> list[Holdings]:
        """Of every scope of every store and tenant, as of one moment."""
        with self.connection() as db:
            db.execute("BEGIN")
            scopes = [_scope(row) for row in db.execute(f"SELECT {_SCOPE} FROM scopes ORDER BY id")]  # noqa: S608
            counts = {
                table: dict(db.execute(f"SELECT scope, count(*) FROM {table} GROUP BY scope").fetchall())  # noqa: S608
                for table in ("entries", "quarantine", "pending")
            }
            tallies = _by_scope(db.execute("SELECT scope, outcome, items FROM tallies"))
            vectors = _by_scope(
                db.execute(
                    "SELECT scope, version, count(*) FROM vectors JOIN entries USING (scope, id, checksum)"
                    " GROUP BY scope, version"
                )
            )
            db.execute("COMMIT")
        return [
            Holdings(
                scope=scope,
                items=counts["entries"].get(scope.id, 0),
                quarantined=counts["quarantine"].get(scope.id, 0),
                pending=counts["pending"].get(scope.id, 0),
                vectors=vectors.get(scope.id, {}),
                tallies=tallies.get(scope.id, {}),
            )
            for scope in scopes
        ]

    # The gate

    def record_verdict(self, scope: Scope, staging: str, passed: bool, verdict_json: str) -> None:
        with self.transaction() as db:
            db.execute(
                "INSERT INTO verdicts (scope, staging, passed, at, verdict) VALUES (?, ?, ?, ?, ?)",
                (scope.id, staging, passed, milliseconds(utcnow()), verdict_json),
            )

    def verdict(self, scope: Scope, staging: str | None = None) -> str | None:
        """The newest verdict (as JSON) of a staging, or of the scope."""
        with self.connection() as db:
            row = db.execute(
                "SELECT verdict FROM verdicts WHERE scope = ?1 AND (?2 IS NULL OR staging = ?2)"
                " ORDER BY id DESC LIMIT 1",
                (scope.id, staging),
            ).fetchone()
        return row[0] if row else None

    def recent_verdicts(self, store: str, tenant: str, limit: int) -> list[Judged]:
        """The newest verdicts over all of a tenant's scopes in a store, the newest first."""
        with self.connection() as db:
            rows = db.execute(
                "SELECT repository, connector, at, verdict FROM verdicts JOIN scopes ON scopes.id = scope"
                " WHERE store = ? AND tenant = ? ORDER BY verdicts.id DESC LIMIT ?",
                (store, tenant, limit),
            ).fetchall()
        return [Judged(repository, connector, time_of(at), verdict) for repository, connector, at, verdict in rows]

    def quarantined(self, scope: Scope) -> list[Quarantined]:
        """What stands in quarantine now, oldest first."""
        with self.connection() as db:
            rows = db.execute(
                "SELECT unit, key, reasons, raw, run_id, at FROM quarantine WHERE scope = ? ORDER BY id", (scope.id,)
            ).fetchall()
        return [
            Quarantined(unit, key, tuple(json.loads(reasons)), _unpack(raw), run, time_of(at))
            for unit, key, reasons, raw, run, at in rows
        ]

    def quarantine_sizes(self) -> dict[int, int]:
        """Records in quarantine by scope, for the scopes that have any."""
        with self.connection() as db:
            return dict(db.execute("SELECT scope, count(*) FROM quarantine GROUP BY scope"))

    def count_quarantined(self, scope: Scope) -> int:
        with self.connection() as db:
            return int(db.execute("SELECT count(*) FROM quarantine WHERE scope = ?", (scope.id,)).fetchone()[0])

    def follow(self, lab: str) -> None:
        """Where the home was moved or copied, its one laboratory store has another path, and so another identity, than
        the ledger beside it knows: what it says of that store is of this one. Nothing happens where it knows this
        one."""
        labs = "SELECT DISTINCT store FROM scopes WHERE store LIKE 'lab:%' AND instr(store, char(31)) = 0"
        with self.connection() as db:
            known = {store for (store,) in db.execute(labs)}
            if len(known) == 1 and lab not in known:
                db.execute("UPDATE scopes SET store = ? WHERE store = ?", (lab, *known))

    # Leaving and entering as a whole

    def export(self, table: str, store: str, tenant: str) -> Iterator[dict[str, Any]]:
        """The rows of one of ``TABLES``, as they stand in the file, in one state of it."""
        mine = "SELECT id FROM scopes WHERE store = ? AND tenant = ?"
        where = f"id IN ({mine})" if table == "scopes" else f"scope IN ({mine})"
        key = "id" if table in _NUMBERED else f"scope, {_KEYS.get(table, 'id')}"
        with self.connection() as db:
            found = db.execute(f"SELECT * FROM {table} WHERE {where} ORDER BY {key}", (store, tenant))  # noqa: S608
            names = [column for column, *_ in found.description]
            for row in found:
                yield dict(zip(names, row, strict=True))

    def columns(self, table: str) -> dict[str, str]:
        """The names of a table's columns with their types: INTEGER, TEXT or BLOB."""
        with self.connection() as db:
            return {name: kind for _, name, kind, *_ in db.execute(f"PRAGMA table_info({table})")}

    def take_in(self, table: str, rows: Iterable[Mapping[str, Any]], store: str, scopes: dict[int, int]) -> None:
        """Add rows that ``export`` gave, of an earlier format too, to the scopes of ``store``. Scopes get new numbers:
        taking in ``scopes`` fills the mapping from the old ones, by which the other tables are read."""
        known = self.columns(table)
        with self.transaction() as db:
            for row in rows:
                values = {name: value for name, value in row.items() if name in known}
                if table in _NUMBERED:
                    number = values.pop("id")
                values |= {"store": store} if table == "scopes" else {"scope": scopes[values["scope"]]}
                places = ", ".join("?" * len(values))
                added = db.execute(
                    f"INSERT INTO {table} ({', '.join(values)}) VALUES ({places})",  # noqa: S608 - names of columns
                    tuple(values.values()),
                )
                if table == "scopes":
                    assert added.lastrowid is not None
                    scopes[number] = added.lastrowid

    def take_over(self, beside: str, store: str, tenant: str) -> None:
        """Let the scopes that the tenant has in ``beside`` be those it has in ``store``, whose former ones are
        forgotten. One transaction. Nothing happens where there are none beside."""
        with self.transaction() as db:
            if db.execute("SELECT 1 FROM scopes WHERE store = ? AND tenant = ?", (beside, tenant)).fetchone():
                _forget(db, store, tenant)
                db.execute("UPDATE scopes SET store = ? WHERE store = ? AND tenant = ?", (store, beside, tenant))
        with self.connection() as db:
            db.execute("PRAGMA wal_checkpoint(FULL)")  # on the disk before anybody forgets that it was to be done

    def forget_tenant(self, store: str, tenant: str) -> None:
        """Forget every scope that the tenant has in a store, with all that belongs to it."""
        with self.transaction() as db:
            _forget(db, store, tenant)


def _forget(db: sqlite3.Connection, store: str, tenant: str) -> None:
    for table in TABLES[1:]:
        mine = "SELECT id FROM scopes WHERE store = ? AND tenant = ?"
        db.execute(f"DELETE FROM {table} WHERE scope IN ({mine})", (store, tenant))  # noqa: S608 - constants
    db.execute("DELETE FROM scopes WHERE store = ? AND tenant = ?", (store, tenant))


def _mentioning_quarantine(
    db: sqlite3.Connection, scope: Scope, mentions: Callable[[str], bool]
) -> list[tuple[int, str]]:
    rows = db.execute("SELECT id, unit, key, reasons, raw FROM quarantine WHERE scope = ?", (scope.id,)).fetchall()
    return [
        (id, unit) for id, unit, key, reasons, raw in rows if mentions("\n".join((unit, key, reasons, _unpack(raw))))
    ]


_SCOPE_KEY: Final = "store, tenant, repository, connector"
_SCOPE: Final = (
    f"id, {_SCOPE_KEY}, fingerprint, data_version, revision, cursor, generation, indexed_at, run_id, confirmed_at"
)
_FIND_SCOPE: Final = f"SELECT {_SCOPE} FROM scopes WHERE ({_SCOPE_KEY}) = (?, ?, ?, ?)"  # noqa: S608 - constants alone


def _scope(row: tuple[Any, ...]) -> Scope:
    values = dict(zip(_SCOPE.split(", "), row, strict=True))
    values["cursor"] = json.loads(values["cursor"])
    for moment in ("indexed_at", "confirmed_at"):
        values[moment] = None if values[moment] is None else time_of(values[moment])
    return Scope(**values)


def _tally(db: sqlite3.Connection, scope: Scope, counts: Mapping[str, int]) -> None:
    db.executemany(
        "INSERT INTO tallies VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET items = items + excluded.items",
        ((scope.id, outcome, count) for outcome, count in counts.items() if count),
    )


def _by_scope(rows: Iterable[tuple[int, str, int]]) -> dict[int, dict[str, int]]:
    found: dict[int, dict[str, int]] = {}
    for scope, name, count in rows:
        found.setdefault(scope, {})[name] = count
    return found


def _quarantine_row(scope: Scope, each: Quarantined, run_id: str) -> tuple[Any, ...]:
    raw = zlib.compress(each.raw.encode("utf-8", "surrogatepass"))
    return scope.id, each.unit, each.key, json.dumps(each.reasons), raw, run_id, milliseconds(utcnow())


def _unpack(raw: bytes) -> str:
    return zlib.decompress(raw).decode("utf-8", "surrogatepass")
