"""What stands beside the changed code in its graph: the code itself, its callers and callees, its tests, its
subclasses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Final

from context_os.change import ChangedFile
from context_os.model import KnowledgeItem
from context_os.selectors import Candidate, Reader, Request, Selector
from context_os.stores import Filter

# What the change touches is worth 1. The rest is worth little by that alone: links are features of ``relevance`` too,
# and in packs of changes more for neighbours crowded out what more than a link speaks for.
_INWARD: Final = {
    "calls": (0.2, "it calls {0}, which the change touches"),
    "tests": (0.21, "it tests {0}, which the change touches"),
    "inherits": (0.17, "it inherits from {0}, which the change touches"),
    "imports": (0.08, "it imports {0}, which the change touches"),
}
_OUTWARD: Final = {
    "calls": (0.15, "{0}, which the change touches, calls it"),
    "inherits": (0.15, "{0}, which the change touches, inherits from it"),
}
_PAGE: Final = 200


class Neighbours(Selector):
    name: ClassVar[str] = "neighbours"

    def select(self, reader: Reader, request: Request) -> list[Candidate]:
        changed = [item for file in request.change.files for item in changed_items(reader, request.repositories, file)]
        found = [Candidate(item, 1.0, self.name, "the change touches its lines") for item in changed]
        for item in changed[: self.limit]:
            found += self._inward(reader, request.repositories, item)
        found += self._outward(reader, request.repositories, changed[: self.limit])
        return _best_of_each(found)[: self.limit]

    def _inward(self, reader: Reader, repositories: tuple[str, ...], changed: KnowledgeItem) -> list[Candidate]:
        targets = {changed.id, *(f"symbol:{name}" for name in changed.symbols)}
        page = reader.store.scan(
            reader.access,
            Filter(targets=tuple(sorted(targets)), relation_types=tuple(_INWARD), repositories=repositories),
            limit=_PAGE,
        )
        return [
            Candidate(item, weight * relation.confidence, self.name, reason.format(changed.metadata.title))
            for item in page.items
            for relation in item.relations
            if relation.target in targets and relation.type in _INWARD
            for weight, reason in [_INWARD[relation.type]]
        ]

    def _outward(
        self, reader: Reader, repositories: tuple[str, ...], changed: Sequence[KnowledgeItem]
    ) -> list[Candidate]:
        wanted = {
            relation.target: (_OUTWARD[relation.type], relation.confidence, item.metadata.title)
            for item in changed
            for relation in item.relations
            if relation.type in _OUTWARD
        }
        names = tuple(sorted(target.removeprefix("symbol:") for target in wanted if target.startswith("symbol:")))
        ids = tuple(sorted(target for target in wanted if ":" not in target))
        items = reader.store.get(reader.access, ids)
        if names:
            named = Filter(symbols=names, source_types=("symbols",), repositories=repositories)
            items += reader.store.scan(reader.access, named, limit=_PAGE).items
        found = []
        for item in items:
            for target in (item.id, *(f"symbol:{name}" for name in item.symbols)):
                if target in wanted:
                    (weight, reason), confidence, title = wanted[target]
                    found.append(Candidate(item, weight * confidence, self.name, reason.format(title)))
        return found


def changed_items(reader: Reader, repositories: tuple[str, ...], file: ChangedFile) -> list[KnowledgeItem]:
    """The innermost definitions that the hunks overlap, on the side that is indexed: the one before the change."""
    here = Filter(source_types=("symbols",), paths=(file.old_path,), repositories=repositories)
    items = [item for item in reader.store.scan(reader.access, here, limit=1_000).items if item.source.start_line]
    touched = {
        item.id: item
        for hunk in file.hunks
        for item in _innermost(items, hunk.old_start, hunk.old_start + max(hunk.old_lines, 1) - 1)
    }
    return list(touched.values())


def _innermost(items: Iterable[KnowledgeItem], first: int, last: int) -> list[KnowledgeItem]:
    over = [item for item in items if _start(item) <= last and _end(item) >= first]
    return [item for item in over if not any(other is not item and _within(other, item) for other in over)]


def _within(inner: KnowledgeItem, outer: KnowledgeItem) -> bool:
    same = (_start(inner), _end(inner)) == (_start(outer), _end(outer))
    return not same and _start(outer) <= _start(inner) and _end(inner) <= _end(outer)


def _start(item: KnowledgeItem) -> int:
    return item.source.start_line or 1


def _end(item: KnowledgeItem) -> int:
    return item.source.end_line or _start(item)


def _best_of_each(candidates: Iterable[Candidate]) -> list[Candidate]:
    best: dict[str, Candidate] = {}
    for each in candidates:
        if each.item.id not in best or each.score > best[each.item.id].score:
            best[each.item.id] = each
    return sorted(best.values(), key=lambda each: (-each.score, each.item.id))
