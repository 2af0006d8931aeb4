"""Bugs that were fixed in the changed code, and bugs whose symptoms read like the request."""

from __future__ import annotations

from typing import ClassVar

from context_os.selectors import Candidate, Reader, Request, Selector
from context_os.stores import Filter, Mode, Query


class Bugs(Selector):
    name: ClassVar[str] = "bugs"

    limit: int = 20

    def select(self, reader: Reader, request: Request) -> list[Candidate]:
        found = {each.item.id: each for each in self._similar(reader, request)}
        found |= {each.item.id: each for each in self._here(reader, request)}
        return sorted(found.values(), key=lambda each: (-each.score, each.item.id))[: self.limit]

    def _here(self, reader: Reader, request: Request) -> list[Candidate]:
        if not request.change.paths:
            return []
        touching = Filter(
            kinds=("bug_spec",),
            targets=tuple(f"path:{path}" for path in request.change.paths),
            repositories=request.repositories,
        )
        items = reader.store.scan(reader.access, touching, limit=200).items
        return [
            Candidate(item, 1.0, self.name, "this bug was fixed in a file that the change touches") for item in items
        ]

    def _similar(self, reader: Reader, request: Request) -> list[Candidate]:
        text = request.question or request.change.summary(60)
        if not text.strip():
            return []
        bugs = Filter(kinds=("bug_spec",), repositories=request.repositories)
        hits = reader.store.search(reader.access, Query(text, None, Mode.KEYWORD, self.limit, bugs))
        best = hits[0].score if hits else 1.0
        return [
            Candidate(
                hit.item, 0.5 * hit.score / best if best > 0 else 0.0, self.name, "its symptoms read like the request"
            )
            for hit in hits
        ]
