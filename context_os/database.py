"""One small SQLite file of ours: made for its owner alone, brought to its newest form, its errors told as ours.

Every call opens a connection of its own, but in a ``session``, so that threads and processes share the file and nothing
else. What a transaction wrote is on the disk when it ends: it survives the death of the process and a loss of power.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from context_os.errors import StoreError, StoreUnavailable


class Database:
    """Subclasses say what the file holds (``what``, for people), give one script for each of its versions, and may set
    what every connection is told."""

    what: ClassVar[str]
    schemas: ClassVar[tuple[str, ...]]
    pragmas: ClassVar[tuple[str, ...]] = ("journal_mode = WAL", "synchronous = FULL")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mine = threading.local()
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
    def session(self) -> Iterator[None]:
        """This thread's calls inside share one connection. Opening one, and writing the log back when it was the last
        to close, takes longer than most of them."""
        if self._shared is not None:
            yield
            return
        with self._errors():
            db = self._open()
        with closing(db):
            self._mine.shared = db
            try:
                yield
            finally:
                self._mine.shared = None

    @property
    def _shared(self) -> sqlite3.Connection | None:
        return getattr(self._mine, "shared", None)

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """For reading. Raises StoreUnavailable while the file cannot be used, StoreError for good."""
        with self._errors():
            if self._shared is not None:
                yield self._shared
            else:
                with closing(self._open()) as db:
                    yield db

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        for pragma in self.pragmas:
            db.execute(f"PRAGMA {pragma}")
        return db

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
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
