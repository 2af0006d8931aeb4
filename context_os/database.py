"""One small SQLite file of ours: made for its owner alone, brought to its newest form, its errors told as ours.

Every call opens a connection of its own, so that threads and processes share the file and nothing else. What a
transaction wrote is on the disk when it ends: it survives the death of the process and a loss of power.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from context_os.errors import StoreError, StoreUnavailable


class Database:
    """Subclasses say what the file holds (``what``, for people) and give one script for each of its versions."""

    what: ClassVar[str]
    schemas: ClassVar[tuple[str, ...]]

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
        with self.transaction() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > len(self.schemas):
                raise StoreError(
                    f"{path} was written by a newer Context-OS (format {version}, this one knows {len(self.schemas)})"
                )
            for script in self.schemas[version:]:
                for statement in filter(str.strip, script.split(";")):
                    db.execute(statement)
            if version < len(self.schemas):
                db.execute(f"PRAGMA user_version = {len(self.schemas)}")

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """For reading. Raises StoreUnavailable while the file cannot be used, StoreError for good."""
        try:
            with closing(sqlite3.connect(self.path, timeout=30, isolation_level=None)) as db:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
                yield db
        except sqlite3.OperationalError as error:
            raise StoreUnavailable(f"{self.what} in {self.path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{self.what} in {self.path} cannot be used: {error}") from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing; one writer at a time."""
        with self.connection() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")


def milliseconds(time: datetime) -> int:
    """Since 1970 in UTC, as the files keep it."""
    return int(time.timestamp() * 1000)


def time_of(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
