"""What a home's ledger and log of feedback hold, as samples for telemetry: looked up when metrics are rendered, in no
process's memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from context_os import feedback, telemetry
from context_os.ledger import Holdings, Ledger
from context_os.model import utcnow
from context_os.telemetry import Sample

_Stamp = tuple[tuple[int, int], ...]
_SETTLED_NS: Final = 2_000_000_000
_OUTCOMES: Final = ("added", "changed", "refreshed", "removed", "forgotten", "quarantined", "released")


def samples(ledger: Path) -> Iterator[Sample]:
    """Of every scope in the ledger's file and of the votes beside it, nothing where there is none. Raises StoreError.
    Counts all items with their vectors, half a second for 200,000, if the file has changed since this process counted
    them."""
    if (ledger.parent / feedback.FILE_NAME).is_file():
        for tenant, origin, outcome, votes in feedback.FeedbackLog(ledger.parent).tallies():
            yield Sample(telemetry.VOTES, (tenant, origin, outcome), votes)
    if ledger.is_file():
        for each in _holdings(ledger):
            yield from _of(each)


_counted: Final[dict[Path, tuple[_Stamp, list[Holdings]]]] = {}


def _holdings(ledger: Path) -> list[Holdings]:
    before = _stamp(ledger)
    stamp, held = _counted.get(ledger, (None, []))
    if stamp == before:
        return held
    held = Ledger(ledger).holdings()
    # A file that was written a moment ago may be written again without its times telling.
    if before == _stamp(ledger) and time.time_ns() - max((changed for changed, _ in before), default=0) > _SETTLED_NS:
        _counted[ledger] = before, held
    return held


def _stamp(ledger: Path) -> _Stamp:
    """When the file and its log were written and how long they are. A log that is empty is none."""
    log = ledger.with_name(f"{ledger.name}-wal")
    found = []
    for each in (ledger, log):
        with suppress(FileNotFoundError):
            found.append(each.stat())
    return tuple((each.st_mtime_ns, each.st_size) for each in found if each.st_size)


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
