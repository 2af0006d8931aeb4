"""The team's rules that govern the changed paths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from context_os.model import KnowledgeItem
from context_os.scope import governs
from context_os.selectors import Candidate, Reader, Request, Selector
from context_os.stores import Filter


class PathScope(Selector):
    name: ClassVar[str] = "path_scope"

    def select(self, reader: Reader, request: Request) -> list[Candidate]:
        paths = [file.path for file in request.change.files]
        rules = Filter(kinds=("rule",), repositories=request.repositories)
        found = [
            candidate for rule in _all(reader, rules) for candidate in self._judge(rule, paths, bool(request.question))
        ]
        return sorted(found, key=lambda each: (-each.score, each.item.id))[: self.limit]

    def _judge(self, rule: KnowledgeItem, paths: Sequence[str], asked: bool) -> list[Candidate]:
        globs = [str(glob) for glob in rule.payload.structured.get("applies_to", ["**"])]
        everywhere = globs == ["**"]
        on_request = everywhere and not rule.payload.structured.get("always_apply", True)
        governed = [path for path in paths if governs(globs, path)]
        if governed:
            # A rule written for these paths says more about them than one written for all.
            score = 0.3 if on_request else 0.6 if everywhere else 1.0
            shown = f"{governed[0]}" + (f" and {len(governed) - 1} more" if len(governed) > 1 else "")
            return [Candidate(rule, score, self.name, f"it governs {shown}")]
        if asked and not paths and everywhere:
            return [Candidate(rule, 0.2, self.name, "it holds for the whole repository")]
        return []


def _all(reader: Reader, filter: Filter) -> Iterator[KnowledgeItem]:
    cursor: str | None = None
    while True:
        page = reader.store.scan(reader.access, filter, cursor, limit=500)
        yield from page.items
        cursor = page.cursor
        if cursor is None:
            return
