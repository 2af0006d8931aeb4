"""The form of a backup on disk: a folder of Parquet files and one ``manifest.json``.

The manifest has the size and SHA-256 of every file, and one of its own text; each byte of the folder is covered by one
of them. Encrypted, the files' names say nothing, and what the manifest would tell of the content is itself an encrypted
file. Files are small enough to be held in memory one at a time: what is read is what was verified, and nothing is
decrypted to a disk.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from pydantic import Field, SecretStr, ValidationError

from context_os import __version__, encryption, ledger
from context_os.encryption import Cipher, Encryption
from context_os.errors import BackupError, BackupRefused
from context_os.model import KnowledgeItem, Time, Value
from context_os.stores import Record

if TYPE_CHECKING:
    from datetime import datetime

    import pyarrow as pa
    import pyarrow.parquet as pq

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
PAGE: Final = 1_000
"""Items held in memory at a time."""
LEDGER: Final = "ledger_"
"""Before the name of a table of the ledger."""
TABLES: Final[Mapping[str, Mapping[str, str]]] = {
    "repositories": {"name": "TEXT", "location": "TEXT", "revision": "TEXT"},
    "statistics": {"scope": "INTEGER", "file": "TEXT", "data": "BLOB"},
    "files": {"path": "TEXT", "data": "BLOB"},
}
"""The tables besides ``items`` and the ledger's, whose columns are its own. Files come in pieces, one by one."""

_ITEMS: Final = ("id", "repository", "connector", "item", "vectors")
_SEALED: Final = "contents"
_PART: Final = 16 << 20
"""Bytes of a file, about: it is closed when it is larger."""
_PIECES: Final = 8
"""Of files, held in memory at a time."""


class Stored(Value):
    """A file of a backup as it lies there."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    bytes: int
    sha256: str


class Part(Value):
    """What a file holds: ``rows`` of a table."""

    name: str
    table: str
    rows: int


class Held(Value):
    """Items that one connector made of one repository, and their vectors by version."""

    repository: str
    connector: str
    items: int
    vectors: dict[str, int] = Field(default_factory=dict)


class Contents(Value):
    """What a backup holds. ``store`` is the kind of store it is from, ``ledger`` the format of the ledger's rows."""

    tenant: str
    store: str
    ledger: int
    held: tuple[Held, ...]
    parts: tuple[Part, ...]

    @property
    def items(self) -> int:
        return sum(each.items for each in self.held)

    @property
    def vectors(self) -> int:
        return sum(sum(each.vectors.values()) for each in self.held)

    def rows(self, table: str) -> int:
        return sum(part.rows for part in self.parts if part.table == table)


class Manifest(Value):
    """``contents`` is None where it is encrypted. ``digest`` is the SHA-256 of all the rest as JSON."""

    format: int
    name: str
    created: Time
    tool: str
    encryption: Encryption | None
    files: tuple[Stored, ...]
    contents: Contents | None
    digest: str = ""

    def sealed(self) -> Manifest:
        """With its digest."""
        return self.model_copy(update={"digest": hashlib.sha256(_json(self, exclude={"digest"})).hexdigest()})


@dataclass(frozen=True)
class Keys:
    """The secrets of backups. Raises from ``encryption`` only when one is needed."""

    passphrase: SecretStr | None = None
    recipients: tuple[str, ...] = ()
    identity: Path | None = None

    def writer(self) -> Cipher | None:
        return encryption.writer(self.passphrase, self.recipients)

    def reader(self, about: Encryption) -> Cipher:
        return encryption.reader(about, self.passphrase, self.identity)


# Writing


class Writer:
    """Parquet files below a size, encrypted where there is a cipher, each on the disk before the next is begun."""

    def __init__(self, folder: Path, cipher: Cipher | None) -> None:
        self._files: list[Stored] = []
        self._parts: list[Part] = []
        self._folder = folder
        self._cipher = cipher

    def finish(self, name: str, created: datetime, tenant: str, store: str, held: Sequence[Held]) -> Contents:
        """Write the manifest, which makes the folder an archive."""
        contents = Contents(
            tenant=tenant, store=store, ledger=ledger.FORMAT, held=tuple(held), parts=tuple(self._parts)
        )
        if self._cipher is not None:
            self._add_file(_SEALED, _json(contents))
        manifest = Manifest(
            format=FORMAT,
            name=name,
            created=created,
            tool=__version__,
            encryption=self._cipher.about if self._cipher is not None else None,
            files=tuple(self._files),
            contents=contents if self._cipher is None else None,
        )
        _write(self._folder / MANIFEST, _json(manifest.sealed()))
        return contents

    def add(self, table: str, batches: Iterable[pa.RecordBatch | pa.Table]) -> None:
        import pyarrow.parquet as pq

        buffer, rows, parquet = BytesIO(), 0, None
        for batch in batches:
            parquet = parquet or pq.ParquetWriter(buffer, batch.schema, compression="zstd")
            parquet.write(batch)
            rows += batch.num_rows
            if buffer.tell() > _PART:
                parquet.close()
                self._close(table, buffer, rows)
                buffer, rows, parquet = BytesIO(), 0, None
        if parquet is not None:
            parquet.close()
            self._close(table, buffer, rows)

    def _close(self, table: str, buffer: BytesIO, rows: int) -> None:
        number = f"{len(self._files):05}"
        name = f"{table}-{number}.parquet" if self._cipher is None else f"{number}.bin"
        self._parts.append(Part(name=name, table=table, rows=rows))
        self._add_file(name, buffer.getvalue())

    def _add_file(self, name: str, plain: bytes) -> None:
        data = plain
        if self._cipher is not None:
            sealed = BytesIO()
            self._cipher.encrypt(BytesIO(plain), sealed)
            data = sealed.getvalue()
        _write(self._folder / name, data)
        self._files.append(Stored(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))


def tables(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> Iterator[pa.Table]:
    """Rows, some at a time, under the schema that SQLite's types give."""
    import pyarrow as pa

    kinds: dict[str, pa.DataType] = {"INTEGER": pa.int64(), "TEXT": pa.string(), "BLOB": pa.binary()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in columns.items()])
    iterator = iter(rows)
    while batch := list(islice(iterator, _PIECES if "data" in columns else PAGE)):
        yield pa.Table.from_pylist([dict(row) for row in batch], schema=schema)


def batch(records: Sequence[Record]) -> pa.RecordBatch:
    """Items as JSON, each with its vectors as little-endian numbers of single precision."""
    import pyarrow as pa

    given = [list(record.vectors.items()) for record in records]
    flat = [vector for each in given for _, vector in each]
    ends = np.cumsum([0, *(len(vector) for vector in flat)], dtype=np.int32)
    numbers = np.concatenate(flat) if flat else np.empty(0, np.float32)
    versions = pa.array([version for each in given for version, _ in each], pa.string())
    vectors = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(numbers, pa.float32()))
    both = pa.StructArray.from_arrays([versions, vectors], ["version", "vector"])
    starts = np.cumsum([0, *map(len, given)], dtype=np.int32)
    items = [record.item for record in records]
    columns = [
        pa.array([item.id for item in items], pa.string()),
        pa.array([item.source.repository for item in items], pa.string()),
        pa.array([item.source.type for item in items], pa.string()),
        pa.array([item.model_dump_json(by_alias=True) for item in items], pa.string()),
        pa.ListArray.from_arrays(pa.array(starts, pa.int32()), both),
    ]
    return pa.RecordBatch.from_arrays(columns, list(_ITEMS))


def _records(batch: pa.RecordBatch) -> list[Record]:
    """What ``batch`` made."""
    column: Any = batch.column("vectors")
    starts = column.offsets.to_pylist()
    both = column.values
    versions = both.field("version").to_pylist()
    lists = both.field("vector")
    ends, numbers = lists.offsets.to_pylist(), lists.values.to_numpy(zero_copy_only=False)
    records = []
    texts: list[Any] = batch.column("item").to_pylist()
    for number, text in enumerate(texts):
        places = range(starts[number], starts[number + 1])
        vectors = {versions[place]: numbers[ends[place] : ends[place + 1]] for place in places}
        records.append(Record(KnowledgeItem.model_validate_json(text), vectors=vectors))
    return records


# Reading


class Archive:
    """One backup on disk, of which nothing is believed until it was checked."""

    def __init__(self, folder: Path, keys: Keys) -> None:
        self.folder = folder
        self._keys = keys

    @cached_property
    def manifest(self) -> Manifest:
        """Raises BackupError where it is damaged or of a newer format."""
        try:
            data = (self.folder / MANIFEST).read_bytes()
            values = json.loads(data)
            if isinstance(values, dict) and isinstance(values.get("format"), int) and values["format"] > FORMAT:
                raise BackupError(
                    f"{MANIFEST}: format {values['format']} is of a newer Context-OS; this knows {FORMAT}"
                )
            manifest = Manifest.model_validate(values)
        except OSError as error:
            raise BackupError(f"{MANIFEST} cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise BackupError(f"{MANIFEST} is damaged: it is not as it was written") from None
        if _json(manifest.sealed()) != data:
            raise BackupError(f"{MANIFEST} is damaged: its digest is another one")
        return manifest

    @cached_property
    def cipher(self) -> Cipher | None:
        about = self.manifest.encryption
        return self._keys.reader(about) if about is not None else None

    @property
    def readable(self) -> bool:
        """Whether its secret is here, where it has one. The right one or not."""
        try:
            return self.manifest.encryption is None or self.cipher is not None
        except BackupError:
            return False

    @cached_property
    def contents(self) -> Contents:
        """Raises BackupError without the right secret."""
        if self.manifest.contents is not None:
            return self.manifest.contents
        try:
            return Contents.model_validate_json(self._plain(_SEALED))
        except ValidationError as error:
            raise BackupError(f"{_SEALED}: not of this format: {error.error_count()} problems") from None

    def damage(self) -> list[str]:
        """What is wrong with the files as they lie there: needs no secret."""
        try:
            manifest = self.manifest
        except BackupError as error:
            return [str(error)]
        return [problem for each in manifest.files if (problem := self._damage(each))]

    def _damage(self, file: Stored) -> str:
        try:
            with (self.folder / file.name).open("rb") as opened:
                actual = hashlib.file_digest(opened, "sha256").hexdigest()
                size = opened.tell()
        except FileNotFoundError:
            return f"{file.name} is missing"
        except OSError as error:
            return f"{file.name} cannot be read: {error.strerror}"
        if size != file.bytes:
            return f"{file.name} has {size:,} bytes instead of {file.bytes:,}"
        return "" if actual == file.sha256 else f"{file.name} is damaged: its SHA-256 is another one"

    def problems(self) -> list[str]:
        """Everything that is wrong: files, their form, their numbers. Of an encrypted one this needs the secret."""
        found = self.damage()
        if found:
            return found
        try:
            return list(self._mistakes())
        except BackupError as error:
            return [str(error)]

    def _mistakes(self) -> Iterator[str]:
        contents = self.contents
        if contents.ledger > ledger.FORMAT:
            yield f"the ledger's format {contents.ledger} is of a newer Context-OS; this one knows {ledger.FORMAT}"
        listed = {each.name for each in self.manifest.files} - {_SEALED}
        if listed != {part.name for part in contents.parts}:
            yield "the manifest lists other files than the content is made of"
            return
        counts: Counter[tuple[str, str]] = Counter()
        vectors = 0
        for part in contents.parts:
            parquet = self._parquet(part)
            columns = _ITEMS if part.table == "items" else tuple(TABLES.get(part.table, ()))
            if columns and tuple(parquet.schema_arrow.names) != columns:
                yield f"{part.name} has the columns {parquet.schema_arrow.names} instead of {list(columns)}"
            elif parquet.metadata.num_rows != part.rows:
                yield f"{part.name} has {parquet.metadata.num_rows:,} rows instead of {part.rows:,}"
            elif part.table == "items":
                table: Any = parquet.read(["repository", "connector", "vectors"])
                counts.update(zip(table["repository"].to_pylist(), table["connector"].to_pylist(), strict=True))
                vectors += sum(len(chunk.values) for chunk in table["vectors"].chunks)
        if counts != {(each.repository, each.connector): each.items for each in contents.held}:
            yield "the items are not as many as the manifest says"
        if vectors != contents.vectors:
            yield f"there are {vectors:,} vectors instead of {contents.vectors:,}"

    def check(self) -> None:
        """Raises BackupRefused with every problem."""
        found = self.problems()
        if found:
            raise BackupRefused(f"the backup {self.folder.name} cannot be used:", tuple(found))

    def records(self) -> Iterator[list[Record]]:
        """The items, some at a time."""
        for batch in self._batches("items"):
            yield _records(batch)

    def rows(self, table: str) -> Iterator[list[dict[str, Any]]]:
        """A table's rows, some at a time."""
        for batch in self._batches(table):
            yield batch.to_pylist()

    def _batches(self, table: str) -> Iterator[pa.RecordBatch]:
        for part in self.contents.parts:
            if part.table == table:
                yield from self._parquet(part).iter_batches(batch_size=PAGE)

    def _parquet(self, part: Part) -> pq.ParquetFile:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.ParquetFile(BytesIO(self._plain(part.name)))
        except (pa.ArrowException, OSError) as error:
            raise BackupError(f"{part.name} is no Parquet file: {error}") from None

    def _plain(self, name: str) -> bytes:
        """What was verified may have changed since: looked at once more, and then no longer on the disk."""
        file = next((each for each in self.manifest.files if each.name == name), None)
        try:
            data = (self.folder / name).read_bytes()
        except OSError as error:
            raise BackupError(f"{name} cannot be read: {error.strerror}") from None
        if file is None or hashlib.sha256(data).hexdigest() != file.sha256:
            raise BackupError(f"{name} is damaged: its SHA-256 is another one")
        if self.cipher is None:
            return data
        plain = BytesIO()
        try:
            self.cipher.decrypt(BytesIO(data), plain)
        except BackupError as error:
            raise BackupError(f"{name}: {error}") from None
        return plain.getvalue()


# Files


def _json(value: Value, exclude: set[str] | None = None) -> bytes:
    """The one way to write a value, so that every byte of a manifest counts."""
    values = value.model_dump(mode="json", by_alias=True, exclude=exclude)
    return (json.dumps(values, ensure_ascii=True, sort_keys=True, indent=1) + "\n").encode()


def _write(file: Path, data: bytes) -> None:
    """On the disk before this returns."""
    with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())
