"""What came in over HTTP and must be neither lost nor done twice: webhook deliveries, the runs that they ask for, and
appended lineage by its idempotency key.

Dagster's sensor takes the queue with a cursor that Dagster itself keeps, in one record with the runs that it is going
to start. A row is deleted only once the sensor comes back with a cursor behind it: by then its run is Dagster's to
start, also after a crash. Killed anywhere before, the sensor sees the row again, and the run key keeps it from a second
run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import ClassVar, Final

from context_os.database import Database, milliseconds
from context_os.errors import ConfigurationError
from context_os.model import LineageRecord, content_checksum, utcnow

FILE_NAME: Final = "inbox.db"

_REMEMBERED: Final = timedelta(days=30)
"""GitHub sends a delivery again for three days at most."""
_MOST_DELIVERIES: Final = 100_000
_APPENDS_REMEMBERED: Final = timedelta(days=7)


@dataclass(frozen=True)
class Trigger:
    """Run these connectors over this repository (its registered name). ``event`` says why, for people."""

    repository: str
    connectors: tuple[str, ...]
    event: str


@dataclass(frozen=True)
class Waiting:
    """All triggers of one repository that wait, as one. ``delivery`` is the newest of them, ``of`` how many."""

    repository: str
    connectors: tuple[str, ...]
    events: tuple[str, ...]
    delivery: str
    of: int


class Inbox(Database):
    """The file ``inbox.db`` of one home."""

    what: ClassVar[str] = "the inbox"
    schemas: ClassVar[tuple[str, ...]] = (
        """
        CREATE TABLE about (identity TEXT NOT NULL) STRICT;
        INSERT INTO about VALUES (lower(hex(randomblob(8))));
        CREATE TABLE deliveries (id TEXT PRIMARY KEY, at INTEGER NOT NULL) STRICT;
        CREATE INDEX deliveries_by_age ON deliveries (at);
        CREATE TABLE triggers (
          id INTEGER PRIMARY KEY AUTOINCREMENT, repository TEXT NOT NULL, connectors TEXT NOT NULL, event TEXT NOT NULL,
          delivery TEXT NOT NULL, at INTEGER NOT NULL) STRICT;
        CREATE TABLE appends (
          key TEXT PRIMARY KEY, asked TEXT NOT NULL, record TEXT NOT NULL, at INTEGER NOT NULL) STRICT
        """,
    )

    def __init__(self, home: Path) -> None:
        super().__init__(home / FILE_NAME)

    def accept(self, delivery: str, trigger: Trigger | None) -> bool:
        """Remember a delivery and queue what it asks for, in one step. False, and nothing done, if it came before."""
        now = utcnow()
        with self.transaction() as db:
            new = db.execute("INSERT OR IGNORE INTO deliveries VALUES (?, ?)", (delivery, milliseconds(now))).rowcount
            if not new:
                return False
            if trigger is not None:
                connectors = json.dumps(trigger.connectors)
                row = (trigger.repository, connectors, trigger.event, delivery, milliseconds(now))
                db.execute(
                    "INSERT INTO triggers (repository, connectors, event, delivery, at) VALUES (?, ?, ?, ?, ?)", row
                )
            db.execute(
                "DELETE FROM deliveries WHERE at < max(?, coalesce("
                "(SELECT at FROM deliveries ORDER BY at DESC LIMIT 1 OFFSET ?), 0))",
                (milliseconds(now - _REMEMBERED), _MOST_DELIVERIES),
            )
        return True

    def waiting(self, cursor: str | None) -> tuple[list[Waiting], str]:
        """What was queued behind a cursor, one entry a repository, and the cursor behind it."""
        with self.connection() as db:
            identity, after = _place(db.execute("SELECT identity FROM about").fetchone()[0], cursor)
            rows = db.execute(
                "SELECT id, repository, connectors, event, delivery FROM triggers WHERE id > ? ORDER BY id", (after,)
            ).fetchall()
        found: dict[str, Waiting] = {}
        for _, repository, connectors, event, delivery in rows:
            old = found.get(repository) or Waiting(repository, (), (), delivery, 0)
            found[repository] = Waiting(
                repository,
                tuple(sorted({*old.connectors, *json.loads(connectors)})),
                tuple(sorted({*old.events, event})),
                delivery,
                old.of + 1,
            )
        return list(found.values()), f"{identity}:{rows[-1][0] if rows else after}"

    def forget(self, cursor: str | None) -> None:
        """Delete what stands before a cursor that Dagster has kept: its runs are recorded there."""
        with self.transaction() as db:
            _, until = _place(db.execute("SELECT identity FROM about").fetchone()[0], cursor)
            db.execute("DELETE FROM triggers WHERE id <= ?", (until,))

    def once(self, key: Sequence[str], asked: str, record: LineageRecord) -> LineageRecord:
        """The record that stands under an idempotency key: this one, or the one of the first call. Raises
        ConfigurationError where the first call asked for something else."""
        name, now = content_checksum(*key), utcnow()
        with self.transaction() as db:
            db.execute("DELETE FROM appends WHERE at < ?", (milliseconds(now - _APPENDS_REMEMBERED),))
            db.execute(
                "INSERT OR IGNORE INTO appends VALUES (?, ?, ?, ?)",
                (name, asked, record.model_dump_json(by_alias=True), milliseconds(now)),
            )
            first, kept = db.execute("SELECT asked, record FROM appends WHERE key = ?", (name,)).fetchone()
        if first != asked:
            raise ConfigurationError(
                "this Idempotency-Key was used for another request; send a new key with a new request"
            )
        return LineageRecord.model_validate_json(kept)


def _place(identity: str, cursor: str | None) -> tuple[str, int]:
    """Where a cursor stands in this very file: in one that was made anew, numbers begin again."""
    made_by, _, number = (cursor or "").partition(":")
    return identity, int(number) if made_by == identity and number.isdecimal() else 0
