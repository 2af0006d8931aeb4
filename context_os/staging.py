"""The staged file: what one ``stage`` found, on disk, between a source and a store.

Rows go in through ``Rows`` while a connector reads, the gate sees them through ``frame``, and ``Plan`` reads
them back with a verdict to say what has to be written, kept and quarantined. Items are streamed; only ids and
checksums are held in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from datetime import UTC, datetime
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from context_os import quality
from context_os.connectors import Unit
from context_os.ledger import Entry, Ledger, Quarantined, Scope
from context_os.model import NEVER, KnowledgeItem, Time, Value, utcnow
from context_os.segments import Additions, Segment

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

BATCH: Final = 1_000
"""Rows held in memory at a time."""

_T = TypeVar("_T")


class Staged(Value):
    """What one ``stage`` found, without the rows. ``id`` names it; ``generation`` is the ledger's when it looked;
    ``recovers``: it knew of an interrupted run and read again whatever that one may have touched."""

    id: str
    connector: str
    repository: str
    data_version: str
    fingerprint: str
    revision: str
    generation: int
    recovers: bool
    cursor: dict[str, Any]
    units: dict[str, str]
    removed_units: tuple[str, ...]
    rows: int
    rejected: int
    expired: int
    skipped: dict[str, int]
    notes: tuple[str, ...]
    seconds: float
    at: Time

    @property
    def is_empty(self) -> bool:
        """Nothing to validate and nothing to write."""
        return not self.units and not self.removed_units


# One row per record; rows that need no writing carry no item.
_COLUMNS: Final = (
    "id", "tenant", "unit", "domain", "kind", "modality", "title", "text", "repository", "path", "language",
    "start_line", "end_line", "revision", "confidentiality", "ttl_seconds", "checksum", "owner", "updated_at",
    "source_type", "tags", "targets",
)  # fmt: skip


def _schema() -> pa.Schema:
    import pyarrow as pa

    kinds = {
        "start_line": pa.int64(),
        "end_line": pa.int64(),
        "ttl_seconds": pa.float64(),
        "updated_at": pa.timestamp("ms", tz="UTC"),
        "tags": pa.list_(pa.string()),
        "targets": pa.list_(pa.string()),
    }
    fields = [pa.field(name, kinds.get(name, pa.string())) for name in _COLUMNS]
    extra = [
        ("state", pa.string()),
        ("expires_at", pa.int64()),
        ("reasons", pa.list_(pa.string())),
        ("item", pa.string()),
    ]
    return pa.schema([*fields, *(pa.field(*each) for each in extra)])


_MOST_KEPT: Final = 50_000


_handed_over: Final[dict[Path, list[KnowledgeItem]]] = {}
"""The candidates of the last staging in this process, by its file: indexing them next need not parse them again."""


def candidates(parquet: Path) -> Iterator[KnowledgeItem]:
    """What the gate judges, in its order."""
    kept = _handed_over.get(parquet)
    if kept is not None:
        yield from kept
    else:
        rows = (row for row in _read(parquet, ["state", "item"]) if _is_candidate(row))
        yield from (KnowledgeItem.model_validate_json(row["item"]) for row in rows)


def grown(parquet: Path, refused: Set[int], held: Path | None, leaving: Iterable[str]) -> Segment | None:
    """The statistics of a scope after a staging: of those in the file ``held`` all but what is ``leaving``, and the
    candidates but the ``refused``, by their number. None where ``held`` cannot be used."""
    segment = Segment.empty() if held is None else Segment.load(held)
    if segment is None or not segment.is_complete:
        return None
    additions = Additions()
    additions.extend(item for number, item in enumerate(candidates(parquet)) if number not in refused)
    return segment.without(leaving).with_(additions)


def release(parquet: Path) -> None:
    """The candidates are not needed any more, or not soon: let the memory go."""
    _handed_over.pop(parquet, None)


def _read(parquet: Path | None, columns: list[str]) -> Iterator[dict[str, Any]]:
    if parquet is None:
        return
    import pyarrow.parquet as pq

    with pq.ParquetFile(parquet) as file:
        for batch in file.iter_batches(batch_size=BATCH, columns=columns):
            yield from batch.to_pylist()


class Rows:
    """Turns units into rows, deciding per item whether it is added, changed, refreshed or unchanged."""

    def __init__(
        self, ledger: Ledger, scope: Scope, touched: set[str], *, refresh: bool, foreign_ids: bool = False
    ) -> None:
        self._ledger = ledger
        self._scope = scope
        self._touched = touched
        self._refresh = refresh
        self._foreign_ids = foreign_ids
        self._before = ledger.entries(scope, touched)
        self.candidates = self.rejected = self.expired = 0
        self.notes: list[str] = []
        self._kept: list[KnowledgeItem] = []

    def write(self, path: Path, units: Iterator[Unit]) -> None:
        """No file without a row, and no file is seen before it is whole."""
        _handed_over.clear()
        path.unlink(missing_ok=True)
        pieces = batches((row for unit in units for row in self._of(unit)), BATCH)
        first = next(pieces, None)
        if first is None:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = _schema()
        partial = path.with_suffix(".partial")
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            for batch in chain([first], pieces):
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
        partial.replace(path)
        if len(self._kept) == self.candidates:
            _handed_over[path] = self._kept

    def _of(self, unit: Unit) -> Iterator[dict[str, Any]]:
        self.notes.extend(f"{unit.key}: {note}" for note in unit.notes)
        for each in unit.rejected:
            self.rejected += 1
            yield {"unit": unit.key, "title": each.key, "state": "rejected", "reasons": each.reasons, "item": each.raw}
        strangers = [item.id for item in unit.items if item.id not in self._before]
        elsewhere = self._ledger.owners_of(self._scope, strangers) if self._scope.generation else {}
        owners = {id: entry.unit for id, entry in elsewhere.items()}
        if self._foreign_ids:
            owners |= self._ledger.taken_by(self._scope, strangers)
        for item in unit.items:
            held = elsewhere.get(item.id)
            if held is None or held.checksum != item.metadata.checksum:
                yield from self._row(unit, item, owners.get(item.id))

    def _row(self, unit: Unit, item: KnowledgeItem, owner: str | None) -> Iterator[dict[str, Any]]:
        if item.expires_at <= utcnow():
            self.expired += 1
            return
        entry = self._before.get(item.id)
        row = {
            "id": item.id,
            "unit": unit.key,
            "checksum": item.metadata.checksum,
            "expires_at": int(item.expires_at.timestamp() * 1000),
        }
        if owner is not None:
            self.rejected += 1
            reason = f"the id of {item.metadata.title!r} already belongs to a record in {owner}"
            yield {**row, "title": item.metadata.title, "state": "rejected", "reasons": [reason], "item": _json(item)}
        elif entry and entry.checksum == item.metadata.checksum and not self._refresh:
            yield {**row, "expires_at": int(entry.expires_at.timestamp() * 1000), "state": "unchanged"}
        else:
            self.candidates += 1
            if len(self._kept) < _MOST_KEPT:
                self._kept.append(item)
            same = entry is not None and entry.checksum == item.metadata.checksum
            state = "refreshed" if same else "changed" if entry else "added"
            yield {**row, **_columns(item), "state": state, "item": _json(item)}


def _columns(item: KnowledgeItem) -> dict[str, Any]:
    source, metadata = item.source, item.metadata
    return {
        "tenant": item.tenant,
        "domain": item.domain,
        "kind": item.kind,
        "modality": item.modality.value,
        "title": metadata.title,
        "text": item.payload.text,
        "repository": source.repository,
        "path": source.path,
        "language": source.language,
        "start_line": source.start_line,
        "end_line": source.end_line,
        "revision": source.revision,
        "confidentiality": metadata.confidentiality.value,
        "ttl_seconds": metadata.ttl.total_seconds() if metadata.ttl is not None else None,
        "owner": metadata.owner_id,
        "updated_at": metadata.updated_at,
        "source_type": source.type,
        "tags": metadata.tags,
        "targets": [relation.target for relation in item.relations],
    }


class Plan:
    """What a staging and its verdict mean for the store. Streams the items; keeps only ids and checksums."""

    def __init__(self, staged: Staged, verdict: quality.Verdict, parquet: Path, before: Mapping[str, Entry]) -> None:
        self.staged = staged
        self._parquet = parquet if parquet.is_file() else None
        self._before = before
        self._refused = {refusal.row: refusal.reasons for refusal in verdict.refusals}
        self._rows = list(_read(self._parquet, ["id", "unit", "checksum", "state", "expires_at"]))
        self.to_write = [row["id"] for row, refused in self._judged() if not refused and _is_candidate(row)]
        self.size = len(self.to_write)

    def _judged(self, rows: Iterable[dict[str, Any]] | None = None) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
        """Rows with the gate's reasons against them. The gate numbers the candidates alone."""
        number = 0
        for row in self._rows if rows is None else rows:
            yield row, self._refused.get(number, ()) if _is_candidate(row) else ()
            number += _is_candidate(row)

    @property
    def refused(self) -> Set[int]:
        """Which candidates the gate refused, by their number from 0."""
        return self._refused.keys()

    def accepted(self) -> Iterator[tuple[str, KnowledgeItem]]:
        states = ((row["state"], refused) for row, refused in self._judged() if _is_candidate(row))
        items = candidates(self._parquet) if self._parquet else ()
        for (state, refused), item in zip(states, items, strict=True):
            if not refused:
                yield state, item

    def entries_after(self, failures: Mapping[str, str]) -> list[Entry]:
        """The items of the touched units from now on. A unit with anything in quarantine loses nothing: what it gave
        before stays until the source is mended or gone."""
        kept: dict[str, Entry] = {}
        incomplete = set()
        for row, refused in self._judged():
            if row["state"] == "rejected" or refused or row["id"] in failures:
                incomplete.add(row["unit"])
            else:
                kept[row["id"]] = Entry(row["id"], row["unit"], row["checksum"], _from_ms(row["expires_at"]))
        for entry in self._before.values():
            if entry.unit in incomplete and entry.unit in self.staged.units:
                kept.setdefault(entry.id, entry)
        return list(kept.values())

    def quarantined(self, failures: Mapping[str, str]) -> list[Quarantined]:
        if not (self._refused or self.staged.rejected or failures):
            return []
        found = []
        for row, refused in self._judged(_read(self._parquet, ["id", "unit", "title", "state", "reasons", "item"])):
            reasons = (*refused, *(row["reasons"] or ()), *filter(None, [failures.get(row["id"] or "")]))
            if reasons:
                found.append(Quarantined(row["unit"], row["title"] or row["id"], reasons, row["item"] or ""))
        return found

    def refresh_at(self, unit: str, entries: Sequence[Entry]) -> datetime:
        """Half way to the first expiry of the unit's items: content that still exists must not expire."""
        return self._refresh.get(unit, NEVER) if entries else NEVER

    @cached_property
    def _refresh(self) -> dict[str, datetime]:
        now = utcnow()
        found: dict[str, datetime] = {}
        for row, _ in self._judged():
            expires = _from_ms(row["expires_at"]) if row["expires_at"] else NEVER
            if expires < NEVER:
                found[row["unit"]] = min(found.get(row["unit"], NEVER), now + (expires - now) / 2)
        return found


def _is_candidate(row: Mapping[str, Any]) -> bool:
    return row["state"] in {"added", "changed", "refreshed"}


def frame(parquet: Path) -> pd.DataFrame:
    """The candidates of a staged file as the gate wants them: a pandas frame without the items themselves."""
    import pyarrow.parquet as pq

    table = pq.read_table(parquet, columns=[*_COLUMNS, "state"])
    rows = table.to_pandas()
    chosen = rows[rows["state"].isin(["added", "changed", "refreshed"])]
    return chosen.drop(columns="state").reset_index(drop=True)


def _json(item: KnowledgeItem) -> str:
    return item.model_dump_json(by_alias=True, exclude_defaults=True)


def batches(rows: Iterable[_T], size: int) -> Iterator[list[_T]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, size)):
        yield batch


def write_atomically(path: Path, text: str) -> None:
    partial = path.with_suffix(".writing")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _from_ms(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
