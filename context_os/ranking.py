"""Candidates of all selectors, joined by item and put in one order with their reasons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from context_os.model import KnowledgeItem
from context_os.selectors import Candidate

WEIGHTS: Final[Mapping[str, float]] = {
    "neighbours": 1.0,
    "path_scope": 0.9,
    "lessons": 0.8,
    "bugs": 0.7,
    "hybrid": 0.6,
    "history": 0.4,
}
"""How much a selector's full score counts. One it does not know counts half."""


@dataclass(frozen=True)
class Ranked:
    """An item with its joint score, the selector that gave most of it, and every reason, the strongest first."""

    item: KnowledgeItem
    score: float
    selector: str
    reasons: tuple[str, ...]


def rank(candidates: Iterable[Candidate]) -> list[Ranked]:
    """Sum the weighted scores by item; best first, ties by id, so that equal input gives equal order."""
    by_item: dict[str, list[tuple[float, Candidate]]] = {}
    for each in candidates:
        by_item.setdefault(each.item.id, []).append((WEIGHTS.get(each.selector, 0.5) * each.score, each))
    ranked = [_joined(parts) for parts in by_item.values()]
    return sorted(ranked, key=lambda each: (-each.score, each.item.id))


def _joined(parts: list[tuple[float, Candidate]]) -> Ranked:
    parts = sorted(parts, key=lambda part: (-part[0], part[1].selector))
    strongest = parts[0][1]
    total = round(sum(score for score, _ in parts), 6)
    return Ranked(strongest.item, total, strongest.selector, tuple(part.reason for _, part in parts))
