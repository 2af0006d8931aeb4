"""From what was selected to a ContextPack: fill the layers, keep the budget, say what was left out.

The budget is hard: it bounds the tokens of the finished prompt, headings included. The three layers are filled
in turn: **core** (who the reviewer is, and the rules that govern the change), **catalog** (one line each for what
exists around it and can be asked for by id), **active** (the code and records themselves).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Final, Literal

from context_os.change import Change
from context_os.errors import ConfigurationError
from context_os.model import NEVER, KnowledgeItem, Time, Value
from context_os.ranking import Ranked
from context_os.selectors import Request
from context_os.text import count_tokens

MINIMUM_TOKENS: Final = 64
_CORE_SHARE: Final = 0.25
_CATALOG_SHARE: Final = 0.15
_CORE_KINDS: Final = frozenset({"rule"})
_CATALOG_KINDS: Final = frozenset({"owners"})
_CATALOG_LINES: Final = 40
_FENCE: Final = re.compile(r"`{3,}")


class Freshness(Value):
    """Whether an item still says what its source says. ``revision`` and ``indexed_at`` are of the item,
    ``state`` compares it with the source now: ``fresh`` or ``stale``."""

    revision: str
    indexed_at: Time
    expires_at: Time | None
    state: Literal["fresh", "stale"]


class Entry(Value):
    """One item in the pack. ``tokens`` is what its text costs in the prompt."""

    id: str
    title: str
    kind: str
    path: str
    start_line: int | None
    end_line: int | None
    tokens: int
    score: float
    selector: str
    reason: str
    freshness: Freshness | None


class Omission(Value):
    """What was selected and did not go in, and why. Only ever holds what the caller may read."""

    id: str
    title: str
    reason: str


class Budget(Value):
    max_tokens: int
    used_tokens: int


class Layers(Value):
    core: tuple[Entry, ...] = ()
    catalog: tuple[Entry, ...] = ()
    active: tuple[Entry, ...] = ()


class ContextPack(Value):
    """The answer. ``retrieval`` says how items were found, so that "no vectors" is never silent."""

    budget: Budget
    layers: Layers
    omitted: tuple[Omission, ...]
    retrieval: str
    prompt: str


FreshnessOf = Callable[[Sequence[KnowledgeItem]], dict[str, Freshness]]


def build(
    ranked: Sequence[Ranked], request: Request, max_tokens: int, freshness_of: FreshnessOf, retrieval: str
) -> ContextPack:
    """A pack of ``ranked`` within ``max_tokens`` tokens. Without any candidate the prompt is empty.

    Raises ConfigurationError for a budget below MINIMUM_TOKENS.
    """
    if max_tokens < MINIMUM_TOKENS:
        raise ConfigurationError(f"a pack needs at least {MINIMUM_TOKENS} tokens, not {max_tokens}")
    if not ranked:
        return ContextPack(
            budget=Budget(max_tokens=max_tokens, used_tokens=0),
            layers=Layers(),
            omitted=(),
            retrieval=retrieval,
            prompt="",
        )
    freshness = freshness_of([each.item for each in ranked])
    return _Builder(ranked, request, max_tokens, freshness).pack(retrieval)


@dataclass(frozen=True)
class _Piece:
    """A rendered entry."""

    ranked: Ranked
    text: str
    tokens: int


class _Builder:
    def __init__(
        self, ranked: Sequence[Ranked], request: Request, max_tokens: int, freshness: dict[str, Freshness]
    ) -> None:
        self._ranked = ranked
        self._request = request
        self._max = max_tokens
        self._freshness = freshness
        self._omitted: dict[str, Omission] = {}

    def pack(self, retrieval: str) -> ContextPack:
        rules = [each for each in self._ranked if each.item.kind in _CORE_KINDS]
        listed = [each for each in self._ranked if each.item.kind in _CATALOG_KINDS]
        bodies = [each for each in self._ranked if each.item.kind not in _CORE_KINDS | _CATALOG_KINDS]
        persona = _persona()
        left = self._max - count_tokens(_render(persona, self._request.change, (), (), ())) - 16
        core = self._fill(rules, min(left, int(self._max * _CORE_SHARE)), _body)
        left -= sum(piece.tokens for piece in core)
        reserve = min(int(self._max * _CATALOG_SHARE), left)
        active = self._fill(bodies, left - reserve, _body)
        left -= sum(piece.tokens for piece in active)
        inside = {piece.ranked.item.id for piece in (*core, *active)}
        others = [*listed, *(each for each in bodies if each.item.id not in inside)][:_CATALOG_LINES]
        catalog = self._fill(others, left, _line)
        return self._finished(persona, core, catalog, active, retrieval)

    def _fill(self, ranked: Iterable[Ranked], budget: int, render: Callable[[Ranked], str]) -> list[_Piece]:
        """Take what fits, best first; what does not fit is told, and smaller ones behind it still get their chance."""
        taken: list[_Piece] = []
        for each in ranked:
            text = render(each)
            tokens = count_tokens(text) + 2
            if tokens <= budget:
                taken.append(_Piece(each, text, tokens))
                budget -= tokens
                self._omitted.pop(each.item.id, None)
            else:
                reason = f"needs {tokens:,} tokens, {max(budget, 0):,} were left"
                self._omitted[each.item.id] = Omission(id=each.item.id, title=each.item.metadata.title, reason=reason)
        return taken

    def _finished(
        self, persona: str, core: list[_Piece], catalog: list[_Piece], active: list[_Piece], retrieval: str
    ) -> ContextPack:
        prompt = _render(persona, self._request.change, core, catalog, active)
        # Pieces are counted one by one; joined they may differ by a few tokens, and the budget is hard.
        while (used := count_tokens(prompt)) > self._max:
            layer = active or catalog or core
            if not layer:
                return self._bare(retrieval)
            dropped = layer.pop().ranked.item
            self._omitted[dropped.id] = Omission(id=dropped.id, title=dropped.metadata.title, reason="over the budget")
            prompt = _render(persona, self._request.change, core, catalog, active)
        return ContextPack(
            budget=Budget(max_tokens=self._max, used_tokens=used),
            layers=Layers(
                core=tuple(self._entry(piece) for piece in core),
                catalog=tuple(self._entry(piece) for piece in catalog),
                active=tuple(self._entry(piece) for piece in active),
            ),
            omitted=tuple(self._omitted.values()),
            retrieval=retrieval,
            prompt=prompt,
        )

    def _bare(self, retrieval: str) -> ContextPack:
        """Not even the heading fits."""
        omitted = [
            Omission(id=each.item.id, title=each.item.metadata.title, reason="the budget holds nothing")
            for each in self._ranked
        ]
        budget = Budget(max_tokens=self._max, used_tokens=0)
        return ContextPack(budget=budget, layers=Layers(), omitted=tuple(omitted), retrieval=retrieval, prompt="")

    def _entry(self, piece: _Piece) -> Entry:
        item = piece.ranked.item
        return Entry(
            id=item.id,
            title=item.metadata.title,
            kind=item.kind,
            path=item.source.path,
            start_line=item.source.start_line,
            end_line=item.source.end_line,
            tokens=piece.tokens,
            score=piece.ranked.score,
            selector=piece.ranked.selector,
            reason="; ".join(piece.ranked.reasons),
            freshness=self._freshness.get(item.id),
        )


def _persona() -> str:
    return (files("context_os") / "data" / "persona.md").read_text(encoding="utf-8").strip()


def _render(
    persona: str, change: Change, core: Sequence[_Piece], catalog: Sequence[_Piece], active: Sequence[_Piece]
) -> str:
    parts = [persona]
    if core:
        parts += ["## Rules", *(piece.text for piece in core)]
    if change.files:
        parts += ["## The change", _describe(change)]
    if catalog:
        parts += ["## Also known (ask for it by id)", "\n".join(piece.text for piece in catalog)]
    if active:
        parts += ["## Code and records", *(piece.text for piece in active)]
    return "\n\n".join(parts) + "\n"


def _describe(change: Change) -> str:
    shown = [f"- {file.status} {file.path} (+{file.added_lines} -{file.removed_lines})" for file in change.files[:20]]
    more = len(change.files) - len(shown)
    return "\n".join([*shown, *([f"- and {more} more files"] if more > 0 else [])])


def _place(item: KnowledgeItem) -> str:
    lines = f":{item.source.start_line}-{item.source.end_line}" if item.source.start_line else ""
    return f"{item.source.path}{lines}" if item.source.path else item.source.repository


def _line(ranked: Ranked) -> str:
    item = ranked.item
    return f"- {item.kind} {item.metadata.title} ({_place(item)}) [{item.id}]"


def _body(ranked: Ranked) -> str:
    """The item's text in a fence longer than any inside it, so that no text can end its own frame."""
    item = ranked.item
    longest = max((len(run) for run in _FENCE.findall(item.payload.text)), default=2)
    fence = "`" * max(3, longest + 1)
    head = f"### {item.kind} {item.metadata.title}\n{_place(item)} [{item.id}]"
    return f"{head}\n{fence}{item.source.language}\n{item.payload.text.rstrip()}\n{fence}"


def stamp(item: KnowledgeItem, fresh: bool) -> Freshness:
    """An item's freshness stamp, given whether its source still holds what was indexed."""
    expires = item.expires_at
    return Freshness(
        revision=item.source.revision,
        indexed_at=item.metadata.updated_at,
        expires_at=None if expires == NEVER else expires,
        state="fresh" if fresh else "stale",
    )
