"""What reads like the request: words, names, paths, stack frames and, where vectors carry meaning, meaning.

Where this machine keeps the statistics of what is asked about, every file and every document in it is scored by the
features of ``relevance``. Elsewhere the store's own search answers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Final

import numpy as np

from context_os import question, relevance
from context_os.corpus import Corpus
from context_os.question import Question
from context_os.relevance import Features, Model
from context_os.segments import Floats, Ints
from context_os.selectors import Candidate, Judgement, Reader, Request, Selector
from context_os.stores import Filter, Mode, Query
from context_os.text import words

_LIFTED: Final = "what answers best uses it, or it uses that"
_TITLE: Final = 40
"""Words that stand for a change's title."""


def asked_of(request: Request) -> Question:
    """The question; for a change alone, the words that it touches most often stand for a title."""
    if request.question:
        return question.read(request.question)
    return Question(request.change.summary(_TITLE), request.change.touched_text[: question.LONGEST])


def nearness(reader: Reader, corpus: Corpus, asked: Question) -> tuple[Floats | None, Floats | None]:
    """(documents,) cosines of the question and of its title; None without vectors that carry meaning."""
    if reader.embedding is None or not reader.embedding.semantic:
        return None, None
    found = corpus.nearness(reader.embedding.embed([asked.text, asked.title]))
    return (None, None) if found is None else (found[:, 0].astype(np.float64), found[:, 1].astype(np.float64))


class Hybrid(Selector):
    name: ClassVar[str] = "hybrid"

    limit: int = 600
    max_words: int = 120
    strangers: int = 20

    def select(self, reader: Reader, request: Request) -> list[Candidate]:
        text = self.text_of(request)
        if not text.strip():
            return []
        if reader.corpus is not None and reader.corpus.size:
            return self._by_features(reader, reader.corpus, request)
        return self._by_search(reader, request, text, self.limit)

    def relevance_of(self, reader: Reader, corpus: Corpus, request: Request) -> tuple[Features, Model]:
        """Every file and document of the corpus with its features, and the weights for this kind of request."""
        asked = asked_of(request)
        whole, title = nearness(reader, corpus, asked)
        features = Features(corpus, asked, whole, title, request.change)
        model = relevance.model(request.kind, semantic=whole is not None, file=reader.weights)
        return features, relevance.tuned(model, reader.tuned) if reader.tuned else model

    def text_of(self, request: Request) -> str:
        return request.question or request.change.summary(self.max_words)

    def _by_features(self, reader: Reader, corpus: Corpus, request: Request) -> list[Candidate]:
        features, model = self.relevance_of(reader, corpus, request)
        plain = model.documents(features)
        lifted = relevance.lifted(corpus, plain)
        scores = lifted if request.change.files else relevance.apart(corpus, lifted, request.kind)
        order = np.argsort(-scores, kind="stable")[: self.limit]
        order = order[np.isfinite(scores[order])]
        shares = _shares(scores, float(lifted[order].min(initial=np.inf)), order, features.changed)
        judgements = _judgements(features, model, order)
        chosen = {corpus.id_of(int(doc)): int(doc) for doc in order}
        items = sorted(reader.store.get(reader.access, list(chosen)), key=lambda it: (-scores[chosen[it.id]], it.id))
        found = [
            Candidate(item, shares[doc], self.name, reason, judgements.get(doc))
            for item in items
            for doc in [chosen[item.id]]
            for reason in [_LIFTED if lifted[doc] > plain[doc] else model.reason(features, document=doc)]
        ]
        return found + self._elsewhere(reader, corpus, request, features.question.title)

    def _elsewhere(self, reader: Reader, corpus: Corpus, request: Request, title: str) -> list[Candidate]:
        """What the store holds and no ingestion on this machine has counted: others' items."""
        everything = Filter(repositories=request.repositories)
        if reader.store.count(reader.access, everything) == corpus.readable:
            return []
        hits = self._by_search(reader, request, title, self.strangers)
        known = corpus.documents_of([hit.item.id for hit in hits]) >= 0
        return [replace(hit, score=hit.score / 2) for hit, here in zip(hits, known, strict=True) if not here]

    def _by_search(self, reader: Reader, request: Request, text: str, limit: int) -> list[Candidate]:
        semantic = reader.embedding is not None and reader.embedding.semantic
        vector = reader.embedding.embed([text])[0] if reader.embedding is not None and semantic else None
        mode = Mode.HYBRID if semantic else Mode.KEYWORD
        version = reader.embedding.version if reader.embedding is not None and semantic else ""
        narrowed = Filter(repositories=request.repositories)
        query = Query(text, vector, mode, limit, narrowed, version=version)
        hits = reader.store.search(reader.access, query)
        best = hits[0].score if hits else 1.0
        asked = set(words(text))
        return [
            Candidate(
                hit.item, hit.score / best if best > 0 else 0.0, self.name, _reason(hit.item.metadata.title, asked)
            )
            for hit in hits
        ]


def _judgements(features: Features, model: Model, chosen: Ints) -> dict[int, Judgement]:
    """By document; without those that the change touches, which need no judging."""
    rest = np.setdiff1d(chosen, features.changed)
    columns = model.columns(features)
    names = list(columns)
    rows = np.stack([make()[rest] for make in columns.values()], axis=1)
    return {
        int(doc): Judgement(model.name, {names[place]: float(row[place]) for place in np.flatnonzero(row)})
        for doc, row in zip(rest, rows, strict=True)
    }


def _shares(scores: Floats, worst: float, chosen: Ints, changed: Ints) -> dict[int, float]:
    """Scores in 0.05..1 by document; ``worst`` is 0.05, and so is what is below. What the change touches is like
    itself: the best of the rest has the whole score, or everything else would look poor."""
    rest = scores[np.setdiff1d(chosen, changed)]
    span = (float(rest.max()) - worst if len(rest) else 0.0) or 1.0
    shares = 0.05 + 0.95 * np.clip((scores[chosen] - worst) / span, 0.0, 1.0)
    return {int(doc): round(float(share), 6) for doc, share in zip(chosen, shares, strict=True)}


def _reason(title: str, asked: set[str]) -> str:
    shared = [word for word in dict.fromkeys(words(title)) if word in asked]
    return (
        f"its name shares {', '.join(shared[:4])} with the request"
        if shared
        else "its text matches the request's words"
    )
