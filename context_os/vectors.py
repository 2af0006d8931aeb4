"""Vectors on this machine, beside those that the store keeps: a cache by text, and a table by document.

An item's vector goes with its content, and its content says more than the text that is embedded: a function that only
moved down its file, or a branch that is checked out again, finds its vectors in the **cache**. The **table** of a scope
holds them at a byte a dimension, so that a query compares itself with every document in milliseconds, whichever store
keeps the items. Losing either costs time alone.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from context_os import telemetry
from context_os.model import id_bytes

Vectors = NDArray[np.float32]
_T = TypeVar("_T")

_MOST: Final = 1_000_000
"""Vectors that are kept, 1.5 GB of MiniLM's; those that were not used for longest go first."""
_BLOCK: Final = 256
_DAY: Final = 86_400
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL, used INTEGER NOT NULL) WITHOUT ROWID
"""


class VectorTable:
    """Vectors of one model by document id, in the order of ids. Each is scaled so that its largest number is 127: what
    a cosine loses by that is below 0.005."""

    def __init__(self, rows: NDArray[np.void]) -> None:
        self.rows = rows

    @classmethod
    def empty(cls, dimensions: int = 0) -> Self:
        return cls(np.empty(0, _row(dimensions)))

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """The table in a file, read where it is needed; None where there is none."""
        try:
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return cls(rows) if rows.dtype.names == ("id", "scale", "code") else None

    def save(self, path: Path) -> None:
        """All or nothing."""
        path.parent.mkdir(mode=0o700, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, self.rows, allow_pickle=False)
        partial.replace(path)

    @property
    def ids(self) -> set[bytes]:
        """See ``id_bytes``."""
        return set(np.array(self.rows["id"]).view("V16").tolist())

    def without(self, ids: Collection[str]) -> Self:
        """All but these documents."""
        return type(self)(self.rows[~self._among(ids)])

    def updated(self, given: Mapping[str, Vectors], keep: Collection[str]) -> Self:
        """With these vectors too, and of all of them only those of the documents in ``keep``."""
        old = self.rows[self._among(keep) & ~self._among(given)]
        fresh = [id for id in given if id in keep]
        if not fresh:
            return type(self)(old)
        matrix = np.array([given[id] for id in fresh], dtype=np.float32)
        added = np.empty(len(fresh), _row(matrix.shape[1]))
        added["id"] = _raw(fresh)
        added["scale"] = np.maximum(np.abs(matrix).max(axis=1), 1e-9) / 127
        added["code"] = np.rint(matrix / added["scale"][:, None]).astype(np.int8)
        rows = np.concatenate([old, added]) if len(old) else added
        return type(self)(rows[np.argsort(rows["id"].view("S16"), kind="stable")])

    def _among(self, ids: Collection[str]) -> NDArray[np.bool_]:
        """(rows,) whether it is one of these."""
        return np.isin(self.rows["id"].view("S16"), _raw(ids).view("S16"))

    def cosines(self, queries: Vectors) -> Vectors:
        """(rows, queries): of unit vectors; a few hundred rows at a time, which stay in a processor's cache and are too
        few for BLAS to wake its threads: with 4,096 at a time it took four times as long."""
        rows = self.rows.view(np.ndarray)  # a slice of a memory map takes longer than to multiply it
        found = np.empty((len(rows), len(queries)), dtype=np.float32)
        for start in range(0, len(rows), _BLOCK):
            some = rows[start : start + _BLOCK]
            found[start : start + _BLOCK] = (some["code"].astype(np.float32) @ queries.T) * some["scale"][:, None]
        return found


def _row(dimensions: int) -> np.dtype[np.void]:
    return np.dtype([("id", "V16"), ("scale", "<f4"), ("code", "i1", (dimensions,))])


def _raw(ids: Collection[str]) -> NDArray[np.void]:
    return np.array([id_bytes(id) for id in ids], dtype="V16")


class VectorCache:
    """One file for any number of processes and models. A file that is broken is begun anew."""

    def __init__(self, path: Path, most: int = _MOST) -> None:
        self.path = path
        self._most = most

    def embed(self, version: str, texts: Sequence[str], embed: Callable[[Sequence[str]], Vectors]) -> Vectors:
        """(len(texts), dimensions): what is kept of ``version``, and what ``embed`` gives for the other texts."""
        keys = [_key(version, text) for text in texts]
        kept = self._get(keys)
        telemetry.CACHED.add(sum(key in kept for key in keys), version)
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
