"""What reads like the request: keyword search, fused with vectors where those carry meaning."""

from __future__ import annotations

from typing import ClassVar

from context_os.selectors import Candidate, Reader, Request, Selector
from context_os.stores import Filter, Mode, Query
from context_os.text import words


class Hybrid(Selector):
    name: ClassVar[str] = "hybrid"

    max_words: int = 120

    def select(self, reader: Reader, request: Request) -> list[Candidate]:
        text = request.question or request.change.summary(self.max_words)
        if not text.strip():
            return []
        semantic = reader.embedding is not None and reader.embedding.semantic
        vector = reader.embedding.embed([text])[0] if reader.embedding is not None and semantic else None
        mode = Mode.HYBRID if semantic else Mode.KEYWORD
        query = Query(text, vector, mode, self.limit, Filter(repositories=request.repositories))
        hits = reader.store.search(reader.access, query)
        best = hits[0].score if hits else 1.0
        asked = set(words(text))
        return [
            Candidate(
                hit.item, hit.score / best if best > 0 else 0.0, self.name, _reason(hit.item.metadata.title, asked)
            )
            for hit in hits
        ]


def _reason(title: str, asked: set[str]) -> str:
    shared = [word for word in dict.fromkeys(words(title)) if word in asked]
    return (
        f"its name shares {', '.join(shared[:4])} with the request"
        if shared
        else "its text matches the request's words"
    )
