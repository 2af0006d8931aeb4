"""Verdicts on items and on the output of actions, in an append-only log: ``feedback.db`` in the home.

Counters are sums over the log, never read, changed and written back, so they are exact whoever votes at the same time.
Beside the log the same transaction keeps sums by day, so that reading costs by days and not by votes. A vote's ``key``
makes adding it idempotent: the same vote again changes nothing, another vote under the same key is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

from pydantic import Field

from context_os.database import Database, milliseconds, time_of
from context_os.errors import ConfigurationError
from context_os.model import Actor, FeedbackCounters, Time, Value

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
    vote that withdraws an earlier one. ``origin`` says which way it came: ``cli``, ``http``, ``github``, ``migration``.
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
    count: int = Field(default=1, ge=-1_000_000_000, le=1_000_000_000)


class Standing(NamedTuple):
    """Votes of one subject, each worth ``0.5 ** (age / HALF_LIFE)``."""

    helpful: float
    harmful: float

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
    )

    def __init__(self, home: Path) -> None:
        super().__init__(home / FILE_NAME)

    def add(self, tenant: str, votes: Sequence[Vote]) -> int:
        """All of them or none; returns how many were new. Raises ConfigurationError listing every key that stands for
        another vote already."""
        new = 0
        taken: list[str] = []
        with self.transaction() as db:
            for vote in votes:
                text = vote.model_dump_json(exclude={"at"})
                found = db.execute("SELECT vote FROM votes WHERE tenant = ? AND key = ?", (tenant, vote.key)).fetchone()
                if found is not None:
                    taken += [] if found[0] == text else [vote.key]
                    continue
                at = milliseconds(vote.at)
                row = (tenant, vote.key, vote.subject, vote.verdict.value, at, vote.count, text)
                db.execute(
                    "INSERT INTO votes (tenant, key, subject, verdict, at, count, vote) VALUES (?,?,?,?,?,?,?)", row
                )
                db.execute(_SUM[vote.verdict], (tenant, vote.subject, at // _DAY_MS, vote.count, at))
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
        sums: dict[str, tuple[float, float]] = {}
        for subject, day, helpful, harmful in self._days(tenant, subjects, _BY_DAY):
            age = max(now.astimezone(UTC) - time_of(day * _DAY_MS), timedelta(0))
            worth = 0.5 ** (age / HALF_LIFE)
            before = sums.get(subject, (0.0, 0.0))
            sums[subject] = before[0] + helpful * worth, before[1] + harmful * worth
        return {subject: Standing(max(helpful, 0.0), max(harmful, 0.0)) for subject, (helpful, harmful) in sums.items()}

    def votes(self, tenant: str, subject: str | None = None, after: int = 0) -> Iterator[tuple[int, Vote]]:
        """``(number, vote)`` in the order in which they came."""
        chosen = "" if subject is None else " AND subject = ?"
        values = (tenant, after) if subject is None else (tenant, after, subject)
        query = f"SELECT number, at, vote FROM votes WHERE tenant = ? AND number > ?{chosen} ORDER BY number"  # noqa: S608
        with self.connection() as db:
            for number, at, text in db.execute(query, values):
                yield number, Vote.model_validate({**json.loads(text), "at": time_of(at)})

    def _days(self, tenant: str, subjects: Sequence[str], query: str) -> Iterator[Any]:
        wanted = list(dict.fromkeys(subjects))
        with self.connection() as db:
            for start in range(0, len(wanted), _AT_ONCE):
                some = wanted[start : start + _AT_ONCE]
                marks = ",".join("?" * len(some))
                yield from db.execute(query.format(marks=marks), (tenant, *some))


_SUM: Final = {
    verdict: f"INSERT INTO days (tenant, subject, day, helpful, harmful, last_{verdict.value})"  # noqa: S608
    f" VALUES (?1, ?2, ?3, {'?4, 0' if verdict is Verdict.HELPFUL else '0, ?4'}, ?5)"
    f" ON CONFLICT DO UPDATE SET {verdict.value} = {verdict.value} + ?4,"
    f" last_{verdict.value} = max(coalesce(last_{verdict.value}, 0), ?5)"
    for verdict in Verdict
}
_TOTALS: Final = (
    "SELECT subject, sum(helpful), sum(harmful), max(last_helpful), max(last_harmful) FROM days"
    " WHERE tenant = ? AND subject IN ({marks}) GROUP BY subject"
)
_BY_DAY: Final = "SELECT subject, day, helpful, harmful FROM days WHERE tenant = ? AND subject IN ({marks})"
