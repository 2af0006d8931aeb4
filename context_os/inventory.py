"""What a home's ledger holds, as samples for telemetry: looked up when metrics are rendered, in no process's memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from context_os import telemetry
from context_os.ledger import Holdings, Ledger
from context_os.model import utcnow
from context_os.telemetry import Sample

_OUTCOMES: Final = ("added", "changed", "refreshed", "removed", "forgotten", "quarantined", "released")


def samples(ledger: Path) -> Iterator[Sample]:
    """Of every scope in the ledger's file, nothing where there is none. Raises StoreError. Reads the ids of all items:
    0.1 s for 200,000 of them with their vectors."""
    if ledger.is_file():
        for each in Ledger(ledger).holdings():
            yield from _of(each)


def _of(held: Holdings) -> Iterator[Sample]:
    scope = held.scope
    place = (scope.store.partition(":")[0], scope.tenant, scope.repository, scope.connector)
    yield Sample(telemetry.ITEMS, place, held.items)
    yield Sample(telemetry.QUARANTINE, place, held.quarantined)
    yield Sample(telemetry.PENDING, place, held.pending)
    for version, count in held.vectors.items():
        yield Sample(telemetry.VECTORS, (*place, version), count)
    for outcome in _OUTCOMES:
        yield Sample(telemetry.INGESTED, (*place, outcome), held.tallies.get(outcome, 0))
    if scope.indexed_at is not None:
        yield Sample(telemetry.INDEXED_AT, place, scope.indexed_at.timestamp())
        yield Sample(telemetry.LAG, place, (utcnow() - scope.indexed_at).total_seconds())
