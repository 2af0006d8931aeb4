"""Candidates of all selectors, joined by item and put in one order with their reasons, weighed by votes.

A joint score is multiplied by ``1 + STRENGTH * balance``. The balance (see ``feedback.Standing``) is the mean of a Beta
posterior with a symmetric prior, so that few votes move little, many no further than STRENGTH, and old ones less.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from context_os.feedback import Standing
from context_os.model import KnowledgeItem
from context_os.selectors import Candidate

WEIGHTS: Final[Mapping[str, float]] = {
    "hybrid": 1.0,
    "neighbours": 1.0,
    "path_scope": 0.9,
    "lessons": 0.8,
    "bugs": 0.7,
    "history": 0.1,
}
"""How much a selector's full score counts. One it does not know counts half. Chosen on packs of 192 changes of six
repositories, by how many functions of a hidden file they hold."""

STRENGTH: Final = 0.25
"""The share of its score that an item can win or lose by votes; at 1 they cost as many answers as they brought
(``benchmarks/README.md``)."""


@dataclass(frozen=True)
class Ranked:
    """An item with its joint score, the selector that gave most of it, and every reason, the strongest first."""

    item: KnowledgeItem
    score: float
    selector: str
    reasons: tuple[str, ...]


def rank(candidates: Iterable[Candidate], standings: Mapping[str, Standing] | None = None) -> list[Ranked]:
    """Sum the weighted scores by item; best first, ties by id, so that equal input gives equal order. ``standings`` are
    by item's id; who has none keeps its score."""
    by_item: dict[str, list[tuple[float, Candidate]]] = {}
    for each in candidates:
        by_item.setdefault(each.item.id, []).append((WEIGHTS.get(each.selector, 0.5) * each.score, each))
    ranked = [_joined(parts, (standings or {}).get(id)) for id, parts in by_item.items()]
    return sorted(ranked, key=lambda each: (-each.score, each.item.id))


def _joined(parts: list[tuple[float, Candidate]], standing: Standing | None) -> Ranked:
    parts = sorted(parts, key=lambda part: (-part[0], part[1].selector))
    strongest = parts[0][1]
    total = sum(score for score, _ in parts)
    reasons = tuple(part.reason for _, part in parts)
    if standing is not None and any(standing.said):
        total *= 1 + STRENGTH * standing.balance
        reasons += ("{} found it helpful, {} harmful".format(*standing.said),)
    return Ranked(strongest.item, round(total, 6), strongest.selector, reasons)
