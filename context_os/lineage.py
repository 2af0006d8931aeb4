"""What every connector's run did, in append-only files that need no Dagster: ``lineage/<year>.jsonl`` in the home.

A line is ``{"n", "at", "prev", "digest", "hash", "salt", "record"}``. ``digest`` is SHA-256 over ``salt`` and
``record``, ``hash`` over ``n``, ``at``, ``prev`` and ``digest``, and ``prev`` is the hash of the line before, also
across years. So a line that is changed, moved or taken out from between others is noticed; that lines at the end are
gone is noticed by whoever kept the last hash. Since the chain holds digests alone, a record can be erased (its salt
goes with it) and the chain still verifies: the line then says ``erased`` and the receipt's id, or ``withheld`` in
somebody else's export.

``run_events`` tells the same as OpenLineage (https://openlineage.io/spec/2-0-2/OpenLineage.json), for catalogs.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from context_os.errors import ConfigurationError, StoreError
from context_os.model import Time, Value, utcnow

BEGINNING: Final = "0" * 64
"""What stands for the hash before the first line."""
_NAMESPACE: Final = uuid.UUID("0b0d7d55-7d3e-5b3c-9b55-0f2b7a0f6d31")
_PRODUCER: Final = "urn:context-os:lineage"
_SPEC: Final = "https://openlineage.io/spec"
COUNTS: Final = ("added", "changed", "unchanged", "removed", "quarantined", "refreshed")


class RunRecord(Value):
    """One connector's run over one repository. ``run_id`` is Dagster's, of a run that may hold several connectors;
    ``problem`` is the kind of error of a run that failed, without its text, which may quote the source."""

    run_id: str
    asset_key: str
    tenant: str
    store: str
    connector: str
    repository: str
    revision: str
    data_version: str
    outcome: Literal["complete", "fail"]
    problem: str = ""
    started_at: Time
    ended_at: Time
    counts: dict[str, int] = Field(default_factory=dict)
    items: int = 0


@dataclass(frozen=True)
class Line:
    """One line of a journal. ``record`` is None where it was erased or withheld, ``gone`` then says which and by
    what."""

    number: int
    at: str
    previous: str
    digest: str
    hash: str
    salt: str
    record: RunRecord | None
    gone: str = ""

    @classmethod
    def read(cls, text: str) -> Line:
        """Raises ValueError for what is no line."""
        held = json.loads(text)
        record = None if held["record"] is None else RunRecord.model_validate(held["record"])
        gone = next((f"{key} {held[key]}" for key in ("erased", "withheld") if key in held), "")
        return cls(
            held["n"], held["at"], held["prev"], held["digest"], held["hash"], held.get("salt", ""), record, gone
        )

    def text(self) -> str:
        held: dict[str, Any] = {"n": self.number, "at": self.at, "prev": self.previous, "digest": self.digest}
        held |= {"hash": self.hash, "salt": self.salt}
        held["record"] = None if self.record is None else self.record.model_dump(mode="json", by_alias=True)
        if self.gone:
            kind, _, by = self.gone.partition(" ")
            held[kind] = by
        return _canonical(held) + "\n"

    def without_record(self, gone: str) -> Line:
        return Line(self.number, self.at, self.previous, self.digest, self.hash, "", None, gone)

    def problems(self) -> Iterator[str]:
        """What is wrong with the line itself."""
        if self.hash != _line_hash(self.number, self.at, self.previous, self.digest):
            yield "its hash is not that of its content"
        if self.record is not None and self.digest != _digest(self.salt, self.record):
            yield "its record was changed"
        if self.record is None and not self.gone:
            yield "its record is missing, and nothing says why"


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _digest(salt: str, record: RunRecord) -> str:
    return hashlib.sha256(f"{salt}\n{_canonical(record.model_dump(mode='json', by_alias=True))}".encode()).hexdigest()


def _line_hash(number: int, at: str, previous: str, digest: str) -> str:
    return hashlib.sha256(f"{number}\n{at}\n{previous}\n{digest}".encode()).hexdigest()


class Journal:
    """The files of one state folder. Any number of processes may append: a lock keeps them apart."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "lineage"

    def append(self, record: RunRecord) -> Line:
        """Durable before this returns. What a process that was killed left of a line is cut off: nobody was told of it.
        Raises StoreError, also for a journal whose last line is damaged: a chain is not continued from there."""
        try:
            with self._locked():
                line = _next(self._last(), record)
                _append(self.folder / f"{line.at[:4]}.jsonl", line.text())
        except (OSError, ValueError) as error:
            raise StoreError(f"the run could not be written into the journal {self.folder}: {error}") from error
        return line

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9][0-9][0-9][0-9].jsonl"))

    def lines(self) -> Iterator[Line]:
        """Every line that can be read, oldest first; ``verify`` tells of the others."""
        for file in self.files():
            yield from (line for _, line in _read(file) if isinstance(line, Line))

    def of_run(self, run_id: str, asset_key: str) -> RunRecord | None:
        """What the journal says of one asset's part of a run."""
        wanted = (run_id, asset_key)
        records = (line.record for line in self.lines() if line.record)
        return next((each for each in records if (each.run_id, each.asset_key) == wanted), None)

    def erase(self, chosen: Callable[[RunRecord], bool], receipt: str) -> int:
        """Take these records out, leaving their places in the chain; says how many."""
        gone = 0
        with self._locked():
            for file in self.files():
                lines = [_erased(line, chosen, receipt) for line in _whole_lines(file)]
                erased = [after for before, after in lines if after is not before]
                if erased:
                    gone += len(erased)
                    _replace(file, "".join(after if isinstance(after, str) else after.text() for _, after in lines))
        return gone

    def _last(self) -> Line | None:
        for file in reversed(self.files()):
            _cut_torn_end(file)
            *_, last = [None, *file.read_bytes().splitlines()[-1:]]
            if last is not None:
                return Line.read(last.decode("utf-8"))
        return None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _next(last: Line | None, record: RunRecord) -> Line:
    number, previous = (last.number + 1, last.hash) if last else (1, BEGINNING)
    at, salt = utcnow().isoformat(timespec="milliseconds"), secrets.token_hex(16)
    digest = _digest(salt, record)
    return Line(number, at, previous, digest, _line_hash(number, at, previous, digest), salt, record)


_Either = Line | str


def _erased(line: _Either, chosen: Callable[[RunRecord], bool], receipt: str) -> tuple[_Either, _Either]:
    if isinstance(line, Line) and line.record is not None and chosen(line.record):
        return line, line.without_record(f"erased {receipt}")
    return line, line


def _whole_lines(file: Path) -> list[_Either]:
    """Every line, as its text where it is none of ours: a rewrite must not lose what it cannot read."""
    texts = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line if isinstance(line, Line) else texts[place - 1] for place, line in _read(file)]


def _read(file: Path) -> Iterator[tuple[int, Line | str]]:
    """``(place, line)`` with a complaint in the place of what is no line."""
    with file.open(encoding="utf-8", errors="replace") as held:
        for place, text in enumerate(held, start=1):
            try:
                yield place, Line.read(text)
            except (ValueError, KeyError, TypeError, ValidationError):
                yield place, "it is no line of a journal"


def _append(file: Path, text: str) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, text.encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def _cut_torn_end(file: Path) -> None:
    data = file.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(file, data.rfind(b"\n") + 1)


def _replace(file: Path, text: str) -> None:
    partial = file.with_suffix(".writing")
    handle = os.open(partial, os.O_WRONLY | os.O_TRUNC | os.O_CREAT, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    partial.replace(file)


class Verified(Value):
    """What ``verify`` found. ``first`` and ``last`` are line numbers, ``head`` is the last line's hash."""

    lines: int
    erased: int
    first: int
    last: int
    head: str
    problems: tuple[str, ...]


def verify(files: Sequence[Path], head: str = "", *, whole: bool = False) -> Verified:
    """Check the chain of one file, or of several that follow each other. With ``head``, the line of that hash must be
    there, which tells that nothing was cut off at the end; with ``whole``, the first line must be the journal's first.
    Raises ConfigurationError for a file that cannot be read."""
    problems: list[str] = []
    lines: list[Line] = []
    for file in files:
        try:
            for place, line in _read(file):
                if isinstance(line, str):
                    problems.append(f"{file.name}, line {place}: {line}")
                    continue
                problems += [f"{file.name}, line {place}: {each}" for each in line.problems()]
                problems += [f"{file.name}, line {place}: {each}" for each in _break(lines[-1:], line)]
                lines.append(line)
        except OSError as error:
            raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from None
    if head and head not in {line.hash for line in lines}:
        problems.append(f"no line has the hash {head}: what came up to it was cut off or is another journal's")
    if whole and lines and lines[0].number != 1:
        problems.append(f"it begins with line {lines[0].number}: what came before was cut off")
    return Verified(
        lines=len(lines),
        erased=sum(line.gone.startswith("erased") for line in lines),
        first=lines[0].number if lines else 0,
        last=lines[-1].number if lines else 0,
        head=lines[-1].hash if lines else BEGINNING,
        problems=tuple(problems),
    )


def _break(before: Sequence[Line], line: Line) -> Iterator[str]:
    if not before and line.number == 1 and line.previous != BEGINNING:
        yield "the first line follows another"
    if before and line.number != before[0].number + 1:
        yield f"line number {line.number} follows {before[0].number}: lines were taken out or moved"
    if before and line.previous != before[0].hash:
        yield "it does not follow the line before it: one was taken out, moved or changed"


def export(lines: Iterable[Line], tenant: str, since: datetime | None = None) -> Iterator[str]:
    """The journal's own lines from a time on, other tenants' records withheld: the chain verifies as it is."""
    for line in lines:
        if since is None or datetime.fromisoformat(line.at) >= since:
            foreign = line.record is not None and line.record.tenant != tenant
            yield (line.without_record("withheld tenant") if foreign else line).text()


# OpenLineage


def run_events(lines: Iterable[Line], tenant: str, since: datetime | None = None) -> Iterator[dict[str, Any]]:
    """Two RunEvents a record, START and its end. A Dagster run of several connectors is the parent of a run for each,
    whose id is made of its id and the asset's key, since a run in OpenLineage has one job."""
    for line in lines:
        record = line.record
        if record is not None and record.tenant == tenant and (since is None or record.ended_at >= since):
            end = "COMPLETE" if record.outcome == "complete" else "FAIL"
            yield _event(line, record, "START", record.started_at)
            yield _event(line, record, end, record.ended_at)


def _event(line: Line, record: RunRecord, kind: str, at: datetime) -> dict[str, Any]:
    ended = kind != "START"
    return {
        "eventType": kind,
        "eventTime": at.isoformat(timespec="milliseconds"),
        "producer": _PRODUCER,
        "schemaURL": f"{_SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent",
        "run": {"runId": run_uuid(line, record), "facets": _run_facets(record, ended)},
        "job": {"namespace": f"context-os/{record.tenant}", "name": record.asset_key, "facets": _job_facets()},
        "inputs": [_input(record)],
        "outputs": [_output(line, record, ended)],
    }


def run_uuid(line: Line, record: RunRecord) -> str:
    """Of one asset's part of a run."""
    return str(uuid.uuid5(_NAMESPACE, f"{record.run_id or line.hash}\n{record.asset_key}"))


def _facet(name: str, version: str, **values: Any) -> dict[str, Any]:
    return {"_producer": _PRODUCER, "_schemaURL": f"{_SPEC}/facets/{version}/{name}.json", **values}


def _run_facets(record: RunRecord, ended: bool) -> dict[str, Any]:
    facets: dict[str, Any] = {}
    if record.run_id:
        parent = {
            "run": {"runId": record.run_id},
            "job": {"namespace": f"context-os/{record.tenant}", "name": "ingest"},
        }
        facets["parent"] = _facet("ParentRunFacet", "1-2-0", **parent)
    if ended and record.problem:
        told = {"message": record.problem, "programmingLanguage": "Python"}
        facets["errorMessage"] = _facet("ErrorMessageRunFacet", "1-0-1", **told)
    return facets


def _job_facets() -> dict[str, Any]:
    kind = {"processingType": "BATCH", "integration": "DAGSTER", "jobType": "ASSET"}
    return {"jobType": _facet("JobTypeJobFacet", "2-0-4", **kind)}


def _input(record: RunRecord) -> dict[str, Any]:
    version = _facet("DatasetVersionDatasetFacet", "1-0-1", datasetVersion=record.revision or "none")
    name = f"{record.repository}@{record.revision}" if record.revision else record.repository
    return {"namespace": "git", "name": name, "facets": {"version": version}}


def _output(line: Line, record: RunRecord, ended: bool) -> dict[str, Any]:
    output: dict[str, Any] = {
        "namespace": record.store,
        "name": f"{record.tenant}/{record.repository}/{record.connector}",
        "facets": {"version": _facet("DatasetVersionDatasetFacet", "1-0-1", datasetVersion=record.data_version)},
    }
    if ended and record.outcome == "complete":
        # The specification's facet counts what was written; what else happened to the items is a facet of ours.
        written = record.counts.get("added", 0) + record.counts.get("changed", 0)
        counts = {"_producer": _PRODUCER, "_schemaURL": f"{_SPEC}/2-0-2/OpenLineage.json#/$defs/OutputDatasetFacet"}
        output["outputFacets"] = {
            "outputStatistics": _facet("OutputStatisticsOutputDatasetFacet", "1-0-2", rowCount=written),
            "contextOs_items": {**counts, **record.counts, "items": record.items, "journalLine": line.hash},
        }
    return output
