"""What ingestion keeps of every scope's text so that a query need not read it: postings, lengths, names, paths.

A **segment** holds the statistics of one scope (one connector over one repository) as of one generation of the ledger,
in one file of plain arrays. Ingestion replaces it as a whole after the store has the data and before the ledger
advances, so that a run which is killed leaves the former segment in use. Beside it stands the table of its documents'
vectors.
"""

from __future__ import annotations

import hashlib
import os
import uuid
import zipfile
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from context_os import telemetry
from context_os.model import KnowledgeItem, Relation, id_bytes
from context_os.text import identifier_parts, words
from context_os.vectors import VectorTable

_FORMAT: Final = 3
_READABLE: Final = (2, _FORMAT)
_SEPARATOR: Final = "\n"

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_Table = tuple[NDArray[np.int32], NDArray[np.int32]]
"""Terms in order, and whose each is."""


@dataclass(frozen=True, eq=False)
class Segment:
    """Documents are numbered from 0, so are terms and files. Postings are sorted by term, then document.

    ``foreign`` are the ids that are no UUIDs. Per document (n,): ``id`` (16 bytes each, see ``id_bytes``),
    ``doc_file`` (-1 for none), ``kind``, ``length`` in words, ``clearance``, ``expires_at`` in milliseconds,
    ``start`` and ``end`` lines. ``word`` are the terms of all documents as they follow each other, ``length`` of each:
    its title's and then its text's. Postings (p,): ``post_term``, ``post_doc``, ``post_count``. ``name_*`` are the
    parts of what a document defines, ``path_*`` the words of a file's path, ``touch_*`` the files that a document says
    it changed, ``symbol_*`` the hashed names it defines and ``link_*`` those that its relations point to with their
    confidence, both sorted by hash.
    """

    terms: tuple[str, ...]
    paths: tuple[str, ...]
    kinds: tuple[str, ...]
    foreign: tuple[str, ...]
    id: NDArray[np.void]
    doc_file: NDArray[np.int32]
    kind: NDArray[np.uint8]
    length: NDArray[np.uint32]
    clearance: NDArray[np.uint8]
    expires_at: NDArray[np.int64]
    start: NDArray[np.int32]
    end: NDArray[np.int32]
    word: NDArray[np.int32]
    post_term: NDArray[np.int32]
    post_doc: NDArray[np.int32]
    post_count: NDArray[np.uint16]
    name_doc: NDArray[np.int32]
    name_term: NDArray[np.int32]
    path_file: NDArray[np.int32]
    path_term: NDArray[np.int32]
    touch_doc: NDArray[np.int32]
    touch_file: NDArray[np.int32]
    symbol_hash: NDArray[np.uint64]
    symbol_doc: NDArray[np.int32]
    link_hash: NDArray[np.uint64]
    link_doc: NDArray[np.int32]
    link_share: NDArray[np.float32]

    @classmethod
    def empty(cls) -> Self:
        arrays: dict[str, Any] = {name: np.empty(0, dtype) for name, dtype in _DTYPES.items()}
        return cls(**arrays, terms=(), paths=(), kinds=(), foreign=())

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """The segment in a file; None where there is none, or none that this version can read."""
        try:
            with np.load(path, allow_pickle=False) as held:
                if int(held["format"]) not in _READABLE:
                    return None
                values: dict[str, Any] = {name: held[name] for name in _DTYPES if name != "word"}
                # Files of format 2 lack ``word``; those from before items had other ids than UUIDs, ``foreign``.
                values["word"] = held["word"] if "word" in held else np.empty(0, _DTYPES["word"])
                values |= {name: _unpacked(held[name]) if name in held else () for name in _TEXTS}
                return cls(**values)
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            return None

    def save(self, path: Path) -> None:
        """All or nothing, and on the disk before the ledger says that it is there: a run without changes would not miss
        it."""
        path.parent.mkdir(mode=0o700, exist_ok=True)
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _DTYPES}
        arrays |= {name: _packed(getattr(self, name)) for name in _TEXTS}
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez(file, format=np.int64(_FORMAT), **arrays)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """Terms' numbers."""
        return dict(zip(self.terms, range(len(self.terms)), strict=True))

    @cached_property
    def starts(self) -> Ints:
        """(terms + 1,) where each term's postings start."""
        return np.searchsorted(self.post_term, np.arange(len(self.terms) + 1))

    @property
    def is_complete(self) -> bool:
        """Whether it knows how words follow each other; earlier versions did not count that."""
        return len(self.word) == int(self.length.sum())

    @cached_property
    def first_word(self) -> Ints:
        """(documents,) where each one's words begin."""
        return np.cumsum(self.length, dtype=np.int64) - self.length

    @cached_property
    def _by_name_term(self) -> _Table:
        order = np.argsort(self.name_term, kind="stable")
        return self.name_term[order], self.name_doc[order]

    @cached_property
    def _by_path_term(self) -> _Table:
        order = np.argsort(self.path_term, kind="stable")
        return self.path_term[order], self.path_file[order]

    @cached_property
    def _by_file(self) -> _Table:
        order = np.argsort(self.doc_file, kind="stable").astype(np.int32)
        return self.doc_file[order], order

    def named(self, term: int) -> NDArray[np.int32]:
        """The documents that a term is part of the name of."""
        return _of(self._by_name_term, term)

    def on_path(self, term: int) -> NDArray[np.int32]:
        """The files whose path holds a term."""
        return _of(self._by_path_term, term)

    def documents_in(self, files: NDArray[np.int32]) -> NDArray[np.int32]:
        """The documents of some files."""
        held, docs = self._by_file
        first, last = np.searchsorted(held, files, "left"), np.searchsorted(held, files, "right")
        return docs[ranges(first, last - first)]

    @cached_property
    def _named(self) -> dict[bytes, str]:
        return {id_bytes(id): id for id in self.foreign}

    def id_of(self, doc: int) -> str:
        raw = self.id[doc].tobytes()
        return self._named.get(raw) or str(uuid.UUID(bytes=raw))

    @cached_property
    def by_id(self) -> Ints:
        """(documents,) in the order of ids."""
        return np.argsort(self.id.view("S16"), kind="stable")

    @cached_property
    def term_mass(self) -> Floats:
        """(terms,) idf by how many documents hold it."""
        return np.log(1 + max(len(self.id), 1) / np.maximum(np.diff(self.starts), 1))

    @cached_property
    def name_mass(self) -> Floats:
        """(documents,) that of the parts of its name together."""
        mass = np.bincount(self.name_doc, weights=self.term_mass[self.name_term], minlength=len(self.id))
        return mass.astype(np.float64)  # of no names it would count in whole numbers

    @cached_property
    def norm(self) -> Floats:
        """(documents,) the length of the TF-IDF vector."""
        weights = ((1 + np.log(self.post_count)) * self.term_mass[self.post_term]) ** 2
        return np.sqrt(np.bincount(self.post_doc, weights=weights, minlength=len(self.id)))

    @cached_property
    def used(self) -> Floats:
        """(documents,) how many references by name mean it, each shared by all that define the name."""
        first = np.searchsorted(self.link_hash, self.symbol_hash, "left")
        last = np.searchsorted(self.link_hash, self.symbol_hash, "right")
        _, place, definers = np.unique(self.symbol_hash, return_inverse=True, return_counts=True)
        shares = (last - first) / np.maximum(definers[place], 1)
        return np.bincount(self.symbol_doc, weights=shares, minlength=len(self.id)).astype(np.float64)

    def places(self, ids: NDArray[np.void]) -> Ints:
        """The documents with these ids; -1 for one that is not here."""
        wanted, held = np.ascontiguousarray(ids).view("S16"), self.id.view("S16")
        if not len(held) or not len(wanted):
            return np.full(len(wanted), -1, dtype=np.int64)
        docs = self.by_id[np.minimum(np.searchsorted(held, wanted, sorter=self.by_id), len(held) - 1)]
        return np.where(held[docs] == wanted, docs, -1)

    def without(self, ids: Iterable[str]) -> Segment:
        """The documents but these."""
        leaving = {id_bytes(id) for id in ids}
        gone = np.array(list(leaving), dtype="V16")
        keep = ~np.isin(self.id.view("S16"), gone.view("S16")) if len(gone) else np.ones(len(self.id), dtype=bool)
        if keep.all():
            return self
        number = np.cumsum(keep, dtype=np.int32) - 1

        def kept(owner: str, *others: str) -> dict[str, Any]:
            docs = getattr(self, owner)
            chosen = keep[docs]
            return {owner: number[docs[chosen]], **{name: getattr(self, name)[chosen] for name in others}}

        return replace(
            self,
            foreign=tuple(id for id in self.foreign if id_bytes(id) not in leaving),
            **{name: getattr(self, name)[keep] for name in _PER_DOCUMENT},
            word=self.word[np.repeat(keep, self.length)],
            **kept("post_doc", "post_term", "post_count"),
            **kept("name_doc", "name_term"),
            **kept("touch_doc", "touch_file"),
            **kept("symbol_doc", "symbol_hash"),
            **kept("link_doc", "link_hash", "link_share"),
        )

    def with_(self, added: Additions) -> Segment:
        """These documents too. None of them may be here already."""
        if not added.items:
            return self
        return added.after(self)


def _of(table: _Table, term: int) -> NDArray[np.int32]:
    """The owners of a term in a table that is sorted by term."""
    # Numbers of another type would have the whole table converted.
    first, last = np.searchsorted(table[0], np.array([term, term + 1], dtype=table[0].dtype))
    return table[1][first:last]


def ranges(first: Ints, lengths: NDArray[Any]) -> Ints:
    """All places of some ranges, one after the other."""
    lengths = lengths.astype(np.int64)
    found: Ints = np.arange(lengths.sum()) + np.repeat(first - (np.cumsum(lengths) - lengths), lengths)
    return found


class Additions:
    """Documents on their way into a segment. Fed while items are written, so that none is read twice."""

    def __init__(self) -> None:
        self.items: list[tuple[Any, ...]] = []
        self._foreign: list[str] = []
        self._terms = _Numbers(())
        self._words = array("i")
        self._names: list[tuple[str, ...]] = []
        self._touched: list[tuple[str, ...]] = []
        self._symbols: list[tuple[str, ...]] = []
        self._links: list[tuple[Relation, ...]] = []

    def extend(self, items: Iterable[KnowledgeItem]) -> None:
        for item in items:
            self._add(item)

    def _add(self, item: KnowledgeItem) -> None:
        source = item.source
        raw = id_bytes(item.id)
        if raw.hex() != item.id.replace("-", ""):
            self._foreign.append(item.id)
        before = len(self._words)
        for text in (item.metadata.title, item.payload.text):
            self._words.extend(map(self._terms.__getitem__, words(text)))
        self.items.append(
            (
                raw, source.path, item.kind, len(self._words) - before, item.metadata.confidentiality.rank,
                int(item.expires_at.timestamp() * 1000), source.start_line or 0, source.end_line or 0,
            )
        )  # fmt: skip
        self._names.append(tuple(dict.fromkeys(identifier_parts(item.symbols[0] if item.symbols else ""))))
        self._touched.append(
            tuple(each.target[5:] for each in item.relations if each.type == "touches" and each.target[:5] == "path:")
        )
        self._symbols.append(item.symbols)
        self._links.append(tuple(each for each in item.relations if each.target[:7] == "symbol:"))

    def after(self, old: Segment) -> Segment:
        """The segment with these documents behind its own."""
        first = len(old.id)
        terms, paths, kinds = _Numbers(old.terms), _Numbers(old.paths), _Numbers(old.kinds)
        docs = np.arange(first, first + len(self.items), dtype=np.int32)
        columns = list(zip(*self.items, strict=True))
        number_of = np.array([terms[word] for word in self._terms], dtype=np.int32)
        word = take(number_of, np.frombuffer(self._words, dtype=np.int32))
        post_term, post_doc, post_count = _postings(word, np.repeat(docs, columns[3]))
        order = np.argsort(np.concatenate([old.post_term, post_term]), kind="stable")
        name_term = [terms[part] for parts in self._names for part in parts]
        doc_file = [paths[path] if path else -1 for path in columns[1]]
        touch_file = [paths[path] for touched in self._touched for path in touched]
        new_paths = list(paths)[len(old.paths) :]
        path_words = [tuple(dict.fromkeys(words(path))) for path in new_paths]
        path_term = [terms[word] for each in path_words for word in each]
        path_file = np.repeat(np.arange(len(old.paths), len(paths)), [len(each) for each in path_words])
        new_hashes = np.array([symbol_hash(name) for names in self._symbols for name in names], dtype=np.uint64)
        hashes = np.concatenate([old.symbol_hash, new_hashes])
        owners = np.concatenate([old.symbol_doc, np.repeat(docs, [len(names) for names in self._symbols])])
        by_hash = np.argsort(hashes, kind="stable")
        links = [each for mine in self._links for each in mine]
        link_hash = np.array([symbol_hash(each.target[7:]) for each in links], dtype=np.uint64)
        by_target = np.argsort(np.concatenate([old.link_hash, link_hash]), kind="stable")
        kind = [kinds[each] for each in columns[2]]

        def joined(name: str, values: Any) -> Any:
            return np.concatenate([getattr(old, name), np.asarray(values, dtype=_DTYPES[name])])

        return Segment(
            terms=tuple(terms),
            paths=tuple(paths),
            kinds=tuple(kinds),
            foreign=(*old.foreign, *self._foreign),
            id=np.concatenate([old.id, np.array(columns[0], dtype="V16")]),
            doc_file=joined("doc_file", doc_file),
            kind=joined("kind", kind),
            length=joined("length", columns[3]),
            clearance=joined("clearance", columns[4]),
            expires_at=joined("expires_at", columns[5]),
            start=joined("start", columns[6]),
            end=joined("end", columns[7]),
            word=joined("word", word),
            post_term=joined("post_term", post_term)[order],
            post_doc=joined("post_doc", post_doc)[order],
            post_count=joined("post_count", post_count)[order],
            name_doc=joined("name_doc", np.repeat(docs, [len(parts) for parts in self._names])),
            name_term=joined("name_term", name_term),
            path_file=joined("path_file", path_file),
            path_term=joined("path_term", path_term),
            touch_doc=joined("touch_doc", np.repeat(docs, [len(touched) for touched in self._touched])),
            touch_file=joined("touch_file", touch_file),
            symbol_hash=hashes[by_hash],
            symbol_doc=owners.astype(np.int32)[by_hash],
            link_hash=joined("link_hash", link_hash)[by_target],
            link_doc=joined("link_doc", np.repeat(docs, [len(mine) for mine in self._links]))[by_target],
            link_share=joined("link_share", [each.confidence for each in links])[by_target],
        )


def table_file(home: Path, scope: int, version: str) -> Path:
    """Where the vectors of a scope's documents are, as a model of this version made them."""
    return home / "corpus" / f"vectors-{scope}-{hashlib.sha256(version.encode()).hexdigest()[:12]}.npy"


def segment_file(home: Path, scope: int, generation: int) -> Path:
    """Where a scope's segment is, as of a generation of the ledger."""
    return home / "corpus" / f"{scope}-{generation}.npz"


_TEXTS: Final = ("terms", "paths", "kinds", "foreign")
_DTYPES: Final[dict[str, Any]] = {
    "id": "V16", "doc_file": np.int32, "kind": np.uint8, "length": np.uint32, "clearance": np.uint8,
    "expires_at": np.int64, "start": np.int32, "end": np.int32, "word": np.int32, "post_term": np.int32,
    "post_doc": np.int32, "post_count": np.uint16, "name_doc": np.int32, "name_term": np.int32,
    "path_file": np.int32, "path_term": np.int32, "touch_doc": np.int32, "touch_file": np.int32,
    "symbol_hash": np.uint64, "symbol_doc": np.int32, "link_hash": np.uint64, "link_doc": np.int32,
    "link_share": np.float32,
}  # fmt: skip
_PER_DOCUMENT: Final = ("id", "doc_file", "kind", "length", "clearance", "expires_at", "start", "end")
assert {each.name for each in fields(Segment)} == {*_TEXTS, *_DTYPES}


def _postings(
    word: NDArray[np.int32], doc: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
    """Each term of each document with how often it stands there, in the order of terms."""
    both, count = np.unique(word.astype(np.int64) << 32 | doc, return_counts=True)
    return (both >> 32).astype(np.int32), (both & 0xFFFFFFFF).astype(np.int32), np.minimum(count, 0xFFFF)


class _Numbers(dict[str, int]):
    """Numbers for texts in the order of their first use."""

    def __init__(self, known: Sequence[str]) -> None:
        super().__init__(zip(known, range(len(known)), strict=True))

    def __missing__(self, text: str) -> int:
        number = self[text] = len(self)
        return number


def symbol_hash(name: str) -> int:
    """64 bits of a name's BLAKE2 hash."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _packed(texts: Sequence[str]) -> NDArray[np.uint8]:
    data = _SEPARATOR.join(texts)
    if data.count(_SEPARATOR) >= max(len(texts), 1):  # a path may hold one
        data = _SEPARATOR.join(text.replace(_SEPARATOR, " ") for text in texts)
    return np.frombuffer(data.encode("utf-8", "surrogatepass"), dtype=np.uint8)


def _unpacked(data: NDArray[np.uint8]) -> tuple[str, ...]:
    text = data.tobytes().decode("utf-8", "surrogatepass")
    return tuple(text.split(_SEPARATOR)) if text else ()


def open_segment(path: Path) -> Segment | None:
    """A segment, kept in memory while its file stays the same."""
    return _kept("segment", path, _load_segment)


def open_table(path: Path) -> VectorTable | None:
    """A table of vectors, kept in memory while its file stays the same."""
    return _kept("table", path, _load_table)


_T = TypeVar("_T")


def _kept(what: str, path: Path, load: Callable[[Path, int], _T | None]) -> _T | None:
    try:
        changed_at = path.stat().st_mtime_ns
    except OSError:
        return None
    telemetry.CORPUS_LOOKUPS.add(1, what)
    return load(path, changed_at)


@lru_cache(maxsize=16)
def _load_segment(path: Path, changed_at: int) -> Segment | None:
    del changed_at  # a part of the cache's key
    telemetry.CORPUS_LOADS.add(1, "segment")
    return Segment.load(path)


@lru_cache(maxsize=16)
def _load_table(path: Path, changed_at: int) -> VectorTable | None:
    del changed_at  # a part of the cache's key
    telemetry.CORPUS_LOADS.add(1, "table")
    return VectorTable.load(path)


def take(table: NDArray[np.int32], places: NDArray[np.int32]) -> NDArray[np.int32]:
    return table[np.maximum(places, 0)] if len(table) else np.zeros(len(places), dtype=np.int32)
