"""How a tenant's ingestion and reading do: what an admin sees, as numbers. Pictures of them are in ``status_page``."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from context_os.ledger import Judged, Ledger, Scope
from context_os.model import Time, utcnow

_RECENT_RUNS: Final = 40
_KEPT: Final = 500
"""Latencies of each kind, the newest."""

Outcome = Literal["passed", "refused", "broken", "none"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Freshness(_Part):
    """One connector over one repository. ``indexed_at`` is when its items last changed, ``checked_at`` when its source
    was last looked at; ``outcome`` is that look's verdict."""

    repository: str
    connector: str
    revision: str
    indexed_at: Time | None
    checked_at: Time | None
    outcome: Outcome
    items: int
    quarantined: int


class Run(_Part):
    """One run over one repository, as the gate saw it. ``reason`` says why, where it did not pass."""

    id: str
    at: Time
    repository: str
    connectors: tuple[str, ...]
    rows: int
    outcome: Outcome
    reason: str


class Latency(_Part):
    """Answers of this process since it started, in milliseconds: how many, their quantiles, and the newest ones."""

    operation: str
    count: int
    p50: float
    p95: float
    recent: tuple[float, ...]


class Operations(_Part):
    """Of one tenant, at one moment."""

    tenant: str
    at: Time
    freshness: tuple[Freshness, ...]
    runs: tuple[Run, ...]
    latencies: tuple[Latency, ...]


class Stopwatch:
    """Latencies by tenant and operation, kept in memory. May be shared by threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: dict[tuple[str, str], deque[float]] = {}
        self._counts: dict[tuple[str, str], int] = {}

    @contextmanager
    def timed(self, tenant: str, operation: str) -> Iterator[None]:
        """Measures what is answered; what raises is not."""
        started = time.perf_counter()
        yield
        milliseconds = (time.perf_counter() - started) * 1000
        key = (tenant, operation)
        with self._lock:
            self._recent.setdefault(key, deque(maxlen=_KEPT)).append(milliseconds)
            self._counts[key] = self._counts.get(key, 0) + 1

    def of(self, tenant: str) -> tuple[Latency, ...]:
        with self._lock:
            found = {key: tuple(values) for key, values in self._recent.items() if key[0] == tenant}
            return tuple(
                Latency(
                    operation=operation,
                    count=self._counts[tenant, operation],
                    p50=_quantile(values, 0.5),
                    p95=_quantile(values, 0.95),
                    recent=values,
                )
                for (_, operation), values in sorted(found.items())
            )


def look(ledger: Ledger, store: str, tenant: str, stopwatch: Stopwatch) -> Operations:
    """The operations of a tenant in a store (by its identity)."""
    return Operations(
        tenant=tenant,
        at=utcnow(),
        freshness=tuple(_freshness(ledger, scope) for scope in ledger.scopes(store, tenant)),
        runs=tuple(_runs(ledger.recent_verdicts(store, tenant, _RECENT_RUNS * 10)))[:_RECENT_RUNS],
        latencies=stopwatch.of(tenant),
    )


def _freshness(ledger: Ledger, scope: Scope) -> Freshness:
    verdict = json.loads(ledger.verdict(scope) or "{}")
    judged = datetime.fromisoformat(verdict["at"]) if verdict else None
    return Freshness(
        repository=scope.repository,
        connector=scope.connector,
        revision=scope.revision,
        indexed_at=scope.indexed_at,
        checked_at=max(filter(None, (judged, scope.indexed_at)), default=None),
        outcome=_outcome(verdict) if verdict else "none",
        items=ledger.count(scope),
        quarantined=ledger.count_quarantined(scope),
    )


def _runs(judged: Sequence[Judged]) -> Iterator[Run]:
    """The newest first. What carries no run's id (a gate outside Dagster) is a run by itself."""
    runs: dict[tuple[str, str], list[Judged]] = {}
    for place, each in enumerate(judged):
        id = json.loads(each.verdict)["run_id"]
        runs.setdefault((id or f"-{place}", each.repository), []).append(each)
    for (id, repository), group in runs.items():
        verdicts = [json.loads(each.verdict) for each in group]
        outcomes = {_outcome(verdict) for verdict in verdicts}
        yield Run(
            id="" if id.startswith("-") else id,
            at=max(each.at for each in group),
            repository=repository,
            connectors=tuple(sorted({each.connector for each in group})),
            rows=sum(verdict["rows"] for verdict in verdicts),
            outcome="broken" if "broken" in outcomes else "refused" if "refused" in outcomes else "passed",
            reason="; ".join(verdict["reason"] for verdict in verdicts if not verdict["passed"] and verdict["reason"]),
        )


def _outcome(verdict: dict[str, object]) -> Outcome:
    return "passed" if verdict["passed"] else "broken" if verdict["broken"] else "refused"


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)
