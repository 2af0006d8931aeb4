"""What happened to the changed files before: pull requests and commits that touched them, and files that changed with
them."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from context_os.model import KnowledgeItem
from context_os.selectors import Candidate, Reader, Request, Selector
from context_os.stores import Filter

_SWEEPING = 30
"""A pull request over more files than this says little about any of them."""


class History(Selector):
    name: ClassVar[str] = "history"

    def select(self, reader: Reader, request: Request) -> list[Candidate]:
        paths = request.change.paths
        if not paths:
            return []
        touching = Filter(
            targets=tuple(f"path:{path}" for path in paths),
            relation_types=("touches",),
            source_types=("commits", "pull_requests"),
            repositories=request.repositories,
        )
        pulls = list(reader.store.scan(reader.access, touching, limit=500).items)
        found = self._pulls(pulls, set(paths)) + self._together(reader, request, pulls)
        return sorted(found, key=lambda each: (-each.score, each.item.id))[: self.limit]

    def _pulls(self, pulls: list[KnowledgeItem], paths: set[str]) -> list[Candidate]:
        newest = sorted(pulls, key=_when, reverse=True)
        found = []
        for place, item in enumerate(newest):
            touched = _touched(item)
            shared = touched & paths
            closeness = len(shared) / len(touched | paths)
            score = 0.7 * closeness + 0.3 / (1 + place)
            found.append(Candidate(item, score, self.name, f"it touched {', '.join(sorted(shared)[:3])} before"))
        return found

    def _together(self, reader: Reader, request: Request, pulls: list[KnowledgeItem]) -> list[Candidate]:
        changed = set(request.change.paths)
        small = [_touched(item) for item in pulls if len(_touched(item)) <= _SWEEPING]
        counts = Counter(path for touched in small for path in touched - changed)
        often = [(path, count) for path, count in counts.most_common(self.limit) if count > 1]
        if not often:
            return []
        modules = Filter(kinds=("module",), paths=tuple(path for path, _ in often), repositories=request.repositories)
        by_path = {item.source.path: item for item in reader.store.scan(reader.access, modules, limit=500).items}
        return [
            Candidate(
                by_path[path], count / len(small), self.name, f"it changed together with these files {count} times"
            )
            for path, count in often
            if path in by_path
        ]


def _touched(item: KnowledgeItem) -> set[str]:
    return {relation.target[5:] for relation in item.relations if relation.target.startswith("path:")}


def _when(item: KnowledgeItem) -> str:
    structured = item.payload.structured
    return str(structured.get("merged_at") or structured.get("created_at") or "")
