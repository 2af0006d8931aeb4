"""What ingestion has done, in one SQLite file beside the stores: the other half of every reconcile.

A **scope** is one connector over one repository into one tenant of one store. The ledger remembers the scope's
units with their content hashes, the items that each unit gave, what is in quarantine and why, every verdict of the
gate, and which items have a vector, computed from which content. It is advanced in one transaction, after the store
holds the data. Ids that a run is about to write or delete stand in ``pending`` first, so that a run that is killed
leaves nothing in the store that nobody knows: the next run reads their units again, whatever their hashes say, and
deletes the rest.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from context_os.errors import StoreError, StoreUnavailable
from context_os.model import utcnow

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
)
"""One script for each version of the file."""


@dataclass(frozen=True)
class Registered:
    """A repository that may be ingested, by name."""

    name: str
    location: Path
    revision: str | None


@dataclass(frozen=True)
class Scope:
    """One connector over one repository into one tenant of one store, and how far it has come.

    ``generation`` counts the advances; ``fingerprint`` is the connector's version and options at the last one.
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
class Judged:
    """A verdict of the gate (as JSON) with what it was about."""

    repository: str
    connector: str
    at: datetime
    verdict: str


@dataclass(frozen=True)
class Advance:
    """What one run adds to a scope's state. ``units`` maps key to (hash, refresh at)."""

    fingerprint: str
    data_version: str
    revision: str
    cursor: Mapping[str, Any]
    run_id: str
    units: Mapping[str, tuple[str, datetime]] = field(default_factory=dict)
    entries: Sequence[Entry] = ()
    removed_units: Sequence[str] = ()
    quarantined: Sequence[Quarantined] = ()


class Ledger:
    """One file, any number of processes; each call opens its own connection."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._transaction() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > len(_SCHEMAS):
                raise StoreError(
                    f"{path} was written by a newer Context-OS (format {version}, this one knows {len(_SCHEMAS)})"
                )
            for script in _SCHEMAS[version:]:
                for statement in filter(str.strip, script.split(";")):
                    db.execute(statement)
            if version < len(_SCHEMAS):
                db.execute(f"PRAGMA user_version = {len(_SCHEMAS)}")

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=30, isolation_level=None)) as db:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = NORMAL")
                yield db
        except sqlite3.OperationalError as error:
            raise StoreUnavailable(f"the ledger {self.path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise StoreError(f"the ledger {self.path} cannot be used: {error}") from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    # Repositories

    def register(self, name: str, location: Path, revision: str | None = None) -> Registered:
        """Add a repository or move it. Registering it again the same way changes nothing."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO repositories VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET"
                " location = excluded.location, revision = excluded.revision",
                (name, str(location), revision, _ms(utcnow())),
            )
        return Registered(name, location, revision)

    def repositories(self) -> list[Registered]:
        with self._connection() as db:
            rows = db.execute("SELECT name, location, revision FROM repositories ORDER BY name").fetchall()
        return [Registered(name, Path(location), revision) for name, location, revision in rows]

    # Scopes

    def scope(self, store: str, tenant: str, repository: str, connector: str) -> Scope:
        """The scope, made on first use."""
        key = (store, tenant, repository, connector)
        with self._connection() as db:
            found = db.execute(_FIND_SCOPE, key).fetchone()
            if found is None:
                db.execute(f"INSERT OR IGNORE INTO scopes ({_SCOPE_KEY}) VALUES (?, ?, ?, ?)", key)  # noqa: S608
                found = db.execute(_FIND_SCOPE, key).fetchone()
        return _scope(found)

    def scopes(self, store: str, tenant: str) -> list[Scope]:
        """Every scope of a tenant in a store, by repository and connector."""
        with self._connection() as db:
            rows = db.execute(
                f"SELECT {_SCOPE} FROM scopes WHERE store = ? AND tenant = ? ORDER BY repository, connector",  # noqa: S608
                (store, tenant),
            ).fetchall()
        return [_scope(row) for row in rows]

    def units(self, scope: Scope) -> dict[str, str]:
        """Unit hashes."""
        with self._connection() as db:
            return dict(db.execute("SELECT unit, hash FROM units WHERE scope = ?", (scope.id,)))

    def trusted_units(self, scope: Scope, at: datetime) -> dict[str, str]:
        """The hashes of the units that need no refresh before ``at`` and whose items no interrupted run touched."""
        doubted = "SELECT unit FROM entries JOIN pending USING (scope, id) WHERE scope = ?1"
        query = f"SELECT unit, hash FROM units WHERE scope = ?1 AND refresh_at > ?2 AND unit NOT IN ({doubted})"  # noqa: S608
        with self._connection() as db:
            return dict(db.execute(query, (scope.id, _ms(at))))

    def entries(self, scope: Scope, units: Iterable[str] | None = None) -> dict[str, Entry]:
        """Items by id, all of the scope or those of some units."""
        wanted = None if units is None else set(units)
        one_by_one = wanted is not None and len(wanted) <= _FEW
        columns = "SELECT id, unit, checksum, expires_at FROM entries WHERE scope = ?"
        with self._connection() as db:
            if wanted is not None and one_by_one:
                rows = [row for unit in wanted for row in db.execute(f"{columns} AND unit = ?", (scope.id, unit))]
            else:
                rows = db.execute(columns, (scope.id,)).fetchall()
        return {
            id: Entry(id, unit, checksum, _time(expires))
            for id, unit, checksum, expires in rows
            if wanted is None or unit in wanted
        }

    def ids(self, scope: Scope) -> set[str]:
        """Of every item."""
        with self._connection() as db:
            return {id for (id,) in db.execute("SELECT id FROM entries WHERE scope = ?", (scope.id,))}

    def owners_of(self, scope: Scope, ids: Iterable[str]) -> dict[str, str]:
        """The unit that each of these ids came from, for those that are known."""
        found: dict[str, str] = {}
        with self._connection() as db:
            for id in ids:
                row = db.execute("SELECT unit FROM entries WHERE scope = ? AND id = ?", (scope.id, id)).fetchone()
                if row:
                    found[id] = row[0]
        return found

    def count(self, scope: Scope) -> int:
        with self._connection() as db:
            return int(db.execute("SELECT count(*) FROM entries WHERE scope = ?", (scope.id,)).fetchone()[0])

    # One run

    def pending(self, scope: Scope) -> dict[str, str]:
        """Ids that a run announced and did not finish, with the staging it was indexing."""
        with self._connection() as db:
            return dict(db.execute("SELECT id, staging FROM pending WHERE scope = ?", (scope.id,)))

    def announce(self, scope: Scope, staging: str, ids: Iterable[str], kept: Iterable[str] = ()) -> None:
        """Say which ids are about to be written or deleted. All but those whose content is ``kept`` lose their vectors
        with that. Durable before this returns."""
        ids = set(ids)
        losing = ids - set(kept)
        with self._transaction() as db:
            db.executemany("INSERT OR IGNORE INTO pending VALUES (?, ?, ?)", ((scope.id, id, staging) for id in ids))
            db.executemany("DELETE FROM vectors WHERE scope = ? AND id = ?", ((scope.id, id) for id in losing))

    def advance(self, scope: Scope, step: Advance) -> Scope:
        """Record that the store now holds ``step``. All or nothing."""
        touched = [(scope.id, unit) for unit in (*step.units, *step.removed_units)]
        with self._transaction() as db:
            for table in ("units", "entries", "quarantine"):
                db.executemany(f"DELETE FROM {table} WHERE scope = ? AND unit = ?", touched)  # noqa: S608 - constants
            db.executemany(
                "INSERT INTO units VALUES (?, ?, ?, ?)",
                ((scope.id, unit, hash, _ms(refresh)) for unit, (hash, refresh) in step.units.items()),
            )
            db.executemany(
                "INSERT INTO entries VALUES (?, ?, ?, ?, ?)",
                ((scope.id, each.id, each.unit, each.checksum, _ms(each.expires_at)) for each in step.entries),
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
                    _ms(utcnow()),
                    scope.id,
                ),
            )
        return self.scope(scope.store, scope.tenant, scope.repository, scope.connector)

    def forget(self, scope: Scope, entries: Iterable[Entry]) -> None:
        """Expect these items no longer, and make the next run read their units again."""
        gone = list(entries)
        units = {(scope.id, each.unit) for each in gone}
        with self._transaction() as db:
            for table in ("entries", "vectors"):
                ids = ((scope.id, each.id) for each in gone)
                db.executemany(f"DELETE FROM {table} WHERE scope = ? AND id = ?", ids)  # noqa: S608 - constants
            db.executemany("UPDATE units SET hash = '' WHERE scope = ? AND unit = ?", units)
            db.execute("UPDATE scopes SET cursor = '{}', generation = generation + 1 WHERE id = ?", (scope.id,))

    # Vectors

    def without_vector(self, scope: Scope, version: str) -> list[str]:
        """The ids of items that have no vector of this version for the content that they have now."""
        with self._connection() as db:
            rows = db.execute(
                "SELECT id FROM entries LEFT JOIN vectors USING (scope, id) WHERE scope = ?"
                " AND (vectors.checksum IS NOT entries.checksum OR version IS NOT ?) ORDER BY unit, id",
                (scope.id, version),
            )
            return [id for (id,) in rows]

    def record_vectors(self, scope: Scope, checksums: Mapping[str, str], version: str) -> None:
        """The store holds vectors of these ids, computed from content with these checksums."""
        rows = ((scope.id, id, checksum, version) for id, checksum in checksums.items())
        with self._transaction() as db:
            db.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?)", rows)

    def count_vectors(self, scope: Scope) -> dict[str, int]:
        """How many items have a vector for the content that they have now, by version, most first."""
        with self._connection() as db:
            return dict(
                db.execute(
                    "SELECT version, count(*) FROM entries JOIN vectors USING (scope, id, checksum) WHERE scope = ?"
                    " GROUP BY version ORDER BY count(*) DESC",
                    (scope.id,),
                )
            )

    # The gate

    def record_verdict(self, scope: Scope, staging: str, passed: bool, verdict_json: str) -> None:
        with self._transaction() as db:
            db.execute(
                "INSERT INTO verdicts (scope, staging, passed, at, verdict) VALUES (?, ?, ?, ?, ?)",
                (scope.id, staging, passed, _ms(utcnow()), verdict_json),
            )

    def verdict(self, scope: Scope, staging: str | None = None) -> str | None:
        """The newest verdict (as JSON) of a staging, or of the scope."""
        with self._connection() as db:
            row = db.execute(
                "SELECT verdict FROM verdicts WHERE scope = ?1 AND (?2 IS NULL OR staging = ?2)"
                " ORDER BY id DESC LIMIT 1",
                (scope.id, staging),
            ).fetchone()
        return row[0] if row else None

    def recent_verdicts(self, store: str, tenant: str, limit: int) -> list[Judged]:
        """The newest verdicts over all of a tenant's scopes in a store, the newest first."""
        with self._connection() as db:
            rows = db.execute(
                "SELECT repository, connector, at, verdict FROM verdicts JOIN scopes ON scopes.id = scope"
                " WHERE store = ? AND tenant = ? ORDER BY verdicts.id DESC LIMIT ?",
                (store, tenant, limit),
            ).fetchall()
        return [Judged(repository, connector, _time(at), verdict) for repository, connector, at, verdict in rows]

    def quarantined(self, scope: Scope) -> list[Quarantined]:
        """What stands in quarantine now, oldest first."""
        with self._connection() as db:
            rows = db.execute(
                "SELECT unit, key, reasons, raw, run_id, at FROM quarantine WHERE scope = ? ORDER BY id", (scope.id,)
            ).fetchall()
        return [
            Quarantined(unit, key, tuple(json.loads(reasons)), _unpack(raw), run, _time(at))
            for unit, key, reasons, raw, run, at in rows
        ]

    def count_quarantined(self, scope: Scope) -> int:
        with self._connection() as db:
            return int(db.execute("SELECT count(*) FROM quarantine WHERE scope = ?", (scope.id,)).fetchone()[0])


_SCOPE_KEY: Final = "store, tenant, repository, connector"
_SCOPE: Final = f"id, {_SCOPE_KEY}, fingerprint, data_version, revision, cursor, generation, indexed_at, run_id"
_FIND_SCOPE: Final = f"SELECT {_SCOPE} FROM scopes WHERE ({_SCOPE_KEY}) = (?, ?, ?, ?)"  # noqa: S608 - constants alone


def _scope(row: tuple[Any, ...]) -> Scope:
    values = dict(zip(_SCOPE.split(", "), row, strict=True))
    values["cursor"] = json.loads(values["cursor"])
    values["indexed_at"] = None if values["indexed_at"] is None else _time(values["indexed_at"])
    return Scope(**values)


def _quarantine_row(scope: Scope, each: Quarantined, run_id: str) -> tuple[Any, ...]:
    raw = zlib.compress(each.raw.encode("utf-8", "surrogatepass"))
    return scope.id, each.unit, each.key, json.dumps(each.reasons), raw, run_id, _ms(utcnow())


def _unpack(raw: bytes) -> str:
    return zlib.decompress(raw).decode("utf-8", "surrogatepass")


def _ms(time: datetime) -> int:
    return int(time.timestamp() * 1000)


def _time(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
