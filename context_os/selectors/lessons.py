"""What was learned from earlier reviews: the lessons that a request deserves, and the code that these lessons point at.

A lesson is about paths and symbols, or nothing in particular. It is proposed where the request touches what it is about
or reads like it, the more the better it stands. What a lesson names outright (``path:src/pool.py``,
``symbol:pool.close``) is proposed with it, so that what was learned also changes what is found.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Final

from context_os.corpus import Corpus
from context_os.feedback import Standing
from context_os.model import KnowledgeItem
from context_os.scope import governs
from context_os.selectors import Candidate, Reader, Request, Selector
from context_os.stores import Filter
from context_os.text import words

_NAMED: Final = 1.0
"""Of a lesson about what the change touches."""
_READS: Final = 0.7
"""Of a lesson that reads like the request; one that is about other paths gets the half of it."""
_LEAST: Final = 0.25
"""Below this share of their words a lesson and a request merely share small talk."""
_QUESTION: Final = 100
"""Words of a request; one of more is longer than any lesson."""
_SHORT: Final = 3
"""Names up to this length say nothing by themselves."""
_POINTS: Final = 0.15
"""What a lesson leaves of its score to the items that it points at: a hint beside what reads like the request. Twice
that crowded out answers in one of three repositories."""
_OF_A_TARGET: Final = 2
_LONGEST_QUOTE: Final = 100
_SCANNED: Final = 400
"""Items of one target that are looked at."""
_GLOB: Final = frozenset("*?[!")


class Lessons(Selector):
    """``limit`` bounds the lessons, and the items that they point at once more."""

    name: ClassVar[str] = "lessons"

    limit: int = 20

    def select(self, reader: Reader, request: Request) -> list[Candidate]:
        lessons = list(_all(reader, request))
        if not lessons:
            return []
        asked = _Asked(request, lessons, reader.corpus)
        found = [candidate for lesson in lessons if (candidate := self._judge(asked, lesson)) is not None]
        found = sorted(found, key=lambda each: (-each.score, each.item.id))[: self.limit]
        pointed = self._pointed_at(reader, request, found)
        return [*found, *pointed[: self.limit]]

    def _judge(self, asked: _Asked, lesson: KnowledgeItem) -> Candidate | None:
        standing = _standing(lesson).balance
        touched = asked.touched_by(lesson)
        share = asked.share_of(lesson)
        told = f"it reads like the request ({share:.0%} of the shorter one's words)"
        if touched:
            score, reason = _NAMED * (0.6 + 0.4 * share), f"it was learned about {touched}"
        elif share >= _LEAST:
            score, reason = _READS * share * (0.5 if asked.elsewhere(lesson) else 1.0), told
        else:
            return None
        if lesson.feedback.helpful:
            reason += f", and it helped {lesson.feedback.helpful} times"
        score = max(min(score * (1 + standing), 1.0), 0.0)
        return Candidate(lesson, round(score, 6), self.name, reason) if score > 0 else None

    def _pointed_at(self, reader: Reader, request: Request, found: Sequence[Candidate]) -> list[Candidate]:
        best: dict[str, Candidate] = {}
        for candidate in found:
            for target in _targets(candidate.item):
                for item, share in _items(reader, request, target):
                    score = round(candidate.score * _POINTS * share, 6)
                    if item.id not in best or best[item.id].score < score:
                        reason = f"lesson {_name(candidate.item)} says: {_quote(candidate.item)}"
                        best[item.id] = Candidate(item, score, self.name, reason)
        return sorted(best.values(), key=lambda each: (-each.score, each.item.id))


class _Asked:
    """A request beside all lessons."""

    def __init__(self, request: Request, lessons: Sequence[KnowledgeItem], corpus: Corpus | None) -> None:
        self.paths = request.change.paths
        text = f"{request.question}\n{' '.join(self.paths)}\n{request.change.touched_text}"
        self.words = frozenset(words(text))
        self._corpus = corpus
        self._texts = {lesson.id: frozenset(words(lesson.payload.text)) for lesson in lessons}
        self._known = Counter(word for each in self._texts.values() for word in each)
        self._weight = self._sum(self.words) if len(self.words) <= _QUESTION else math.inf

    def share_of(self, lesson: KnowledgeItem) -> float:
        """In 0..1: what a lesson and the request have in common, of the shorter one; words weigh by their rarity."""
        text = self._texts[lesson.id]
        whole = min(self._sum(text), self._weight)
        return min(self._sum(text & self.words) / whole, 1.0) if whole else 0.0

    def _sum(self, chosen: Iterable[str]) -> float:
        return sum(self._rarity(word) for word in chosen if len(word) > _SHORT - 1)

    def _rarity(self, word: str) -> float:
        """Logarithm of how few documents have it: of the repository's, where their statistics are here."""
        if self._corpus is not None:
            return math.log(1 + len(self._corpus.files) / (1 + self._corpus.document_frequency(word)))
        return math.log(1 + len(self._texts) / (1 + self._known[word]))

    def touched_by(self, lesson: KnowledgeItem) -> str:
        """What of the lesson's the request touches, "" for nothing."""
        for kind, name in _about(lesson):
            if kind == "path":
                governed = next((path for path in self.paths if governs((name,), path)), "")
                if governed:
                    return governed
            elif len(last := name.rpartition(".")[2]) > _SHORT and last.strip("_").lower() in self.words:
                return name
        return ""

    def elsewhere(self, lesson: KnowledgeItem) -> bool:
        """Whether the lesson is about paths, and the change about others."""
        return bool(self.paths) and any(kind == "path" for kind, _ in _about(lesson))


def _about(lesson: KnowledgeItem) -> Iterator[tuple[str, str]]:
    for relation in lesson.relations:
        kind, _, name = relation.target.partition(":")
        if relation.type == "about" and kind in {"path", "symbol"} and name:
            yield kind, name


def _targets(lesson: KnowledgeItem) -> list[tuple[str, str]]:
    """What it names outright, which no pattern does."""
    return [(kind, name) for kind, name in _about(lesson) if kind == "symbol" or not _GLOB & set(name)]


def _items(reader: Reader, request: Request, target: tuple[str, str]) -> list[tuple[KnowledgeItem, float]]:
    """The items of a target with the share of a lesson's score that each gets: first those that were found helpful,
    then those that read like the request."""
    kind, name = target
    named = Filter(
        repositories=request.repositories,
        paths=(name,) if kind == "path" else (),
        symbols=(name,) if kind == "symbol" else (),
    )
    page = reader.store.scan(reader.access, named, limit=_SCANNED)
    items = [item for item in page.items if item.kind != "lesson"]
    wanted = set(words(f"{request.question}\n{request.change.touched_text}"))
    shared = {item.id: len(wanted & set(words(item.payload.text))) for item in items}
    items.sort(key=lambda item: (-_standing(item).balance, -shared[item.id], item.source.start_line or 0, item.id))
    return [(item, 1 / (1 + 0.25 * place)) for place, item in enumerate(items[:_OF_A_TARGET])]


def _standing(item: KnowledgeItem) -> Standing:
    return Standing(item.feedback.helpful, item.feedback.harmful)


def _name(lesson: KnowledgeItem) -> str:
    return str(lesson.payload.structured.get("bullet", lesson.id))


def _quote(lesson: KnowledgeItem) -> str:
    text = " ".join(lesson.payload.text.split())
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE].rstrip()}..."


def _all(reader: Reader, request: Request) -> Iterator[KnowledgeItem]:
    cursor: str | None = None
    while True:
        page = reader.store.scan(
            reader.access, Filter(kinds=("lesson",), repositories=request.repositories), cursor, limit=500
        )
        yield from page.items
        cursor = page.cursor
        if cursor is None:
            return
