"""Vectors without weights: they find near spellings and shared identifier parts and know nothing of meaning."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from context_os.embedding import Embedding
from context_os.text import words


class Hashed(Embedding):
    """Feature hashing (Weinberger et al., 2009, arXiv 0902.2206) of words and their character trigrams."""

    name: ClassVar[str] = "hashed"
    semantic: ClassVar[bool] = False
    dimensions: ClassVar[int] = 256

    @property
    def version(self) -> str:
        return "hashed-256-1"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        features = [_features_of(text) for text in texts]
        rows = np.repeat(np.arange(len(texts)), [len(each) for each in features])
        flat = np.concatenate(features) if features else np.empty(0, dtype=np.int64)
        signs = np.where(flat & 0x10000, 1.0, -1.0)
        cells = rows * self.dimensions + (flat & (self.dimensions - 1))
        sums = np.bincount(cells, weights=signs, minlength=len(texts) * self.dimensions)
        vectors = sums.reshape(len(texts), self.dimensions).astype(np.float32)
        # A text without a word still needs a direction; an all-zero vector has no cosine.
        vectors[~vectors.any(axis=1), 0] = 1.0
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


def _features_of(text: str) -> NDArray[np.int64]:
    found = [_features(word) for word in dict.fromkeys(words(text[:2_000]))]
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


@lru_cache(maxsize=100_000)
def _features(word: str) -> NDArray[np.int64]:
    padded = f"<{word}>"
    grams = [word, word] + [padded[start : start + 3] for start in range(len(padded) - 2)]
    return np.array([zlib.crc32(gram.encode()) for gram in grams], dtype=np.int64)
