"""Vectors by the text that they were made of, so that no text is ever embedded twice.

An item's vector goes with its content, and its content says more than the text that is embedded: a function that only
moved down its file, or a branch that is checked out again, finds its vectors here. Losing the file costs time alone.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
_T = TypeVar("_T")

_MOST: Final = 1_000_000
"""Vectors that are kept, 1.5 GB of MiniLM's; those that were not used for longest go first."""
_DAY: Final = 86_400
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL, used INTEGER NOT NULL) WITHOUT ROWID
"""


class VectorCache:
    """One file for any number of processes and models. A file that is broken is begun anew."""

    def __init__(self, path: Path, most: int = _MOST) -> None:
        self.path = path
        self._most = most

    def embed(self, version: str, texts: Sequence[str], embed: Callable[[Sequence[str]], Vectors]) -> Vectors:
        """(len(texts), dimensions): what is kept of ``version``, and what ``embed`` gives for the other texts."""
        keys = [_key(version, text) for text in texts]
        kept = self._get(keys)
        lacking = {key: text for key, text in zip(keys, texts, strict=True) if key not in kept}
        fresh = dict(zip(lacking, embed(list(lacking.values())), strict=True)) if lacking else {}
        self._put(fresh)
        found = kept | fresh
        return np.array([found[key] for key in keys], dtype=np.float32)

    def prune(self) -> int:
        """Forget what was not used for longest, down to the number that is kept; says how many went."""

        def work(db: sqlite3.Connection) -> int:
            over = int(db.execute("SELECT count(*) FROM vectors").fetchone()[0]) - self._most
            if over > 0:
                oldest = "SELECT key FROM vectors ORDER BY used LIMIT ?"
                db.execute(f"DELETE FROM vectors WHERE key IN ({oldest})", (over,))  # noqa: S608 - constants
            return max(over, 0)

        return self._with(work, 0)

    def _get(self, keys: Sequence[bytes]) -> dict[bytes, Vectors]:
        today = int(time.time()) // _DAY

        def work(db: sqlite3.Connection) -> dict[bytes, Vectors]:
            places = ", ".join("?" * len(keys))
            rows = db.execute(f"SELECT key, vector, used FROM vectors WHERE key IN ({places})", keys).fetchall()  # noqa: S608
            stale = [(today, key) for key, _, used in rows if used != today]
            db.executemany("UPDATE vectors SET used = ? WHERE key = ?", stale)
            return {key: np.frombuffer(vector, dtype=np.float32) for key, vector, _ in rows}

        return self._with(work, {})

    def _put(self, vectors: dict[bytes, Vectors]) -> None:
        today = int(time.time()) // _DAY
        rows = [(key, vector.astype(np.float32).tobytes(), today) for key, vector in vectors.items()]
        if rows:
            self._with(lambda db: db.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows), None)

    def _with(self, work: Callable[[sqlite3.Connection], _T], otherwise: _T) -> _T:
        try:
            with closing(sqlite3.connect(self.path, timeout=30)) as db, db:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = OFF")  # what a power cut takes is embedded again
                db.execute(_SCHEMA)
                return work(db)
        except sqlite3.OperationalError:
            return otherwise  # locked for long, or a full disk: embedding goes on without it
        except sqlite3.DatabaseError:
            for file in self.path.parent.glob(f"{self.path.name}*"):
                file.unlink(missing_ok=True)
            return otherwise


def _key(version: str, text: str) -> bytes:
    return hashlib.blake2b(f"{version}\0{text}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
