"""Search over the statistics that ingestion keeps: words, vectors or both, the same for every store.

A store's own search looks at every item that holds a word of the query one by one; here all of a word's items are a few
operations on arrays, so that ten times the items take hardly longer.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from context_os.corpus import Corpus
from context_os.segments import Floats, Ints
from context_os.stores import Filter, Mode, Query
from context_os.text import words

_CANDIDATES: Final = 100  # of each arm of a hybrid search, at least
_DIGITS: Final = 6
_MOST_WORDS: Final = 1_000


def answers(corpus: Corpus, query: Query) -> bool:
    """Whether the statistics know all that the query asks by. ``repositories`` and ``source_types`` of its filter are
    taken to be the corpus's own."""
    filter = query.filter
    known = Filter(
        repositories=filter.repositories,
        source_types=filter.source_types,
        kinds=filter.kinds,
        paths=filter.paths,
        path_prefix=filter.path_prefix,
    )
    return filter == known and (query.mode is Mode.KEYWORD or (query.vector is not None and corpus.has_vectors))


def search(corpus: Corpus, query: Query) -> list[tuple[str, float]]:
    """``(id, score)``, best first: BM25F for keywords, cosines for vectors; hybrid adds both, each scaled to 0..1."""
    allowed = _allowed(corpus, query.filter)
    if query.mode is Mode.KEYWORD:
        found = _best(corpus, _matching(corpus, query, allowed), query.limit)
    elif query.mode is Mode.VECTOR:
        found = _best(corpus, _near(corpus, query, allowed), query.limit)
    else:
        found = _fused(corpus, query, allowed)
    return [(corpus.id_of(int(doc)), float(score)) for doc, score in zip(*found, strict=True)]


_Scored = tuple[Ints, Floats]
"""Documents and their scores."""


def _allowed(corpus: Corpus, filter: Filter) -> NDArray[np.bool_]:
    """(documents,) whether it is readable and the filter lets it through."""
    found = corpus.visible
    if filter.kinds:
        kinds = [place for place, kind in enumerate(corpus.kinds) if kind in filter.kinds]
        found = found & np.isin(corpus.kind_of, kinds)
    prefix = filter.path_prefix.rstrip("/")
    if filter.paths or prefix:
        paths, below = set(filter.paths), f"{prefix}/"
        files = [
            (not paths or path in paths) and (not prefix or path == prefix or path.startswith(below))
            for _, path in corpus.files
        ]
        found = found & np.array([*files, False])[corpus.file_of]  # the last stands for no file, which is -1
    return found


def _matching(corpus: Corpus, query: Query, allowed: NDArray[np.bool_]) -> _Scored:
    """What holds a word of the text, by BM25F."""
    scores = corpus.bm25f(tuple(dict.fromkeys(words(query.text)))[:_MOST_WORDS])
    docs = np.flatnonzero((scores > 0) & allowed)
    return docs, scores[docs]


def _near(corpus: Corpus, query: Query, allowed: NDArray[np.bool_]) -> _Scored:
    """What has a vector, by cosine."""
    found = corpus.nearness(np.asarray(query.vector, dtype=np.float32)[None, :])
    if found is None:
        return np.empty(0, np.int64), np.empty(0)
    docs = np.flatnonzero(allowed & ~np.isnan(found[:, 0]))
    return docs, found[docs, 0].astype(np.float64)


def _best(corpus: Corpus, scored: _Scored, limit: int) -> _Scored:
    """The highest scores, ties in the order of ids."""
    docs, scores = scored[0], np.round(scored[1], _DIGITS)
    if len(docs) > limit > 0:
        chosen = scores >= np.partition(scores, -limit)[-limit]
        docs, scores = docs[chosen], scores[chosen]
    order = np.lexsort((corpus.raw_ids[docs].view("S16"), -scores))[: max(limit, 0)]
    return docs[order], scores[order]


def _fused(corpus: Corpus, query: Query, allowed: NDArray[np.bool_]) -> _Scored:
    depth = max(query.limit, _CANDIDATES)
    total: dict[int, float] = {}
    for arm, weight in ((_near, query.alpha), (_matching, 1 - query.alpha)):
        if weight > 0:
            docs, scores = _best(corpus, arm(corpus, query, allowed), depth)
            for doc, share in zip(docs.tolist(), (weight * _scaled(scores)).tolist(), strict=True):
                total[doc] = total.get(doc, 0.0) + share
    return _best(corpus, (np.array(list(total), dtype=np.int64), np.array(list(total.values()))), query.limit)


def _scaled(scores: Floats) -> Floats:
    """So that the best is 1 and the worst 0; all 1 where they do not differ."""
    span = float(np.ptp(scores)) if len(scores) else 0.0
    return (scores - scores.min()) / span if span else np.ones(len(scores))
