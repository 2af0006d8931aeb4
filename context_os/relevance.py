"""Features: what speaks for a file or a document, given a question. Every feature scores every candidate.

A matrix of features has one row per file or document of the corpus; ``ranking`` weighs its columns.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache, partial
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from context_os.change import Change
from context_os.corpus import Corpus
from context_os.errors import ConfigurationError
from context_os.paths import CLASSES, shared_start, stem
from context_os.question import Question
from context_os.segments import Floats, Ints
from context_os.text import same_word, word_forms, words

MAY_COUNT_AGAINST: Final = frozenset({*CLASSES, "superseded"})
"""What is true of a file and may speak against it; all other features speak for it or not at all."""


class Columns(Mapping[str, Floats]):
    """Features by name, made when they are first looked at: a model weighs few of them."""

    def __init__(self, makers: Mapping[str, Callable[[], Floats]]) -> None:
        self._makers = makers
        self._made: dict[str, Floats] = {}
        self._peaks: dict[str, float] = {}

    def __getitem__(self, name: str) -> Floats:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def peak(self, name: str) -> float:
        """The largest value, or 1 where there is none."""
        if name not in self._peaks:
            self._peaks[name] = float(self[name].max(initial=0.0)) or 1.0
        return self._peaks[name]

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


@dataclass(frozen=True)
class Features:
    """The features of one question over one corpus. ``whole`` and ``title`` are (documents,) cosines of the question
    and of its title, NaN for documents without a vector; None without any."""

    corpus: Corpus
    question: Question
    whole: Floats | None = None
    title: Floats | None = None
    change: Change = field(default_factory=Change)

    @cached_property
    def files(self) -> Columns:
        """Feature by name, each (files,)."""
        q, corpus, documents = self.question, self.corpus, self.documents
        found: dict[str, Callable[[], Floats]] = {
            "words": lambda: corpus.bm25(_once(q.content_words), by_file=True),
            "words_three": lambda: self._sum_of_best(documents["words"], 3),
            "title_words": lambda: (
                corpus.bm25(_once(q.title_words), by_file=True) + corpus.path_bm25(_once(q.title_words))
            ),
            "phrases": lambda: self._phrases[0],
            "path_words": lambda: corpus.path_bm25(_once(q.content_words)),
            "called": lambda: self._called,
            "related": lambda: corpus.bm25(self._related, by_file=True),
            "used": lambda: corpus.used,
            "superseded": lambda: self._superseded,
            "path_named": lambda: self._named_paths,
            "frames": lambda: self._frame_files,
            "best_part": lambda: self._best(documents["cosine"]),
            "best_part_title": lambda: self._best(documents["cosine_title"]),
            "definition": lambda: self._best(documents["definition"]),
            "definition_title": lambda: self._best(documents["definition_title"]),
            "defines": lambda: self._best(documents["dotted"]),
            "mentioned": lambda: self._best(documents["mentioned"]),
            "rare": lambda: self._rare,
            "tested": lambda: self._best(documents["tested"]),
            "history": lambda: corpus.touched_by(corpus.bm25(_once(q.content_words), by_file=False), 80),
        }
        if self.whole is not None and self.title is not None:
            found["meaning"] = lambda: self._best(documents["meaning"])
            found["meaning_title"] = lambda: self._best(documents["meaning_title"])
            found["meaning_three"] = lambda: self._sum_of_best(documents["meaning"], 3)
        if self.change.files:
            found["namesake"] = lambda: self._namesakes[0]
            found["nearby"] = lambda: self._namesakes[1]
            found["changed_with"] = lambda: corpus.changed_with(self.changed_files)
            found["changed_mostly_with"] = lambda: corpus.changed_mostly_with(self.changed_files)
            found["refers"] = lambda: self._best(documents["refers"])
            found["referred"] = lambda: self._best(documents["referred"])
            found["refers_file"] = lambda: self._best(corpus.linking_to(self._of_changed_files))
            found["referred_file"] = lambda: self._best(corpus.linked_from(self._of_changed_files))
        return Columns(found)

    @cached_property
    def documents(self) -> Columns:
        """Feature by name, each (documents,)."""
        q, corpus = self.question, self.corpus
        found: dict[str, Callable[[], Floats]] = {
            "words": lambda: corpus.bm25(_once(q.content_words), by_file=False),
            "title_words": lambda: corpus.bm25(_once(q.title_words), by_file=False),
            "cosine": lambda: corpus.cosine(q.content_words),
            "cosine_title": lambda: corpus.cosine(q.title_words),
            "definition": lambda: corpus.name_coverage(self._idf(q.content_words), 0.5),
            "definition_title": lambda: corpus.name_coverage(self._idf(q.title_words), 0.5),
            "dotted": lambda: self._dotted,
            "mentioned": lambda: self._mentioned,
            "in_frame": lambda: self._in_frame,
            "phrases": lambda: self._phrases[1],
            "tested": lambda: self._tested,
        }
        whole, title = self.whole, self.title
        if whole is not None and title is not None:
            found["meaning"] = lambda: _filled(whole)
            found["meaning_title"] = lambda: _filled(title)
        if self.change.files:
            found["changed"] = lambda: self._touched
            found["refers"] = lambda: corpus.linking_to(self.changed)
            found["referred"] = lambda: corpus.linked_from(self.changed)
        return Columns(found)

    def _idf(self, terms: Mapping[str, float]) -> dict[str, float]:
        number = int(self.corpus.has_text.sum())
        return {term: float(np.log(1 + number / (1 + self.corpus.document_frequency(term)))) for term in terms}

    def _best(self, scores: Floats) -> Floats:
        """(files,) the best document's score."""
        inside = self.corpus.in_file
        best = np.full(len(self.corpus.files), scores.min() if len(scores) else 0.0)
        np.maximum.at(best, self.corpus.file_of[inside], scores[inside])
        return best

    def _sum_of_best(self, scores: Floats, number: int) -> Floats:
        """(files,) the sum of the best documents' scores; a file with fewer counts its worst again."""
        order, files, begins = self.corpus.by_file
        total = np.zeros(len(self.corpus.files))
        if not len(order):
            return total
        held = np.diff(begins, append=len(order))
        left = scores[order]
        for place in range(number):
            best = np.maximum.reduceat(left, begins)
            total[files] += best
            found = np.flatnonzero(left == np.repeat(best, held))
            group, first = np.unique(np.searchsorted(begins, found, "right") - 1, return_index=True)
            left[found[first[held[group] > place + 1]]] = -np.inf
        total[~self.corpus.has_text] = total[files].min()
        return total

    @cached_property
    def _phrases(self) -> tuple[Floats, Floats]:
        """(files,) and (documents,) of the files that hold most of the question's words."""
        rough = sum(scaled(self.files[name], self.compared) for name in ("words", "title_words", "path_words"))
        best = np.argsort(-np.where(self.corpus.has_text, rough, -1.0), kind="stable")[:_READ]
        return self.corpus.phrases(words(self.question.text), best)

    @cached_property
    def _named_paths(self) -> Floats:
        scores = np.zeros(len(self.corpus.files))
        for path in self.question.paths:
            meant = self.corpus.paths.meant_by(path)
            for number in meant:
                scores[number] = max(scores[number], 1 / len(meant))
        return scores

    @cached_property
    def _frame_files(self) -> Floats:
        scores = np.zeros(len(self.corpus.files))
        for frame in self.question.frames:
            meant = self.corpus.paths.meant_by(frame.path)
            for number in meant:
                scores[number] = max(scores[number], 1 / (1 + frame.depth) / len(meant))
        return scores

    @cached_property
    def _in_frame(self) -> Floats:
        """Documents that a frame names by function, or by line where it names none."""
        scores = np.zeros(self.corpus.size)
        start, end = self.corpus.lines
        for frame in self.question.frames:
            for number in self.corpus.paths.meant_by(frame.path):
                here = np.flatnonzero((self.corpus.file_of == number) & self.corpus.visible)
                named = set(self.corpus.defining(frame.function).tolist()) if frame.function else set()
                by_name = [doc for doc in here if doc in named]
                inside = here[(start[here] <= frame.line) & (end[here] >= frame.line)]
                by_line = inside[np.argsort(end[inside] - start[inside])][:1]
                for doc in by_name or by_line:
                    scores[doc] = max(scores[doc], 1 / (1 + frame.depth))
        return scores

    @cached_property
    def _dotted(self) -> Floats:
        """Documents that a dotted name of the question means: all of it, or the longest end or beginning of it that
        something defines; shared by all that define it."""
        scores = np.zeros(self.corpus.size)
        for name in self.question.dotted:
            parts = name.split(".")
            for first, last in _spans(len(parts)):
                docs = self.corpus.defining(".".join(parts[first:last]))
                if len(docs):
                    scores[docs] = np.maximum(scores[docs], (last - first) / len(parts) / len(docs))
                    break
        return scores

    @cached_property
    def _mentioned(self) -> Floats:
        """Documents that define an identifier of the question; shared by all that define it."""
        scores = np.zeros(self.corpus.size)
        for name in self.question.identifiers:
            docs = self.corpus.defining(name)
            if len(docs):
                scores[docs] += 1 / len(docs)
        return scores

    @cached_property
    def _tested(self) -> Floats:
        """Documents that the tests use which hold most of the question's words."""
        documents, corpus = self.documents, self.corpus
        tests = _in_files(corpus, _is(corpus.paths.classes, "test")) > 0
        tests &= corpus.visible & np.isin(corpus.kind_of, [n for n, kind in enumerate(corpus.kinds) if kind in _CODE])
        rough = scaled(documents["words"], corpus.visible) + scaled(documents["title_words"], corpus.visible)
        among = np.flatnonzero(tests & (rough > 0))
        return corpus.linked_from(among[np.argsort(-rough[among], kind="stable")[:_TESTS]])

    @cached_property
    def matched(self) -> NDArray[np.bool_]:
        """(documents,) whether anything of the question is in it, in its path or near it."""
        documents, corpus = self.documents, self.corpus
        found = np.zeros(corpus.size, dtype=bool)
        for name in ("words", "dotted", "mentioned", "in_frame", "changed", "refers", "referred"):
            if name in documents:
                found |= documents[name] > 0
        inside = np.flatnonzero(corpus.file_of >= 0)
        for name in ("path_words", "path_named", "namesake", "changed_with"):
            if name in self.files:
                found[inside] |= self.files[name][corpus.file_of[inside]] > 0
        for cosines in (self.whole, self.title):
            if cosines is not None:
                best = np.argsort(-np.nan_to_num(cosines, nan=-2.0), kind="stable")[:_NEAREST]
                found[best[np.isfinite(cosines[best])]] = True
        return found & corpus.visible

    @cached_property
    def _rare(self) -> Floats:
        """Identifiers of the question that few files hold."""
        scores = np.zeros(len(self.corpus.files))
        number = int(self.corpus.has_text.sum())
        for word in dict.fromkeys(name.strip("_").lower() for name in self.question.identifiers):
            files, _ = self.corpus.in_files(word)
            if 0 < len(files) <= max(number * 0.01, 5):
                scores[files] += np.log(1 + number / len(files))
        return scores

    @cached_property
    def _called(self) -> Floats:
        """(files,) the share of the parts of a file's name that the question's words are forms of, times what those are
        worth; a file that is called by what is asked for is it, be it short."""
        asked = self._idf(self.question.content_words)
        alike: dict[str, list[str]] = {}
        for word in asked:
            alike.setdefault(word[:4], []).append(word)
        names = self.corpus.paths.name_words
        worth = np.zeros(len(names))
        for name, number in names.items():
            forms = (asked[word] for word in alike.get(name[:4], ()) if same_word(name, word))
            worth[number] = max(forms, default=0.0)
        return self.corpus.paths.mean_of_names(worth)

    @cached_property
    def _superseded(self) -> Floats:
        """(files,) 1 for those of a version that a later one superseded, unless the question names that version."""
        scores = np.zeros(len(self.corpus.files))
        for version, files in self.corpus.paths.superseded.items():
            if version not in self.question.words:
                scores[files] = 1.0
        return scores

    @cached_property
    def _related(self) -> dict[str, float]:
        """Other forms of the question's words that the corpus holds."""
        asked = self.question.content_words
        forms = {form for word in asked for form in word_forms(word) if form not in asked}
        return {form: 1.0 for form in forms if self.corpus.document_frequency(form)}

    # The change

    @cached_property
    def changed_files(self) -> Ints:
        """The files of the change that the corpus knows."""
        paths = set(self.change.paths)
        return np.array([number for number, (_, path) in enumerate(self.corpus.files) if path in paths], dtype=np.int64)

    @cached_property
    def _of_changed_files(self) -> Ints:
        return np.flatnonzero(np.isin(self.corpus.file_of, self.changed_files) & self.corpus.visible)

    @cached_property
    def changed(self) -> Ints:
        """The innermost documents that the change's lines overlap, on the side that is ingested: the one before it."""
        start, end = self.corpus.lines
        found: set[int] = set()
        for file in self.change.files:
            numbers = [n for n in self.changed_files if self.corpus.files[n][1] == file.old_path]
            docs = np.flatnonzero(np.isin(self.corpus.file_of, numbers) & self.corpus.visible & (start > 0))
            for hunk in file.hunks:
                last = hunk.old_start + max(hunk.old_lines, 1) - 1
                over = docs[(start[docs] <= last) & (end[docs] >= hunk.old_start)]
                lengths = end[over] - start[over]
                found.update(over[lengths <= (lengths.min() if len(lengths) else 0) * 4].tolist())
        return np.array(sorted(found), dtype=np.int64)

    @cached_property
    def _touched(self) -> Floats:
        scores = np.zeros(self.corpus.size)
        scores[self.changed] = 1.0
        return scores

    @cached_property
    def _namesakes(self) -> tuple[Floats, Floats]:
        """(files,) whether a file is called like a changed one (a test, a header, a translation of it), and which share
        of its folders it has in common with the nearest of them."""
        stems = {stem(path) for path in self.change.paths}
        folders = [path.split("/")[:-1] for path in self.change.paths]
        named = np.array([each in stems for each in self.corpus.paths.stems], dtype=np.float64)
        near = np.zeros(len(self.corpus.files))
        for number, (_, path) in enumerate(self.corpus.files):
            mine = path.split("/")[:-1]
            near[number] = max((shared_start(mine, theirs) for theirs in folders), default=0.0)
        return named, near

    @cached_property
    def compared(self) -> NDArray[np.bool_]:
        """(files,) those among which a file's features are scaled: source, where there is any."""
        source = (self.corpus.paths.classes == "source") & self.corpus.has_text
        return source if source.any() else self.corpus.has_text


_READ: Final = 150
"""Files whose words are looked at in their order."""
_TESTS: Final = 20
"""Tests that are taken to be of what is asked about."""
_NEAREST: Final = 400
"""Documents that are candidates for their meaning alone."""


def lifted(corpus: Corpus, scores: Floats) -> Floats:
    """(documents,) scores in which code that the best code uses or that uses it moves up, by how surely it does, at
    most to the place of the last of these.

    A symptom is often described where it shows, and its cause is one call away. The order of the best stays, so this
    only decides what a large pack holds besides them.
    """
    code = np.isin(np.array(corpus.kinds)[corpus.kind_of], _CODE) & corpus.visible
    among = np.flatnonzero(code & np.isfinite(scores))
    best = among[np.argsort(-scores[among], kind="stable")[:_BEST]]
    if len(best) < _BEST:
        return scores
    last, floor = float(scores[best[-1]]), float(scores[among].min())
    linked = np.maximum(corpus.linked_from(best), corpus.linking_to(best)) * code
    linked[best] = 0.0
    here = np.where(np.isfinite(scores), scores, floor)
    return np.where(linked > 0, np.maximum(scores, here + linked * (last - here)), scores)


def apart(corpus: Corpus, scores: Floats, kind: str) -> Floats:
    """(documents,) scores in which a document counts less the more of its file are before it, or a pack would show a
    few files from all sides and leave out the one that was meant. Of an issue the order of the best stays."""
    share, kept = _APART.get(kind, (0.0, 0))
    ranked = np.argsort(-scores, kind="stable")
    ranked = ranked[np.isfinite(scores[ranked]) & (corpus.file_of[ranked] >= 0)]
    if not share or not len(ranked):
        return scores
    by_file = np.argsort(corpus.file_of[ranked], kind="stable")
    files = corpus.file_of[ranked][by_file]
    before = np.empty(len(ranked))
    before[by_file] = np.arange(len(ranked)) - np.searchsorted(files, files)
    span = scores[ranked[0]] - scores[ranked[min(_SPAN, len(ranked)) - 1]]
    moved = scores.copy()
    moved[ranked[kept:]] -= share * span * np.log1p(before[kept:])
    return moved


_APART: Final = {"question": (0.3, 0), "issue": (0.05, 30)}
"""By kind of query: what those of its file before it cost a document, as a share of what the best is above the 50th
(times the logarithm of one more than they are), and how many of the best stay where they are."""
_SPAN: Final = 50
_BEST: Final = 30
_CODE: Final = ("function", "method", "class")


def _filled(cosines: Floats) -> Floats:
    """Documents without a vector are as far as the farthest."""
    known = cosines[np.isfinite(cosines)]
    return np.nan_to_num(cosines, nan=float(known.min()) if len(known) else 0.0)


def _spans(number: int) -> list[tuple[int, int]]:
    """Parts of a dotted name to look for, the longest first, those that end it before those that begin it."""
    spans = [(first, last) for first in range(number) for last in range(first + 1, number + 1)]
    spans = [span for span in spans if span[0] == 0 or span[1] == number]
    return sorted(spans, key=lambda span: (-(span[1] - span[0]), -span[1]))


def _once(terms: Mapping[str, float]) -> dict[str, float]:
    return dict.fromkeys(terms, 1.0)


@dataclass(frozen=True)
class Model:
    """A linear model: how much each feature of a file counts, each class of files, and each feature of a document.

    A document's score is the sum of its own features, of what its kind is worth, and of what ``of_file`` says that a
    feature or the class of its file is worth to it. ``name`` says for what the weights are, such as ``change.lexical``.
    """

    name: str
    file: Mapping[str, float]
    path_class: Mapping[str, float]
    document: Mapping[str, float]
    kind: Mapping[str, float]
    of_file: Mapping[str, float] = field(default_factory=dict)
    tuned: bool = False

    @property
    def digest(self) -> str:
        """Of a document's weights: what was tuned from others is not used with these."""
        told = repr(sorted((name, weight) for name, weight in self.weights.items() if weight))
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def files(self, features: Features) -> Floats:
        """(files,) scores; minus infinity for files without a document that the caller may read."""
        total = np.zeros(len(features.corpus.files))
        for name, weight in self.path_class.items():
            total = total + weight * _is(features.corpus.paths.classes, name)
        for name, weight in self.file.items():
            if weight and name in features.files:
                total = total + weight * _comparable(name, features.files, features.compared)
        return np.where(features.corpus.has_text, total, -np.inf)

    def documents(self, features: Features) -> Floats:
        """(documents,) scores; minus infinity for those that nothing of the question is in."""
        columns = self.columns(features)
        total = np.zeros(features.corpus.size)
        for name, weight in self.weights.items():
            if weight and name in columns:
                total = total + weight * columns[name]()
        return np.where(features.matched, total, -np.inf)

    @property
    def weights(self) -> dict[str, float]:
        """By column of ``columns``."""
        tables = {"document": self.document, "kind": self.kind, "of_file": self.of_file}
        return {f"{table}.{name}": weight for table, held in tables.items() for name, weight in held.items()}

    def columns(self, features: Features) -> dict[str, Callable[[], Floats]]:
        """Everything that a document can be judged by, by ``table.name``: each makes (documents,), scaled. Nothing of
        it is kept: all of them together are large."""
        corpus, files = features.corpus, features.files
        found: dict[str, Callable[[], Floats]] = {}
        for name in features.documents:
            found[f"document.{name}"] = partial(_comparable, name, features.documents, corpus.visible)
        for number, kind in enumerate(corpus.kinds):
            found[f"kind.{kind}"] = partial(_is, corpus.kind_of, number)
        for name in files:
            found[f"of_file.{name}"] = partial(_compared_in_files, name, features)
        for name in CLASSES:
            found[f"of_file.{name}"] = partial(_in_files, corpus, _is(corpus.paths.classes, name))
        return found

    def reason(self, features: Features, *, document: int = -1, file: int = -1) -> str:
        """What speaks most for a document or a file, in words."""
        file = int(features.corpus.file_of[document]) if document >= 0 else file
        parts = []
        if document >= 0:
            parts += _shares(self.document, features.documents, document, _REASONS)
        if file >= 0:
            parts += _shares(self.of_file or self.file, features.files, file, _FILE_REASONS)
        best = sorted(parts, key=lambda part: -part[0])[:3]
        return ", ".join(reason for _, reason in best) or "it is near what was asked"


def _shares(
    weights: Mapping[str, float], features: Columns, row: int, reasons: Mapping[str, str]
) -> list[tuple[float, str]]:
    """How much each feature gives to a row, in shares of the feature's best; what the question says outright leads."""
    given = [
        (name, weight * float(features[name][row]) / features.peak(name))
        for name, weight in weights.items()
        if name in features and name in reasons
    ]
    return [(share + 100 * (name in _OUTRIGHT), reasons[name]) for name, share in given if share > 0]


_OUTRIGHT: Final = frozenset({"path_named", "frames", "in_frame", "dotted", "defines", "changed"})

RAW: Final = frozenset(
    {"path_named", "frames", "in_frame", "dotted", "defines", "namesake", "nearby", "changed", "superseded"}
    | {"refers", "referred", "refers_file", "referred_file"}
)
"""Features that are in 0..1 and mean something by themselves."""

_REASONS: Final = {
    "words": "its text holds the words",
    "title_words": "its text holds the title's words",
    "phrases": "its words follow each other as in the request",
    "cosine": "its words are like the request's",
    "cosine_title": "its words are like the title's",
    "definition": "its name is made of the request's words",
    "definition_title": "its name is made of the title's words",
    "dotted": "it is what a dotted name of the request means",
    "mentioned": "it defines a name that the request spells out",
    "in_frame": "a stack trace passes through it",
    "tested": "tests that read like the request use it",
    "refers": "it uses what the change touches",
    "referred": "what the change touches uses it",
    "meaning": "its meaning is near the request's",
    "meaning_title": "its meaning is near the title's",
}
_FILE_REASONS: Final = {
    "words": "its file holds the words",
    "words_three": "parts of its file hold the words",
    "title_words": "its file holds the title's words",
    "phrases": "in its file words follow each other as in the request",
    "path_words": "its path holds the words",
    "called": "its file is called by what is asked for",
    "related": "its file holds other forms of the words",
    "used": "much else uses its file",
    "path_named": "its file is named",
    "frames": "a stack trace passes through its file",
    "best_part": "a part of its file reads like the request",
    "best_part_title": "a part of its file reads like the title",
    "definition": "its file defines what the request is about",
    "definition_title": "its file defines what the title is about",
    "defines": "its file is what a dotted name of the request means",
    "mentioned": "its file defines a name that the request spells out",
    "rare": "its file holds rare names of the request",
    "tested": "tests that read like the request use its file",
    "history": "changes with such words touched its file",
    "namesake": "its file is called like a changed one",
    "nearby": "its file is near a changed one",
    "changed_with": "its file changed together with these before",
    "changed_mostly_with": "most of its file's changes were with these",
    "refers": "its file uses what the change touches",
    "referred": "what the change touches uses its file",
    "refers_file": "its file uses a changed file",
    "referred_file": "a changed file uses its file",
    "meaning": "a part of its file means what the request does",
    "meaning_title": "a part of its file means what the title does",
    "meaning_three": "parts of its file mean what the request does",
}


@cache
def model(kind: str, *, semantic: bool, file: Path | None = None) -> Model:
    """The weights for a kind of query ("issue", "question" or "change"), with or without vectors.

    They stand in ``data/weights.toml``, or in a ``file`` like it, one number a line, to be read and changed. Raises
    ConfigurationError for a file that is none.
    """
    source = file or resources.files("context_os") / "data" / "weights.toml"
    mode = "semantic" if semantic else "lexical"
    try:
        tables = tomllib.loads(source.read_text(encoding="utf-8"))[kind][mode]
        parts: dict[str, Any] = {
            part: {name: float(weight) for name, weight in tables[part].items()}
            for part in ("file", "path_class", "document", "kind", *({"of_file"} & tables.keys()))
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{source} holds no weights [{kind}.{mode}.*]: {error!r}; see weights.toml") from error
    return Model(f"{kind}.{mode}", **parts)


def tuned(model: Model, file: Path) -> Model:
    """The model with a document's weights as ``tuning`` wrote them to ``file``; itself where there is no such file, or
    where it was written for other weights than these."""
    try:
        stamp = file.stat().st_mtime_ns
    except OSError:
        return model
    of, tables = _tuned(file, stamp).get(model.name, ("", {}))
    return replace(model, **tables, tuned=True) if of == model.digest else model


@lru_cache(maxsize=256)
def _tuned(file: Path, stamp: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """By a model's name the digest of the weights that its were made of, and its tables. ``stamp`` tells a new file
    under the same name from the one that was read."""
    try:
        return {
            name: (
                str(held["of"]),
                {part: {key: float(weight) for key, weight in held.get(part, {}).items()} for part in _TUNED},
            )
            for name, held in tomllib.loads(file.read_text(encoding="utf-8")).items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{file} holds no weights: {error!r}; `context-os feedback tune` writes it anew"
        ) from error


_TUNED: Final = ("document", "kind", "of_file")


def _comparable(name: str, columns: Columns, among: NDArray[np.bool_]) -> Floats:
    return columns[name] if name in RAW else scaled(columns[name], among)


def _compared_in_files(name: str, features: Features) -> Floats:
    return _in_files(features.corpus, _comparable(name, features.files, features.compared))


def _is(values: NDArray[Any], value: Any) -> Floats:
    found: Floats = (values == value).astype(np.float64)
    return found


def _in_files(corpus: Corpus, values: Floats) -> Floats:
    """(documents,) what is true of their files; 0 for those of none."""
    if not len(values):
        return np.zeros(corpus.size)
    return np.where(corpus.file_of >= 0, values[corpus.file_of], 0.0)


def scaled(values: Floats, among: NDArray[np.bool_]) -> Floats:
    """Scaled so that the chosen range over 0..1; all 0 where they do not differ."""
    chosen = values[among]
    if not len(chosen):
        return np.zeros(len(values))
    low, high = float(chosen.min()), float(chosen.max())
    return np.clip((values - low) / (high - low), 0.0, 1.0) if high > low else np.zeros(len(values))
