"""Portable backups of one tenant: made, listed, verified, restored, tried out and pruned.

A backup (its form is in ``archive``) holds every item of every confidentiality with its vectors, the ledger's part of
the tenant, the registered repositories, the statistics that queries read, and what else of the home cannot be made
again (``KEPT_FILES``). It is independent of the kind of store: what one wrote, another one restores.

A restore verifies everything first, then builds beside and takes over (see ``takeover``).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from pydantic import SecretStr

from context_os import archive, ledger, segments, takeover
from context_os.archive import LEDGER, MANIFEST, PAGE, Archive, Contents, Held, Keys, Writer
from context_os.errors import BackupError, BackupRefused, NotFound, StoreError
from context_os.ledger import Ledger, Scope
from context_os.model import KnowledgeItem, Time, Value, utcnow
from context_os.settings import Settings
from context_os.stores import Filter, KnowledgeStore, NativeBackup, Record
from context_os.takeover import Takeover
from context_os.vectors import VectorTable

if TYPE_CHECKING:
    import pyarrow as pa

KEPT_FILES: Final = (
    "access.db", "alerts.db", "feedback.db", "packs.db", "playbook.db", "lineage/**/*", "receipts/**/*", "keys/*.pub",
    "dagster/history/**/*.db", "dagster/schedules/*.db", "goldsets/runs/*/*.jsonl",
    "weights/*/*.toml",
)  # fmt: skip
"""What of the home no other source could give back, as patterns below it. Whoever adds such a file adds it here. Of a
SQLite file one state is copied. A restore puts a file back where there is none."""

_PIECE: Final = 1 << 20
_PARTIAL: Final = ".partial"

Progress = Callable[[str], None]
Skip = Callable[[KnowledgeItem], bool]
_T = TypeVar("_T")


class Summary(Value):
    """One backup in a list. What only its secret would tell is None; ``problem`` says why it cannot be used."""

    name: str
    path: Path
    created: Time | None = None
    bytes: int = 0
    encrypted: bool = False
    tenant: str | None = None
    store: str | None = None
    items: int | None = None
    vectors: int | None = None
    problem: str = ""


class Restored(Value):
    """``skipped`` items were in the backup and are not in the store, because the caller said so."""

    name: str
    tenant: str
    store: str
    items: int
    vectors: int
    scopes: int
    skipped: int
    seconds: float


class Drill(Value):
    """A restore for trial: ``differences`` tells the first of them, ``different`` how many there are."""

    name: str
    store: str
    items: int
    vectors: int
    different: int
    differences: tuple[str, ...]
    restore_seconds: float
    seconds: float


class Backups:
    """The backups in one folder, of the state of one home."""

    def __init__(self, home: Path, folder: Path, keys: Keys | None = None, progress: Progress = lambda _: None) -> None:
        self.home = home
        self.folder = folder
        self.keys = keys or Keys()
        self.progress = progress

    @classmethod
    def of(
        cls, settings: Settings, progress: Progress = lambda _: None, passphrase: SecretStr | None = None
    ) -> Backups:
        """As the settings say; a passphrase that was given otherwise goes before theirs."""
        chosen = settings.backup
        keys = Keys(passphrase or chosen.passphrase, chosen.recipients, chosen.identity)
        return cls(settings.make_home(), settings.backup_folder, keys, progress)

    @cached_property
    def _ledger(self) -> Ledger:
        return Ledger(self.home / "ledger.db")

    def create(self, store: KnowledgeStore, tenant: str) -> Summary:
        """Everything of a tenant, in one state of store and ledger: ingestions that write wait meanwhile. All or
        nothing. Raises BackupError where it cannot be written."""
        now = utcnow()
        name = f"{now:%Y%m%dT%H%M%S}Z-{secrets.token_hex(3)}"
        with self._partial(name) as folder:
            writer = Writer(folder, self.keys.writer())
            self.progress("waiting for ingestions to end their step")
            with self._ledger.alone():
                held = _Source(self.home, store, self._ledger, tenant, self.progress).write_to(writer)
            contents = writer.finish(name, now, tenant, store.name, held)
        return _summary(Archive(self.folder / name, self.keys), contents)

    @contextmanager
    def _partial(self, name: str) -> Iterator[Path]:
        """A folder that gets its name when it is whole, and goes when it cannot be; so does what makers left that
        died."""
        folder = self.folder / f"{name}{_PARTIAL}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._clear()
            folder.mkdir(mode=0o700)
            with (folder / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield folder
                (folder / "lock").unlink()
            _sync(folder)
            folder.rename(self.folder / name)
            _sync(self.folder)
        except OSError as error:
            raise BackupError(
                f"the backup cannot be written to {self.folder}: {error.strerror}; nothing is left"
            ) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _clear(self) -> None:
        for folder in self.folder.glob(f"*{_PARTIAL}"):
            try:
                with (folder / "lock").open("a") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            except BlockingIOError:
                continue

    def all(self) -> list[Summary]:
        """All that are whole by their name, the newest first, as their manifests tell: nothing is verified."""
        found = [Archive(path.parent, self.keys) for path in self.folder.glob(f"*/{MANIFEST}")]
        told = [_summary(each) for each in found if not each.folder.name.endswith(_PARTIAL)]
        return sorted(told, key=lambda each: (each.created is not None, each.created, each.name), reverse=True)

    def find(self, name: str = "newest") -> Archive:
        """One by its name, or the newest. Raises NotFound naming those that there are."""
        names = [each.name for each in self.all()]
        if name == "newest" and names:
            return Archive(self.folder / names[0], self.keys)
        if name not in names:
            raise NotFound(f"no backup {name!r} in {self.folder}; there are: {', '.join(names) or 'none yet'}")
        return Archive(self.folder / name, self.keys)

    def restore(
        self, name: str, store: KnowledgeStore, tenant: str, *, replace: bool = False, skip: Skip | None = None
    ) -> Restored:
        """Put a backup's content in place of all that the tenant has. Raises BackupRefused, before anything is touched,
        where the backup has a problem, is another tenant's, or would overwrite something without ``replace``.

        Killed at any moment, this leaves the old state or the new one. Items for which ``skip`` is true are left out,
        with all that the ledger and the statistics say of them.
        """
        backup = self.find(name)
        self.progress(f"verifying {backup.folder.name}")
        backup.check()
        if backup.contents.tenant != tenant:
            raise BackupRefused(
                f"{backup.folder.name} holds the tenant {backup.contents.tenant!r}, not {tenant!r}; "
                f"say --tenant {backup.contents.tenant}"
            )
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        return _restore(backup, self.home, store, self._ledger, replace=replace, skip=skip, progress=self.progress)

    def drill(self, name: str, store: KnowledgeStore) -> Drill:
        """Restore into a scratch store of the same kind, compare every item and vector with the backup, and drop it.
        The tenant's own data is not touched."""
        started = time.monotonic()
        backup = self.find(name)
        self.progress(f"verifying {backup.folder.name}")
        backup.check()
        with _scratch(self.home, store, backup.contents.tenant) as (home, scratch):
            books = Ledger(home / "ledger.db")
            restored = _restore(backup, home, scratch, books, replace=False, skip=None, progress=self.progress)
            self.progress("comparing")
            found = list(islice(_differences(backup, scratch), 10_000))
        return Drill(
            name=backup.folder.name,
            store=scratch.name,
            items=restored.items,
            vectors=restored.vectors,
            different=len(found),
            differences=tuple(found[:20]),
            restore_seconds=restored.seconds,
            seconds=round(time.monotonic() - started, 3),
        )

    def prune(self, daily: int, weekly: int) -> tuple[list[Summary], list[Summary]]:
        """Delete all but the last backup of each of the last ``daily`` days and ``weekly`` weeks (in UTC) that have
        one, and the newest that is not damaged. Returns what was kept and what is gone; with none that is whole, all
        stays."""
        found = self.all()
        good = next((each for each in found if not Archive(each.path, self.keys).damage()), None)
        if good is None:
            return found, []
        kept = {good.name} | _last_of_each(found, daily, lambda day: day)
        kept |= _last_of_each(found, weekly, lambda day: day.isocalendar()[:2])
        gone = [each for each in found if each.name not in kept]
        for each in gone:
            # Without its manifest it is in no list any more, however far this gets.
            (each.path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(each.path)
        return [each for each in found if each.name in kept], gone


def create_native(store: KnowledgeStore, *, incremental: bool) -> NativeBackup:
    """A backup by the store's own server, of all tenants. Incremental: on top of the last such backup that succeeded.
    Raises StoreRejected where the store has none."""
    name = f"context-os-{utcnow():%Y%m%dt%H%M%S}-{secrets.token_hex(3)}"
    done = [each.name for each in store.native_backups() if each.status == "SUCCESS"]
    if incremental and not done:
        raise BackupError("there is no native backup yet that another could be on top of; make a whole one first")
    return store.native_backup(name, done[-1] if incremental else "")


def _last_of_each(found: Sequence[Summary], number: int, period: Callable[[date], object]) -> set[str]:
    """The names of the newest of each period, of so many periods; ``found`` is newest first."""
    newest: dict[object, str] = {}
    for each in found:
        if each.created is not None:
            newest.setdefault(period(each.created.date()), each.name)
    return set(islice(newest.values(), number))


def _summary(backup: Archive, contents: Contents | None = None) -> Summary:
    name, path = backup.folder.name, backup.folder
    try:
        manifest = backup.manifest
    except BackupError as error:
        return Summary(name=name, path=path, problem=str(error))
    told = contents or manifest.contents
    return Summary(
        name=name,
        path=path,
        created=manifest.created,
        bytes=sum(each.bytes for each in manifest.files),
        encrypted=manifest.encryption is not None,
        tenant=told.tenant if told else None,
        store=told.store if told else None,
        items=told.items if told else None,
        vectors=told.vectors if told else None,
    )


# Writing


@dataclass(frozen=True)
class _Source:
    """What is to be backed up. Nobody else writes meanwhile."""

    home: Path
    store: KnowledgeStore
    ledger: Ledger
    tenant: str
    progress: Progress

    def write_to(self, writer: Writer) -> tuple[Held, ...]:
        scopes = self.ledger.scopes(self.store.identity, self.tenant)
        versions = ["", *sorted({version for scope in scopes for version in self.ledger.count_vectors(scope)} - {""})]
        counts: Counter[tuple[str, str]] = Counter()
        vectors: Counter[tuple[str, str, str]] = Counter()
        writer.add("items", self._items(versions, counts, vectors))
        for table in ledger.TABLES:
            rows = self.ledger.export(table, self.store.identity, self.tenant)
            writer.add(LEDGER + table, archive.tables(rows, self.ledger.columns(table)))
        others = {"repositories": self._repositories(), "statistics": self._statistics(scopes), "files": self._files()}
        for table, rows in others.items():
            writer.add(table, archive.tables(rows, archive.TABLES[table]))
        return tuple(
            Held(
                repository=repository,
                connector=connector,
                items=number,
                vectors={v: vectors[repository, connector, v] for v in versions if vectors[repository, connector, v]},
            )
            for (repository, connector), number in sorted(counts.items())
        )

    def _repositories(self) -> Iterator[dict[str, Any]]:
        for each in self.ledger.repositories():
            yield {"name": each.name, "location": str(each.location), "revision": each.revision}

    def _items(
        self,
        versions: Sequence[str],
        counts: Counter[tuple[str, str]],
        vectors: Counter[tuple[str, str, str]],
    ) -> Iterator[pa.RecordBatch]:
        access = takeover.access(self.tenant)
        cursor: str | None = None
        told = time.monotonic()
        while True:
            page = self.store.scan(access, Filter(), cursor, PAGE)
            ids = [item.id for item in page.items]
            kept = {version: self.store.vectors(access, ids, version) for version in versions}
            records = [
                Record(
                    item, vectors={version: kept[version][item.id] for version in versions if item.id in kept[version]}
                )
                for item in page.items
            ]
            for record in records:
                place = record.item.source.repository, record.item.source.type
                counts[place] += 1
                vectors.update((*place, version) for version in record.vectors)
            if records:
                yield archive.batch(records)
            if time.monotonic() - told > 2:
                told = time.monotonic()
                self.progress(f"{counts.total():,} items")
            if page.cursor is None:
                return
            cursor = page.cursor

    def _statistics(self, scopes: Sequence[Scope]) -> Iterator[dict[str, Any]]:
        for scope in scopes:
            files = {"segment": segments.segment_file(self.home, scope.id, scope.generation)}
            tables = (self.home / "corpus").glob(f"vectors-{scope.id}-*.npy")
            files |= {file.stem.removeprefix(f"vectors-{scope.id}-"): file for file in tables}
            for name, file in files.items():
                if file.is_file():
                    yield from ({"scope": scope.id, "file": name, "data": data} for data in _pieces(file))

    def _files(self) -> Iterator[dict[str, Any]]:
        for file in sorted({file for pattern in KEPT_FILES for file in self.home.glob(pattern) if file.is_file()}):
            with _at_rest(file) as copy:
                path = file.relative_to(self.home).as_posix()
                yield from ({"path": path, "data": data} for data in _pieces(copy))


@contextmanager
def _at_rest(file: Path) -> Iterator[Path]:
    """The file, or a copy in one state where it is a database that others may be writing to."""
    with file.open("rb") as opened:
        database = opened.read(16) == b"SQLite format 3\0"
    if not database:
        yield file
        return
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".copy-") as folder:
        copy = Path(folder) / "copy"
        try:
            with closing(sqlite3.connect(file, timeout=30)) as source, closing(sqlite3.connect(copy)) as target:
                source.backup(target)
        except sqlite3.Error as error:
            raise BackupError(f"{file} cannot be copied: {error}") from error
        yield copy


def _pieces(file: Path) -> Iterator[bytes]:
    """Of an empty file one, so that it is not forgotten."""
    with file.open("rb") as opened:
        data = opened.read(_PIECE)
        yield data
        while data := opened.read(_PIECE):
            yield data


# Restoring


def _restore(
    backup: Archive,
    home: Path,
    store: KnowledgeStore,
    held: Ledger,
    *,
    replace: bool,
    skip: Skip | None,
    progress: Progress,
) -> Restored:
    started = time.monotonic()
    tenant = backup.contents.tenant
    with (
        held.alone(),
        takeover.begun(home, store, held, tenant, f"restore{secrets.token_hex(6)}", backup.folder.name) as step,
    ):
        if not replace:
            _refuse_to_overwrite(store, held, tenant)
        build = _Build(backup, step, skip or (lambda _: False), progress)
        build.all()
        step.decide(build.items, len(build.scopes))
        progress("taking over")
        step.carry_out()
    return Restored(
        name=backup.folder.name,
        tenant=tenant,
        store=store.identity,
        items=build.items,
        vectors=build.vectors,
        scopes=len(build.scopes),
        skipped=len(build.skipped),
        seconds=round(time.monotonic() - started, 3),
    )


def _refuse_to_overwrite(store: KnowledgeStore, held: Ledger, tenant: str) -> None:
    there = store.count(takeover.access(tenant), Filter())
    if there or any(scope.generation for scope in held.scopes(store.identity, tenant)):
        raise BackupRefused(
            f"the tenant {tenant!r} is not empty ({there:,} items in {store.identity}); --replace puts the backup in "
            "place of all that it has"
        )


class _Build:
    """What a restore makes beside the present state."""

    def __init__(self, backup: Archive, step: Takeover, skip: Skip, progress: Progress) -> None:
        self.items = self.vectors = 0
        self.skipped: set[str] = set()
        self.scopes: dict[int, int] = {}
        """New numbers by those of the backup."""
        self._backup = backup
        self._step = step
        self._skip = skip
        self._progress = progress
        self._thinned: set[tuple[str, str]] = set()
        """(repository, connector) of what was skipped: statistics of it would still tell."""
        self._erased: Counter[int] = Counter()
        """Entries that were skipped, by the number of their scope in the backup."""

    def all(self) -> None:
        self._write_items()
        for table in ledger.TABLES:
            self._write_ledger(table)
        self._register()
        self._write_statistics()
        self._write_files()

    def _write_items(self) -> None:
        total, told = self._backup.contents.items, time.monotonic()
        beside = self._step.store.beside(self._step.journal.name)
        with beside:
            for records in self._backup.records():
                kept = [record for record in records if not self._skip(record.item)]
                if len(kept) < len(records):
                    self._note_skipped(records, kept)
                if kept and beside.upsert(self._step.access, kept).written != len(kept):
                    raise StoreError(f"the store kept fewer items than it was given of {self._backup.folder.name}")
                self.items += len(kept)
                self.vectors += sum(len(record.vectors) for record in kept)
                if time.monotonic() - told > 2:
                    told = time.monotonic()
                    self._progress(f"{self.items:,} of {total:,} items")

    def _note_skipped(self, records: Sequence[Record], kept: Sequence[Record]) -> None:
        ids = {record.item.id for record in kept}
        for item in (record.item for record in records if record.item.id not in ids):
            self.skipped.add(item.id)
            self._thinned.add((item.source.repository, item.source.type))

    def _write_ledger(self, table: str) -> None:
        held, journal = self._step.ledger, self._step.journal
        now = {
            (each.repository, each.connector): each.generation for each in held.scopes(journal.store, journal.tenant)
        }
        for rows in self._backup.rows(LEDGER + table):
            if table == "scopes":
                # Beyond the present one: a staging that was made for it must not pass for one of what is restored.
                for row in rows:
                    if row["generation"]:
                        present = now.get((row["repository"], row["connector"]), -1)
                        row["generation"] = max(row["generation"], present + 1)
            elif table in {"entries", "pending", "vectors"}:
                if table == "entries":
                    self._erased.update(row["scope"] for row in rows if row["id"] in self.skipped)
                rows = [row for row in rows if row["id"] not in self.skipped]  # noqa: PLW2901
            elif table == "tallies":
                for row in (row for row in rows if row["outcome"] == "erased"):
                    row["items"] += self._erased.pop(row["scope"], 0)
            held.take_in(table, rows, journal.beside, self.scopes)
        if table == "tallies":
            left_out = [{"scope": scope, "outcome": "erased", "items": n} for scope, n in self._erased.items()]
            held.take_in(table, left_out, journal.beside, self.scopes)

    def _register(self) -> None:
        """Those that this home does not know: one that it knows may lie elsewhere on this machine."""
        held = self._step.ledger
        known = {each.name for each in held.repositories()}
        for rows in self._backup.rows("repositories"):
            for row in rows:
                if row["name"] not in known:
                    held.register(row["name"], Path(row["location"]), row["revision"])

    def _write_statistics(self) -> None:
        scopes = {
            scope.id: scope for scope in self._step.ledger.scopes(self._step.journal.beside, self._step.journal.tenant)
        }
        lacking = {id for id, scope in scopes.items() if scope.generation}
        pieces = ((row["scope"], row["file"], row["data"]) for rows in self._backup.rows("statistics") for row in rows)
        for (old, name), data in _grouped(pieces):
            scope = scopes[self.scopes[old]]
            thinned = (scope.repository, scope.connector) in self._thinned
            if name == "segment" and not thinned:
                lacking.discard(scope.id)
                _append(segments.segment_file(self._step.home, scope.id, scope.generation), data)
            elif name != "segment":
                file = self._step.home / "corpus" / f"vectors-{scope.id}-{name}.npy"
                _append(file, data)
                table = VectorTable.load(file) if thinned else None
                if table is not None:
                    table.without(self.skipped).save(file)
        for id in sorted(lacking):
            self._count_anew(scopes[id])

    def _count_anew(self, scope: Scope) -> None:
        additions = segments.Additions()
        for records in self._backup.records():
            for item in (record.item for record in records if record.item.id not in self.skipped):
                if (item.source.repository, item.source.type) == (scope.repository, scope.connector):
                    additions.extend([item])
        file = segments.segment_file(self._step.home, scope.id, scope.generation)
        segments.Segment.empty().with_(additions).save(file)

    def _write_files(self) -> None:
        pieces = (("", row["path"], row["data"]) for rows in self._backup.rows("files") for row in rows)
        for (_, path), data in _grouped(pieces):
            target = (self._step.files / path).resolve()
            if not target.is_relative_to(self._step.files.resolve()):
                raise BackupRefused(f"the backup holds a file {path!r} that does not belong into a home")
            _append(target, data)


def _grouped(pieces: Iterable[tuple[_T, str, bytes]]) -> Iterator[tuple[tuple[_T, str], Iterator[bytes]]]:
    """Files that come in pieces, each with the iterator of its pieces."""
    for key, group in groupby(pieces, key=lambda piece: piece[:2]):
        yield key, (data for *_, data in group)


def _append(file: Path, data: Iterable[bytes]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with file.open("wb") as opened:
        opened.writelines(data)
    file.chmod(0o600)


# Trying out


@contextmanager
def _scratch(home: Path, store: KnowledgeStore, tenant: str) -> Iterator[tuple[Path, KnowledgeStore]]:
    """A home and a store for a trial, gone afterwards; what a trial left that died goes first."""
    folder = home / "drill"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    name = f"drill{hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:8]}"
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackupRefused(f"another drill is at work in {folder}; wait for its end") from None
        with store.scratch(folder, name) as scratch:

            def clear() -> None:
                takeover.recover(folder / "home", scratch, lambda: Ledger(folder / "home" / "ledger.db"))
                scratch.drop_tenant(takeover.access(tenant))
                shutil.rmtree(folder / "home", ignore_errors=True)

            clear()
            (folder / "home").mkdir(mode=0o700)
            try:
                yield folder / "home", scratch
            finally:
                clear()
        shutil.rmtree(folder, ignore_errors=True)


def _differences(backup: Archive, store: KnowledgeStore) -> Iterator[str]:
    """Every item and vector of the backup that the store does not hold as it is; what expired is in no store."""
    access = takeover.access(backup.contents.tenant)
    total = 0
    for records in backup.records():
        ids = [record.item.id for record in records]
        found = {item.id: item for item in store.get(access, ids)}
        versions = {version for record in records for version in record.vectors}
        vectors = {version: store.vectors(access, ids, version) for version in versions}
        total += len(found)
        now = utcnow()
        for record in records:
            item = found.get(record.item.id)
            if item != record.item and record.item.expires_at > now:
                yield f"{record.item.id}: {'missing' if item is None else 'another item'}"
            elif item is not None:
                yield from _other_vectors(record, vectors)
    there = store.count(access, Filter())
    if there > total:
        yield f"{there - total:,} items that the backup does not hold"


def _other_vectors(record: Record, found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    # A store that keeps one vector an item keeps the last that it was given.
    last = next(reversed(list(record.vectors)), None)
    for version, vector in record.vectors.items():
        other = found[version].get(record.item.id)
        if version == last if other is None else not np.array_equal(other, vector):
            yield f"{record.item.id}: another vector of {version or 'no version'}"


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
