"""The seam for selection. One file per selector; each proposes items for a request, with a score and its reason.

A selector only sees what the ``Access`` may read, because it only reads the store. Its scores are in 0..1 and
compare within one answer; ``ranking`` weighs the selectors against each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from context_os.change import Change
from context_os.corpus import Corpus
from context_os.embedding import Embedding
from context_os.model import Access, KnowledgeItem
from context_os.plugins import Plugin
from context_os.question import read
from context_os.stores import KnowledgeStore


@dataclass(frozen=True)
class Request:
    """What the pack is for: a question, a change, or both. Empty ``repositories`` means all of the tenant."""

    question: str = ""
    change: Change = field(default_factory=Change)
    repositories: tuple[str, ...] = ()

    @property
    def kind(self) -> Literal["issue", "question", "change"]:
        """What is asked: something of several lines, of one, or nothing but what a change deserves."""
        if not self.question:
            return "change"
        return "issue" if read(self.question).body else "question"


@dataclass(frozen=True)
class Judgement:
    """What a linear model made a score of: the model's name, such as ``change.lexical``, and its features that are not
    0, by the column's name."""

    model: str
    features: Mapping[str, float]


@dataclass(frozen=True)
class Candidate:
    """An item that a selector proposes. ``reason`` completes "chosen because ..." for a person."""

    item: KnowledgeItem
    score: float
    selector: str
    reason: str
    judgement: Judgement | None = None


@dataclass(frozen=True)
class Reader:
    """The store as one caller sees it."""

    store: KnowledgeStore
    access: Access
    embedding: Embedding | None = None
    corpus: Corpus | None = None
    """The statistics of what is asked about, where this machine has them."""
    weights: Path | None = None
    """A file to be used instead of ``context_os/data/weights.toml``."""
    tuned: Path | None = None
    """A file with the weights that this repository's feedback gave, as ``relevance.tuned`` reads it."""


class Selector(Plugin):
    """Contract of a selector. ``limit`` bounds what it proposes."""

    limit: int = 60

    def select(self, reader: Reader, request: Request) -> list[Candidate]:
        """Candidates, best first, each item at most once."""
        raise NotImplementedError
