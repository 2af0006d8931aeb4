"""Verdicts on items and on the output of actions, in an append-only log: ``feedback.db`` in the home.

Counters are sums over the log, never read, changed and written back, so they are exact whoever votes at the same time.
Beside the log the same transaction keeps sums by day, so that reading costs by days and not by votes. A vote's ``key``
makes adding it idempotent: the same vote again changes nothing, another vote under the same key is refused.

The log is the truth and what stores show on their items is a projection of it: absolute sums, written by one projector
at a time, of what changed since this store was last written to. So a store that was away, was restored or lost items
catches up, and a sum is never added twice.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

from pydantic import Field

from context_os.database import Database, milliseconds, time_of
from context_os.errors import ConfigurationError, NotFound
from context_os.model import Access, Actor, Confidentiality, FeedbackCounters, Time, Value, content_checksum, utcnow
from context_os.stores import KnowledgeStore

FILE_NAME: Final = "feedback.db"
HALF_LIFE: Final = timedelta(days=90)
"""After this time a vote counts half."""
PRIOR: Final = 8.0
"""Votes that say nothing, mixed into every standing: few real ones move little."""
_DAY_MS: Final = 86_400_000
_AT_ONCE: Final = 500


class Verdict(StrEnum):
    HELPFUL = "helpful"
    HARMFUL = "harmful"


class Vote(Value):
    """One verdict on ``subject``: an item's id, or ``action:<id>`` for the output of an action.

    ``count`` is 1 for what somebody said, more for counters that were carried over from elsewhere, and negative in a
    vote that withdraws an earlier one. ``origin`` says which way it came: ``cli``, ``http``, ``github``, ``finding``,
    ``migration``. ``repository`` and ``connector`` are the item's, so that an erasure finds votes on what is gone.
    """

    key: str = Field(min_length=1, max_length=200)
    subject: str = Field(min_length=1, max_length=200)
    verdict: Verdict
    at: Time
    principal: str = Field(min_length=1, max_length=200)
    actor: Actor = Actor.HUMAN
    origin: str = Field(default="", max_length=40)
    pack: str = Field(default="", max_length=64)
    comment: str = Field(default="", max_length=4_000)
    repository: str = ""
    connector: str = ""
    count: int = Field(default=1, ge=-1_000_000_000, le=1_000_000_000)

    def withdrawn(self, at: datetime, principal: str) -> Vote:
        """The vote that takes this one back."""
        key = f"withdrawn:{content_checksum(self.key)[:40]}"
        told = {"key": key, "at": at, "principal": principal, "comment": "", "count": -self.count}
        return Vote(**{**dict(self), **told})


class Standing(NamedTuple):
    """Votes of one subject, each worth ``0.5 ** (age / HALF_LIFE)``. ``said`` is how many there are, whatever their
    age: ``(helpful, harmful)``."""

    helpful: float
    harmful: float
    said: tuple[int, int] = (0, 0)

    @property
    def balance(self) -> float:
        """In -1..1: 0 without votes, towards 1 the more it helped. The mean of a Beta posterior with a symmetric prior
        of PRIOR votes, stretched to that range."""
        return (self.helpful - self.harmful) / (self.helpful + self.harmful + PRIOR)


class FeedbackLog(Database):
    """The log of one home. Every call is of one tenant; nothing of another's is counted or told."""

    what: ClassVar[str] = "the log of feedback"
    schemas: ClassVar[tuple[str, ...]] = (
        """
        CREATE TABLE votes (
          number INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, key TEXT NOT NULL, subject TEXT NOT NULL,
          verdict TEXT NOT NULL, at INTEGER NOT NULL, count INTEGER NOT NULL, vote TEXT NOT NULL,
          UNIQUE (tenant, key)) STRICT;
        CREATE INDEX votes_by_subject ON votes (tenant, subject);
        CREATE TABLE days (
          tenant TEXT NOT NULL, subject TEXT NOT NULL, day INTEGER NOT NULL, helpful INTEGER NOT NULL,
          harmful INTEGER NOT NULL, last_helpful INTEGER, last_harmful INTEGER,
          PRIMARY KEY (tenant, subject, day)) STRICT, WITHOUT ROWID
        """,
        """
        CREATE TABLE projected (
          store TEXT NOT NULL, tenant TEXT NOT NULL, number INTEGER NOT NULL,
          PRIMARY KEY (store, tenant)) STRICT, WITHOUT ROWID;
        CREATE TABLE requests (
          tenant TEXT NOT NULL, key TEXT NOT NULL, asked TEXT NOT NULL,
          PRIMARY KEY (tenant, key)) STRICT, WITHOUT ROWID;
        CREATE TABLE seen (
          tenant TEXT NOT NULL, source TEXT NOT NULL, state TEXT NOT NULL,
          PRIMARY KEY (tenant, source)) STRICT, WITHOUT ROWID;
        CREATE TABLE tallies (
          tenant TEXT NOT NULL, origin TEXT NOT NULL, outcome TEXT NOT NULL, votes INTEGER NOT NULL,
          PRIMARY KEY (tenant, origin, outcome)) STRICT, WITHOUT ROWID;
        INSERT INTO tallies SELECT tenant, json_extract(vote, '$.origin'),
          CASE WHEN count < 0 THEN 'withdrawn' ELSE verdict END, count(*) FROM votes GROUP BY 1, 2, 3
        """,
    )

    def __init__(self, home: Path) -> None:
        self._idle: sqlite3.Connection | None = None
        super().__init__(home / FILE_NAME)

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        # Whoever closes a file's last connection waits until its journal is folded in: with one that stays open nobody
        # does, which is most of what a vote would cost.
        with super().connection() as db:
            if self._idle is None:
                self._idle = sqlite3.connect(self.path, check_same_thread=False)
                self._idle.execute("SELECT count(*) FROM sqlite_master").fetchone()
            yield db

    def add(
        self,
        tenant: str,
        votes: Sequence[Vote],
        request: tuple[str, str] | None = None,
        seen: Mapping[str, str] | None = None,
    ) -> int:
        """All of them or none; returns how many were new. Raises ConfigurationError listing every key that stands for
        another vote already.

        ``request`` is a name and what was asked under it: the same again adds nothing, something else is a
        ConfigurationError. ``seen`` is what a collector wants to find again (``states``), kept in the same step.
        """
        new = 0
        taken: list[str] = []
        with self.transaction() as db:
            if request is not None and not _is_first(db, tenant, *request):
                return 0
            db.executemany(
                "INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", ((tenant, *each) for each in (seen or {}).items())
            )
            for vote in votes:
                text = vote.model_dump_json(exclude={"at"})
                found = db.execute("SELECT vote FROM votes WHERE tenant = ? AND key = ?", (tenant, vote.key)).fetchone()
                if found is not None:
                    taken += [] if _is_same(found[0], vote) else [vote.key]
                    continue
                at = milliseconds(vote.at)
                row = (tenant, vote.key, vote.subject, vote.verdict.value, at, vote.count, text)
                db.execute(
                    "INSERT INTO votes (tenant, key, subject, verdict, at, count, vote) VALUES (?,?,?,?,?,?,?)", row
                )
                db.execute(_SUM[vote.verdict], (tenant, vote.subject, at // _DAY_MS, vote.count, at))
                db.execute(_TALLY, (tenant, vote.origin, "withdrawn" if vote.count < 0 else vote.verdict.value, 1))
                new += 1
            if taken:
                raise ConfigurationError(
                    "these keys stand for other votes already; a vote is never changed, give it a key of its own: "
                    + ", ".join(taken)
                )
        return new

    def counters(self, tenant: str, subjects: Sequence[str]) -> dict[str, FeedbackCounters]:
        """The exact sums of those of these subjects that were ever voted on."""
        found: dict[str, FeedbackCounters] = {}
        for row in self._days(tenant, subjects, _TOTALS):
            subject, helpful, harmful, last_helpful, last_harmful = row
            found[subject] = FeedbackCounters(
                helpful=max(helpful, 0),
                harmful=max(harmful, 0),
                last_helpful_at=None if last_helpful is None else time_of(last_helpful),
                last_harmful_at=None if last_harmful is None else time_of(last_harmful),
            )
        return found

    def standings(self, tenant: str, subjects: Sequence[str], now: datetime) -> dict[str, Standing]:
        """The same votes, old ones worth less, of those of these subjects that were ever voted on."""
        at, half = milliseconds(now), HALF_LIFE / timedelta(milliseconds=1)
        sums: dict[str, tuple[float, float, int, int]] = {}
        for subject, day, helpful, harmful in self._days(tenant, subjects, _BY_DAY):
            worth = 0.5 ** (max(at - day * _DAY_MS, 0) / half)
            a, b, c, d = sums.get(subject, (0.0, 0.0, 0, 0))
            sums[subject] = a + helpful * worth, b + harmful * worth, c + helpful, d + harmful
        # What is withdrawn later than it was said weighs a little more than what it takes back: never below nothing.
        return {
            subject: Standing(max(a, 0.0) if c > 0 else 0.0, max(b, 0.0) if d > 0 else 0.0, (max(c, 0), max(d, 0)))
            for subject, (a, b, c, d) in sums.items()
        }

    def votes(self, tenant: str, subject: str | None = None, after: int = 0) -> Iterator[tuple[int, Vote]]:
        """``(number, vote)`` in the order in which they came."""
        chosen = "" if subject is None else " AND subject = ?"
        values = (tenant, after) if subject is None else (tenant, after, subject)
        query = f"SELECT number, at, vote FROM votes WHERE tenant = ? AND number > ?{chosen} ORDER BY number"  # noqa: S608
        with self.connection() as db:
            for number, at, text in db.execute(query, values):
                yield number, Vote.model_validate({**json.loads(text), "at": time_of(at)})

    def under(self, tenant: str, prefix: str) -> list[Vote]:
        """The votes whose keys begin so, in the order in which they came."""
        query = "SELECT at, vote FROM votes WHERE tenant = ? AND key >= ? AND key < ? ORDER BY number"
        with self.connection() as db:
            rows = db.execute(query, (tenant, prefix, f"{prefix}\U0010ffff")).fetchall()
        return [Vote.model_validate({**json.loads(text), "at": time_of(at)}) for at, text in rows]

    def find(self, tenant: str, key: str) -> Vote | None:
        with self.connection() as db:
            row = db.execute("SELECT at, vote FROM votes WHERE tenant = ? AND key = ?", (tenant, key)).fetchone()
        return Vote.model_validate({**json.loads(row[1]), "at": time_of(row[0])}) if row else None

    def withdraw(self, tenant: str, key: str, principal: str) -> Vote:
        """Take a vote back, by a vote of its own that stands in the log behind it. Harmless a second time. Raises
        NotFound."""
        vote = self.find(tenant, key)
        if vote is None or vote.count < 0:
            raise NotFound(f"no vote has the key {key!r} in tenant {tenant}; `context-os feedback list` shows them")
        taken = vote.withdrawn(utcnow(), principal)
        earlier = self.find(tenant, taken.key)
        if earlier is None:
            self.add(tenant, [taken])
        return earlier or taken

    def states(self, tenant: str, sources: Sequence[str]) -> dict[str, str]:
        """What ``add`` was told to keep under these names."""
        with self.connection() as db:
            rows = (
                db.execute("SELECT state FROM seen WHERE tenant = ? AND source = ?", (tenant, each)).fetchone()
                for each in sources
            )
            return {source: row[0] for source, row in zip(sources, rows, strict=True) if row}

    def tallies(self) -> list[tuple[str, str, str, int]]:
        """``(tenant, origin, outcome, votes)``, ever: helpful, harmful, withdrawn, and erased of all three."""
        with self.connection() as db:
            return db.execute("SELECT tenant, origin, outcome, votes FROM tallies ORDER BY 1, 2, 3").fetchall()

    # Projection

    def changed(self, store: str, tenant: str) -> tuple[int, list[str]]:
        """The subjects that were voted on since this store was last written to, and the number of the last vote."""
        with self.connection() as db:
            row = db.execute("SELECT number FROM projected WHERE store = ? AND tenant = ?", (store, tenant)).fetchone()
            last = db.execute("SELECT coalesce(max(number), 0) FROM votes").fetchone()[0]
            # From the beginning on also what has no vote any more: its sum is nothing, and a store may show another.
            query = (
                "SELECT DISTINCT subject FROM votes WHERE number > ?2 AND tenant = ?1"
                if row
                else "SELECT DISTINCT subject FROM days WHERE tenant = ?1 OR tenant = ?2"
            )
            return last, [subject for (subject,) in db.execute(query, (tenant, row[0] if row else tenant))]

    def note_projected(self, store: str, tenant: str, number: int) -> None:
        with self.transaction() as db:
            db.execute("INSERT OR REPLACE INTO projected VALUES (?, ?, ?)", (store, tenant, number))

    def forget_projection(self, tenant: str) -> None:
        """Of all stores: what they show may be older than the log."""
        with self.transaction() as db:
            db.execute("DELETE FROM projected WHERE tenant = ?", (tenant,))

    # Erasure

    def count(self, tenant: str, chosen: Callable[[Vote], bool]) -> int:
        return sum(chosen(vote) for _, vote in self.votes(tenant))

    def forget(self, tenant: str, chosen: Callable[[Vote], bool]) -> int:
        """Take votes out for good; says how many. Sums are made anew of those that stay, and no store is thought to
        show them: what lost all its votes has to show none."""
        gone = [(number, vote) for number, vote in self.votes(tenant) if chosen(vote)]
        with self.transaction() as db:
            db.execute("PRAGMA secure_delete = ON")
            db.executemany("DELETE FROM votes WHERE number = ?", ((number,) for number, _ in gone))
            for origin, count in Counter(vote.origin for _, vote in gone).items():
                db.execute(_TALLY, (tenant, origin, "erased", count))
            for subject in {vote.subject for _, vote in gone}:
                db.execute("DELETE FROM days WHERE tenant = ? AND subject = ?", (tenant, subject))
                db.execute("INSERT INTO days VALUES (?, ?, 0, 0, 0, NULL, NULL)", (tenant, subject))
                for verdict in Verdict:
                    db.execute(_SUMMED_AGAIN[verdict], (tenant, subject))
            db.execute("DELETE FROM projected WHERE tenant = ?", (tenant,))
        return len(gone)

    def forget_subjects(self, tenant: str, subjects: Collection[str]) -> int:
        """Take everything about these out for good; says how many votes."""
        count = self.forget(tenant, lambda vote: vote.subject in subjects)
        with self.transaction() as db:
            db.execute("PRAGMA secure_delete = ON")
            rows = ((tenant, subject) for subject in subjects)
            db.executemany("DELETE FROM days WHERE tenant = ? AND subject = ?", rows)
        return count

    def forget_states(self, tenant: str) -> None:
        """Take out what was kept for collectors: they look again, which adds nothing twice."""
        with self.transaction() as db:
            db.execute("PRAGMA secure_delete = ON")
            db.execute("DELETE FROM seen WHERE tenant = ?", (tenant,))

    def forget_tenant(self, tenant: str) -> None:
        with self.transaction() as db:
            db.execute("PRAGMA secure_delete = ON")
            for table in ("votes", "days", "projected", "requests", "seen", "tallies"):
                db.execute(f"DELETE FROM {table} WHERE tenant = ?", (tenant,))  # noqa: S608

    def compact(self) -> None:
        """Overwrite what deletion left in the file and its log."""
        with self.connection() as db:
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _days(self, tenant: str, subjects: Sequence[str], query: str) -> Iterator[Any]:
        wanted = list(dict.fromkeys(subjects))
        with self.connection() as db:
            for start in range(0, len(wanted), _AT_ONCE):
                some = wanted[start : start + _AT_ONCE]
                marks = ",".join("?" * len(some))
                yield from db.execute(query.format(marks=marks), (tenant, *some))


@dataclass(frozen=True)
class Projection:
    """What the log says of a tenant's items, on those items in a store."""

    log: FeedbackLog
    store: KnowledgeStore
    tenant: str

    def catch_up(self) -> int:
        """Write the sums of what was voted on since this store was last written to; says of how many items. When it
        returns, every vote that was in the log before shows. Raises StoreUnavailable; the votes are in the log then,
        and the next call writes them."""
        if not self.log.changed(self.store.identity, self.tenant)[1]:
            return 0
        with self._alone():
            # Whoever waited finds that the one before did it all: so 64 voters at once cost a few writes.
            last, subjects = self.log.changed(self.store.identity, self.tenant)
            there = self._write(subjects)
            if subjects:
                self.log.note_projected(self.store.identity, self.tenant, last)
        return there

    def renew(self, ids: Sequence[str]) -> int:
        """Write the sums of those of these items that were ever voted on: somebody just wrote them anew."""
        if not self.log.counters(self.tenant, ids):
            return 0
        with self._alone():
            return self._write(ids)

    def renew_all(self) -> int:
        """Write the sums of everything that was ever voted on."""
        self.log.forget_projection(self.tenant)
        return self.catch_up()

    def _write(self, ids: Sequence[str]) -> int:
        # Read under the lock: a sum that was read before another projector's may not be written after it.
        sums = self.log.counters(self.tenant, ids)
        return len(self.store.put_feedback(self._access, sums)) if sums else 0

    @property
    def _access(self) -> Access:
        return Access(tenant=self.tenant, principal="feedback", clearance=Confidentiality.RESTRICTED)

    def _alone(self) -> AbstractContextManager[None]:
        return _locked(self.log.path.with_suffix(".projecting"))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _is_same(kept: str, vote: Vote) -> bool:
    """Whether a vote is the one that is kept, whatever the time, and whichever version wrote it."""
    return Vote.model_validate({**json.loads(kept), "at": vote.at}) == vote


def _is_first(db: Any, tenant: str, key: str, asked: str) -> bool:
    """Remembers a request, as digests. Raises ConfigurationError where its name was used for something else."""
    name, told = content_checksum(key), content_checksum(asked)
    if db.execute("INSERT OR IGNORE INTO requests VALUES (?, ?, ?)", (tenant, name, told)).rowcount:
        return True
    if db.execute("SELECT asked FROM requests WHERE tenant = ? AND key = ?", (tenant, name)).fetchone()[0] != told:
        raise ConfigurationError("this key was used for another request; send a new key with a new request")
    return False


_SUM: Final = {
    verdict: f"INSERT INTO days (tenant, subject, day, helpful, harmful, last_{verdict.value})"  # noqa: S608
    f" VALUES (?1, ?2, ?3, {'?4, 0' if verdict is Verdict.HELPFUL else '0, ?4'}, ?5)"
    f" ON CONFLICT DO UPDATE SET {verdict.value} = {verdict.value} + ?4,"
    f" last_{verdict.value} = max(coalesce(last_{verdict.value}, 0), ?5)"
    for verdict in Verdict
}
_SUMMED_AGAIN: Final = {
    verdict: f"INSERT INTO days (tenant, subject, day, helpful, harmful, last_{verdict.value})"  # noqa: S608
    f" SELECT tenant, subject, at / {_DAY_MS}, {'sum(count), 0' if verdict is Verdict.HELPFUL else '0, sum(count)'},"
    f" max(at) FROM votes WHERE tenant = ?1 AND subject = ?2 AND verdict = '{verdict.value}' GROUP BY at / {_DAY_MS}"
    f" ON CONFLICT DO UPDATE SET {verdict.value} = excluded.{verdict.value},"
    f" last_{verdict.value} = excluded.last_{verdict.value}"
    for verdict in Verdict
}
_TALLY: Final = "INSERT INTO tallies VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE SET votes = votes + ?4"
_TOTALS: Final = (
    "SELECT subject, sum(helpful), sum(harmful), max(last_helpful), max(last_harmful) FROM days"
    " WHERE tenant = ? AND subject IN ({marks}) GROUP BY subject"
)
_BY_DAY: Final = "SELECT subject, day, helpful, harmful FROM days WHERE tenant = ? AND subject IN ({marks})"
