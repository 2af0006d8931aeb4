"""Any model of the library sentence-transformers, for those who have it and torch installed."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from context_os.embedding import Embedding
from context_os.errors import ConfigurationError, EmbeddingError


class SentenceTransformers(Embedding):
    """``model`` is a folder or a name that the library knows."""

    name: ClassVar[str] = "sentence_transformers"

    model: str = "sentence-transformers/all-MiniLM-L6-v2"

    @property
    def version(self) -> str:
        return f"{self.model.rpartition('/')[2]}-float32-{self._loaded.get_sentence_embedding_dimension()}"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = self._loaded.encode(
            list(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return vectors

    @cached_property
    def _loaded(self) -> Any:
        try:
            library = importlib.import_module("sentence_transformers")
        except ImportError:
            raise ConfigurationError(
                "the embedding provider sentence-transformers needs that library: pip install sentence-transformers "
                "(it brings torch; the provider onnx runs without)"
            ) from None
        try:
            return library.SentenceTransformer(self.model)
        except Exception as error:  # noqa: BLE001 - whatever hub, torch and transformers raise
            raise EmbeddingError(f"sentence-transformers cannot load {self.model}: {error}") from None
