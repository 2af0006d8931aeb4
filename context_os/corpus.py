"""What one caller sees of some segments: documents above the clearance or expired are not counted in any statistic.

Scores are BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009) and the cosine of sublinear
TF-IDF (Manning, Raghavan and Schütze, "Introduction to Information Retrieval", 2008, chapter 6).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from context_os.model import Access, Confidentiality, id_bytes, utcnow
from context_os.paths import Paths
from context_os.segments import Floats, Ints, Segment, ranges, symbol_hash, take
from context_os.vectors import VectorTable

K1: Final = 1.2
B: Final = 0.75
_SWEEPING: Final = 30
"""A change over more files than this says little about any two of them."""
_DOUBT: Final = 5
"""Changes that every file is taken to have had besides, so that two out of two are not a law."""
_NAME: Final = 4.0
_PATH: Final = 2.0
"""What a word in a document's name or path counts beside one in its text."""
_MOST_HELD: Final = 4_000_000
"""Postings of terms that a corpus keeps read, of 16 bytes each."""
_MOST_PHRASED: Final = 2_000
"""Words of a text that are looked for in pairs."""
_END: Final = 2**62


@lru_cache(maxsize=16)
def _places(segment: Segment, table: VectorTable) -> Ints:
    """(rows of the table,) their documents in the segment, or -1."""
    return segment.places(np.array(table.rows["id"]))


def _rows_of(held: NDArray[np.uint64], names: NDArray[np.uint64]) -> tuple[Ints, Ints]:
    """The rows of a table in the order of hashes that have one of some names, and that name's place among them."""
    first, last = np.searchsorted(held, names, "left"), np.searchsorted(held, names, "right")
    return np.repeat(np.arange(len(names)), last - first), ranges(first, last - first)


def _shares(names: int, defined: Ints) -> Floats:
    """(names,) one over the root of how often each is defined, given which name every definition is of."""
    return 1 / np.sqrt(np.maximum(np.bincount(defined, minlength=names), 1))


class _Bounded:
    """What was read of terms, forgotten whole when it becomes too much."""

    def __init__(self, read: Callable[[str], tuple[Ints, Floats]]) -> None:
        self._read = read
        self._held: dict[str, tuple[Ints, Floats]] = {}
        self._size = 0

    def __call__(self, term: str) -> tuple[Ints, Floats]:
        found = self._held.get(term)
        if found is None:
            found = self._read(term)
            if self._size > _MOST_HELD:
                self._held, self._size = {}, 0
            self._held[term] = found
            self._size += len(found[0])
        return found


@dataclass(frozen=True)
class _Part:
    """A segment inside a corpus, its documents from ``first`` on. ``files`` maps its files to the corpus's."""

    segment: Segment
    repository: str
    first: int
    visible: NDArray[np.bool_]
    files: NDArray[np.int32]
    table: VectorTable | None


def open_corpus(
    segments: Sequence[tuple[str, Segment]], access: Access, tables: Mapping[int, VectorTable] | None = None
) -> Corpus:
    """A corpus, kept with what queries looked up in it until something of it expires."""
    kept = _joined(tuple(segments), access.clearance, tuple((tables or {}).items()))
    return kept if _now() < kept.expires_at else Corpus(segments, access.clearance, tables)


@lru_cache(maxsize=4)
def _joined(
    segments: tuple[tuple[str, Segment], ...], clearance: Confidentiality, tables: tuple[tuple[int, VectorTable], ...]
) -> Corpus:
    return Corpus(segments, clearance, dict(tables))


def _now() -> int:
    """Milliseconds since 1970."""
    return int(utcnow().timestamp() * 1000)


class Corpus:
    """What somebody with a clearance may read of some segments. Documents are numbered through, so are files."""

    def __init__(
        self,
        segments: Sequence[tuple[str, Segment]],
        clearance: Confidentiality,
        tables: Mapping[int, VectorTable] | None = None,
    ) -> None:
        """``segments`` come with their repository's name, ``tables`` by their segment's place in that list."""
        now = _now()
        self.files: list[tuple[str, str]] = []
        """``(repository, path)`` of every file."""
        self._parts: list[_Part] = []
        self._postings = _Bounded(self._read_postings)
        self._in_files = _Bounded(self._read_files)
        self._fields = _Bounded(self._read_fields)
        numbers: dict[tuple[str, str], int] = {}
        first = 0
        for place, (repository, segment) in enumerate(segments):
            table = (tables or {}).get(place)
            visible = (segment.clearance <= clearance.rank) & (segment.expires_at > now)
            files = np.array(
                [numbers.setdefault((repository, path), len(numbers)) for path in segment.paths], dtype=np.int32
            )
            self._parts.append(_Part(segment, repository, first, visible, files, table))
            first += len(segment.id)
        self.files = list(numbers)
        self.size = first

    @cached_property
    def expires_at(self) -> int:
        """When the first of what is readable now expires, in milliseconds since 1970."""
        return min((int(p.segment.expires_at[p.visible].min()) for p in self._parts if p.visible.any()), default=_END)

    @cached_property
    def raw_ids(self) -> NDArray[np.void]:
        """(documents,) see ``id_bytes``."""
        return np.concatenate([part.segment.id for part in self._parts]) if self._parts else np.empty(0, "V16")

    @cached_property
    def used(self) -> Floats:
        """(files,) logarithm of how many references mean something in it."""
        uses = np.concatenate([part.segment.used for part in self._parts]) if self._parts else np.empty(0)
        inside = self.in_file
        return np.log1p(np.bincount(self.file_of[inside], weights=uses[inside], minlength=len(self.files)))

    def _joined(self, name: str, dtype: Any) -> NDArray[Any]:
        parts = [getattr(part.segment, name) for part in self._parts]
        return np.concatenate(parts).astype(dtype) if parts else np.empty(0, dtype)

    @cached_property
    def visible(self) -> NDArray[np.bool_]:
        """(documents,) whether the caller may read it."""
        return np.concatenate([part.visible for part in self._parts]) if self._parts else np.empty(0, dtype=bool)

    @cached_property
    def readable(self) -> int:
        """How many documents the caller may read."""
        return int(self.visible.sum())

    @cached_property
    def file_of(self) -> Ints:
        """(documents,) the file, or -1."""
        found = [np.where(p.segment.doc_file >= 0, take(p.files, p.segment.doc_file), -1) for p in self._parts]
        return np.concatenate(found).astype(np.int64) if found else np.empty(0, np.int64)

    @cached_property
    def lines(self) -> tuple[Ints, Ints]:
        """(documents,) first and last line, 0 for none."""
        return self._joined("start", np.int64), self._joined("end", np.int64)

    @cached_property
    def kinds(self) -> list[str]:
        """Every kind of item."""
        return list(dict.fromkeys(kind for part in self._parts for kind in part.segment.kinds))

    @cached_property
    def kind_of(self) -> Ints:
        """(documents,) the place of its kind in ``kinds``."""
        number = {kind: place for place, kind in enumerate(self.kinds)}
        found = [
            np.array([number[kind] for kind in part.segment.kinds], dtype=np.int64)[part.segment.kind]
            for part in self._parts
            if len(part.segment.kind)
        ]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    @cached_property
    def doc_length(self) -> Floats:
        return self._joined("length", np.float64)

    @cached_property
    def in_file(self) -> NDArray[np.bool_]:
        """(documents,) readable and part of a file."""
        return self.visible & (self.file_of >= 0)

    @cached_property
    def by_file(self) -> tuple[Ints, Ints, Ints]:
        """The documents that are ``in_file``, file by file, which files have any, and where each of those begins."""
        inside = np.flatnonzero(self.in_file)
        order = inside[np.argsort(self.file_of[inside], kind="stable")]
        files, begins = np.unique(self.file_of[order], return_index=True)
        return order, files, begins

    @cached_property
    def file_length(self) -> Floats:
        """(files,) words."""
        inside = self.in_file
        words = np.bincount(self.file_of[inside], weights=self.doc_length[inside], minlength=len(self.files))
        return words.astype(np.float64)

    @cached_property
    def paths(self) -> Paths:
        return Paths(self.files, self.has_text)

    @cached_property
    def has_text(self) -> NDArray[np.bool_]:
        """(files,) whether it holds a document that the caller may read: others are no candidates."""
        return np.bincount(self.file_of[self.in_file], minlength=len(self.files)) > 0

    def id_of(self, doc: int) -> str:
        part = next(part for part in reversed(self._parts) if part.first <= doc)
        return part.segment.id_of(doc - part.first)

    def documents_of(self, ids: Sequence[str]) -> Ints:
        """The documents with these ids, in this order; -1 for an id that is not here."""
        found = np.full(len(ids), -1, dtype=np.int64)
        wanted = np.array([id_bytes(id) for id in ids], dtype="V16")
        for part in self._parts:
            docs = part.segment.places(wanted)
            found = np.where(docs >= 0, docs + part.first, found)
        return found

    @property
    def has_vectors(self) -> bool:
        return any(part.table is not None and len(part.table.rows) for part in self._parts)

    def nearness(self, queries: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """(documents, queries) cosines, NaN for a document without a vector; None where none has one."""
        found = np.full((self.size, len(queries)), np.nan, dtype=np.float32)
        for part in self._parts:
            if part.table is not None and len(part.table.rows):
                docs = _places(part.segment, part.table)
                held = docs >= 0
                found[docs[held] + part.first] = part.table.cosines(queries)[held]
        found[~self.visible] = np.nan
        return None if np.isnan(found).all() else found

    # Terms

    def postings(self, term: str) -> tuple[Ints, Floats]:
        """The readable documents that hold a term, and how often."""
        return self._postings(term)

    def _read_postings(self, term: str) -> tuple[Ints, Floats]:
        docs, counts = [], []
        for part in self._parts:
            number = part.segment.numbers.get(term)
            if number is None:
                continue
            here = slice(part.segment.starts[number], part.segment.starts[number + 1])
            mine = part.segment.post_doc[here]
            seen = part.visible[mine]
            docs.append(mine[seen].astype(np.int64) + part.first)
            counts.append(part.segment.post_count[here][seen])
        if not docs:
            return np.empty(0, np.int64), np.empty(0)
        return np.concatenate(docs), np.concatenate(counts).astype(np.float64)

    def in_files(self, term: str) -> tuple[Ints, Floats]:
        """The files that hold a term, and how often."""
        return self._in_files(term)

    def _read_files(self, term: str) -> tuple[Ints, Floats]:
        docs, counts = self.postings(term)
        files = self.file_of[docs]
        total = np.bincount(files[files >= 0], weights=counts[files >= 0], minlength=len(self.files))
        found = np.flatnonzero(total > 0)  # numpy looks through booleans eight times as fast as through numbers
        return found.astype(np.int64), total[found].astype(np.float64)

    def _read_fields(self, term: str) -> tuple[Ints, Floats]:
        """The readable documents that hold a term in their text, name or path, and what it gives to their score."""
        total = np.zeros(self.size)
        docs, counts = self.postings(term)
        total[docs] += counts
        for part in self._parts:
            number = part.segment.numbers.get(term)
            if number is None:
                continue
            total[part.segment.named(number).astype(np.int64) + part.first] += _NAME
            on_path = part.segment.documents_in(part.segment.on_path(number))
            total[on_path.astype(np.int64) + part.first] += _PATH
        found = np.flatnonzero((total > 0) & self.visible)
        idf = np.log(1 + (self.readable - len(found) + 0.5) / (len(found) + 0.5))
        return found, idf * total[found] * (K1 + 1) / (total[found] + self._norm_of_length[found])

    def bm25f(self, terms: Sequence[str]) -> Floats:
        """(documents,) BM25 over text, name and path at once, each weighed in its words' counts (Robertson, Zaragoza
        and Taylor, "Simple BM25 Extension to Multiple Weighted Fields", 2004). Words that more than half of all hold
        count where there are no others."""
        scores = np.zeros(self.size)
        held = [each for each in map(self._fields, terms) if len(each[0])]
        for docs, given in [each for each in held if 2 * len(each[0]) <= self.readable] or held:
            np.add.at(scores, docs, given)
        return scores

    @cached_property
    def _norm_of_length(self) -> Floats:
        mean = self.doc_length[self.visible].mean() if self.visible.any() else 1.0
        return K1 * (1 - B + B * self.doc_length / max(mean, 1.0))

    def bm25(self, terms: Mapping[str, float], *, by_file: bool) -> Floats:
        """BM25 of every file or document; ``terms`` with how much each counts."""
        length = self.file_length if by_file else self.doc_length
        chosen = self.has_text if by_file else self.visible
        number = max(int(chosen.sum()), 1)
        scores = np.zeros(len(length))
        norm = K1 * (1 - B + B * length / max(length[chosen].mean() if chosen.any() else 1.0, 1.0))
        for term, weight in terms.items():
            found, counts = self.in_files(term) if by_file else self.postings(term)
            if len(found):
                idf = np.log(1 + (number - len(found) + 0.5) / (len(found) + 0.5))
                scores[found] += weight * idf * counts * (K1 + 1) / (counts + norm[found])
        return scores

    @cached_property
    def _norm(self) -> Floats:
        """(documents,) the length of the TF-IDF vector."""
        found = [part.segment.norm for part in self._parts]
        return np.concatenate(found) if found else np.empty(0)

    def cosine(self, terms: Mapping[str, float]) -> Floats:
        """(documents,) cosine of the sublinear TF-IDF vectors; ``terms`` with their counts."""
        scores = np.zeros(self.size)
        total = 0.0
        for term, count in terms.items():
            docs, counts = self.postings(term)
            if not len(docs):
                continue
            idf = np.log(1 + self.size / len(docs))
            weight = (1 + np.log(count)) * idf
            total += weight**2
            scores[docs] += weight * (1 + np.log(counts)) * idf
        cosines: Floats = scores / np.maximum(self._norm * np.sqrt(total), 1e-9)
        return cosines

    def phrases(self, text: Sequence[str], files: Ints) -> tuple[Floats, Floats]:
        """(files,) and (documents,) which pairs of words that follow each other each of these files, and each document
        in them, has in common with a text: the root of the sum of their squared idf among these files. 0 elsewhere."""
        text = text[:_MOST_PHRASED]
        number = {word: place for place, word in enumerate(dict.fromkeys(text))}
        asked = np.zeros((len(number), len(number)), dtype=bool)
        for one, other in pairwise(text):
            asked[number[one], number[other]] = True
        chosen = np.zeros(len(self.files) + 1, dtype=bool)  # the last stands for no file, which is -1
        chosen[files] = True
        docs, pairs = self._pairs(number, asked.ravel(), np.flatnonzero(chosen[self.file_of] & self.visible))
        owners, held = np.divmod(np.unique(self.file_of[docs] * asked.size + pairs), max(asked.size, 1))
        distinct, place, holders = np.unique(held, return_inverse=True, return_counts=True)
        worth = np.log(len(files) / holders) ** 2
        by_file = np.bincount(owners, weights=worth[place], minlength=len(self.files))
        by_document = np.bincount(docs, weights=worth[np.searchsorted(distinct, pairs)], minlength=self.size)
        return np.sqrt(by_file), np.sqrt(by_document)

    def _pairs(self, number: Mapping[str, int], asked: NDArray[np.bool_], among: Ints) -> tuple[Ints, Ints]:
        """Where pairs of words are ``asked`` for (by the first one's number times how many there are, plus the other's)
        and follow each other in a document: the document and the pair, each such two once."""
        found = [np.empty(0, np.int64)]
        for part in self._parts:
            segment = part.segment
            mine = among[(among >= part.first) & (among < part.first + len(segment.id))]
            if not len(mine) or not segment.is_complete:
                continue
            number_of = np.full(len(segment.terms), -1, dtype=np.int64)
            for word, place in number.items():
                if word in segment.numbers:
                    number_of[segment.numbers[word]] = place
            lengths = segment.length[mine - part.first]
            owner = np.repeat(mine, lengths)
            words_of = number_of[segment.word[ranges(segment.first_word[mine - part.first], lengths)]]
            both = (words_of[:-1] >= 0) & (words_of[1:] >= 0) & (owner[:-1] == owner[1:])
            pairs = words_of[:-1][both] * len(number) + words_of[1:][both]
            found.append((owner[:-1][both] * asked.size + pairs)[asked[pairs]])
        return np.divmod(np.unique(np.concatenate(found)), max(asked.size, 1))

    def document_frequency(self, term: str) -> int:
        """How many files hold it."""
        return len(self.in_files(term)[0])

    # Names, paths, history

    def name_coverage(self, idf: Mapping[str, float], unknown: float) -> Floats:
        """(documents,) squared idf mass of the parts of its name that ``idf`` holds, over the mass of all of them
        plus a half: a name that the text spells out whole counts more than a part of a long one."""
        scores = np.zeros(self.size)
        for part in self._parts:
            segment = part.segment
            found, whole = np.zeros(len(segment.id)), segment.name_mass.copy()
            for term, value in idf.items():
                number = segment.numbers.get(term)
                if number is not None:
                    named = segment.named(number)
                    found[named] += value
                    whole[named] += value - segment.term_mass[number]
            scores[part.first : part.first + len(found)] = found**2 / (whole + unknown)
        return np.where(self.visible, scores, 0.0)

    def path_bm25(self, terms: Mapping[str, float]) -> Floats:
        """(files,) BM25 over the words of the path."""
        scores = np.zeros(len(self.files))
        number = int(self.has_text.sum())
        for term, weight in terms.items():
            files = self._on_path(term)
            idf = np.log(1 + (number - len(files) + 0.5) / (len(files) + 0.5))
            scores[files] += weight * max(idf, 0.0) * (K1 + 1) / (1 + self._norm_of_path[files])
        return scores

    def _on_path(self, term: str) -> Ints:
        """The files with text whose path holds a term. History names the same files again, and some that are gone."""
        held = np.zeros(len(self.files), dtype=bool)
        for part in self._parts:
            number = part.segment.numbers.get(term)
            if number is not None:
                held[part.files[part.segment.on_path(number)]] = True
        return np.flatnonzero(held & self.has_text)

    @cached_property
    def _norm_of_path(self) -> Floats:
        lengths = np.zeros(len(self.files))
        for part in self._parts:
            lengths[part.files] = np.bincount(part.segment.path_file, minlength=len(part.files))
        mean = lengths[self.has_text].mean() if self.has_text.any() else 1.0
        return K1 * (1 - B + B * lengths / max(mean, 1.0))

    def defining(self, name: str) -> Ints:
        """The readable documents that define a name."""
        return self._definers(np.array([symbol_hash(name)], dtype=np.uint64))[1]

    def _definers(self, names: NDArray[np.uint64]) -> tuple[Ints, Ints]:
        """Which of some hashed names (its place among them) which readable document defines."""
        found = [(np.empty(0, np.int64), np.empty(0, np.int64))]
        for part in self._parts:
            place, rows = _rows_of(part.segment.symbol_hash, names)
            docs = part.segment.symbol_doc[rows]
            seen = part.visible[docs]
            found.append((place[seen], docs[seen].astype(np.int64) + part.first))
        places, docs_of = zip(*found, strict=True)
        return np.concatenate(places), np.concatenate(docs_of)

    def linking_to(self, documents: Ints) -> Floats:
        """(documents,) how surely each refers by name to one of these, in 0..1; less where many define that name."""
        scores = np.zeros(self.size)
        chosen = self._among(documents)
        mine = [p.segment.symbol_hash[chosen[p.segment.symbol_doc.astype(np.int64) + p.first]] for p in self._parts]
        names = np.unique(np.concatenate(mine)) if mine else np.empty(0, np.uint64)
        shares = _shares(len(names), self._definers(names)[0])
        for part in self._parts:
            held = part.segment
            place, rows = _rows_of(held.link_hash, names)
            np.maximum.at(
                scores, held.link_doc[rows].astype(np.int64) + part.first, shares[place] * held.link_share[rows]
            )
        return np.where(self.visible, scores, 0.0)

    def linked_from(self, documents: Ints) -> Floats:
        """(documents,) how surely one of these refers to each by name, in 0..1; less where many define that name."""
        scores = np.zeros(self.size)
        chosen = self._among(documents)
        for part in self._parts:
            held = part.segment
            mine = np.flatnonzero(chosen[held.link_doc.astype(np.int64) + part.first])
            if not len(mine):
                continue
            names, begins = np.unique(held.link_hash[mine], return_index=True)  # the table is in the order of names
            place, docs = self._definers(names)
            surely = np.maximum.reduceat(held.link_share[mine], begins) * _shares(len(names), place)
            np.maximum.at(scores, docs, surely[place])
        return scores

    def _among(self, documents: Ints) -> NDArray[np.bool_]:
        """(documents,) whether it is one of these."""
        chosen = np.zeros(self.size, dtype=bool)
        chosen[documents] = True
        return chosen

    def changed_with(self, files: Ints) -> Floats:
        """(files,) how often it changed together with one of these, a change over many files counting less."""
        scores = np.zeros(len(self.files))
        chosen = np.zeros(len(self.files), dtype=bool)
        chosen[files] = True
        for part in self._parts:
            held = part.segment
            if not len(held.touch_doc):
                continue
            numbers = part.files[held.touch_file]
            width = np.bincount(held.touch_doc, minlength=len(held.id))
            shared = np.bincount(held.touch_doc, weights=chosen[numbers], minlength=len(held.id))
            weight = np.where(part.visible, shared / np.maximum(width, 1), 0.0)
            np.add.at(scores, numbers, weight[held.touch_doc])
        scores[files] = 0.0
        return scores

    def changed_mostly_with(self, files: Ints) -> Floats:
        """(files,) the share of its changes that changed one of these too; sweeping changes, and the first few, tell
        little."""
        together, ever = np.zeros(len(self.files)), np.zeros(len(self.files))
        chosen = np.zeros(len(self.files), dtype=bool)
        chosen[files] = True
        for part in self._parts:
            held = part.segment
            numbers = part.files[held.touch_file]
            seen = part.visible[held.touch_doc]
            width = np.bincount(held.touch_doc, minlength=len(held.id))
            shared = np.bincount(held.touch_doc, weights=chosen[numbers], minlength=len(held.id))
            with_these = (shared > 0) & (width <= _SWEEPING)
            ever += np.bincount(numbers[seen], minlength=len(self.files))
            together += np.bincount(numbers[seen & with_these[held.touch_doc]], minlength=len(self.files))
        together[files] = 0.0
        return together / (ever + _DOUBT)

    def touched_by(self, scores: Floats, limit: int) -> Floats:
        """(files,) what the best of those documents that changed it gives to each file, the less the more it changed.
        The ``limit`` best count."""
        result = np.zeros(len(self.files))
        for part in self._parts:
            segment = part.segment
            if not len(segment.touch_doc):
                continue
            mine = scores[part.first : part.first + len(segment.id)] * part.visible
            best = np.argsort(-mine, kind="stable")[:limit]
            weight = np.zeros(len(mine))
            weight[best] = mine[best]
            width = np.maximum(np.bincount(segment.touch_doc, minlength=len(mine)), 1)
            given = weight[segment.touch_doc] / np.sqrt(width[segment.touch_doc])
            np.maximum.at(result, part.files[segment.touch_file], given)
        return result
