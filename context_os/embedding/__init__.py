"""The seam for embeddings: text to vectors. One file per provider; ``load`` picks the configured one.

Vectors stand behind the keyword index and never hold it back: items are searched for by word as soon as they are
stored, and by meaning once their vectors have caught up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from context_os import plugins, telemetry
from context_os.errors import ConfigurationError
from context_os.plugins import Plugin

Progress = Callable[[str], None]

AUTO: Final = "auto"
NONE: Final = "none"


class Embedding(Plugin):
    """Contract of a provider. Cheap to make; what it needs is loaded when the first text comes.

    ``semantic`` is False for one that knows nothing of meaning: nothing ranks by its vectors unasked. A subclass's
    ``embed`` is measured without its doing.
    """

    semantic: ClassVar[bool] = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "embed" in vars(cls):
            cls.embed = _measured(cls.embed, cls.name)  # type: ignore[assignment]

    @property
    def version(self) -> str:
        """Names model, quantisation and dimensions. Vectors of two versions never meet in one search."""
        raise NotImplementedError

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Shape ``(len(texts), dimensions)``, rows of unit length. The vector of a text does not depend on its
        neighbours. Raises ConfigurationError where something is missing, EmbeddingError where it fails."""
        raise NotImplementedError

    def is_here(self) -> bool:
        """Whether ``embed`` needs nothing that would have to be fetched or installed first."""
        return True

    def fetch(self, progress: Progress) -> str:
        """Get what ``embed`` needs onto this machine; says where it came from. Raises EmbeddingError."""
        return "nothing to fetch"

    @classmethod
    def of(cls, given: Mapping[str, Any], places: Mapping[str, Any]) -> Self:
        """One with these settings. ``places`` are folders and addresses that each takes if it knows them; a setting
        that it does not know is a ConfigurationError."""
        strange = sorted(set(given) - set(cls.model_fields))
        if strange:
            raise ConfigurationError(f"embedding.{strange[0]}: the provider {cls.name} does not take it; leave it out")
        missing = [name for name, field in cls.model_fields.items() if field.is_required() and name not in given]
        missing = [name for name in missing if name not in places]
        if missing:
            raise ConfigurationError(f"embedding.{missing[0]}: the provider {cls.name} needs it; set it")
        return cls(**given, **{name: place for name, place in places.items() if name in cls.model_fields})


_Embed = Callable[[Embedding, Sequence[str]], NDArray[np.float32]]


def _measured(embed: _Embed, provider: str) -> _Embed:
    @functools.wraps(embed)
    def measured(self: Embedding, texts: Sequence[str]) -> NDArray[np.float32]:
        with telemetry.timed(telemetry.EMBEDDING_SECONDS, provider, errors=telemetry.EMBEDDING_ERRORS):
            vectors = embed(self, texts)
        telemetry.EMBEDDED.add(len(texts), provider)
        return vectors

    return measured


def providers() -> list[str]:
    """Every value of ``embedding.provider``."""
    return sorted([AUTO, NONE, *plugins.names("embedding")])


def load(provider: str, given: Mapping[str, Any], places: Mapping[str, Any]) -> Embedding | None:
    """The provider by name; None for "none" (no vectors). "auto" is ``onnx`` where its weights are on this machine
    already, else none: nothing is downloaded that nobody asked for, and vectors without meaning (``hashed``) are for
    those who name them. Raises ConfigurationError."""
    if provider == NONE:
        return None
    if provider != AUTO:
        chosen: Embedding = plugins.load("embedding", provider).of(given, places)
        return chosen
    best: Embedding = plugins.load("embedding", "onnx").of(given, places)
    return best if best.is_here() else None
