"""Static vectors: each token has one, a text is their mean. Quick and small; measured, they add little to keywords."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from context_os.embedding import Embedding, Progress
from context_os.embedding._weights import TOKENIZER, WEIGHTS, Model, Places, digest, given_folder, tensors
from context_os.errors import ConfigurationError, EmbeddingError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CHARACTERS = 8_000
"""Of a text; what stands further down moves a mean of thousands of tokens no more."""


class Model2Vec(Embedding):
    """Token vectors as the library of that name distils them (``embeddings`` in ``model.safetensors``, optionally with
    ``weights`` per token and a ``mapping`` from token to row). ``model`` is a folder or a model on the hub."""

    name: ClassVar[str] = "model2vec"

    model: str
    cache: Path
    hub_cache: Path
    hub: str

    @property
    def version(self) -> str:
        name = (self._folder.resolve() if given_folder(self.model) else Path(self.model)).name
        table = self._table.vectors
        return f"{name}-{digest(self._folder / WEIGHTS)[:8]}-{table.dtype}-{table.shape[1]}"

    def is_here(self) -> bool:
        return bool(given_folder(self.model) or self._places.find(Model(id=self.model)))

    def fetch(self, progress: Progress) -> str:
        if self.is_here():
            return "it was here already"
        return self._places.fetch(Model(id=self.model), progress)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([self._table.mean(text) for text in texts]) if texts else self._table.vectors[:0].astype("f4")

    @property
    def _places(self) -> Places:
        return Places(cache=self.cache, hub_cache=self.hub_cache, hub=self.hub)

    @cached_property
    def _folder(self) -> Path:
        folder = given_folder(self.model) or self._places.find(Model(id=self.model))
        if folder is None:
            raise ConfigurationError(
                f"the model {self.model} is not on this machine; get it with `context-os embedding fetch`, or set "
                "embedding.model to a folder that has it"
            )
        return folder

    @cached_property
    def _table(self) -> _Table:
        return _Table(self._folder)


class _Table:
    def __init__(self, folder: Path) -> None:
        if importlib.util.find_spec("tokenizers") is None:
            raise ConfigurationError("the provider model2vec needs tokenizers: pip install 'context-os[onnx]'")
        from tokenizers import Tokenizer

        found = tensors(folder / WEIGHTS)
        if "embeddings" not in found:
            raise EmbeddingError(f"{folder / WEIGHTS} holds no token vectors (the tensor `embeddings`)")
        self.vectors: NDArray[Any] = found["embeddings"]
        self._weights = found.get("weights")
        self._mapping = found.get("mapping")
        try:
            self._tokenizer: Tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
            self._unknown = json.loads(self._tokenizer.to_str())["model"].get("unk_token")
        except Exception as error:  # noqa: BLE001 - the tokenizer raises bare ones
            raise EmbeddingError(f"{folder / TOKENIZER} cannot be read ({error}); fetch it again") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def mean(self, text: str) -> NDArray[np.float32]:
        """Of the known tokens' vectors, at unit length."""
        valid = text[:_CHARACTERS].encode("utf-8", "replace").decode("utf-8")
        unknown = self._tokenizer.token_to_id(self._unknown) if self._unknown else None
        ids = [id for id in self._tokenizer.encode(valid, add_special_tokens=False).ids if id != unknown]
        tokens = np.array(ids, dtype=np.int64)
        rows = tokens if self._mapping is None else self._mapping[tokens]
        vectors = self.vectors[rows].astype(np.float32)
        if self._weights is not None:
            vectors = vectors * self._weights[tokens].astype(np.float32)[:, None]
        total = vectors.sum(axis=0, dtype=np.float32)
        length = float(np.linalg.norm(total))
        if not length:
            # A text without a known token still needs a direction; an all-zero vector has no cosine.
            total[0] = length = 1.0
        unit: NDArray[np.float32] = total / np.float32(length)
        return unit
