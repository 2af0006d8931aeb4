"""From what was selected to a ContextPack: choose renderings by value, keep the budget, say what was left out and why.

The budget is hard: it bounds the tokens of the finished prompt, headings included. There are three layers: **core**
(the rules that govern the change), **catalog** (one line each for what exists around it and can be asked for by id)
and **active** (the code and records themselves).

Every item can stand in the prompt in renderings of growing size: as a line, with its signature, with its body; what is
too large for a question's pack also with an excerpt, the lines that have most of what is asked. A rendering is worth
the item's score times its share, less what the prompt shows already. What adds most for its size goes in first, until
nothing fits. Value only falls while a pack fills, so an item is valued again only when it is next: the lazy greedy of
Minoux, Accelerated greedy algorithms for maximizing submodular set functions (1978).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heappop, heappush
from importlib.resources import files
from itertools import islice
from typing import Final, Literal, NamedTuple

from context_os.change import Change
from context_os.errors import ConfigurationError
from context_os.excerpts import passage
from context_os.model import NEVER, KnowledgeItem, LineageRecord, Modality, Time, Value
from context_os.paths import class_of
from context_os.question import read
from context_os.ranking import Ranked
from context_os.selectors import Request
from context_os.text import count_tokens

Rendering = Literal["line", "signature", "excerpt", "body", "inside"]
"""How an item stands in the prompt. ``inside``: its text is part of what is shown of another item."""

MINIMUM_TOKENS: Final = 64
WORTHLESS: Final = "nothing speaks for it: its score is 0"
"""The reason of an omission that no larger budget would have prevented."""
_SHARES: Final[Mapping[Rendering, float]] = {"line": 0.08, "signature": 0.25, "excerpt": 1.0, "body": 1.0}
"""Of an item's worth: a line tells that it is there, a signature how it is used, only the body what is wrong in it. An
excerpt is all of the body that a pack of this size can have."""
_SMALLEST: Final = 16
"""Tokens that every rendering has: an id alone has more."""
_LARGEST: Final = 1 / 3
"""Of the budget: a larger body would crowd out everything around it, so it is told by an excerpt or its signature."""
_EXCERPT: Final = 1 / 4
_LONGEST_EXCERPT: Final = 600
"""What an excerpt has at most: so much of the budget, and so many tokens."""
_CORE_SHARE: Final = 0.25
"""Of the budget at most: rules do not push out what they are about."""
_CATALOG_SHARE: Final = 0.04
"""Of the budget that bodies leave to lines and signatures, which say what there is besides. More costs bodies."""
_LESSON_SHARE: Final = 0.05
"""Of the budget at most: what was learned stands below the rules, and advice is no evidence."""
_CORE_KINDS: Final = frozenset({"rule", "lesson"})
_CATALOG_KINDS: Final = frozenset({"owners"})
_OUTLINES: Final = frozenset({"class", "module"})
_DOCSTRING: Final = 160
_FENCE: Final = re.compile(r"`{3,}")


class _Manner(NamedTuple):
    """How a pack weighs what could go in. ``aside`` is the share of its score that is left to what is no code, or a
    test's. ``outline`` is that of the body of a class or module, whatever functions of it stand beside it; where it is
    None, they take as much of its score as they have of its lines. ``crowding`` is what each body of a file that is in
    takes from the next one's value. Value counts per token to the power of ``size``: at 1 tiny functions push out the
    ones that matter, at 0 size is free."""

    aside: float
    outline: float | None
    crowding: float
    size: float

    def share(self, item: KnowledgeItem) -> float:
        """Of its score, in 0..1."""
        if item.modality is not Modality.CODE or class_of(item.source.path) == "test":
            return self.aside
        return 1.0 if self.outline is None or item.kind not in _OUTLINES else self.outline


_MANNERS: Final[Mapping[str, _Manner]] = {
    # What has to be understood is mostly what runs, and may be in several files.
    "question": _Manner(aside=0.7, outline=None, crowding=0.4, size=0.1),
    # A bug is mended in a function, in one of many of its file, or in what a class lacks.
    "issue": _Manner(aside=0.35, outline=0.5, crowding=0.005, size=0.2),
    "change": _Manner(aside=1.0, outline=None, crowding=0.005, size=0.1),
}
"""By kind of request."""


class Freshness(Value):
    """Whether an item still says what its source says. ``revision`` and ``indexed_at`` are of the item,
    ``state`` compares it with the source now: ``fresh`` or ``stale``."""

    revision: str
    indexed_at: Time
    expires_at: Time | None
    state: Literal["fresh", "stale"]


class Entry(Value):
    """One item in the pack. ``tokens`` is what its text costs in the prompt: 0 for what stands inside another."""

    id: str
    title: str
    kind: str
    path: str
    start_line: int | None
    end_line: int | None
    rendering: Rendering
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
    """The entries of each layer, best first."""

    core: tuple[Entry, ...] = ()
    catalog: tuple[Entry, ...] = ()
    active: tuple[Entry, ...] = ()


class Block(Value):
    """Where a run of the prompt's lines comes from.

    Lines are what newlines end, 1-based and inclusive; the blocks of a prompt cover all of them, each once. ``id`` is
    None for what the pack itself says (``template``) and for what the request said (``change``). ``value`` is what the
    rendering was worth when it was chosen, and ``displaced`` the best item that would have gone in in its place.
    ``revision`` is the commit that the item was read from, ``checksum`` is of its content, ``lineage`` its history
    through the runs.
    """

    first_line: int
    last_line: int
    id: str | None
    rendering: Literal["line", "signature", "excerpt", "body", "template", "change"]
    tokens: int
    value: float | None = None
    score: float | None = None
    selector: str = ""
    reasons: tuple[str, ...] = ()
    displaced: str | None = None
    revision: str = ""
    checksum: str = ""
    lineage: tuple[LineageRecord, ...] = ()


class ContextPack(Value):
    """The answer. ``retrieval`` says how items were found, so that "no vectors" is never silent. ``id`` is the name
    under which it is kept for audits, "" where it is not."""

    budget: Budget
    layers: Layers
    omitted: tuple[Omission, ...]
    retrieval: str
    prompt: str
    explain: tuple[Block, ...] = ()
    id: str = ""


FreshnessOf = Callable[[Sequence[KnowledgeItem]], dict[str, Freshness]]


def build(
    ranked: Sequence[Ranked], request: Request, max_tokens: int, freshness_of: FreshnessOf, retrieval: str
) -> ContextPack:
    """A pack of ``ranked``, whose order does not matter, within ``max_tokens`` tokens. Where nothing goes in the
    prompt is empty.

    Raises ConfigurationError for a budget below MINIMUM_TOKENS.
    """
    if max_tokens < MINIMUM_TOKENS:
        raise ConfigurationError(f"a pack needs at least {MINIMUM_TOKENS} tokens, not {max_tokens}")
    ranked = sorted(ranked, key=lambda each: (-each.score, each.item.id))
    frame = _Frame(request)
    choice = _Choice(ranked, frame, max_tokens)
    choice.fill()
    parts, used = _fitted(frame, choice, max_tokens)
    freshness = freshness_of([each.item for each in ranked]) if ranked else {}
    return ContextPack(
        budget=Budget(max_tokens=max_tokens, used_tokens=used),
        layers=_layers(choice, ranked, freshness),
        omitted=tuple(_omitted(choice, ranked)),
        retrieval=retrieval,
        prompt=_joined(parts),
        explain=tuple(_explained(choice, parts)),
    )


# Renderings


@dataclass(frozen=True)
class _View:
    """One rendering of one item. ``text`` ends as it ends in the prompt: nothing but newlines stand between parts, and
    no token spans them, so that counts add up."""

    ranked: Ranked
    rendering: Literal["line", "signature", "excerpt", "body"]
    text: str
    shown: str = ""
    """What the text has of the item's own, line by line."""
    lines: tuple[int | None, int | None] | None = None
    """Where that stands in the source, if not where the item does."""

    @cached_property
    def tokens(self) -> int:
        return count_tokens(self.text)

    @property
    def item(self) -> KnowledgeItem:
        return self.ranked.item

    @property
    def layer(self) -> str:
        if self.rendering in {"line", "signature"}:
            return "catalog"
        return "core" if self.item.kind in _CORE_KINDS else "active"


def _views(ranked: Ranked) -> Iterator[_View]:
    """What may be shown of an item, the smallest first."""
    item = ranked.item
    line = f"- {item.kind} {_one_line(item.metadata.title)} ({_place(item)}) [{item.id}]"
    yield _View(ranked, "line", f"{line}\n")
    if outline := _outline(item):
        yield _View(ranked, "signature", f"{line} {outline}\n")
    text = item.payload.text.rstrip()
    if item.kind in _CORE_KINDS:
        yield _View(ranked, "body", f"### {_heading_of(item)}, {_place(item)}\n{_fenced(item, text)}\n\n", text)
    elif item.kind not in _CATALOG_KINDS:
        yield _View(ranked, "body", f"{_headed(item)}{_lines(item, ', lines ')}\n{_fenced(item, text)}\n\n", text)


def _excerpt(body: _View, asked: frozenset[str], max_tokens: int) -> _View | None:
    """The lines of a body that have most of what is asked, None where not even one is small enough."""
    item, lines = body.item, body.shown.split("\n")
    start, end = item.source.start_line, item.source.end_line
    around = f"{_headed(item)}, lines {end}-{end} of {start}-{end}\n{_fenced(item, '')}\n\n"
    found = passage(lines, asked, max_tokens - count_tokens(around))
    if not found:
        return None
    shown = "\n".join(lines[place] for place in found)
    where = f", an excerpt of lines {start}-{end}" if start else ", an excerpt"
    if start and len(lines) == (end or start) - start + 1:  # else the text is not just those lines: a class's outline
        start, end = start + found.start, start + found.stop - 1
        where = f", lines {start}-{end} of {item.source.start_line}-{item.source.end_line}"
    return _View(body.ranked, "excerpt", f"{_headed(item)}{where}\n{_fenced(item, shown)}\n\n", shown, (start, end))


def _headed(item: KnowledgeItem) -> str:
    return f"#### {item.kind} {_one_line(item.metadata.title)}"


def _heading_of(item: KnowledgeItem) -> str:
    """A lesson's title is its own first words: its name is enough where the text follows."""
    if item.kind == "lesson" and (bullet := item.payload.structured.get("bullet")):
        return _one_line(f"Lesson {bullet}")
    return _one_line(item.metadata.title)


def _outline(item: KnowledgeItem) -> str:
    """Its signature and the beginning of its docstring; on one line, so that it cannot end the catalog's fence."""
    signature = _one_line(str(item.payload.structured.get("signature", "")))
    told = str(item.payload.structured.get("docstring", "")).strip().partition("\n")[0]
    return " # ".join(filter(None, [signature, _one_line(told)[:_DOCSTRING]]))


def _fenced(item: KnowledgeItem, text: str) -> str:
    """The item's text or a part of it in a fence longer than any inside, so that no text can end its own frame."""
    longest = max(map(len, _FENCE.findall(text))) if "```" in text else 2
    fence = "`" * (longest + 1)
    return f"{fence}{item.source.language}\n{text}\n{fence}"


def _place(item: KnowledgeItem) -> str:
    return f"{_one_line(item.source.path)}{_lines(item, ':')}" if item.source.path else item.source.repository


def _lines(item: KnowledgeItem, before: str) -> str:
    return f"{before}{item.source.start_line}-{item.source.end_line}" if item.source.start_line else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())


# The choice


def _governs(view: _View) -> bool:
    """Whether it is a rule, whole, that was selected for the paths it governs."""
    return view.layer == "core" and view.ranked.selector == "path_scope"


class _Held(NamedTuple):
    view: _View
    value: float


_File = tuple[str, str]


def _file(item: KnowledgeItem) -> _File:
    return item.source.path, item.source.repository


class _Choice:
    """What is in the pack so far. ``held`` is in the order in which it was taken, ``inside`` maps an item to the one
    whose text shows it."""

    def __init__(self, ranked: Sequence[Ranked], frame: _Frame, max_tokens: int) -> None:
        self.left = max_tokens - frame.tokens  # below 0 where not even the frame fits
        self.held: dict[str, _Held] = {}
        self.inside: dict[str, str] = {}
        self.views = {each.item.id: tuple(_views(each)) for each in ranked}
        self._worth = {each.item.id: each.score * frame.manner.share(each.item) for each in ranked}
        self._core_left = int(max_tokens * _CORE_SHARE)
        self._lessons_left = int(max_tokens * _LESSON_SHARE)
        self._largest = max_tokens * _LARGEST
        self._excerpt = min(int(max_tokens * _EXCERPT), _LONGEST_EXCERPT)
        self._catalog_left = int(max_tokens * _CATALOG_SHARE)
        self._frame = frame
        self._enclosed = _enclosed([each.item for each in ranked])
        self._contents = _contents([each.item for each in ranked], self._enclosed)
        self._bodies: dict[_File, set[str]] = {}
        self._texts: dict[str, str] = {}

    def fill(self) -> None:
        """The rules that govern the change, the best first, then whatever adds most for its size, while it fits."""
        if self._frame.is_of_a_change:
            self._fill(view for views in self.views.values() for view in views if _governs(view))
        self._fill(view for views in self.views.values() for view in views)

    def _fill(self, views: Iterable[_View]) -> None:
        """Nothing is counted before it is next."""
        smallest = _SMALLEST**self._frame.manner.size
        waiting = [
            (-self._worth[view.item.id] * _SHARES[view.rendering] / smallest, view.item.id, order, view)
            for order, view in enumerate(views)
        ]
        heapify(waiting)
        while waiting:
            rate, id, order, view = heappop(waiting)
            now = self._rate(view)
            if 0 < now < -rate:
                heappush(waiting, (-now, id, order, view))
            elif now > 0 and self._fits(view):
                self._take(view)
            elif now > 0 and (part := self._part(view)):
                heappush(waiting, (-self._rate(part), id, order, part))

    def _part(self, body: _View) -> _View | None:
        """An excerpt of a body that is too large for any pack of this size. A change has none: which lines of the rest
        of the code it deserves its words do not tell."""
        if self._frame.is_of_a_change or body.layer != "active" or body.tokens <= self._largest:
            return None
        room = min(self._excerpt, self.left - max(self._catalog_left, 0) - self._frame.heading_tokens(body.item))
        if 2 * room < self._excerpt:  # a few lines say nothing
            return None
        part = _excerpt(body, self._frame.asked, room)
        if part:
            shown, inner = _plain(part.shown), self._contents.get(part.item.id, ())
            self._contents[part.item.id] = [id for id in inner if _plain(self.views[id][0].item.payload.text) in shown]
        return part

    def drop(self, tokens: int) -> None:
        """Take out what came last, at least so many tokens of it."""
        self.left = 0
        while tokens > 0 and self.held:
            tokens -= self.held.popitem()[1].view.tokens

    def holder(self, item: KnowledgeItem) -> KnowledgeItem | None:
        """The item whose text in the pack shows this one."""
        held = self.held.get(self.inside.get(item.id, ""))
        return held.view.item if held else None

    def refused(self) -> list[tuple[int, _View]]:
        """Bodies that did not go in, with what they would cost; the best for their size first, and only those that
        are smaller than every better one."""
        bodies = [views[-1] for views in self.views.values() if views[-1].rendering == "body"]
        out = [view for view in bodies if view.item.id not in self.held or self.held[view.item.id].view != view]
        rated = [(self._rate(view), view) for view in out]
        smaller: list[tuple[int, _View]] = []
        for rate, view in sorted(rated, key=lambda each: (-each[0], each[1].item.id)):
            cost = self._cost(view)
            if rate > 0 and view.tokens <= self._largest and (not smaller or cost < smaller[-1][0]):
                smaller.append((cost, view))
        return smaller

    def _rate(self, view: _View) -> float:
        gain = self._value(view) - self._value_held(view.item.id)
        return gain / max(self._cost(view), 1) ** self._frame.manner.size if gain > 0 else 0.0

    def _value(self, view: _View) -> float:
        if view.item.id in self.inside:
            return 0.0
        worth = self._worth[view.item.id] * _SHARES[view.rendering]
        return worth * self._novelty(view.item) if view.layer != "catalog" else worth

    def _value_held(self, id: str) -> float:
        return self.held[id].value if id in self.held else 0.0

    def _novelty(self, item: KnowledgeItem) -> float:
        """How much of a body the prompt does not show yet, in 0..1."""
        if self._texts.get(item.payload.text, item.id) != item.id:
            return 0.0
        beside = self._bodies.get(_file(item), set())
        shown = [inner for inner in self._enclosed.get(item.id, ()) if inner.id in beside]
        manner = self._frame.manner
        stands_alone = manner.outline is not None and item.kind in _OUTLINES
        known = 0.0 if stands_alone else _covered(item, shown)
        return (1 - known) / (1 + manner.crowding * len(beside))

    def _cost(self, view: _View) -> int:
        replaced = [view.item.id, *(self._contents.get(view.item.id, ()) if view.layer != "catalog" else ())]
        beside = self._bodies.get(_file(view.item), ())
        heading = view.layer == "active" and not any(self.held[id].view.layer == "active" for id in beside)
        return (
            view.tokens
            + (self._frame.heading_tokens(view.item) if heading else 0)
            - sum(self.held[id].view.tokens for id in replaced if id in self.held)
        )

    def _fits(self, view: _View) -> bool:
        if view.layer == "catalog":
            return self._cost(view) <= self.left
        if view.tokens > (self._core_left if view.layer == "core" else self._largest):
            return False
        if view.item.kind == "lesson" and view.tokens > self._lessons_left:
            return False
        return self._cost(view) <= self.left - max(self._catalog_left, 0)

    def _take(self, view: _View) -> None:
        item, held = view.item, _Held(view, self._value(view))
        self.left -= self._cost(view)
        self._leave(item.id)
        self.held[item.id] = held
        if view.layer == "catalog":
            self._catalog_left -= view.tokens
            return
        self._core_left -= view.tokens if view.layer == "core" else 0
        self._lessons_left -= view.tokens if view.item.kind == "lesson" else 0
        self._texts[item.payload.text] = item.id
        for id in self._contents.get(item.id, ()):
            self.inside[id] = item.id
            self._leave(id)
        self._bodies.setdefault(_file(item), set()).add(item.id)

    def _leave(self, id: str) -> None:
        """Give way to a larger view, of the same item or of one that shows this one too."""
        held = self.held.pop(id, None)
        if held and held.view.layer == "catalog":
            self._catalog_left += held.view.tokens
        elif held:
            self._bodies[_file(held.view.item)].discard(id)


def _enclosed(items: Iterable[KnowledgeItem]) -> dict[str, list[KnowledgeItem]]:
    """For each item those that stand on lines of its own, in the order of the file."""
    by_file: dict[_File, list[KnowledgeItem]] = {}
    for item in items:
        if item.source.start_line and item.source.path and item.kind not in _CATALOG_KINDS:
            by_file.setdefault(_file(item), []).append(item)
    found: dict[str, list[KnowledgeItem]] = {}
    for beside in by_file.values():
        beside.sort(key=_lines_of)
        for place, outer in enumerate(beside):
            for inner in islice(beside, place + 1, None):
                if (inner.source.start_line or 0) > _last(outer):
                    break
                if _last(inner) <= _last(outer):
                    found.setdefault(outer.id, []).append(inner)
    return found


def _contents(items: Iterable[KnowledgeItem], enclosed: Mapping[str, list[KnowledgeItem]]) -> dict[str, list[str]]:
    """Of the enclosed those whose text is part of the other's, as that of a function inside a function is. Lines
    alone do not tell: a class's text has its methods' signatures only."""
    near = {item.id for found in enclosed.values() for item in found} | set(enclosed)
    plain = {item.id: _plain(item.payload.text) for item in items if item.id in near}
    return {id: [inner.id for inner in found if plain[inner.id] in plain[id]] for id, found in enclosed.items()}


def _plain(text: str) -> str:
    """The text without indentation, framed so that only whole lines match."""
    return "\n" + "\n".join(line.strip() for line in text.strip().split("\n")) + "\n"


def _covered(item: KnowledgeItem, inside: Sequence[KnowledgeItem]) -> float:
    """The share of an item's lines on which those inside it stand, which are in the order of the file."""
    if not inside:
        return 0.0
    start = item.source.start_line or 1
    reached, covered = start - 1, 0
    for other in inside:
        first = max(other.source.start_line or 1, reached + 1)
        covered += max(_last(other) - first + 1, 0)
        reached = max(reached, _last(other))
    return covered / (_last(item) - start + 1)


def _last(item: KnowledgeItem) -> int:
    return item.source.end_line or item.source.start_line or 0


def _lines_of(item: KnowledgeItem) -> tuple[int, int, str, str]:
    """Sorts as a file reads: what encloses comes before what it encloses."""
    return item.source.start_line or 0, -_last(item), item.metadata.title, item.id


# The prompt


class _Part(NamedTuple):
    """A run of whole lines of the prompt, with the blank line that ends it."""

    text: str
    view: _View | None = None
    rendering: Literal["template", "change"] = "template"


class _Frame:
    """Everything in the prompt that is no item, in an order that keeps the beginning alike from request to request:
    the reviewer, the rules, the catalog, the code, and what is particular to the request last."""

    _RULES: Final = "## Rules\n\n"
    _CATALOG: Final = "## Also known (ask for it by id)\n\n```text\n"
    _CATALOG_END: Final = "```\n\n"
    _ACTIVE: Final = "## Code and records\n\n"

    def __init__(self, request: Request) -> None:
        self.is_of_a_change = bool(request.change.files)
        self.asked = frozenset(read(request.question).content_words)
        self.manner = _MANNERS["change" if self.is_of_a_change else request.kind]
        self._several = len(request.repositories) != 1
        self._persona = (files("context_os") / "data" / "persona.md").read_text(encoding="utf-8").strip() + "\n\n"
        self._change = f"## The change\n\n{_describe(request.change)}\n\n" if request.change.files else ""
        self._heading_tokens: dict[str, int] = {}

    @cached_property
    def tokens(self) -> int:
        fixed = (self._persona, self._RULES, self._CATALOG, self._CATALOG_END, self._ACTIVE, self._change)
        return sum(map(count_tokens, fixed))

    def heading_tokens(self, item: KnowledgeItem) -> int:
        heading = self._heading(item)
        if heading not in self._heading_tokens:
            self._heading_tokens[heading] = count_tokens(heading)
        return self._heading_tokens[heading]

    def parts(self, held: Iterable[_Held]) -> Iterator[_Part]:
        """The prompt of what is held, nothing where nothing is."""
        layers: dict[str, list[_View]] = {"core": [], "catalog": [], "active": []}
        for view, _ in held:
            layers[view.layer].append(view)
        if not any(layers.values()):
            return
        yield _Part(self._persona)
        yield from self._core(sorted(layers["core"], key=_rule_order))
        yield from self._catalog(sorted(layers["catalog"], key=_order))
        yield from self._active(sorted(layers["active"], key=_order))
        if self._change:
            yield _Part(self._change, rendering="change")

    def _core(self, views: Sequence[_View]) -> Iterator[_Part]:
        if views:
            yield _Part(self._RULES)
            yield from (_Part(view.text, view) for view in views)

    def _catalog(self, views: Sequence[_View]) -> Iterator[_Part]:
        if views:
            yield _Part(self._CATALOG)
            yield from (_Part(view.text, view) for view in views)
            yield _Part(self._CATALOG_END)

    def _active(self, views: Sequence[_View]) -> Iterator[_Part]:
        file: _File | None = None
        for view in views:
            if file is None:
                yield _Part(self._ACTIVE)
            if file != _file(view.item):
                file = _file(view.item)
                yield _Part(self._heading(view.item))
            yield _Part(view.text, view)

    def _heading(self, item: KnowledgeItem) -> str:
        path, repository = map(_one_line, _file(item))
        return f"### {' '.join(filter(None, [repository if self._several or not path else '', path]))}\n\n"


def _order(view: _View) -> tuple[object, ...]:
    return (*_file(view.item), *_lines_of(view.item))


def _rule_order(view: _View) -> tuple[bool, str, str, str, str]:
    """Rules, then lessons."""
    item = view.item
    return item.kind == "lesson", item.source.path, item.metadata.title, item.source.repository, item.id


def _describe(change: Change) -> str:
    shown = [
        f"- {file.status} {_one_line(file.path)} (+{file.added_lines} -{file.removed_lines})"
        for file in change.files[:20]
    ]
    more = len(change.files) - len(shown)
    return "\n".join([*shown, *([f"- and {more} more files"] if more > 0 else [])])


def _joined(parts: Sequence[_Part]) -> str:
    return "".join(part.text for part in parts).removesuffix("\n")


def _fitted(frame: _Frame, choice: _Choice, max_tokens: int) -> tuple[list[_Part], int]:
    """The parts of the prompt and its tokens. Counts of parts add up but for what a tokenizer makes of odd ends, and
    the budget is hard: what came last goes while the whole is too long."""
    while True:
        parts = list(frame.parts(choice.held.values()))
        used = count_tokens(_joined(parts))
        if used <= max_tokens:
            return parts, used
        choice.drop(used - max_tokens)


# What is told about it


def _layers(choice: _Choice, ranked: Iterable[Ranked], freshness: Mapping[str, Freshness]) -> Layers:
    layers: dict[str, list[Entry]] = {"core": [], "catalog": [], "active": []}
    for each in ranked:
        holder = choice.holder(each.item)
        if held := choice.held.get(each.item.id):
            layers[held.view.layer].append(_entry(each, held.view, "", freshness))
        elif holder:
            where = f"its text stands in {holder.metadata.title}"
            layers["active"].append(_entry(each, None, where, freshness))
    return Layers.model_validate({name: tuple(entries) for name, entries in layers.items()})


def _entry(ranked: Ranked, view: _View | None, where: str, freshness: Mapping[str, Freshness]) -> Entry:
    """Without a view of its own it stands inside another."""
    item = ranked.item
    start, end = (view and view.lines) or (item.source.start_line, item.source.end_line)
    return Entry(
        id=item.id,
        title=item.metadata.title,
        kind=item.kind,
        path=item.source.path,
        start_line=start,
        end_line=end,
        rendering=view.rendering if view else "inside",
        tokens=view.tokens if view else 0,
        score=ranked.score,
        selector=ranked.selector,
        reason="; ".join([*ranked.reasons, *([where] if where else [])]),
        freshness=freshness.get(item.id),
    )


def _omitted(choice: _Choice, ranked: Iterable[Ranked]) -> Iterator[Omission]:
    for each in ranked:
        item = each.item
        if item.id not in choice.held and choice.holder(item) is None:
            least = choice.views[item.id][0].tokens
            reason = f"needs {least:,} tokens even as a line, {max(choice.left, 0):,} were left"
            if each.score <= 0:
                reason = WORTHLESS
            yield Omission(id=item.id, title=item.metadata.title, reason=reason)


def _explained(choice: _Choice, parts: Sequence[_Part]) -> Iterator[Block]:
    """One block a part, in the order of the prompt."""
    refused = choice.refused() if parts else []
    first, end = 1, sum(part.text.count("\n") for part in parts) - 1  # the last part's blank line is cut off
    for part in parts:
        last = min(first + part.text.count("\n") - 1, end)
        if part.view is None:
            tokens = count_tokens(part.text)
            yield Block(first_line=first, last_line=last, id=None, rendering=part.rendering, tokens=tokens)
        else:
            room = choice.left + part.view.tokens
            displaced = next((view.item.id for cost, view in refused if cost <= room), None)
            yield _block(first, last, choice.held[part.view.item.id], displaced)
        first = last + 1


def _block(first: int, last: int, held: _Held, displaced: str | None) -> Block:
    view = held.view
    return Block(
        first_line=first,
        last_line=last,
        id=view.item.id,
        rendering=view.rendering,
        tokens=view.tokens,
        value=round(held.value, 6),
        score=view.ranked.score,
        selector=view.ranked.selector,
        reasons=view.ranked.reasons,
        displaced=displaced,
        revision=view.item.source.revision,
        checksum=view.item.metadata.checksum,
        lineage=view.item.metadata.lineage,
    )


def stamp(item: KnowledgeItem, fresh: bool) -> Freshness:
    """An item's freshness stamp, given whether its source still holds what was indexed."""
    expires = item.expires_at
    return Freshness(
        revision=item.source.revision,
        indexed_at=item.metadata.updated_at,
        expires_at=None if expires == NEVER else expires,
        state="fresh" if fresh else "stale",
    )
