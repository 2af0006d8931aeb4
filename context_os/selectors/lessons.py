"""What was learned from earlier reviews: the lessons that a request deserves, and the code that these lessons point at.

A lesson is about paths and symbols, or nothing in particular. It is proposed where the request touches what it is about
or reads like it, the more the better it stands. What a lesson names outright (``path:src/pool.py``,
``symbol:pool.close``) is proposed with it, so that what was learned also changes what is found.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Final

from context_os.feedback import Standing
from context_os.model import KnowledgeItem
from context_os.scope import governs
from context_os.selectors import Candidate, Reader, Request, Selector
from context_os.stores import Filter
from context_os.text import words

_NAMED: Final = 1.0
"""Of a lesson about what the change touches."""
_READS: Final = 0.7
"""Of a lesson whose words are all in the request; one that is about other paths gets the half of it."""
_LEAST: Final = 0.15
"""Below this share of its words a lesson merely shares small talk with the request."""
_POINTS: Final = 0.8
"""What a lesson leaves of its score to the items that it points at, shared by how many there are of one target."""
_OF_A_TARGET: Final = 6
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
        asked = _Asked(request, lessons)
        found = [candidate for lesson in lessons if (candidate := self._judge(asked, lesson)) is not None]
        found = sorted(found, key=lambda each: (-each.score, each.item.id))[: self.limit]
        pointed = self._pointed_at(reader, request, found)
        return [*found, *pointed[: self.limit]]

    def _judge(self, asked: _Asked, lesson: KnowledgeItem) -> Candidate | None:
        standing = Standing(lesson.feedback.helpful, lesson.feedback.harmful).balance
        touched = asked.touched_by(lesson)
        share = asked.share_of(lesson)
        told = f"{share:.0%} of its words are in the request"
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
    """A request beside all lessons: its words, weighed by how few of the lessons have them."""

    def __init__(self, request: Request, lessons: Sequence[KnowledgeItem]) -> None:
        self.paths = request.change.paths
        text = f"{request.question}\n{' '.join(self.paths)}\n{request.change.touched_text}"
        self.words = frozenset(words(text))
        self._lessons = {lesson.id: Counter(words(lesson.payload.text)) for lesson in lessons}
        known = Counter(word for each in self._lessons.values() for word in each)
        self._rarity: Mapping[str, float] = {
            word: math.log(1 + len(lessons) / count) for word, count in known.items() if len(word) > 2
        }

    def share_of(self, lesson: KnowledgeItem) -> float:
        """In 0..1: the share of a lesson's words, by their rarity, that the request holds."""
        weights = {word: self._rarity.get(word, 0.0) for word in self._lessons[lesson.id]}
        total = sum(weights.values())
        return sum(weight for word, weight in weights.items() if word in self.words) / total if total else 0.0

    def touched_by(self, lesson: KnowledgeItem) -> str:
        """What of the lesson's the request touches, "" for nothing."""
        for kind, name in _about(lesson):
            if kind == "path":
                governed = next((path for path in self.paths if governs((name,), path)), "")
                if governed:
                    return governed
            elif set(words(name.rpartition(".")[2])[:1]) <= self.words:
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
    """The items of a target with the share of a lesson's score that each gets: those that read like the request
    first."""
    kind, name = target
    named = Filter(
        repositories=request.repositories,
        paths=(name,) if kind == "path" else (),
        symbols=(name,) if kind == "symbol" else (),
    )
    page = reader.store.scan(reader.access, named, limit=_SCANNED)
    items = [item for item in page.items if item.kind != "lesson"]
    wanted = set(words(f"{request.question}\n{request.change.touched_text}"))
    items.sort(key=lambda item: (-len(wanted & set(words(item.payload.text))), item.source.start_line or 0, item.id))
    return [(item, 1 / (1 + 0.25 * place)) for place, item in enumerate(items[:_OF_A_TARGET])]


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
